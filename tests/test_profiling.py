import statistics
import sys
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_inspector import CONV_8

import trtkit
from trtkit import clocks, engine, launches, profiling, record_09, recorded
from trtkit.costs import Cost, by_layer, costs
from trtkit.devices import Device
from trtkit.layer_times import against_roofline, layer_times, table
from trtkit.percentiles import percentile, stats
from trtkit.profiling import Latency, interleaved, measure

TIMES = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=200)


@pytest.fixture
def runner(yolo_graph, cache):
    with engine.load(engine.build(yolo_graph, backend="ort")) as runner:
        yield runner


@pytest.fixture
def feed(rng) -> dict[str, np.ndarray]:
    return {"images": rng.random((1, 3, 96, 96), dtype=np.float32)}


# Percentiles


@given(TIMES, st.integers(1, 100))
def test_percentile_is_trtexecs(ms, p):
    n = len(ms)
    if p != 50:                                         # in whole numbers, so exact
        assert percentile(ms, p) == sorted(ms)[max(n - 1 - (100 - p) * n // 100, 0)]
    assert percentile(ms, 50) == pytest.approx(statistics.median(ms))


def test_percentile_of_a_tenth():
    assert percentile(np.arange(1000), 99.9) == 998       # one of a thousand is above
    assert percentile([7.0], 99) == percentile([7.0], 0) == 7.0


@given(TIMES)
def test_statistics_equal_pythons_own(ms):
    found = stats(ms)
    assert found.mean_ms == pytest.approx(statistics.fmean(ms))
    assert found.cv_percent == pytest.approx(100 * statistics.pstdev(ms) / statistics.fmean(ms), abs=1e-4)
    assert (found.runs, found.min_ms, found.max_ms) == (len(ms), min(ms), max(ms))
    assert found.p90_ms <= found.p95_ms <= found.p99_ms <= found.max_ms


def test_no_times_have_no_percentile():
    with pytest.raises(ValueError, match="got p = 50 of 0 times"):
        percentile([], 50)
    with pytest.raises(ValueError, match="got p = 101 of 1 times, expected 0 to 100"):
        percentile([1.0], 101)


# A GPU that is simulated: a host and a device with a clock each, and a queue between them


class FakeGpu:
    """A runner that needs 0.2 ms to stage, 0.3 to upload, `kernels` x `kernel_ms` to compute, 0.4 to download, 0.05 to
    fetch; launching costs `launch_ms` per kernel, or once with a graph. Times in the unit of the measurement."""

    label = "tensorrt 8.6.1 · NVIDIA H100 80GB HBM3"

    def __init__(self, kernels=10, kernel_ms=0.1, launch_ms=0.01, copies_ms=(0.3, 0.4), use_graph=False):
        self.host = self.device = 0.0
        self.kernels, self.kernel_ms, self.launch_ms, self.copies_ms = kernels, kernel_ms, launch_ms, copies_ms
        self.use_graph, self.stream, self.fed = use_graph, self, []

    def perf_counter(self) -> float:
        return self.host / 1000

    def _run(self, ms: float) -> None:
        self.device = max(self.device, self.host) + ms

    def stage(self, feed) -> None:
        self.fed.append(feed["images"].shape)
        self.host += 0.2

    def upload(self) -> None:
        self._run(self.copies_ms[0])

    def launch(self) -> None:
        if self.use_graph:
            self.host += self.launch_ms
            self._run(self.kernels * self.kernel_ms)
            return
        for _ in range(self.kernels):
            self.host += self.launch_ms
            self._run(self.kernel_ms)

    def download(self) -> None:
        self._run(self.copies_ms[1])

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)

    def fetch(self) -> dict:
        self.host += 0.05
        return {}

    def infer(self, feed) -> dict:
        self.stage(feed)
        self.upload()
        self.launch()
        self.download()
        self.synchronize()
        return self.fetch()

    def layer_times(self, runs: int) -> list:
        return [[(f"/{i}/Conv + PWN(/{i}/LeakyRelu)", self.kernel_ms) for i in range(self.kernels)]] * runs

    def layers(self) -> list[dict]:
        return [CONV_8 | {"Name": f"/{i}/Conv + PWN(/{i}/LeakyRelu)"} for i in range(self.kernels)]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass


class FakeEvent:
    """Passed when the device has done what was queued before."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def record(self, gpu):
        self.passed = max(gpu.device, gpu.host)

    def elapsed_ms(self, since):
        return self.passed - since.passed


@pytest.fixture
def on_gpu(monkeypatch):
    """Make `measure` see the simulated clocks: on_gpu(gpu) -> gpu."""
    fake = SimpleNamespace(primary_context=nullcontext, Event=FakeEvent)
    monkeypatch.setitem(sys.modules, "trtkit.cuda", fake)
    monkeypatch.setattr(trtkit, "cuda", fake, raising=False)

    def use(gpu: FakeGpu) -> FakeGpu:
        for module in (profiling, launches):
            monkeypatch.setattr(module, "time", gpu)
        return gpu

    return use


X = {"images": np.zeros((1, 3, 8, 8), np.float32)}


def test_each_part_of_a_gpu_inference_is_timed_apart(on_gpu):
    gpu = on_gpu(FakeGpu())
    latency = measure(gpu, X, warmup_ms=10, runs=7)
    expected = {"stage": 0.2, "h2d": 0.3, "compute": 1.0, "d2h": 0.4, "fetch": 0.05, "enqueue": 0.1,
                "end_to_end": 0.2 + 0.3 + 1.0 + 0.4 + 0.05}
    assert set(latency.ms) == set(expected)
    for part, ms in expected.items():
        assert latency.ms[part] == pytest.approx([ms] * 7), part
    assert (latency.judged, latency.verdict, latency.bound, latency.warnings) == ("compute", "steady", "gpu", [])
    assert latency.images_per_s(4) == pytest.approx(4 / 1.95e-3)


def test_a_host_that_cannot_keep_up_is_named_and_a_graph_helps(on_gpu):
    """100 kernels of 2 us, 10 us to launch each: the events are apart by the launches, not by the work."""
    gpu = on_gpu(FakeGpu(kernels=100, kernel_ms=0.002, launch_ms=0.01, copies_ms=(0.01, 0.01)))
    slow = measure(gpu, X, runs=5)
    assert slow.stats("compute").p50_ms == pytest.approx(1.0 + 0.002 - 0.01, abs=0.02)
    assert slow.bound == "host"
    assert "enqueue takes 1.000 ms" in slow.warnings[0] and "CUDA graph" in slow.warnings[0]
    gpu.use_graph = True
    fast = measure(gpu, X, runs=5)
    assert fast.stats("compute").p50_ms == pytest.approx(0.2, abs=0.02)
    assert (fast.bound, fast.warnings) == ("gpu", [])


def test_copies_that_cost_more_than_the_network_are_named(on_gpu):
    latency = measure(on_gpu(FakeGpu(copies_ms=(1.5, 0.1))), X, runs=3)
    assert latency.bound == "copy" and len(latency.warnings) == 1 and latency.warnings[0].startswith("h2d takes 1.500")


def test_runs_last_at_least_as_long_and_as_often_as_asked(on_gpu):
    one = 1.95
    gpu = on_gpu(FakeGpu())
    latency = measure(gpu, X, warmup_ms=10 * one, duration_s=50 * one / 1000, min_runs=10)
    assert len(latency.ms["compute"]) in (50, 51)
    assert len(gpu.fed) - len(latency.ms["compute"]) in (11, 12)        # warm-up, and one run after NVML
    assert len(measure(gpu, X, warmup_ms=0, duration_s=0, min_runs=10).ms["compute"]) == 10
    before = len(gpu.fed)
    measure(gpu, X, warmup_ms=0, runs=3)
    assert len(gpu.fed) - before == 3                                   # without a warm-up, the very first run counts


def test_bad_durations_are_refused(runner, feed):
    for bad in ({"warmup_ms": -1}, {"duration_s": -1}, {"min_runs": 0}, {"runs": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))}={next(iter(bad.values()))}.*at least 1 run"):
            measure(runner, feed, **bad)


def made(**ms) -> Latency:
    return Latency("label", {k: np.array(v, float) for k, v in ms.items()}, clocks.Clocks(), clocks.Clocks())


def test_noise_is_judged_on_the_compute_where_there_is_one():
    steady, noisy = [100, 101, 99, 100], [100, 110, 90, 100]
    assert made(end_to_end=noisy).verdict == "noisy" and made(end_to_end=steady).verdict == "steady"
    parts = dict.fromkeys(("enqueue", "h2d", "d2h", "compute"), steady)
    assert made(end_to_end=noisy, **parts).verdict == "steady"
    assert made(end_to_end=steady, **parts | {"compute": noisy}).verdict == "noisy"
    assert "end_to_end is noisy: CV 7.1 %" in made(end_to_end=noisy).warnings[0]
    edge = [97.5, 102.5]                            # CV is 2.5 % exactly
    assert made(end_to_end=edge).verdict == "steady"


def test_a_part_that_a_runner_lacks_is_named():
    with pytest.raises(ValueError, match=r"got 'compute', expected one of \['end_to_end'\] of label"):
        made(end_to_end=[1.0]).stats("compute")


# A real runner


def test_measure_on_a_cpu(runner, feed):
    latency = measure(runner, feed, warmup_ms=0, runs=5)
    assert latency.label == runner.label and set(latency.ms) == {"end_to_end"}
    assert latency.stats().runs == 5 and latency.stats().min_ms > 0 and latency.bound is None
    with pytest.raises(ValueError, match="images: got float64"):
        measure(runner, {"images": feed["images"].astype(np.float64)}, warmup_ms=0, runs=1)


def test_layer_times_are_those_of_the_graphs_convolutions(runner, feed, yolo_graph):
    times = layer_times(runner, feed, runs=3)
    assert list(times.columns) == ["layer", "ms", "share"]
    assert times["share"].sum() == pytest.approx(1) and times["layer"].is_unique
    parts = costs(onnx.load(yolo_graph))
    layers = by_layer(parts, {name: [name.removesuffix("_nchwc")] for name in times["layer"]})
    convolutions = [c for c in layers.values() if "Conv" in c.op]
    assert len(convolutions) == 75 and all(c.op in ("Conv", "Conv+LeakyRelu", "Conv+LeakyRelu+Add")
                                           for c in convolutions)
    assert sum(c.macs for c in layers.values()) == sum(c.macs for c in parts)
    slow = set(times.nlargest(10, "ms")["layer"])
    assert slow & {c.name for c in convolutions}, "no convolution among the ten slowest layers"


def test_onnx_runtime_profiles_every_run_but_the_first(runner, feed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = runner.layer_times(feed, 3)
    assert len(runs) == 3 and len({len(run) for run in runs}) == 1 and len(runs[0]) >= 75
    assert not list(tmp_path.glob("*.json")), "the profiler left a file behind"
    with pytest.raises(ValueError, match="feed: got names"):
        runner.layer_times({}, 1)
    runner.close()
    with pytest.raises(engine.BackendError, match="got a closed one"):
        runner.layer_times(feed, 1)


def test_layer_table_adds_equal_names_and_takes_the_median():
    found = table([[("a", 1.0), ("b", 4.0), ("a", 1.0)], [("a", 3.0), ("b", 5.0), ("a", 3.0)],
                   [("a", 8.0), ("b", 9.0)]])
    assert found.to_dict("list") == {"layer": ["a", "b"], "ms": [6.0, 5.0], "share": [6 / 11, 5 / 11]}
    with pytest.raises(ValueError, match="runs: got 0"):
        layer_times(None, {}, runs=0)


def test_times_beside_the_roofline():
    times = table([[("conv", 2.0), ("copy", 1.0), ("add", 4.0), ("cast", 0.0)]])
    costs = {"conv": Cost("conv", "Conv", 5 * 10**8, 0, {"x": 10**6}, {"y": 10**6}),
             "add": Cost("add", "Add", 0, 0, {"x": 10**8}, {"y": 10**8}),
             "cast": Cost("cast", "Cast", 0, 0, {"x": 0}, {"y": 0})}
    found = against_roofline(times, costs, Device("box", {"fp32": 1.0}, 100.0))
    assert found["layer"].tolist() == ["conv", "add", "cast"]
    assert found["least_ms"].tolist() == pytest.approx([1.0, 2.0, 0.0])     # 1e9 operations at 1e12; 2e8 bytes at 1e11
    assert found["tflops"].tolist() == pytest.approx([0.5, 0.0, 0.0])
    assert found["intensity"].tolist() == pytest.approx([500.0, 0.0, 0.0])
    assert found["ms"].tolist() == [2.0, 4.0, 0.0] and "macs" not in times


# Contenders in turn


def test_contenders_take_turns_in_alternating_order(monkeypatch):
    calls, now = [], SimpleNamespace(ms=0.0, slower=lambda: 1.0)
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=lambda: now.ms / 1000))

    def contender(name, ms):
        def call():
            calls.append(name)
            now.ms += ms * now.slower()
        return call

    both = {"a": contender("a", 1.0), "b": contender("b", 3.0)}
    found = interleaved(both, 3, warmup=1)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert found.median_ms == pytest.approx({"a": 1.0, "b": 3.0})
    calls.clear()
    now.slower = lambda: 1.0 + (len(calls) - 1) // 2            # each round meets a slower machine than the one before
    found = interleaved(both, 6, warmup=0)
    assert found.ms["a"] == pytest.approx([1, 2, 3, 4, 5, 6])
    assert found.ratio("b", "a") == pytest.approx(3.0)


def test_the_ratio_is_taken_within_each_round():
    found = profiling.Comparison({"a": np.array([1.0, 10.0, 2.0]), "b": np.array([2.0, 20.0, 40.0])})
    assert found.ratio("b", "a") == 2.0 and found.median_ms == {"a": 2.0, "b": 20.0}      # 10 of the medians


def test_interleaved_refuses_nothing_to_do():
    with pytest.raises(ValueError, match="got 0 contenders"):
        interleaved({})
    with pytest.raises(ValueError, match="rounds=0"):
        interleaved({"a": int}, 0)


# The GPU's clock


class FakeNvml:
    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __init__(self, mask=0x4, fails=(), lacks=()):
        self._mask, self._fails, self._open, self.asked = mask, fails, 0, []
        for name in lacks:
            setattr(self, name, None)

    def _answer(self, name, value):
        if name in self._fails:
            raise self.NVMLError(name)
        return value

    def nvmlInit(self):
        self._answer("nvmlInit", None)
        self._open += 1

    def nvmlShutdown(self):
        self._open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):
        self.asked.append(index)
        return self._answer("handle", index)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return self._answer("clock", 1755)

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return self._answer("max", 1980)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self._answer("reasons", self._mask)


def test_clocks_and_reasons():
    nvml = FakeNvml(mask=0x24 | 0x4000)
    found = clocks.read(nvml, {})
    assert found == clocks.Clocks(1755, 1980, ("power cap", "software thermal slowdown", "0x4000"))
    assert str(found) == "SM clock 1755 of 1980 MHz, held back by: power cap, software thermal slowdown, 0x4000"
    assert nvml._open == 0
    assert str(clocks.read(FakeNvml(mask=0), {})).endswith("held back by: nothing")
    for visible, asked in (("", 0), ("3,1", 3), ("GPU-12ab", "GPU-12ab")):
        nvml = FakeNvml()
        clocks.read(nvml, {"CUDA_VISIBLE_DEVICES": visible})
        assert nvml.asked == [asked]


def test_newer_drivers_are_asked_by_the_newer_name():
    nvml = FakeNvml(mask=0x4)
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x1
    assert clocks.read(nvml, {}).reasons == ("idle",)


@pytest.mark.parametrize(("fails", "expected"), [
    (("nvmlInit",), clocks.Clocks()),
    (("handle",), clocks.Clocks()),
    (("clock",), clocks.Clocks(None, 1980, ("power cap",))),
    (("max",), clocks.Clocks(1755, None, ("power cap",))),
    (("reasons",), clocks.Clocks(1755, 1980, None)),
])
def test_what_nvml_does_not_say_is_none_and_stops_no_measurement(fails, expected, runner, feed):
    nvml = FakeNvml(fails=fails)
    assert clocks.read(nvml, {}) == expected and nvml._open == 0
    latency = measure(runner, feed, warmup_ms=0, runs=1, nvml=nvml)
    assert asdict(latency.before) == asdict(latency.after) == asdict(expected)


# The record for machines without a GPU


def test_the_record_holds_what_the_lesson_reads(on_gpu, monkeypatch, tmp_path):
    gpu = on_gpu(FakeGpu(kernels=100, kernel_ms=0.003, copies_ms=(0.1, 0.1)))
    monkeypatch.setattr(record_09, "SAMPLES", 100)
    monkeypatch.setattr(record_09.engine, "build", lambda graph, config, backend: graph)
    monkeypatch.setattr(record_09.engine, "load", lambda plan: gpu)
    monkeypatch.setattr(record_09, "write_graphs", lambda folder: {"fp32": folder, "fp16": folder})
    record_09.record(tmp_path / "lesson09.json")
    assert (tmp_path / "lesson09.json").stat().st_size < 300_000
    body = recorded.load("lesson09.json", tmp_path)
    assert body["provenance"]["command"] == record_09.COMMAND
    assert list(body["engines"]) == ["fp32", "fp16"]
    fp16 = body["engines"]["fp16"]
    assert len(fp16["graph"]["samples"]["compute"]) == 100 and fp16["graph"]["stats"]["compute"]["runs"] > 100
    assert fp16["graph"]["bound"] == "gpu" and fp16["no_graph"]["bound"] == "host"
    assert list(fp16["layer_ms"]) == ["1", "8"]
    assert set(fp16["layer_ms"]["8"]) == {row["name"] for row in fp16["inspector"]}
    assert [(row["batch"], row["graph"]) for row in body["batches"]] == [
        (b, g) for b in (1, 2, 4, 8) for g in (False, True)]
    assert len(body["warm_up"]["end_to_end"]) == 100
    assert (8, 3, 416, 416) in gpu.fed
    replayed, enqueued = (body["launch"]["batch_8"][way] for way in ("graph", "enqueue"))
    assert replayed == pytest.approx({"host_ms": 0.01, "device_ms": 0.31, "total_ms": 0.31})
    assert enqueued == pytest.approx({"host_ms": 1.0, "device_ms": 1.003, "total_ms": 1.003})


def test_the_graphs_of_the_record_are_the_detector_in_two_types(tmp_path):
    graphs = record_09.write_graphs(tmp_path)
    fp32, fp16 = (costs(onnx.load(graphs[name])) for name in ("fp32", "fp16"))
    assert sum(c.macs for c in fp32) == sum(c.macs for c in fp16)
    weights = [sum(c.weight_bytes for c in graph if c.op == "Conv") for graph in (fp32, fp16)]
    assert weights[0] == 2 * weights[1]
    x = record_09.feed_of(2)["images"]
    assert x.shape == (2, 3, 416, 416) and x.dtype == np.float32 and x.flags.c_contiguous
    assert np.array_equal(x[0], x[1])


def test_the_lesson_finds_live_results_recorded_ones_or_none(monkeypatch, tmp_path):
    monkeypatch.setattr(recorded, "RESULTS", tmp_path)
    load = recorded.load
    monkeypatch.setattr(recorded, "load", lambda name: load(name, tmp_path))
    monkeypatch.setattr(engine, "available", lambda: {"ort": "", "trt": "no driver"})
    assert record_09.find({}) == (None, record_09.NOT_RECORDED)
    assert record_09.COMMAND in record_09.NOT_RECORDED and "not recorded yet" in record_09.NOT_RECORDED
    recorded.write(tmp_path / "h100_lesson09.json", {"provenance": recorded.provenance("x"), "engines": {}})
    body, source = record_09.find({})
    assert body["engines"] == {} and source.startswith("recorded: ")
    monkeypatch.setattr(engine, "available", lambda: {"ort": "", "trt": ""})
    live = {"engines": {"fp16": {"label": "tensorrt 8.6.1 · NVIDIA H200"}}}
    monkeypatch.setattr(record_09, "measured", lambda graphs, optimization_level, duration_s: live)
    assert record_09.find({}) == (live, "live: tensorrt 8.6.1 · NVIDIA H200")
