"""One object, one box: NMS and soft-NMS. Lesson 10.

Greedy NMS keeps the best box, drops those of its class whose IoU with it is larger than iou_thr, and goes on with the
best that is left. Soft-NMS drops none; it lowers their scores:
    linear      s_i = s_i * (1 - IoU_i)             where IoU_i > iou_thr
    gaussian    s_i = s_i * exp(-IoU_i^2 / sigma)
Equal scores: the box that comes first in the arrays goes first, so the result is the same on every machine.
Source: Bodla et al. 2017, "Soft-NMS: Improving Object Detection With One Line of Code", equations 2 and 3.
"""

import numpy as np

from trtkit.boxes import check_boxes, iou_of_checked

MAX_CANDIDATES = 2000       # best (box, class) pairs that NMS looks at; bounds its time and memory
# Boxes that are compared with each other at a time: a table that stays in the cache, and most of a crowd is gone before
# its turn comes. 1,500 boxes take 2.4 ms so, and 20 ms in one table; 64 to 256 are equally good.
BLOCK = 128
METHODS = ("linear", "gaussian")


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, best first, (min(N, k),) int64; equal ones in the order of the array."""
    if len(scores) <= k:
        return np.argsort(-scores, kind="stable")
    lowest = np.partition(scores, len(scores) - k)[len(scores) - k]         # a sort of all would cost more
    above = np.flatnonzero(scores > lowest)
    chosen = np.concatenate([above, np.flatnonzero(scores == lowest)[: k - len(above)]])
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def nms(
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray | None,
    *,
    iou_thr: float = 0.45,
    max_boxes: int = 300,
    max_candidates: int = MAX_CANDIDATES,
) -> np.ndarray:
    """Greedy non-maximum suppression: the best box stays, its near copies go.

    Args:
        boxes_xyxy: (N, 4) float, finite.
        scores: (N,) float, finite.
        labels: (N,) integer, boxes of different classes never suppress each other (class-aware); None: all do
            (class-agnostic).
        iou_thr: a box goes when its IoU with a better kept one is larger, in [0, 1].
        max_boxes: at most this many are kept, at least 1.
        max_candidates: at most this many of the best boxes are considered, at least 1.

    Returns:
        Indices of the kept boxes, (M,) int64, best score first.

    Raises:
        ValueError: lengths differ, a score or coordinate that is not finite, or an option out of range.
    """
    order, boxes, classes = _candidates(boxes_xyxy, scores, labels, iou_thr, max_boxes, max_candidates)
    kept: list[int] = []
    left = np.arange(len(order))
    while len(left) and len(kept) < max_boxes:
        block, left = left[:BLOCK], left[BLOCK:]
        winners = block[_greedy(_near(boxes, classes, block, block, iou_thr))]
        kept += winners.tolist()
        left = left[~_near(boxes, classes, left, winners, iou_thr).any(1)]
    return order[np.array(kept[:max_boxes], np.int64)]


def _near(boxes: np.ndarray, classes: np.ndarray | None, i: np.ndarray, j: np.ndarray, iou_thr: float) -> np.ndarray:
    """(len(i), len(j)) bool: would box i and box j suppress each other?"""
    near = iou_of_checked(boxes[i], boxes[j]) > iou_thr
    if classes is not None:
        near &= classes[i][:, None] == classes[j][None, :]
    return near


def _greedy(near: np.ndarray) -> list[int]:
    """Which of boxes in order stay, one after the other."""
    alive, kept = np.ones(len(near), bool), []
    for i, row in enumerate(near):
        if alive[i]:
            kept.append(i)
            alive &= ~row
    return kept


def soft_nms(
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray | None,
    *,
    method: str = "gaussian",
    iou_thr: float = 0.3,
    sigma: float = 0.5,
    score_thr: float = 0.001,
    max_boxes: int = 300,
    max_candidates: int = MAX_CANDIDATES,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS: neighbours of the best box lose score, not their lives. Defaults are the paper's.

    Args:
        boxes_xyxy: (N, 4) float, finite.
        scores: (N,) float, finite.
        labels: (N,) integer, only boxes of the same class lower each other; None: all do.
        method: "linear" or "gaussian".
        iou_thr: for "linear", up to this IoU nothing is lowered, in [0, 1].
        sigma: for "gaussian", above 0; the larger, the milder.
        score_thr: boxes whose lowered score is below are dropped, in [0, 1].
        max_boxes: at most this many are returned, at least 1.
        max_candidates: see `nms`.

    Returns:
        Indices of the boxes in the order in which they were chosen, (M,) int64, and their lowered scores, (M,) of the
        dtype of `scores`, which never rise.

    Raises:
        ValueError: as `nms`, or an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {METHODS}")
    if not sigma > 0 or not 0 <= score_thr <= 1:
        raise ValueError(f"sigma, score_thr: got {sigma}, {score_thr}, expected above 0, and in [0, 1]; try 0.5, 0.001")
    order, boxes, classes = _candidates(boxes_xyxy, scores, labels, iou_thr, max_boxes, max_candidates)
    overlap = iou_of_checked(boxes, boxes)
    if classes is not None:
        overlap *= classes[:, None] == classes[None, :]
    factors = np.where(overlap > iou_thr, 1 - overlap, 1) if method == "linear" else np.exp(-(overlap**2) / sigma)
    factors = factors.astype(scores.dtype)
    left, free = scores[order], np.ones(len(order), bool)
    chosen, lowered = [], []
    while len(chosen) < max_boxes and free.any():
        best = int(np.where(free, left, -np.inf).argmax())      # the first of equals
        if left[best] < score_thr:
            break
        chosen.append(best)
        lowered.append(left[best])
        free[best] = False
        left = left * factors[best]
    return order[np.array(chosen, np.int64)], np.array(lowered, scores.dtype)


def _candidates(boxes_xyxy, scores, labels, iou_thr, max_boxes, max_candidates):
    """The best candidates in order: their indices, boxes and classes."""
    boxes, scores = check_boxes("boxes_xyxy", boxes_xyxy), np.asarray(scores)
    if scores.shape != (len(boxes),) or (labels is not None and np.shape(labels) != scores.shape):
        raise ValueError(f"scores, labels: got shapes {scores.shape}, {np.shape(labels)}, expected ({len(boxes)},), "
                         "one of each per box")
    if not (finite := np.isfinite(scores)).all():
        bad = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"scores[{bad}]: got {scores[bad]}, expected finite numbers; check the network's outputs for "
                         "NaN (FP16 overflow, a wrong scale)")
    if not 0 <= iou_thr <= 1:
        raise ValueError(f"iou_thr: got {iou_thr}, expected a number in [0, 1]; try 0.45")
    if max_boxes < 1 or max_candidates < 1:
        raise ValueError(f"max_boxes, max_candidates: got {max_boxes}, {max_candidates}, expected at least 1 of each")
    order = top_k(scores, max_candidates)
    return order, boxes[order], None if labels is None else np.asarray(labels)[order]
