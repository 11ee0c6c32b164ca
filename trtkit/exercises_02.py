"""Exercises of lesson 02, quantization math: what a right answer is, and what to say to those who are stuck."""

import math

import numpy as np

from trtkit.check import Exercise


def _bits_needed(amax_over_rms: float, sqnr_db: float) -> int:
    """Invert SQNR = 10 log10(12 q^2 (rms / amax)^2), q = 2^(b-1) - 1."""
    q = 10 ** (sqnr_db / 20) * amax_over_rms / math.sqrt(12)
    return math.ceil(math.log2(q + 1)) + 1


def _folded_bias(b_codes: np.ndarray, zero_point_a: int, bias: np.ndarray) -> np.ndarray:
    return bias - zero_point_a * b_codes.sum(0)


def _mantissa_bits(width_px: int, tol_px: float) -> int:
    """Smallest m with half of 2^(e - m) <= tol, e of the largest coordinate below the frame's width."""
    exponent = math.floor(math.log2(width_px - 1))
    return max(0, exponent - 1 - math.floor(math.log2(tol_px)))


_RNG = np.random.default_rng(2)
_CODES = _RNG.integers(-127, 128, (64, 5)).astype(np.int8)

EXERCISES = {
    "02_bits_needed": Exercise(
        _bits_needed,
        [(4.0, 30.0), (4.0, 34.8), (4.0, 40.0), (20.0, 40.0), (1.7320508, 25.0)],
        (
            "solve SQNR = 10 log10(12 q^2 / r^2) for q, r being amax / rms; then b from q = 2^(b-1) - 1, rounded up",
            "q = r * 10^(SQNR / 20) / sqrt(12); the smallest b with 2^(b-1) - 1 >= q is what is wanted",
            "return math.ceil(math.log2(amax_over_rms * 10 ** (sqnr_db / 20) / math.sqrt(12) + 1)) + 1",
        ),
    ),
    "02_folded_bias": Exercise(
        _folded_bias,
        [
            (_CODES, 128, np.zeros(5, np.int32)),
            (_CODES[:, :2], 3, np.array([1000, -7], np.int32)),
            (_CODES[:7], 0, np.arange(5, dtype=np.int32)),
        ],
        (
            "multiply out sum (a - z) * b + bias, and collect what does not depend on a",
            "sum (a - z) * b = sum a * b - z * sum b, one sum per column of b; z times one code leaves int8",
            "return bias - zero_point_a * b_codes.sum(axis=0)",
        ),
    ),
    "02_mantissa_bits": Exercise(
        _mantissa_bits,
        [(416, 0.125), (416, 0.5), (1920, 0.5), (3840, 0.25), (3840, 8.0), (1024, 0.25)],
        (
            "the largest coordinate has the widest step; half of that step is the error",
            "e = floor(log2(width_px - 1)); find the smallest m with 2^(e - m) / 2 <= tol_px",
            "return next(m for m in range(24) if 2.0 ** (math.floor(math.log2(width_px - 1)) - m) / 2 <= tol_px)",
        ),
    ),
}
