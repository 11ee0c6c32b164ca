"""The recorder of lesson 04: its graphs, what it reads from names, and that a failed step costs no other."""

import json
from collections import Counter
from types import SimpleNamespace

import fake_pycuda
import numpy as np
import onnx
import pytest
import torch

from trtkit import bench_graphs, engine, models, precision, qdq, record_04, recorded, staircase, weights
from trtkit.calib import Range
from trtkit.engine import BackendError, TensorSpec, check_feed

# As TensorRT 8.6 and 10 wrote them: dense kernels of a recorded engine of this kit, sparse ones from TensorRT's issues
# 4020 and 3849. Names of kernels are all there is to see of the choice.
DENSE = [
    "sm80_xmma_fprop_implicit_gemm_indexed_wo_smem_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x32x16_stage1_warpsize"
    "4x1x1_g1_tensor16x8x8_aligna8",
    "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32_tilesize64x",
    "sm80_xmma_fprop_avdt_dense_int8int8_tilesize64x64x64",
    "0x00000000000003e8",
    "",
]
SPARSE = [
    "sm80_xmma_fprop_avdt_sparse_int8int8_tilesize64x64x64_tapsperload3_threadspercta128_r3s3_u1v1_scalebias_relu",
    "sm80_xmma_fprop_sparse_conv_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_sptensor16x8x64",
    "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x128x64_sptensor16x8x32_relu",
]


def layer(name: str, tactic: str | None, **more) -> dict:
    return {"Name": name, "LayerType": "CaskConvolution", **({} if tactic is None else {"TacticName": tactic}), **more}


def test_sparse_layers_are_told_by_their_kernels_names():
    layers = [layer(f"dense {i}", t) for i, t in enumerate(DENSE)] + [layer("none", None)]
    layers += [layer(f"sparse {i}", t) for i, t in enumerate(SPARSE)]
    assert record_04.sparse_layers(layers) == ["sparse 0", "sparse 1", "sparse 2"]
    assert record_04.sparse_layers([layer("sparse_is_only_its_name", DENSE[0])]) == []


def test_weights_may_be_eligible_and_the_kernel_dense():
    layers = [layer("a", DENSE[1], HasSparseWeights=1), layer("b", SPARSE[0], HasSparseWeights=1),
              layer("c", DENSE[0], HasSparseWeights=0), layer("d", DENSE[0])]
    assert record_04.eligible_layers(layers) == ["a", "b"] and record_04.sparse_layers(layers) == ["b"]


# --- the staircase ---


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return staircase.write_graph(tmp_path_factory.mktemp("s") / "staircase_fp32.onnx", (8, 3, 5), (2, 6, 7))


def test_the_staircase_is_a_chain_of_three_for_each_number_of_channels(steps, cache):
    model = onnx.load(steps)
    assert [n.name for n in model.graph.node if n.op_type == "Conv"] == [
        f"c{c}_{i}" for c in (8, 3, 5) for i in range(3)]
    feed = {f"x{c}": np.random.default_rng(c).normal(size=(2, c, 6, 7)).astype(np.float32) for c in (8, 3, 5)}
    with engine.load(engine.build(steps, backend="ort")) as runner:
        got = runner.infer(feed)
    constants = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in model.graph.initializer}
    for c in (8, 3, 5):
        x = torch.from_numpy(feed[f"x{c}"])
        for i in range(3):
            x = torch.relu(torch.conv2d(x, constants[f"c{c}_{i}.weight"], constants[f"c{c}_{i}.bias"], padding=1))
        np.testing.assert_allclose(got[f"y{c}"], x.numpy(), rtol=1e-4, atol=1e-5)
        assert 0.05 < got[f"y{c}"].std() < 20               # neither dead nor exploded after three


def test_all_middle_convolutions_are_quantized(steps):
    fp32 = onnx.load(steps)
    table = {name: Range(-4.0, 4.0) for name in qdq.activation_names(fp32)}
    asked = precision.asked(qdq.insert_qdq(fp32, table, target="trt", rest="fp16"))
    assert [asked[f"c{c}_1"] for c in (8, 3, 5)] == ["INT8"] * 3


