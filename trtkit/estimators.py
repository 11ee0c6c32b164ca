"""Which range loses least? Four estimators of the threshold amax, read off one histogram of |x|. Lesson 03.

    amax_max         the largest value seen: nothing clips
    amax_percentile  a given share of all values lies below
    amax_entropy     least KL divergence between the values before and after clipping and merging to 128 levels
    amax_mse         least mean squared error of 8-bit fake quantization
`nvidia_calib` has the choices of NVIDIA's tools instead, defects included; its docstring lists the differences.
Source: Migacz 2017, "8-bit Inference with TensorRT" (entropy); Wu et al. 2020, "Integer Quantization for Deep Learning
Inference", section 5.1 (all four).
"""

from collections.abc import Callable

import numpy as np

from trtkit.histogram import Histogram

MSE_CANDIDATES = 1024


def _require_levels(levels: int) -> None:
    if levels < 1:
        raise ValueError(f"levels: got {levels}, expected at least 1")


def _require_data(hist: Histogram) -> None:
    if hist.counts.sum() == 0:
        raise ValueError("histogram: got no values, expected at least one; the calibration set is empty")


def amax_max(hist: Histogram) -> float:
    """The largest magnitude seen.

    Raises:
        ValueError: the histogram is empty.
    """
    _require_data(hist)
    return hist.amax


def amax_percentile(hist: Histogram, percentile: float = 99.99) -> float:
    """Smallest bin edge below which at least `percentile` % of all values lie, at most the largest value seen.

    Raises:
        ValueError: the histogram is empty, or percentile is outside (0, 100].
    """
    _require_data(hist)
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: got {percentile}, expected a number in (0, 100], for example 99.99")
    cumulative = np.cumsum(hist.counts)
    i = int(np.searchsorted(cumulative, percentile / 100 * cumulative[-1]))
    return min((i + 1) * hist.width, hist.amax)


def amax_mse(hist: Histogram, *, levels: int = 127) -> float:
    """Threshold with the least mean squared error of symmetric fake quantization, values spread evenly over their bins.

    Error of a threshold a with step s = a / levels, values x with codes q = min(round(x / s), levels):
        sum (x - q s)^2 = sum x^2 - 2 s sum x q + s^2 sum q^2
    At the bins' centres instead, a step of a whole number of bins would seem better than its neighbours, and is not.

    Args:
        hist: at least one value.
        levels: positive codes; 127 for INT8.

    Returns:
        One of 1,024 thresholds, evenly spaced up to the largest value seen; the first of equal ones.

    Raises:
        ValueError: the histogram is empty, or no levels.
    """
    _require_data(hist)
    _require_levels(levels)
    if hist.amax == 0:
        return 0.0
    bins = np.arange(len(hist.counts))                                          # everything in units of a bin
    candidates = hist.amax / hist.width * np.arange(1, MSE_CANDIDATES + 1) / MSE_CANDIDATES
    step = candidates / levels
    q = np.arange(1, levels + 1)
    begin = (q - 0.5) * step[:, None]               # where code q begins, (1024, levels)
    cut = begin.astype(np.intp)                     # the bin that this cuts in two
    behind = hist.counts[cut] * (cut + 1 - begin)   # its values behind the cut; their mean is in the middle there
    values = _sum_behind(hist.counts)[cut] + behind
    mass = _sum_behind(hist.counts * (bins + 0.5))[cut] + behind * (begin + cut + 1) / 2
    # A sum over codes is one over what lies behind their begins: q = 1 + ... + 1, and q^2 = 1 + 3 + ... + (2q - 1).
    error = -2 * step * mass.sum(1) + step**2 * (values @ (2.0 * q - 1))
    return float(candidates[np.argmin(error)] * hist.width)


def _sum_behind(per_bin: np.ndarray) -> np.ndarray:
    """(B,) float64: sum of all bins after bin k, for each k."""
    return np.append(np.cumsum(per_bin[:0:-1], dtype=np.float64)[::-1], 0.0)


