import json
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median

import fake_pycuda
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit import (
    bench,
    bench_graphs,
    bench_rounds,
    bench_runtime,
    bench_speed,
    bench_steps,
    cli_bench,
    engine,
    models,
    precision,
)
from trtkit.engine import BackendError

MADE_FROM = {"gpu": "NVIDIA H100 80GB HBM3", "driver": "580.1", "versions": {"tensorrt": "8.6.1"}, "commit": "abc",
             "command": "python -m trtkit bench", "date": "2026-11-22"}


class Device:
    """A stream that takes `run_ms` for what was put on it and knows how much is queued; an event is a point in time."""

    def __init__(self, run_ms):
        self.run_ms, self.now_ms, self.queued, self.most_queued, self.closed, self.made = run_ms, 0.0, 0, 0, 0, 0

    def launch(self):
        self.now_ms += self.run_ms
        self.queued += 1
        self.most_queued = max(self.most_queued, self.queued)

    def event(self):
        device = self
        device.made += 1

        class Event:
            def record(self, stream):
                assert stream == "the stream"
                self.at_ms = device.now_ms

            def synchronize(self):
                device.queued -= 1

            def elapsed_ms(self, since):
                return self.at_ms - since.at_ms

            def close(self):
                device.closed += 1

        return Event()


@pytest.mark.parametrize("runs", [1, 2, 3, 10])
def test_queued_runs_are_timed_one_ahead(runs):
    device = Device(0.7)
    times = bench_rounds.queued_ms(device.launch, device.event, "the stream", runs)
    assert times == pytest.approx([0.7] * runs)
    assert device.most_queued == min(runs, 2) and device.queued == 0 and device.closed == device.made


def test_turns_run_forwards_and_backwards_and_all_have_as_many():
    turns = []

    def contender(name):
        def run(n):
            turns.append(name)
            return [float(len(turns))] * n

        return run

    times = bench_rounds.interleave({k: contender(k) for k in "abc"}, rounds=4, turn_s=1e-6)
    assert "".join(turns) == "aabbcc" + "abccbaabccba"          # a warm-up and a trial of each, then four rounds
    assert [len(r) for r in times["a"]] == [bench_rounds.FEWEST] * 4
    assert [r[0] for r in times["b"]] == [8.0, 11.0, 14.0, 17.0]


def test_a_turn_leaves_its_first_runs_out():
    times = bench_rounds.interleave({"x": lambda n: list(range(n))}, rounds=1, turn_s=1e-9)
    assert times["x"][0][0] == bench_rounds.WARM_UP


def test_length_of_a_turn_counts_all_that_it_does_not_what_it_returns():
    """A contender that times a copy of 1 us inside of an inference of 10 ms must not run ten thousand times."""
    import time

    def run(n):
        time.sleep(0.01 * n)
        return [0.001] * n

    assert len(bench_rounds.interleave({"x": run}, rounds=1, turn_s=0.1)["x"][0]) <= 12


@pytest.mark.parametrize(("contenders", "rounds"), [({}, 3), ({"x": lambda n: [1.0] * n}, 0)])
def test_no_contender_or_round_is_an_error(contenders, rounds):
    with pytest.raises(ValueError, match="expected 1 or more"):
        bench_rounds.interleave(contenders, rounds=rounds)


rounds_strategy = st.lists(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), min_size=1, max_size=8)


@given(rounds_strategy)
def test_summary_is_what_numpy_says(rounds_ms):
    found = bench_rounds.summary(rounds_ms, batch=4)
    every = np.array([ms for r in rounds_ms for ms in r])
    medians = [np.median(r) for r in rounds_ms]
    assert found["median_ms"] == pytest.approx(np.median(medians), abs=1e-4)
    assert found["images_per_s"] == pytest.approx(4000 / np.median(medians), rel=1e-3, abs=0.06)
    assert found["spread_percent"] == pytest.approx(100 * np.ptp(medians) / np.median(medians), abs=0.01)
    assert found["p50_ms"] == pytest.approx(np.median(every), abs=1e-4) and found["runs"] == len(every)
    assert found["cv_percent"] == pytest.approx(100 * every.std() / every.mean(), abs=1e-3)
    assert found["min_ms"] <= found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"] <= found["max_ms"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("last", "verdict"), [(1.0, "steady"), (1.5, "noisy")])
