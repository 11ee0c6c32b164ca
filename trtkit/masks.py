"""Which weights are zero? Masks for single weights and for N of every M. Lesson 04.

magnitude   drop the fraction s of the weights with the smallest |w|, of each layer or of all together
N:M         of every M weights that follow each other along the input channels, keep the N largest: 2:4 halves a layer
A mask is a bool tensor of the weight's shape, True where the weight stays. The shapes do not change, so nothing gets
faster by a mask alone; whole channels are the business of `prune`.
Left out on purpose: biases and BatchNorms, which are small and which the weights before them need.
"""

import copy
from collections.abc import Mapping

from trtkit.pytorch import nn, torch

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SCOPES = ("layer", "global")


def magnitude_mask(model: nn.Module, sparsity: float, scope: str = "layer") -> dict[str, torch.Tensor]:
    """Masks that drop the weights of least magnitude.

    Args:
        model: its convolutions and linear layers get a mask each.
        sparsity: fraction s of the weights to drop, in [0, 1); exactly round(s * n) of n go, ties in memory order.
        scope: "layer" drops this fraction of every layer; "global" drops the smallest of the whole network, wherever
            they are.

    Returns:
        Bool tensors by the parameter's name ("stem.0.weight"), of the weight's shape, True where it stays.

    Raises:
        ValueError: sparsity outside [0, 1), another scope, a model without such a layer, or weights that are NaN.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: got {sparsity}, expected a fraction in [0, 1); 0.5 drops every second weight")
    if scope not in SCOPES:
        raise ValueError(f"scope: got {scope!r}, expected one of {SCOPES}")
    weights = {f"{name}.weight" if name else "weight": layer.weight.detach()
               for name, layer in model.named_modules() if isinstance(layer, WEIGHTED)}
    if not weights:
        raise ValueError(f"model: got {type(model).__name__} without a convolution or a linear layer, expected at "
                         "least one")
    if broken := [name for name, w in weights.items() if w.isnan().any()]:
        raise ValueError(f"{broken[0]}: got NaN, expected numbers; the training diverged")
    if scope == "layer":
        return {name: _without_smallest(w.abs(), sparsity) for name, w in weights.items()}
    together = _without_smallest(torch.cat([w.abs().flatten() for w in weights.values()]), sparsity)
    parts = together.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for part, (name, w) in zip(parts, weights.items(), strict=True)}


def _without_smallest(magnitude: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Sorted, not compared with a threshold: equal magnitudes must not change how many stay."""
    drop = round(sparsity * magnitude.numel())
    mask = torch.ones(magnitude.numel(), dtype=torch.bool, device=magnitude.device)
    mask[magnitude.flatten().argsort(stable=True)[:drop]] = False
    return mask.view(magnitude.shape)


def nm_mask(weight: torch.Tensor, n: int = 2, m: int = 4) -> torch.Tensor:
    """The mask that keeps the N largest of every M weights along the input channels.

    Sparse tensor cores read a weight matrix whose rows run along the input channels, so the groups lie there: M
    neighbouring input channels, for each output channel and each position of the kernel on its own.

    Args:
        weight: (C_out, C_in, ...) float, of a convolution or a linear layer; C_in counts what one group sees.
        n, m: keep `n` of `m`, 1 <= n < m; C_in must be a multiple of m.

    Returns:
        Bool, shape of `weight`; exactly n of each group are True, and they hold at least n/m of its magnitude.

    Raises:
        ValueError: n or m out of range, a weight without input channels, or C_in that is no multiple of m.

    Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3.
    """
    groups = _grouped(weight, n, m)                         # (G, m, R)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(n, dim=1).indices, True)
    shape = (weight.shape[1], weight.shape[0], *weight.shape[2:])
    return mask.view(shape).transpose(0, 1).contiguous()


def keeps_nm(weight: torch.Tensor, n: int = 2, m: int = 4) -> bool:
    """Whether a weight has at most N numbers other than zero in every M along its input channels.

    Args:
        weight, n, m: of `nm_mask`. A C_in that is no multiple of m cannot keep the pattern.

    Raises:
        ValueError: n or m out of range, or a weight without input channels.
    """
    if weight.ndim >= 2 and m > 0 and weight.shape[1] % m:
        return False
    return bool(((_grouped(weight, n, m) != 0).sum(1) <= n).all())


