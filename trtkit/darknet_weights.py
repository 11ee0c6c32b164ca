"""darknet's .weights files, in NumPy. Lesson 10.

    int32 major, minor, revision        then the images seen in training: uint64 from version 0.2 on, int32 before
    float32 ...                         of each convolution, in the order of the cfg

With BatchNorm a convolution has bias (BatchNorm's beta), scale (gamma), mean, variance, weights; without, bias and
weights. Weights are (filters, channels, size, size). All little-endian, nothing between, no names and no end mark: the
cfg alone says where a layer begins, and the only check there is, is that the floats come out even. yolov3.weights has
62,001,757 of them behind a header of 20 bytes: 248,007,048 bytes. Source: darknet's src/parser.c.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from trtkit.darknet_layers import Layer
from trtkit.files import replacing

BATCHNORM = ("bias", "scale", "mean", "variance")
GPU_EPS, CPU_EPS = 1e-5, 1e-6                # inside the root as PyTorch has it; beside it
BEGINNING = 256             # bytes in which a web page or an archive shows itself


@dataclass(frozen=True)
class Convolution:
    """What one convolution takes from the file: (c_out, c_in, size, size) weights, and four or one (c_out,) before."""

    name: str
    c_out: int
    c_in: int
    size: int
    batch_normalize: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array, in the order of the file."""
        vectors = BATCHNORM if self.batch_normalize else BATCHNORM[:1]
        return {**dict.fromkeys(vectors, (self.c_out,)), "weight": (self.c_out, self.c_in, self.size, self.size)}

    @property
    def floats(self) -> int:
        """Numbers in the file."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


@dataclass(frozen=True)
class Header:
    """The beginning of a file. `seen` counts the images of the training."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    @property
    def packed(self) -> bytes:
        """The bytes: 20 from version 0.2 on, 16 before.

        Raises:
            ValueError: a number that does not fit its field.
        """
        seen = "Q" if _wide(self.major, self.minor) else "i"
        try:
            return struct.pack(f"<3i{seen}", self.major, self.minor, self.revision, self.seen)
        except struct.error as e:
            raise ValueError(f"weights: got {self}, expected int32 numbers and {'u' * (seen == 'Q')}int"
                             f"{64 if seen == 'Q' else 32} images seen ({e})") from e


def convolutions(layers: Sequence[Layer]) -> list[Convolution]:
    """The convolutions of a cfg, named by layer."""
    return [
        Convolution(f"layer {layer.index}", layer.out_chw[0], layer.in_chw[0], layer.section.values["size"],
                    bool(layer.section.values["batch_normalize"]))
        for layer in layers if layer.kind == "convolutional"
    ]  # fmt: skip


def read(path: Path, convolutions: Sequence[Convolution]) -> tuple[Header, list[dict[str, np.ndarray]]]:
    """Header and arrays of a file.

    Args:
        path: of the .weights file.
        convolutions: of the network that it belongs to, in the order of the cfg.

    Returns:
        The header, and for each convolution its float32 arrays by name, in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a web page, an archive or a text in its place; fewer or more floats than the network has (how many,
            at which layer); numbers that are not finite, or variances below 0 (the layer).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: got {path}, expected an existing .weights file; the pretrained one comes "
                                "with fetch.fetch('yolov3.weights')")
    with open(path, "rb") as file:
        header = _header(path.name, file.read(BEGINNING))
        start = len(header.packed)
        _check_length(path.name, path.stat().st_size - start, convolutions)     # before reading what may be anything
        file.seek(start)
        floats = np.fromfile(file, "<f4").astype(np.float32, copy=False)
    arrays, at = [], 0
    for convolution in convolutions:
        of_layer = {}
        for name, shape in convolution.shapes.items():
            count = int(np.prod(shape))
            of_layer[name] = floats[at : at + count].reshape(shape)
            at += count
            _check_numbers(path.name, convolution.name, name, of_layer[name])
        arrays.append(of_layer)
    return header, arrays


def write(path: Path, arrays: Iterable[Mapping[str, np.ndarray]], header: Header | None = None) -> None:
    """Write a file; `read` gives the same arrays again, and a file of the same bytes.

    Args:
        path: written under another name first, so that an interrupted run leaves the old file.
        arrays: one mapping a convolution, as `read` returns them; float32.
        header: None takes version 0.2 and no images seen.
    """
    packed = (header or Header()).packed
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(packed)
        for of_layer in arrays:
            for name in (*BATCHNORM, "weight"):
                if name in of_layer:
                    file.write(np.ascontiguousarray(of_layer[name], "<f4"))


def as_cpu_program(arrays: Iterable[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Arrays with which a BatchNorm that divides by sqrt(var + 1e-5) does what darknet's CPU program does.

    That one divides by sqrt(var) + 1e-6, so scale' = scale * sqrt(var + 1e-5) / (sqrt(var) + 1e-6). For comparing with
    the program number by number; not for detecting, since training divided by sqrt(var + 1e-5).
    """
    changed = []
    for of_layer in arrays:
        if "scale" in of_layer:
            variance = of_layer["variance"].astype(np.float64)
            factor = np.sqrt(variance + GPU_EPS) / (np.sqrt(variance) + CPU_EPS)
            of_layer = {**of_layer, "scale": (of_layer["scale"] * factor).astype(np.float32)}
        changed.append(dict(of_layer))
    return changed


