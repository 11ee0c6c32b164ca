"""TensorRT's calibration cache as text: known bits, round trips, and every way to be damaged."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit import calib_cache
from trtkit.calib_table import Range

scales = st.floats(0, float(np.finfo(np.float32).max), width=32)
names = st.text("x/.: ", min_size=1).map(lambda name: f"x{name}x")     # as in TensorRT


def test_a_cache_that_tensorrt_wrote():
    """The first lines of a YOLOv8's, from issue 14121 of ultralytics/ultralytics; 169 is the output of a sigmoid."""
    cache = calib_cache.parse("TRT-8601-EntropyCalibration2\nimages: 3b66eddc\n168: 3dc6cf6e\n169: 3c010a14\n")
    assert (cache.version, cache.algorithm) == (8601, "EntropyCalibration2")
    assert list(cache.scales) == ["images", "168", "169"]
    assert cache.scales["169"] * 127 == pytest.approx(1.000244, abs=1e-6)       # at most 1, up to a histogram's bin


def test_the_example_of_the_docstring():
    scales = calib_cache.parse("TRT-8601-MinMaxCalibration\nimages: 3c010204").scales
    assert scales == {"images": float(np.float32(1) / np.float32(127))}


@given(st.dictionaries(names, scales, max_size=5))
def test_what_is_written_is_read_back(table):
    cache = calib_cache.Cache(8601, "MinMaxCalibration", table)
    assert calib_cache.parse(calib_cache.write(cache)) == cache


@given(scales)
def test_bits_are_those_of_struct(scale):
    line = calib_cache.write(calib_cache.Cache(8601, "MinMaxCalibration", {"x": scale})).splitlines()[1]
    assert line == "x: " + struct.pack(">f", scale).hex()


def test_a_scale_without_leading_zeros_is_read():
    assert calib_cache.parse("TRT-8601-MinMaxCalibration\nx: 0\ny: 1").scales == {"x": 0.0, "y": 2.0**-149}


@pytest.mark.parametrize("text", ["", "1\nimages: 3c010204", "TRT-8601-\n", "{}"])
def test_another_header_is_refused(text):
    with pytest.raises(ValueError, match="first line"):
        calib_cache.parse(text)


@pytest.mark.parametrize("line", ["images", "images 3c010204", "images: 3c01020g", "images: 03c010204", "images: ", ""])
def test_a_damaged_line_is_named(line):
    with pytest.raises(ValueError, match="line 3"):
        calib_cache.parse(f"TRT-8601-MinMaxCalibration\nx: 3c010204\n{line}\ny: 3c010204")


@pytest.mark.parametrize("bits", ["7f800000", "7fc00000", "bc010204"])
def test_a_scale_that_is_no_range_is_refused(bits):
    with pytest.raises(ValueError, match="'images'"):
        calib_cache.parse(f"TRT-8601-MinMaxCalibration\nimages: {bits}")


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), 1e39])
def test_a_scale_that_cannot_be_read_back_is_not_written(scale):
    with pytest.raises(ValueError, match="'x'"):
        calib_cache.write(calib_cache.Cache(8601, "MinMaxCalibration", {"x": scale}))


def test_ratios_compare_thresholds_of_common_tensors():
    table = {"a": Range(-1.0, 2.54), "b": Range(-1.27, 0.5), "zero": Range(0.0, 0.0), "ours": Range(0.0, 1.0)}
    scales = {"a": 0.02, "b": 0.02, "zero": 0.5, "theirs": 0.1}
    assert calib_cache.ratios(scales, table) == pytest.approx({"a": 1.0, "b": 2.0})
