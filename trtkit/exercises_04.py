"""Exercises of lesson 04, pruning: what a right answer is, and what to say to those who are stuck."""

import itertools
import math

from trtkit.check import Exercise


def _coupled(layers: list[tuple[str, str, str]], name: str) -> list[str]:
    """Convolutions that an addition joins, directly or through others, lose the same channels."""
    sets: list[set[str]] = []
    made_by: dict[str, str] = {}                # layer -> a convolution whose channels it hands on
    for layer, op, inputs in layers:
        if op == "conv":
            sets.append({layer})
            made_by[layer] = layer
            continue
        sources = [made_by[source] for source in inputs.split()]
        joined = [s for s in sets if s & set(sources)]
        sets = [s for s in sets if s not in joined] + [set().union(*joined)]
        made_by[layer] = sources[0]
    return sorted(next(s for s in sets if name in s))


def _fraction_for(channels: list[int], removed: float) -> float:
    """With q = 1 - p: inner layers keep q^2 of their weights, the first and the last q; solve for q."""
    pairs = [a * b for a, b in itertools.pairwise(channels)]
    inner, ends = sum(pairs[1:-1]), pairs[0] + pairs[-1]
    target = (1 - removed) * (inner + ends)
    if inner == 0:
        return 1 - target / ends
    return 1 - (math.sqrt(ends**2 + 4 * inner * target) - ends) / (2 * inner)


EXERCISES = {
    "04_coupled": Exercise(
        _coupled,
        [([("stem", "conv", "image"), ("a", "conv", "stem"), ("b", "conv", "a"), ("sum", "add", "stem b"),
           ("next", "conv", "sum")], "stem"),
         ([("stem", "conv", "image"), ("a", "conv", "stem"), ("b", "conv", "a"), ("sum", "add", "stem b"),
           ("next", "conv", "sum")], "a"),
         ([("stem", "conv", "image"), ("act", "relu", "stem"), ("a", "conv", "act"), ("sum1", "add", "a act"),
           ("b", "conv", "sum1"), ("sum2", "add", "sum1 b"), ("head", "conv", "sum2")], "b"),
         ([("x", "conv", "image"), ("y", "conv", "image"), ("z", "conv", "image"), ("w", "conv", "image"),
           ("xy", "add", "x y"), ("zw", "add", "z w"), ("all", "add", "zw xy"), ("out", "conv", "all")], "w"),
         ([("x", "conv", "image"), ("y", "conv", "x"), ("z", "conv", "y")], "y")],
        (
            "a convolution makes channels of its own, an activation hands them on, and an addition ties those of its "
            "two inputs together",
            "give each layer a label: a convolution its own name, any other layer the label of its first input; at an "
            "addition, rename the second input's label to the first one's, wherever it is",
            "label = {}; per layer: label[layer] = layer if op == 'conv' else label[first input]; at 'add': label = "
            "{k: new if v == old else v for k, v in label.items()}; then return sorted(n for n, op, _ in layers if op "
            "== 'conv' and label[n] == label[name])",
        ),
    ),
    "04_fraction_for": Exercise(
        _fraction_for,
        [([64, 64, 64], 0.5), ([3, 100, 100, 100, 100, 10], 0.5), ([3, 32, 64, 128, 255], 0.2),
         ([16, 32, 64, 64, 32, 16], 0.8), ([8, 16, 16, 8], 0.0)],
        (
            "q = 1 - p of the channels stay: an inner layer keeps q * q of its weights, the first and the last one "
            "only q, since the network's input and output stay whole",
            "with inner = sum of c_in * c_out over the inner layers, ends = that of the first and the last: inner * "
            "q^2 + ends * q = (1 - removed) * (inner + ends), a quadratic equation for q; with two layers inner is 0",
            "bisect instead of solving it: low, high = 0, 1; 60 times: p = (low + high) / 2; if the weights left with "
            "p are too many, low = p, else high = p; return p",
        ),
    ),
}
