"""Real numbers in 8 bits, or fewer. Lesson 02.

quantize:    q = clip(round(x / scale) + zero_point, qmin, qmax)         round half to even
dequantize:  x' = (q - zero_point) * scale

Symmetric INT8 (weights everywhere, activations for TensorRT): scale = amax / 127, zero_point 0, range [-127, 127];
-128 stays unused, so that negating a tensor negates its codes. INT4: amax / 7, range [-7, 7].
Affine UINT8 (activations for the CPU): scale = (high - low) / 255, zero_point = round(-low / scale).
How many values share a scale is `granularity`'s matter. Codes below 8 bits are kept one a byte: NumPy has no INT4.
Source: Jacob et al. 2018, section 2.1; NVIDIA TensorRT developer guide, "Working with Quantized Types".
"""

from dataclasses import dataclass

import numpy as np

from trtkit.granularity import require_finite, spread


@dataclass(frozen=True)
class QParams:
    """How a tensor is stored.

    Shapes: `scale` float32 and `zero_point` integer, both () per tensor, (C,) per channel along `axis`, or per group of
    `group_size` values along `axis` like the tensor itself, with `shape[axis] / group_size` there.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    qmin: int
    qmax: int
    axis: int | None = None
    group_size: int | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of the codes: int8 where qmin is negative, else uint8. INT4 and UINT4 codes take a whole byte each."""
        return np.dtype(np.int8 if self.qmin < 0 else np.uint8)


def require_bits(bits: int) -> int:
    """`bits`, or a ValueError where it is no whole number from 2 to 8."""
    if not isinstance(bits, int | np.integer) or not 2 <= bits <= 8:
        raise ValueError(f"bits: got {bits!r}, expected a whole number from 2 to 8")
    return int(bits)


def _safe_scale(scale: np.ndarray) -> np.ndarray:
    # A tensor that is zero everywhere has no range; any scale stores it exactly, so take 1. float32 holds scales, so
    # one that would vanish there becomes the smallest normal number.
    scale = np.asarray(scale, np.float64)
    return np.where(scale > 0, np.maximum(scale, np.finfo(np.float32).tiny), 1.0).astype(np.float32)


def _require_shape(values: np.ndarray, what: str, axis: int | None, group_size: int | None) -> None:
    require_finite(values, what)
    fits = values.ndim == (axis is not None) if group_size is None else axis is not None and values.ndim >= 1
    if not fits:
        raise ValueError(f"{what}: got shape {values.shape} with axis={axis}, group_size={group_size}, expected () "
                         "without an axis, (C,) with one, or the tensor's rank with both; see granularity.reduce_range")


def symmetric_qparams(
    amax: np.ndarray | float, *, axis: int | None = None, group_size: int | None = None, bits: int = 8
) -> QParams:
    """Signed codes with zero_point 0 and scale = amax / (2^(bits-1) - 1), which is amax / 127 for INT8.

    Args:
        amax: largest magnitude to represent, >= 0; () per tensor, (C,) per channel, or the tensor's rank per group:
            `granularity.reduce_amax(x, axis=axis, group_size=group_size)`.
        axis: of the channels, or the one that groups run along.
        group_size: values that share a scale along `axis`.
        bits: 2 to 8.

    Returns:
        Parameters with range [-127, 127] for INT8, [-7, 7] for INT4. Where amax is 0 the scale is 1.

    Raises:
        ValueError: amax is negative, NaN, infinite or beyond float32, or its shape does not fit `axis`.
    """
    amax = np.asarray(amax, np.float64)
    _require_shape(amax, "amax", axis, group_size)
    if (amax < 0).any():
        raise ValueError(f"amax: got {amax.min()}, expected a magnitude >= 0; take granularity.reduce_amax(x)")
    qmax = 2 ** (require_bits(bits) - 1) - 1
    return QParams(_safe_scale(amax / qmax), np.zeros(amax.shape, np.int8), -qmax, qmax, axis, group_size)