def test_verdict_follows_the_coefficient_of_variation(last, verdict):
    assert bench_rounds.summary([[1.0] * 9, [last]])["verdict"] == verdict


# ---------------------------------------------------------------------------------------------------- the file

@pytest.fixture
def no_gpu_needed(monkeypatch):
    monkeypatch.setattr(engine, "available", lambda: {"ort": "", "trt": ""})
    monkeypatch.setattr(bench.recorded, "provenance", lambda command, commit="": {**MADE_FROM, "command": command})


def _settings(tmp_path, parts, **more):
    return bench.Settings(out=tmp_path / "out", work=tmp_path / "work", parts=parts, **more)


def _steps_of(monkeypatch, steps):
    monkeypatch.setattr(bench, "steps", lambda part, settings, say: steps[part])


def test_runs_are_merged_and_say_by_which_command(tmp_path, no_gpu_needed, monkeypatch):
    _steps_of(monkeypatch, {"memory": [("m", lambda: iter([("a", {"x": 1}), ("b", {"x": 2})]))],
                            "processes": [("p", lambda: iter([("a", {"x": 3})]))]})
    path = bench.run(_settings(tmp_path, ("memory",), command="first"), lambda line: None)
    assert path.name == "h100_trt861.json"
    assert bench.run(_settings(tmp_path, ("processes",), command="second"), lambda line: None) == path
    body = json.loads(path.read_text())
    assert {k: v["x"] for k, v in body["memory"].items()} == {"a": 1, "b": 2}
    assert body["processes"]["a"]["x"] == 3
    assert body["memory"]["a"]["measured"]["command"] == "first"
    assert body["processes"]["a"]["measured"] == {"command": "second", "commit": "abc", "date": "2026-11-22"}


def test_a_run_that_is_cut_off_keeps_what_it_has(tmp_path, no_gpu_needed, monkeypatch):
    def cut_off():
        yield "a", {"x": 1}
        raise KeyboardInterrupt

    _steps_of(monkeypatch, {"memory": [("m", cut_off)]})
    with pytest.raises(KeyboardInterrupt):
        bench.run(_settings(tmp_path, ("memory",)), lambda line: None)
    assert json.loads((tmp_path / "out" / "h100_trt861.json").read_text())["memory"]["a"]["x"] == 1


def test_a_step_that_fails_costs_no_other_and_is_named_at_the_end(tmp_path, no_gpu_needed, monkeypatch):
    def broken():
        yield "half", {"x": 0}
        raise RuntimeError("CUDA out of memory")

    _steps_of(monkeypatch, {"memory": [("first", broken), ("second", lambda: iter([("good", {"x": 1})]))]})
    said = []
    with pytest.raises(BackendError, match="1 steps failed: memory first"):
        bench.run(_settings(tmp_path, ("memory",)), said.append)
    body = json.loads((tmp_path / "out" / "h100_trt861.json").read_text())
    assert set(body["memory"]) == {"half", "good"} and any("CUDA out of memory" in line for line in said)


@pytest.mark.parametrize(("fact", "other"), [("gpu", "NVIDIA H100 80GB HBM4"), ("driver", "999"),
                                             ("versions", {"tensorrt": "8.6.1", "torch": "1"})])
