"""Take channels out of a network so that it becomes smaller for any hardware. Lesson 04.

Removing a fraction p of the output channels of every convolution removes p of its inputs too, so its weights shrink to
(1 - p)^2 of what they were: 30 % of the channels are 51 % of the weights.
Three steps, each a function: `kept_channels` decides, `prune_cut.apply` cuts, `prune_channels` does both.
"""

from collections.abc import Callable, Mapping, Sequence

from trtkit import prune_cut
from trtkit.coupling import Group, closest, groups
from trtkit.importance import l1
from trtkit.prune_cut import apply
from trtkit.prune_order import by_count, by_parameters, by_ratio, by_uniform
from trtkit.pytorch import Tensor, nn

__all__ = ["apply", "kept_channels", "prune_channels"]
Importance = Callable[[Group, nn.Module], Tensor]


def prune_channels(
    model: nn.Module, example: Tensor | tuple, *, ratio: float | Mapping[str, float] | None = None,
    params_removed: float | None = None, scope: str = "global", importance: Importance = l1, round_to: int = 1,
    skip: Sequence[str] = (),
) -> nn.Module:
    """A copy of a network without its least important channels.

    Args:
        model: any module that can be traced (`coupling_trace.trace`); unchanged.
        example: an input (N, C, ...) or a tuple of inputs; only shapes matter.
        ratio: fraction of the channels to remove, in [0, 1): one for all, or per layer {name: ratio} (a layer's
            coupled layers go with it, all others stay whole). Give this or params_removed.
        params_removed: fraction of the network's parameters to remove, in [0, 1), met within 0.01.
        scope: "global" ranks the channels of all layers together; "layer" takes the same ratio of each.
        importance: (group, model) -> (channels,) scores; `importance.l1`, `l2`, `bn_gamma`, `taylor`.
        round_to: a layer that loses channels keeps a multiple of this, and at least this many: 8, 16 or 32 for what
            the hardware computes at once. A layer that has fewer stays whole.
        skip: names of layers, or of modules with all layers inside, that keep their channels. Layers whose channels
            the network returns, or gets as input, always do.

    Returns:
        The copy, in the model's mode, on its device, same outputs as the original whose removed channels are 0.

    Raises:
        ValueError: bad arguments, a layer that must not be pruned or would be emptied, a target that cannot be
            reached, a module that cannot be traced. Each names the layer.
    """
    found = groups(model, example)
    kept = _kept(found, model, ratio, params_removed, scope, importance, round_to, skip)
    return prune_cut.cut(model, example, found, kept)


def kept_channels(
    model: nn.Module, example: Tensor | tuple, *, ratio: float | Mapping[str, float] | None = None,
    params_removed: float | None = None, scope: str = "global", importance: Importance = l1, round_to: int = 1,
    skip: Sequence[str] = (),
) -> dict[str, list[int]]:
    """Which channels `prune_channels` would keep; arguments and errors as there.

    Returns:
        Name of each group that may be pruned (its first layer) -> choices that stay, ascending.
    """
    found = groups(model, example)
    return _kept(found, model, ratio, params_removed, scope, importance, round_to, skip)


def _kept(found, model, ratio, params_removed, scope, importance, round_to, skip) -> dict[str, list[int]]:
    if (ratio is None) == (params_removed is None):
        raise ValueError(f"prune: got ratio={ratio} and params_removed={params_removed}, expected exactly one of them")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope: got {scope!r}, expected 'layer' or 'global'")
    if round_to < 1 or int(round_to) != round_to:
        raise ValueError(f"round_to: got {round_to}, expected a whole number from 1, such as 8, 16 or 32")
    target = params_removed if ratio is None else ratio
    name = "params_removed" if ratio is None else "ratio"
    for layer, value in target.items() if isinstance(target, Mapping) else [("", target)]:
        if not 0 <= value < 1:
            raise ValueError(f"{name}{layer and f' of {layer}'}: got {value}, expected a fraction in [0, 1)")
    free = _free(found, skip)
    if isinstance(ratio, Mapping):
        ratios = _ratios(found, ratio)
        scores = {g.name: _scores(importance, g, model) for g in free if g.name in ratios}
        return {g.name: by_ratio(g, scores[g.name], ratios[g.name], round_to) if g.name in ratios
                else list(range(g.channels)) for g in free}
    scores = {g.name: _scores(importance, g, model) for g in free}
    if params_removed is not None:
        choose = by_parameters if scope == "global" else by_uniform
        return choose(found, free, scores, model, params_removed, round_to)
    if scope == "layer":
        return {g.name: by_ratio(g, scores[g.name], ratio, round_to) for g in free}
    return by_count(free, scores, ratio, round_to)


def _scores(importance: Importance, group: Group, model: nn.Module) -> Tensor:
    """Scores of a group's choices that can be ranked."""
    scores = importance(group, model)
    if scores.shape != (group.channels,):
        raise ValueError(f"importance: got scores of {group.name} of shape {tuple(scores.shape)}, expected "
                         f"({group.channels},): one per choice of the group")
    if not scores.isfinite().all():
        raise ValueError(f"importance: the scores of {group.name} hold NaN or infinity, expected numbers; look for "
                         "them in its weights")
    return scores


def _free(found: list[Group], skip: Sequence[str]) -> list[Group]:
    """Groups that may be pruned."""
    layers = {m.layer for g in found for m in g.members}
    for name in skip:
        if not any(_inside(layer, name) for layer in layers):
            raise ValueError(f"skip: got {name!r}, expected a module of the network; {closest(name, layers)}")
    return [g for g in found if not g.fixed and not any(
        m.side == "out" and _inside(m.layer, name) for m in g.members for name in skip)]


def _inside(layer: str, module: str) -> bool:
    return layer == module or layer.startswith(f"{module}.")


def _ratios(found: list[Group], ratio: Mapping[str, float]) -> dict[str, float]:
    """Layer -> ratio becomes group -> ratio."""
    group_of = {m.layer: g for g in found for m in g.members if m.side == "out"}
    ratios: dict[str, float] = {}
    for layer, value in ratio.items():
        if layer not in group_of:
            raise ValueError(f"ratio: got {layer!r}, expected {closest(layer, group_of)}")
        group = group_of[layer]
        if group.fixed:
            raise ValueError(f"ratio: {layer} must keep its {group.channels} channels: {group.fixed}; leave it out")
        if ratios.setdefault(group.name, value) != value:
            raise ValueError(f"ratio: {layer} is coupled with {group.name}, got {value} for one and "
                             f"{ratios[group.name]} for the other, expected one ratio for both")
    return ratios
