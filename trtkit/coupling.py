"""Which channels of a network must go together? Lesson 04.

A convolution's output channel c cannot go alone: the BatchNorm behind it has parameters for c, the next convolution
reads c, and a shortcut adds c to the channel c of another convolution, which then has to go as well. `groups` finds all
of them from one traced run (`coupling_trace`); there is no list of layer types that belong together.
"""

import difflib
from dataclasses import dataclass

from trtkit import coupling_draw
from trtkit.coupling_draw import Line
from trtkit.coupling_ids import Identities
from trtkit.coupling_rules import PER_CHANNEL
from trtkit.coupling_trace import trace
from trtkit.pytorch import nn, torch


@dataclass(frozen=True)
class Member:
    """One axis of one layer's weight, as far as it belongs to a group.

    Attributes:
        layer: name of the module.
        side: "out" for what the layer writes (a convolution's output channels, a BatchNorm's parameters), "in" for
            what it reads.
        index: for each choice of the group the positions along that axis, none to many: a flatten in front of a
            linear layer gives one channel as many positions as it has pixels.
        size: length of the axis, positions of other groups included.
        what: type and shape of the layer, for the drawing.
        writes: whether the layer makes these channels; a BatchNorm and a depthwise convolution only pass them on.
    """

    layer: str
    side: str
    index: tuple[tuple[int, ...], ...]
    size: int
    what: str
    writes: bool


@dataclass(frozen=True)
class Group:
    """Channels that live or die together; `str(group)` draws them.

    Attributes:
        channels: how many choices there are. One choice is a channel of every layer that an addition joins, or a whole
            group of a grouped convolution.
        members: all axes that are cut when a choice is taken out, in the order of the run.
        fixed: "" or why nothing may be taken out.
        steps: what happens to the channels during the run, for the drawing.
    """

    channels: int
    members: tuple[Member, ...]
    fixed: str
    steps: tuple[Line, ...]

    @property
    def name(self) -> str:
        """The first layer that writes these channels; no two groups have the same. "" for inputs and constants."""
        return next((m.layer for m in self.members if m.writes), "")

    def __str__(self) -> str:
        return coupling_draw.draw(self)


def groups(model: nn.Module, example: torch.Tensor | tuple) -> list[Group]:
    """All groups of coupled channels of a network, those that must stay included.

    Args:
        model: any module; it is neither run nor changed.
        example: an input (N, C, ...) or a tuple of inputs; only shapes matter.

    Returns:
        The groups in the order of the run. Each layer that writes channels has all of them in one group.

    Raises:
        ValueError: see `coupling_trace.trace`.
    """
    seen = trace(model, example)
    rows = {axis: [seen.find(i) for i in ids.tolist()] for axis, ids in seen.axes.items()}
    written = [rows[layer, side] for layer, side in rows
               if side == "out" and not isinstance(seen.modules[layer], PER_CHANNEL)]
    leader = _bundle(written + [[seen.find(i) for i in ids.tolist()] for ids in seen.sources])
    choices: dict[int, dict[int, int]] = {}         # group -> root -> number of the choice, as its first layer has them
    for root in [r for row in [*written, *rows.values()] for r in row]:
        numbers = choices.setdefault(leader[root], {})
        numbers.setdefault(root, len(numbers))
    members: dict[int, list[Member]] = {key: [] for key in choices}
    for (layer, side), row in rows.items():
        what = coupling_draw.describe(seen.modules[layer])
        for key, index in _split(row, leader, choices).items():
            members[key].append(Member(layer, side, index, len(row), what, side == "out" and _makes(seen, layer)))
    lines: dict[int, list[Line]] = {key: [] for key in choices}
    for step in seen.steps:
        what = step.what or coupling_draw.describe(seen.modules[step.layer])
        row = [seen.find(i) for i in step.ids.tolist()]
        for key, index in _split(row, leader, choices).items():
            positions = tuple(sorted(p for ps in index for p in ps))
            lines[key].append(Line(step.kind, step.layer, what, step.branch, step.others, positions, len(row)))
    reasons: dict[int, str] = {}
    for i, why in seen.fixed.items():
        reasons.setdefault(leader[seen.find(i)], why)
    return [Group(len(choices[key]), tuple(members[key]), reasons.get(key, ""), tuple(lines[key])) for key in choices]


def _bundle(rows: list[list[int]]) -> dict[int, int]:
    """Root of a choice -> root that names its group: the channels of one layer make one group."""
    leader: dict[int, int] = {}
    for row in rows:
        old = {leader[root] for root in row if root in leader}
        first = min(old, default=row[0])
        if len(old) > 1:
            leader = {root: first if to in old else to for root, to in leader.items()}
        leader.update(dict.fromkeys(row, first))
    return leader


def _split(row: list[int], leader: dict[int, int], choices: dict[int, dict[int, int]]) -> dict[int, tuple]:
    """Roots along an axis -> for each group with channels there, the positions of each of its choices."""
    index: dict[int, list[list[int]]] = {}
    for position, root in enumerate(row):
        key = leader[root]
        if key not in choices:          # constants that no layer reads are in no group
            continue
        if key not in index:
            index[key] = [[] for _ in choices[key]]
        index[key][choices[key][root]].append(position)
    return {key: tuple(tuple(ps) for ps in positions) for key, positions in index.items()}


def _makes(seen: Identities, layer: str) -> bool:
    module = seen.modules[layer]
    return not isinstance(module, PER_CHANNEL) and getattr(module, "groups", 1) == 1


def coupled_layers(model: nn.Module, layer: str, example: torch.Tensor | tuple) -> Group:
    """The group that a layer's output channels belong to.

    Args:
        model: any module.
        layer: name of a convolution, linear layer or BatchNorm, as `model.named_modules()` has it.
        example: see `groups`.

    Returns:
        The group; print it for a drawing.

    Raises:
        ValueError: no such layer in the traced run, and what `groups` raises.
    """
    found = {m.layer: group for group in groups(model, example) for m in group.members if m.side == "out"}
    if layer not in found:
        raise ValueError(f"layer: got {layer!r}, expected {closest(layer, found)}")
    return found[layer]


def closest(name: str, known: dict | list) -> str:
    """For an error message: the names that come nearest to one that does not exist."""
    near = difflib.get_close_matches(name, list(known), 3, 0) or list(known)
    return f"a layer that writes channels, such as {', '.join(near)}"
