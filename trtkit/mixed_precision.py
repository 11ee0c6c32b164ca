"""How few layers must return to float to reach a budget? Lesson 06.

`sensitivity` says which layer is worst; here layers are taken from the front of that order until the score is reached.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trtkit import qdq
from trtkit.calib import Range
from trtkit.progress import bar
from trtkit.sensitivity import Score, matching, score_of
from trtkit.wiring import Graph


@dataclass(frozen=True)
class Mixed:
    """A mixed-precision graph: what stays float, what it scores, and every score that was tried by number of layers."""

    skip: list[str]
    score: float
    tried: dict[int, float]


def search(
    model: Graph,
    table: Mapping[str, Range],
    score: Score,
    order: Sequence[str],
    *,
    at_least: float,
    skip: Iterable[str] = (),
    target: str = "cpu",
    backend: str = "auto",
    progress: bool = True,
) -> Mixed:
    """Return layers to float in a given order until the score reaches a budget.

    Greedy: the order is measured once, and layers are taken from its front. How many is found by bisection, some seven
    builds for 75 layers; one layer fewer misses the budget, but where scores are noisy, so may a fewer that was not
    tried succeed.

    Args:
        model, table, target: see `qdq.insert_qdq`.
        score: of a runner, higher is better.
        order: names or patterns, most harmful first, from `float_order`.
        at_least: the score to reach.
        skip: layers that stay float in any case.
        backend: see `engine.build`.
        progress: show a bar.

    Returns:
        The skip list to give to `qdq.insert_qdq`, and what it reached.

    Raises:
        ValueError: not even the whole order reaches the budget.
    """
    always, tried = list(skip), {}
    with bar(None, "mixed precision", unit="build", show=progress) as shown:

        def reaches(count: int) -> bool:
            tried[count] = score_of(model, table, score, _expand(model, [*always, *order[:count]]), target, backend)
            shown.update()
            return tried[count] >= at_least

        low, high = 0, len(order)               # with `high` layers in float the budget holds, below `low` it does not
        if not reaches(high):
            raise ValueError(f"at_least: got {at_least:g}, but with all {high} layers of the order in float the score "
                             f"is {tried[high]:g}; skip more, or expect less")
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle) else (middle + 1, high)
    return Mixed(sorted(_expand(model, [*always, *order[:high]])), tried[high], dict(sorted(tried.items())))


def _expand(model: Graph, patterns: Iterable[str]) -> set[str]:
    names = qdq.weighted_names(model)
    return {name for pattern in patterns for name in matching(pattern, names)}