def _wide(major: int, minor: int) -> bool:
    """darknet's own test; versions above 1000 mark matrices that are transposed, which convolutions have none of."""
    return major * 10 + minor >= 2 and major < 1000 and minor < 1000


def _header(name: str, data: bytes) -> Header:
    begins = data.lstrip().lower()
    if begins.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(f"weights: {name}: got a web page, expected darknet's weights; its address leads to a page "
                         "about the file or to a sign-in: open it in a browser and save the file itself")
    if begins.startswith((b"pk\x03\x04", b"[net]", b"version https://git-lfs")) or len(data) < 16:
        raise ValueError(f"weights: {name}: got bytes that begin with {data[:12]!r}, expected darknet's header and "
                         "float32 numbers")
    major, minor, revision = struct.unpack_from("<3i", data)
    wide = _wide(major, minor)
    if wide and len(data) < 20:
        raise ValueError(f"weights: {name}: got {len(data)} bytes, expected a header of 20")
    if not (0 <= major < 10_000 and 0 <= minor < 10_000):
        raise ValueError(f"weights: {name}: got version {major}.{minor}, expected darknet's 0.1 or 0.2; is it another "
                         "framework's file?")
    (seen,) = struct.unpack_from("<Q" if wide else "<i", data, 12)
    return Header(major, minor, revision, seen)


def _check_length(name: str, size_bytes: int, convolutions: Sequence[Convolution]) -> None:
    ends = list(accumulate(c.floats for c in convolutions))
    got, rest = divmod(size_bytes, 4)
    expected = ends[-1] if ends else 0
    if size_bytes < 4 * expected:
        i = next(i for i, end in enumerate(ends) if got < end)
        inside = got - (ends[i - 1] if i else 0)
        raise ValueError(
            f"weights: {name}: got {got:,} floats, expected {expected:,}: {expected - got:,} too few. They end in "
            f"{convolutions[i].name}, convolution {i + 1} of {len(ends)}, after {inside:,} of its "
            f"{convolutions[i].floats:,}; a download that broke off, a backbone alone, or another cfg's weights"
        )
    if size_bytes > 4 * expected:
        raise ValueError(
            f"weights: {name}: got {got:,} floats{f' and {rest} bytes' * bool(rest)}, expected {expected:,}: "
            f"{got - expected:,} left over behind {convolutions[-1].name if ends else 'the header'}; another cfg's "
            "weights, or another number of classes"
        )


def _check_numbers(file: str, layer: str, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"weights: {file}: {layer}: {name}: got numbers that are not finite, expected finite ones; "
                         "the file is damaged or the training diverged")
    if name == "variance" and (array < 0).any():
        raise ValueError(f"weights: {file}: {layer}: variance: got {array.min():g}, expected at least 0; the order of "
                         "the layers is not this cfg's, or the file is damaged")
