"""TensorRT's own calibration table: a line per tensor, the scale as the bits of a float. Lesson 07, history.

    TRT-8601-MinMaxCalibration
    images: 3c010204

0x3c010204 is the IEEE 754 single 0.007874016 = 1/127: "images" reaches 1.0. The file says nothing about the graph or
the pictures it was made from, so TensorRT takes the table of another network without a word if the names agree; and
none of it has a meaning in TensorRT 11. Source: `read_calibration_cache` in NVIDIA's bindings of TensorRT 8.6.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trtkit.calib_table import Range

HEADER = re.compile(r"TRT-(\d+)-(\w+)$")


@dataclass(frozen=True)
class Cache:
    """A calibration cache.

    Attributes:
        version: of the TensorRT that wrote it, as one number: 8601 is 8.6.1.
        algorithm: "MinMaxCalibration" or "EntropyCalibration2".
        scales: real value of one step by tensor, amax / 127; finite, not negative.
    """

    version: int
    algorithm: str
    scales: Mapping[str, float]


def parse(text: str) -> Cache:
    """Read the text that TensorRT hands to `write_calibration_cache`.

    Raises:
        ValueError: another header, a line without a tensor and a float's bits, or a scale that is no number.
    """
    first, *lines = text.strip().splitlines() or [""]
    header = HEADER.match(first.strip())
    if not header:
        raise ValueError(f"cache: got first line {first[:60]!r}, expected TRT-8601-MinMaxCalibration or the like; "
                         "calibrate again")
    scales = {}
    for number, line in enumerate(lines, 2):
        name, colon, bits = line.rpartition(": ")               # names may hold colons themselves
        if not colon or not re.fullmatch(r"[0-9a-fA-F]{1,8}", bits):
            raise ValueError(f"cache: line {number}: got {line[:80]!r}, expected 'tensor: ' and up to 8 hexadecimal "
                             "digits; calibrate again")
        scale = float(np.uint32(int(bits, 16)).view(np.float32))
        if not 0 <= scale < np.inf:                             # NaN too
            raise ValueError(f"cache: tensor {name!r}: got scale {scale}, expected a finite one of at least 0; is "
                             "there a NaN among the activations?")
        scales[name] = scale
    return Cache(int(header[1]), header[2], scales)


def write(cache: Cache) -> str:
    """The text of a cache, for `read_calibration_cache` of TensorRT 8 and 10; `parse` reads it back.

    Raises:
        ValueError: a scale that FP32 does not hold, or a negative one.
    """
    lines, largest = [f"TRT-{cache.version}-{cache.algorithm}"], float(np.finfo(np.float32).max)
    for name, scale in cache.scales.items():
        if not 0 <= scale <= largest:
            raise ValueError(f"cache: tensor {name!r}: got scale {scale}, expected 0 to {largest:.4g}")
        lines.append(f"{name}: {np.float32(scale).view(np.uint32):08x}")
    return "\n".join(lines) + "\n"


def ratios(scales: Mapping[str, float], table: Mapping[str, Range]) -> dict[str, float]:
    """TensorRT's threshold over ours, for each tensor that both have: 127 * scale / amax, 1 where they agree.

    Args:
        scales: of a cache.
        table: from `calib.ranges`; tensors that are 0 everywhere are left out.
    """
    return {name: 127 * scale / table[name].amax for name, scale in scales.items()
            if name in table and table[name].amax > 0}
