"""Is an engine as narrow as its graph asks? Layers that TensorRT 8.6.1's inspector told on an H100, and others."""

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from trtkit import calib, half, placement, precision, qdq

ORACLES = Path(__file__).parent / "oracles"
SAMPLES = json.loads((ORACLES / "inspector_861.json").read_text())
MIXED = json.loads((ORACLES / "inspector_861_precision.json").read_text())["layers"]
FORMATS = {"INT8": "Thirty-two wide channel vectorized row major Int8 format", "FP32": "Row major linear FP32",
           "FP16": "Channel major FP16 format where channel % 8 == 0"}


@pytest.fixture(scope="module")
def graphs(yolo_graph) -> dict[str, onnx.ModelProto]:
    """YOLOv3 with the names that the recorded engines' graphs had."""
    model = onnx.load(yolo_graph)
    table = {name: calib.Range(-1, 1) for name in qdq.activation_names(model)}
    heads = qdq.head_convs(model)
    return {"FP32": model, "FP16": half.to_fp16(model),
            "INT8": qdq.insert_qdq(model, table, target="trt", skip=heads, rest="fp16"),
            "INT8 and FP32": qdq.insert_qdq(model, table, target="trt", skip=heads)}


def _layer(name: str, *types: str, metadata: str = "") -> dict:
    return {"Name": name, "Metadata": metadata, "Inputs": [{"Name": "x", "Format/Datatype": FORMATS[t]} for t in types]}


def _engine(model: onnx.ModelProto, **other: str) -> list[dict]:
    """Layers of an engine that does what the graph asks; `other` replaces a precision everywhere."""
    return [_layer(f"{name} + PWN(act)", other.get(asked, asked)) for name, asked in precision.asked(model).items()]


# --- what the graph asks ---


def test_a_graph_asks_by_its_weights_and_pairs(graphs):
    heads = set(qdq.head_convs(graphs["FP32"]))
    assert set(precision.asked(graphs["FP32"]).values()) == {"FP32"}
    assert set(precision.asked(graphs["FP16"]).values()) == {"FP16"}
    for name, rest in (("INT8", "FP16"), ("INT8 and FP32", "FP32")):
        asked = precision.asked(graphs[name])
        assert len(asked) == 75 and {n for n, p in asked.items() if p == rest} == heads
        assert {p for n, p in asked.items() if n not in heads} == {"INT8"}
    assert {name: (precision.has_quantized(m), precision.has_half(m)) for name, m in graphs.items()} == {
        "FP32": (False, False), "FP16": (False, True), "INT8": (True, True), "INT8 and FP32": (True, False)}


def test_one_pair_is_not_enough_to_ask_for_8_bits(graphs):
    model = copy.deepcopy(graphs["INT8 and FP32"])
    conv = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[0].endswith("_dq"))
    conv.input[0] = conv.input[0].removesuffix("_dq")
    assert precision.asked(model)[conv.name] == "FP32"


def test_bfloat16_weights_ask_for_bfloat16():
    weight = helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2, 2], [1.0, 0.0, 0.0, 1.0])
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.BFLOAT16, [2, 2]) for n in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    assert precision.asked(helper.make_model(graph)) == {"mm": "BF16"}


def test_fp16_at_the_interface_or_in_a_cast_alone_counts_as_half():
    half_type, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT

    def graph(node, x, y):
        values = [helper.make_tensor_value_info(n, t, [2]) for n, t in (("x", x), ("y", y))]
        return helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))

    relu, cast = (helper.make_node(op, ["x"], ["y"], **a) for op, a in (("Relu", {}), ("Cast", {"to": half_type})))
    back = helper.make_node("Cast", ["x"], ["y"], to=single)
    assert precision.has_half(graph(relu, half_type, half_type)) and precision.has_half(graph(cast, single, half_type))
    assert not precision.has_half(graph(relu, single, single)) and not precision.has_half(graph(back, single, single))


# --- what the inspector tells ---


