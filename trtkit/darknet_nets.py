"""The cfg texts of YOLOv3, YOLOv3-SPP and YOLOv3-tiny, of any width and number of classes. Lesson 10.

Written from the architecture, with the keys that inference reads: the layers are those of darknet's yolov3.cfg,
yolov3-spp.cfg and yolov3-tiny.cfg, so a weights file of theirs fits. Source: Redmon and Farhadi 2018, table 1.
"""

from trtkit.darknet_cfg import Section, Value, text

BLOCKS = (1, 2, 8, 8, 4)                    # residual blocks after each of the five halvings
ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)
TINY_ANCHORS = (10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319)
SPP_SIZES = (5, 9, 13)
TAPS = {1: 61, 2: 36}                       # head -> the layer of the backbone that joins it


def yolov3(num_classes: int = 80, width: float = 1.0, *, size: int = 416, spp: bool = False) -> str:
    """The cfg of YOLOv3.

    Args:
        num_classes: K, at least 1.
        width: factor on all channels, rounded as `models.YOLOv3` does.
        size: side of the input, pixels, a multiple of 32.
        spp: spatial pyramid pooling in the first head: YOLOv3-SPP.

    Returns:
        The text of the file; `models.YOLOv3(num_classes, width)` has the same convolutions in the same order.

    Raises:
        ValueError: no class, no width, or a side that is no multiple of 32.
    """
    c = [_channels(n, width) for n in (32, 64, 128, 256, 512, 1024)]
    made = [_net(size, num_classes, width), _conv(c[0], 3)]
    for channels, blocks in zip(c[1:], BLOCKS, strict=True):
        made.append(_conv(channels, 3, stride=2))
        for _ in range(blocks):
            made += [_conv(channels // 2, 1), _conv(channels, 3), _section("shortcut", {"from": -3})]
    for head in range(3):
        channels = c[5 - head]
        if head:
            made += [_section("route", layers=(-4,)), _conv(channels // 2, 1), _section("upsample", stride=2),
                     _section("route", layers=(-1, TAPS[head]))]
        for pair in range(3):
            made.append(_conv(channels // 2, 1))
            if spp and not head and pair == 1:
                made += [*_pyramid(), _conv(channels // 2, 1)]
            made.append(_conv(channels, 3))
        made += _predict(num_classes, ANCHORS, tuple(range(6 - 3 * head, 9 - 3 * head)))
    return text(made)


def yolov3_tiny(num_classes: int = 80, width: float = 1.0, *, size: int = 416) -> str:
    """The cfg of YOLOv3-tiny: seven convolutions between max-poolings, two heads. Arguments as those of `yolov3`."""
    made = [_net(size, num_classes, width)]
    for i in range(6):
        made += [_conv(_channels(16 << i, width), 3), _section("maxpool", size=2, stride=2 if i < 5 else 1)]
    made += [_conv(_channels(1024, width), 3), _conv(_channels(256, width), 1), _conv(_channels(512, width), 3)]
    made += _predict(num_classes, TINY_ANCHORS, (3, 4, 5))
    made += [_section("route", layers=(-4,)), _conv(_channels(128, width), 1), _section("upsample", stride=2),
             _section("route", layers=(-1, 8)), _conv(_channels(256, width), 3)]
    return text(made + _predict(num_classes, TINY_ANCHORS, (0, 1, 2)))


def _channels(n: int, width: float) -> int:
    return max(8, round(n * width / 8) * 8)             # as models.YOLOv3


def _section(kind: str, values: dict[str, Value] | None = None, **more: Value) -> Section:
    return Section(kind, {**(values or {}), **more})    # "from" is no name in Python


def _net(size: int, num_classes: int, width: float) -> Section:
    if num_classes < 1 or not width > 0 or size < 32 or size % 32:
        raise ValueError(f"cfg: got {num_classes} classes, width {width}, {size} pixels; expected at least 1 class, a "
                         "width above 0 and a multiple of 32, such as 416")
    return _section("net", batch="1", width=size, height=size, channels=3)


def _conv(filters: int, size: int, *, stride: int = 1) -> Section:
    return _section("convolutional", batch_normalize=1, filters=filters, size=size, stride=stride, pad=1,
                    activation="leaky")


def _pyramid() -> list[Section]:
    """Three max-poolings of one input beside each other, and the input itself behind them."""
    made = []
    for i, size in enumerate(SPP_SIZES):
        if i:
            made.append(_section("route", layers=(-2 * i,)))        # back to what the first one was given
        made.append(_section("maxpool", stride=1, size=size))
    return [*made, _section("route", layers=(-1, -3, -5, -6))]


def _predict(num_classes: int, anchors: tuple[int, ...], mask: tuple[int, ...]) -> list[Section]:
    filters = len(mask) * (5 + num_classes)
    return [_section("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear"),
            _section("yolo", mask=mask, anchors=anchors, classes=num_classes, num=len(anchors) // 2)]
