"""Exercises of lesson 11, YOLOv3 optimized: what a right answer is, and what to say to those who are stuck."""

import math

from trtkit.check import Exercise


def _choose(points: list[tuple[float, float, float]], slowest_ms: float, largest_mb: float) -> int:
    """Index of the most accurate engine within both limits, the faster one of equals; -1 for none."""
    allowed = [i for i, (ms, _, mb) in enumerate(points) if ms <= slowest_ms and mb <= largest_mb]
    return min(allowed, key=lambda i: (-points[i][1], points[i][0]), default=-1)


def _area(points: list[tuple[float, float]], slowest_ms: float) -> float:
    """Integral over t from 0 to slowest_ms of the best accuracy that an engine of at most t ms has."""
    area, best, last = 0.0, 0.0, 0.0
    for ms, accuracy in sorted(points):
        if ms > slowest_ms:
            break
        area += best * (ms - last)
        best, last = max(best, accuracy), ms
    return area + best * (slowest_ms - last)


def _p_value(lost: int, gained: int) -> float:
    """How often a fair coin, thrown lost + gained times, is at least as one-sided as this."""
    n = lost + gained
    rare = sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    return min(1.0, 2 * rare)


ENGINES = [(30.0, 0.96, 15.5), (11.0, 0.955, 4.2), (8.0, 0.93, 3.4), (16.0, 0.91, 7.8), (7.0, 0.91, 2.2)]

EXERCISES = {
    "11_choose": Exercise(
        _choose,
        [(ENGINES, 33.3, 100.0), (ENGINES, 10.0, 100.0), (ENGINES, 33.3, 4.0), (ENGINES, 5.0, 100.0),
         ([(9.0, 0.9, 1.0), (8.0, 0.9, 1.0)], 10.0, 1.0)],
        (
            "first throw out what breaks a limit; of those that are left accuracy decides, not the front",
            "an engine that just meets a limit is allowed (<=); of equal accuracies the one with fewer ms wins; with "
            "nobody left the answer is -1",
            "allowed = [i for i, (ms, _, mb) in enumerate(points) if ms <= slowest_ms and mb <= largest_mb]; return "
            "min(allowed, key=lambda i: (-points[i][1], points[i][0]), default=-1)",
        ),
    ),
    "11_area": Exercise(
        _area,
        [([(10.0, 0.9)], 20.0), ([(10.0, 0.9), (5.0, 0.5)], 20.0), ([(5.0, 0.9), (10.0, 0.5)], 20.0),
         ([(30.0, 0.9)], 20.0), ([(2.0, 0.2), (4.0, 0.6), (6.0, 0.4), (8.0, 0.8)], 10.0)],
        (
            "sort by time and walk from left to right; between two engines the best accuracy so far holds",
            "before the first engine there is nothing, so the staircase starts at accuracy 0; an engine that is slower "
            "and worse than an earlier one adds no step; engines beyond slowest_ms do not count",
            "area, best, last = 0, 0, 0; for ms, a in sorted(points): if ms <= slowest_ms: area += best * (ms - last); "
            "best, last = max(best, a), ms; then return area + best * (slowest_ms - last)",
        ),
    ),
    "11_p_value": Exercise(
        _p_value,
        [(5, 5), (10, 0), (12, 3), (3, 12), (40, 30), (0, 0)],
        (
            "if the engines were equally good, each object that only one of them finds would be a coin toss",
            "n = lost + gained tosses; count how many of the 2**n outcomes have at most min(lost, gained) heads "
            "(math.comb), and double it, since the coin might as well have fallen the other way; at most 1",
            "n = lost + gained; tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1)); "
            "return min(1, 2 * tail / 2**n)",
        ),
    ),
}
