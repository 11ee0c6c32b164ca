"""In which order do channels go, and when is it enough? Lesson 04.

Channels go in blocks of `round_to`, the lowest scores first, and the last block of a layer stays. How many parameters
a block saves is counted from the groups: a layer's weight has (kept outputs) x (kept inputs) x (kernel) numbers, so
nothing is built until the decision is made.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from trtkit.coupling import Group
from trtkit.prune_cut import cut_axes
from trtkit.pytorch import Tensor, nn

TOLERANCE = 0.01                # of params_removed
_CLOSE_ENOUGH = 0.001           # nearer than this no further channel goes just to come nearer


@dataclass(frozen=True)
class Block:
    """Choices that go at once.

    Attributes:
        score: their mean, or that of a block before them in the same layer if it was higher.
        group: name of their group.
        part: number of their part of the group, see `_parts`.
        choices: which ones.
    """

    score: float
    group: str
    part: int
    choices: tuple[int, ...]


def by_ratio(group: Group, scores: Tensor, ratio: float, round_to: int) -> list[int]:
    """Choices of one group that stay if about channels * ratio of them go.

    Raises:
        ValueError: nothing would stay.
    """
    gone: set[int] = set()
    for part in _parts(group):
        target = len(part) * ratio
        if int(len(part) - target + 0.5) < 1:
            raise ValueError(f"ratio: {ratio} would empty {group.name}, which has {len(part)} channels, expected at "
                             f"most {1 - 0.5 / len(part):.3g} for it; name it in skip, or lower its ratio")
        blocks = _blocks(part, scores.tolist(), round_to)
        ends = [0, *accumulate(len(b) for b in blocks)]
        count = min(range(len(ends)), key=lambda i: abs(ends[i] - target))
        gone.update(c for b in blocks[:count] for c in b)
    return [c for c in range(group.channels) if c not in gone]


def by_count(free: Sequence[Group], scores: Mapping[str, Tensor], ratio: float, round_to: int) -> dict[str, list[int]]:
    """Choices that stay if the lowest `ratio` of the choices of all groups go.

    Raises:
        ValueError: a layer would have to be emptied.
    """
    total = sum(g.channels for g in free)
    gone, closed, count = {g.name: set() for g in free}, set(), 0
    for block in _ordered(free, scores, round_to):
        if (block.group, block.part) in closed or count + len(block.choices) > total * ratio + 0.5:
            closed.add((block.group, block.part))
            continue
        gone[block.group].update(block.choices)
        count += len(block.choices)
    if not closed and count + 0.5 < total * ratio:
        raise ValueError(f"ratio: {ratio} would empty {free[0].name} and others, expected at most {count / total:.3g}: "
                         f"every layer keeps at least {round_to} channels (round_to)")
    return _kept(free, gone)


def by_parameters(
    found: Sequence[Group], free: Sequence[Group], scores: Mapping[str, Tensor], model: nn.Module, target: float,
    round_to: int,
) -> dict[str, list[int]]:
    """Choices that stay if the lowest go until the network has lost the fraction `target` of its parameters.

    Raises:
        ValueError: the target cannot be met within `TOLERANCE`.
    """
    total = sum(p.numel() for p in model.parameters())
    left = {(m.layer, m.side): m.size for g in found for m in g.members}
    terms = _terms(model, left)
    axes = _axes(free)
    gone, closed, removed = {g.name: set() for g in free}, set(), 0
    for block in _ordered(free, scores, round_to):
        if (block.group, block.part) in closed:
            continue
        change = sum((axes[block.group][c] for c in block.choices), Counter())
        layers = {layer for layer, _ in change}
        after = left | {axis: left[axis] - n for axis, n in change.items()}
        saved = sum(_count(terms[layer], layer, left) - _count(terms[layer], layer, after) for layer in layers)
        if removed + saved > total * target:
            closed.add((block.group, block.part))       # too large a step; smaller layers may still fit
            continue
        gone[block.group].update(block.choices)
        removed, left = removed + saved, after
        if removed > total * (target - _CLOSE_ENOUGH):
            break
    if removed < total * (target - TOLERANCE):
        raise ValueError(f"params_removed: got {removed / total:.3f}, expected {target} within {TOLERANCE}: a layer "
                         f"that loses channels keeps at least {round_to} of them (round_to), {free[0].name} for "
                         "one; lower the target or round_to, or skip fewer layers")
    return _kept(free, gone)


def by_uniform(
    found: Sequence[Group], free: Sequence[Group], scores: Mapping[str, Tensor], model: nn.Module, target: float,
    round_to: int,
) -> dict[str, list[int]]:
    """Choices that stay if every layer loses the same ratio, as high as the fraction `target` of parameters allows.

    Raises:
        ValueError: the target cannot be met within `TOLERANCE`.
    """
    total = sum(p.numel() for p in model.parameters())
    sizes = {(m.layer, m.side): m.size for g in found for m in g.members}
    terms, axes = _terms(model, sizes), _axes(free)

    def removed(kept: Mapping[str, list[int]]) -> float:
        left = Counter(sizes)
        for g in free:
            for c in set(range(g.channels)) - set(kept[g.name]):
                left.subtract(axes[g.name][c])
        return sum(_count(terms[layer], layer, sizes) - _count(terms[layer], layer, left) for layer in terms) / total

    low, high, best = 0.0, 1.0, {g.name: list(range(g.channels)) for g in free}
    for _ in range(20):                             # halves: a millionth is less than one channel
        middle = (low + high) / 2
        try:
            kept = {g.name: by_ratio(g, scores[g.name], middle, round_to) for g in free}
        except ValueError:                          # it would empty a layer
            high = middle
            continue
        if removed(kept) > target:
            high = middle
        else:
            low, best = middle, kept
    if removed(best) < target - TOLERANCE:
        raise ValueError(f"params_removed: got {removed(best):.3f} with one ratio for all layers, expected {target} "
                         f"within {TOLERANCE}; take scope='global', a smaller round_to, or another target")
    return best


def _axes(free: Sequence[Group]) -> dict[str, list[Counter]]:
    """Group -> for each choice: how many positions of which axes go with it."""
    return {g.name: [Counter({(m.layer, m.side): len(m.index[c]) for m in g.members}) for c in range(g.channels)]
            for g in free}


def _kept(free: Sequence[Group], gone: Mapping[str, set[int]]) -> dict[str, list[int]]:
    return {g.name: [c for c in range(g.channels) if c not in gone[g.name]] for g in free}


def _parts(group: Group) -> list[list[int]]:
    """Choices that are in the same layers. One part, unless a concatenation is added to something wider."""
    parts: dict[tuple, list[int]] = {}
    for c in range(group.channels):
        parts.setdefault(tuple(bool(m.index[c]) for m in group.members), []).append(c)
    return list(parts.values())


def _blocks(part: Sequence[int], scores: Sequence[float], round_to: int) -> list[list[int]]:
    """Lowest scores first; the first block leaves a multiple of round_to, the last round_to choices are in none."""
    order = sorted(part, key=lambda c: scores[c])
    start = len(order) % round_to or round_to
    ends = [0, *range(start, len(order) - round_to + 1, round_to)]
    return [order[a:b] for a, b in pairwise(ends)]


def _ordered(free: Sequence[Group], scores: Mapping[str, Tensor], round_to: int) -> list[Block]:
    """All blocks, lowest score first, those of a layer in their order."""
    found = []
    for group in free:
        values = scores[group.name].tolist()
        for number, part in enumerate(_parts(group)):
            blocks = _blocks(part, values, round_to)
            means = accumulate((sum(values[c] for c in b) / len(b) for b in blocks), max)
            found += [Block(m, group.name, number, tuple(b)) for m, b in zip(means, blocks, strict=True)]
    return sorted(found, key=lambda b: b.score)


def _terms(model: nn.Module, axes: Mapping[tuple[str, str], int]) -> dict[str, list[tuple[int, list[str]]]]:
    """Layer -> for each parameter: how many numbers one position of each cut axis has, and which axes those are."""
    terms: dict[str, list] = {}
    for layer in {layer for layer, _ in axes}:
        module = model.get_submodule(layer)
        terms[layer] = []
        for p in module.parameters(recurse=False):
            sides = [side for side, axis in zip(("out", "in"), cut_axes(module, p), strict=True) if axis is not None]
            unit = p.numel()
            for side in sides:
                unit //= axes[layer, side]
            terms[layer].append((unit, sides))
    return terms


def _count(terms: Sequence[tuple[int, list[str]]], layer: str, left: Mapping[tuple[str, str], int]) -> int:
    """Parameters of a layer with so many positions left."""
    count = 0
    for unit, sides in terms:
        for side in sides:
            unit *= left[layer, side]
        count += unit
    return count
