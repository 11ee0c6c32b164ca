"""The build path of the TensorRT backend in three eras, on a fake that has exactly the names of each."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_tensorrt import Script, installed, module
from onnx import TensorProto, helper, numpy_helper
from trt_names import surface

from trtkit import half, qdq
from trtkit.calib import Range
from trtkit.engine import BackendError, BuildConfig

ERAS = ("8.6", "10.15", "11.4")
FORMATS = {"FP32": "Row major linear FP32", "FP16": "Channel major FP16 format where channel % 8 == 0",
           "INT8": "Thirty-two wide channel vectorized row major Int8 format"}


def float_graph(batch: int | str = "N", size: int | str = 8) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3, 1, 1), "weight")
    node = helper.make_node("Conv", ["images", "weight"], ["y"], "conv", kernel_shape=[1, 1])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4, size, size])
    return helper.make_model(helper.make_graph([node], "g", [images], [y], [weight]), ir_version=8,
                             opset_imports=[helper.make_opsetid("", 17)])


GRAPHS = {
    "FP32": float_graph(),
    "FP16": half.to_fp16(float_graph()),
    "INT8": qdq.insert_qdq(float_graph(), {"images": Range(-1.0, 1.0), "y": Range(-2.0, 2.0)}, target="trt"),
}


def layers(reads: str) -> list[dict]:
    """An inspector's answer of one convolution."""
    tensor = {"Name": "images", "Dimensions": [1, 3, 8, 8], "Format/Datatype": FORMATS[reads]}
    return [{"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]}]


@pytest.fixture(params=ERAS)
def era(request) -> str:
    return request.param


@pytest.fixture
def build(era, monkeypatch, cache, tmp_path):
    """Builds a graph in the era; returns what `build_here` did, with the script and what was told."""
    def run(graph="FP32", config=None, script=None, reads=None, free_mib=4096):
        script = script or Script()
        named = isinstance(graph, str)
        script.layers = script.layers or layers(reads or (graph if named else "FP32"))
        path = tmp_path / "graph.onnx"
        onnx.save(GRAPHS[graph] if named else graph, path)
        told = []
        with installed(monkeypatch, era, script, free_mib=free_mib) as trtkit_trt:
            done = trtkit_trt.backend_trt.build_here(path, tmp_path / "a.plan", config or BuildConfig(),
                                                     lambda **event: told.append(event))
        return done, script, told

    return run


def flags_of(script: Script) -> set[str]:
    return {flag.name for flag in script.configs[0]._set_flags}


# Typed by the graph -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("graph", ["FP32", "FP16", "INT8"])
def test_precision_flags_come_from_the_graph_in_8_and_from_nothing_later(build, era, graph):
    _, script, _ = build(graph)
    asked = {"FP32": set(), "FP16": {"FP16"}, "INT8": {"INT8"}}[graph]
    assert flags_of(script) == {"TF32"} | (asked if era == "8.6" else set())


def test_kernels_for_zeros_are_tried_only_if_asked_for(build):
    _, script, _ = build(config=BuildConfig(sparse=True))
    assert flags_of(script) == {"TF32", "SPARSE_WEIGHTS"}


def test_int8_with_fp16_around_it_allows_both(build, era):
    model = onnx.ModelProto()
    model.CopyFrom(GRAPHS["INT8"])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float16), "of a layer in FP16"))
    _, script, _ = build(model, reads="INT8")
    assert flags_of(script) == {"TF32"} | ({"INT8", "FP16"} if era == "8.6" else set())


def test_fp16_is_asked_layer_by_layer_only_of_a_builder_that_chose_wider(build, era):
    """Allowed by the flag alone, 8.6 left a network of four small convolutions in FP32 (H100)."""
    _, script, _ = build("FP16", script=Script(unasked=layers("FP32") if era == "8.6" else [], layers=layers("FP16")))
    assert script.halves == (["conv"] if era == "8.6" else [])
    preferred = ["PREFER_PRECISION_CONSTRAINTS" in {flag.name for flag in config._set_flags}
                 for config in script.configs[:2]]
    assert preferred == ([False, True] if era == "8.6" else [False])


def test_fp16_needs_one_build_where_the_flag_is_enough(build):
    _, script, _ = build("FP16")
    assert (script.halves, len(script.configs)) == ([], 1)


def test_without_details_fp16_is_asked_at_once_since_nothing_can_be_checked(build, era):
    _, script, _ = build("FP16", config=BuildConfig(detailed=False))
    assert (script.halves, len(script.configs)) == (["conv"] if era == "8.6" else [], 1)


