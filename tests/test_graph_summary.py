"""What is in a file, what optimizers made of it, and what a simplifier may not do."""

import numpy as np
import onnx
import pytest
import torch
from conftest import randomize_batchnorm
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from torch import nn

from trtkit import engine, export
from trtkit.fusions import fusions
from trtkit.graph_summary import shapes, summary
from trtkit.models import YOLOv3, conv_bn_leaky
from trtkit.simplify import simplify
from trtkit.small_net import four_convolutions


def test_summary_of_the_detector(yolo_graph, small_yolo):
    found = summary(onnx.load(yolo_graph))
    assert (found.opset, found.ir_version, found.other_domains) == (17, 8, {})
    assert found.producer.startswith("pytorch ")
    assert found.inputs == {"images": "float32 (batch, 3, 96, 96)"}
    assert found.outputs == {"head32": "float32 (batch, 24, 3, 3)", "head16": "float32 (batch, 24, 6, 6)",
                             "head8": "float32 (batch, 24, 12, 12)"}
    assert found.operators == {"Conv": 75, "LeakyRelu": 72, "Add": 23, "Resize": 2, "Concat": 2}
    assert found.nodes == 174
    # BatchNorm has four numbers a channel and becomes a bias, one a channel; heads have a bias already.
    assert isinstance(small_yolo, YOLOv3)
    convolutions = [m for m in small_yolo.modules() if isinstance(m, nn.Conv2d)]
    expected = sum(m.weight.numel() + m.out_channels for m in convolutions)
    resize_scales = 2 * 4
    assert found.parameters == expected + resize_scales
    assert found.weights_mib == pytest.approx(found.parameters * 4 / 2**20, rel=1e-3)
    text = str(found)
    assert "75 Conv" in text and "input   images: float32 (batch, 3, 96, 96)" in text and "174 nodes" in text


def test_summary_counts_subgraphs_other_domains_and_every_type():
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 3]>
    g (float[n, 3] x, bool c) => (float[n, 3] y, float16[?, 3] h)
    <int8[2, 3] w = {1, 2, 3, 4, 5, 6}, int64[2] shape = {1, 3}> {
        y = If (c) <then_branch = a () => (float[n, 3] t) { t = Relu(x) },
                    else_branch = b () => (float[n, 3] e) { e = Relu(x) }>
        k = Constant <value_float: float = 2.0> ()
        q = mine.Thing (x, w, k)
        h = Cast <to: int = 10> (q)
    }"""
    found = summary(parser.parse_model(text))
    assert found.operators == {"Relu": 2, "If": 1, "mine.Thing": 1, "Cast": 1} and found.nodes == 5
    assert found.other_domains == {"mine": 3} and found.outputs["h"] == "float16 (?, 3)"
    assert found.parameters == 6 and found.weights_mib == (6 + 2 * 8) / 2**20


def test_shapes_are_those_of_a_run(rng):
    model = four_convolutions(channels=4)
    names = [o for n in model.graph.node for o in n.output if o not in ("y", "z")]
    x = rng.random((3, 3, 32, 32)).astype(np.float32)
    seen = ReferenceEvaluator(export.expose_tensors(model, names)).run(None, {"x": x})
    found = shapes(model)
    assert next(iter(found)) == "x" and found["x"] == ("batch", 3, 32, 32)
    for name, y in zip(["y", "z", *names], seen, strict=True):
        assert tuple(3 if d == "batch" else d for d in found[name]) == y.shape


def test_fusions_of_onnx_runtime_are_counted(tmp_path):
    torch.manual_seed(0)
    model = randomize_batchnorm(nn.Sequential(conv_bn_leaky(3, 16, 3), conv_bn_leaky(16, 16, 3), nn.Conv2d(16, 16, 1)))
    path = export.export_onnx(model, tmp_path / "m.onnx", size=32, output_names=("y",), keep_batchnorm=True)
    found = fusions(onnx.load(path), onnx.load(engine.build(path, backend="ort")))
    assert found.before == {"Conv": 3, "BatchNormalization": 2, "LeakyRelu": 2}
    assert found.gone == {"BatchNormalization": 2, "LeakyRelu": 2} and found.activations == {"LeakyRelu": 2}
    assert found.after["Conv"] == 3 and found.sums == 0


def test_a_fused_addition_is_seen():
    """A convolution of ORT's with a fourth input adds it; whether it makes one depends on the CPU, so by hand."""
    net = four_convolutions(channels=4)
    fused = onnx.ModelProto()
    fused.CopyFrom(net)
    kept = [n for n in fused.graph.node if n.name != "shortcut"]
    expand = next(n for n in kept if n.name == "expand")
    expand.op_type, expand.domain = "FusedConv", "com.microsoft"
    expand.input.append("a")
    expand.attribute.append(helper.make_attribute("activation", "LeakyRelu"))
    del fused.graph.node[:]
    fused.graph.node.extend(kept)
    found = fusions(net, fused)
    assert found.sums == 1 and found.gone == {"Add": 1} and found.new == {} and found.activations == {"LeakyRelu": 1}


