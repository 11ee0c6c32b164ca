"""Exercises of lesson 06, explicit INT8: what a right answer is, and what to say to those who are stuck."""

import math

from trtkit.check import Exercise


def _floats_needed(alone_db: list[float], budget_db: float) -> int:
    """Noise powers of the layers that stay in 8 bits add up; the worst layers leave first."""
    best_first = sorted(alone_db, reverse=True)
    for floats in range(len(best_first)):
        noise = sum(10 ** (-db / 10) for db in best_first[: len(best_first) - floats])
        if -10 * math.log10(noise) >= budget_db:
            return floats
    return len(best_first)


def _misplaced(chain: list[str]) -> list[int]:
    """Positions of Q in a chain of operators where a pair separates a convolution from its activation."""
    activations = ("Relu", "LeakyRelu")
    return [i for i in range(1, len(chain) - 2)
            if chain[i] == "Q" and chain[i - 1] == "Conv" and chain[i + 1] == "DQ" and chain[i + 2] in activations]


EXERCISES = {
    "06_floats_needed": Exercise(
        _floats_needed,
        [([30.0, 40.0, 50.0], 35.0), ([20.0, 20.0, 20.0, 20.0], 18.0), ([45.0, 31.0, 38.0, 29.0, 60.0], 30.0),
         ([40.0, 41.0], 20.0), ([10.0, 12.0], 90.0)],
        (
            "decibels do not add, noise powers do: a layer of s dB has the noise power 10 ** (-s / 10)",
            "take the lowest decibels away one by one, and after each compute -10 * log10 of the sum of what is left; "
            "with no layer left there is no noise, so any budget is reached",
            "left = sorted(alone_db); n = 0; while left and -10 * math.log10(sum(10 ** (-s / 10) for s in left)) < "
            "budget_db: left.pop(0); n += 1; return n",
        ),
    ),
    "06_misplaced": Exercise(
        _misplaced,
        [(["Q", "DQ", "Conv", "Q", "DQ", "LeakyRelu", "Q", "DQ", "Conv"],),
         (["Q", "DQ", "Conv", "LeakyRelu", "Q", "DQ", "Conv", "Q", "DQ", "Conv"],),
         (["Conv", "Q", "DQ", "Relu", "Conv", "Q", "DQ", "LeakyRelu"],),
         (["Relu", "Q", "DQ", "LeakyRelu", "Conv", "Q"],)],
        (
            "a pair is misplaced when three things hold: Conv before the Q, DQ behind it, an activation behind that",
            "a Conv may have a Conv behind its pair, which is fine; and the chain may end right behind a Q",
            "look at windows of four: return [i + 1 for i, four in enumerate(zip(chain, chain[1:], chain[2:], "
            "chain[3:])) if four[:3] == ('Conv', 'Q', 'DQ') and four[3] in ('Relu', 'LeakyRelu')]",
        ),
    ),
}