def test_fp16_beside_int8_is_asked_layer_by_layer_in_8_alone(build, era):
    """Casts between the two cost 8.6 its fast kernels, so there they are taken out of the graph."""
    model = float_graph()
    graph = model.graph
    graph.node[0].output[0] = "between"
    graph.node.append(helper.make_node("Conv", ["between", "second"], ["y"], "last", kernel_shape=[1, 1]))
    graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "second"))
    table = {name: Range(-1.0, 1.0) for name in ("images", "between", "y")}
    model = qdq.insert_qdq(model, table, target="trt", skip=["last"], rest="fp16")
    found = [*layers("INT8"), layers("FP16")[0] | {"Name": "last"}]
    _, script, _ = build(model, script=Script(layers=found))
    if era == "8.6":
        assert script.halves == ["last"]
        assert flags_of(script) == {"TF32", "INT8", "FP16", "PREFER_PRECISION_CONSTRAINTS"}
        assert not any(n.op_type == "Cast" for n in script.lowered.graph.node)
    else:
        assert (script.halves, script.lowered, flags_of(script)) == ([], None, {"TF32"})


def test_the_network_is_created_as_the_era_wants_it(build, era):
    _, script, _ = build()
    bit = {"8.6": "EXPLICIT_BATCH", "10.15": "STRONGLY_TYPED", "11.4": "STRONGLY_TYPED"}[era]
    assert script.network_flags == [1 << surface(era)["enums"]["NetworkDefinitionCreationFlag"][bit]]


@pytest.mark.parametrize(("asked", "got"), [("INT8", "FP32"), ("INT8", "FP16"), ("FP16", "FP32")])
def test_an_engine_that_is_wider_than_its_graph_is_refused(build, asked, got):
    with pytest.raises(BackendError, match=f"asks for {asked}.* reads {got}.*the builder's own words"):
        build(asked, reads=got, script=Script(warnings=["the builder's own words"]))


@pytest.mark.parametrize(("asked", "got"), [("FP32", "FP16"), ("FP16", "FP16"), ("INT8", "INT8")])
def test_an_engine_that_is_narrower_or_the_same_is_taken(build, asked, got):
    done, _, _ = build(asked, reads=got)
    assert done["layers"][0]["Name"] == "conv"


def test_without_details_there_is_nothing_to_check(build):
    done, script, _ = build("INT8", BuildConfig(detailed=False), Script(layers=["conv"]))
    assert done["layers"] == [{"Name": "conv"}]
    assert script.configs[0]._profiling_verbosity is None


# Configuration ------------------------------------------------------------------------------------------------------
def test_an_open_batch_gets_the_profile_of_the_configuration(build):
    _, script, _ = build(config=BuildConfig(batch=(1, 4, 16)))
    assert script.profiles == [{"images": ((1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))}]


def test_a_closed_graph_gets_no_profile(build):
    assert build(float_graph(batch=2))[1].profiles == []


def test_other_open_dimensions_need_their_shapes(build):
    shapes = {"images": ((1, 3, 8, 8), (1, 3, 16, 16), (4, 3, 32, 32))}
    assert build(float_graph(size="S"), BuildConfig(shapes=shapes))[1].profiles == [shapes]
    with pytest.raises(ValueError, match="shapes: images: got none"):
        build(float_graph(size="S"))
    with pytest.raises(ValueError, match=r"got \['image'\], expected names of inputs: \['images'\]"):
        build(config=BuildConfig(shapes={"image": shapes["images"]}))


def test_level_workspace_and_verbosity_are_passed_on(build):
    settings = build(config=BuildConfig(optimization_level=1, workspace_mib=77))[1].configs[0]
    assert settings._builder_optimization_level == 1
    assert settings._pools == {"WORKSPACE": 77 << 20}
    assert settings._profiling_verbosity.name == "DETAILED"


def test_care_in_timing_and_streams_are_passed_on(build, cache):
    usual = build()[1].configs[0]
    assert usual._avg_timing_iterations == 1 and not hasattr(usual, "_max_aux_streams")     # TensorRT decides
    careful = build("FP16", config=BuildConfig(timing_iterations=8, aux_streams=0))[1].configs[0]
    assert (careful._avg_timing_iterations, careful._max_aux_streams) == (8, 0)
    assert b"timed" not in careful._timing[0]._content          # hasty timings are not for those who want careful ones
    assert len(list((cache / "timing").glob("*.cache"))) == 2


def test_tactics_of_cudnn_and_cublas_are_not_asked_for(build, era):
    settings = build()[1].configs[0]
    numbers = surface(era)["enums"]["TacticSource"]
    assert settings._sources == 1 << numbers["EDGE_MASK_CONVOLUTIONS"] | 1 << numbers["JIT_CONVOLUTIONS"]


def test_the_second_build_gets_the_timings_of_the_first(build, cache):
    first, second = build()[1].configs[0]._timing, build("FP16")[1].configs[0]._timing
    assert first == (first[0], False) and second == (second[0], False)          # timings of another GPU are refused
    (file,) = (cache / "timing").glob("*.cache")
    assert file.read_bytes().count(b"timed") > 1 and b"timed" in second[0]._content
    assert "NVIDIA_Fake" in file.name