def graph_with_constants() -> onnx.ModelProto:
    """A scale computed from constants, and a copy: four nodes for one product."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 3] x) => (float[batch, 3] y)
    <float a = {3.0}, float b = {2.0}> {
        c = Mul (a, b)
        d = Identity (x)
        y = Mul (d, c)
    }"""
    return parser.parse_model(text)


def test_simplifying_computes_constants_and_keeps_the_function(rng):
    pytest.importorskip("onnxslim")
    model = graph_with_constants()
    slim = simplify(model)
    assert [n.op_type for n in slim.graph.node] == ["Mul"] and len(model.graph.node) == 3
    assert summary(slim).inputs == summary(model).inputs and summary(slim).outputs == summary(model).outputs
    x = rng.random((4, 3)).astype(np.float32)
    assert np.array_equal(ReferenceEvaluator(slim).run(None, {"x": x})[0], 6 * x)


def test_a_simplifier_that_changes_the_function_is_caught(monkeypatch):
    """onnxslim itself compares, and gives back nothing then."""
    onnxslim = pytest.importorskip("onnxslim")
    honest = onnxslim.core.optimize

    def wrong(model, *args, **kwargs):
        changed = honest(model, *args, **kwargs)
        for node in changed.graph.node:
            for i in changed.graph.initializer:
                if i.name in node.input:
                    i.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(i) * 1.01, i.name))
        return changed

    monkeypatch.setattr("onnxslim.core.optimize", wrong)
    with pytest.raises(ValueError, match="another function from onnxslim"):
        simplify(graph_with_constants())


def test_a_simplifier_that_fails_is_told(monkeypatch):
    """onnxslim 0.1.98 makes a double of a constant that is written as `value_float`, and ONNX Runtime refuses it."""
    pytest.importorskip("onnxslim")

    def fails(model, **_):
        raise RuntimeError("bound to different types")

    monkeypatch.setattr("onnxslim.slim", fails)
    with pytest.raises(ValueError, match=r"fails on this graph .bound to different types"):
        simplify(graph_with_constants())


def test_a_simplifier_that_renames_is_caught(monkeypatch):
    pytest.importorskip("onnxslim")

    def renamed(model, **_):
        model.graph.output[0].name = model.graph.node[-1].output[0] = "other"
        return model

    monkeypatch.setattr("onnxslim.slim", renamed)
    with pytest.raises(ValueError, match=r"got inputs .* and outputs \{'other'.*expected"):
        simplify(graph_with_constants())


def test_simplifying_without_onnxslim_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxslim is not installed.*\.\[export\]"):
        simplify(graph_with_constants())


def test_open_dimensions_without_a_name_are_shown():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, "n", 2])
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]), opset_imports=[helper.make_opsetid("", 17)])
    assert summary(model).inputs == {"x": "float32 (?, n, 2)"}
    assert shapes(model) == {"x": ("?", "n", 2), "y": ("?", "n", 2)}
