"""amax_mse and amax_entropy against searches over raw samples, closed forms and SciPy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trtkit import calib, estimators, quant
from trtkit.calib import Histogram


def _histogram(*batches: np.ndarray) -> Histogram:
    h = Histogram()
    for x in batches:
        h.collect(x.astype(np.float32))
    return h


def _brute_force_mse(x: np.ndarray, candidates: np.ndarray, levels: int = 127) -> np.ndarray:
    """Error of every threshold on the raw samples, written without the histogram."""
    errors = []
    for a in candidates:
        step = a / levels
        errors.append(np.square(np.clip(np.round(x / step), -levels, levels) * step - x).mean())
    return np.array(errors)


def test_mse_threshold_is_as_good_as_a_search_over_the_raw_samples(rng):
    x = rng.normal(size=200_000)
    got = calib.amax_mse(_histogram(x))
    candidates = np.abs(x).max() * np.arange(1, 257) / 256
    errors = _brute_force_mse(x, candidates)
    best = candidates[errors.argmin()]
    # The minimum is flat, so the threshold may differ by a few candidates while the error may not differ by 0.5 %.
    assert abs(got - best) <= 4 * candidates[0]
    assert _brute_force_mse(x, np.array([got]))[0] <= errors.min() * 1.005


def test_mse_threshold_of_a_gaussian_is_the_optimum_of_its_error_integral(rng):
    """Independent of samples: minimise step^2 / 12 + 2 * integral from a of (t - a)^2 phi(t), which gives 4.0 sigma."""
    t = np.linspace(0, 10, 40_001)
    phi = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    a = np.linspace(2, 6, 401)
    clipping = np.array([2 * np.sum(np.maximum(t - v, 0) ** 2 * phi) * (t[1] - t[0]) for v in a])
    theory = a[np.argmin((a / 127) ** 2 / 12 + clipping)]
    assert theory == pytest.approx(3.92, abs=0.15)
    h = _histogram(rng.normal(size=1_000_000))
    assert calib.amax_mse(h) == pytest.approx(theory, abs=0.15)


def test_mse_clips_an_outlier_by_the_closed_form(rng):
    """One value A among n: (A - a)^2 / n + a^2 / (12 * 127^2) is least at a = A / (1 + n / (12 * 127^2))."""
    n, outlier = 500_000, 60.0
    x = np.append(rng.normal(size=n), outlier).astype(np.float32)
    h = _histogram(x)
    assert calib.amax_mse(h) == pytest.approx(outlier / (1 + n / (12 * 127**2)), abs=2 * outlier / 256)
    sqnr = [quant.sqnr_db(x[:-1], quant.fake_quantize(x[:-1], quant.symmetric_qparams(a)))
            for a in (calib.amax_mse(h), calib.amax_max(h))]
    assert sqnr[0] > sqnr[1] + 6


@given(st.integers(300, 3000), st.integers(1, 100))
def test_mse_has_no_liking_for_thresholds_whose_step_is_a_whole_number_of_bins(n, seed):
    """Uniform values, many of them: theory says a / 127 rounds worst at the widest range, so max is within a step."""
    x = (np.arange(n * 100) + 0.5) / (n * 100) * np.random.default_rng(seed).uniform(1, 2)
    h = _histogram(x)
    assert calib.amax_mse(h) >= h.amax * (1 - 1 / 127)


def _kl(bins: np.ndarray, i: int, levels: int) -> float:
    """The definition, bin by bin, with SciPy's KL."""
    p, q = bins[:i].astype(float).copy(), np.zeros(i)
    if not p.any():
        return np.inf
    p[np.flatnonzero(p)[-1]] += bins[i:].sum()
    group = np.floor(np.arange(i) * levels / i + 1e-9).astype(int)
    for g in range(levels):
        members = (group == g) & (bins[:i] > 0)
        if members.any():
            q[members] = bins[:i][members].mean()
    return float(scipy.stats.entropy(p, q))


@given(arrays(np.int64, st.integers(9, 40), elements=st.one_of(st.just(0), st.integers(0, 10**6))).filter(np.any),
       st.sampled_from([4, 8]))
def test_divergences_are_scipys_on_any_bins(bins, levels):
    got = estimators.kl_divergences(bins.astype(float), start=8, levels=levels)
    expected = np.array([_kl(bins, i, levels) for i in range(8, len(bins) + 1)])
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@given(st.floats(0.01, 100), st.integers(0, 5))
def test_entropy_keeps_most_of_a_gaussian_and_cuts_a_lone_outlier(sigma, seed):
    x = np.random.default_rng(seed).normal(0, sigma, 20_000)
    assert calib.amax_entropy(_histogram(x)) > 2.5 * sigma
    assert calib.amax_entropy(_histogram(x, np.array([100 * sigma]))) < 10 * sigma


def test_zeros_do_not_move_entropy(rng):
    x = rng.normal(size=100_000)
    assert calib.amax_entropy(_histogram(x, np.zeros(10**6))) == calib.amax_entropy(_histogram(x))


def test_entropy_never_clips_more_than_half(rng):
    """Far from zero the divergence of a threshold below (nearly) all values is 0; see nvidia_calib."""
    x = rng.normal(3, 0.5, 200_000)
    assert calib.amax_entropy(_histogram(x)) > np.median(x)


def test_an_estimate_changes_nothing_in_the_histogram(rng):
    h = _histogram(rng.normal(size=1000))
    before = h.counts.copy(), h.width, h.zeros
    for estimate in calib.ESTIMATORS.values():
        estimate(h)
    np.testing.assert_array_equal(h.counts, before[0])
    assert (h.width, h.zeros) == before[1:]


@pytest.mark.parametrize("estimate", [calib.amax_mse, calib.amax_entropy])
@pytest.mark.parametrize("levels", [0, -3])
def test_no_levels_are_no_grid(estimate, levels, rng):
    with pytest.raises(ValueError, match=f"levels: got {levels}, expected at least 1"):
        estimate(_histogram(rng.normal(size=1000)), levels=levels)
