"""What the heads of YOLOv3 say: from logits to boxes with a class and a score. Lesson 10.

cell (cx, cy) of a grid with stride s and an anchor (pw, ph) predicts t = (tx, ty, tw, th, to, t_class...):
    bx = (sigmoid(tx) + cx) * s     bw = pw * exp(tw)       score = sigmoid(to) * sigmoid(t_class)
    by = (sigmoid(ty) + cy) * s     bh = ph * exp(th)

Source: Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", section 2.
At 416x416 the three heads predict 3 * (13*13 + 26*26 + 52*52) = 10,647 boxes.
"""

from collections.abc import Sequence

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
ANCHORS_PER_HEAD = ANCHORS.shape[1]
MAX_LOG_SIDE = 8            # e^8 = 2981 anchors: beyond any image, and no infinity
DECODED = ("boxes", "scores")           # outputs of a graph that decodes itself, see `decode_graph`


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) for float32 of any shape, without overflow (tanh form)."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


def decode(
    heads: Sequence[np.ndarray],
    *,
    conf_thr: float = 0.25,
    anchors: np.ndarray = ANCHORS,
    strides: Sequence[int] = STRIDES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw heads of one image to (box, class) candidates, as darknet does: a box may carry several classes.

    Only cells whose objectness alone reaches `conf_thr` are decoded: the score is objectness times a probability,
    so no other cell can pass. That leaves some tens of the 10,647 boxes and makes decoding cheap.

    Args:
        heads: one array (1, A * (5 + K), H, W) float per stride, in the order of `strides`; H and W are the input's
            divided by the stride, so the input may be any rectangle.
        conf_thr: lowest score kept, in (0, 1).
        anchors: (strides, A, 2) float32, pixels of the network input.
        strides: pixels of the network input per cell.

    Returns:
        boxes_xyxy (N, 4) float32 in pixels of the network input, parts may lie outside; scores (N,) float32; labels
        (N,) int64. Candidates are in the order of heads, anchors, rows, columns, classes.

    Raises:
        ValueError: not one head and one row of anchors per stride, a batch larger than 1, channels that do not divide,
            heads that belong to different inputs, conf_thr outside (0, 1), or a NaN (an infinite logit is no harm).
    """
    check_conf(conf_thr)
    anchors = np.asarray(anchors, np.float32)
    if anchors.ndim != 3 or len(anchors) != len(strides) or anchors.shape[2] != 2:
        raise ValueError(f"anchors: got shape {anchors.shape}, expected ({len(strides)}, A, 2), a row per stride")
    _check_heads(heads, strides, anchors.shape[1])
    logit_thr = np.log(conf_thr / (1 - conf_thr))       # compare before the sigmoid: 10,647 fewer exponentials
    parts = [_decode_head(f"heads[{i}]", *of_head, logit_thr, conf_thr)
             for i, of_head in enumerate(zip(heads, strides, anchors, strict=True))]
    boxes, scores, labels = zip(*parts, strict=True)
    return np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels)


def _decode_head(name: str, head, stride, anchor_wh, logit_thr, conf_thr):
    grid = head.reshape(len(anchor_wh), -1, *head.shape[2:])            # (A, 5+K, H, W)
    objectness = grid[:, 4]
    a, cy, cx = np.nonzero(~(objectness <= logit_thr))                  # a NaN too, to be found below
    t = grid[a, :, cy, cx].astype(np.float32, copy=False)               # (M, 5+K)
    if (nan := np.isnan(t)).any():
        bad = int(np.flatnonzero(nan.any(1))[0])
        raise ValueError(f"{name}: got NaN at anchor {a[bad]}, cell ({cx[bad]}, {cy[bad]}), expected numbers; check "
                         "the network for FP16 overflow or a wrong scale")
    prob = sigmoid(t[:, 4:5]) * sigmoid(t[:, 5:])                       # (M, K)
    m, label = np.nonzero(prob >= conf_thr)
    centre = (sigmoid(t[m, 0:2]) + np.stack([cx, cy], 1)[m]) * np.float32(stride)
    half = anchor_wh[a[m]] * np.exp(np.minimum(t[m, 2:4], MAX_LOG_SIDE)) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32), prob[m, label], label


def decode_boxes(
    boxes_xyxy: np.ndarray, scores: np.ndarray, *, conf_thr: float = 0.25
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates of a graph that decodes itself: what `decode` returns, from its two outputs.

    Args:
        boxes_xyxy: (1, B, 4) float, pixels of the network input, B = 10,647 at 416.
        scores: (1, B, K) float, objectness times class probability.
        conf_thr: lowest score kept, in (0, 1).

    Returns:
        See `decode`.

    Raises:
        ValueError: other shapes, conf_thr outside (0, 1), or a NaN score.
    """
    check_conf(conf_thr)
    if boxes_xyxy.ndim != 3 or scores.ndim != 3 or boxes_xyxy.shape != (1, scores.shape[1], 4):
        raise ValueError(f"boxes_xyxy, scores: got shapes {boxes_xyxy.shape}, {scores.shape}, expected (1, B, 4) and "
                         "(1, B, K); pass one image at a time")
    box, label = np.nonzero(~(scores[0] < conf_thr))
    score = scores[0, box, label].astype(np.float32, copy=False)
    if np.isnan(score).any():
        raise ValueError(f"scores: got NaN at box {box[np.isnan(score)][0]}, expected numbers; check the network for "
                         "FP16 overflow or a wrong scale")
    return boxes_xyxy[0, box].astype(np.float32, copy=False), score, label


def check_conf(conf_thr: float) -> None:
    """ValueError for a threshold of scores outside (0, 1), NaN included."""
    if not 0 < conf_thr < 1:
        raise ValueError(f"conf_thr: got {conf_thr}, expected a number between 0 and 1 (exclusive); try 0.25")


def _check_heads(heads: Sequence[np.ndarray], strides: Sequence[int], num_anchors: int) -> None:
    if len(heads) != len(strides):
        raise ValueError(f"heads: got {len(heads)} arrays, expected {len(strides)} (strides {tuple(strides)})")
    for i, head in enumerate(heads):
        if head.ndim != 4 or head.shape[0] != 1 or head.shape[1] % num_anchors or head.shape[1] < 6 * num_anchors:
            raise ValueError(
                f"heads[{i}]: got shape {head.shape}, expected (1, {num_anchors} * (5 + classes), H, W); "
                "pass one image at a time"
            )
    inputs = [(stride * head.shape[2], stride * head.shape[3]) for head, stride in zip(heads, strides, strict=True)]
    if len(set(inputs)) > 1:
        raise ValueError(f"heads: got grids of inputs of {inputs} pixels (height, width), expected one input; its "
                         f"sides must be multiples of {max(strides)}, and heads come in the order of {tuple(strides)}")
