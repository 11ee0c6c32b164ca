"""What TensorRT's parsers read, and graphs rewritten for an older one."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper, parser
from onnx.reference import ReferenceEvaluator

from trtkit import lowering, operators
from trtkit.small_net import four_convolutions

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)


def one_node(op: str, opset: int, *, domain: str = "", **attributes) -> onnx.ModelProto:
    """x (n, 3, 4) -> one operator -> y of the same shape."""
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 4]) for n in "xy"]
    node = helper.make_node(op, ["x"], ["y"], name="only", domain=domain, **attributes)
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(helper.make_graph([node], "g", io[:1], io[1:]), opset_imports=imports, ir_version=9)


def run(model: onnx.ModelProto) -> np.ndarray:
    return ReferenceEvaluator(model).run(None, {"x": X})[0]


def test_the_tables_name_operators_of_the_standard():
    known = {s.name for s in defs.get_all_schemas_with_history() if s.domain == ""}
    for era, names in operators.READS.items():
        assert names <= known, (era, names - known)
    assert len(operators.READS["8.6"]) == 142 and operators.READS["8.6"] < operators.READS["10.15"]


# What the changelog of onnx-tensorrt says was added up to 8.6, and after it, and operators that it never names.
@pytest.mark.parametrize(("op", "eras"), [
    ("LayerNormalization", 2), ("GroupNormalization", 2), ("IsInf", 2), ("Trilu", 2), ("GridSample", 2), ("Mod", 2),
    ("RoiAlign", 2), ("NonZero", 2), ("NonMaxSuppression", 2), ("Shrink", 2), ("Einsum", 2),
    ("MeanVarianceNormalization", 2),
    ("Hardmax", 1), ("DeformConv", 1), ("STFT", 1), ("BlackmanWindow", 1), ("Gelu", 1), ("Mish", 1), ("CastLike", 1),
    ("BitShift", 0), ("QLinearConv", 0), ("DynamicQuantizeLinear", 0), ("Unique", 0), ("SequenceAt", 0), ("Det", 0),
])
def test_the_tables_agree_with_the_changelog(op, eras):
    assert sum(op in names for names in operators.READS.values()) == eras


def test_a_graph_of_ours_is_read_by_every_era():
    for era in operators.READS:
        assert operators.unsupported(four_convolutions(), era) == []
        operators.require(four_convolutions(), era)


def test_node_operator_and_advice_are_named():
    (opset, gelu) = operators.unsupported(one_node("Gelu", 20))
    assert (opset.node, opset.op) == ("", "opset 20") and "opset=17" in opset.advice
    assert (gelu.node, gelu.op) == ("only", "Gelu") and "lowering.lower" in gelu.advice
    assert operators.unsupported(one_node("Gelu", 20), "10.15") == []
    (hardmax,) = operators.unsupported(one_node("Hardmax", 17))
    assert "TensorRT 10.15 reads it" in hardmax.advice and "surgery.replace" in hardmax.advice
    (det,) = operators.unsupported(one_node("Det", 17), "10.15")
    assert "replace it" in det.advice
    with pytest.raises(ValueError, match=r"got 2 things that TensorRT 8\.6 does not read.*Gelu in node 'only'"):
        operators.require(one_node("Gelu", 20))


def test_a_node_of_an_unknown_domain_is_named_and_one_that_the_graph_defines_is_not():
    model = one_node("FusedConv", 17, domain="com.microsoft")
    (found,) = operators.unsupported(model)
    assert found.op == "com.microsoft.FusedConv" and "another tool" in found.advice
    text = '<opset_import: ["" : 17], domain: "com.microsoft"> FusedConv (x) => (y) {y = Relu(x)}'
    model.functions.append(parser.parse_function(text))
    assert operators.unsupported(model) == []
    assert operators.unsupported(one_node("EfficientNMS_TRT", 17, domain="nvidia")) == []
    assert len(operators.unsupported(one_node("NoSuchThing", 17))) == 1


def test_subgraphs_and_functions_are_looked_into():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3, 4] x, bool c) => (float[2, 3, 4] y) {
        y = If (c) <then_branch = a () => (float[2, 3, 4] t) { t = Hardmax(x) },
                    else_branch = b () => (float[2, 3, 4] e) { e = Relu(x) }>
    }"""
    assert [u.op for u in operators.unsupported(parser.parse_model(text))] == ["Hardmax"]
    model = one_node("Mine", 17, domain="mine")
    text = '<opset_import: ["": 17], domain: "mine"> Mine (x) => (y) {y = Det(x)}'
    model.functions.append(parser.parse_function(text))
    assert [u.op for u in operators.unsupported(model)] == ["Det"]


@pytest.mark.parametrize("version", [8, 25])
def test_an_opset_out_of_range_is_named(version):
    for era, (low, high) in operators.OPSETS.items():
        (found,) = operators.unsupported(one_node("Relu", version), era)
        assert found.op == f"opset {version}" and f"reads {low} to {high}" in found.advice
        assert f"opset={low if version < low else high}" in found.advice


def test_unknown_eras_and_graphs_without_an_opset_are_refused():
    with pytest.raises(ValueError, match=r"era: got '9', expected one of \['10.15', '8.6'\]"):
        operators.unsupported(one_node("Relu", 17), "9")
    model = one_node("Relu", 17, domain="mine")
    del model.opset_import[0]
    with pytest.raises(ValueError, match=r"opset imports \['mine'\]"):
        operators.unsupported(model)


@pytest.mark.parametrize(("op", "opset", "attributes"), [
    ("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}), ("Mish", 18, {}), ("Mish", 22, {}),
    ("Swish", 24, {"alpha": 1.5}),
    ("Relu", 22, {}), ("HardSwish", 22, {}), ("ThresholdedRelu", 22, {"alpha": 0.5}), ("Celu", 17, {}),
])
def test_lowered_graphs_compute_what_onnx_says_and_are_read_by_8_6(op, opset, attributes):
    model = one_node(op, opset, **attributes)
    lowered = lowering.lower(model)
    assert operators.unsupported(lowered) == []
    assert operators.opset(lowered) == 17 and lowered.ir_version == 8
    assert [i.name for i in lowered.graph.input] == ["x"] and [o.name for o in lowered.graph.output] == ["y"]
    assert lowered.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    np.testing.assert_allclose(run(lowered), run(model), atol=2e-6)
    assert model.opset_import[0].version == opset                   # the argument is unchanged


def test_a_newer_parser_gets_the_operator_itself():
    lowered = lowering.lower(one_node("Gelu", 20), "10.15")
    assert [n.op_type for n in lowered.graph.node] == ["Gelu"] and operators.opset(lowered) == 20


def test_lowering_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="Hardmax in node 'only'"):
        lowering.lower(one_node("Hardmax", 17))
    with pytest.raises(ValueError, match=r"opset: got 20, expected one that ONNX's converter brings to 17: .*Gelu"):
        lowering.to_opset(one_node("Gelu", 20), 17)
