"""Ten faults (and a few more) planted into YOLOv3's Q/DQ graph: each found, named and placed; our own graphs clean."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from trtkit import calib, placement, qdq
from trtkit.lint import lint

CONV = "/stages.1/stages.1.1/reduce/reduce.0/Conv"
ADD = "/stages.1/stages.1.1/Add"
NOT_NOTES = ("error", "warning")


class Editable:
    """A Q/DQ graph to plant faults into."""

    def __init__(self, model: onnx.ModelProto):
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph

    def node(self, name: str) -> onnx.NodeProto:
        return next(n for n in self.graph.node if n.name == name)

    def writer(self, tensor: str) -> onnx.NodeProto:
        return next(n for n in self.graph.node if tensor in n.output)

    def get(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(i for i in self.graph.initializer if i.name == name))

    def put(self, name: str, values: np.ndarray) -> str:
        for old in [i for i in self.graph.initializer if i.name == name]:
            self.graph.initializer.remove(old)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def pair(self, tensor: str, reader: onnx.NodeProto, i: int, scale: float = 0.02) -> None:
        """Q/DQ between a tensor and one of its readers."""
        constants = [self.put("planted_scale", np.float32(scale)), self.put("planted_zero", np.int8(0))]
        at = list(self.graph.node).index(reader)
        reader.input[i] = "planted_dq"
        self.graph.node.insert(at, helper.make_node("QuantizeLinear", [tensor, *constants], ["planted_q"], "planted"))
        self.graph.node.insert(at + 1, helper.make_node("DequantizeLinear", ["planted_q", *constants], ["planted_dq"],
                                                        "planted_dq"))


    def unpair(self, node: onnx.NodeProto) -> None:
        """Take the pair before a node's first input away."""
        dq = self.writer(node.input[0])
        q = self.writer(dq.input[0])
        node.input[0] = q.input[0]
        self.graph.node.remove(dq)
        self.graph.node.remove(q)


@pytest.fixture(scope="module")
def graphs(yolo_graph) -> dict[str, onnx.ModelProto]:
    model = onnx.load(yolo_graph)
    rng = np.random.default_rng(0)
    table = {n: calib.Range(-float(rng.uniform(0.1, 1)), float(rng.uniform(1, 9))) for n in qdq.activation_names(model)}
    return {t: qdq.insert_qdq(model, table, target=t, skip=qdq.head_convs(model)) for t in placement.TARGETS}


# --- the faults; each returns the node that must be named ---


def before_activation(g: Editable) -> str:
    conv = g.node(CONV)
    g.pair(conv.output[0], next(n for n in g.graph.node if conv.output[0] in n.input), 0)
    return "planted"


def bias(g: Editable) -> str:
    conv = g.node(CONV)
    codes = g.put("b_codes", np.rint(g.get(conv.input[2]) / 1e-4).astype(np.int32))
    node = helper.make_node("DequantizeLinear", [codes, g.put("b_scale", np.float32(1e-4))], ["b_dq"], "b_dq")
    g.graph.node.insert(list(g.graph.node).index(conv), node)
    conv.input[2] = "b_dq"
    return "b_dq"


def residual(g: Editable) -> str:
    """The branch with the activation in float, the shortcut in codes."""
    add = g.node(ADD)
    g.unpair(next(n for name in add.input if (n := g.writer(name)).op_type == "LeakyRelu"))
    return ADD


def residual_in_float(g: Editable) -> str:
    residual(g)
    add = g.node(ADD)
    add.input[:] = [name.removesuffix("_dq") for name in add.input]
    return ADD


def leaky_relu(g: Editable) -> str:
    """No pair before the activation of a 3x3 convolution."""
    leaky = g.node("/stages.1/stages.1.0/stages.1.0.2/LeakyRelu")
    g.unpair(leaky)
    return leaky.name


def leaky_relu_into_an_add(g: Editable) -> str:
    """The pair behind it."""
    residual(g)
    add = g.node(ADD)
    i, leaky = next((i, n) for i, name in enumerate(add.input) if (n := g.writer(name)).op_type == "LeakyRelu")
    g.pair(leaky.output[0], add, i)
    return leaky.name


