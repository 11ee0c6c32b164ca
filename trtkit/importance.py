"""How much would a channel be missed? One score per choice of a group. Lesson 04.

Every function takes a group and the model that it was traced from, and returns one number per choice: `prune_channels`
takes out the lowest. A choice joins channels of several layers; what they are worth is added up.
"""

from collections.abc import Iterator

from trtkit.coupling import Group, Member
from trtkit.prune_cut import cut_axes
from trtkit.pytorch import Tensor, nn, torch


def l1(group: Group, model: nn.Module) -> Tensor:
    """Sum of the magnitudes of a filter's weights, in units of the group's mean.

    s_c = sum |w_c| over the filters that write choice c, divided by the mean of s, so that layers with large and with
    small weights can be ranked together. A group of zeros scores zeros.

    Args:
        group: of `coupling.groups`.
        model: the module that was traced.

    Returns:
        (channels,) float32 on the CPU, at least 0, mean 1.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1.
    """
    return _relative(_filters(group, model, lambda w: w.abs()))


def l2(group: Group, model: nn.Module) -> Tensor:
    """Length of a filter, sqrt(sum w_c^2), in units of the group's mean. Arguments and result as `l1`."""
    return _relative(_filters(group, model, lambda w: w.square()).sqrt())


def bn_gamma(group: Group, model: nn.Module) -> Tensor:
    """Magnitude of the BatchNorms' scale factors |gamma_c|, the units being the same in every layer.

    Args:
        group: of `coupling.groups`.
        model: the module that was traced.

    Returns:
        (channels,) float32 on the CPU, at least 0.

    Raises:
        ValueError: a group without a BatchNorm that has a gamma.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 3.
    """
    gammas = [(m, layer.weight) for m, layer in _layers(group, model)
              if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.weight is not None]
    if not gammas:
        raise ValueError(f"bn_gamma: the group of {group.name} has no BatchNorm with a gamma, expected one; "
                         "use importance=l1, or skip it")
    return sum(_by_choice(m, gamma.detach().abs()) for m, gamma in gammas)


def taylor(group: Group, model: nn.Module) -> Tensor:
    """First-order estimate of how much the loss changes when a choice is set to zero: |sum w * dL/dw|.

    Per layer the sum over all its parameters of a channel, then the magnitude. Behind a BatchNorm the filter's own sum
    is 0 in training, since the loss does not depend on its length; the BatchNorm's gamma and beta carry the value.

    Args:
        group: of `coupling.groups`.
        model: the module that was traced, after `loss.backward()`: gradients of a mean over some batches.

    Returns:
        (channels,) float32 on the CPU, at least 0, in units of the loss.

    Raises:
        ValueError: a parameter without a gradient (named).

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equations 5 and 8.
    """
    scores = torch.zeros(group.channels)
    for m, layer in _layers(group, model):
        change = torch.zeros(m.size)
        for key, p in layer.named_parameters(recurse=False):
            if p.grad is None:
                raise ValueError(f"taylor: {m.layer}.{key} has no gradient, expected one backward pass before; "
                                 "call loss.backward() on the model that you prune")
            axis = cut_axes(layer, p)[0]
            if axis is not None:
                change += (p * p.grad).detach().float().cpu().transpose(0, axis).reshape(m.size, -1).sum(1)
        scores += _by_choice(m, change, signed=True)
    return scores


def _layers(group: Group, model: nn.Module) -> Iterator[tuple[Member, nn.Module]]:
    """The layers with parameters for the channels of a group, on their output side."""
    for m in group.members:
        if m.side == "out":
            yield m, model.get_submodule(m.layer)


def _filters(group: Group, model: nn.Module, term) -> Tensor:
    """(channels,) sum of a term over all weights of the filters that write each choice."""
    scores = torch.zeros(group.channels)
    for m, layer in _layers(group, model):
        if m.writes:
            weight = layer.weight.detach()
            rows = term(weight.float()).transpose(0, cut_axes(layer, weight)[0]).reshape(m.size, -1)
            scores += _by_choice(m, rows.sum(1))
    return scores


def _by_choice(member: Member, values: Tensor, *, signed: bool = False) -> Tensor:
    """Sum over the positions of each choice; `signed`: the magnitude of that sum."""
    pairs = [(choice, p) for choice, positions in enumerate(member.index) for p in positions]
    choices, positions = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    sums = torch.zeros(len(member.index)).index_add_(0, choices, values.float().cpu()[positions])
    return sums.abs() if signed else sums


def _relative(scores: Tensor) -> Tensor:
    return scores / scores.mean() if scores.mean() > 0 else scores