def test_without_a_timing_cache_none_is_read_or_written(build, cache):
    _, script, _ = build(config=BuildConfig(timing_cache=False))
    assert "DISABLE_TIMING_CACHE" in flags_of(script) and script.configs[0]._timing is None
    assert not (cache / "timing").exists()


def test_progress_is_told_where_the_builder_tells_it(build, era):
    _, _, told = build(script=Script(steps=3))
    assert [e["step"] for e in told if "step" in e] == ([] if era == "8.6" else [1, 2, 3])
    assert all(e["of"] == 3 for e in told if "step" in e)
    assert {"phase": "parse"} in told and {"phase": "check"} in told


# What can go wrong --------------------------------------------------------------------------------------------------
def test_every_parser_error_is_told(build):
    errors = [(0, "Plugin not found"), (5, "bad axis"), (-1, "of no node")]
    says = r"graph.onnx.*node 0 \(Conv 'conv'\): Plugin.*; node 5: bad axis; node -1: of no node"
    with pytest.raises(BackendError, match=says):
        build(script=Script(parser_errors=errors))


def test_an_opset_beyond_the_parser_is_named(build):
    model = float_graph()
    model.opset_import[0].version = 21
    with pytest.raises(BackendError, match=r"opset 21.*opset_version=17"):
        build(model, script=Script(parser_errors=[(0, "unsupported")]))


def test_a_builder_that_gives_up_says_why(build):
    script = Script(build_fails=True, warnings=["first warning", "second warning"])
    with pytest.raises(BackendError, match="built no engine: first warning; second warning; out of luck"):
        build(script=script)


def test_warnings_of_a_build_that_worked_are_kept(build):
    done, _, _ = build(script=Script(warnings=["a weight was clipped"]))
    assert done["messages"] == ["a weight was clipped"]


def test_a_workspace_beyond_free_memory_is_refused_before_the_build(build):
    with pytest.raises(BackendError, match=r"workspace_mib: got 2048, expected at most the 100 MiB"):
        build(free_mib=100)


def test_a_plan_that_tensorrt_refuses(era, monkeypatch, cache, tmp_path):
    (tmp_path / "x.plan").write_bytes(b"no plan")
    with (installed(monkeypatch, era, Script()) as trtkit_trt,
          pytest.raises(BackendError, match=r"refused x\.plan: magic tag does not match")):
        trtkit_trt.trt_plan.deserialize(tmp_path / "x.plan", trtkit_trt.trt_plan.Log())


def test_the_plans_environment_names_gpu_and_version(era, monkeypatch):
    with installed(monkeypatch, era, Script()) as trtkit_trt:
        text = trtkit_trt.backend_trt.environment()
    assert f"tensorrt {surface(era)['version']}" in text and "NVIDIA Fake" in text and "9.0" in text


@pytest.mark.parametrize("name", ["backend_trt", "precision", "weak_types"])
def test_a_plan_of_another_version_of_this_code_is_another(era, monkeypatch, tmp_path, name):
    with installed(monkeypatch, era, Script()) as trtkit_trt:
        module = trtkit_trt.backend_trt
        changed = module if name == "backend_trt" else getattr(module, name)
        before, timing = module.environment(), module._timing_path(BuildConfig())
        (tmp_path / "changed.py").write_bytes(Path(changed.__file__).read_bytes() + b"# other flags")
        monkeypatch.setattr(changed, "__file__", str(tmp_path / "changed.py"))
        assert module.environment() != before
        assert module._timing_path(BuildConfig()) == timing          # how long a kernel takes is no matter of ours


# The fake itself ----------------------------------------------------------------------------------------------------
def test_the_fake_has_the_names_of_its_era_and_no_others(era):
    trt, names = module(era, Script()), surface(era)
    for name in ("classes", "enums", "functions", "constants"):
        assert all(hasattr(trt, n) for n in names[name] if "." not in n)
    for cls, entry in names["classes"].items():
        assert all(hasattr(getattr(trt, cls), m) for k in ("methods", "properties") for m in entry[k])
    config = trt.Builder(trt.ILogger()).create_builder_config()
    for thing, name in ((trt, "NoSuchThing"), (trt.BuilderFlag, "INT5"), (config, "no_such_method")):
        with pytest.raises(AttributeError):
            getattr(thing, name)
    with pytest.raises(AttributeError):
        config.workspace_mib = 3
    with pytest.raises(TypeError):
        1 << trt.BuilderFlag.TF32
    assert (era == "8.6") == hasattr(trt, "UffParser") == (not hasattr(trt, "IProgressMonitor"))
    assert json.dumps(trt.__version__) == json.dumps(names["version"])