def test_the_recorded_engines_are_as_narrow_as_their_graphs_and_one_is_not(graphs):
    assert precision.problems(graphs["FP16"], SAMPLES["fp16"]) == []
    assert precision.problems(graphs["INT8 and FP32"], SAMPLES["int8"]) == []
    # 8.6 took a Cast literally and gave two of three heads FP32 kernels.
    assert precision.problems(graphs["INT8"], MIXED) == [
        f"/head{stride}/predict/Conv: the graph asks for FP16, the engine reads FP32" for stride in (16, 8)]
    assert precision.problems(graphs["INT8 and FP32"], MIXED) == []


def test_an_fp16_engine_for_an_int8_graph_is_refused_layer_by_layer(graphs):
    lines = precision.problems(graphs["INT8"], SAMPLES["fp16"])
    assert lines[0] == "/stem/stem.0/Conv: the graph asks for INT8, the engine reads FP16"
    assert lines[-1] == "no layer reads INT8, which the graph asks of 72 nodes"


@pytest.mark.parametrize("name", ["FP32", "FP16", "INT8", "INT8 and FP32"])
def test_an_engine_that_does_what_the_graph_asks_has_no_problem(graphs, name):
    assert precision.problems(graphs[name], _engine(graphs[name])) == []


@pytest.mark.parametrize(("name", "narrow", "wide", "layers"), [
    ("FP16", "FP16", "FP32", 75), ("INT8", "INT8", "FP32", 72),
    ("INT8", "INT8", "FP16", 72), ("INT8", "FP16", "FP32", 3),
])
def test_each_precision_that_an_engine_lost_is_counted(graphs, name, narrow, wide, layers):
    lines = precision.problems(graphs[name], _engine(graphs[name], **{narrow: wide}))
    each = f"the graph asks for {narrow}, the engine reads {wide}"
    assert sum(line.endswith(each) for line in lines) == layers
    lost = [f"no layer reads {narrow}, which the graph asks of {layers} nodes"]
    assert [line for line in lines if not line.endswith(each)] == lost


@settings(max_examples=20)                  # each looks at the whole graph
@given(data=st.data())
def test_exactly_the_layers_that_read_wider_are_named(graphs, data):
    asked = precision.asked(graphs["INT8"])
    wider = {"INT8": ["FP16", "FP32"], "FP16": ["FP32"]}
    bad = data.draw(st.sets(st.sampled_from(sorted(asked)), max_size=20))
    layers = [_layer(n, data.draw(st.sampled_from(wider[p])) if n in bad else p) for n, p in asked.items()]
    named = [line.split(":")[0] for line in precision.problems(graphs["INT8"], layers) if ": " in line]
    assert sorted(named) == sorted(bad)


def test_narrower_than_asked_is_fine_and_so_is_one_narrow_input_of_several(graphs):
    assert precision.problems(graphs["FP32"], _engine(graphs["FP32"], FP32="FP16")) == []
    first, *rest = _engine(graphs["FP16"])
    first["Inputs"] += [{"Format/Datatype": FORMATS["FP32"]}]           # the residual that is added in the kernel
    assert precision.problems(graphs["FP16"], [first, *rest]) == []


def test_layers_that_tell_nothing_are_not_counted_but_silence_is_no_proof(graphs):
    silent = [{"Name": name} for name in precision.asked(graphs["INT8"])]
    assert precision.problems(graphs["INT8"], silent) == [
        "no layer reads FP16, which the graph asks of 3 nodes", "no layer reads INT8, which the graph asks of 72 nodes"]
    assert precision.problems(graphs["INT8"], [*silent, _layer("other", "INT8"), _layer("another", "FP16")]) == []
    assert precision.problems(graphs["FP32"], [{"Name": "Conv", "Inputs": ["x", "y"]}]) == []


