"""How alike are two boxes? IoU and GIoU of every pair. Lesson 10.

    IoU = |A and B| / |A or B|          GIoU = IoU - (|C| - |A or B|) / |C|,    C the smallest box around both

Boxes are (x0, y0, x1, y1); x1 and y1 are the far edges, so the width is x1 - x0 with no pixel added. A box with
x1 <= x0 or y1 <= y0 has no area. Source: Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 1.
"""

import numpy as np


def check_boxes(name: str, boxes_xyxy: np.ndarray) -> np.ndarray:
    """`boxes_xyxy` in float32 or float64.

    Args:
        name: of the argument, for the message.
        boxes_xyxy: (N, 4), any N.

    Raises:
        ValueError: another shape, or a coordinate that is NaN or infinite.
    """
    boxes = np.asarray(boxes_xyxy)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: got shape {boxes.shape}, expected (N, 4); for no boxes use np.empty((0, 4))")
    boxes = boxes.astype(np.result_type(boxes, np.float32), copy=False)
    if not (finite := np.isfinite(boxes)).all():
        bad = int(np.flatnonzero(~finite.all(1))[0])
        raise ValueError(f"{name}[{bad}]: got {boxes[bad].tolist()}, expected finite coordinates; check the network's "
                         "outputs for NaN (FP16 overflow, a wrong scale)")
    return boxes


def area(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(N,) areas of (N, 4) boxes, 0 where a side is negative."""
    sides = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a_xyxy: (N, 4), finite.
        b_xyxy: (M, 4), finite.

    Returns:
        (N, M) float in [0, 1]; 0 where both boxes are empty.

    Raises:
        ValueError: see `check_boxes`.
    """
    return iou_of_checked(check_boxes("a_xyxy", a_xyxy), check_boxes("b_xyxy", b_xyxy))


def iou_of_checked(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`iou` of boxes that `check_boxes` returned: for loops, where the checks would cost as much as the work."""
    overlap = _overlap(a, b)
    return _ratio(overlap, _union(a, b, overlap))


def giou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Generalized IoU of every box of `a` with every box of `b`: below 0 for boxes apart, the lower the farther.

    Args:
        a_xyxy: (N, 4), finite.
        b_xyxy: (M, 4), finite.

    Returns:
        (N, M) float in [-1, 1]; equal to the IoU where the box around both holds nothing else.

    Raises:
        ValueError: see `check_boxes`.
    """
    a, b = check_boxes("a_xyxy", a_xyxy), check_boxes("b_xyxy", b_xyxy)
    overlap = _overlap(a, b)
    union = _union(a, b, overlap)
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = _columns(a, b)
    around = np.maximum(np.maximum(ax1, bx1) - np.minimum(ax0, bx0), 0)
    around *= np.maximum(np.maximum(ay1, by1) - np.minimum(ay0, by0), 0)
    return _ratio(overlap, union) - _ratio(around - union, around)


def _columns(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return a.T[:, :, None], b.T[:, None, :]             # (4, N, 1) and (4, 1, M)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) areas of the intersections; in place, since three quarters of the time goes into new memory."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = _columns(a, b)
    width = np.minimum(ax1, bx1)
    width -= np.maximum(ax0, bx0)
    height = np.minimum(ay1, by1)
    height -= np.maximum(ay0, by0)
    # A box that is inside out in both directions would have a positive product.
    np.maximum(width, 0, out=width)
    width *= np.maximum(height, 0, out=height)
    return width


def _union(a: np.ndarray, b: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    union = area(a)[:, None] + area(b)[None, :]
    union -= overlap
    return union


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
