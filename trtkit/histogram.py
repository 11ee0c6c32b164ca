"""What values does a tensor take? A histogram of |x| over a stream of batches. Lesson 03.

Bins have equal width w, and bin k counts k * w <= |x| < (k + 1) * w. The first batch cannot know how large later ones
are, so w is a power of two and doubles when a larger value comes: neighbours merge, nothing is counted anew.
Left out on purpose: the sign (`low` and `high` keep the extremes), and bins finer than 1/4096 of the range.
"""

import math

import numpy as np

BINS = 4096                 # the width is a power of two, so between 2,048 and 4,096 of them are in use
FLOAT32_MAX = float(np.finfo(np.float32).max)
BLOCK = 1 << 18             # values binned at a time: temporary arrays stay in the cache, whatever the tensor's size


class Histogram:
    """Counts of |x| in bins of equal width, for a stream of batches of unknown range.

    The width is a power of two and doubles (neighbours merge) when a larger value comes, so no count is lost and the
    result does not depend on the order of the batches. Counts are int64: float32 counts stop growing at 2^24.

    Attributes: `counts` (4096,) int64, `width` float (0 before any non-zero value), `zeros` how many values are exactly
    0, `low` and `high` (extremes of x).
    """

    def __init__(self):
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.zeros = 0
        self.low, self.high = math.inf, -math.inf

    def collect(self, x: np.ndarray) -> None:
        """Add a batch: any shape, float16, float32 or float64, finite in float32. An empty one changes nothing.

        Raises:
            ValueError: NaN, infinity or beyond float32 in the batch, or no floats; the histogram keeps its state.
        """
        x = np.asarray(x)
        if x.dtype.kind != "f":
            raise ValueError(f"x: got {x.dtype}, expected float16, float32 or float64; use x.astype(np.float32)")
        if x.size == 0:
            return
        low, high = float(x.min()), float(x.max())
        amax = max(-low, high)
        if not (math.isfinite(low) and amax <= FLOAT32_MAX):       # NaN fails both
            raise ValueError(f"x: got values from {low} to {high}, expected finite ones; find the layer that overflows")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen_to(max(abs(low), abs(high)))
        flat = x.reshape(-1)
        for start in range(0, x.size, BLOCK):
            self._count(flat[start : start + BLOCK])

    def _count(self, x: np.ndarray) -> None:
        self.zeros += x.size - np.count_nonzero(x)
        # Scaling by a power of two is exact in float32: a value at an edge lands in the upper bin, amax below BINS.
        index = (np.abs(x) * np.float32(1 / self.width)).astype(np.int32) if self.width else np.zeros(x.size, np.int32)
        self.counts += np.bincount(index, minlength=BINS)

    def _widen_to(self, amax: float) -> None:
        if amax == 0:
            return
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