@pytest.mark.parametrize(("name", "metadata", "expected"), [
    ("a/Conv + PWN(a/Relu)", "", {"a/Conv", "a/Relu"}),
    ("a.weight_codes + a/DQ + a/Conv", "", {"a.weight_codes", "a/DQ", "a/Conv"}),
    ("a/Conv || b/Conv", "", {"a/Conv", "b/Conv"}),
    ("PWN(PWN(a/LeakyRelu), a/Add)", "", {"a/LeakyRelu", "a/Add"}),
    ("{ForeignNode[a/MatMul...b/Add]}", "", {"a/MatMul", "b/Add"}),
    ("", "[ONNX Layer: a/Conv]\x1e[ONNX Layer: a/Relu]", {"a/Conv", "a/Relu"}),
    ("a/Conv", "[ONNX Layer: a/Conv]", {"a/Conv"}),
    ("a/b+c/Conv", "", {"a/b", "c/Conv"}),
    ("", "", set()),
])
def test_names_of_fused_nodes_are_split(name, metadata, expected):
    assert precision.nodes_of({"Name": name, "Metadata": metadata}) - {"PWN", "ForeignNode"} == expected


def test_names_of_the_recorded_layers_are_those_of_the_graph(graphs):
    nodes = {n.name for n in graphs["FP32"].graph.node}
    for layer in MIXED:
        found = precision.nodes_of(layer)
        assert any(n in nodes for n in found)
        assert {n for n in found if n not in nodes} <= {"PWN", "/stages.0/stages.0.0/stages.0.0.0/Conv.weight_codes"}


@pytest.mark.parametrize(("tensor", "expected"), [
    ({"Format/Datatype": FORMATS["INT8"]}, "INT8"), ({"Format/Datatype": FORMATS["FP16"]}, "FP16"),
    ({"Format/Datatype": "Row major linear FP32"}, "FP32"), ({"Format/Datatype": "Row major linear BFloat16"}, "BF16"),
    ({"DataType": "Half", "Format": "Row major (kLINEAR)"}, "FP16"), ({"Datatype": "FP8"}, "FP8"),
    ({"DataType": "Float"}, "FP32"), ({"Format/Datatype": "Row major Int32"}, ""), ({}, ""), ({"DataType": None}, ""),
])
def test_types_are_read_as_every_era_writes_them(tensor, expected):
    assert precision.type_of(tensor) == expected


def test_every_weighted_operator_is_asked_about():
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float16), n)
               for n, s in (("w", (4, 4, 1, 1)), ("g", (4, 4)), ("m", (4, 4)))]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], "conv"), helper.make_node("Flatten", ["a"], ["f"], "flat"),
             helper.make_node("Gemm", ["f", "g"], ["b"], "gemm"), helper.make_node("MatMul", ["b", "m"], ["y"], "mm")]
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT16, s) for n, s in
              (("x", [1, 4, 1, 1]), ("y", [1, 4]))]
    asked = precision.asked(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights)))
    assert asked == dict.fromkeys(("conv", "gemm", "mm"), "FP16") and len(asked) == len(placement.WEIGHTED)


def _without_shapes(layers):
    """As TensorRT 8.6 tells them of an engine with dynamic shapes."""
    hidden = copy.deepcopy(layers)
    for layer in hidden:
        for tensor in (*layer.get("Inputs", []), *layer.get("Outputs", [])):
            tensor["Format/Datatype"] = "N/A due to dynamic shapes"
    return hidden


def test_with_dynamic_shapes_the_weights_tell_the_precision():
    layer = {"Name": "conv", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}
    for told, expected in (("Half", "FP16"), ("Int8", "INT8"), ("Float", "FP32")):
        assert precision.reads({**layer, "Weights": {"Type": told, "Count": 9}}) == {expected}
    assert precision.reads(layer) == set()
    real = [layer for layer in MIXED if isinstance(layer.get("Weights"), dict)]
    assert real
    for layer, hidden in zip(real, _without_shapes(real), strict=True):
        assert precision.reads(hidden) == precision.reads(layer) != set()
