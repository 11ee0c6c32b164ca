"""A network's shapes without its numbers, on PyTorch's meta device. Lessons 01 and 04.

A forward there computes shapes alone, in a fraction of a second for any network of the course and without its memory.
"""

import copy

from trtkit.pytorch import Tensor, nn, torch

# isort: split
from torch.utils._pytree import tree_map_only


def on_meta(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters and buffers have shapes and no numbers; the model is not changed."""
    memo = {}
    for t in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(t, device="meta")
        memo[id(t)] = nn.Parameter(empty, requires_grad=False) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(model, memo).eval()


def inputs_on_meta(model: nn.Module, example: Tensor | tuple) -> tuple:
    """The inputs without their numbers, floats in the type of the model's parameters.

    Args:
        model: whose first floating-point parameter says the type.
        example: an input or a tuple of inputs, on any device.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tree_map_only(
        Tensor, lambda t: torch.empty(t.shape, device="meta", dtype=dtype if t.is_floating_point() else t.dtype),
        example if isinstance(example, tuple) else (example,))
