"""YOLOv3 around the network: an image in, detections out. Lessons 10 and 12.

    letterbox       image -> the network's input            module letterbox
    decode          heads -> (box, class) candidates        module heads; the formula is there
    nms             candidates -> one box per object        module suppress, on the IoU of module boxes
`anchors` finds the shapes that the heads are built on, `decode_graph` moves the decoding into the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtkit.boxes import giou, iou
from trtkit.heads import ANCHORS, DECODED, STRIDES, decode, decode_boxes, sigmoid
from trtkit.letterbox import PAD_U8, Placement, letterbox, letterbox_u8
from trtkit.suppress import MAX_CANDIDATES, nms, soft_nms

__all__ = ["ANCHORS", "MAX_CANDIDATES", "PAD_U8", "STRIDES", "Detection", "Placement", "decode", "decode_boxes",
           "detect", "detect_batch", "giou", "iou", "letterbox", "letterbox_u8", "nms", "postprocess", "sigmoid",
           "soft_nms"]


@dataclass(frozen=True)
class Detection:
    """The detections of one image, best score first.

    Shapes: `boxes_xyxy` (N, 4) float32, pixels of the original image; `scores` (N,) float32 in [0, 1];
    `labels` (N,) int64.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def postprocess(
    heads: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    placement: Placement,
    *,
    conf_thr: float = 0.25,
    iou_thr: float = 0.45,
    class_aware: bool = True,
    anchors: np.ndarray = ANCHORS,
    strides: Sequence[int] = STRIDES,
) -> Detection:
    """Outputs for one image to detections in pixels of the original image.

    Args:
        heads: see `decode`; or the outputs by name, either heads or "boxes" and "scores", see `decode_boxes`.
        placement: what `letterbox` returned for the image.
        conf_thr: lowest score kept, in (0, 1).
        iou_thr: see `nms`.
        class_aware: only boxes of the same class suppress each other; False: all do.
        anchors, strides: see `decode`.

    Returns:
        Detections, boxes clipped to the image; those that lie wholly outside it are dropped.

    Raises:
        ValueError: see `decode`, `decode_boxes` and `nms`.
    """
    if isinstance(heads, Mapping) and heads.keys() == set(DECODED):
        boxes, scores, labels = decode_boxes(heads["boxes"], heads["scores"], conf_thr=conf_thr)
    else:
        heads = list(heads.values()) if isinstance(heads, Mapping) else heads
        boxes, scores, labels = decode(heads, conf_thr=conf_thr, anchors=anchors, strides=strides)
    keep = nms(boxes, scores, labels if class_aware else None, iou_thr=iou_thr)
    boxes = placement.clip(placement.to_image(boxes[keep]))
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    keep = keep[inside]
    return Detection(boxes[inside], scores[keep], labels[keep])


def detect(runner, img_hwc_u8: np.ndarray, **options) -> Detection:
    """Letterbox, infer, decode and NMS: one image in, detections out.

    Args:
        runner: an `engine.Runner` with one image input (1, 3, H, W) and one head per stride, coarsest first, or with
            the outputs "boxes" and "scores".
        img_hwc_u8: (H, W, 3) uint8, RGB.
        options: `conf_thr`, `iou_thr` and so on, see `postprocess`.

    Returns:
        Detections in pixels of `img_hwc_u8`.
    """
    (found,) = detect_batch(runner, [img_hwc_u8], **options)
    return found


def detect_batch(runner, imgs_hwc_u8: Sequence[np.ndarray], **options) -> list[Detection]:
    """`detect` for several images at once, of any sizes: the runner is called once.

    Args:
        runner: see `detect`; its batch must admit as many images.
        imgs_hwc_u8: each (H, W, 3) uint8, RGB.
        options: see `postprocess`.

    Returns:
        One detection per image; [] for no images.
    """
    if len(imgs_hwc_u8) == 0:
        return []
    (name, spec), = runner.inputs.items()
    boxed = [letterbox(img, tuple(spec.shape[-2:])) for img in imgs_hwc_u8]
    x_nchw = np.concatenate([x for x, _ in boxed]).astype(spec.dtype, copy=False)
    outputs = runner.infer({name: x_nchw})
    return [postprocess({key: y[i : i + 1] for key, y in outputs.items()}, place, **options)
            for i, (_, place) in enumerate(boxed)]