def test_middle_times_are_found_under_the_engines_names():
    times = {"Reformatting CopyNode for Input Tensor 0 to c8_0": 9.0, "c8_0 + c8_0_relu": 8.0,
             "c8_1 + c8_1_relu": 0.25, "c8_2 + c8_2_relu": 7.0,
             "c16_1.weight + c16_1.weight_QuantizeLinear + c16_1 + c16_1_relu": 0.5, "c16_1.out_quantize": 6.0}
    assert staircase.middle_ms(times, (16, 8)) == {8: 0.25, 16: 0.5}
    with pytest.raises(BackendError, match=r"no layer for c24_1 among \['Reformatting"):
        staircase.middle_ms(times, (8, 24))


def test_the_staircase_has_even_and_odd_numbers_once():
    assert len(set(staircase.CHANNELS)) == len(staircase.CHANNELS)
    assert {c % 8 == 0 for c in staircase.CHANNELS} == {True, False} and any(c % 2 for c in staircase.CHANNELS)


# --- the networks ---


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The full-width network, small: what the recorder draws, with a sixteenth of the channels."""
    torch.manual_seed(0)
    whole = tmp_path / "whole.safetensors"
    models.save_weights(models.YOLOv3(4, 0.0625), whole)
    monkeypatch.setattr(record_04, "ROUND_TO", 4)
    monkeypatch.setattr(record_04.bench_graphs, "weights_file", lambda width, folder: whole)
    monkeypatch.setattr(record_04.bench_graphs, "images", lambda n, split="test": np.random.default_rng(n).random(
        (n, 3, 64, 64), np.float32))
    return whole


def parameters(path):
    return sum(p.numel() for p in models.load_weights(path).parameters())


def test_pruned_networks_have_fewer_parameters_and_are_drawn_once(small, tmp_path):
    assert record_04.write_weights("dense", tmp_path) == small
    for kind, removed in (("pruned 20 %", 0.2), ("pruned 50 %", 0.5)):
        path = record_04.write_weights(kind, tmp_path)
        assert parameters(path) == pytest.approx((1 - removed) * parameters(small), rel=0.02)
        assert record_04._parameters(kind, tmp_path) == parameters(path)
        before = path.stat().st_mtime_ns
        assert record_04.write_weights(kind, tmp_path).stat().st_mtime_ns == before


def test_2_4_weights_are_2_4_in_the_graph_too(small, tmp_path):
    """Folding BatchNorm scales output channels, and must leave the zeros."""
    graph = onnx.load(weights.to_graph(record_04.write_weights("2:4", tmp_path), tmp_path / "s_fp32.onnx"))
    kernels = [onnx.numpy_helper.to_array(i) for i in graph.graph.initializer if len(i.dims) == 4]
    assert len(kernels) == 75 and (kernels[0] != 0).all()                 # the first has three input channels
    for k in kernels[1:]:
        groups = k.reshape(k.shape[0], -1, 4, *k.shape[2:])
        assert ((groups != 0).sum(2) <= 2).all() and (k != 0).mean() > 0.49
    heads = models.load_weights(record_04.write_weights("2:4", tmp_path))(torch.rand(1, 3, 64, 64))
    assert all(h.std() > 0.05 for h in heads)                             # its statistics fit the zeros


def test_graphs_of_both_precisions(small, tmp_path, monkeypatch, cache):
    table = lambda fp32, width: {n: Range(-4.0, 4.0) for n in qdq.activation_names(onnx.load(fp32))}  # noqa: E731
    monkeypatch.setattr(bench_graphs, "table", table)
    made = {p: onnx.load(record_04.graph("pruned 50 %", p, tmp_path)) for p in record_04.PRECISIONS}
    asked = {p: Counter(precision.asked(model).values()) for p, model in made.items()}
    assert asked == {"fp16": {"FP16": 75}, "int8": {"INT8": 72, "FP16": 3}}


# --- the recording ---


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(record_04.engine, "available", lambda: {"ort": "", "trt": ""})
    return tmp_path / record_04.FILE


def test_a_failed_step_leaves_the_others_and_is_told(out, monkeypatch):
    def fails(folder, level, jobs):
        raise BackendError("no luck")

    monkeypatch.setattr(record_04, "STEPS", {"one": lambda *_: 1, "two": fails, "three": lambda *_: 3})
    with pytest.raises(BackendError, match="lacks two: no luck"):
        record_04.record(out)
    body = json.loads(out.read_text())
    assert (body["one"], body["three"], "two" in body) == (1, 3, False)
    monkeypatch.setattr(record_04, "STEPS", {"two": lambda folder, level, jobs: {"level": level}})
    record_04.record(out, ["two"], level=1)
    body = recorded.load(out.name, out.parent)
    assert (body["one"], body["two"], body["three"]) == (1, {"level": 1}, 3)
    found = record_04.recorded_step("two", out.parent)
    assert found["level"] == 1 and found["caption"].startswith("recorded: ")
    assert record_04.recorded_step("nothing", out.parent) == {} == record_04.recorded_step("two", out.parent / "x")


def test_a_step_that_dies_leaves_what_was_before(out, monkeypatch):
    def dies(folder, level, jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(record_04, "STEPS", {"one": lambda *_: 1, "two": dies})
    with pytest.raises(KeyboardInterrupt):
        record_04.record(out)
    assert json.loads(out.read_text())["one"] == 1


def test_graphs_are_kept_where_one_asks_for_it(out, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(record_04, "STEPS", {"one": lambda folder, level, jobs: seen.append(folder)})
    record_04.record(out, work=tmp_path / "new" / "work")
    record_04.record(out)
    assert seen[0].is_dir() and not seen[1].exists()


def test_an_unknown_step_and_a_machine_without_gpu(out, monkeypatch):
    with pytest.raises(ValueError, match=r"\['sparse'\], expected some of \['staircase_fp16', "):
        record_04.record(out, ["sparse"])
    monkeypatch.setattr(record_04.engine, "available", lambda: {"ort": "", "trt": "no driver"})
    with pytest.raises(BackendError, match="no driver"):
        record_04.record(out)
    assert not out.exists()


def test_what_is_kept_of_a_contest(out, tmp_path, monkeypatch):
    """Each engine is asked for once, with the sparse flag for 2:4 weights alone, and timed in one contest."""
    from trtkit import bench_speed

    asked = {}

    def build(path, config, backend):
        assert backend == "trt" and config.batch == (32, 32, 32) and config.optimization_level == 2
        asked[path.stem] = config.sparse
        plan = tmp_path / f"{path.stem}.plan"
        plan.write_bytes(b"\0" * 2**19)
        return plan

    layers = [layer("a", SPARSE[0], HasSparseWeights=1), layer("b", DENSE[0], HasSparseWeights=1)]
    messages = ["a warning", "(Sparsity) Layers eligible for sparse math: a, b",
                "(Sparsity) TRT inference plan picked sparse implementation for layers: a"]
    monkeypatch.setattr(record_04.engine, "build", build)
    monkeypatch.setattr(record_04, "graph", lambda kind, p, folder: tmp_path / f"{kind} {p}.onnx")
    monkeypatch.setattr(record_04, "_parameters", lambda kind, folder: {"dense": 8, "2:4": 9}[kind])
    monkeypatch.setattr(record_04.cache, "sidecar", lambda plan: {"build_s": 9.5, "layers": layers,
                                                                  "messages": messages})
    monkeypatch.setattr(bench_speed, "engines", lambda plans, batch: {n: {"median_ms": 1.0} for n in plans})
    found = record_04.STEPS["sparse_b32"](tmp_path, 2, 3)
    assert asked == {"dense fp16": False, "dense int8": False, "2:4 fp16": True, "2:4 int8": True}
    assert found["level"] == 2 and found["batch"] == 32 and list(found["engines"]) == list(asked)
    assert found["engines"]["dense int8"] == {"median_ms": 1.0, "build_s": 9.5, "plan_mib": 0.5, "layers": 2,
                                              "parameters": 8}
    sparse = found["engines"]["2:4 fp16"]
    assert (sparse["eligible"], sparse["sparse"], sparse["sparse_layers"]) == (2, 1, ["a"])
    assert sparse["said"] == messages[1:] and sparse["parameters"] == 9


def test_what_is_kept_of_a_staircase(out, tmp_path, monkeypatch):
    class Runner(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def infer(self, feed):
            raise AssertionError("timed layer by layer only")

    names = [f"c{c}_{i} + c{c}_{i}_relu" for c in staircase.CHANNELS for i in range(3)]
    runner = Runner(label="TensorRT", inputs={f"x{c}": engine.TensorSpec((1, c, 2, 2), np.float32)
                                              for c in staircase.CHANNELS})
    built = []
    monkeypatch.setattr(record_04.engine, "build", lambda path, config, backend: built.append(path) or path)
    monkeypatch.setattr(record_04.engine, "load", lambda plan: runner)
    monkeypatch.setattr(record_04, "layer_times", lambda r, feed, runs: {
        "layer": names, "ms": [0.001 * i for i in range(len(names))]})
    monkeypatch.setattr(record_04.cache, "sidecar", lambda plan: {"layers": [layer(n, f"tactic {n}") for n in names]})
    for p in record_04.PRECISIONS:
        found = record_04.STEPS[f"staircase_{p}"](tmp_path, 3, 1)
        assert [int(c) for c in found["ms"]] == sorted(staircase.CHANNELS)
        assert found["ms"]["8"] == 0.001 and found["tactic"]["8"] == "tactic c8_1 + c8_1_relu"
        assert precision.asked(onnx.load(built[-1]))["c64_1"] == p.upper()


# --- engines in turn ---


@pytest.fixture
def gpu(monkeypatch):
    gpu = fake_pycuda.install(monkeypatch)
    for cuda in fake_pycuda.fresh_cuda(monkeypatch):
        gpu.cuda = cuda
        yield gpu


class Engine:
    """A runner whose launch takes `ms` of the device's time."""

    def __init__(self, gpu, ms: float, dtype: type = np.float32):
        self.gpu, self.ms, self.label, self.batches, self.closed = gpu, ms, f"an engine of {ms} ms", [], False
        self.stream = gpu.cuda.Stream()
        self.inputs = {"images": TensorSpec(("batch", 3, 8, 8), np.dtype(dtype))}

    def infer(self, feed):
        check_feed(feed, self.inputs)
        self.batches.append(len(feed["images"]))

    def launch(self):
        assert len(self.batches) >= 2, "the first call enqueues, the second captures the graph that is timed"
        self.gpu.clock_ms += self.ms

    def close(self):
        self.closed = True


