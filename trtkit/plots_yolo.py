"""Pictures of lesson 10 with curves and bars: shapes, precision and recall, receptive fields, sizes.

Each function shows its figure and returns None.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from trtkit.plots_quant import BLUE, GREEN, GREY, ORANGE

HEAD_COLORS = (ORANGE, GREEN, BLUE)         # strides 32, 16, 8


def shapes(wh: np.ndarray, sets: Mapping[str, np.ndarray], curve: Mapping[int, float]) -> None:
    """Widths and heights of a data set's boxes with sets of anchors, and mean IoU over the number of anchors.

    Args:
        wh: (N, 2) pixels.
        sets: (k, 2) anchors by name.
        curve: mean IoU by k.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(1.5, 1), layout="constrained")
    left.scatter(*wh.T, s=8, color=GREY, alpha=0.5, label="boxes of the scenes")
    for (name, anchors), color, marker in zip(sets.items(), (ORANGE, BLUE, GREEN), "sDo", strict=False):
        left.scatter(*np.reshape(anchors, (-1, 2)).T, s=70, color=color, marker=marker, edgecolor="w", label=name)
    ticks = [5, 10, 20, 50, 100, 200, 400]
    left.set(xscale="log", yscale="log", xlabel="width, pixels", ylabel="height, pixels")
    left.set_xticks(ticks, ticks)
    left.set_yticks(ticks, ticks)
    left.minorticks_off()
    left.legend(frameon=False, loc="upper left")
    right.plot(list(curve), list(curve.values()), "o-", color=BLUE)
    right.set(xlabel="number of anchors k", ylabel="mean IoU with the best anchor", ylim=(0, 1))
    right.set_xticks(list(curve))
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def precision_recall(recall: np.ndarray, precision: np.ndarray, sampled: np.ndarray, ap: float, title: str) -> None:
    """Precision over recall as it is measured, and the 101 samples of its envelope whose mean is AP.

    Args:
        recall, precision: (N,) after each detection, best score first.
        sampled: (101,) precision at recall 0, 0.01 ... 1.
        ap: their mean.
        title: above the plot.
    """
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    at = np.linspace(0, 1, len(sampled))
    ax.fill_between(at, sampled, color=BLUE, alpha=0.15, step="mid")
    ax.plot(recall, precision, color=GREY, lw=1.2, label="after each detection")
    ax.plot(at, sampled, ".", color=BLUE, label=f"101 samples, mean = AP = {ap:.3f}")
    ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.05), title=title)
    ax.legend(frameon=False, loc="lower left")
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def influence(img_hwc_u8: np.ndarray, maps: Mapping[str, np.ndarray], halves_px: Mapping[str, float]) -> None:
    """What a patch of the image does to one cell, per head, over the image; a square holds half of it.

    Args:
        img_hwc_u8: (S, S, 3) uint8, letterboxed.
        maps: (n, n) change of the cell's numbers by head.
        halves_px: side of the square around the cell that holds half of the sum, by head.
    """
    figure, axes = plt.subplots(1, len(maps), figsize=(4.4 * len(maps), 4.8), layout="constrained")
    size = img_hwc_u8.shape[0]
    grey = img_hwc_u8.mean(2)
    for ax, (name, change), color in zip(np.atleast_1d(axes), maps.items(), HEAD_COLORS, strict=False):
        ax.imshow(grey, cmap="gray", extent=(0, size, size, 0))
        # The logarithm shows the tails too, down to a hundredth of the strongest patch.
        strength = np.log10(np.maximum(change / change.max(), 1e-2)) / 2 + 1
        ax.imshow(strength, cmap="inferno", alpha=0.7, extent=(0, size, size, 0), interpolation="bilinear", vmin=0)
        side = halves_px[name]
        ax.add_patch(Rectangle(((size - side) / 2, (size - side) / 2), side, side, fill=False, ec="w", lw=2))
        ax.set_title(f"{name}: half within {side:.0f} pixels", fontsize=11, color=color)
        ax.axis("off")
    plt.show()
    plt.close(figure)


def heads_by_size(counts: np.ndarray, missed: np.ndarray, edges_px: Sequence[float], strides: Sequence[int]) -> None:
    """Which head found the objects of each size, stacked, and what was missed.

    Args:
        counts: (heads, sizes) objects found.
        missed: (sizes,) objects not found.
        edges_px: (sizes + 1,) limits of the sizes, square root of the area.
        strides: one per head.
    """
    figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
    below = np.zeros(len(missed))
    parts = [*((f"stride {s}", row, c) for s, row, c in zip(strides, counts, HEAD_COLORS, strict=True)),
             ("missed", missed, "#dddddd")]
    for name, row, color in parts:
        ax.bar(range(len(missed)), row, 0.75, bottom=below, color=color, label=name)
        below = below + row
    limits = [f"{low:g} to {high:g}" for low, high in pairwise(edges_px[:-1])]
    ax.set_xticks(range(len(missed)), [*limits, f"above {edges_px[-2]:g}"])
    ax.set(xlabel="size of the object in the network's input, pixels", ylabel="objects")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
