"""Pictures of lesson 10 with boxes in them: grids, anchors, overlaps, NMS. Each shows its figure and returns None."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from trtkit.boxes import giou, iou
from trtkit.plots_quant import BLUE, GREEN, GREY, ORANGE, PINK

YELLOW = "#F0E442"


def grids(
    img_hwc_u8: np.ndarray, strides: Sequence[int], anchors: np.ndarray, point_xy: tuple[float, float]
) -> None:
    """The network's input under the grid of each head, and in the cell that holds a point the head's anchors.

    Args:
        img_hwc_u8: (H, W, 3) uint8, letterboxed.
        strides: one per head.
        anchors: (strides, A, 2), pixels.
        point_xy: the centre of an object, pixels.
    """
    figure, axes = plt.subplots(1, len(strides), figsize=(4.4 * len(strides), 4.8), layout="constrained")
    height, width = img_hwc_u8.shape[:2]
    for ax, stride, shapes in zip(np.atleast_1d(axes), strides, anchors, strict=True):
        _image(ax, img_hwc_u8)
        ax.vlines(np.arange(0, width + 1, stride), 0, height, color="w", lw=0.5, alpha=0.7)
        ax.hlines(np.arange(0, height + 1, stride), 0, width, color="w", lw=0.5, alpha=0.7)
        cx, cy = (int(v // stride) for v in point_xy)
        ax.add_patch(Rectangle((cx * stride, cy * stride), stride, stride, color=YELLOW, alpha=0.8))
        centre = (np.array([cx, cy]) + 0.5) * stride
        for (w, h), color in zip(shapes, (ORANGE, BLUE, PINK), strict=False):
            _box(ax, _around(centre, w, h), color, lw=2.5)
        cells = f"{height // stride} x {width // stride} cells"
        ax.set_title(f"stride {stride}: {cells}, {height // stride * (width // stride) * len(shapes):,} boxes",
                     fontsize=11)
    plt.show()
    plt.close(figure)


def decoded_cell(
    img_hwc_u8: np.ndarray, cell_xy: tuple[int, int], stride: int, anchor_wh: Sequence[float], box_xyxy: Sequence[float]
) -> None:
    """One cell at work: the cell, the anchor around its middle, and the box that was predicted.

    Args:
        img_hwc_u8: (H, W, 3) uint8, letterboxed.
        cell_xy: column and row of the cell.
        stride: pixels a cell.
        anchor_wh: of the anchor, pixels.
        box_xyxy: decoded, pixels of the network input.
    """
    figure, ax = plt.subplots(figsize=(6.4, 5), layout="constrained")
    _image(ax, img_hwc_u8)
    (cx, cy), (w, h) = cell_xy, anchor_wh
    middle = np.array([cx + 0.5, cy + 0.5]) * stride
    ax.add_patch(Rectangle((cx * stride, cy * stride), stride, stride, fill=False, ec=YELLOW, lw=2.5,
                           label=f"cell ({cx}, {cy})"))
    _box(ax, _around(middle, w, h), PINK, lw=2.5, ls="--", label="anchor")
    _box(ax, box_xyxy, ORANGE, lw=3, label="predicted box")
    x0, y0, x1, y1 = box_xyxy
    ax.plot((x0 + x1) / 2, (y0 + y1) / 2, "o", color=ORANGE, ms=7, mec="w")
    margin = 0.7 * max(x1 - x0, y1 - y0, w, h)
    ax.set(xlim=(max((x0 + x1) / 2 - margin, 0), min((x0 + x1) / 2 + margin, img_hwc_u8.shape[1])),
           ylim=(min((y0 + y1) / 2 + margin, img_hwc_u8.shape[0]), max((y0 + y1) / 2 - margin, 0)))
    ax.legend(loc="upper right", framealpha=0.9)
    plt.show()
    plt.close(figure)


def pairs(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> None:
    """Pairs of boxes with their intersection filled, the box around both dotted; IoU and GIoU above.

    Args:
        a_xyxy, b_xyxy: (N, 4), one pair per row.
    """
    edges = np.concatenate([a_xyxy, b_xyxy])
    (left, top), (right, bottom) = edges[:, :2].min(0) - 4, edges[:, 2:].max(0) + 4
    side = 13 / len(a_xyxy)
    figure, axes = plt.subplots(1, len(a_xyxy), figsize=(13, side * (bottom - top) / (right - left) + 0.6),
                                layout="constrained", squeeze=False)
    for ax, a, b in zip(axes.flat, a_xyxy, b_xyxy, strict=True):
        x0, y0, x1, y1 = *np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])
        if x1 > x0 and y1 > y0:
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color=GREEN, alpha=0.6))
        _box(ax, [*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])], GREY, lw=1.5, ls=":")
        _box(ax, a, BLUE, lw=2.5)
        _box(ax, b, ORANGE, lw=2.5)
        ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
        one, other = a[None], b[None]
        ax.set_title(f"IoU {iou(one, other)[0, 0]:.2f}\nGIoU {giou(one, other)[0, 0]:.2f}", fontsize=11)
        ax.spines[:].set_visible(False)
    plt.show()
    plt.close(figure)


def rounds(
    img_hwc_u8: np.ndarray,
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    steps: Sequence[tuple[int, Sequence[int]]],
    *,
    columns: int = 4,
) -> None:
    """Greedy NMS, a picture per round: the winner, what it suppresses, what is left for the next round.

    Args:
        img_hwc_u8: (H, W, 3) uint8.
        boxes_xyxy: (N, 4), pixels of the image.
        scores: (N,).
        steps: per round, index of the winner and indices of those that it suppresses.
        columns: pictures per row.
    """
    columns = min(columns, len(steps))
    rows = -(-len(steps) // columns)
    height, width = img_hwc_u8.shape[:2]
    panel = 13 / columns
    figure, axes = plt.subplots(rows, columns, figsize=(13, rows * (panel * height / width + 0.35)), squeeze=False,
                                layout="constrained")
    gone: set[int] = set()
    for i, ax in enumerate(axes.flat):
        _image(ax, img_hwc_u8)
        if i >= len(steps):
            ax.set_visible(False)
            continue
        winner, losers = steps[i]
        for j in set(range(len(boxes_xyxy))) - gone - {winner, *losers}:
            _box(ax, boxes_xyxy[j], "w", lw=0.8)
        for j in losers:
            _box(ax, boxes_xyxy[j], ORANGE, lw=1.2, ls="--")
        _box(ax, boxes_xyxy[winner], BLUE, lw=3)
        gone |= {winner, *losers}
        ax.set_title(f"round {i + 1}: {scores[winner]:.2f} stays, {len(losers)} go", fontsize=10)
    plt.show()
    plt.close(figure)


def _image(ax: plt.Axes, img_hwc_u8: np.ndarray) -> None:
    height, width = img_hwc_u8.shape[:2]
    ax.imshow(img_hwc_u8, extent=(0, width, height, 0))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")


def _box(ax: plt.Axes, box_xyxy: Sequence[float], color: str, **style) -> None:
    x0, y0, x1, y1 = box_xyxy
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=color, **style))


def _around(centre: np.ndarray, w: float, h: float) -> list[float]:
    half = np.array([w, h]) / 2
    return [*(centre - half), *(centre + half)]
