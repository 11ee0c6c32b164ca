"""Follow every channel through one run of a module. Lesson 04.

A second tensor of integers, the identities of `coupling_ids`, goes through the network beside each activation: what
only moves numbers about (view, permute, cat, chunk, flatten) moves the identities by the very same operator, and what
combines channels (an addition, a mean over both) binds them. What a layer reads at one position is then the set of
channels that must go with it.

Why a run below PyTorch's dispatcher and no `torch.fx`: the forward is ordinary Python, so YOLOv3's check of its input's
shape is no obstacle, in-place operators need no care, and an operator has one name whoever calls it. The run is on the
meta device: shapes without numbers, a tenth of a second for any network of the course. What asks for a number there
(`if x.sum() > 0`) cannot be followed and says so.
Source: the dependency graph of Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", section 3.
"""

from trtkit.pytorch import Tensor, nn, torch

# isort: split
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trtkit.coupling_ids import Identities
from trtkit.coupling_rules import rule_of
from trtkit.meta import inputs_on_meta, on_meta

INPUT, OUTPUT = "input of the network", "output of the network"
_NUMBERS = {getattr(torch.ops.aten, name) for name in
            ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")}


class _Follow(TorchDispatchMode):
    """Hands each operator of the run to its rule."""

    def __init__(self, seen: Identities):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        seen, kwargs = self.seen, kwargs or {}
        if func.overloadpacket in _NUMBERS:
            raise ValueError(f"trace: {seen.here()}: {func} reads a number while the network runs, expected a forward "
                             "that depends on shapes only; take the branch on data out of forward, or trace the parts")
        if not any(seen.knows(x) for x in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        rule = rule_of(func)
        if rule is not None:
            out = func(*args, **kwargs)
            rule(seen, func, args, out)
            return out
        with self:                      # an operator made of others is followed through those
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            raise ValueError(f"trace: {seen.here()}: {func} works on channels and has no rule; expected convolutions, "
                             "linear layers, BatchNorm, elementwise operators, pooling, and what moves channels about")
        return out


def trace(model: nn.Module, example: Tensor | tuple) -> Identities:
    """Run the module once on the meta device, in eval mode, and follow its channels.

    Args:
        model: any module; it is not changed.
        example: an input (N, C, ...) or a tuple of inputs, on any device; its numbers do not matter.

    Returns:
        What was seen.

    Raises:
        ValueError: a module that cannot be traced (its forward depends on numbers, or fails), tied weights, an operator
            on channels that has no rule, outputs that are not tensors in tuples, lists or dicts. Each names the layer.
    """
    _check_untied(model)
    copied = on_meta(model)
    seen = Identities(copied)
    for name, module in seen.modules.items():
        module.register_forward_pre_hook(lambda *_, name=name: setattr(seen, "where", [*seen.where, name]))
        module.register_forward_hook(lambda *_: setattr(seen, "where", seen.where[:-1]))
    inputs = inputs_on_meta(model, example)
    for x in tree_leaves(inputs):
        if isinstance(x, Tensor) and x.dim() > 1 and x.is_floating_point():
            seen.put(x, seen.constant(x.shape, 1, INPUT), branch=-1)
    # Inference mode lets operators through whole (linear, chunk, flatten), not in the pieces that autograd needs.
    with torch.inference_mode():
        try:
            with _Follow(seen):
                outputs = copied(*inputs)
        except (RuntimeError, NotImplementedError, TypeError) as e:
            raise ValueError(f"trace: {seen.here()} does not run on shapes alone ({str(e).splitlines()[0]}), expected "
                             "a forward that runs on the meta device: an input that fits, tensors as parameters or "
                             "buffers, no step that depends on numbers") from e
    for y in tree_leaves(outputs):
        if seen.knows(y):
            seen.fix(seen.thin(y), OUTPUT)
        elif not isinstance(y, Tensor | int | float | str | None):
            raise ValueError(f"trace: the network returns {type(y).__name__}, expected tensors in tuples, lists, dicts")
    return seen


def _check_untied(model: nn.Module) -> None:
    owners = {}
    for name, module in model.named_modules():
        for key, p in module.named_parameters(recurse=False):
            if id(p) in owners:
                raise ValueError(f"trace: {owners[id(p)]} and {name}.{key} are one tied parameter, expected each layer "
                                 "to have its own; pruning one would cut the other. Give one a copy: "
                                 f"{name}.{key} = nn.Parameter({name}.{key}.detach().clone())")
            owners[id(p)] = f"{name}.{key}".lstrip(".")
