"""What the boxes of YOLOv3 mean: letterbox, decode, IoU, NMS. Lessons 10 and 12.

cell (cx, cy) of a grid with stride s and an anchor (pw, ph) predicts t = (tx, ty, tw, th, to, t_class...):
    bx = (sigmoid(tx) + cx) * s     bw = pw * exp(tw)       score = sigmoid(to) * sigmoid(t_class)
    by = (sigmoid(ty) + cy) * s     bh = ph * exp(th)

Source: Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", section 2.
At 416x416 the three heads predict 3 * (13*13 + 26*26 + 52*52) = 10,647 boxes.
Left out on purpose: soft-NMS, and darknet's option to skip the letterbox.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

STRIDES = (32, 16, 8)
# Width and height in pixels of the network input, three anchors per stride (the paper's nine, k-means on COCO).
ANCHORS = np.array(
    [
        [(116, 90), (156, 198), (373, 326)],
        [(30, 61), (62, 45), (59, 119)],
        [(10, 13), (16, 30), (33, 23)],
    ],
    np.float32,
)
PAD_U8 = 128                # darknet pads with grey 0.5
MAX_CANDIDATES = 2000       # best (box, class) pairs that NMS looks at; bounds its time and memory


@dataclass(frozen=True)
class Placement:
    """Where `letterbox` put an image: x_input = x_image * scale + pad_x, the same for y."""

    scale: float
    pad_x: int              # pixels of the network input
    pad_y: int
    width: int              # of the original image, pixels
    height: int


@dataclass(frozen=True)
class Detection:
    """The detections of one image, best score first.

    Shapes: `boxes_xyxy` (N, 4) float32, pixels of the original image; `scores` (N,) float32 in [0, 1];
    `labels` (N,) int64.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def letterbox_u8(img_hwc_u8: np.ndarray, size: int = 416) -> tuple[np.ndarray, Placement]:
    """Scale an image to fit a square, keeping its aspect ratio, centred on grey.

    Args:
        img_hwc_u8: (H, W, 3) uint8, RGB.
        size: side of the square, pixels, a multiple of 32.

    Returns:
        The square (size, size, 3) uint8, and the placement that maps boxes back.

    Raises:
        ValueError: another shape or dtype, an empty image, or a size that is no multiple of 32.
    """
    if img_hwc_u8.dtype != np.uint8 or img_hwc_u8.ndim != 3 or img_hwc_u8.shape[2] != 3 or 0 in img_hwc_u8.shape:
        raise ValueError(
            f"img_hwc_u8: got shape {img_hwc_u8.shape} {img_hwc_u8.dtype}, expected (H, W, 3) uint8; "
            "convert with PIL's .convert('RGB') or stack grey three times"
        )
    if size <= 0 or size % 32:
        raise ValueError(f"size: got {size}, expected a positive multiple of 32, the largest stride; try 416")
    height, width = img_hwc_u8.shape[:2]
    scale = min(size / width, size / height)
    new_w, new_h = max(round(width * scale), 1), max(round(height * scale), 1)
    place = Placement(scale, (size - new_w) // 2, (size - new_h) // 2, width, height)
    square = np.full((size, size, 3), PAD_U8, np.uint8)
    inside = square[place.pad_y : place.pad_y + new_h, place.pad_x : place.pad_x + new_w]
    inside[:] = cv2.resize(img_hwc_u8, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    return square, place


def letterbox(img_hwc_u8: np.ndarray, size: int = 416) -> tuple[np.ndarray, Placement]:
    """`letterbox_u8`, then what the network takes: `x_nchw` (1, 3, size, size) float32 in [0, 1], and the placement."""
    square, place = letterbox_u8(img_hwc_u8, size)
    x_nchw = np.empty((1, 3, size, size), np.float32)
    for plane, channel in zip(x_nchw[0], cv2.split(square), strict=True):       # one plane at a time stays in cache
        np.multiply(channel, np.float32(1 / 255), out=plane)
    return x_nchw, place


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) for float32 of any shape, without overflow (tanh form)."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


def decode(
    heads: Sequence[np.ndarray], *, conf_thr: float = 0.25, anchors: np.ndarray = ANCHORS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw heads of one image to (box, class) candidates, as darknet does: a box may carry several classes.

    Only cells whose objectness alone reaches `conf_thr` are decoded: the score is objectness times a probability,
    so no other cell can pass. That leaves some tens of the 10,647 boxes and makes decoding cheap.

    Args:
        heads: three arrays (1, A * (5 + K), H, W) float32, strides 32, 16, 8, in this order.
        conf_thr: lowest score kept, in (0, 1).
        anchors: (3, A, 2) float32, pixels of the network input.

    Returns:
        boxes_xyxy (N, 4) float32 in pixels of the network input, scores (N,) float32, labels (N,) int64.

    Raises:
        ValueError: not three heads, a batch larger than 1, channels that do not divide, or conf_thr outside (0, 1).
    """
    if not 0 < conf_thr < 1:
        raise ValueError(f"conf_thr: got {conf_thr}, expected a number between 0 and 1 (exclusive); try 0.25")
    if len(heads) != len(STRIDES):
        raise ValueError(f"heads: got {len(heads)} arrays, expected 3 (strides 32, 16, 8)")
    num_anchors = anchors.shape[1]
    logit_thr = np.log(conf_thr / (1 - conf_thr))       # compare before the sigmoid: 10,647 fewer exponentials
    boxes, scores, labels = [], [], []
    for i, (head, stride, anchor_wh) in enumerate(zip(heads, STRIDES, anchors, strict=True)):
        if head.ndim != 4 or head.shape[0] != 1 or head.shape[1] % num_anchors or head.shape[1] < 6 * num_anchors:
            raise ValueError(
                f"heads[{i}]: got shape {head.shape}, expected (1, {num_anchors} * (5 + classes), H, W); "
                "pass one image at a time"
            )
        grid = head.reshape(num_anchors, -1, *head.shape[2:])           # (A, 5+K, H, W)
        a, cy, cx = np.nonzero(grid[:, 4] > logit_thr)
        t = grid[a, :, cy, cx]                                          # (M, 5+K)
        prob = sigmoid(t[:, 4:5]) * sigmoid(t[:, 5:])                   # (M, K)
        m, label = np.nonzero(prob >= conf_thr)
        centre = (sigmoid(t[m, 0:2]) + np.stack([cx, cy], 1)[m]) * np.float32(stride)
        half = anchor_wh[a[m]] * np.exp(np.minimum(t[m, 2:4], 8)) / 2   # e^8 anchors: beyond any image, not inf
        boxes.append(np.concatenate([centre - half, centre + half], 1).astype(np.float32))
        scores.append(prob[m, label])
        labels.append(label)
    return np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels)


def iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a_xyxy: (N, 4) float.
        b_xyxy: (M, 4) float.

    Returns:
        (N, M) float in [0, 1]; 0 where both boxes are empty.
    """
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])     # (N, M, 2)
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    overlap = np.maximum(bottom_right - top_left, 0).prod(2)
    area_a = np.maximum(a_xyxy[:, 2:] - a_xyxy[:, :2], 0).prod(1)
    area_b = np.maximum(b_xyxy[:, 2:] - b_xyxy[:, :2], 0).prod(1)
    union = area_a[:, None] + area_b[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def nms(
    boxes_xyxy: np.ndarray, scores: np.ndarray, labels: np.ndarray, *, iou_thr: float = 0.45, max_boxes: int = 300
) -> np.ndarray:
    """Greedy class-aware non-maximum suppression: the best box stays, its near copies of the same class go.

    Args:
        boxes_xyxy: (N, 4) float32.
        scores: (N,) float32.
        labels: (N,) integer; boxes of different classes never suppress each other.
        iou_thr: a box goes when its IoU with a better kept one is larger, in [0, 1].
        max_boxes: at most this many are kept.

    Returns:
        Indices of the kept boxes, (M,) int64, best score first. Only the best 2,000 candidates are considered.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    boxes, classes = boxes_xyxy[order], labels[order]
    suppresses = (iou(boxes, boxes) > iou_thr) & (classes[:, None] == classes[None, :])
    alive = np.ones(len(order), bool)
    kept = []
    for i in range(len(order)):
        if alive[i]:
            kept.append(i)
            if len(kept) == max_boxes:
                break
            alive &= ~suppresses[i]
    return order[np.array(kept, np.int64)]


def postprocess(
    heads: Sequence[np.ndarray], placement: Placement, *, conf_thr: float = 0.25, iou_thr: float = 0.45
) -> Detection:
    """Raw heads of one image to detections in pixels of the original image.

    Args:
        heads: three arrays (1, A * (5 + K), H, W) float32, strides 32, 16, 8.
        placement: what `letterbox` returned for the image.
        conf_thr: lowest score kept, in (0, 1).
        iou_thr: see `nms`.

    Returns:
        Detections, boxes clipped to the image.
    """
    boxes, scores, labels = decode(heads, conf_thr=conf_thr)
    keep = nms(boxes, scores, labels, iou_thr=iou_thr)
    pad = np.array([placement.pad_x, placement.pad_y] * 2, np.float32)
    limit = np.array([placement.width, placement.height] * 2, np.float32)
    boxes = np.clip((boxes[keep] - pad) / np.float32(placement.scale), 0, limit)
    return Detection(boxes, scores[keep], labels[keep])


def detect(runner, img_hwc_u8: np.ndarray, *, conf_thr: float = 0.25, iou_thr: float = 0.45) -> Detection:
    """Letterbox, infer, decode and NMS: one image in, detections out.

    Args:
        runner: an `engine.Runner` with one image input (1, 3, S, S) and three heads, strides 32, 16, 8.
        img_hwc_u8: (H, W, 3) uint8, RGB.
        conf_thr: lowest score kept, in (0, 1).
        iou_thr: see `nms`.

    Returns:
        Detections in pixels of `img_hwc_u8`.
    """
    (name, spec), = runner.inputs.items()
    x_nchw, placement = letterbox(img_hwc_u8, spec.shape[-1])
    return postprocess(list(runner.infer({name: x_nchw}).values()), placement, conf_thr=conf_thr, iou_thr=iou_thr)