def permute_channels(weight: torch.Tensor, n: int = 2, m: int = 4) -> torch.Tensor:
    """An order of the input channels in which `nm_mask` keeps more magnitude.

    Four large weights side by side lose two; spread over other groups they all stay. Starting from the order as it is,
    the two channels of different groups whose exchange gains most change places, until none gains anything. The order
    costs nothing at run time when the layers that write these channels write them so.

    Args:
        weight, n, m: of `nm_mask`. The search takes C_in^2 * C_out * k^2 steps: seconds for a thousand channels.

    Returns:
        (C_in,) int64 permutation p: `weight[:, p]` keeps at least as much magnitude as `weight`.

    Raises:
        ValueError: see `nm_mask`.

    Source: Pool and Yu 2021, "Channel Permutations for N:M Sparsity", section 4, greedy channel swaps.
    """
    columns = _grouped(weight, n, m).flatten(0, 1).double()     # (C_in, R) magnitudes, one row per channel
    order = torch.arange(len(columns), device=weight.device).view(-1, m)
    kept = torch.stack([_kept_with(columns, group, n) for group in order])              # (G, m, C_in)
    while True:
        now = kept.flatten(0, 1).gather(1, order.view(-1, 1)).view(-1)                  # of each place's group
        swapped = kept.flatten(0, 1)[:, order.view(-1)]         # [a, b]: a's group, with b's channel in a's place
        gain = swapped + swapped.T - now[:, None] - now[None, :]        # never above 0 inside of one group
        best = int(gain.argmax())
        a, b = divmod(best, len(now))
        if gain.view(-1)[best] <= 1e-9 * now.sum():             # rounding must not keep the search going
            return order.view(-1).clone()
        order.view(-1)[[a, b]] = order.view(-1)[[b, a]]
        for changed in (a // m, b // m):
            kept[changed] = _kept_with(columns, order[changed], n)


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a model with the weights outside its masks set to zero.

    Args:
        model: unchanged.
        masks: bool tensors by the parameter's name, True where a weight stays.

    Raises:
        ValueError: a name that is no parameter, or a mask of another shape or type.
    """
    masked = copy.deepcopy(model)
    parameters = dict(masked.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"masks: got {name!r}, expected a parameter's name, such as {next(iter(parameters))!r}")
        weight = parameters[name]
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise ValueError(f"masks: {name}: got {mask.dtype} {tuple(mask.shape)}, expected torch.bool "
                             f"{tuple(weight.shape)}")
        weight.data.masked_fill_(~mask.to(weight.device), 0)    # not times 0, which leaves -0 and keeps NaN
    return masked


def _grouped(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Magnitudes as (groups, m, C_out * k * k): axis 1 is what N:M compares."""
    if not 1 <= n < m:
        raise ValueError(f"n, m: got {n}:{m}, expected 1 <= n < m; sparse tensor cores take 2:4")
    if weight.ndim < 2 or weight.shape[1] % m or not weight.numel():
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (C_out, C_in, ...) with C_in a multiple "
                         f"of {m}; leave other layers dense, as the first one with its 3 colours")
    return weight.detach().abs().transpose(0, 1).reshape(weight.shape[1] // m, m, -1)


def _kept_with(columns: torch.Tensor, group: torch.Tensor, n: int) -> torch.Tensor:
    """(m, C_in): what a group keeps if channel c stood at its i-th place, but for a constant of that place.

    With t_1 >= t_2 >= ... the other places' magnitudes in one row, the n largest of t and x add up to
    t_1 + ... + t_(n-1) + max(t_n, x). Exchanges at one place are compared, so the first terms cancel.
    """
    found = []
    for i in range(len(group)):
        others = columns[torch.cat([group[:i], group[i + 1 :]])]
        found.append(torch.maximum(others.topk(n, dim=0).values[-1], columns).sum(1))
    return torch.stack(found)
