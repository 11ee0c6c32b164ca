"""The runner of TensorRT engines, on a fake TensorRT and PyCUDA: what it puts on the stream, and what it refuses.

The fake engine computes y = 2 x and z = the sum of x over all but the batch, on the fake device's memory.
"""

import importlib
import json
import sys
from types import SimpleNamespace

import fake_pycuda
import numpy as np
import pytest
from fake_tensorrt import MAGIC, Script, module
from in_thread import in_thread

import trtkit
from trtkit.engine import BackendError

RANGE = {"x": [(1, 3), (2, 3), (4, 3)]}
MODULES = ("trt_plan", "runner_trt")


def _engine(trt, gpu, calls):
    """The part of TensorRT's runtime that the runner needs, put on the fake's classes."""
    shapes_of = {"x": (-1, 3), "y": (-1, 3), "z": (-1,)}

    def deserialize(self, plan):
        return trt.ICudaEngine() if bytes(plan).startswith(MAGIC) else None

    class Context(trt.IExecutionContext):
        def __init__(self):
            super().__init__()
            vars(self).update(batch=None, address={}, _active_optimization_profile=0)

        def set_input_shape(self, name, shape):
            self.__dict__["batch"] = shape[0]
            calls.append(f"shape {shape[0]}")
            return True

        def infer_shapes(self):
            return []

        def get_tensor_shape(self, name):
            return tuple(self.batch if d == -1 else d for d in shapes_of[name])

        def set_tensor_address(self, name, address):
            self.address[name] = address

        def execute_async_v3(self, handle):
            assert gpu.stack(), "TensorRT runs in the thread's current context, and there is none"
            n = self.batch

            def kernels():
                x = np.frombuffer(gpu.at(self.address["x"], n * 12), np.float32).reshape(n, 3)
                gpu.at(self.address["y"], n * 12)[:] = (2 * x).tobytes()
                gpu.at(self.address["z"], n * 4)[:] = x.sum(1).astype(np.float32).tobytes()

            calls.append("enqueue")
            gpu.run(gpu.stream_of(handle), kernels)
            return not calls_refused

    calls_refused: list[bool] = []
    names = list(shapes_of)
    trt.Runtime.deserialize_cuda_engine = deserialize
    for name, value in {
        "num_io_tensors": 3,
        "get_tensor_name": lambda self, i: names[[1, 0, 2][i]],         # TensorRT keeps no order
        "get_tensor_mode": lambda self, name: trt.TensorIOMode.INPUT if name == "x" else trt.TensorIOMode.OUTPUT,
        "get_tensor_dtype": lambda self, name: trt.DataType.FLOAT,
        "get_tensor_shape": lambda self, name: shapes_of[name],
        "get_tensor_profile_shape": lambda self, name, profile: RANGE[name],
        "create_execution_context": lambda self: Context(),
    }.items():
        setattr(trt.ICudaEngine, name, value)
    return calls_refused


@pytest.fixture
def made(monkeypatch, tmp_path):
    """`made.runner`, an open runner; `made.gpu`, `made.calls` of TensorRT, `made.refuse` to let it refuse to run."""
    gpu = fake_pycuda.install(monkeypatch)
    trt, calls = module("8.6", Script()), []
    refuse = _engine(trt, gpu, calls)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    (tmp_path / "a.plan").write_bytes(MAGIC + json.dumps([]).encode())
    for cuda in fake_pycuda.fresh_cuda(monkeypatch):
        for name in MODULES:
            monkeypatch.delitem(sys.modules, f"trtkit.{name}", raising=False)
            monkeypatch.delattr(trtkit, name, raising=False)
        runner_trt = importlib.import_module("trtkit.runner_trt")
        try:
            with runner_trt.TrtRunner(tmp_path / "a.plan", ["z", "y"]) as runner:
                calls.clear()
                yield SimpleNamespace(runner=runner, gpu=gpu, calls=calls, refuse=refuse, cuda=cuda)
        finally:
            for name in MODULES:                # else the next test would find them on this fake
                sys.modules.pop(f"trtkit.{name}", None)
                vars(trtkit).pop(name, None)


def feed(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)}


def check(runner, n: int, seed: int = 0) -> None:
    given = feed(n, seed)
    got = runner.infer(given)
    assert list(got) == ["z", "y"]
    assert np.array_equal(got["y"], 2 * given["x"]) and np.allclose(got["z"], given["x"].sum(1), atol=1e-6)