def leaky_relu_of_another_scale(g: Editable) -> str:
    q = g.writer(g.writer(g.node("/stages.1/stages.1.0/stages.1.0.2/LeakyRelu").input[0]).input[0])
    for node in (q, next(n for n in g.graph.node if q.output[0] in n.input)):
        node.input[1] = g.put("wider", g.get(q.input[1]) * np.float32(3)) if node is q else "wider"
    return q.name


def batchnorm(g: Editable) -> str:
    conv = g.node(CONV)
    channels = g.get(g.writer(conv.input[1]).input[0]).shape[0]
    one = g.put("one", np.ones(channels, np.float32))
    act = next(n for n in g.graph.node if conv.output[0] in n.input)
    node = helper.make_node("BatchNormalization", [conv.output[0], one, one, one, one], ["bn_out"], "bn")
    g.graph.node.insert(list(g.graph.node).index(act), node)
    act.input[0] = "bn_out"
    return "bn"


def missing_dq(g: Editable) -> str:
    tensor = g.writer(g.writer(g.node(CONV).input[0]).input[0])
    g.graph.node.append(helper.make_node("Relu", [tensor.output[0]], ["on_codes"], "on_codes"))
    return tensor.name


def missing_q(g: Editable) -> str:
    dq = g.writer(g.node(CONV).input[0])
    q = g.writer(dq.input[0])
    dq.input[0] = q.input[0]
    g.graph.node.remove(q)
    return dq.name


def float_weight(g: Editable) -> str:
    conv = g.node(CONV)
    dq = g.writer(conv.input[1])
    codes, scale = g.get(dq.input[0]), g.get(dq.input[1])
    conv.input[1] = g.put("w_float", (codes * scale[:, None, None, None]).astype(np.float32))
    return CONV


def float_input(g: Editable) -> str:
    conv = g.node(CONV)
    conv.input[0] = conv.input[0].removesuffix("_dq")
    return CONV


def _bad_scale(value: float):
    def plant(g: Editable) -> str:
        dq = g.writer(g.node(CONV).input[1])
        scale = g.get(dq.input[1]).copy()
        scale[3] = value
        g.put(dq.input[1], scale)
        return dq.name
    return plant


def axis(g: Editable) -> str:
    """One scale per input channel, as many as there are."""
    dq = g.writer(g.node(CONV).input[1])
    g.put(dq.input[1], np.full(g.get(dq.input[0]).shape[1], 0.01, np.float32))
    g.put(dq.input[2], np.zeros(g.get(dq.input[0]).shape[1], np.int8))
    dq.attribute[0].i = 1
    return dq.name


def requantized(g: Editable) -> str:
    concat = next(n for n in g.graph.node if n.op_type == "Concat")
    g.put(f"{concat.output[0]}_scale", g.get(f"{concat.output[0]}_scale") * np.float32(1.5))
    return concat.name


def requantized_resize(g: Editable) -> str:
    resize = next(n for n in g.graph.node if n.op_type == "Resize")
    if resize.input[0].endswith("_dq"):
        g.put(f"{resize.output[0]}_scale", g.get(f"{resize.output[0]}_scale") * np.float32(1.5))
    else:
        g.pair(resize.input[0], resize, 0)
        reader = next(n for n in g.graph.node if resize.output[0] in n.input)
        i = list(reader.input).index(resize.output[0])
        constants = [g.put("other_scale", np.float32(0.03)), "planted_zero"]
        at = list(g.graph.node).index(reader)
        reader.input[i] = "other_dq"
        g.graph.node.insert(at, helper.make_node("QuantizeLinear", [resize.output[0], *constants], ["other_q"], "o"))
        g.graph.node.insert(at + 1, helper.make_node("DequantizeLinear", ["other_q", *constants], ["other_dq"], "odq"))
    return resize.name


def zero_point(g: Editable) -> str:
    dq = g.writer(g.node(CONV).input[0])
    g.put(dq.input[2], np.int8(7))
    return dq.name


