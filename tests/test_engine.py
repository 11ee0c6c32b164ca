import importlib
import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtkit import backend_ort, engine, qdq, trt_process
from trtkit import cache as plans
from trtkit.calib import Range
from trtkit.engine import BackendError, BuildConfig
from trtkit.files import sha256


def _write_graph(path, weight: float = 2.0):
    """y = x * weight + x, so ORT has something to load and an answer to check."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["xw"], "mul"), helper.make_node("Add", ["xw", "x"], ["y"], "add")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([weight] * 3, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def graph(tmp_path):
    return _write_graph(tmp_path / "g.onnx")


@pytest.fixture
def runner(graph, cache):
    with engine.load(engine.build(graph, backend="ort")) as r:
        yield r


def _files(folder):
    """All but the locks, which stay."""
    return [p for p in folder.iterdir() if p.name != "locks"]


def _state(folder):
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in _files(folder)}


def test_a_second_build_finds_the_first_ones_plan_and_writes_nothing(graph, cache):
    plan = engine.build(graph)
    before = _state(cache)
    assert set(before) == {plan.name, plan.name + ".json"} and plan.parent == cache       # in TRTKIT_CACHE
    assert engine.build(graph) == plan
    assert _state(cache) == before


def test_auto_takes_ort_where_tensorrt_is_missing(graph, cache):
    if engine.available()["trt"]:
        assert engine.build(graph) == engine.build(graph, backend="ort")


def test_without_the_variable_plans_go_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TRTKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert engine.cache_dir() == tmp_path / ".cache" / "trtkit"


def test_changed_weights_under_the_same_names_get_another_plan(graph, cache):
    first = engine.build(graph)
    _write_graph(graph, weight=5.0)
    second = engine.build(graph)
    assert first != second
    x = {"x": np.ones((1, 3), np.float32)}
    with engine.load(first) as a, engine.load(second) as b:
        assert a.infer(x)["y"].tolist() == [[3, 3, 3]] and b.infer(x)["y"].tolist() == [[6, 6, 6]]


def test_another_configuration_or_machine_gets_another_plan(graph, cache, monkeypatch):
    plans = {engine.build(graph, BuildConfig(threads=1)), engine.build(graph, BuildConfig(threads=2))}
    monkeypatch.setattr(backend_ort, "environment", lambda: "another CPU")
    plans.add(engine.build(graph, BuildConfig(threads=1)))
    assert len(plans) == 3


def test_equal_graphs_under_two_names_do_not_share_a_file(graph, cache, tmp_path):
    assert engine.build(graph) != engine.build(_write_graph(tmp_path / "h.onnx"))


def test_the_sidecar_says_what_the_plan_was_made_from(graph, cache):
    plan = engine.build(graph, BuildConfig(threads=1), backend="ort")
    assert plan.name.startswith("g.") and plan.name.endswith(".ort.onnx")
    sidecar = json.loads(plan.with_name(plan.name + ".json").read_text())
    assert sidecar["graph_sha256"] == sha256(graph) and sidecar["plan_sha256"] == sha256(plan)
    assert sidecar["backend"] == "ort" and sidecar["config"] == {"threads": 1} and sidecar["graph"] == "g.onnx"
    assert sidecar["environment"] == backend_ort.environment() and sidecar["build_s"] >= 0
    assert sidecar == plans.sidecar(plan)


def test_a_tampered_plan_is_refused_by_load_and_rebuilt_by_build(graph, cache):
    plan = engine.build(graph)
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(BackendError, match="has changed since it was built"):
        engine.load(plan)
    with pytest.warns(UserWarning, match="has changed since it was built; built again"):
        assert engine.build(graph) == plan
    engine.load(plan).close()


def test_a_plan_without_its_sidecar_is_refused_by_load_and_rebuilt_by_build(graph, cache):
    plan = engine.build(graph)
    plan.with_name(plan.name + ".json").unlink()
    with pytest.raises(FileNotFoundError, match="build"):
        engine.load(plan)
    with pytest.warns(UserWarning, match="missing or damaged; built again"):
        assert engine.build(graph) == plan
    engine.load(plan).close()


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"plan_sha256": 3}'])
def test_a_damaged_sidecar_is_refused_by_load_and_rewritten_by_build(graph, cache, content):
    plan = engine.build(graph)
    plan.with_name(plan.name + ".json").write_text(content)
    with pytest.raises(BackendError, match="damaged"):
        engine.load(plan)
    with pytest.warns(UserWarning, match="built again"):
        engine.load(engine.build(graph)).close()


def test_a_sidecar_that_lacks_its_configuration_is_refused(graph, cache):
    plan = engine.build(graph)
    plan.with_name(plan.name + ".json").write_text(json.dumps({"plan_sha256": sha256(plan)}))
    with pytest.raises(BackendError, match="build"):
        engine.load(plan)
    with pytest.warns(UserWarning, match="built again"):
        whole = plans.sidecar(engine.build(graph))
    plans.sidecar_path(plan).write_text(json.dumps(whole | {"config": {"unknown": 1}}))
    with pytest.raises(BackendError, match=r"damaged.*build"):
        engine.load(plan)


def test_missing_files_are_missing_files(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match="export_onnx"):
        engine.build(tmp_path / "none.onnx")
    with pytest.raises(FileNotFoundError):
        engine.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"this is text, no graph", b"\0" * 64, bytes(range(256)), "truncated"])
def test_a_file_that_is_no_graph_is_refused_and_leaves_no_plan(graph, cache, content):
    graph.write_bytes(graph.read_bytes()[:-40] if content == "truncated" else content)
    with pytest.raises(BackendError, match=r"g\.onnx"):
        engine.build(graph)
    assert _files(cache) == []


def test_an_operator_that_ort_does_not_know_is_refused_with_its_message(graph, cache):
    model = onnx.load(graph)
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, graph)
    with pytest.raises(BackendError, match="Nonsense"):
        engine.build(graph)


@pytest.mark.parametrize("after", ["nothing", "half a plan", "the whole plan"])
def test_an_interrupted_build_leaves_no_plan_that_loads_and_the_next_one_succeeds(graph, cache, monkeypatch, after):
    real = backend_ort.build

    def interrupted(source, plan, config):
        if after == "half a plan":
            plan.write_bytes(b"half")
        if after == "the whole plan":
            real(source, plan, config)
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(backend_ort, "build", interrupted)
        engine.build(graph)
    assert _files(cache) == []
    engine.load(engine.build(graph)).close()


def test_an_interruption_before_the_sidecar_leaves_a_plan_that_is_not_trusted(graph, cache, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(engine.Path, "write_text", interrupted)
        engine.build(graph)
    (plan,) = cache.glob("*.onnx")
    with pytest.raises(FileNotFoundError):
        engine.load(plan)
    with pytest.warns(UserWarning, match="missing or damaged; built again"):
        engine.load(engine.build(graph)).close()


def test_infer_returns_arrays_that_the_caller_owns(runner):
    x = np.ones((2, 3), np.float32)
    first = runner.infer({"x": x})["y"]
    first[:] = -1
    assert runner.infer({"x": x})["y"].tolist() == [[3, 3, 3]] * 2 and x.tolist() == [[1, 1, 1]] * 2


def test_specs_name_shape_and_dtype_with_a_string_where_the_batch_is_free(runner):
    for specs, name in ((runner.inputs, "x"), (runner.outputs, "y")):
        assert list(specs) == [name]
        assert specs[name].shape == ("batch", 3) and specs[name].dtype == np.float32


@pytest.mark.parametrize(
    ("feed", "match"),
    [
        ({"z": np.ones((1, 3), np.float32)}, r"\['z'\].*\['x'\]"),
        ({}, r"\['x'\]"),
        ({"x": np.ones((1, 3), np.float32), "z": np.ones(1)}, r"\['x', 'z'\]"),
        ({"x": np.ones((1, 3), np.float64)}, "x: got float64, expected float32"),
        ({"x": np.ones((1, 4), np.float32)}, r"x: got shape \(1, 4\)"),
        ({"x": np.ones(3, np.float32)}, r"x: got shape \(3,\)"),
        ({"x": [[1.0, 2.0, 3.0]]}, "x: got list"),
    ],
)
def test_a_wrong_feed_is_refused_with_the_tensors_name(runner, feed, match):
    with pytest.raises(ValueError, match=match):
        runner.infer(feed)


def test_a_closed_runner_refuses_to_run_and_closes_twice(runner):
    runner.close()
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner.infer({"x": np.ones((1, 3), np.float32)})


LAYOUT = "com.microsoft.nchwc"


@pytest.mark.parametrize(("left_float", "blocked"), [(3, False), (60, True), (75, True)])
def test_floats_are_laid_out_in_blocks_of_channels_unless_most_convolutions_are_int8(
    yolo_graph, cache, tmp_path, left_float, blocked
):
    """Between INT8 convolutions each block would have to be undone; a float network needs them to be fast."""
    model = onnx.load(yolo_graph)
    table = {name: Range(-4.0, 4.0) for name in qdq.activation_names(model)}
    names = qdq.conv_names(model)
    assert len(names) == 75
    skip = [*qdq.head_convs(model), *[n for n in names if n not in qdq.head_convs(model)][: left_float - 3]]
    onnx.save(qdq.insert_qdq(model, table, target="cpu", skip=skip), tmp_path / "mixed.onnx")
    plan = onnx.load(engine.build(tmp_path / "mixed.onnx", backend="ort"))
    assert any(node.domain == LAYOUT for node in plan.graph.node) == blocked


@pytest.mark.parametrize("threads", [1, 2])
def test_the_label_and_the_session_have_the_configured_threads(graph, cache, threads):
    with engine.load(engine.build(graph, BuildConfig(threads=threads))) as r:
        assert r.label.startswith("onnxruntime ") and r.label.endswith(f"CPU {threads} threads")
        assert r._session.get_session_options().intra_op_num_threads == threads


def test_the_default_is_the_cpus_that_this_process_may_use():
    assert BuildConfig().threads == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="threads"):
        BuildConfig(threads=-1)


def test_an_explicit_backend_never_falls_back(graph, cache, monkeypatch):
    monkeypatch.setattr(engine, "available", lambda: {"ort": "", "trt": "no GPU here"})
    with pytest.raises(BackendError, match="no GPU here"):
        engine.build(graph, backend="trt")
    assert not cache.exists()


def test_tensorrt_is_refused_where_available_says_why(graph, cache):
    why = engine.available()["trt"]
    if not why:
        pytest.skip("this machine has TensorRT")
    with pytest.raises(BackendError) as e:
        engine.build(graph, backend="trt")
    assert why in str(e.value)


def test_without_any_backend_auto_says_why_for_each(graph, monkeypatch):
    monkeypatch.setattr(engine, "available", lambda: {"ort": "not installed", "trt": "no GPU here"})
    with pytest.raises(BackendError, match=r"not installed.*no GPU here"):
        engine.build(graph)


@pytest.mark.parametrize("backend", ["tensorrt", "", "ORT", "cpu"])
def test_an_unknown_backend_is_refused(graph, backend):
    with pytest.raises(ValueError, match="backend"):
        engine.build(graph, backend=backend)


@pytest.mark.parametrize("missing", ["tensorrt", "pycuda"])
def test_a_gpu_without_its_packages_names_the_first_that_is_missing(monkeypatch, missing):
    monkeypatch.setattr(engine.nvidia, "cuda_problem", lambda: "")
    present = {"tensorrt", "pycuda"} - {missing}
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name in present else
                        None if name == missing else real(name))
    why = engine.available()["trt"]
    assert why.startswith(f"{missing} is not installed; pip install")


def test_a_tensorrt_that_cannot_be_imported_is_no_crash(monkeypatch):
    def broken(name):
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(engine.nvidia, "cuda_problem", lambda: "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(importlib, "import_module", broken)
    assert "libnvinfer.so.10" in engine.available()["trt"]
    with pytest.raises(BackendError, match=r"libnvinfer\.so\.10"):
        engine._choose("trt")


@pytest.mark.parametrize(("problem", "shared"), [("", True), ("no GPU here", False)])
def test_builds_of_a_block_share_a_builder_where_tensorrt_runs(monkeypatch, problem, shared):
    monkeypatch.setattr(engine, "available", lambda: {"ort": "", "trt": problem})
    with engine.kept_builder():
        assert (trt_process._idle is not None) == shared
    assert trt_process._idle is None
