"""darknet's files in PyTorch: any of its three YOLOv3 networks, and `models.YOLOv3` to and from .weights. Lesson 10.

    network = darknet.network(darknet_cfg.read("yolov3.cfg"))       or darknet_cfg.parse(darknet_nets.yolov3())
    darknet.load(network, "yolov3.weights")                         or into models.YOLOv3(80): the same convolutions
    heads = network.eval()(x_nchw)

Conventions of darknet, and where they are kept:
BatchNorm       (x - mean) / (sqrt(var) + 1e-6) in darknet's CPU program, sqrt(var + 1e-6) in OpenCV, sqrt(var + 1e-5)
                in darknet's CUDA program, in Alexey Bochkovskiy's fork and here. Trained was with CUDA's. Over 75
                layers it matters: the CPU program's heads are off by 1e-4 of their size with variances near 1, by
                1e-2 near 0.01, by 1e-3 for the kit's trained detector. `darknet_weights.as_cpu_program` makes them
                equal, to 1e-6, for a comparison.
letterbox       the image keeps its aspect ratio and is centred on grey 0.5 (`yolo.letterbox`); the fork stretches it.
boxes           bx = (sigmoid(tx) + cx) / grid width, bw = pw * exp(tw) / input width; a score is objectness times the
                class's sigmoid, 0 unless above the threshold (`yolo.decode`, in pixels instead of fractions).
do_nms_sort     once per class, boxes sorted by that class's score: the best one sets to 0 the score, in that class
                alone, of all whose IoU with it is above 0.45; a box may keep other classes (`yolo.nms`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trtkit import darknet_cfg, darknet_layers, darknet_nets, darknet_weights
from trtkit.darknet_weights import Convolution, Header
from trtkit.models import YOLOv3


class Darknet(nn.Module):
    """A network built from a cfg.

    Args:
        layers: of `darknet_layers.layers`.

    Input: (N, C, H, W) float in [0, 1], H and W multiples of 32, of any size: the cfg's is only the table's.
    Output: the raw heads, one per [yolo] layer in the order of the file, (N, A * (5 + K), H / stride, W / stride);
    `darknet_layers.heads(network.layers)` has strides, anchors and classes.
    """

    def __init__(self, layers: Sequence[darknet_layers.Layer]):
        super().__init__()
        self.layers = tuple(layers)
        self.steps = nn.ModuleList(_step(layer) for layer in layers)

    def forward(self, x_nchw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        outputs = self.outputs(x_nchw)
        return tuple(outputs[layer.index] for layer in self.layers if layer.kind == "yolo")

    def outputs(self, x_nchw: torch.Tensor) -> list[torch.Tensor]:
        """The output of every layer, as darknet numbers them; that of a [yolo] layer is the raw head.

        Raises:
            ValueError: another number of channels, or sides that are no multiples of 32.
        """
        channels = self.layers[0].in_chw[0]
        if x_nchw.ndim != 4 or x_nchw.shape[1] != channels or x_nchw.shape[-1] % 32 or x_nchw.shape[-2] % 32:
            raise ValueError(f"x_nchw: got {tuple(x_nchw.shape)}, expected (N, {channels}, H, W), H and W multiples of "
                             "32; use yolo.letterbox")
        made: list[torch.Tensor] = []
        for layer, step in zip(self.layers, self.steps, strict=True):
            inputs = [made[s] if s >= 0 else x_nchw for s in layer.sources]
            match layer.kind:
                case "shortcut":
                    made.append(inputs[0] + inputs[1])
                case "route":
                    made.append(torch.cat(inputs, 1))
                case _:
                    made.append(step(inputs[0]))
        return made


def network(sections: Sequence[darknet_cfg.Section]) -> Darknet:
    """The module of a cfg with fresh weights.

    Raises:
        ValueError: see `darknet_layers.layers`.
    """
    return Darknet(darknet_layers.layers(sections))


def cfg_of(model: YOLOv3, *, size: int = 416) -> str:
    """The cfg text of a YOLOv3 of any width and number of classes, also of one whose channels were pruned.

    Args:
        model: its channels become `filters`.
        size: [net]'s width and height, pixels.
    """
    sections = darknet_cfg.parse(darknet_nets.yolov3(model.num_classes, size=size))
    filters = iter([c.c_out for c in convolutions(model)])
    return darknet_cfg.text([
        darknet_cfg.Section(s.kind, {**s.values, "filters": next(filters)}) if s.kind == "convolutional" else s
        for s in sections
    ])


def load(model: nn.Module, path: Path) -> Header:
    """Fill a network from a .weights file, which must come out even.

    Args:
        model: a `Darknet` or a `models.YOLOv3`, whose convolutions are in darknet's order; it keeps its device, type
            and mode.
        path: of the file.

    Returns:
        The file's header, for `save`.

    Raises:
        FileNotFoundError, ValueError: see `darknet_weights.read`; the model is then as it was.
    """
    header, arrays = darknet_weights.read(path, convolutions(model))
    fill(model, arrays)
    return header


def save(model: nn.Module, path: Path, header: Header | None = None) -> None:
    """Write a network's weights as darknet reads them: FP32, header version 0.2 unless another is given."""
    darknet_weights.write(path, arrays(model), header)


