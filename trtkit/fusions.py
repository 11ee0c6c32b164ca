"""What did an optimizer make of a graph? The exported graph against the one that ONNX Runtime runs. Lesson 05.

A node that is gone was computed beforehand (a constant), multiplied into weights (BatchNorm), or became part of the
node before it (an activation, an addition), which then carries it as an attribute.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from trtkit.graph_summary import name
from trtkit.operators import walk


@dataclass(frozen=True)
class Fusions:
    """Difference of two versions of one graph.

    Attributes:
        before, after: number of nodes by operator, without its domain; Constant left out.
        gone: nodes fewer, by operator.
        new: nodes more, by operator: what the optimizer added, such as changes of the memory layout.
        activations: activations that sit inside of other nodes, by kind.
        sums: convolutions that add another tensor to their result.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    gone: Mapping[str, int]
    new: Mapping[str, int]
    activations: Mapping[str, int]
    sums: int


def fusions(exported: onnx.ModelProto, optimized: onnx.ModelProto) -> Fusions:
    """Compare a graph with what an optimizer wrote, for example the plan that `engine.build(..., backend="ort")` makes.

    Args:
        exported: as the exporter wrote it.
        optimized: of the same function. ORT's nodes carry a fused activation as attribute "activation"; a convolution
            with a fourth input adds it.
    """
    before, after = (Counter(_plain(n) for n in walk(m.graph.node) if n.op_type != "Constant")
                     for m in (exported, optimized))
    inside = Counter()
    sums = 0
    for node in walk(optimized.graph.node):
        kinds = [helper.get_attribute_value(a) for a in node.attribute if a.name == "activation"]
        inside.update(k.decode() for k in kinds if k)
        sums += "Conv" in node.op_type and len(node.input) > 3 and bool(node.input[3])
    return Fusions(before=dict(before), after=dict(after), gone=dict(before - after), new=dict(after - before),
                   activations=dict(inside), sums=sums)


def _plain(node: onnx.NodeProto) -> str:
    """Operator without its domain: Conv stays Conv in ORT's layout of 8 or 16 channels; FusedConv is one too."""
    return name(node).rpartition(".")[2].removeprefix("Fused")