def test_engines_are_timed_on_the_device_after_their_graphs_are_captured(gpu, monkeypatch):
    from trtkit import bench_speed

    runners = {"a": Engine(gpu, 2.0), "b": Engine(gpu, 6.0, np.float16)}      # each gets what it takes
    monkeypatch.setattr(bench_speed.engine, "load", lambda plan: runners[plan])
    monkeypatch.setattr(bench_speed.bench_graphs, "images", lambda n: np.zeros((n, 3, 8, 8), np.float32))
    found = bench_speed.engines({"a": "a", "b": "b"}, 4, rounds=3, turn_s=0.001)
    assert 2.0 <= found["a"]["median_ms"] <= 2.5 and 6.0 <= found["b"]["median_ms"] <= 6.5      # the fake's own ticks
    assert found["a"]["rounds"] == 3 and found["b"]["label"] == "an engine of 6.0 ms"
    assert found["a"]["images_per_s"] == pytest.approx(4000 / found["a"]["median_ms"], rel=1e-2)
    assert all(r.closed and set(r.batches) == {4} for r in runners.values())


def test_an_engine_that_cannot_be_loaded_leaves_none_open(gpu, monkeypatch):
    from trtkit import bench_speed

    runner = Engine(gpu, 1.0)

    def load(plan):
        if plan == "b":
            raise BackendError("no memory")
        return runner

    monkeypatch.setattr(bench_speed.engine, "load", load)
    monkeypatch.setattr(bench_speed.bench_graphs, "images", lambda n: np.zeros((n, 3, 8, 8), np.float32))
    with pytest.raises(BackendError, match="no memory"):
        bench_speed.engines({"a": "a", "b": "b"}, 1)
    assert runner.closed
