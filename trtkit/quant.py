"""Real numbers in 8 bits. Lesson 02.

quantize:    q = clip(round(x / scale) + zero_point, qmin, qmax)         round half to even
dequantize:  x' = (q - zero_point) * scale

Symmetric INT8 (weights everywhere, activations for TensorRT): scale = amax / 127, zero_point 0, range [-127, 127];
-128 stays unused, so that negating a tensor negates its codes.
Affine UINT8 (activations for the CPU): scale = (high - low) / 255, zero_point = round(-low / scale).
Source: Jacob et al. 2018, section 2.1; NVIDIA TensorRT developer guide, "Working with Quantized Types".
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QParams:
    """How a tensor is stored.

    Shapes: `scale` float32 and `zero_point` integer, both () per tensor or (C,) per channel along `axis`.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    qmin: int
    qmax: int
    axis: int | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of the codes: int8 where qmin is negative, else uint8."""
        return np.dtype(np.int8 if self.qmin < 0 else np.uint8)


def _require_finite(x: np.ndarray, what: str) -> None:
    fits = np.abs(x) <= np.finfo(np.float32).max            # False for NaN; scales and values are kept in float32
    if not fits.all():
        bad = int(np.flatnonzero(~fits)[0])
        raise ValueError(f"{what}[{bad}]: got {np.asarray(x).flat[bad]}, expected finite float32 values; clean the "
                         "tensor or drop the batch")


def _safe_scale(scale: np.ndarray) -> np.ndarray:
    # A tensor that is zero everywhere has no range; any scale stores it exactly, so take 1. float32 holds scales, so
    # one that would vanish there becomes the smallest normal number.
    scale = np.asarray(scale, np.float64)
    return np.where(scale > 0, np.maximum(scale, np.finfo(np.float32).tiny), 1.0).astype(np.float32)


def symmetric_qparams(amax: np.ndarray | float, *, axis: int | None = None) -> QParams:
    """INT8 with zero_point 0 and scale = amax / 127.

    Args:
        amax: largest magnitude to represent, >= 0; () per tensor or (C,) per channel.
        axis: of the channels, for (C,).

    Returns:
        Parameters with range [-127, 127]. Where amax is 0 the scale is 1.

    Raises:
        ValueError: amax is negative, NaN, infinite or beyond float32, or its shape does not fit `axis`.
    """
    amax = np.asarray(amax, np.float64)
    _require_finite(amax, "amax")
    if amax.ndim != (axis is not None):
        raise ValueError(f"amax: got shape {amax.shape} with axis={axis}, expected () without an axis or (C,) with one")
    if (amax < 0).any():
        raise ValueError(f"amax: got {amax.min()}, expected a magnitude >= 0; take np.abs(x).max()")
    return QParams(_safe_scale(amax / 127), np.zeros(amax.shape, np.int8), -127, 127, axis)


def affine_qparams(low: float, high: float) -> QParams:
    """UINT8 whose 256 codes span [low, high], widened so that 0 is one of them.

    Zero must be exact: padding and ReLU write it, and an error there is a bias on every layer behind.

    Args:
        low: smallest value to represent.
        high: largest value to represent, >= low.

    Returns:
        Parameters with range [0, 255], per tensor.

    Raises:
        ValueError: high < low, or either is NaN, infinite or beyond float32.
    """
    low, high = float(low), float(high)         # float32 numbers would overflow in high - low
    _require_finite(np.array([low, high]), "low, high")
    if high < low:
        raise ValueError(f"low, high: got {low}, {high}, expected low <= high")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _safe_scale((high - low) / 255)
    return QParams(scale, np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8), 0, 255)


def _along_axis(values: np.ndarray, q: QParams, ndim: int) -> np.ndarray:
    if q.axis is None:
        return values
    shape = [1] * ndim
    shape[q.axis] = -1
    return values.reshape(shape)


def quantize(x: np.ndarray, q: QParams) -> np.ndarray:
    """Codes of x.

    Args:
        x: any shape, float, finite; q.axis must exist and have one channel per scale.
        q: the parameters.

    Returns:
        Same shape, `q.dtype`, in [qmin, qmax]; values out of range saturate.

    Raises:
        ValueError: x holds NaN or infinity, or its channels do not match the parameters.
    """
    x = np.asarray(x)
    _require_finite(x, "x")
    if q.axis is not None and (x.ndim <= q.axis or x.shape[q.axis] != q.scale.size):
        raise ValueError(f"x: got shape {x.shape}, expected {q.scale.size} channels on axis {q.axis}; "
                         "make the parameters from this tensor")
    steps = np.rint(x.astype(np.float32) / _along_axis(q.scale, q, x.ndim))
    return np.clip(steps + _along_axis(q.zero_point.astype(np.float32), q, x.ndim), q.qmin, q.qmax).astype(q.dtype)


def dequantize(codes: np.ndarray, q: QParams) -> np.ndarray:
    """Values of codes: any shape, integer in, float32 out."""
    zero_point = _along_axis(q.zero_point.astype(np.int32), q, codes.ndim)
    return ((codes.astype(np.int32) - zero_point) * _along_axis(q.scale, q, codes.ndim)).astype(np.float32)


def fake_quantize(x: np.ndarray, q: QParams) -> np.ndarray:
    """What x becomes after a trip through the codes: `dequantize(quantize(x))`, same shape, float32."""
    return dequantize(quantize(x, q), q)


def sqnr_db(x: np.ndarray, x_quantized: np.ndarray) -> float:
    """Signal to quantization noise ratio, 10 log10(sum x^2 / sum (x - x')^2).

    Args:
        x: any shape, the signal.
        x_quantized: same shape, after fake quantization.

    Returns:
        Decibels; inf where both are equal.

    Raises:
        ValueError: shapes differ, or the signal is zero everywhere while the noise is not.
    """
    if x.shape != x_quantized.shape:
        raise ValueError(f"x_quantized: got shape {x_quantized.shape}, expected {x.shape}")
    signal = np.square(x, dtype=np.float64).sum()
    noise = np.square(np.subtract(x, x_quantized, dtype=np.float64)).sum()
    if noise == 0:
        return float("inf")
    if signal == 0:
        raise ValueError("x: got only zeros with noise on top, expected a signal; the ratio has no meaning")
    return float(10 * np.log10(signal / noise))
