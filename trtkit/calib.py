"""Which range loses least? Lesson 03.

A range that is too wide wastes codes, one that is too narrow clips. Activations are seen as a histogram of |x|, made
once over the calibration images; each estimator reads a threshold amax off the same histogram:
    amax_max         the largest value seen: nothing clips
    amax_percentile  a given share of all values lies below
    amax_mse         least mean squared error of 8-bit fake quantization
Left out so far: the entropy estimator.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trtkit.files import replacing
from trtkit.progress import bar

BINS = 4096                 # the bin width is a power of two, so between 2,048 and 4,096 of them are in use
MSE_CANDIDATES = 256


@dataclass(frozen=True)
class Range:
    """What one tensor is clipped to: low <= 0 <= high, and amax = max(-low, high) where symmetric."""

    low: float
    high: float

    @property
    def amax(self) -> float:
        """Threshold of the symmetric range."""
        return max(-self.low, self.high)


class Histogram:
    """Counts of |x| in bins of equal width, for a stream of batches of unknown range.

    The width is a power of two and doubles (neighbours merge) when a larger value comes, so no count is lost and the
    result does not depend on the order of the batches. Counts are int64: float32 counts stop growing at 2^24.

    Attributes: `counts` (4096,) int64, `width` float (0 before any non-zero value), `low` and `high` (extremes of x).
    """

    def __init__(self):
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.low, self.high = math.inf, -math.inf

    def collect(self, x: np.ndarray) -> None:
        """Add a batch: any shape, float, finite. An empty one changes nothing.

        Raises:
            ValueError: NaN or infinity in the batch; the histogram keeps its state.
        """
        if x.size == 0:
            return
        low, high = float(x.min()), float(x.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"x: got values from {low} to {high}, expected finite ones; find the layer that overflows")
        self.low, self.high = min(self.low, low), max(self.high, high)
        amax = max(abs(low), abs(high))
        if amax > 0:
            self._widen_to(amax)
            # Scaling by a power of two is exact in float32: a value at an edge lands in the upper bin, amax below BINS.
            index = (np.abs(x.ravel()) * np.float32(1 / self.width)).astype(np.int32)
            self.counts += np.bincount(index, minlength=BINS)
        else:
            self.counts[0] += x.size

    def _widen_to(self, amax: float) -> None:
        # Strictly above amax: a value at the last edge would be counted one bin lower than after a later doubling, and
        # the result would depend on the order. float32 cannot hold the inverse of a width below 2^-126.
        needed = max(2.0 ** math.frexp(amax)[1] / BINS, 2.0**-126)
        if self.width == 0:                     # only zeros so far, and they stay in bin 0
            self.width = needed
        while self.width < needed:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.width *= 2

    @property
    def amax(self) -> float:
        """Largest magnitude seen; 0 where only zeros were."""
        return max(-self.low, self.high, 0.0)


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
    """Threshold with the least mean squared error of symmetric fake quantization, values at their bins' centres.

    Error of a threshold a with step a / levels: rounding inside [0, a], clipping outside.

    Args:
        hist: at least one value.
        levels: positive codes; 127 for INT8.

    Returns:
        One of 256 thresholds, evenly spaced up to the largest value seen.

    Raises:
        ValueError: the histogram is empty.
    """
    _require_data(hist)
    if hist.amax == 0:
        return 0.0
    used = np.flatnonzero(hist.counts)
    centres, counts = (used + 0.5) * hist.width, hist.counts[used]
    candidates = hist.amax * np.arange(1, MSE_CANDIDATES + 1) / MSE_CANDIDATES
    step = candidates[:, None] / levels                                         # (256, 1)
    rounded = np.minimum(np.rint(centres / step), levels) * step                # (256, bins in use)
    return float(candidates[np.argmin(np.square(rounded - centres) @ counts)])


ESTIMATORS: dict[str, Callable[[Histogram], float]] = {
    "max": amax_max,
    "percentile": amax_percentile,
    "mse": amax_mse,
}


def collect(
    infer: Callable[[np.ndarray], dict[str, np.ndarray]], batches: Iterable[np.ndarray], *, progress: bool = True
) -> dict[str, Histogram]:
    """Histograms of every tensor that `infer` returns. One batch of activations is in memory at a time.

    Args:
        infer: a batch to its activations by name, for example a runner of `export.expose_tensors`' graph.
        batches: inputs of `infer`.
        progress: show a bar.

    Returns:
        One histogram per name.

    Raises:
        ValueError: no batches, or a tensor with NaN or infinity (named).
    """
    histograms: dict[str, Histogram] = {}
    for batch in bar(batches, "calibrate", unit="batch", show=progress):
        for name, x in infer(batch).items():
            try:
                histograms.setdefault(name, Histogram()).collect(x)
            except ValueError as e:
                raise ValueError(f"tensor {name!r}: {e}") from e
    if not histograms:
        raise ValueError("batches: got none, expected at least one calibration image; see data.load_split('calib')")
    return histograms


def ranges(histograms: dict[str, Histogram], method: str = "percentile") -> dict[str, Range]:
    """The calibration table: each tensor's range by one estimator, cut to the values that were seen.

    Args:
        histograms: from `collect`.
        method: "max", "percentile" or "mse".

    Returns:
        One range per name.

    Raises:
        ValueError: unknown method or an empty histogram (named).
    """
    if method not in ESTIMATORS:
        raise ValueError(f"method: got {method!r}, expected one of {sorted(ESTIMATORS)}")
    table = {}
    for name, hist in histograms.items():
        try:
            amax = ESTIMATORS[method](hist)
        except ValueError as e:
            raise ValueError(f"tensor {name!r}: {e}") from e
        table[name] = Range(min(max(hist.low, -amax), 0.0), max(min(hist.high, amax), 0.0))
    return table


def save_table(path: Path, table: dict[str, Range], *, graph_sha256: str, method: str, images: int) -> None:
    """Write a calibration table as JSON that a person can read, with the hash of the graph that it belongs to."""
    body = {
        "graph_sha256": graph_sha256,
        "method": method,
        "images": images,
        "tensors": {name: asdict(r) for name, r in table.items()},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(body, indent=1) + "\n")


def load_table(path: Path, *, graph_sha256: str) -> dict[str, Range]:
    """Read a calibration table back.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, or made for another graph.
    """
    try:
        body = json.loads(Path(path).read_text())
        table = {name: Range(float(r["low"]), float(r["high"])) for name, r in body["tensors"].items()}
        made_for = str(body["graph_sha256"])
        if wrong := [name for name, r in table.items() if not r.low <= 0 <= r.high]:        # NaN too
            raise ValueError(f"tensor {wrong[0]!r}: got {table[wrong[0]]}, expected low <= 0 <= high")
    except (ValueError, KeyError, TypeError, AttributeError) as e:      # ValueError: no JSON, no text, no number
        raise ValueError(f"table: {path} is no calibration table ({e!r}); write one with calib.save_table") from e
    if made_for != graph_sha256:
        raise ValueError(f"table: {path} was made for graph {made_for[:12]}, expected {graph_sha256[:12]}; calibrate "
                         "again, since a retrained or pruned network has other ranges")
    return table
