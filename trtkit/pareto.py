"""Which of several engines are worth choosing? Lessons 04 and 11.

A point beats another when it is at least as good in everything and better in something. What nobody beats is the Pareto
front: leaving it costs something for nothing, and moving along it is a choice.
"""

import math
from collections.abc import Mapping, Sequence

LOW, HIGH = "low", "high"


def front(points: Mapping[str, Sequence[float]], better: Sequence[str]) -> list[str]:
    """Names of the points that no other beats.

    Args:
        points: the same quantities of each, by name, for example (ms, mAP).
        better: "low" or "high" for each quantity.

    Returns:
        In the order of `points`. Equal points beat each other in nothing: all of them stay.

    Raises:
        ValueError: another direction, a point with another number of quantities, or one that is NaN.
    """
    if not better or any(direction not in (LOW, HIGH) for direction in better):
        raise ValueError(f"better: got {better!r}, expected 'low' or 'high' for each quantity")
    costs = {}
    for name, point in points.items():
        if len(point) != len(better) or any(math.isnan(x) for x in point):
            raise ValueError(f"points: {name}: got {tuple(point)}, expected {len(better)} numbers, none of them NaN; "
                             "leave out what was not measured")
        costs[name] = tuple(x if direction == LOW else -x for x, direction in zip(point, better, strict=True))
    return [name for name, cost in costs.items() if not any(beats(other, cost) for other in costs.values())]


def beats(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether a is nowhere above b, and somewhere below: both are costs, the less the better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)