def test_results_of_another_machine_are_not_mixed(tmp_path, no_gpu_needed, monkeypatch, fact, other):
    _steps_of(monkeypatch, {"memory": [("m", lambda: iter([("a", {"x": 1})]))]})
    path = bench.run(_settings(tmp_path, ("memory",)), lambda line: None)
    before = path.read_bytes()
    monkeypatch.setattr(bench.recorded, "provenance", lambda command, commit="": {**MADE_FROM, fact: other})
    with pytest.raises(ValueError, match=f"measured with {fact}"):
        bench.run(_settings(tmp_path, ("memory",)), lambda line: None)
    assert path.read_bytes() == before


def test_unknown_part_is_an_error(tmp_path, no_gpu_needed):
    with pytest.raises(ValueError, match="sped"):
        bench.run(_settings(tmp_path, ("sped",)), lambda line: None)


def test_every_part_has_steps_and_the_command_line_knows_them(tmp_path):
    assert cli_bench.PARTS == bench.PARTS
    steps = {part: [key for key, _ in bench_steps.steps(part, _settings(tmp_path, (part,)), print)]
             for part in bench.PARTS}
    assert all(steps.values())
    assert steps["speed"][:2] == ["w1 b1", "w1 b32"] and len(steps["speed"]) == 6


def test_engine_that_cannot_be_built_leaves_the_others(tmp_path, monkeypatch):
    def build(graph, config, *, backend):
        assert backend == "trt" and config.batch == (32, 32, 32) and config.optimization_level == 1
        if "int8" in graph.name:
            raise BackendError("the engine is wider than its graph")
        return graph.with_suffix(".plan")

    monkeypatch.setattr(engine, "build", build)
    monkeypatch.setattr(bench_graphs, "graph", lambda width, kind, folder: folder)
    plans, problems = bench_steps._plans(_settings(tmp_path, (), level=1), 0.25, 32)
    assert set(plans) == {"fp32", "fp16"} and len(problems) == 1 and "int8" in problems[0]


def test_without_a_gpu_the_command_ends_with_exit_code_2_and_says_why(tmp_path):
    done = subprocess.run([sys.executable, "-m", "trtkit", "bench", "--out", str(tmp_path)], capture_output=True,
                          text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("trtkit: bench:") and "GPU" in done.stderr
    assert not list(tmp_path.iterdir())


def test_recorded_command_holds_no_folder_of_this_machine():
    typed = ["bench", "--record", "--out", "/home/me/x", "--only", "speed", "--commit=abc", "--compile-python", "/py"]
    assert cli_bench.command(typed) == "python -m trtkit bench --record --only speed"


# ---------------------------------------------------------------------------------------------------- the graphs

@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as m:
        m.setitem(bench_graphs.CALIB_IMAGES, 0.25, 1)
        return {kind: onnx.load(bench_graphs.graph(0.25, kind, folder)) for kind in bench_graphs.PRECISIONS}


def test_precision_is_in_the_graph(graphs):
    asked = {kind: list(precision.asked(model).values()) for kind, model in graphs.items()}
    assert asked["fp32"] == ["FP32"] * 75
    assert asked["fp16"] == ["FP16"] * 75
    assert asked["int8"].count("INT8") == 72 and asked["int8"].count("FP16") == 3      # the heads
    assert precision.has_quantized(graphs["int8"]) and not precision.has_quantized(graphs["fp16"])


def test_all_graphs_have_one_interface(graphs):
    for model in graphs.values():
        tensors = [*model.graph.input, *model.graph.output]
        assert [t.name for t in tensors] == ["images", "head32", "head16", "head8"]
        assert all(t.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for t in tensors)
        assert all(t.type.tensor_type.shape.dim[0].dim_param for t in tensors)
        assert model.opset_import[0].version <= 17                      # the newest of TensorRT 8.6's parser


def test_calibration_is_kept_for_the_same_graph_only(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_graphs.CALIB_IMAGES, 0.25, 1)
    fp32 = bench_graphs.graph(0.25, "fp32", tmp_path)
    first = bench_graphs.table(fp32, 0.25)
    with monkeypatch.context() as m:
        m.setattr(bench_graphs.calib, "collect", lambda *a, **k: pytest.fail("calibrated again"))
        assert bench_graphs.table(fp32, 0.25) == first
    path = fp32.with_suffix(".calib.json")
    path.write_text(path.read_text().replace('"graph_sha256": "', '"graph_sha256": "0'))
    monkeypatch.setattr(bench_graphs.calib, "collect", lambda *a, **k: pytest.fail("calibrated again"))
    with pytest.raises(pytest.fail.Exception, match="calibrated again"):
        bench_graphs.table(fp32, 0.25)


def test_random_network_keeps_its_activations_alive():
    import torch

    def spread(model):
        with torch.no_grad():
            return [float(h.std()) for h in model(torch.from_numpy(bench_graphs.images(1)))]

    torch.manual_seed(0)
    fresh = models.YOLOv3(2, 0.125).eval()
    assert all(s > 3 * f for s, f in zip(spread(bench_graphs.seeded(models.YOLOv3, 2, 0.125)), spread(fresh),
                                         strict=True))


def test_unknown_width_and_precision_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"width: got 0\.5"):
        bench_graphs.graph(0.5, "fp32", tmp_path)
    with pytest.raises(ValueError, match="precision: got 'fp8'"):
        bench_graphs.graph(0.25, "fp8", tmp_path)


