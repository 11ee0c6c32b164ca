"""Exercises of lesson 03, calibration: what a right answer is, and what to say to those who are stuck."""

import numpy as np

from trtkit.check import Exercise


def _merge_histograms(
    counts_a: np.ndarray, width_a: float, counts_b: np.ndarray, width_b: float
) -> tuple[np.ndarray, float]:
    """Halve the finer one until the widths agree, then add; both have the same even number of bins."""
    while width_a != width_b:
        if width_a > width_b:
            counts_a, counts_b, width_a, width_b = counts_b, counts_a, width_b, width_a
        counts_a = np.append(counts_a.reshape(-1, 2).sum(1), np.zeros(len(counts_a) // 2, counts_a.dtype))
        width_a *= 2
    return counts_a + counts_b, width_a


def _best_cut(outlier: float, n: int, bits: int) -> float:
    """Least (outlier - a)^2 + n (a / (2^(bits - 1) - 1))^2 / 12."""
    levels = 2 ** (bits - 1) - 1
    return outlier / (1 + n / (12 * levels**2))


_A, _B = np.array([5, 0, 2, 1, 0, 0, 3, 4]), np.array([1, 1, 0, 0, 2, 0, 0, 7])

EXERCISES = {
    "03_merge_histograms": Exercise(
        _merge_histograms,
        [(_A, 0.5, _B, 0.5), (_A, 0.25, _B, 1.0), (_A, 2.0, _B, 0.5)],
        (
            "adding needs equal widths: which of the two has to give up detail",
            "two neighbours of the finer one become one bin, its upper half becomes empty, its width doubles; repeat",
            "return a + b, width, once each step for the finer one has been c = np.append(c.reshape(-1, 2).sum(1), "
            "np.zeros(len(c) // 2, c.dtype)) and width *= 2",
        ),
    ),
    "03_best_cut": Exercise(
        _best_cut,
        [(60.0, 500_000, 8), (60.0, 1_000, 8), (10.0, 5_000, 4)],
        (
            "write the total squared error as a function of the threshold a; one part grows with a, one falls",
            "the outlier costs (A - a)^2, and each of n rounded values costs step^2 / 12 with step = a / levels",
            "return outlier / (1 + n / (12 * levels**2)) with levels = 2 ** (bits - 1) - 1, where the derivative is 0",
        ),
    ),
}