def amax_entropy(hist: Histogram, *, levels: int = 128) -> float:
    """Threshold with the least `kl_divergences`, over the bin edges from the `levels`-th on.

    Values that are exactly zero stay out: every grid holds them exactly, and a ReLU makes so many of them that they
    would decide alone. A threshold that clips more than half of the others is no candidate: where hardly anything lies
    below it, P and Q are one bin each and agree, and the divergence praises a range that clips everything.

    Args:
        hist: at least one value.
        levels: into how many codes the values below the threshold merge; 128 for the positive half of INT8.

    Returns:
        A bin edge, at most the largest value seen; the largest of equal ones, which clips least.

    Raises:
        ValueError: the histogram is empty, or no levels.
    """
    _require_data(hist)
    _require_levels(levels)
    used = np.trim_zeros(hist.counts, "b").astype(np.float64)
    used[0] -= hist.zeros
    if used.sum() == 0 or len(used) <= levels:          # only zeros; or denormal numbers, too few bins to merge
        return hist.amax
    median_bin = int(np.searchsorted(np.cumsum(used), used.sum() / 2))
    start = max(levels, median_bin + 1)
    divergences = kl_divergences(used, start=start, levels=levels)
    best = int(np.flatnonzero(divergences <= divergences.min() + 1e-12)[-1])    # rounding must not part equal ones
    return min((start + best) * hist.width, hist.amax)


def kl_divergences(bins: np.ndarray, *, start: int, levels: int) -> np.ndarray:
    """KL(P || Q) of clipping behind the first i bins, for i = start ... B.

    P is bins[:i] with all later values added to the last of them that is not empty. Q merges bins[:i], without the
    later values, into `levels` groups and spreads each group's values evenly over those of its bins that are not
    empty. Both are scaled to sum 1:
        KL = 1/T (sum P log P - sum P log Q) - log T + log S,    T = sum of all bins, S = sum of bins[:i]
    Within a group Q is constant, so sums over 128 groups replace sums over i bins.

    Args:
        bins: (B,) float64, at least one above 0.
        start: first i, from 1 to B.
        levels: number of groups.

    Returns:
        (B - start + 1,) float64, at least 0 up to rounding, never NaN; infinite where all values lie behind the
        threshold.
    """
    i = np.arange(start, len(bins) + 1)
    # Group g holds the bins k with g <= k levels / i < g + 1.
    border = -(-np.arange(levels + 1) * i[:, None] // levels)                   # (candidates, levels + 1)
    below = np.append(0.0, np.cumsum(bins))
    filled = np.append(0, np.cumsum(bins > 0))
    in_group = np.diff(below[border])                                           # values, and bins that are not empty
    log_q = _log(in_group / np.maximum(np.diff(filled[border]), 1))
    total, tail = below[-1], below[-1] - below[i]
    index_of_last = np.maximum.accumulate(np.where(bins > 0, np.arange(len(bins)), 0))[i - 1]
    last = bins[index_of_last]
    group_of_last = (index_of_last * levels // i)[:, None]
    p_log_q = (in_group * log_q).sum(1) + tail * np.take_along_axis(log_q, group_of_last, 1)[:, 0]
    p_log_p = np.append(0.0, np.cumsum(bins * _log(bins)))[index_of_last] + (last + tail) * _log(last + tail)
    divergences = (p_log_p - p_log_q) / total - np.log(total) + _log(below[i])
    return np.where(below[i] == 0, np.inf, divergences)


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm, 0 where x is 0: there it is only ever multiplied by 0."""
    return np.log(np.where(x > 0, x, 1.0))


ESTIMATORS: dict[str, Callable[[Histogram], float]] = {
    "max": amax_max,
    "percentile": amax_percentile,
    "entropy": amax_entropy,
    "mse": amax_mse,
}
