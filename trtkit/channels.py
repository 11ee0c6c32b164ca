"""The network of a file whose channels were pruned: YOLOv3 with other numbers of channels. Lesson 04.

Pruning changes nothing but shapes, so a weights file tells them all. What it does not tell is whether they fit: each
convolution must read as many channels as the layers before it give, and a residual block return as many as it gets.
"""

import copy

import torch
from torch import nn

from trtkit.heads import ANCHORS_PER_HEAD
from trtkit.models import Residual, YOLOv3


def reshaped(network: YOLOv3, shapes: dict[str, tuple[int, ...]]) -> YOLOv3:
    """A network with other numbers of channels, as pruning leaves it, without numbers: on the device "meta".

    Args:
        network: gives everything else, kernels and strides among them.
        shapes: by name in `state_dict`, those of the convolutions' weights: (C_out, C_in, k, k).

    Returns:
        A new network, whose layers fit each other.

    Raises:
        ValueError: no shape for a convolution, one with another kernel or without channels, or one that does not fit
            the layer before it or the tensor that its result is added to (named).
    """
    copied = copy.deepcopy(network).to("meta")
    for name, conv in [(n, m) for n, m in copied.named_modules() if isinstance(m, nn.Conv2d)]:
        shape, kernel = shapes.get(f"{name}.weight", ()), tuple(conv.kernel_size)
        if len(shape) != 4 or shape[2:] != kernel or 0 in shape:
            raise ValueError(f"weights: {name}.weight: got {shape or 'nothing'}, expected (C_out, C_in, {kernel[0]}, "
                             f"{kernel[1]}) with at least one channel; another network's file?")
        c_out, c_in = shape[:2]
        block, _, place = name.rpartition(".")
        parent, bias = copied.get_submodule(block), conv.bias is not None
        with torch.device("meta"):
            setattr(parent, place, nn.Conv2d(c_in, c_out, kernel, conv.stride, conv.padding, bias=bias))
            if isinstance(parent, nn.Sequential):
                parent[1] = nn.BatchNorm2d(c_out, parent[1].eps, parent[1].momentum)
    _check_channels(copied)
    return copied.train(network.training)


def _check_channels(network: YOLOv3) -> None:
    """Follow the numbers of channels along `YOLOv3.forward`, without running it, and refuse the first that is wrong."""

    def through(name: str, c_in: int) -> int:
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != c_in:
                raise ValueError(f"weights: {name}.weight: got {layer.in_channels} input channels, expected {c_in}, "
                                 "which the layers before it give; prune coupled layers together")
            return layer.out_channels
        if isinstance(layer, Residual):
            c_out = through(f"{name}.expand.0", through(f"{name}.reduce.0", c_in))
            if c_out != c_in:
                raise ValueError(f"weights: {name}.expand.0.weight: got {c_out} output channels, expected {c_in}, to "
                                 "be added to the block's input; prune coupled layers together")
            return c_in
        for child, module in layer.named_children():        # a Sequential; its BatchNorms follow its convolutions
            if isinstance(module, nn.Conv2d | nn.Sequential | Residual):
                c_in = through(f"{name}.{child}", c_in)
        return c_in

    c, taps = through("stem", 3), []
    for i in range(len(network.stages)):
        c = through(f"stages.{i}", c)
        taps.append(c)
    for head, lateral, tap in (("head32", "", 0), ("head16", "lateral16", taps[3]), ("head8", "lateral8", taps[2])):
        if lateral:
            c = through(lateral, c) + tap
        c = through(f"{head}.neck", c)
        c_out = through(f"{head}.predict", through(f"{head}.expand", c))
        if c_out != (expected := ANCHORS_PER_HEAD * (5 + network.num_classes)):
            raise ValueError(f"weights: {head}.predict.weight: got {c_out} output channels, expected {expected}, of "
                             f"{network.num_classes} classes")
