"""One scale for how many values? Lesson 02.

per tensor:   one scale for all of x                                     scale ()
per channel:  one for each index along `axis`                            scale (C,)
per group:    one for each run of `group_size` values along `axis`       scale like x, but x.shape[axis] / group_size
Shapes are ONNX's, so the numbers go into QuantizeLinear as they are: per-axis since opset 13, blocked since opset 21.
Source: ONNX operators, QuantizeLinear-21; Krishnamoorthi 2018, section 3.1.4, for channels.
"""

import numpy as np


def require_finite(x: np.ndarray, what: str) -> None:
    """Raise ValueError with the first position of a value that is NaN, infinite or beyond float32."""
    fits = np.abs(x) <= np.finfo(np.float32).max            # False for NaN; scales and values are kept in float32
    if not fits.all():
        bad = int(np.flatnonzero(~fits)[0])
        raise ValueError(f"{what}[{bad}]: got {np.asarray(x).flat[bad]}, expected finite float32 values; clean the "
                         "tensor or drop the batch")


def reduce_range(
    x: np.ndarray, *, axis: int | None = None, group_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value under each scale.

    Args:
        x: any shape with at least one value, float, finite.
        axis: of the channels, or the one that groups run along; None for the whole tensor.
        group_size: values in a group, a divisor of `x.shape[axis]`; None for whole channels.

    Returns:
        low and high, float32: () per tensor, (C,) per channel, x's rank per group.

    Raises:
        ValueError: x is empty or not finite, has no such axis, or groups do not fill it.
    """
    x = np.asarray(x)
    if x.size == 0:
        raise ValueError(f"x: got shape {x.shape}, expected at least one value; an empty tensor has no range")
    require_finite(x, "x")
    x = x.astype(np.float32)
    if axis is None:
        if group_size is not None:
            raise ValueError(f"axis: got None with group_size={group_size}, expected the axis that groups run along")
        return x.min(), x.max()
    axis = require_axis(axis, x.shape)
    if group_size is None:
        others = tuple(i for i in range(x.ndim) if i != axis)
        return x.min(others), x.max(others)
    groups = _group_count(x.shape, axis, group_size)
    split = x.reshape(*x.shape[:axis], groups, group_size, *x.shape[axis + 1 :])
    return split.min(axis + 1), split.max(axis + 1)


def reduce_amax(x: np.ndarray, *, axis: int | None = None, group_size: int | None = None) -> np.ndarray:
    """Largest magnitude under each scale; arguments, shapes and errors are `reduce_range`'s.

    Returns:
        float32, >= 0.
    """
    low, high = reduce_range(x, axis=axis, group_size=group_size)
    return np.maximum(-low, high)


def spread(values: np.ndarray, shape: tuple[int, ...], axis: int | None, group_size: int | None) -> np.ndarray:
    """Parameters, shaped so that they broadcast over a tensor.

    Args:
        values: scales or zero points, as `reduce_range` shapes them.
        shape: of the tensor.
        axis: see `reduce_range`.
        group_size: see `reduce_range`.

    Returns:
        Per channel (1, .., C, .., 1); per group each value repeated `group_size` times, so `shape`.

    Raises:
        ValueError: the tensor's shape is not the one that the parameters were made for.
    """
    if axis is None:
        return values
    axis = require_axis(axis, shape)
    if group_size is not None:
        expected = (*shape[:axis], _group_count(shape, axis, group_size), *shape[axis + 1 :])
        if values.shape != expected:
            raise ValueError(f"x: got shape {shape}, so {expected} groups of {group_size} on axis {axis}, expected "
                             f"{values.shape}; make the parameters from this tensor")
        return np.repeat(values, group_size, axis)
    if shape[axis] != values.size:
        raise ValueError(f"x: got shape {shape}, expected {values.size} channels on axis {axis}; "
                         "make the parameters from this tensor")
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def require_axis(axis: int, shape: tuple[int, ...]) -> int:
    """The axis counted from the front; ValueError where a tensor of this shape has no such axis."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: got axis {axis} for shape {shape}, expected {-len(shape)} <= axis < {len(shape)}")
    return axis % len(shape)


def _group_count(shape: tuple[int, ...], axis: int, group_size: int) -> int:
    if group_size < 1 or shape[axis] % group_size:
        divisors = [d for d in range(1, shape[axis] + 1) if shape[axis] % d == 0]
        raise ValueError(f"group_size: got {group_size} for {shape[axis]} values on axis {axis}, expected a divisor, "
                         f"one of {divisors[-8:]}; or pad the tensor")
    return shape[axis] // group_size