def mismatch(g: Editable) -> str:
    dq = g.writer(g.node(CONV).input[0])
    dq.input[1] = g.put("other", np.float32(0.5))
    return dq.name


def twice(g: Editable) -> str:
    conv = g.node(CONV)
    g.pair(conv.input[0], conv, 0)
    return "planted"


def per_tensor(g: Editable) -> str:
    dq = g.writer(g.node(CONV).input[1])
    codes = g.get(dq.input[0]).copy()
    codes[0] //= 20
    g.put(dq.input[0], codes)
    g.put(dq.input[1], np.float32(0.01))
    g.put(dq.input[2], np.int8(0))
    return dq.name


def channels(g: Editable) -> str:
    conv = g.node(WIDE)
    dq = g.writer(conv.input[1])
    codes = g.get(dq.input[0])
    g.put(dq.input[0], np.concatenate([codes, codes[:1]]))
    for name in dq.input[1:]:
        g.put(name, np.concatenate([g.get(name), g.get(name)[:1]]))
    return WIDE


def bias_scale(g: Editable) -> str:
    dq = g.writer(g.node(CONV).input[2])
    g.put(dq.input[1], g.get(dq.input[1]) * np.float32(2))
    return dq.name


WIDE = "/stages.4/stages.4.1/reduce/reduce.0/Conv"          # 256 to 128 channels
ON_TRT = {
    "before_activation": before_activation, "bias": bias, "residual": residual, "batchnorm": batchnorm,
    "missing_dq": missing_dq, "missing_q": missing_q, "float_weight": float_weight, "float_input": float_input,
    "scale": _bad_scale(0.0), "axis": axis, "requantized": requantized, "zero_point": zero_point, "channels": channels,
    "pair_mismatch": mismatch, "twice": twice, "per_tensor": per_tensor,
}
MORE = [("scale", _bad_scale(np.nan)), ("scale", _bad_scale(-1e-3)), ("scale", _bad_scale(np.inf)),
        ("requantized", requantized_resize), ("residual", residual_in_float), ("leaky_relu", leaky_relu),
        ("leaky_relu", leaky_relu_into_an_add), ("before_activation", leaky_relu_of_another_scale)]
ON_CPU = [("batchnorm", batchnorm), ("missing_q", missing_q), ("missing_dq", missing_dq), ("axis", axis),
          ("scale", _bad_scale(0.0)), ("float_weight", float_weight), ("float_input", float_input),
          ("requantized", requantized_resize), ("pair_mismatch", mismatch)]


def _found(model: onnx.ModelProto, target: str, before: onnx.ModelProto) -> set[tuple[str, str]]:
    known = {str(f) for f in lint(before, target)}
    return {(f.rule, f.where) for f in lint(model, target) if str(f) not in known}


@pytest.mark.parametrize("target", placement.TARGETS)
def test_our_own_graph_has_no_fault(graphs, target):
    assert [f for f in lint(graphs[target], target) if f.level in NOT_NOTES] == []


def test_the_only_notes_are_of_narrow_layers(graphs):
    notes = lint(graphs["trt"], "trt")
    assert {f.rule for f in notes} == {"channels"} and lint(graphs["cpu"], "cpu") == []
    g = Editable(graphs["trt"])
    shapes = {f.where: g.get(g.writer(g.node(f.where).input[1]).input[0]).shape[:2] for f in notes}
    assert all(c_out % 32 or c_in % 32 for c_out, c_in in shapes.values()) and WIDE not in shapes


@pytest.mark.parametrize(("rule", "plant"), [*ON_TRT.items(), *MORE], ids=lambda p: p if isinstance(p, str) else "")
def test_a_planted_fault_is_found_and_nothing_else(graphs, rule, plant):
    g = Editable(graphs["trt"])
    where = plant(g)
    found = _found(g.model, "trt", graphs["trt"])
    assert (rule, where) in found
    # The same fault may break a second rule at a neighbour, never one far away.
    assert {r for r, _ in found} - {rule} <= {"pair_mismatch", "requantized", "residual", "float_input",
                                              "before_activation"}


