"""What each kind of operator does to the identities of channels. Lesson 04.

Six kinds cover the networks of the course. PyTorch itself knows two of them: an operator tagged `pointwise`, and one
that is a view. An operator that is none of these and is made of others is taken apart; what is left is an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from trtkit.coupling_ids import Identities, along

aten = torch.ops.aten

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PER_CHANNEL = (nn.modules.batchnorm._NormBase, nn.PReLU)
_READERS = {aten.linear, aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution,
            aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d}
_SCALES = {aten.batch_norm, aten.instance_norm, aten.prelu}
_WINDOWS = ("max_pool", "avg_pool", "adaptive_", "upsample_", "reflection_pad", "replication_pad")
_REDUCTIONS = {aten.mean, aten.sum, aten.amax, aten.amin, aten.softmax, aten.log_softmax}
_NORMS = {aten.layer_norm, aten.group_norm}
_MOVES = {aten.cat, aten.stack, aten.clone, aten._unsafe_view, aten.pixel_shuffle, aten.pixel_unshuffle, aten.flip,
          aten.roll, aten.channel_shuffle, aten.native_channel_shuffle}
_RESHAPES = {aten.view, aten._unsafe_view, aten.reshape, aten.unflatten}
_UNTAGGED = {aten.hardswish, aten.mish, aten.leaky_relu}    # elementwise too; 2.11 tags none of them
_SAME = {aten.to, aten._to_copy, aten.alias, aten.detach, aten.contiguous, aten.zeros_like, aten.ones_like}


def rule_of(func: torch._ops.OpOverload) -> Callable | None:
    """The function (identities, operator, arguments, result) that carries identities over; None if there is none."""
    op = func.overloadpacket
    table = ((_READERS, _reader), (_SCALES, _scale), (_REDUCTIONS, _mixed), (_NORMS, _mixed), (_SAME, _same),
             (_MOVES, _move), ({aten.constant_pad_nd}, _pad))
    for ops, rule in table:
        if op in ops:
            return rule
    if op._qualified_op_name.removeprefix("aten::").removeprefix("_").startswith(_WINDOWS):
        return _window
    if _is_pointwise(func):
        return _pointwise
    return _move if func.is_view else None


def _is_pointwise(func: torch._ops.OpOverload) -> bool:
    """Elementwise? An in-place form, `hardtanh_`, is what the plain one is; not all of them have its tag."""
    name = func.overloadpacket._qualified_op_name.removeprefix("aten::").removesuffix("_")
    plain = getattr(aten, name, func.overloadpacket)
    return plain in _UNTAGGED or torch.Tag.pointwise in {*func.tags, *getattr(plain, func._overloadname, func).tags}


def _layer(seen: Identities, tensor: Tensor, func: object, kinds: tuple[type, ...]) -> tuple[str, nn.Module]:
    """Name and module of the layer that a weight belongs to."""
    name, _ = seen.owner.get(id(tensor), ("", ""))
    if not isinstance(seen.modules[name], kinds):
        raise ValueError(f"trace: {seen.here()}: {func} has a weight that is no torch.nn layer's own, expected one of "
                         f"{', '.join(k.__name__.strip('_') for k in kinds)}; use the module, remove parametrizations")
    return name, seen.modules[name]


def _collapse(seen: Identities, x: Tensor, axis: int) -> Tensor:
    """(C,) identities along one axis; what differs along the others is bound, since all of it is used at once."""
    ids = seen.thin(x)
    axis %= x.dim()
    others = [d for d in range(x.dim()) if d != axis and ids.shape[d] > 1]
    for d in others:
        seen.tie(ids, ids.narrow(d, 0, 1))
        ids = ids.narrow(d, 0, 1)
    return ids.expand([x.shape[d] if d == axis else 1 for d in range(x.dim())]).flatten()


def _reader(seen: Identities, func: object, args: tuple, out: Tensor) -> None:
    """Convolution or linear layer: reads channels and writes new ones."""
    x, weight = args[:2]
    name, module = _layer(seen, weight, func, (*CONVOLUTIONS, nn.Linear))
    convolution = isinstance(module, CONVOLUTIONS)
    axis = x.dim() - weight.dim() + 1 if convolution else x.dim() - 1
    read = seen.see(name, "in", _collapse(seen, x, axis))
    if (name, "out") not in seen.axes:
        seen.axes[name, "out"] = seen.fresh(out.shape[axis])
    written = seen.axes[name, "out"]
    groups = module.groups if convolution else 1
    if groups > 1:          # a group of a convolution is the smallest piece that can go: its inputs with its outputs
        first = read.view(groups, -1)[:, :1]
        seen.tie(read.view(groups, -1), first)
        seen.tie(written.view(groups, -1), first)
    else:
        seen.step("read", read, -1, (seen.branch(x),), layer=name)
    branch = len(seen.steps) if groups == 1 else seen.branch(x)
    seen.step("write" if groups == 1 else "scale", written, branch, (), layer=name)
    seen.put(out, along(written, axis, out.dim()), branch)


def _scale(seen: Identities, func: object, args: tuple, out: Tensor) -> None:
    """BatchNorm, InstanceNorm, PReLU: parameters of their own for each channel."""
    x = args[0]
    ids = _collapse(seen, x, 1)
    own = [t for t in args[1:5] if isinstance(t, Tensor)]
    if own and not (func.overloadpacket is aten.prelu and own[0].numel() == 1):     # a PReLU may have one slope for all
        name, _ = _layer(seen, own[0], func, PER_CHANNEL)
        seen.see(name, "out", ids)
        seen.step("scale", ids, seen.branch(x), (), layer=name)
    seen.put(out, along(ids, 1, out.dim()), seen.branch(x))


def _window(seen: Identities, func: object, args: tuple, out: Tensor | tuple) -> None:
    """Pooling, upsampling, padding at the border: each channel by itself."""
    x = args[0]
    for y in tree_leaves(out):
        seen.put(y, along(_collapse(seen, x, 1), 1, y.dim()), seen.branch(x))


def _mixed(seen: Identities, func: object, args: tuple, out: Tensor) -> None:
    """Means, sums, softmax, LayerNorm, GroupNorm: what lies along the axes that are combined goes together."""
    x, op = args[0], func.overloadpacket
    if op is aten.layer_norm:
        axes = list(range(x.dim() - len(args[1]), x.dim()))
    elif op is aten.group_norm or len(args) < 2 or args[1] in (None, []):
        axes = list(range(x.dim()))
    else:
        axes = [a % x.dim() for a in ([args[1]] if isinstance(args[1], int) else args[1])]
    ids = seen.thin(x)
    for d in axes:
        seen.tie(ids, ids.narrow(d, 0, 1))
        ids = ids.narrow(d, 0, 1)
    if out.dim() < x.dim():
        ids = ids.squeeze(tuple(axes))
    seen.put(out, ids, seen.branch(x))


def _same(seen: Identities, func: object, args: tuple, out: Tensor) -> None:
    """Another type or memory layout, the same channels."""
    seen.put(out, seen.thin(args[0]), seen.branch(args[0]))


def _pad(seen: Identities, func: object, args: tuple, out: Tensor) -> None:
    """Zeros at the border of a channel are part of it; zeros behind the last channel are channels that must stay."""
    x, pad = args[:2]
    ids = seen.thin(x)
    for i in range(len(pad) // 2):
        axis, (low, high) = x.dim() - 1 - i, pad[2 * i: 2 * i + 2]
        if ids.shape[axis] > 1 and (low or high):
            why = f"padding that {seen.here()} writes between channels"
            ends = [seen.constant((n,), 0, why) for n in (low, high)]
            shape = [1 if d != axis else -1 for d in range(x.dim())]
            low_ids, high_ids = (e.view(shape).expand([n if d != axis else -1 for d, n in enumerate(ids.shape)])
                                 for e in ends)
            ids = torch.cat([low_ids, ids, high_ids], axis)
    seen.put(out, ids, seen.branch(x))


def _pointwise(seen: Identities, func: object, args: tuple, out: Tensor) -> None:
    """Activations pass; an addition or product binds the channels that it adds or multiplies."""
    tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
    known = [x for x in tensors if seen.knows(x)]
    ids = {id(x): seen.thin(x)[(None,) * (out.dim() - x.dim())] for x in known}
    varies = [d for d in range(out.dim()) if any(i.shape[d] > 1 for i in ids.values())]

    def shape(x: Tensor) -> list[int]:
        return [1] * (out.dim() - x.dim()) + list(x.shape)

    for x in tensors:
        if not seen.knows(x) and any(shape(x)[d] > 1 for d in varies):
            what = ".".join(seen.owner.get(id(x), ("a constant",))).lstrip(".")
            raise ValueError(f"trace: {seen.here()}: {func} uses {what} of shape {tuple(x.shape)} along the channels, "
                             "expected one number for all, or a layer that can be cut; fold it into the convolution")
    # One number per image or pixel that is spread over all channels belongs to none of them, so it has to stay.
    partners = [x for x in known if not any(shape(x)[d] == 1 < out.shape[d] for d in varies)]
    for x in known:
        if not any(x is y for y in partners):
            seen.fix(seen.thin(x), f"{seen.here()} spreads it over other channels")
    partners = partners or known
    for x in partners[1:]:
        seen.tie(ids[id(partners[0])], ids[id(x)])
    branches = tuple(dict.fromkeys(seen.branch(x) for x in partners))
    if len(branches) > 1:
        what = func.overloadpacket.__name__.strip("_")
        seen.step("join", ids[id(partners[0])], min(branches), branches, what=what)
    seen.put(out, torch.broadcast_tensors(*(ids[id(x)] for x in partners))[0], min(branches))


def _move(seen: Identities, func: object, args: tuple, out: Tensor | list[Tensor]) -> None:
    """What moves numbers about moves the identities: the same operator on both."""
    tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
    known = [x for x in tensors if seen.knows(x)]
    moved = tree_leaves(func(*tree_map(lambda x: _identities(seen, x) if isinstance(x, Tensor) else x, args)))
    branches = tuple(dict.fromkeys(seen.branch(x) for x in known))
    joined = func.overloadpacket is aten.cat and len(tensors) > 1
    for y, ids in zip(tree_leaves(out), moved, strict=True):
        seen.put(y, ids, len(seen.steps) if joined else branches[0])
    pieces = [seen.thin(y) for y in tree_leaves(out)]
    before = torch.cat([seen.thin(x).flatten() for x in known]).unique()
    if joined:
        seen.step("concat", pieces[0], len(seen.steps), branches, what="concat")
    if func.overloadpacket is aten.chunk and len({p.shape for p in pieces}) == 1:
        for ids in pieces[1:]:          # halves stay halves only if each of them loses as many channels
            seen.tie(pieces[0], ids)
    elif any(len(ids.unique()) < len(before) for ids in pieces):
        seen.fix(before, f"{seen.here()} cuts its channels at places written into its code ({func})")
    if func.overloadpacket in _RESHAPES and len(_varying(pieces[0])) > len(_varying(seen.thin(known[0]))):
        # An axis of channels that was split in two, as a shuffle does: each part has to lose the same.
        seen.tie(pieces[0], pieces[0].narrow(_varying(pieces[0])[0], 0, 1))


def _identities(seen: Identities, x: Tensor) -> Tensor:
    """Identities of an operand; values that no layer wrote have to stay."""
    if seen.knows(x):
        return seen.full(x).contiguous()        # a view of a new shape needs them one behind the other
    return seen.constant(x.shape, min(1, x.dim() - 1), f"constants that {seen.here()} joins on").expand(x.shape)


def _varying(ids: Tensor) -> list[int]:
    return [d for d, n in enumerate(ids.shape) if n > 1]