def test_small_graph_runs_and_follows_its_seed(tmp_path):
    graphs = [bench_runtime.small_graph(tmp_path / f"{i}.onnx", seed) for i, seed in enumerate((5, 5, 6))]
    assert graphs[0].read_bytes() == graphs[1].read_bytes() != graphs[2].read_bytes()
    with engine.load(engine.build(graphs[0], backend="ort")) as runner:
        y = runner.infer({"images": np.ones((2, 3, 32, 32), np.float32)})["y"]
    assert y.shape == (2, 8, 32, 32) and y.min() == 0 < y.max()


@pytest.mark.parametrize("part", ["stage_copy", "fetch_copy"])
def test_copies_are_timed_in_the_middle_of_a_whole_inference(monkeypatch, part):
    fake_pycuda.install(monkeypatch)
    x, y, ran = np.ones((1, 3, 4, 4), np.float32), np.zeros((1, 8), np.float32), []
    clock = iter(np.cumsum([0, 1, 10, 100] * 3))        # begin, staged, done, fetched: 1, 10 and 100 s apart
    monkeypatch.setattr(bench_runtime.time, "perf_counter", lambda: float(next(clock)))
    for cuda in fake_pycuda.fresh_cuda(monkeypatch):
        class Runner:
            stream = cuda.Stream()

            def launch(self):
                ran.append("network")

        for name in ("copy_to_device", "copy_to_host"):
            really = getattr(cuda, name)
            monkeypatch.setattr(cuda, name, lambda *args, n=name, f=really: (ran.append(n), f(*args)))
        with ExitStack() as stack:
            timed = bench_runtime._copies_timed(Runner(), x, [y, y], cuda, stack)
            times = timed[part](3)
        Runner.stream.close()
    assert ran == 3 * ["copy_to_device", "network", "copy_to_host", "copy_to_host"]
    assert times == [1000 * {"stage_copy": 1, "fetch_copy": 100}[part]] * 3


# ---------------------------------------------------------------------------------------------------- contenders

def test_relative_error_is_by_name_and_of_the_largest_value():
    reference = [np.array([1.0, -4.0]), np.array([2.0]), np.array([0.5])]
    heads = {"head8": np.array([0.5]), "head16": np.array([2.5]), "head32": np.array([1.2, -4.0])}
    assert bench_speed.relative_errors(heads, reference) == [0.05, 0.25, 0.0]
    with pytest.raises(BackendError, match="NaN"):
        bench_speed.relative_errors({**heads, "head8": np.array([np.nan])}, reference)


