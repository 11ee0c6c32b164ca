import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trtkit import calib, histogram
from trtkit.calib import Histogram, Range

# Powers of two sit on bin edges, where an off-by-one hides.
VALUES = st.one_of(
    st.floats(-1e4, 1e4, width=32),
    st.integers(-20, 20).map(lambda e: 2.0**e),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3.4e38]),
)
BATCHES = st.lists(st.lists(VALUES, max_size=20).map(lambda v: np.array(v, np.float32)), min_size=1, max_size=6)


def _histogram(batches) -> Histogram:
    h = Histogram()
    for x in batches:
        h.collect(x)
    return h


@given(BATCHES, st.randoms(use_true_random=False))
def test_histogram_does_not_depend_on_the_order_or_the_grouping_of_batches(batches, random):
    a = _histogram(batches)
    shuffled = list(batches)
    random.shuffle(shuffled)
    for other in (_histogram(shuffled), _histogram([np.concatenate(batches)])):
        np.testing.assert_array_equal(other.counts, a.counts)
        assert (other.width, other.low, other.high) == (a.width, a.low, a.high)


@given(BATCHES)
def test_every_value_is_counted_once_and_in_numpys_bin(batches):
    h, x = _histogram(batches), np.concatenate(batches)
    assert h.counts.sum() == x.size
    if x.size and h.width:
        edges = np.arange(calib.BINS + 1) * h.width
        np.testing.assert_array_equal(h.counts, np.histogram(np.abs(x).astype(np.float64), edges)[0])


@given(BATCHES.filter(lambda b: any(x.size for x in b)))
def test_amax_max_is_exact(batches):
    assert calib.amax_max(_histogram(batches)) == np.abs(np.concatenate(batches)).max()


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_at_least_half_of_the_bins_are_in_use(amax):
    h = _histogram([np.array([amax], np.float32)])
    assert amax < h.width * calib.BINS <= 2 * amax


def test_float16_and_float64_count_like_float32(rng):
    x = rng.normal(size=1000).astype(np.float16)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(_histogram([x]).counts, _histogram([x.astype(dtype)]).counts)


def test_counts_go_beyond_what_float32_can_count():
    h = Histogram()
    h.counts[0] = 2**24
    h.collect(np.zeros(1, np.float32))
    assert h.counts[0] == 2**24 + 1


@given(BATCHES.filter(lambda b: any(x.size for x in b)), st.floats(0.1, 100))
def test_at_least_the_given_share_lies_within_the_percentile(batches, percentile):
    h, x = _histogram(batches), np.abs(np.concatenate(batches)).astype(np.float64)
    amax = calib.amax_percentile(h, percentile)
    assert (x <= amax).mean() * 100 >= percentile - 1e-9
    # and it is the smallest such edge: one bin less holds less than the share
    if amax < h.amax:
        assert (x < amax - h.width).mean() * 100 < percentile


def test_percentile_meets_numpys_within_a_bin(rng):
    x = rng.normal(size=50_000).astype(np.float32)
    h = _histogram([x])
    assert calib.amax_percentile(h, 99.0) == pytest.approx(np.percentile(np.abs(x), 99.0), abs=h.width)
    assert calib.amax_percentile(h, 100) == np.abs(x).max()


@pytest.mark.parametrize("estimate", calib.ESTIMATORS.values(), ids=calib.ESTIMATORS.keys())
def test_estimators_of_zeros_are_zero_and_of_nothing_raise(estimate):
    assert estimate(_histogram([np.zeros(10, np.float32)])) == 0
    with pytest.raises(ValueError, match="empty"):
        estimate(Histogram())
    with pytest.raises(ValueError, match="empty"):
        estimate(_histogram([np.empty((0, 3), np.float32)]))


@given(arrays(np.float32, 30, elements=VALUES))
def test_no_estimate_is_larger_than_the_largest_value_or_negative(x):
    h = _histogram([x])
    for estimate in calib.ESTIMATORS.values():
        assert 0 <= estimate(h) <= np.abs(x).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_batch_is_refused_and_leaves_the_histogram_as_it_was(bad):
    h = _histogram([np.arange(5, dtype=np.float32)])
    before = h.counts.copy(), h.width, h.low, h.high
    with pytest.raises(ValueError, match="finite"):
        h.collect(np.array([100.0, bad, 1.0], np.float32))
    np.testing.assert_array_equal(h.counts, before[0])
    assert (h.width, h.low, h.high) == before[1:]


@pytest.mark.parametrize("x", [np.ones(3, np.int8), np.ones(3, bool), np.array(["a"]), np.full(2, 1e39)])
def test_what_float32_cannot_hold_is_refused(x):
    with pytest.raises(ValueError, match="expected"):
        Histogram().collect(x)


@pytest.mark.parametrize("x", [np.float32(-3.0), np.full((2, 3), 3.0, np.float16), np.array([0.0, 3.0], np.float32)])
def test_one_element_or_a_constant_is_its_own_range(x):
    h = _histogram([x])
    for name, estimate in calib.ESTIMATORS.items():
        assert estimate(h) == pytest.approx(3.0, rel=1e-3), name


@given(BATCHES)
def test_exact_zeros_are_counted(batches):
    assert _histogram(batches).zeros == sum(int((x == 0).sum()) for x in batches)


