"""darknet's .cfg files: sections of key=value lines. Lesson 10.

A file is a list of sections in square brackets. The first, [net], has the size of the input; every other one is a
layer, numbered from 0, and takes the output of the one before it unless it says otherwise. White space and lines that
begin with # or ; mean nothing.

Known are the sections and keys of yolov3.cfg, yolov3-spp.cfg and yolov3-tiny.cfg. darknet passes over a key that it
does not know; here it is an error, since it may change what the network computes (`groups`, `dilation`, `scale_x_y`).
What a key means for shapes and numbers is in `darknet_layers`. Source: darknet's src/parser.c and src/option_list.c.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Value = int | float | str | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        kind: its name without the brackets, aliases resolved: "net", "convolutional", "shortcut", "route", "upsample",
            "maxpool" or "yolo".
        values: by key, converted; keys that only training reads stay text.
        line: of its first line in the file, from 1.
    """

    kind: str
    values: Mapping[str, Value]
    line: int = field(default=0, compare=False)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _flag(text: str) -> int:
    return {"0": 0, "1": 1}[text]


def _list(number: Callable) -> Callable[[str], tuple]:
    return lambda text: tuple(map(number, text.split(",")))


def _word(*words: str) -> Callable[[str], str]:
    return lambda text: {word: word for word in words}[text]


COUNT = (_count, "an integer of at least 1")
FLAG = (_flag, "0 or 1")
INTEGER = (int, "an integer")
INTEGERS = (_list(int), "integers with commas between them")
NUMBERS = (_list(float), "numbers with commas between them")
KEYS = {
    "net": {"width": COUNT, "height": COUNT, "channels": COUNT},
    "convolutional": {
        "filters": COUNT, "size": COUNT, "stride": COUNT, "pad": FLAG, "batch_normalize": FLAG,
        "activation": (_word("leaky", "linear"), "leaky or linear"),
    },
    "shortcut": {"from": INTEGER, "activation": (_word("linear"), "linear")},
    "route": {"layers": INTEGERS},
    "upsample": {"stride": COUNT},
    "maxpool": {"size": COUNT, "stride": COUNT},
    "yolo": {"mask": INTEGERS, "anchors": NUMBERS, "classes": COUNT, "num": COUNT},
}  # fmt: skip
# darknet's own defaults, for keys that the three files leave out somewhere; all other keys must be there.
DEFAULTS: dict[str, dict[str, Value]] = {
    "convolutional": {"stride": 1, "pad": 0, "batch_normalize": 0},
    "shortcut": {"activation": "linear"},
    "upsample": {"stride": 2},
    "maxpool": {"stride": 1},
}
TRAINING = {
    "net": {"batch", "subdivisions", "momentum", "decay", "angle", "saturation", "exposure", "hue", "learning_rate",
            "burn_in", "max_batches", "policy", "steps", "scales"},
    "yolo": {"jitter", "ignore_thresh", "truth_thresh", "random"},
}  # fmt: skip
ALIASES = {"network": "net", "conv": "convolutional", "max": "maxpool"}


def read(path: Path) -> list[Section]:
    """`parse` a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text, or see `parse`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"cfg: got {path}, expected an existing .cfg file; darknet_nets has three")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as e:
        raise ValueError(f"cfg: {path.name}: got bytes that are no text, expected a .cfg file; is it weights?") from e


def parse(text: str) -> list[Section]:
    """Sections of a cfg, [net] first, defaults filled in.

    Args:
        text: of the file.

    Returns:
        At least [net] and one layer.

    Raises:
        ValueError: a line that is neither section nor key=value; an unknown section or key; a value of another type; a
            key twice or missing; no [net] at the beginning. With line, number of the layer, what was got and expected.
    """
    found: list[tuple[str, int, dict[str, Value]]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = "".join(raw.split())
        if line.startswith("["):
            name = line.strip("[]")
            kind = ALIASES.get(name, name)
            if not line.endswith("]") or kind not in KEYS:
                known = ", ".join(f"[{k}]" for k in KEYS)
                raise ValueError(f"{_place(number, len(found), line)}: got an unknown section, expected one of {known}")
            if (kind == "net") == bool(found):
                raise ValueError(f"{_place(number, len(found), line)}: expected [net] once, as the first section")
            found.append((kind, number, {}))
        elif line and line[0] not in "#;":
            key, equals, value = line.partition("=")
            if not found or not equals:
                raise ValueError(f"cfg line {number}: got {line[:60]!r}, expected "
                                 f"{'key=value' if found else '[net]'}; is this a .cfg file?")
            kind, _, values = found[-1]
            place = _place(number, len(found) - 1, f"[{kind}]")
            if key in values:
                raise ValueError(f"{place}: {key}: got it twice in this section, expected it once")
            values[key] = _converted(place, kind, key, value)
    if len(found) < 2:
        raise ValueError(f"cfg: got {len(found)} sections, expected [net] and at least one layer")
    return [_complete(index, *section) for index, section in enumerate(found)]


def text(sections: Sequence[Section]) -> str:
    """The cfg that `parse` turns into these sections."""
    blocks = []
    for section in sections:
        lines = [f"{key}={_written(value)}" for key, value in section.values.items()]
        blocks.append("\n".join([f"[{section.kind}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def place(section: Section, index: int) -> str:
    """Where a section is, for messages; `index` is that of the layer."""
    return _place(section.line, index + 1, f"[{section.kind}]")


def _place(line: int, section: int, name: str) -> str:
    """Section 0 is [net]; layers are counted from 0 behind it, as darknet does."""
    return f"cfg line {line}, " + (f"layer {section - 1} {name[:60]}" if section else name[:60])


def _converted(place: str, kind: str, key: str, value: str) -> Value:
    if key in TRAINING.get(kind, ()):
        return value
    if key not in KEYS[kind]:
        raise ValueError(f"{place}: {key}: got an unknown key, expected one of {sorted(KEYS[kind])}; it may change "
                         "what the network computes, so it is not passed over")
    convert, expected = KEYS[kind][key]
    try:
        return convert(value)
    except (ValueError, KeyError) as e:
        raise ValueError(f"{place}: {key}: got {value!r}, expected {expected}") from e


def _complete(index: int, kind: str, line: int, values: dict[str, Value]) -> Section:
    values = {**DEFAULTS.get(kind, {}), **values}
    if missing := [key for key in KEYS[kind] if key not in values]:
        raise ValueError(f"{_place(line, index, f'[{kind}]')}: {missing[0]}: got nothing, expected "
                         f"{KEYS[kind][missing[0]][1]}")
    return Section(kind, values, line)


def _written(value: Value) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
