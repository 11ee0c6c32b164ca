"""What each operator of a PyTorch module costs, as `costs` says it of a graph. Lesson 01.

The module runs once on the meta device, and every operator is seen below PyTorch's dispatcher, where whatever a layer
is called it has become a convolution, a matrix product, or something that only moves numbers. Shapes say the rest.
Left out on purpose: kernels that never write what lies between (fused attention); `costs.by_layer` fuses afterwards.
"""

from collections.abc import Iterable, Sequence

from trtkit.meta import inputs_on_meta, on_meta  # isort: skip, first: it says what to do where PyTorch is missing

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trtkit.costs import Cost, by_layer
from trtkit.roofline import conv_macs, matmul_macs

OUTSIDE = "forward"                     # name of what the outermost module does itself
_aten = torch.ops.aten
# Which argument is the left and which the right factor.
_PRODUCTS = {_aten.mm: (0, 1), _aten.addmm: (1, 2), _aten.bmm: (0, 1), _aten.baddbmm: (1, 2), _aten.mv: (0, 1),
             _aten.addmv: (1, 2), _aten.dot: (0, 1)}



def costs(model: nn.Module, example: Tensor | tuple) -> list[Cost]:
    """Cost of every operator that computes, in the order of execution; views of a tensor cost nothing.

    Args:
        model: any module whose forward needs shapes only; it is not changed.
        example: an input (N, ...) or a tuple of inputs, on any device; its numbers do not matter.

    Returns:
        One per operator: the name is that of the module that called it with the operator behind a slash, "stem.0" and
        convolution making "stem.0/convolution". Running statistics count as parameters: they are stored and read.

    Raises:
        ValueError: a forward that does not run on shapes alone, or an operator that is not PyTorch's own: nobody here
            knows what its kernel multiplies.
    """
    copied = on_meta(model)
    inputs = inputs_on_meta(model, example)
    seen = _Count(copied)
    for name, module in copied.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: seen.where.append(name))
        module.register_forward_hook(lambda *_: seen.leave())
    # Without gradients, but not in inference mode: there operators arrive whole, here in the few that they are made of.
    with torch.no_grad():
        try:
            with seen:
                copied(*inputs)
        except (RuntimeError, NotImplementedError, TypeError) as e:
            raise ValueError(f"costs: {seen.where[-1] or OUTSIDE} does not run on shapes alone "
                             f"({str(e).splitlines()[0]}), expected a forward that runs on the meta device: an input "
                             "that fits, no step that depends on numbers; or export it and count the graph") from e
    return seen.found


def by_module(parts: Sequence[Cost]) -> dict[str, Cost]:
    """Cost of each module that computes something itself, as if its operators were one kernel.

    Args:
        parts: of `costs`.
    """
    calls: dict[str, list[str]] = {}
    for part in parts:
        calls.setdefault(part.name.rpartition("/")[0], []).append(part.name)
    return by_layer(parts, calls)


class _Count(TorchDispatchMode):
    """Adds up operators as they run."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.where = [""]                       # names of the modules that are running
        self.found: list[Cost] = []
        self.names: dict[str, int] = {}
        self.kept: list[Tensor] = []            # a storage that is freed would give its number to another
        self.tensors: dict[int, str] = {}       # storage -> name of what was written there last
        self.constants = {_storage(t) for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [y for y in tree_leaves(out) if isinstance(y, Tensor)]
        self.kept += [*read, *written]
        in_place = func._schema.is_mutable
        if not any(_bytes(y) for y in written) or (
                not in_place and {_storage(y) for y in written} <= {_storage(x) for x in read}):
            return out                                          # nothing computed, or a view
        where = self.where[-1] or OUTSIDE
        if func.namespace not in ("aten", "prims"):
            raise ValueError(f"costs: {where}: got {func}, expected PyTorch's own operators; what a foreign kernel "
                             "multiplies is not known here: count the rest, and add this layer by hand")
        name = self._new(f"{where}/{func.overloadpacket.__name__.strip('_')}")
        constants = {_storage(x): x for x in read if _storage(x) in self.constants}
        inputs: dict[str, int] = {}
        for x in {id(x): x for x in read if _storage(x) not in self.constants}.values():
            if _storage(x) not in self.tensors:                 # nobody here wrote it
                self.tensors[_storage(x)] = self._new("input")
            tensor = self.tensors[_storage(x)]
            inputs[tensor] = inputs.get(tensor, 0) + _bytes(x)
        for i, y in enumerate(written):
            self.tensors[_storage(y)] = f"{name}:{i}"
        self.found.append(Cost(
            name=name,
            op=func.overloadpacket.__name__,
            macs=_macs(func.overloadpacket, args, out),
            weight_bytes=sum(_bytes(x) for x in constants.values()),
            inputs=inputs,
            outputs={f"{name}:{i}": _bytes(y) for i, y in enumerate(written)},
            params=sum(_bytes(x) // x.element_size() for x in constants.values()),
        ))
        return out

    def leave(self) -> None:
        """A module has run. (What a hook returns would replace its output.)"""
        self.where.pop()

    def _new(self, name: str) -> str:
        count = self.names[name] = self.names.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _bytes(x: Tensor) -> int:
    """A tensor that was expanded shows numbers more than once, and reads them once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _macs(op, args: Sequence, out) -> int:
    if op in (_aten.convolution, _aten._convolution):
        x, w, transposed, groups = args[0].shape, args[1].shape, args[6], args[8]
        pixels = x if transposed else out.shape
        c_in, c_out = (w[0], w[1] * groups) if transposed else (w[1] * groups, w[0])
        return conv_macs(c_in, c_out, (_product(w[2:]), 1), (_product(pixels[2:]), 1), batch=x[0], groups=groups)
    if op in _PRODUCTS:
        left, right = (args[i].shape for i in _PRODUCTS[op])
        columns = right[-1] if len(right) > 1 else 1
        return matmul_macs(_product(left[:-1]), left[-1], columns)
    return 0


def _product(numbers: Iterable[int]) -> int:
    return int(np.prod(list(numbers), dtype=np.int64))