def convolutions(model: nn.Module) -> list[Convolution]:
    """What each convolution of a network takes from a file, in darknet's order; named as in the module.

    Raises:
        ValueError: a convolution that darknet's files have no place for: with groups, or not square.
    """
    found = []
    for name, conv, norm in _pairs(model):
        if conv.groups != 1 or conv.kernel_size[0] != conv.kernel_size[1] or (norm is None) == (conv.bias is None):
            raise ValueError(f"{name}: got {conv}, expected a square kernel, one group, and either BatchNorm or a bias")
        found.append(Convolution(name, conv.out_channels, conv.in_channels, conv.kernel_size[0], norm is not None))
    return found


def arrays(model: nn.Module) -> list[dict[str, np.ndarray]]:
    """Float32 arrays of every convolution, in darknet's order and under darknet's names."""
    return [{k: t.detach().float().cpu().numpy() for k, t in _tensors(c, n).items()} for _, c, n in _pairs(model)]


def fill(model: nn.Module, arrays: Sequence[dict[str, np.ndarray]]) -> None:
    """Copy arrays into a network: `fill(YOLOv3(80), arrays(network))` turns one into the other.

    Raises:
        ValueError: another number of convolutions or another shape (named), before anything is copied.
    """
    wanted = convolutions(model)
    if len(arrays) != len(wanted):
        raise ValueError(f"arrays: got {len(arrays)} convolutions, expected {len(wanted)}; another network's?")
    for convolution, of_layer in zip(wanted, arrays, strict=True):
        shapes = {name: array.shape for name, array in of_layer.items()}
        if shapes != convolution.shapes:
            raise ValueError(f"{convolution.name}: got {shapes}, expected {convolution.shapes}; another network's?")
    with torch.no_grad():
        for (_, conv, norm), of_layer in zip(_pairs(model), arrays, strict=True):
            for name, tensor in _tensors(conv, norm).items():
                tensor.copy_(torch.tensor(of_layer[name]))


def _step(layer: darknet_layers.Layer) -> nn.Module:
    values = layer.section.values
    match layer.kind:
        case "convolutional":
            c_in, c_out, size, norm = layer.in_chw[0], layer.out_chw[0], values["size"], bool(values["batch_normalize"])
            parts = [nn.Conv2d(c_in, c_out, size, values["stride"], size // 2 * values["pad"], bias=not norm)]
            if norm:
                parts.append(nn.BatchNorm2d(c_out, momentum=0.01))      # darknet keeps 0.99 of the old
            if values["activation"] == "leaky":
                parts.append(nn.LeakyReLU(0.1))
            return nn.Sequential(*parts)
        case "maxpool":
            size, stride = values["size"], values["stride"]
            if size == stride == 2:
                return nn.MaxPool2d(2, 2, ceil_mode=True)       # no padding to copy: a window may end outside
            pool = nn.MaxPool2d(size, stride, (size - 1) // 2)
            # Of an even size, one more column on the right and one more row below.
            return pool if size % 2 else nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), pool)
        case "upsample":
            return nn.Upsample(scale_factor=values["stride"], mode="nearest")
        case _:
            return nn.Identity()


def _pairs(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d | None]]:
    """Name, convolution and the BatchNorm behind it, in the order in which the modules were made."""
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for (name, module), (_, after) in zip(modules, [*modules[1:], ("", None)], strict=True):
        if isinstance(module, nn.Conv2d):
            yield name, module, after if isinstance(after, nn.BatchNorm2d) else None


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> dict[str, torch.Tensor]:
    if norm is None:
        return {"bias": conv.bias, "weight": conv.weight}
    return {"bias": norm.bias, "scale": norm.weight, "mean": norm.running_mean, "variance": norm.running_var,
            "weight": conv.weight}
