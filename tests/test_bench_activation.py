"""The graphs whose engines `tests/bench/activation.py` compares."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from trtkit import qdq
from trtkit.calib import Range
from trtkit.wiring import wiring

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from activation import GRAPHS, early_pairs, graphs, split_pairs, with_relu

HIGH = 4.0


def residual(activation: str = "LeakyRelu") -> onnx.ModelProto:
    """1x1 convolutions whose channels are copies, so that the numbers between them are known."""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) <float[4, 4, 1, 1] w> {{
        a = Conv (x, w)
        r = {activation} (a)
        s = Add (x, r)
        y = Conv (s, w)
    }}""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32)[..., None, None], "w"))
    for i, node in enumerate(n for n in model.graph.node if n.op_type == "Conv"):
        node.name = f"conv{i}"
    table = dict.fromkeys(qdq.activation_names(model), Range(-HIGH, HIGH))
    return qdq.insert_qdq(model, table, target="trt")


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, {"x": x})[0]


def codes(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x * 127 / HIGH), -127, 127) * HIGH / 127


def test_the_pair_stands_before_leaky_relu_and_computes_what_it_says():
    model = early_pairs(residual())
    wires = wiring(model)
    (add,) = (n for n in wires.nodes if n.op_type == "Add")
    (leaky,) = (n for n in wires.nodes if n.op_type == "LeakyRelu")
    assert leaky.output[0] in add.input and wires.writer_type(leaky.input[0]) == "DequantizeLinear"
    x = np.random.default_rng(0).uniform(-1.9, 1.9, (1, 4, 4, 4)).astype(np.float32)
    a = codes(codes(x))                                     # the first convolution's output, in codes
    expected = codes(np.where(a < 0, 0.01 * a, a) + codes(x))
    np.testing.assert_allclose(run(model, x), expected, atol=1e-5)


def test_no_pair_is_lost_or_made():
    before = residual()
    for op in ("QuantizeLinear", "DequantizeLinear", "LeakyRelu"):
        count = [sum(n.op_type == op for n in m.graph.node) for m in (before, early_pairs(before))]
        assert count[0] == count[1] > 0
    assert early_pairs(early_pairs(before)) == early_pairs(before)


def test_a_leaky_relu_that_others_read_keeps_its_place():
    model = residual()
    (leaky,) = (n for n in model.graph.node if n.op_type == "LeakyRelu")
    model.graph.node.append(onnx.helper.make_node("Identity", [leaky.output[0]], ["also"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("also", onnx.TensorProto.FLOAT, [1, 4, 4, 4]))
    assert early_pairs(model) == model


def chain(size: int, skip: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Two convolutions whose kernels of size x size pixels are zero but for the middle, with a LeakyReLU between."""
    pad = size // 2
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) <float[4, 4, {size}, {size}] w> {{
        a = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (x, w)
        r = LeakyRelu (a)
        y = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (r, w)
    }}""")
    weight = np.zeros((4, 4, size, size), np.float32)
    weight[range(4), range(4), pad, pad] = 1
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    for i, node in enumerate(n for n in model.graph.node if n.op_type == "Conv"):
        node.name = f"conv{i}"
    table = dict.fromkeys(qdq.activation_names(model), Range(-HIGH, HIGH))
    return qdq.insert_qdq(model, table, target="trt", skip=skip)


def test_a_split_pair_stands_on_both_sides_of_leaky_relu_with_one_scale():
    before = chain(3)
    model = split_pairs(before)
    wires = wiring(model)
    (leaky,) = (n for n in wires.nodes if n.op_type == "LeakyRelu")
    (behind,) = wires.readers[leaky.output[0]]
    ahead = wires.writer[wires.writer[leaky.input[0]].input[0]]
    assert (ahead.op_type, behind.op_type) == ("QuantizeLinear", "QuantizeLinear")
    assert list(ahead.input[1:]) == list(behind.input[1:]) and wires.writer_type(ahead.input[0]) == "Conv"
    x = np.random.default_rng(2).uniform(-HIGH, HIGH, (1, 4, 4, 4)).astype(np.float32)
    a = codes(x)
    np.testing.assert_allclose(run(model, x), codes(np.where(a < 0, 0.01 * a, a)), atol=1e-5)
    positive = np.abs(x)                                    # no code above zero changes
    np.testing.assert_array_equal(run(model, positive), run(before, positive))
    assert split_pairs(model) == model


@pytest.mark.parametrize("model", [chain(1), chain(3, skip=("conv1",)), chain(3, skip=("conv0",))],
                         ids=["1x1", "read in float", "computed in float"])
def test_no_split_where_it_costs_more_than_it_gives(model):
    assert split_pairs(model) == model


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_other_activations_keep_their_pairs(activation):
    assert early_pairs(residual(activation)) == residual(activation)


def test_with_relu_changes_the_activation_alone():
    model = with_relu(residual())
    x = np.random.default_rng(1).uniform(-1.9, 1.9, (1, 4, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(residual("Relu"), x), atol=1e-6)
    assert not any(n.op_type == "LeakyRelu" for n in model.graph.node)


def test_every_graph_of_the_quarter_width_is_made(tmp_path):
    makers = graphs(0.25, tmp_path)
    assert tuple(makers) == GRAPHS
    models = {name: makers[name]() for name in GRAPHS}
    for model in models.values():
        onnx.checker.check_model(model)         # every tensor that is read is there
    nodes = {name: [n.op_type for n in model.graph.node] for name, model in models.items()}
    assert "LeakyRelu" not in nodes["relu"] and nodes["leaky"].count("LeakyRelu") == nodes["early"].count("LeakyRelu")
    assert [name for name in GRAPHS if "SpaceToDepth" in nodes[name]] == ["blocks", "early, blocks", "split, blocks"]
    assert nodes["early"] != nodes["leaky"] and nodes["early, blocks"] != nodes["blocks"]
    # Of the 52 convolutions in the backbone, 3x3 but for 23: 23 go into an Add, the stem is float, 5 halve. In the
    # heads: two of each three, and none that a float predict reads.
    more = {name: nodes[name].count("QuantizeLinear") - nodes[name.replace("split", "early")].count("QuantizeLinear")
            for name in ("split", "split, blocks")}
    assert more == {"split": 5 + 2 * 3, "split, blocks": 6 + 2 * 3}