def test_a_shape_is_enqueued_twice_and_then_replayed(made):
    """The second enqueue is the one that is captured."""
    for seed in range(5):
        check(made.runner, 2, seed)
    assert made.calls == ["enqueue", "enqueue"]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_an_input_that_is_handed_over_in_portions_arrives_whole(made, monkeypatch, n):
    copied = []
    monkeypatch.setattr(sys.modules["trtkit.runner_trt"], "SMALLEST", 24)
    copy = made.cuda.copy_to_device
    monkeypatch.setattr(made.cuda, "copy_to_device", lambda b, a, s, offset: copied.append((offset, a.nbytes)) or copy(
        b, a, s, offset=offset))
    made.runner._set_shapes({"x": (n, 3)})      # in portions from 24 bytes on: two of the rows
    check(made.runner, n)
    assert len(copied) == (1 if n == 1 else 3)
    assert [offset for offset, _ in copied] == [sum(size for _, size in copied[:i]) for i in range(len(copied))]
    assert sum(size for _, size in copied) == 12 * n


def test_another_shape_begins_anew_and_its_graphs_are_freed(made):
    for n in (2, 2, 2, 3, 3, 3, 2, 2, 2, 1):
        check(made.runner, n, n)
    assert made.calls == ["enqueue", "enqueue", "shape 3", "enqueue", "enqueue", "shape 2", "enqueue", "enqueue",
                          "shape 1", "enqueue"]
    assert made.gpu.graphs == 0
    check(made.runner, 1)
    assert made.gpu.graphs == 1


def test_without_graphs_every_run_is_enqueued(made):
    made.runner.use_graph = False
    for seed in range(3):
        check(made.runner, 2, seed)
    assert made.calls == ["enqueue"] * 3 and made.gpu.graphs == 0


def test_the_parts_do_what_infer_does_with_a_graph_of_their_own(made):
    runner = made.runner
    for seed in range(4):
        runner.stage(feed(2, seed))
        runner.upload(), runner.launch(), runner.download()
        runner.stream.synchronize()
        assert np.array_equal(runner.fetch()["y"], 2 * feed(2, seed)["x"])
    assert made.calls == ["enqueue"] * 2 and made.gpu.graphs == 1
    check(runner, 2)
    assert made.calls == ["enqueue"] * 3 and made.gpu.graphs == 2
    runner.launch()                             # replays the network alone: no new outputs on the host
    assert made.calls == ["enqueue"] * 3


def test_no_times_of_layers_are_an_error_and_not_an_empty_list(made):
    with pytest.raises(BackendError, match=r"told no times.*aux_streams=0"):
        made.runner.layer_times(1)


def test_what_infer_returns_is_the_callers(made):
    first = made.runner.infer(feed(2, 1))
    kept = {name: y.copy() for name, y in first.items()}
    made.runner.infer(feed(2, 2))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"y": feed(2)["x"]}, "expected \\['x'\\]"),
    ({"x": [[1.0, 2, 3]]}, "got list"),
    ({"x": feed(2)["x"].astype(np.float64)}, "got float64, expected float32"),
    ({"x": feed(5)["x"]}, r"got shape \(5, 3\), expected \(1, 3\) to \(4, 3\)"),
    ({"x": feed(2)["x"][:, :2]}, "got shape"),
    ({"x": feed(2)["x"][0]}, "got shape"),
    ({"x": np.asfortranarray(feed(2)["x"])}, "not contiguous"),
])
def test_a_wrong_feed_is_refused_before_anything_is_enqueued(made, wrong, says):
    with pytest.raises(ValueError, match=says):
        made.runner.infer(wrong)
    assert made.calls == []
    check(made.runner, 2)


def test_a_refused_run_is_an_error_and_captures_no_empty_graph(made):
    check(made.runner, 2)
    made.refuse.append(True)
    with pytest.raises(BackendError, match="refused to run"):
        made.runner.infer(feed(2))
    made.refuse.clear()
    check(made.runner, 2)


def test_a_second_thread_waits_for_no_one(made):
    with made.runner._busy:
        for call in calls_of(made.runner):
            with pytest.raises(BackendError, match="one thread at a time"):
                in_thread(call)
    in_thread(lambda: check(made.runner, 2))


def calls_of(r) -> list:
    """Whatever may be called from outside."""
    return [lambda: r.infer(feed(2)), lambda: r.stage(feed(2)), r.upload, r.launch, r.download, r.fetch, r.layers,
            r.layer_times]


def test_everything_is_freed_and_a_closed_one_says_so(made):
    check(made.runner, 2), check(made.runner, 2)
    assert made.gpu.used > 0 and made.gpu.pinned == 3 and made.gpu.graphs == 1
    made.runner.close()
    made.runner.close()
    assert (made.gpu.used, made.gpu.pinned, made.gpu.graphs, made.gpu.streams) == (0, 0, 0, 0)
    for call in calls_of(made.runner):
        with pytest.raises(BackendError, match="got a closed one"):
            call()
