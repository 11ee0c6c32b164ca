"""Floating-point numbers with few bits: FP16, BF16, FP8. Lesson 02.

step of the grid at x:   ulp(x) = 2 ** (max(floor(log2|x|), min_exponent) - mantissa_bits)
nearest value:           round(x / ulp) * ulp                            round half to even

An integer grid has one step everywhere; a float grid's step doubles with every power of two, so its relative error is
about constant. Below 2 ** min_exponent the step stays (subnormal numbers), down to zero.
Left out on purpose: NaN payloads and signalling NaNs.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point grid.

    BF16 is float32 without its last 16 bits.
    Source: IEEE 754-2019 for FP16; Micikevicius et al. 2022, table 1, for FP8.
    """

    name: str
    mantissa_bits: int          # explicit bits, 10 for FP16
    min_exponent: int           # of the smallest normal number, -14 for FP16
    max_value: float            # largest finite number, 65504 for FP16
    has_inf: bool = True        # E4M3 spends the codes of infinity on numbers up to 448, and has NaN only


FP16 = FloatFormat("FP16", 10, -14, 65504.0)
BF16 = FloatFormat("BF16", 7, -126, (2 - 2.0**-7) * 2.0**127)
FP8_E4M3 = FloatFormat("FP8 E4M3", 3, -6, 448.0, has_inf=False)
FP8_E5M2 = FloatFormat("FP8 E5M2", 2, -14, 57344.0)
FORMATS = (FP16, BF16, FP8_E4M3, FP8_E5M2)


def ulp(x: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Distance between the neighbours of `fmt` around x.

    Args:
        x: any shape, float, finite.
        fmt: the grid.

    Returns:
        Same shape, float64, a power of two; at a power of two the step above it, and beyond the largest number the step
        that the grid would have there.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    x = _finite(x)
    exponent = np.frexp(np.abs(x))[1] - 1               # exact, where log2 rounds just below a power of two
    exponent = np.where(x == 0, fmt.min_exponent, np.maximum(exponent, fmt.min_exponent))
    return np.ldexp(1.0, exponent - fmt.mantissa_bits)


def round_to_grid(x: np.ndarray, fmt: FloatFormat, *, saturate: bool = True) -> np.ndarray:
    """Nearest value of `fmt` to each x, ties to even.

    Args:
        x: any shape, float16 to float64, finite.
        fmt: the grid.
        saturate: what rounds to more than the largest number becomes that number, as quantizers and ONNX's Cast to FP8
            do. Otherwise it becomes infinite, or NaN in E4M3, which has no infinity, as in a plain conversion.

    Returns:
        Same shape, float32, every element representable in `fmt`.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    x = _finite(x)
    step = ulp(x, fmt)
    rounded = np.rint(x / step) * step                  # float64: exact, since a step is a power of two
    if saturate:
        return np.clip(rounded, -fmt.max_value, fmt.max_value).astype(np.float32)
    beyond = np.copysign(np.inf, x) if fmt.has_inf else np.nan
    return np.where(np.abs(rounded) > fmt.max_value, beyond, rounded).astype(np.float32)


def grid_values(fmt: FloatFormat, low: float, high: float) -> np.ndarray:
    """Every value of `fmt` in [low, high], ascending, float64.

    Raises:
        ValueError: low > high, or either is NaN or infinite.
    """
    low, high = float(_finite(low)), float(_finite(high))
    if low > high:
        raise ValueError(f"low, high: got {low}, {high}, expected low <= high")
    low, high = max(low, -fmt.max_value), min(high, fmt.max_value)
    top = max(abs(low), abs(high), 2.0**fmt.min_exponent)
    per_binade = np.arange(2**fmt.mantissa_bits)
    subnormal = per_binade * 2.0 ** (fmt.min_exponent - fmt.mantissa_bits)
    binades = 2.0 ** np.arange(fmt.min_exponent, np.frexp(top)[1])
    positive = np.concatenate([subnormal, np.outer(binades, 1 + per_binade / 2**fmt.mantissa_bits).ravel()])
    values = np.concatenate([-positive[:0:-1], positive])
    return values[(values >= low) & (values <= high)]


def _finite(x: np.ndarray | float) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x))[0])
        raise ValueError(f"x[{bad}]: got {x.flat[bad]}, expected finite values; clean the tensor or drop the batch")
    return x
