"""NVIDIA's calibrators to the letter: which bin would Model-Optimizer 0.47 choose? Lesson 03.

Functions of (hist, edges): counts of |x| in, usually, 2,048 bins and the B + 1 edges between them. They return the same
bin as `_compute_amax_percentile`, `_compute_amax_entropy` and `_compute_amax_mse` of
modelopt/torch/quantization/calib/histogram.py, with what those functions were meant to do where they fail:
* its mse passes num_bits where the callee takes a bias, and then returns the first candidate always;
* its entropy lets a NaN win: the divergence of a threshold below all values, or of a histogram that is empty but for
  bin 0. Here such a candidate loses, and if none is left nothing is clipped;
* its entropy writes hist[0] = hist[1] into the caller's array, so whatever runs next sees another histogram.

How `estimators` differs, on purpose:
                NVIDIA, here                                     trtkit.estimators
    counts      torch.histc, float32: stop growing at 2^24       int64
    bin 0       replaced by bin 1                                exact zeros left out, small values kept
    entropy     a threshold in a gap, above an empty bin, with   what it clips counts in the last filled bin, so
                values behind it is infinite and never wins      a gap may be cut
                a threshold below nearly all values can win      clips at most half of the values
    percentile  lower edge of the bin that crosses the share:    upper edge: at least the share lies below, and
                a little less than the share lies below          100 % is the maximum
    mse         thresholds are bin centres from 128 on, so       1,024 thresholds up to the maximum; values are
                never the maximum; values are bin centres;       spread evenly over their bins; float64
                float32
    range       grows by whole bins of the first batch's width   bins merge, at most 4,096
"""

import numpy as np

from trtkit.estimators import kl_divergences

START_BIN = 128


def percentile_index(hist: np.ndarray, edges: np.ndarray, percentile: float = 99.99) -> int:
    """Bin in which the cumulated share reaches `percentile` %; the threshold is `edges[index]`, its lower edge.

    Raises:
        ValueError: an empty histogram, edges that do not fit, or percentile outside [0, 100].
    """
    hist, edges = _checked(hist, edges)
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile: got {percentile}, expected a number in [0, 100], for example 99.99")
    # Shares first, then their sum, as in the original: at 100 % rounding decides.
    return int(np.searchsorted(np.cumsum(hist / hist.sum()), percentile / 100))


def entropy_index(
    hist: np.ndarray, edges: np.ndarray, *, num_bits: int = 8, unsigned: bool = False, start_bin: int = START_BIN
) -> int:
    """Number of bins below the threshold of least KL divergence; the threshold is `edges[index]`. The last of equals.

    Args:
        hist: (B,) integer counts, B at least `start_bin`; not modified.
        edges: (B + 1,) float, ascending.
        num_bits: of the codes.
        unsigned: 2^num_bits levels instead of half as many.
        start_bin: the first candidate.

    Returns:
        From `start_bin` to B.

    Raises:
        ValueError: an empty histogram, too few bins, or edges that do not fit.
    """
    hist, _ = _checked(hist, edges, start_bin)
    bins = hist.astype(np.float64)                      # a copy
    bins[0] = bins[1]
    levels = 1 << (num_bits - 1 + int(unsigned))
    if not bins.any():
        return len(bins)
    divergences = kl_divergences(bins, start=start_bin, levels=levels)
    # The original adds what is clipped to the last bin even where that is empty: then Q is 0 where P is not.
    clipped = bins.sum() - np.cumsum(bins)[start_bin - 1 :]
    divergences[(bins[start_bin - 1 :] == 0) & (clipped > 0)] = np.inf
    # Sums over groups round otherwise than the original's sums over bins. That matters for (nearly) equal candidates
    # only, so those are computed again, bin by bin.
    near = np.flatnonzero(divergences <= divergences.min() + 1e-10) + start_bin
    exact = np.array([_divergence(bins, int(i), levels) for i in near])
    return int(near[np.flatnonzero(exact == exact.min())[-1]])


