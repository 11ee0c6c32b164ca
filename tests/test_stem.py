"""The stem on blocks of pixels computes what the stem on pixels does."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtkit import models, weights
from trtkit.stem import stem_to_depth


def outputs(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {model.graph.input[0].name: x})


def small(activation: str = "LeakyRelu", stride: int = 2) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    numbers = {"w": (5, 3, 3, 3), "b": (5,), "v": (7, 5, 3, 3), "c": (7,)}
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3, 8, 12] x) => (float[2, 7, h, w2] y) {{
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b)
        r = {activation} (a)
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [{stride}, {stride}]> (r, v, c)
    }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in numbers.items())
    return model


@pytest.mark.parametrize("activation", ["LeakyRelu", "Relu"])
def test_two_convolutions_on_blocks_are_exact(activation):
    model = small(activation)
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 12)).astype(np.float32)
    (expected,), (got,) = outputs(model, x), outputs(stem_to_depth(model), x)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_yolov3_keeps_its_heads(tmp_path):
    models.save_weights(models.YOLOv3(2, 0.25).eval(), tmp_path / "w.safetensors")
    model = onnx.load(weights.to_graph(tmp_path / "w.safetensors", tmp_path / "g.onnx"))
    x = np.random.default_rng(2).random((1, 3, 416, 416), np.float32)
    for expected, got in zip(outputs(model, x), outputs(stem_to_depth(model), x), strict=True):
        assert got.shape == expected.shape and np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_others_share_stays_theirs_and_nothing_unread_is_kept():
    model = small()
    model.graph.node.append(helper.make_node("Reshape", ["b", "minus"], ["flat"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "minus"))
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, [5]))
    changed = stem_to_depth(model)
    onnx.checker.check_model(changed)
    x = np.random.default_rng(3).normal(size=(2, 3, 8, 12)).astype(np.float32)
    for expected, got in zip(outputs(model, x), outputs(changed, x), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    read = {name for node in changed.graph.node for name in node.input}
    assert {t.name for t in changed.graph.initializer} <= read and "w" not in read


def test_what_stands_before_the_first_convolution_stays_before_it():
    model = small()
    model.graph.node.insert(0, helper.make_node("Neg", ["x"], ["minus_x"]))
    model.graph.node[1].input[0] = "minus_x"
    changed = stem_to_depth(model)
    onnx.checker.check_model(changed)
    x = np.random.default_rng(4).normal(size=(2, 3, 8, 12)).astype(np.float32)
    np.testing.assert_allclose(outputs(changed, x)[0], outputs(model, x)[0], atol=1e-4)


def _changed(change) -> onnx.ModelProto:
    model = small()
    change(model.graph)
    return model


@pytest.mark.parametrize("change", [
    lambda g: g.ClearField("node"),
    lambda g: g.node[0].input.pop(),                                                        # no bias
    lambda g: g.node[0].attribute.append(helper.make_attribute("group", 3)),
    lambda g: g.node[2].attribute.append(helper.make_attribute("dilations", [2, 2])),
    lambda g: g.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None)),
    lambda g: g.initializer.remove(next(t for t in g.initializer if t.name == "v")),
    lambda g: g.node[1].CopyFrom(helper.make_node("MaxPool", ["a"], ["r"], kernel_shape=[1, 1])),
], ids=["no convolution", "no bias", "groups", "dilated", "an output between", "computed weights", "no activation"])
def test_what_would_not_be_the_same_is_refused(change):
    with pytest.raises(ValueError, match="stem: got"):
        stem_to_depth(_changed(change))


def test_another_stem_is_refused():
    with pytest.raises(ValueError, match="expected Conv 3x3, an activation, Conv 3x3 of stride 2"):
        stem_to_depth(small(stride=1))
    read_twice = small()
    read_twice.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    read_twice.graph.node.append(helper.make_node("Neg", ["a"], ["z"]))
    with pytest.raises(ValueError, match="stem: got"):
        stem_to_depth(read_twice)
