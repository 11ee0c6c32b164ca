"""Where to draw the nodes of a graph: by depth from top to bottom, side by side where branches run. Lesson 05.

A node's row is the longest way to it from an input, so every arrow points down. Within a row, nodes stand in the order
of the mean column of what they read (the barycenter heuristic), which keeps branches apart.
Source: Sugiyama, Tagawa and Toda 1981, "Methods for Visual Understanding of Hierarchical System Structures".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from trtkit.graph_summary import name, shapes


@dataclass(frozen=True)
class Box:
    """A node, input or output of a drawing.

    Attributes:
        label: operator, or the tensor's name.
        kind: "node", "input" or "output".
        row: from the top, from 0.
        column: in boxes, 0 is the middle.
        readers: indices of the boxes that read what this one writes.
        note: shape of what it writes, for example "batch×16×16×16", "" where it is not known.
    """

    label: str
    kind: str
    row: int
    column: float
    readers: tuple[int, ...]
    note: str


def layout(model: onnx.ModelProto) -> list[Box]:
    """Boxes of a graph: its inputs, its nodes, its outputs; constants, and what follows from them alone, left out.

    Args:
        model: at most some forty nodes, else the picture is a wall; cut a part out of a larger one with `surgery.cut`.
    """
    graph = model.graph
    stored = {i.name for i in graph.initializer}
    inputs = [i.name for i in graph.input if i.name not in stored]
    nodes = _computed(graph, stored)
    known = shapes(model)
    writes = [*([n] for n in inputs), *(list(n.output) for n in nodes), *([] for _ in graph.output)]
    reads = [*([] for _ in inputs), *(list(n.input) for n in nodes), *([o.name] for o in graph.output)]
    labels = [*inputs, *(name(n) for n in nodes), *(o.name for o in graph.output)]
    kinds = ["input"] * len(inputs) + ["node"] * len(nodes) + ["output"] * len(graph.output)
    writer = {tensor: i for i, outputs in enumerate(writes) for tensor in outputs}
    sources = [list(dict.fromkeys(writer[t] for t in tensors if t in writer)) for tensors in reads]
    rows: list[int] = []
    for before in sources:                              # the graph's order is one in which they can run
        rows.append(max((rows[i] + 1 for i in before), default=0))
    columns = _columns(rows, sources)
    return [
        Box(labels[i], kinds[i], rows[i], columns[i], tuple(j for j, s in enumerate(sources) if i in s),
            "×".join(map(str, known.get(writes[i][0], ()))) if writes[i] else "")
        for i in range(len(labels))
    ]


def _computed(graph: onnx.GraphProto, stored: set[str]) -> list[onnx.NodeProto]:
    """Nodes that depend on an input; a builder computes the others once, before the first image."""
    fixed, nodes = set(stored), []
    for node in graph.node:
        if all(name in fixed for name in node.input if name):
            fixed.update(node.output)
        else:
            nodes.append(node)
    return nodes


def _columns(rows: Sequence[int], sources: Sequence[Sequence[int]]) -> list[float]:
    columns = [0.0] * len(rows)
    for row in range(max(rows, default=-1) + 1):
        members = [i for i, r in enumerate(rows) if r == row]
        wish = {i: sum(columns[s] for s in sources[i]) / len(sources[i]) if sources[i] else 0.0 for i in members}
        members.sort(key=lambda i: wish[i])
        middle = sum(wish.values()) / len(members)
        for place, i in enumerate(members):
            columns[i] = middle + place - (len(members) - 1) / 2
    return columns
