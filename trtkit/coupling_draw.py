"""Draw a group of coupled channels as a person would: a line for each branch, in the order of the run. Lesson 04.

    ●  a layer writes the channels          ├─▶  a layer reads them
    ○  a layer has parameters for each      ├─╯  two branches are added, so they share their channels
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from trtkit.coupling import Group


@dataclass(frozen=True)
class Line:
    """One line of a drawing.

    Attributes:
        kind: "write", "scale", "read", "join" or "concat", see `coupling_ids.Step`.
        layer: module that does it.
        what: type and shape of the layer, or the operator's name.
        branch: number of the branch that comes out.
        others: numbers of the branches that go in.
        positions: of the group's channels along the layer's axis.
        size: length of that axis.
    """

    kind: str
    layer: str
    what: str
    branch: int
    others: tuple[int, ...]
    positions: tuple[int, ...]
    size: int


def describe(layer: "nn.Module") -> str:
    """Type and shape of a layer: "Conv2d 32 → 64, 3×3, stride 2"."""
    name = type(layer).__name__
    if hasattr(layer, "in_features"):
        return f"{name} {layer.in_features} → {layer.out_features}"
    if not hasattr(layer, "kernel_size"):
        return name
    parts = [f"{name} {layer.in_channels} → {layer.out_channels}", "×".join(map(str, layer.kernel_size))]
    if max(layer.stride) > 1:
        parts.append(f"stride {layer.stride[0]}")
    if layer.groups > 1:
        parts.append("depthwise" if layer.groups == layer.in_channels else f"{layer.groups} groups")
    return ", ".join(parts)


def draw(group: "Group") -> str:
    """Text, one line per thing that happens to the channels, no trailing newline."""
    writers, readers = ({m.layer for m in group.members if test(m)} for test in (
        lambda m: m.writes, lambda m: m.side == "in"))
    readers -= {m.layer for m in group.members if m.side == "out"}
    head = (f"{_count(group.channels, 'channel')} that live or die together: "
            f"{_count(len(writers), 'layer')} {'writes' if len(writers) == 1 else 'write'} them, "
            f"{_count(len(readers), 'layer')} {'reads' if len(readers) == 1 else 'read'} them")
    if group.fixed:
        head += f"\nthey must stay: {group.fixed}"
    rows = [(graph, line.layer or "(the model)", line.what, _note(line, group.channels))
            for graph, line in _graph(group.steps)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    body = ["  ".join([*(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=True)), row[3]]) for row in rows]
    return "\n".join([head, *body])


def ranges(positions: Iterable[int]) -> str:
    """Ascending whole numbers as ranges: "0-63, 128-191"."""
    found: list[list[int]] = []
    for p in sorted(positions):
        if found and p == found[-1][1] + 1:
            found[-1][1] = p
        else:
            found.append([p, p])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in found]
    return ", ".join(shown if len(shown) <= 4 else [*shown[:3], f"... ({len(shown)} pieces)"])


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _note(line: Line, channels: int) -> str:
    where = ranges(line.positions) + (f" of {line.size}" if len(line.positions) < line.size else "")
    if (each := len(line.positions) // channels) > 1:
        where += f", {each} for each channel"
    return {"write": f"writes {where}", "read": f"reads {where}", "scale": f"passes on {where}",
            "join": "joins the branches: channel c with channel c", "concat": f"puts them at {where}"}[line.kind]


def _graph(lines: Sequence[Line]) -> list[tuple[str, Line]]:
    """The left part of the drawing: one column for each branch that is open."""
    home: dict[int, int] = {}           # branch -> the branch in whose column it is drawn
    uses: list[list[int]] = []          # per line: the branches that it touches, the one that goes on first
    for line in lines:
        touched = [home[b] for b in line.others if b in home]
        if line.kind in ("write", "scale"):
            touched = [home.setdefault(line.branch, line.branch)]
        elif line.kind == "read":
            touched = [home.setdefault(line.others[0], line.others[0])]
        elif touched:
            home[line.branch] = min(touched)
        uses.append(sorted(set(touched)))
    last = {b: i for i, touched in enumerate(uses) for b in touched}
    columns: list[int | None] = []
    rows = []
    for i, (line, touched) in enumerate(zip(lines, uses, strict=True)):
        for b in touched:
            if b not in columns:
                free = columns.index(None) if None in columns else len(columns)
                columns[free:free + 1] = [b]
        cells = [" " if b is None else "│" for b in columns]
        places = sorted(columns.index(b) for b in touched)
        if line.kind in ("write", "scale"):
            cells[places[0]] = "●" if line.kind == "write" else "○"
        elif line.kind == "join":
            for p in places:
                ends = last[columns[p]] == i
                cells[p] = ("╰" if ends else "├") if p == places[0] else ("╯" if ends else "┤")
        elif places:
            cells[places[0]] = "╰" if last[columns[places[0]]] == i else "├"
        graph = " ".join(cells)
        if line.kind in ("read", "concat", "join") and places:
            start = 2 * places[0] + 1
            end = 2 * places[-1] if line.kind == "join" else len(graph) + 1
            graph = graph.ljust(end)
            graph = graph[:start] + graph[start:end].replace(" ", "─").replace("│", "┼") + graph[end:]
            graph += {"read": "▶", "concat": "⧺", "join": ""}[line.kind]
        rows.append((graph, line))
        columns = [None if b is not None and last[b] == i else b for b in columns]
        while columns and columns[-1] is None:
            columns.pop()
    return rows