def affine_qparams(
    low: np.ndarray | float, high: np.ndarray | float, *, axis: int | None = None, group_size: int | None = None,
    bits: int = 8, signed: bool = False,
) -> QParams:
    """All 2^bits codes, spread over [low, high], which is widened so that 0 is one of them.

    Zero must be exact: padding and ReLU write it, and an error there is a bias on every layer behind.

    Args:
        low: smallest value to represent; shapes as in `symmetric_qparams`, from `granularity.reduce_range`.
        high: largest value to represent, >= low, same shape.
        axis: of the channels, or the one that groups run along.
        group_size: values that share a scale along `axis`.
        bits: 2 to 8.
        signed: codes from -2^(bits-1) instead of 0.

    Returns:
        Parameters with range [0, 255] for UINT8, [-128, 127] for signed INT8. Where low and high are 0 the scale is 1.

    Raises:
        ValueError: high < low, either is NaN, infinite or beyond float32, or their shapes do not fit.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)      # high - low may be beyond float32
    if low.shape != high.shape:
        raise ValueError(f"low, high: got shapes {low.shape} and {high.shape}, expected the same")
    for end in (low, high):
        _require_shape(end, "low, high", axis, group_size)
    if (high < low).any():
        bad = int(np.flatnonzero(high < low)[0])
        raise ValueError(f"low, high: got {low.flat[bad]}, {high.flat[bad]}, expected low <= high")
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    codes = 2 ** require_bits(bits)
    qmin = -codes // 2 if signed else 0
    scale = _safe_scale((high - low) / (codes - 1))
    zero_point = np.clip(np.rint(-low.astype(np.float32) / scale), 0, codes - 1) + qmin
    dtype = np.int8 if signed else np.uint8
    return QParams(scale, np.asarray(zero_point, dtype), qmin, qmin + codes - 1, axis, group_size)


def quantize(x: np.ndarray, q: QParams) -> np.ndarray:
    """Codes of x.

    Args:
        x: any shape, float, finite; q.axis must exist and have one channel, or one group, per scale.
        q: the parameters.

    Returns:
        Same shape, `q.dtype`, in [qmin, qmax]; values out of range saturate.

    Raises:
        ValueError: x holds NaN or infinity, or its shape does not match the parameters.
    """
    x = np.asarray(x)
    require_finite(x, "x")
    steps = np.rint(x.astype(np.float32) / spread(q.scale, x.shape, q.axis, q.group_size))
    zero_point = spread(q.zero_point.astype(np.float32), x.shape, q.axis, q.group_size)
    return np.clip(steps + zero_point, q.qmin, q.qmax).astype(q.dtype)


def dequantize(codes: np.ndarray, q: QParams) -> np.ndarray:
    """Values of codes: any shape, integer in, float32 out. ValueError where the shape does not match the parameters."""
    codes = np.asarray(codes)
    zero_point = spread(q.zero_point.astype(np.int32), codes.shape, q.axis, q.group_size)
    scale = spread(q.scale, codes.shape, q.axis, q.group_size)
    return ((codes.astype(np.int32) - zero_point) * scale).astype(np.float32)


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
        ValueError: shapes differ, no numbers, NaN or infinity, or the signal is zero everywhere while the noise is not.
    """
    if x.shape != x_quantized.shape:
        raise ValueError(f"x_quantized: got shape {x_quantized.shape}, expected {x.shape}")
    if not x.size:
        raise ValueError(f"x: got shape {x.shape}, expected at least one number")
    require_finite(x, "x")
    require_finite(x_quantized, "x_quantized")
    signal = np.square(x, dtype=np.float64).sum()
    noise = np.square(np.subtract(x, x_quantized, dtype=np.float64)).sum()
    if noise == 0:
        return float("inf")
    if signal == 0:
        raise ValueError("x: got only zeros with noise on top, expected a signal; the ratio has no meaning")
    return float(10 * np.log10(signal / noise))
