"""Accuracy against what it costs, and which choices are worth making. Lessons 04 and 11."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt

from trtkit.pareto import HIGH, LOW, front
from trtkit.plots import FP32_COLOR, INT8_COLOR

COLORS = (INT8_COLOR, FP32_COLOR, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "soD^v"


def pareto(points: Mapping[str, Mapping[str, tuple[float, float, float]]], *, xlabel: str, ylabel: str) -> None:
    """Accuracy against time, the area of a point being its size; the line joins those that none beats in both.

    Args:
        points: (ms, accuracy in [0, 1], MB) by network, by precision; a network has a colour, a precision a marker.
        xlabel, ylabel: with the units.
    """
    figure, ax = plt.subplots(figsize=(10, 4), layout="constrained")
    every = {(n, p): point for n, by_precision in points.items() for p, point in by_precision.items()}
    largest = max(mb for _, _, mb in every.values())
    style = _styles(every)
    for (network, precision), (ms, accuracy, mb) in every.items():
        look = {**style[network, precision], "alpha": 0.7, "lw": 0}
        ax.scatter(ms, 100 * accuracy, 500 * mb / largest + 25, **look)
        ax.scatter([], [], 40, **look, label=f"{network}, {precision}: {mb:.2f} MB")
    _draw_front(ax, {key: (ms, accuracy) for key, (ms, accuracy, _) in every.items()}, LOW)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, None))
    ax.margins(x=0.1, y=0.15)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


@dataclass(frozen=True)
class Axis:
    """What an engine costs, or gives: `label` with its unit, whether "low" or "high" is `better`, and the `values`."""

    label: str
    values: Mapping[tuple[str, str], float]
    better: str = LOW


def panels(accuracy: Mapping[tuple[str, str], float], axes: Sequence[Axis], *, ylabel: str) -> None:
    """The same accuracies against several quantities side by side, each with its front.

    Args:
        accuracy: in [0, 1], by (network, precision).
        axes: each with a value for some of the keys; a key without one has no point in that panel.
        ylabel: of the accuracy.
    """
    figure, panels_ = plt.subplots(1, len(axes), figsize=(4.1 * len(axes), 4.3), layout="constrained", sharey=True,
                                   squeeze=False)
    style = _styles(accuracy)
    for ax, axis in zip(panels_.flat, axes, strict=True):
        for key, value in axis.values.items():
            ax.scatter(value, 100 * accuracy[key], 75, **style[key], lw=0, zorder=2)
        _draw_front(ax, {key: (value, accuracy[key]) for key, value in axis.values.items()}, axis.better)
        arrow = "←" if axis.better == LOW else "→"
        ax.set(xlabel=f"{axis.label}   {arrow} better", xlim=(0, None))
        ax.margins(x=0.1, y=0.12)
        ax.spines[["top", "right"]].set_visible(False)
    panels_.flat[0].set_ylabel(ylabel)
    for key in accuracy:
        panels_.flat[0].scatter([], [], 50, **style[key], lw=0, label=", ".join(key))
    handles, labels = panels_.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    plt.show()
    plt.close(figure)


def _styles(keys: Mapping[tuple[str, str], object]) -> dict[tuple[str, str], dict]:
    """A colour for each network and a marker for each precision, in the order in which they come."""
    networks, precisions = (list(dict.fromkeys(key[i] for key in keys)) for i in (0, 1))
    return {(n, p): {"color": COLORS[networks.index(n) % len(COLORS)],
                     "marker": MARKERS[precisions.index(p) % len(MARKERS)]} for n, p in keys}


def _draw_front(ax: plt.Axes, points: Mapping[tuple[str, str], tuple[float, float]], better: str) -> None:
    on_it = sorted((x, 100 * y) for x, y in (points[key] for key in front(points, (better, HIGH))))
    ax.plot(*zip(*on_it, strict=True), color="#999999", lw=1, zorder=0, label="Pareto front")


def frame_rates(rates: Mapping[str, tuple[float, str]], *, line: float = 30.0) -> None:
    """Images a second on a logarithmic axis, coloured by how one knows, with a line at a claim.

    Args:
        rates: (images a second, how one knows: "measured here", "recorded", "published", "computed" or the like) by
            what ran where.
        line: of the claim.
    """
    figure, ax = plt.subplots(figsize=(10, 0.38 * len(rates) + 1.3), layout="constrained")
    kinds = list(dict.fromkeys(kind for _, kind in rates.values()))
    seen = set()
    for row, (rate, kind) in enumerate(rates.values()):
        ax.barh(row, rate, 0.7, color=COLORS[kinds.index(kind) % len(COLORS)], label=None if kind in seen else kind)
        ax.text(rate * 1.06, row, f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}", va="center", fontsize=9)
        seen.add(kind)
    ax.axvline(line, color="k", ls="--", lw=1)
    ax.set_yticks(range(len(rates)), list(rates), fontsize=9)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set(xlabel=f"images a second; the line is at {line:g}", xlim=(1, 3 * max(rate for rate, _ in rates.values())))
    figure.legend(loc="outside lower center", ncols=len(kinds), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
