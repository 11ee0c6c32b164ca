"""Cut channels out of a network: a copy with smaller weights, and the proof that it is wired as before. Lesson 04."""

import copy
from collections.abc import Iterator, Mapping, Sequence

from trtkit.coupling import Group, closest, groups
from trtkit.coupling_rules import CONVOLUTIONS
from trtkit.pytorch import Tensor, nn, torch

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def cut_axes(layer: nn.Module, tensor: Tensor) -> tuple[int | None, int | None]:
    """Which axes of a layer's parameter or buffer are its output and its input channels.

    Args:
        layer: convolution, linear layer, BatchNorm or PReLU.
        tensor: one of its own parameters or buffers.

    Returns:
        (output axis, input axis), None for what the tensor lacks. The weight of a grouped convolution is cut along one
        axis only, since a whole group goes.
    """
    if tensor.dim() == 0 or (isinstance(layer, nn.PReLU) and tensor.numel() == 1):
        return None, None
    if tensor.dim() == 1:
        return 0, None
    if isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
        return (None, 0) if isinstance(layer, _TRANSPOSED) else (0, None)
    return (1, 0) if isinstance(layer, _TRANSPOSED) else (0, 1)


def kept_positions(found: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], list[int]]:
    """What stays along each axis of each layer.

    Args:
        found: of `coupling.groups`.
        kept: name of a group -> its choices that stay. Groups that are not named stay whole.

    Returns:
        (layer, "out" or "in") -> positions, ascending.
    """
    positions: dict[tuple[str, str], list[int]] = {}
    for group in found:
        choices = kept.get(group.name, range(group.channels)) if not group.fixed else range(group.channels)
        for m in group.members:
            positions.setdefault((m.layer, m.side), []).extend(p for c in choices for p in m.index[c])
    return {axis: sorted(p) for axis, p in positions.items()}


def apply(model: nn.Module, example: Tensor | tuple, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of a network with only the kept channels.

    Args:
        model: any module that `coupling.groups` can trace; unchanged.
        example: an input (N, C, ...) or a tuple of inputs; only shapes matter.
        kept: group's name (its first layer) -> choices that stay, ascending; of `prune.kept_channels`.

    Returns:
        The copy, in the model's mode and on its device.

    Raises:
        ValueError: a name that is no group's, a group that must stay, a choice that does not exist, nothing kept; and a
            network whose forward has sizes written into its code, so that it does not fit the smaller layers.
    """
    return cut(model, example, groups(model, example), kept)


def cut(model: nn.Module, example: Tensor | tuple, found: Sequence[Group], kept: Mapping) -> nn.Module:
    """`apply` for groups that are known already."""
    by_name = {g.name: g for g in found if g.name}
    for name, choices in kept.items():
        if name not in by_name:
            raise ValueError(f"kept: got {name!r}, expected the first layer of a group; {closest(name, by_name)}")
        group = by_name[name]
        if list(choices) != sorted(set(choices) & set(range(group.channels))) or not choices:
            raise ValueError(f"kept: {name}: got {list(choices)[:8]}..., expected some of 0 to {group.channels - 1}, "
                             "ascending, at least one")
        if group.fixed and len(choices) < group.channels:
            raise ValueError(f"kept: {name} must keep all its {group.channels} channels ({group.fixed})")
    positions = kept_positions(found, kept)
    for (layer, side), row in positions.items():
        if not row:
            raise ValueError(f"kept: {layer} would be empty, expected at least one channel on its {side}put side; "
                             "a concatenation shares its group, so keep some choices of each part")
    memo = {}                           # deepcopy takes what is in its memo for copied: the rest of the module follows
    for layer, tensor in _tensors(model, {layer for layer, _ in positions}):
        out, into = cut_axes(model.get_submodule(layer), tensor)
        smaller = tensor.detach()
        for axis, side in ((out, "out"), (into, "in")):
            if axis is not None:
                smaller = smaller.index_select(axis, torch.tensor(positions[layer, side], device=tensor.device))
        smaller = smaller.clone()
        memo[id(tensor)] = nn.Parameter(smaller, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else smaller
    pruned = copy.deepcopy(model, memo)
    for layer in dict.fromkeys(layer for layer, _ in positions):
        _resize(pruned.get_submodule(layer), {side: len(positions.get((layer, side), ())) for side in ("out", "in")})
    _prove(model, pruned, example, found, kept, positions)
    return pruned


def _tensors(model: nn.Module, layers: set[str]) -> Iterator[tuple[str, Tensor]]:
    for layer in layers:
        module = model.get_submodule(layer)
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            yield layer, tensor


def _resize(module: nn.Module, channels: dict[str, int]) -> None:
    """Bring the attributes that a layer reads in its forward, and prints, up to its new weight."""
    if isinstance(module, CONVOLUTIONS):
        if module.groups > 1:
            module.groups = module.groups * channels["in"] // module.in_channels
        module.in_channels, module.out_channels = channels["in"], channels["out"]
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = channels["in"], channels["out"]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    else:
        module.num_features = channels["out"]


def _prove(
    model: nn.Module, pruned: nn.Module, example: Tensor | tuple, found: Sequence[Group], kept: Mapping,
    positions: dict,
) -> None:
    """Trace the copy: its channels must be coupled exactly as those of the original that stayed."""
    place = {axis: {p: i for i, p in enumerate(row)} for axis, row in positions.items()}
    expected = {frozenset((m.layer, m.side, place[m.layer, m.side][p]) for m in g.members for p in m.index[c])
                for g in found for c in (range(g.channels) if g.fixed else kept.get(g.name, range(g.channels)))}
    try:
        got = {frozenset((m.layer, m.side, p) for m in g.members for p in m.index[c])
               for g in groups(pruned, example) for c in range(g.channels)}
    except ValueError as e:
        raise ValueError(f"prune: the smaller network does not run ({e}); its forward has a size written into its "
                         "code: take sizes from tensors, or skip the layers in front of it") from e
    for layer in {layer for layer, _ in positions}:
        # A grouped convolution with one group left is a plain one, whose outputs may now go one by one.
        if getattr(model.get_submodule(layer), "groups", 1) > getattr(pruned.get_submodule(layer), "groups", 1) == 1:
            parts = {choice for choice in got if any(member[0] == layer for member in choice)}
            got = got - parts | {frozenset().union(*parts)}
    if got != expected:
        layer = min(layer for layer, *_ in min(got ^ expected, key=sorted))
        raise ValueError(f"prune: {layer} would read other channels in the smaller network than in the original, "
                         "expected the same; the forward has a channel number written into its code: take it from "
                         "tensors (x.shape[1], x.chunk(2, 1)), or skip this layer")
