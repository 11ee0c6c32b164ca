"""Float grids against ml_dtypes and NumPy, on every exponent, subnormals and both sides of saturation."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trtkit import floats

ORACLE = {
    floats.FP16: np.dtype(np.float16),
    floats.BF16: np.dtype(ml_dtypes.bfloat16),
    floats.FP8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    floats.FP8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
}
EVERY = pytest.mark.parametrize("fmt", floats.FORMATS, ids=lambda f: f.name)


def _cast(x, fmt):
    """What a plain conversion gives: infinity or NaN beyond the largest number."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(ORACLE[fmt]).astype(np.float32)


def _all_values(fmt):
    """Every finite value of the format, from all of its codes."""
    dtype = ORACLE[fmt]
    codes = np.arange(2 ** (8 * dtype.itemsize), dtype=np.uint32).astype(f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        values = codes.view(dtype).astype(np.float32)
    return np.unique(values[np.isfinite(values)])


@EVERY
def test_values_midpoints_and_their_neighbours_round_as_in_ml_dtypes(fmt):
    """All codes of the format, so all exponents and subnormals; every tie, and the float32 just beside it."""
    values = _all_values(fmt)
    middles = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)    # exact but for BF16's last one
    x = np.concatenate([values, middles, np.nextafter(middles, np.float32(np.inf)),
                        np.nextafter(middles, np.float32(-np.inf))])
    np.testing.assert_array_equal(floats.round_to_grid(x, fmt), _cast(x, fmt))
    np.testing.assert_array_equal(floats.round_to_grid(x, fmt, saturate=False), _cast(x, fmt))


@EVERY
def test_around_saturation_as_in_ml_dtypes(fmt):
    top = np.float32(fmt.max_value)
    limit = np.float64(top) + float(floats.ulp(top, fmt)) / 2           # the tie above the largest number
    beside = np.nextafter(np.float32(limit), np.float32([0, np.inf]))
    ends = np.array([top, limit, *beside, 2 * limit, 3e38], np.float64)
    x = np.concatenate([ends, -ends])
    x = x[np.abs(x) <= np.finfo(np.float32).max].astype(np.float32)
    expected = _cast(x, fmt)
    np.testing.assert_array_equal(floats.round_to_grid(x, fmt, saturate=False), expected)
    finite = np.where(np.isfinite(expected), expected, np.copysign(top, x))
    np.testing.assert_array_equal(floats.round_to_grid(x, fmt), finite)
    assert not np.isfinite(expected).all()                              # the boundary was crossed


@EVERY
@given(x=arrays(np.float32, 64, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_any_float32_rounds_as_in_ml_dtypes(fmt, x):
    np.testing.assert_array_equal(floats.round_to_grid(x, fmt, saturate=False), _cast(x, fmt))


@EVERY
def test_grid_values_are_the_formats_own(fmt):
    values = _all_values(fmt)
    if ORACLE[fmt].itemsize == 1:
        np.testing.assert_array_equal(floats.grid_values(fmt, -np.finfo(np.float32).max, 1e38), values)
    inside = values[(values >= -2.5) & (values <= 0.125)]
    np.testing.assert_array_equal(floats.grid_values(fmt, -2.5, 0.125), inside)


@EVERY
def test_ulp_is_the_distance_to_the_next_value(fmt):
    values = _all_values(fmt).astype(np.float64)
    values = values[values >= 0]
    np.testing.assert_array_equal(floats.ulp(values[:-1], fmt), np.diff(values))
    np.testing.assert_array_equal(floats.ulp(-values[:-1], fmt), np.diff(values))
    assert floats.ulp(np.nextafter(2.0, 0), fmt) == floats.ulp(2.0, fmt) / 2        # log2 of it rounds up to 1


@EVERY
def test_limits_are_those_ml_dtypes_reports(fmt):
    info = ml_dtypes.finfo(ORACLE[fmt])
    assert (fmt.max_value, fmt.mantissa_bits, fmt.min_exponent) == (float(info.max), info.nmant, info.minexp)


def test_float64_is_rounded_once():
    """1 + 2^-11 + 2^-40 lies above FP16's tie; by way of float32 it would become the tie, and go down to 1."""
    assert floats.round_to_grid(np.array(1 + 2.0**-11 + 2.0**-40), floats.FP16) == 1 + 2.0**-10


@EVERY
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3)])
def test_any_shape_and_float16_input(fmt, shape):
    x = np.full(shape, 0.3, np.float16)
    got = floats.round_to_grid(x, fmt)
    assert got.shape == shape and got.dtype == np.float32
    np.testing.assert_array_equal(got, _cast(x.astype(np.float32), fmt))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_position(bad):
    for call in (floats.round_to_grid, floats.ulp):
        with pytest.raises(ValueError, match=r"x\[1\]"):
            call(np.array([0.0, bad]), floats.FP16)
    with pytest.raises(ValueError, match="expected finite"):
        floats.grid_values(floats.FP16, 0, bad)


def test_a_reversed_range_is_refused():
    with pytest.raises(ValueError, match="low <= high"):
        floats.grid_values(floats.FP16, 1, 0)