@pytest.mark.parametrize(("rule", "plant"), ON_CPU, ids=lambda p: p if isinstance(p, str) else "")
def test_a_planted_fault_is_found_for_the_cpu(graphs, rule, plant):
    g = Editable(graphs["cpu"])
    assert (rule, plant(g)) in _found(g.model, "cpu", graphs["cpu"])


def test_a_stale_bias_is_found_for_the_cpu(graphs):
    g = Editable(graphs["cpu"])
    assert ("bias", bias_scale(g)) in _found(g.model, "cpu", graphs["cpu"])


def test_the_cpus_graph_is_wrong_for_tensorrt(graphs):
    rules = {f.rule for f in lint(graphs["cpu"], "trt")}
    assert {"zero_point", "before_activation", "bias"} <= rules


@pytest.fixture(scope="module")
def resnet() -> onnx.ModelProto:
    """A basic block of ResNet for TensorRT: stem -> Relu -> conv -> Add (of the Relu) -> Relu -> head."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(3, 3, 1, 1)).astype(np.float32), n) for n in "uvw"]
    nodes = [helper.make_node("Conv", ["x", "u"], ["a"], "stem"), helper.make_node("Relu", ["a"], ["b"], "relu"),
             helper.make_node("Conv", ["b", "v"], ["c"], "conv"), helper.make_node("Add", ["c", "b"], ["d"], "add"),
             helper.make_node("Relu", ["d"], ["e"], "relu2"), helper.make_node("Conv", ["e", "w"], ["y"], "head")]
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 4, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return qdq.insert_qdq(model, {n: calib.Range(-3, 3) for n in "xabcdey"}, target="trt")


def _residual_fault(g: Editable) -> str:
    onnx.checker.check_model(g.model)
    faults = [f.found for f in lint(g.model, "trt") if f.rule == "residual"]
    assert len(faults) < 2
    return "".join(faults)


def test_behind_a_convolution_one_pair_is_right_two_are_a_fault_and_so_is_one_on_the_wrong_side(resnet):
    g = Editable(resnet)
    assert list(g.node("add").input) == ["c", "b_dq"] and _residual_fault(g) == ""
    g.pair("c", g.node("add"), 0)
    assert "both inputs, expected one" in _residual_fault(g)
    g.node("add").input[1] = "b"
    assert "convolution's output, expected it on the shortcut" in _residual_fault(g)
    g = Editable(resnet)
    g.node("add").input[1] = "b"
    assert "no input, expected it on the shortcut" in _residual_fault(g)


def test_a_convolution_that_others_read_too_takes_no_add_over(resnet):
    g = Editable(resnet)
    g.pair("c", g.node("add"), 0)
    g.graph.node.append(helper.make_node("Neg", ["planted_dq"], ["also"], "also"))
    assert _residual_fault(g) == ""


def test_a_pair_before_a_relu_is_found_for_the_cpu_unless_others_read_it(graphs):
    g = Editable(graphs["cpu"])
    conv = g.node(CONV)
    act = next(n for n in g.graph.node if n.op_type == "LeakyRelu" and n.input[0] == conv.output[0] + "_dq")
    act.op_type = "Relu"
    del act.attribute[:]
    q = conv.output[0] + "_QuantizeLinear"
    assert ("before_activation", q) in _found(g.model, "cpu", graphs["cpu"])
    g.graph.node.append(helper.make_node("Neg", [conv.output[0] + "_dq"], ["also"], "also"))
    assert _found(g.model, "cpu", graphs["cpu"]) == set()


def test_every_fault_says_what_was_got_and_how_to_fix_it(graphs):
    faults = lint(graphs["cpu"], "trt")
    assert len(faults) > 100
    for fault in faults:
        text = str(fault)
        assert all(part in text for part in (fault.level, fault.rule, fault.where, "Fix: ")) and "None" not in text


def test_a_float_graph_has_nothing_to_complain_about(yolo_graph):
    for target in placement.TARGETS:
        assert lint(onnx.load(yolo_graph), target) == []
    with pytest.raises(ValueError, match="'gpu'"):
        lint(onnx.load(yolo_graph), "gpu")