def _divergence(bins: np.ndarray, i: int, levels: int) -> float:
    """The same number as `kl_divergences`, added up in the original's order."""
    p = bins[:i].copy()
    p[-1] += bins[i:].sum()
    group = np.arange(i) * levels // i
    filled = bins[:i] > 0
    size = np.bincount(group, filled, levels)
    q = np.where(filled, (np.bincount(group, bins[:i], levels) / np.maximum(size, 1))[group], 0.0)
    p, q = p / p.sum(), q / q.sum()
    term = np.zeros(i)
    p_in, q_in = p[filled], q[filled]
    close = (p_in < 2 * q_in) & (2 * p_in > q_in)       # scipy.special.rel_entr keeps more digits there
    term[filled] = p_in * np.where(close, np.log1p((p_in - q_in) / q_in), np.log(p_in / q_in))
    return float(term.sum())


def mse_index(
    hist: np.ndarray, edges: np.ndarray, *, num_bits: int = 8, unsigned: bool = False, start_bin: int = START_BIN
) -> int:
    """Bin whose centre, as threshold, gives the least squared error of fake quantization. The first of equals.

    Args:
        hist: (B,) integer counts, B above `start_bin`; not modified.
        edges: (B + 1,) float, ascending.
        num_bits: of the codes.
        unsigned: 2^num_bits - 1 positive codes instead of about half as many.
        start_bin: the first candidate.

    Returns:
        From `start_bin` to B - 1; the threshold is `(edges[index] + edges[index + 1]) / 2`.

    Raises:
        ValueError: an empty histogram, too few bins, or edges that do not fit.
    """
    hist, edges = _checked(hist, edges, start_bin + 1)
    edges = edges.astype(np.float32)
    centres = (edges[1:] + edges[:-1]) / 2
    top = np.float32(2 ** (num_bits - 1 + int(unsigned)) - 1)
    filled = np.flatnonzero(hist)
    c, counts = centres[filled], hist[filled].astype(np.float32)
    scale = top / np.maximum(centres[start_bin:], np.finfo(np.float32).tiny)
    scale[centres[start_bin:] <= 2.0**-24] = 0          # the original's "zero": everything becomes code 0
    errors = np.empty(len(scale))
    for first in range(0, len(scale), 32):              # 32 x 2,048 float32 fit a core's cache
        s = scale[first : first + 32, None]
        steps = c * s
        np.rint(steps, out=steps)
        np.minimum(steps, top, out=steps)
        np.divide(steps, np.where(s > 0, s, np.float32(1)), out=steps)
        np.subtract(steps, c, out=steps)
        np.square(steps, out=steps)
        errors[first : first + 32] = steps @ counts
    return start_bin + int(np.argmin(errors))


def amax_percentile(hist: np.ndarray, edges: np.ndarray, percentile: float = 99.99) -> float:
    """Threshold of `percentile_index`."""
    return float(edges[percentile_index(hist, edges, percentile)])


def amax_entropy(hist: np.ndarray, edges: np.ndarray) -> float:
    """Threshold of `entropy_index` for INT8."""
    return float(edges[entropy_index(hist, edges)])


def amax_mse(hist: np.ndarray, edges: np.ndarray) -> float:
    """Threshold of `mse_index` for INT8."""
    i = mse_index(hist, edges)
    return float((np.float32(edges[i]) + np.float32(edges[i + 1])) / 2)


def _checked(hist: np.ndarray, edges: np.ndarray, at_least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    hist, edges = np.asarray(hist), np.asarray(edges)
    if hist.ndim != 1 or edges.shape != (len(hist) + 1,):
        raise ValueError(f"edges: got shape {edges.shape} for hist {hist.shape}, expected one edge more than bins; "
                         "see numpy.histogram")
    if len(hist) < at_least:
        raise ValueError(f"hist: got {len(hist)} bins, expected at least {at_least}; NVIDIA's tools use 2048")
    if not np.isfinite(edges).all() or (hist < 0).any() or not hist.sum() > 0:
        raise ValueError("hist: got no values, negative counts or edges that are not finite, expected counts of |x|; "
                         "is the calibration set empty?")
    return hist, edges