def test_compile_needs_nothing_but_torch():
    """Run as another Python would: without onnx, OpenCV and NumPy's friends."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"onnx", "cv2", "onnxruntime", "pycuda", "tensorrt", "safetensors", "tqdm", "pandas"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import torch
from trtkit import bench_compile
model = bench_compile.network(3, 0.0625)
assert [tuple(h.shape) for h in model(torch.rand(1, 3, 64, 64))] == [(1, 24, 2, 2), (1, 24, 4, 4), (1, 24, 8, 8)]
from trtkit import bench_rounds
assert len(bench_rounds.interleave({"x": lambda n: [1.0] * n}, rounds=2, turn_s=1e-6)["x"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _python(folder: Path, code: str) -> str:
    """A command that runs code, whatever its arguments, like a Python of another version."""
    path = folder / "python9"
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


REQUEST = {"batches": (1, 8), "rounds": 2, "turn_s": 0.1}


def test_cases_of_compile_come_one_by_one_and_a_crash_keeps_them(tmp_path):
    python = _python(tmp_path, "\n".join([
        "import json, sys",
        "request = json.loads(sys.argv[3])",
        "assert sys.argv[1:3] == ['-m', 'trtkit.bench_compile'] and request['dtype'] == 'fp16', sys.argv",
        "assert request['modes'] == ['default'], request",
        "sys.stderr.write('noise' * 100_000)",          # more than a pipe holds
        "case = {'batch': 8, 'mode': 'default', 'compile_s': 1.5, 'rounds_ms': [[2.0, 2.0], [4.0, 4.0]]}",
        "print(json.dumps(case), flush=True)",
        "sys.exit('Triton is missing')",
    ]))
    cases = bench_speed.compiled(python, 1.0, 80, "fp16", **REQUEST, modes=["default"])
    key, found = next(cases)
    assert key == "w1 b8 fp16 default" and found["median_ms"] == 3 and found["compile_s"] == 1.5
    assert found["images_per_s"] == pytest.approx(8000 / 3, abs=0.1) and "rounds_ms" not in found
    with pytest.raises(BackendError, match=r"exit code 1.*Triton is missing"):
        next(cases)


def test_missing_python_is_named():
    with pytest.raises(BackendError, match=r"python9\.9.*--compile-python"):
        next(bench_speed.compiled("python9.9", 1.0, 80, "fp16", **REQUEST))


def test_another_python_gets_none_of_this_ones_packages_and_libraries(tmp_path):
    for name in ("tensorrt", "driver"):
        (tmp_path / name).mkdir()
    (tmp_path / "tensorrt" / "libnvinfer.so.8").touch()
    before = {"PATH": "/bin", "PYTHONPATH": "/site", "CPATH": "/include", "PYTHONHOME": "/x",
              "LD_LIBRARY_PATH": f"{tmp_path / 'tensorrt'}:{tmp_path / 'driver'}:"}
    plain = bench_speed.plain_environment(before)
    assert plain == {"PATH": "/bin", "PYTHONPATH": str(bench_speed.REPOSITORY),
                     "LD_LIBRARY_PATH": str(tmp_path / "driver")}
    del before["LD_LIBRARY_PATH"]
    assert "LD_LIBRARY_PATH" not in bench_speed.plain_environment(before)


def test_rounds_of_a_drifting_device_favour_nobody():
    """Two equal contenders on a clock that slows down all the time."""
    clock = {"ms": 1.0}

    def run(n):
        times = []
        for _ in range(n):
            clock["ms"] *= 1.001
            times.append(clock["ms"])
        return times

    both = bench_rounds.interleave({"a": run, "b": run}, rounds=10, turn_s=1e-6)
    a, b = ([median(r) for r in both[k]] for k in "ab")
    assert median(a) / median(b) == pytest.approx(1, abs=0.006)
    assert all(later > earlier for earlier, later in pairwise(a))
