"""What each section of a darknet cfg does: shapes, multiply-adds, floats in the weights file. Lesson 10.

convolutional   out = floor((in + 2p - k) / s) + 1, p = floor(k / 2) where pad=1, else 0
                2 * filters * k * k * channels * out_h * out_w operations; darknet counts no others
maxpool         out = floor((in - 1) / s) + 1: darknet pads k - 1 in all, floor((k - 1) / 2) of it left and above, so
                size 2 with stride 1 looks right and down and keeps the size. Padding never wins: it is -FLT_MAX.
upsample        nearest neighbour, stride times as high and as wide
shortcut        adds the output of an earlier layer to that of the layer before
route           outputs of earlier layers, one behind the other in the channels; below 0 counts back from here
yolo            `mask` picks this head's anchors out of all `num`; channels = anchors * (5 + classes)

Source: darknet's src/parser.c and the make_ functions of src/*_layer.c.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtkit.darknet_cfg import Section, place

STRIDE = 32                 # the largest of the three networks: their inputs are its multiples
HEADER = "layer     filters    size              input                output"


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        index: from 0, as darknet counts.
        section: what the cfg says of it.
        sources: indices of the layers whose outputs it takes; -1 is the image.
        in_chw: shape of the first source's output: channels, height, width.
        out_chw: shape of its own output.
    """

    index: int
    section: Section
    sources: tuple[int, ...]
    in_chw: tuple[int, int, int]
    out_chw: tuple[int, int, int]

    @property
    def kind(self) -> str:
        """Of the section."""
        return self.section.kind

    @property
    def bflops(self) -> float:
        """10^9 operations for one image, two to a multiply-add, as darknet prints them: those of convolutions."""
        if self.kind != "convolutional":
            return 0.0
        channels, height, width = self.out_chw
        return 2 * channels * self.section.values["size"] ** 2 * self.in_chw[0] * height * width / 1e9


@dataclass(frozen=True)
class Head:
    """What a [yolo] layer says of the head that is given to it.

    Attributes:
        layer: index of the [yolo] layer; the raw head is the output of the layer before it.
        stride: pixels of the input per cell.
        anchors_wh: (A, 2) float32, width and height in pixels of the input.
        num_classes: K; the head has A * (5 + K) channels.
    """

    layer: int
    stride: int
    anchors_wh: np.ndarray
    num_classes: int


def layers(sections: Sequence[Section], *, size: int | None = None) -> list[Layer]:
    """The layers of a cfg with their shapes.

    Args:
        sections: of `darknet_cfg.parse`.
        size: side of a square input, pixels, instead of [net]'s width and height. yolov3.cfg comes with 608.

    Raises:
        ValueError: a side that is no multiple of 32; a route or shortcut to a layer that is not there, or between
            shapes that do not fit; a yolo layer that fits its input or its anchors not. With line and layer.
    """
    net = sections[0].values
    height, width = (net["height"], net["width"]) if size is None else (size, size)
    if height < 1 or width < 1 or height % STRIDE or width % STRIDE:
        raise ValueError(f"{place(sections[0], -1)}: got {width} x {height} pixels, expected multiples of {STRIDE}, by "
                         "which these networks divide their input; try 416")
    shape = (net["channels"], height, width)
    made: list[Layer] = []
    for index, section in enumerate(sections[1:]):
        sources = _sources(section, index)
        shapes = [made[s].out_chw if s >= 0 else shape for s in sources]
        made.append(Layer(index, section, sources, shapes[0], _out(section, index, shapes)))
    return made


def heads(layers: Sequence[Layer]) -> list[Head]:
    """The [yolo] layers, in the order of the file: the coarsest grid first."""
    found = []
    for layer in layers:
        if layer.kind == "yolo":
            values = layer.section.values
            anchors = np.array(values["anchors"], np.float32).reshape(-1, 2)[list(values["mask"])]
            stride = layers[0].in_chw[1] // layer.out_chw[1]
            found.append(Head(layer.index, stride, anchors, values["classes"]))
    return found


