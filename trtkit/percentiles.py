"""Percentiles of measured times, as trtexec counts them. Lesson 09.

    percentile p    sorted[max(n - 1 - floor((1 - p / 100) * n), 0)]: a time that was measured, no interpolation
    CV              coefficient of variation: population standard deviation / mean * 100
Source: TensorRT, samples/common/sampleReporting.cpp.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stats:
    """Times of one thing, milliseconds, by trtexec's definitions."""

    runs: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cv_percent: float


def percentile(ms: Sequence[float], p: float) -> float:
    """The measured time that p percent of all runs keep; the median for p = 50 averages the middle pair.

    Args:
        ms: one or more times.
        p: from 0 to 100.

    Raises:
        ValueError: no times, or p out of range.
    """
    ordered = np.sort(np.asarray(ms, np.float64))
    n = len(ordered)
    if not n or not 0 <= p <= 100:
        raise ValueError(f"percentile: got p = {p} of {n} times, expected 0 to 100 of at least one")
    if p == 50:
        return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
    above = int(np.floor(round((100 - p) * n / 100, 7)))       # rounded, since 100 - 99.9 is 0.0999... in floats
    return float(ordered[max(n - 1 - above, 0)])


def stats(ms: Sequence[float]) -> Stats:
    """All figures of some times, milliseconds.

    Raises:
        ValueError: no times.
    """
    ms = np.asarray(ms, np.float64)
    p50, p90, p95, p99 = (percentile(ms, p) for p in (50, 90, 95, 99))
    mean = float(ms.mean())
    cv = 100 * float(ms.std()) / mean if mean else 0.0
    return Stats(len(ms), float(ms.min()), mean, p50, p90, p95, p99, float(ms.max()), cv)
