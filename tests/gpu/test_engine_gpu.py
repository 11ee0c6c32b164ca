"""TensorRT's builds on a GPU: what they make of the graph, what they say when they cannot; the process lives on."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trtkit import cache, engine

if WHY := engine.available()["trt"]:
    pytest.skip(f"no TensorRT on a GPU: {WHY}", allow_module_level=True)

from trtkit import backend_trt, cuda, precision
from trtkit.engine import BackendError, BuildConfig
from trtkit.small_net import four_convolutions

from .small_net import BATCH, CONFIG, batch, relative_error


@pytest.fixture(autouse=True)
def kernel_survives(plans, expected):
    """After every test here, whatever it broke, a good engine still gives the right numbers in this process."""
    yield
    x = batch(2)
    with engine.load(plans.fp32) as runner:
        assert relative_error(runner.infer({"x": x})["y"], expected("fp32", x)["y"]) <= 2e-3


def test_auto_takes_tensorrt_where_it_can_run(plans, graphs):
    assert engine.build(graphs.fp32, CONFIG) == plans.fp32
    with engine.load(plans.fp32) as runner:
        assert runner.label.startswith("tensorrt")


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_sidecar_tells_what_the_engine_is(plans, graphs, kind):
    facts = cache.sidecar(getattr(plans, kind))
    graph = getattr(graphs, kind)
    assert facts["graph_sha256"] == cache.graph_sha256(graph) and facts["build_s"] > 0
    assert "tensorrt" in facts["environment"] and "sm_" in facts["environment"]
    assert tuple(facts["config"]["batch"]) == BATCH and facts["outputs"] == ["y", "z"]
    assert precision.problems(onnx.load(graph), facts["layers"]) == []


def test_an_engine_that_is_wider_than_its_graph_is_refused(graphs, tmp_path, monkeypatch):
    if hasattr(backend_trt.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        pytest.skip("this TensorRT takes its types from the graph; no flag can be forgotten")
    monkeypatch.setattr(precision, "has_half", lambda model: False)         # nobody derives the FP16 flag
    with pytest.raises(BackendError, match=r"wider than its graph|built no engine|cannot read"):
        backend_trt.build_here(graphs.fp16, tmp_path / "x.plan", CONFIG, lambda **_: None)


def test_int8_without_its_flag_is_refused(graphs, tmp_path, monkeypatch):
    if hasattr(backend_trt.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        pytest.skip("this TensorRT takes its types from the graph; no flag can be forgotten")
    monkeypatch.setattr(precision, "has_quantized", lambda model: False)
    with pytest.raises(BackendError, match=r"wider than its graph|built no engine|cannot read"):
        backend_trt.build_here(graphs.int8, tmp_path / "x.plan", CONFIG, lambda **_: None)


def test_second_build_finds_every_tactic_in_the_timing_cache(graphs, plans, own_cache):
    timing = [p for p in (engine.cache_dir() / "timing").iterdir() if p.suffix == ".cache"]
    assert len(timing) == 1 and timing[0].stat().st_size > 100
    before = timing[0].stat().st_size
    other = BuildConfig(batch=BATCH, optimization_level=1, workspace_mib=CONFIG.workspace_mib + 1)
    plan = engine.build(graphs.fp32, other, backend="trt")
    assert plan.name != plans.fp32.name
    assert timing[0].stat().st_size == before           # nothing was measured that was not known


def test_a_graph_without_open_dimensions_needs_no_profile(tmp_path):
    model = four_convolutions()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    with engine.load(engine.build(tmp_path / "fixed.onnx", CONFIG, backend="trt")) as runner:
        assert runner.inputs["x"].shape == (2, 3, 32, 32)
        assert runner.infer({"x": batch(2)})["y"].shape == (2, 16, 16, 16)
        with pytest.raises(ValueError, match="x: got shape"):
            runner.infer({"x": batch(1)})


def test_open_height_needs_shapes_and_works_with_them(tmp_path, expected):
    model = four_convolutions()
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}{axis}"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(ValueError, match="shapes: x"):
        engine.build(tmp_path / "open.onnx", CONFIG, backend="trt")
    config = BuildConfig(optimization_level=1, shapes={"x": ((1, 3, 16, 16), (1, 3, 32, 32), (2, 3, 64, 64))})
    with engine.load(engine.build(tmp_path / "open.onnx", config, backend="trt")) as runner:
        x = batch(2)
        assert relative_error(runner.infer({"x": x})["y"], expected("fp32", x)["y"]) <= 2e-3
        assert runner.infer({"x": np.zeros((1, 3, 16, 64), np.float32)})["y"].shape == (1, 16, 8, 32)
        with pytest.raises(ValueError, match="x: got shape"):
            runner.infer({"x": np.zeros((1, 3, 66, 64), np.float32)})


def _one_node(path, op: str, opset: int = 17, domain: str = "", **attributes):
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], "the_node", domain=domain, **attributes)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(("op", "domain"), [("Det", ""), ("NoSuchOperator", "org.example")])
def test_unsupported_operator_is_named_with_the_opset(tmp_path, op, domain):
    graph = _one_node(tmp_path / "odd.onnx", op, opset=18, domain=domain)
    with pytest.raises(BackendError, match=op) as raised:
        engine.build(graph, CONFIG, backend="trt")
    assert "odd.onnx" in str(raised.value) and "opset 18" in str(raised.value)


def test_a_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "text.onnx").write_text("this is no protobuf")
    with pytest.raises(BackendError, match=r"text\.onnx"):
        engine.build(tmp_path / "text.onnx", CONFIG, backend="trt")


def test_a_shape_for_an_input_that_is_not_there_is_named(graphs):
    three = ((1, 3, 32, 32),) * 3
    with pytest.raises(ValueError, match="images"):
        engine.build(graphs.fp32, BuildConfig(shapes={"images": three}), backend="trt")


def test_more_workspace_than_memory_is_named(graphs):
    with pytest.raises(BackendError, match=r"workspace_mib: got 10000000, expected at most the \d+ MiB"):
        engine.build(graphs.fp32, BuildConfig(workspace_mib=10_000_000), backend="trt")


def test_buffers_larger_than_memory_are_named():
    _, total_mib = cuda.memory_mib()
    with pytest.raises(BackendError, match="GPU memory"):
        cuda.DeviceBuffer((total_mib + 1) << 20)


BUILD = """
import sys
from pathlib import Path
from trtkit import engine
sys.stdout.write("go\\n"), sys.stdout.flush()
engine.build(Path(sys.argv[1]), engine.BuildConfig(optimization_level=1), backend="trt")
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_plan_and_the_next_one_works(own_cache, tmp_path, end):
    onnx.save(four_convolutions(seed=int(end)), tmp_path / "stopped.onnx")
    child = subprocess.Popen([sys.executable, "-c", BUILD, str(tmp_path / "stopped.onnx")], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, env={**os.environ, "TRTKIT_HEADLESS": "1"})
    assert child.stdout.readline() == "go\n"
    deadline = time.monotonic() + 60
    while not list((engine.cache_dir() / "locks").glob("stopped.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)                         # TensorRT's process has started by now
    child.send_signal(end)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode != 0 and (end is signal.SIGKILL or "KeyboardInterrupt" in stderr)
    assert not [p for p in engine.cache_dir().glob("stopped.*") if p.suffix in (".plan", ".json")]
    plan = engine.build(tmp_path / "stopped.onnx", CONFIG, backend="trt")
    with engine.load(plan) as runner:
        assert runner.infer({"x": batch(1)})["y"].shape == (1, 16, 16, 16)
    assert not list(engine.cache_dir().glob("*.tmp"))       # nor what TensorRT's process had written by then


HIDDEN = """
import sys
from pathlib import Path
from trtkit import engine
why = engine.available()["trt"]
assert "CUDA_VISIBLE_DEVICES" in why, why
try:
    engine.build(Path(sys.argv[1]), backend="trt")
except engine.BackendError as e:
    assert "CUDA_VISIBLE_DEVICES" in str(e)
else:
    sys.exit("built without a GPU")
with engine.load(engine.build(Path(sys.argv[1]))) as runner:
    print(runner.label)
try:
    engine.load(Path(sys.argv[2]))
except engine.BackendError as e:
    assert "CUDA_VISIBLE_DEVICES" in str(e)
else:
    sys.exit("loaded without a GPU")
"""


def test_without_a_visible_gpu_everything_says_so_and_onnxruntime_runs(graphs, plans):
    done = subprocess.run([sys.executable, "-c", HIDDEN, str(graphs.fp32), str(plans.fp32)], capture_output=True,
                          encoding="utf-8", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("onnxruntime")
