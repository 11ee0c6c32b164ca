"""Drawings of graphs: arrows point down, boxes do not lie on each other."""

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trtkit import plots_export
from trtkit.graph_layout import Box, layout
from trtkit.small_net import four_convolutions


@st.composite
def graphs(draw) -> onnx.ModelProto:
    """Random graphs: every node adds two tensors that exist already."""
    tensors, nodes = ["x"], []
    for i in range(draw(st.integers(1, 12))):
        sources = [tensors[draw(st.integers(0, len(tensors) - 1))] for _ in range(2)]
        nodes.append(helper.make_node("Add", sources, [f"t{i}"]))
        tensors.append(f"t{i}")
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", tensors[-1])]
    return helper.make_model(helper.make_graph(nodes, "g", io[:1], io[1:]), opset_imports=[helper.make_opsetid("", 17)])


@given(graphs())
def test_every_arrow_points_down_and_no_two_boxes_share_a_place(model):
    boxes = layout(model)
    assert [b.kind for b in boxes] == ["input", *["node"] * len(model.graph.node), "output"]
    assert all(boxes[i].row > b.row for b in boxes for i in b.readers)
    arrows = sum(len(set(n.input)) for n in model.graph.node) + 1
    assert sum(len(b.readers) for b in boxes) == arrows
    places = {(b.row, round(b.column, 6)) for b in boxes}
    assert len(places) == len(boxes)


def test_a_shortcut_is_drawn_with_the_shapes_on_its_way():
    boxes = {b.label + str(i): b for i, b in enumerate(layout(four_convolutions(channels=4)))}
    assert boxes["x0"].kind == "input" and boxes["x0"].note == "batch×3×32×32" and boxes["x0"].row == 0
    leaky, add = boxes["LeakyRelu2"], boxes["Add7"]
    assert leaky.row == 2 and add.row == 7 and leaky.note == "batch×4×16×16"
    assert len(leaky.readers) == 2                       # the block and its shortcut
    assert [b.label for b in boxes.values() if b.kind == "output"] == ["y", "z"]
    model = four_convolutions(channels=4)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value_float=1.0))
    model.graph.node.insert(1, helper.make_node("Sqrt", ["k"], ["root"]))
    assert len(layout(model)) == len(boxes)              # constants are not drawn


def test_a_way_bends_around_boxes_and_is_straight_beside_them():
    chain = [Box("node", "node", row, 0.0, readers, "") for row, readers in enumerate([(1, 3), (2,), (3,), ()])]
    assert plots_export._bend(chain[0], chain[3], chain) > 0.4 and plots_export._bend(chain[1], chain[2], chain) == 0
    branch = [Box("right", "node", 0, 0.5, (2,), ""), Box("left", "node", 1, -0.5, (2,), ""),
              Box("both", "node", 2, 0.0, (), "")]
    assert plots_export._bend(branch[0], branch[2], branch) == 0


def test_pictures_return_nothing():
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    net = four_convolutions(channels=4)
    assert plots_export.graphs({"a": net, "b": net}, marked=["Add"]) is None
    assert plots_export.graphs({"a": net}, notes=False) is None
    assert plots_export.parity_lines({"ort": {1: 1e-6, 2: 2e-6}, "other": {1: np.float64(1e-7), 2: 1e-7}}, 1e-3) is None
    assert plt.get_fignums() == []


def test_colours_name_their_operators_once():
    names = [op for operators, _ in plots_export.FAMILIES.values() for op in operators]
    assert len(names) == len(set(names))
