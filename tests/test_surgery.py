"""Graphs cut, changed and joined, against ONNX's reference implementation."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trtkit import export, surgery
from trtkit.small_net import SIDE, four_convolutions

NET = four_convolutions(channels=4)
X = np.random.default_rng(0).random((2, 3, SIDE, SIDE), dtype=np.float32)
TENSORS = ["x", "stem", "a", "reduce", "b", "expand", "c", "sum", "y", "z"]     # in the order of computation
MISH = """(x) => (y) {
    soft = Softplus(x)
    bend = Tanh(soft)
    y = Mul(x, bend)
}"""


def run(model: onnx.ModelProto, feed: dict) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, feed)


SEEN = dict(zip(["y", "z", *TENSORS[1:-2]], run(export.expose_tensors(NET, TENSORS[1:-2]), {"x": X}), strict=True), x=X)


@given(st.integers(0, 9), st.integers(0, 9))
def test_any_part_computes_its_tensor_or_is_refused(i, j):
    """Between the shortcut's ends one tensor is not enough to cut at: "sum" needs both "a" and "c"."""
    source, target = TENSORS[i], TENSORS[j]
    crosses = source in ("reduce", "b", "expand", "c") and target in ("sum", "y", "z")
    if i >= j or crosses or (source, target) == ("y", "z"):
        with pytest.raises(ValueError, match=r"from which .* can be computed"):
            surgery.cut(NET, [source], [target])
        return
    part = surgery.cut(NET, [source], [target])
    onnx.checker.check_model(part, full_check=True)
    assert [v.name for v in (*part.graph.input, *part.graph.output)] == [source, target]
    (y,) = run(part, {source: SEEN[source]})
    np.testing.assert_allclose(y, SEEN[target], atol=1e-5)


def test_a_part_with_both_ends_of_the_shortcut():
    part = surgery.cut(NET, ["a", "c"], ["sum", "z"])
    assert [n.op_type for n in part.graph.node] == ["Add", "Mul"]
    for got, name in zip(run(part, {"a": SEEN["a"], "c": SEEN["c"]}), ("sum", "z"), strict=True):
        np.testing.assert_allclose(got, SEEN[name], atol=1e-5)
    with pytest.raises(ValueError, match=r"cut: got 'nope', expected a tensor of the graph"):
        surgery.cut(NET, ["nope"], ["y"])


def test_replaced_activations_compute_the_new_function():
    body = "(x) => (y) { s = Identity(x) y = LeakyRelu <alpha: float = @alpha> (s) }"
    leaky = surgery.replace(NET, "LeakyRelu", body)
    assert [n.op_type for n in leaky.graph.node].count("Identity") == 3
    for a, b in zip(run(leaky, {"x": X}), run(NET, {"x": X}), strict=True):
        assert np.array_equal(a, b)                                 # the attribute 0.1 came through
    mish = surgery.replace(NET, "LeakyRelu", MISH)
    assert "LeakyRelu" not in {n.op_type for n in mish.graph.node} and not mish.functions
    assert [(o.domain, o.version) for o in mish.opset_import] == [("", 17)]
    part = surgery.cut(mish, ["stem"], ["a"])
    v = SEEN["stem"].astype(np.float64)
    np.testing.assert_allclose(run(part, {"stem": SEEN["stem"]})[0], v * np.tanh(np.log1p(np.exp(v))), atol=1e-5)
    assert [n.op_type for n in NET.graph.node].count("LeakyRelu") == 3          # the argument is unchanged


@pytest.mark.parametrize(("op", "body", "error"), [
    ("Gelu", MISH, r"got 'Gelu', expected one of \['Add', 'Conv', 'LeakyRelu', 'Mul'\]"),
    ("LeakyRelu", "(x) => (y) { y = Relu(x", "cannot parse"),
    ("LeakyRelu", "(x) => (y, z) { y = Relu(x)\n z = Relu(x) }", "1 inputs and 2 outputs, expected 1 and 1"),
    ("Add", "(a) => (y) { y = Relu(a) }", "1 inputs and 1 outputs, expected 2 and 1"),
])
def test_bad_replacements_are_refused(op, body, error):
    with pytest.raises(ValueError, match=error):
        surgery.replace(NET, op, body)


def test_renamed_tensors_change_nothing_else():
    renamed = surgery.rename(NET, {"x": "images", "y": "head", "a": "inner", "stem.weight": "w"})
    assert [i.name for i in renamed.graph.input] == ["images"]
    assert [o.name for o in renamed.graph.output] == ["head", "z"]
    assert "w" in {i.name for i in renamed.graph.initializer}
    for a, b in zip(run(renamed, {"images": X}), run(NET, {"x": X}), strict=True):
        assert np.array_equal(a, b)
    swapped = surgery.rename(NET, {"y": "z", "z": "y"})
    assert np.array_equal(run(swapped, {"x": X})[0], run(NET, {"x": X})[0])


@pytest.mark.parametrize(("names", "error"), [
    ({"nope": "a2"}, "got 'nope'"), ({"x": "a"}, "got 'a' as a new name"),
    ({"x": "q", "y": "q"}, "got 'q' as a new name"),
])
def test_bad_names_are_refused(names, error):
    with pytest.raises(ValueError, match=error):
        surgery.rename(NET, names)


def test_bytes_in_are_floats_by_the_factor():
    model = surgery.uint8_input(NET)
    onnx.checker.check_model(model, full_check=True)
    (i,) = model.graph.input
    assert i.name == "x" and i.type.tensor_type.elem_type == TensorProto.UINT8
    assert i.type.tensor_type.shape.dim[0].dim_param == "batch"
    u8 = np.random.default_rng(1).integers(0, 256, X.shape, np.uint8)
    for a, b in zip(run(model, {"x": u8}), run(NET, {"x": u8.astype(np.float32) / 255}), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(ValueError, match=r"uint8_input: got inputs \['x'\], expected one, float32"):
        surgery.uint8_input(model)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, 1e-50, 1e39])
def test_a_factor_that_leaves_nothing_is_refused(scale):
    with pytest.raises(ValueError, match=r"scale: got .* expected a finite number other than 0"):
        surgery.uint8_input(NET, scale)


def test_no_outputs_are_no_part():
    with pytest.raises(ValueError, match="cut: got no outputs"):
        surgery.cut(NET, ["x"], [])


def test_two_inputs_cannot_become_bytes():
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "aby"]
    model = helper.make_model(helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "g", io[:2], io[2:]))
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        surgery.uint8_input(model)