def test_a_tensor_larger_than_a_block_is_counted_like_its_parts(rng):
    x = rng.normal(size=(3, histogram.BLOCK // 2)).astype(np.float32)
    np.testing.assert_array_equal(_histogram([x]).counts, _histogram(list(x)).counts)


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan")])
def test_a_percentile_outside_its_range_is_refused(percentile):
    with pytest.raises(ValueError, match="percentile"):
        calib.amax_percentile(_histogram([np.ones(3, np.float32)]), percentile)


def test_collect_sees_every_batch_of_every_tensor():
    batches = [np.full((2, 3), v, np.float32) for v in (1.0, -4.0, 2.0)]
    histograms = calib.collect(lambda x: {"x": x, "half": x / 2}, iter(batches), progress=False)
    assert histograms["x"].counts.sum() == histograms["half"].counts.sum() == 18
    assert (histograms["x"].low, histograms["x"].high) == (-4, 2)
    assert histograms["half"].amax == 2


def test_collect_names_the_tensor_that_overflows():
    with pytest.raises(ValueError, match="'conv7'"):
        calib.collect(lambda x: {"ok": x, "conv7": x * np.nan}, [np.ones(2, np.float32)], progress=False)


def test_collect_of_no_images_raises():
    with pytest.raises(ValueError, match="at least one calibration image"):
        calib.collect(lambda x: {"x": x}, [], progress=False)


@given(arrays(np.float32, 30, elements=VALUES), st.sampled_from(sorted(calib.ESTIMATORS)))
def test_ranges_hold_zero_and_no_value_that_was_not_seen(x, method):
    r = calib.ranges({"x": _histogram([x])}, method)["x"]
    assert min(x.min(), 0) <= r.low <= 0 <= r.high <= max(x.max(), 0)
    if method == "max":
        assert (r.low, r.high) == (min(x.min(), 0), max(x.max(), 0)) and r.amax == np.abs(x).max()


def test_ranges_name_what_is_wrong():
    with pytest.raises(ValueError, match="'entropie'"):
        calib.ranges({}, "entropie")
    with pytest.raises(ValueError, match="'conv3'"):
        calib.ranges({"conv3": Histogram()}, "max")


TABLE = {"images": Range(0.0, 1.0), "/stem/Conv_output_0": Range(-0.1, 7.123456789012345)}


def _save(path):
    calib.save_table(path, TABLE, graph_sha256="ab" * 32, calib_sha256="12" * 32, method="mse", images=64)


def test_a_table_comes_back_exactly_and_no_temporary_file_stays(tmp_path):
    path = tmp_path / "table.json"
    _save(path)
    assert calib.load_table(path, graph_sha256="ab" * 32) == TABLE
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]
    body = json.loads(path.read_text())
    assert (body["images"], body["method"]) == (64, "mse")
    assert (body["graph_sha256"], body["calib_sha256"]) == ("ab" * 32, "12" * 32)


def test_a_table_of_another_graph_is_refused(tmp_path):
    _save(tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"abababababab.*cdcdcdcdcdcd"):
        calib.load_table(tmp_path / "t.json", graph_sha256="cd" * 32)


def test_a_table_of_another_calibration_set_is_refused(tmp_path):
    _save(tmp_path / "t.json")
    assert calib.load_table(tmp_path / "t.json", graph_sha256="ab" * 32, calib_sha256="12" * 32) == TABLE
    with pytest.raises(ValueError, match=r"calibration set 121212121212.*343434343434"):
        calib.load_table(tmp_path / "t.json", graph_sha256="ab" * 32, calib_sha256="34" * 32)


@pytest.mark.parametrize("change", [{"images": 0}, {"graph_sha256": ""}, {"calib_sha256": ""}])
def test_a_table_without_images_or_hashes_is_not_written(tmp_path, change):
    arguments = {"graph_sha256": "ab", "calib_sha256": "12", "method": "max", "images": 1} | change
    with pytest.raises(ValueError, match="both hashes"):
        calib.save_table(tmp_path / "t.json", TABLE, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [Range(0, np.nan), Range(-np.inf, 1), Range(0.5, 1), Range(0, 1e39)])
def test_a_table_with_a_range_that_makes_no_scale_is_not_written(tmp_path, bad):
    with pytest.raises(ValueError, match="'conv3'"):
        calib.save_table(tmp_path / "t.json", TABLE | {"conv3": bad}, graph_sha256="a", calib_sha256="b", method="max",
                         images=1)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[]", b"null", b"3", b"\xff\xfe", b"{}", b'{"tensors": 3, %s}', b'{"tensors": {}}',
     b'{"tensors": {"x": {"low": 0}}, %s}', b'{"tensors": {"x": {"low": "a", "high": 1}}, %s}',
     b'{"tensors": {"x": {"low": NaN, "high": 1}}, %s}', b'{"tensors": {"x": {"low": 3, "high": 1}}, %s}',
     b'{"tensors": {}, "graph_sha256": 5, "calib_sha256": "b"}', b'{"tensors": {}, "graph_sha256": "a"}'],
)  # fmt: skip
def test_a_broken_table_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content.replace(b"%s", b'"graph_sha256": "a", "calib_sha256": "b"'))
    with pytest.raises(ValueError, match=r"broken\.json"):
        calib.load_table(path, graph_sha256="a")


def test_a_truncated_table_is_refused(tmp_path):
    path = tmp_path / "t.json"
    _save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="no calibration table"):
        calib.load_table(path, graph_sha256="ab" * 32)


def test_a_missing_table_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        calib.load_table(tmp_path / "t.json", graph_sha256="a")


def test_an_infer_that_returns_nothing_is_named_before_anything_is_saved(tmp_path):
    state = tmp_path / "state.npz"
    with pytest.raises(ValueError, match="infer: returned no tensors"):
        calib.collect(lambda x: {}, [np.ones((1, 3), np.float32)], state=state, graph_sha256="g", save_every=1,
                      progress=False)
    assert not state.exists()
