"""Exercises of lesson 10, YOLOv3 by hand: what a right answer is, and what to say to those who are stuck."""

import math

from trtkit.check import Exercise


def _logits_for(box_xyxy: list[float], stride: int, anchor_wh: tuple[float, float]) -> tuple[float, ...]:
    """The cell that is responsible for a box, and what the network must write there: the inverse of decoding."""
    x0, y0, x1, y1 = box_xyxy
    place = []
    for middle in ((x0 + x1) / 2, (y0 + y1) / 2):
        cell = int(middle // stride)
        inside = middle / stride - cell
        place.append((cell, math.log(inside / (1 - inside))))
    (cx, tx), (cy, ty) = place
    return cx, cy, tx, ty, math.log((x1 - x0) / anchor_wh[0]), math.log((y1 - y0) / anchor_wh[1])


def _average_precision(right: list[bool], objects: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or a higher one."""
    points, hits = [], 0
    for rank, hit in enumerate(right, 1):
        hits += hit
        points.append((hits / objects, hits / rank))
    wanted = [step / 100 for step in range(101)]
    return sum(max((p for r, p in points if r >= recall - 1e-12), default=0.0) for recall in wanted) / 101


EXERCISES = {
    "10_logits_for": Exercise(
        _logits_for,
        [([100.0, 120.0, 216.0, 210.0], 32, (116.0, 90.0)), ([10.0, 20.0, 32.0, 47.0], 8, (16.0, 30.0)),
         ([200.0, 100.0, 262.0, 145.0], 16, (30.0, 61.0)), ([300.0, 7.0, 303.0, 10.0], 8, (10.0, 13.0))],
        (
            "the cell is the one that holds the middle of the box: middle // stride, as a whole number",
            "turn the formulas around: sigma(t) = p means t = log(p / (1 - p)), and w = pw * exp(t) means "
            "t = log(w / pw); p is how far into its cell the middle lies, between 0 and 1",
            "mx = (x0 + x1) / 2; cx = int(mx // stride); p = mx / stride - cx; tx = math.log(p / (1 - p)), so too "
            "y; tw = math.log((x1 - x0) / anchor_wh[0]); return cx, cy, tx, ty, tw, th",
        ),
    ),
    "10_average_precision": Exercise(
        _average_precision,
        [([True, True, True, True], 4), ([True, False], 2), ([False, True, True, False, True], 4), ([], 3),
         ([False, False], 1), ([True, False, True, False, False, True, True], 9)],
        (
            "after each detection, recall is hits / objects and precision is hits / detections so far",
            "for each of the recalls 0, 0.01 ... 1 take the largest precision of all points whose recall is at least "
            "that, 0 if there is none, and average the 101 numbers",
            "tp = np.cumsum(right); recall, precision = tp / objects, tp / np.arange(1, len(tp) + 1); return "
            "np.mean([max(precision[recall >= r - 1e-12], default=0) for r in np.linspace(0, 1, 101)])",
        ),
    ),
}