def table(layers: Sequence[Layer]) -> str:
    """The lines that darknet prints when it loads the network, character by character."""
    return "\n".join([HEADER, *(f"{layer.index:5d} {_row(layer)}" for layer in layers)]) + "\n"


def _row(layer: Layer) -> str:
    values, (c_in, h_in, w_in), (c_out, h_out, w_out) = layer.section.values, layer.in_chw, layer.out_chw
    shapes = f"{w_in:4d} x{h_in:4d} x{c_in:4d}   ->  {w_out:4d} x{h_out:4d} x{c_out:4d}"
    match layer.kind:
        case "convolutional":
            size, stride = values["size"], values["stride"]
            return f"conv  {c_out:5d} {size:2d} x{size:2d} /{stride:2d}  {shapes}  {layer.bflops:5.3f} BFLOPs"
        case "maxpool":
            return f"max          {values['size']} x {values['size']} / {values['stride']}  {shapes}"
        case "upsample":
            return f"upsample           {values['stride']:2d}x  {shapes}"
        case "shortcut":
            return f"res  {layer.sources[1]:3d}                {shapes}"
        case "route":
            return "route  " + " ".join(map(str, layer.sources))
        case _:
            return "yolo"


def _sources(section: Section, index: int) -> tuple[int, ...]:
    if section.kind not in ("shortcut", "route"):
        return (index - 1,)
    key = "from" if section.kind == "shortcut" else "layers"
    given = section.values[key]
    found = []
    for number in given if isinstance(given, tuple) else (given,):
        source = number if number >= 0 else index + number
        if not 0 <= source < index:
            back = f"0 to {index - 1} or -1 to -{index}" if index else "none: there is no layer before it"
            raise ValueError(f"{place(section, index)}: {key}: got {number}, expected an earlier layer, {back}")
        found.append(source)
    return (index - 1, *found) if section.kind == "shortcut" else tuple(found)


def _out(section: Section, index: int, shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    values, (channels, height, width) = section.values, shapes[0]
    match section.kind:
        case "convolutional":
            size, stride = values["size"], values["stride"]
            padding = size // 2 * values["pad"]
            out = (values["filters"], *((side + 2 * padding - size) // stride + 1 for side in (height, width)))
            if min(out) < 1:
                raise ValueError(f"{place(section, index)}: size: got {size}, expected at most the input's {width} x "
                                 f"{height} pixels and its padding")
            return out
        case "maxpool":
            return channels, (height - 1) // values["stride"] + 1, (width - 1) // values["stride"] + 1
        case "upsample":
            return channels, height * values["stride"], width * values["stride"]
        case "shortcut" if shapes[0] != shapes[1]:
            raise ValueError(f"{place(section, index)}: from: got an output of {shapes[1]}, expected {shapes[0]}, the "
                             "shape (channels, height, width) of the layer before, to which it is added")
        case "route":
            for number, shape in zip(values["layers"], shapes, strict=True):
                if shape[1:] != shapes[0][1:]:
                    raise ValueError(f"{place(section, index)}: layers: got {number} with {shape[2]} x {shape[1]} "
                                     f"pixels, expected {width} x {height} as the first one's")
            return sum(shape[0] for shape in shapes), height, width
        case "yolo":
            _check_yolo(section, index, channels)
    return shapes[0]


def _check_yolo(section: Section, index: int, channels: int) -> None:
    mask, anchors, num, classes = (section.values[key] for key in ("mask", "anchors", "num", "classes"))
    if len(anchors) != 2 * num:
        raise ValueError(f"{place(section, index)}: anchors: got {len(anchors)} numbers, expected 2 * num = {2 * num}")
    if not all(0 <= m < num for m in mask):
        raise ValueError(f"{place(section, index)}: mask: got {mask}, expected numbers of anchors, 0 to {num - 1}")
    if channels != len(mask) * (5 + classes):
        raise ValueError(f"{place(section, index)}: got {channels} channels, expected {len(mask)} anchors * (5 + "
                         f"{classes} classes) = {len(mask) * (5 + classes)}; set filters of the layer before")
