"""TensorRT's runner on a GPU: the right numbers, whatever the shape, the graph, the thread, and after any mistake."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from trtkit import engine

if WHY := engine.available()["trt"]:
    pytest.skip(f"no TensorRT on a GPU: {WHY}", allow_module_level=True)

from trtkit import cuda, precision, runner_trt
from trtkit.engine import BackendError

from .small_net import BATCH, batch, clear_batch, relative_error

# FP32 may run in TF32, which has 10 bits of mantissa, as FP16 has; INT8: one step of the output's own range.
TOLERANCE = {"fp32": 2e-3, "fp16": 4e-3, "int8": 1 / 127}


@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("n", [1, 3, 4])
def test_heads_equal_those_of_onnxruntime(plans, graphs, expected, kind, n):
    x = clear_batch(graphs.int8, n, seed=n)
    with engine.load(getattr(plans, kind)) as runner:
        got = runner.infer({"x": x})
    want = expected(kind, x)
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == want[name].dtype == np.float32 and got[name].shape == want[name].shape
        assert relative_error(got[name], want[name]) <= TOLERANCE[kind], name


def test_label_and_specs_tell_what_it_is(runner):
    assert runner.label.startswith("tensorrt ") and "NVIDIA" in runner.label
    assert runner.inputs["x"] == engine.TensorSpec(("batch", 3, 32, 32), np.dtype(np.float32))
    assert list(runner.outputs) == ["y", "z"] and runner.outputs["y"].shape == ("batch", 16, 16, 16)


def test_replayed_graph_gives_what_plain_enqueue_gives_also_after_other_shapes(runner):
    plain = {}
    runner.use_graph = False
    for n in (1, 4, 2):
        plain[n] = runner.infer({"x": batch(n, seed=n)})
    runner.use_graph = True
    for n in (1, 1, 1, 4, 4, 4, 1, 2, 2, 2, 4, 1):          # first enqueued, then captured, then replayed
        for name, got in runner.infer({"x": batch(n, seed=n)}).items():
            np.testing.assert_array_equal(got, plain[n][name])


def test_use_graph_may_be_switched_at_any_time(runner):
    x = batch(2)
    first = runner.infer({"x": x})["y"]
    for use_graph in (True, False, True, True, False, True):
        runner.use_graph = use_graph
        np.testing.assert_array_equal(runner.infer({"x": x})["y"], first)


def test_a_replay_reads_the_new_input(runner):
    for _ in range(3):
        runner.infer({"x": batch(1, seed=1)})
    one, two = (runner.infer({"x": batch(1, seed=s)})["y"] for s in (1, 2))
    assert np.abs(one - two).max() > 0.01


def test_outputs_are_copies(runner):
    first = runner.infer({"x": batch(2, seed=1)})
    kept = {name: y.copy() for name, y in first.items()}
    runner.infer({"x": batch(2, seed=2)})
    for name in first:
        np.testing.assert_array_equal(first[name], kept[name])
        assert first[name].flags.owndata
    first["y"][:] = 0
    np.testing.assert_array_equal(runner.infer({"x": batch(2, seed=1)})["y"], kept["y"])


def test_parts_are_what_infer_does(runner):
    x = batch(3)
    want = runner.infer({"x": x})
    runner.stage({"x": x})
    x_copy, x[:] = x.copy(), 0                      # staged is copied: what happens to the array no longer matters
    runner.upload()
    runner.launch()
    runner.download()
    runner.stream.synchronize()
    for name, got in runner.fetch().items():
        np.testing.assert_array_equal(got, want[name])
    assert x_copy.any()


WRONG = {
    "no name": {},
    "wrong name": {"images": batch(1)},
    "one name too many": {"x": batch(1), "w": batch(1)},
    "not an array": {"x": batch(1).tolist()},
    "float64": {"x": batch(1).astype(np.float64)},
    "float16": {"x": batch(1).astype(np.float16)},
    "rank": {"x": batch(1)[0]},
    "channels": {"x": np.zeros((1, 4, 32, 32), np.float32)},
    "side": {"x": np.zeros((1, 3, 32, 31), np.float32)},
    "batch above the profile": {"x": np.zeros((BATCH[2] + 1, 3, 32, 32), np.float32)},
    "empty batch": {"x": np.zeros((0, 3, 32, 32), np.float32)},
    "not contiguous": {"x": np.zeros((2, 32, 32, 3), np.float32).transpose(0, 3, 1, 2)},
    "every second": {"x": np.zeros((4, 3, 32, 32), np.float32)[::2]},
}


@pytest.mark.parametrize("why", WRONG)
def test_wrong_feed_raises_before_anything_reaches_the_device(runner, expected, monkeypatch, why):
    x = batch(2)
    runner.infer({"x": x})
    with monkeypatch.context() as m:
        for name in ("copy_to_device", "copy_to_host"):
            m.setattr(runner_trt.cuda, name, lambda *_: pytest.fail("reached the device"))
        with pytest.raises(ValueError, match=r"got .* expected"):
            runner.infer(WRONG[why])
    assert relative_error(runner.infer({"x": x})["y"], expected("fp32", x)["y"]) <= TOLERANCE["fp32"]


def test_closed_runner_raises_and_closes_twice(plans):
    runner = engine.load(plans.fp32)
    runner.infer({"x": batch(1)})
    runner.close()
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner.infer({"x": batch(1)})
    with pytest.raises(BackendError, match="closed"):
        runner.launch()


def test_closing_frees_every_buffer(plans):
    before = cuda.open_bytes()
    with engine.load(plans.fp32) as runner:
        runner.infer({"x": batch(4)})
        assert cuda.open_bytes() > before
    assert cuda.open_bytes() == before


def test_one_runner_in_two_threads_is_never_wrong(runner):
    """Each call gives the right answer or says that another thread is in one."""
    inputs = [batch(1, seed=s) for s in (1, 2)]
    right = [runner.infer({"x": x})["y"] for x in inputs]
    refused, wrong = [], []

    def work(i: int) -> None:
        for _ in range(300):
            try:
                y = runner.infer({"x": inputs[i]})["y"]
            except BackendError as e:
                refused.append(str(e))
            else:
                if not np.array_equal(y, right[i]):
                    wrong.append(i)

    _in_threads([lambda i=i: work(i) for i in range(2)])
    assert not wrong and all("another thread" in r for r in refused)
    np.testing.assert_array_equal(runner.infer({"x": inputs[0]})["y"], right[0])


def test_two_runners_of_one_plan_in_two_threads(plans):
    inputs = [batch(n, seed=n) for n in (1, 4)]
    with engine.load(plans.fp16) as one, engine.load(plans.fp16) as two:
        right = [one.infer({"x": x})["y"] for x in inputs]
        wrong = []

        def work(runner, i: int) -> None:
            for _ in range(200):
                if not np.array_equal(runner.infer({"x": inputs[i]})["y"], right[i]):
                    wrong.append(i)

        _in_threads([lambda: work(one, 0), lambda: work(two, 1)])
    assert not wrong


def test_runner_made_in_one_thread_runs_and_closes_in_another(plans):
    made = []
    _in_threads([lambda: made.append(engine.load(plans.fp32))])
    x = batch(1)
    first = made[0].infer({"x": x})["y"]
    results = []
    _in_threads([lambda: results.append(made[0].infer({"x": x})["y"])])
    np.testing.assert_array_equal(results[0], first)
    _in_threads([made[0].close])
    with pytest.raises(BackendError, match="closed"):
        made[0].infer({"x": x})


def _in_threads(functions) -> None:
    raised = []

    def guarded(function) -> None:
        try:
            function()
        except BaseException as e:                  # else it is printed and forgotten
            raised.append(e)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def test_layer_times_name_the_inspectors_layers(runner):
    runner.infer({"x": batch(4)})
    runs = runner.layer_times(runs=5)
    assert len(runs) == 5 and all([n for n, _ in r] == [n for n, _ in runs[0]] for r in runs)
    assert {name for name, _ in runs[0]} & {layer["Name"] for layer in runner.layers()}
    assert all(ms >= 0 for r in runs for _, ms in r) and sum(ms for _, ms in runs[0]) > 0
    np.testing.assert_array_equal(runner.infer({"x": batch(4)})["y"], runner.infer({"x": batch(4)})["y"])


@pytest.mark.parametrize(("kind", "narrow"), [("fp16", "FP16"), ("int8", "INT8")])
def test_layers_read_what_the_graph_asks(plans, kind, narrow):
    with engine.load(getattr(plans, kind)) as runner:
        reads = [precision.type_of(t) for layer in runner.layers() for t in layer["Inputs"]]
    assert narrow in reads


TORCH_FIRST = """
import sys, torch
a = torch.arange(6.0, device="cuda")
from pathlib import Path
import numpy as np
from trtkit import engine
with engine.load(Path(sys.argv[1])) as runner:
    x = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    y = [runner.infer({"x": x})["y"] for _ in range(4)]
    b = torch.from_numpy(x).cuda() * 2
    assert all(np.array_equal(y[0], other) for other in y)
assert torch.allclose(b.cpu(), torch.from_numpy(x * 2)) and a.sum().item() == 15
print(float(y[0].sum()))
"""
TRT_FIRST = """
import sys
from pathlib import Path
import numpy as np
from trtkit import engine
runner = engine.load(Path(sys.argv[1]))
x = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
y = runner.infer({"x": x})["y"]
import torch
b = torch.nn.functional.conv2d(torch.from_numpy(x).cuda(), torch.ones(1, 3, 1, 1, device="cuda"))
assert np.array_equal(runner.infer({"x": x})["y"], y)
runner.close()
assert abs(b.sum().item() / x.sum() - 1) < 1e-2
print(float(y.sum()))
"""


@pytest.mark.parametrize("code", [TORCH_FIRST, TRT_FIRST], ids=["torch first", "trtkit first"])
def test_torch_in_the_same_process_in_either_order(plans, runner, code):
    pytest.importorskip("torch")
    want = float(runner.infer({"x": batch(2)})["y"].sum())
    done = subprocess.run([sys.executable, "-c", code, str(plans.fp32)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) == pytest.approx(want, rel=1e-6)
