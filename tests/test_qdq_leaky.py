"""Where TensorRT's pairs stand around a LeakyRelu, and that they compute what they say."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from trtkit import placement, planted, qdq
from trtkit.calib import Range
from trtkit.lint import lint
from trtkit.wiring import wiring

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


def chain(size: int, skip: tuple[str, ...] = (), *, table: dict | None = None, also: str = "", output: str = ""
          ) -> onnx.ModelProto:
    """Two convolutions whose kernels of size x size pixels are zero but for the middle, with a LeakyReLU between.

    `also` is a computation besides, `output` a tensor that the graph gives besides.
    """
    pad = size // 2
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y{", float[1, 4, 4, 4] z" if also else ""})
        <float[4, 4, {size}, {size}] w> {{
        a = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (x, w)
        r = LeakyRelu (a)
        {f"z = {also}" if also else ""}
        y = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (r, w)
    }}""")
    weight = np.zeros((4, 4, size, size), np.float32)
    weight[range(4), range(4), pad, pad] = 1
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    if output:
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [1, 4, 4, 4]))
    for i, node in enumerate(n for n in model.graph.node if n.op_type == "Conv"):
        node.name = f"conv{i}"
    table = table or dict.fromkeys(qdq.activation_names(model), Range(-HIGH, HIGH))
    return qdq.insert_qdq(model, table, target="trt", skip=skip)


def pair_before(model: onnx.ModelProto) -> bool:
    wires = wiring(model)
    (activation,) = (n for n in wires.nodes if n.op_type in ("LeakyRelu", "Relu", "Sigmoid"))
    return wires.writer_type(activation.input[0]) == "DequantizeLinear"


def test_into_an_add_the_pair_stands_before_leaky_relu_alone():
    model = residual()
    wires = wiring(model)
    (add,) = (n for n in wires.nodes if n.op_type == "Add")
    (leaky,) = (n for n in wires.nodes if n.op_type == "LeakyRelu")
    assert leaky.output[0] in add.input and wires.writer_type(leaky.input[0]) == "DequantizeLinear"
    x = np.random.default_rng(0).uniform(-1.9, 1.9, (1, 4, 4, 4)).astype(np.float32)
    a = codes(codes(x))                                     # the first convolution's output, in codes
    expected = codes(np.where(a < 0, 0.01 * a, a) + codes(x))
    np.testing.assert_allclose(run(model, x), expected, atol=1e-5)


def test_elsewhere_it_stands_on_both_sides_with_one_scale():
    model = chain(3)
    wires = wiring(model)
    (leaky,) = (n for n in wires.nodes if n.op_type == "LeakyRelu")
    (behind,) = wires.readers[leaky.output[0]]
    ahead = wires.writer[wires.writer[leaky.input[0]].input[0]]
    assert (ahead.op_type, behind.op_type) == ("QuantizeLinear", "QuantizeLinear")
    assert wires.constants[ahead.input[1]] == wires.constants[behind.input[1]]
    assert wires.writer_type(ahead.input[0]) == "Conv"
    x = np.random.default_rng(2).uniform(-HIGH, HIGH, (1, 4, 4, 4)).astype(np.float32)
    a = codes(x)
    np.testing.assert_allclose(run(model, x), codes(np.where(a < 0, 0.01 * a, a)), atol=1e-5)
    late = planted.pairs_behind_leaky_relus(model)
    np.testing.assert_array_equal(run(model, np.abs(x)), run(late, np.abs(x)))      # no code above zero changes
    assert sum(n.op_type == "QuantizeLinear" for n in late.graph.node) == 2


def test_the_scale_is_that_of_the_output_whatever_the_range_before_it():
    table = {"x": Range(-HIGH, HIGH), "a": Range(-7, HIGH), "r": Range(-0.07, HIGH)}
    model = chain(3, table=table)
    wires = wiring(model)
    scales = {float(wires.constants[n.input[1]]) for n in wires.nodes if n.op_type == "QuantizeLinear"}
    assert scales == {float(np.float32(HIGH / 127))}
    del table["a"]                                          # it need not be there
    assert chain(3, table=table) == model


@pytest.mark.parametrize("model", [chain(1), chain(3, skip=("conv1",)), chain(3, skip=("conv0",))],
                         ids=["1x1", "read in float", "computed in float"])
def test_no_pair_before_it_where_it_is_of_no_use(model):
    assert not pair_before(model)
    assert not [f for f in lint(model, "trt") if f.rule == "leaky_relu"]


def test_an_output_of_the_graph_is_not_rounded():
    model = chain(3, output="r")
    assert not pair_before(model) and "r" in {o.name for o in model.graph.output}
    assert not [f for f in lint(model, "trt") if f.rule == "leaky_relu"]


def test_before_a_relu_a_pair_is_a_fault_whatever_its_scale():
    model = chain(3)
    (activation,) = (n for n in model.graph.node if n.op_type == "LeakyRelu")
    activation.op_type = "Relu"
    assert [f.rule for f in lint(model, "trt") if f.level != "note"] == ["before_activation"]


def test_behind_a_1x1_it_is_a_fault_since_nobody_has_measured_it(monkeypatch):
    monkeypatch.setattr(placement, "larger_than_1x1", lambda *_: True)
    model = chain(1)
    assert pair_before(model)
    assert [f.rule for f in lint(model, "trt") if f.level != "note"] == ["before_activation"]


@pytest.mark.parametrize("also", ["Neg (r)", "Neg (a)"], ids=["behind", "before"])
def test_what_others_read_in_float_is_not_rounded_for_them(also):
    model = chain(3, also=also)
    assert not pair_before(model)
    wires = wiring(model)
    (other,) = (n for n in wires.nodes if n.op_type == "Neg")
    assert wires.writer_type(other.input[0]) in ("LeakyRelu", "Conv")


@pytest.mark.parametrize(("low", "expected"), [(-1.9 * HIGH, True), (-2.1 * HIGH, False)])
def test_where_it_would_clip_much_there_is_none(low, expected):
    table = {"x": Range(-HIGH, HIGH), "a": Range(low, HIGH), "r": Range(0.01 * low, HIGH)}
    assert pair_before(chain(3, table=table)) == expected


def test_an_add_that_a_convolution_takes_over_reads_leaky_relu_behind_the_pair():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) <float[4, 4, 1, 1] w> {
        p = Conv (x, w)
        r = LeakyRelu (p)
        c = Conv (x, w)
        s = Add (c, r)
        y = Conv (s, w)
    }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32)[..., None, None], "w"))
    for i, node in enumerate(n for n in model.graph.node if n.op_type == "Conv"):
        node.name = f"conv{i}"
    quantized = qdq.insert_qdq(model, dict.fromkeys("xprcsy", Range(-HIGH, HIGH)), target="trt")
    wires = wiring(quantized)
    (add,) = (n for n in wires.nodes if n.op_type == "Add")
    assert [wires.writer_type(name) for name in add.input] == ["Conv", "DequantizeLinear"]
    assert not pair_before(quantized)
    assert not [f for f in lint(quantized, "trt") if f.level != "note"]


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_before_other_activations_there_is_none(activation):
    assert not pair_before(residual(activation))


@pytest.mark.parametrize("model", [residual(), chain(3)], ids=["add", "chain"])
def test_the_linter_wants_it_there(model):
    late = planted.pairs_behind_leaky_relus(model)
    assert not pair_before(late)
    assert [[f.rule for f in lint(m, "trt") if f.level != "note"] for m in (model, late)] == [[], ["leaky_relu"]]
