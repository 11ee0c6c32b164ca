"""How good are the boxes? COCO's mAP, computed by pycocotools. Lessons 10 and 11.

AP of a class is the area under precision over recall (101 points), where a detection counts as right when its IoU with
an unclaimed object of its class reaches a threshold. mAP50 uses 0.5, mAP50-95 averages ten thresholds 0.5 ... 0.95.
Source: Lin et al. 2014, "Microsoft COCO"; cocodataset.org, "Detection Evaluation".
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtkit.data import ignored
from trtkit.engine import Runner
from trtkit.scenes import CLASSES, Scene
from trtkit.yolo import Detection, detect

CONF_THR = 0.01             # the precision-recall curve needs its tail of unsure detections


@dataclass(frozen=True)
class Accuracy:
    """mAP in [0, 1]: at IoU 0.5, averaged over IoU 0.5 to 0.95, and the latter of each class by name."""

    map50: float
    map50_95: float
    per_class: dict[str, float]


@dataclass(frozen=True)
class Truth:
    """The objects of one image.

    Shapes: `boxes_xyxy` (N, 4) float32, pixels; `labels` (N,) integer; `ignore` (N,) bool, objects whose detection
    counts neither as right nor as wrong.
    """

    boxes_xyxy: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray


def mean_average_precision(
    detections: Sequence[Detection], truths: Sequence[Truth], class_names: Sequence[str]
) -> Accuracy:
    """Score detections of a set of images. Detect with a low `conf_thr` (0.01): the curve needs its tail.

    Args:
        detections: one per image; at most the 100 best of an image count.
        truths: one per image, in the same order.
        class_names: one per label.

    Returns:
        The accuracy. A class without objects has no AP and does not count in the mean.

    Raises:
        ValueError: lengths differ, a label without a name, or no object that is not ignored.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(detections) != len(truths):
        raise ValueError(f"detections: got {len(detections)} images, expected {len(truths)}, one per truth")
    if not any((~t.ignore).any() for t in truths):
        raise ValueError("truths: got no object that counts, expected at least one; mAP of nothing has no meaning")
    for what, images in (("detections", detections), ("truths", truths)):
        for i, image in enumerate(images):          # pycocotools would drop them in silence
            if (wrong := image.labels[(image.labels < 0) | (image.labels >= len(class_names))]).size:
                raise ValueError(f"{what}[{i}]: got label {wrong[0]}, expected 0 to {len(class_names) - 1}; name it")
    annotations = [
        {"image_id": i, "category_id": int(label), "bbox": _xywh(box), "area": _area(box), "iscrowd": int(ignore)}
        for i, t in enumerate(truths)
        for box, label, ignore in zip(t.boxes_xyxy, t.labels, t.ignore, strict=True)
    ]
    results = [
        {"image_id": i, "category_id": int(label), "bbox": _xywh(box), "score": float(score), "area": _area(box)}
        for i, d in enumerate(detections)
        for box, label, score in zip(d.boxes_xyxy, d.labels, d.scores, strict=True)
    ]
    if not results:                             # pycocotools cannot load an empty list
        present = {int(label) for t in truths for label in t.labels[~t.ignore]}
        return Accuracy(0.0, 0.0, {name: 0.0 for k, name in enumerate(class_names) if k in present})
    with contextlib.redirect_stdout(io.StringIO()):         # it prints its progress
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truths))],
            "categories": [{"id": k, "name": name} for k, name in enumerate(class_names)],
            "annotations": [{"id": n + 1, **a} for n, a in enumerate(annotations)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]    # (10 thresholds, 101 recalls, K) at all areas, 100 boxes
    ap = np.where(precision > -1, precision, np.nan).mean(1)                    # (10, K)
    per_class = {name: float(x) for name, x in zip(class_names, ap.mean(0), strict=True) if np.isfinite(x)}
    return Accuracy(float(np.nanmean(ap[0])), float(np.nanmean(ap)), per_class)


def score(runner: Runner, test: Sequence[Scene]) -> Accuracy:
    """Detect in every scene of a test set and score the result.

    Args:
        runner: see `yolo.detect`.
        test: for example `data.load_split("test")`; objects that `data.ignored` names do not count.
    """
    found = [detect(runner, scene.img_hwc_u8, conf_thr=CONF_THR) for scene in test]
    truths = [Truth(scene.boxes_xyxy, scene.labels, ignored(scene)) for scene in test]
    return mean_average_precision(found, truths, CLASSES)


def _xywh(box_xyxy: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)
    return [x0, y0, x1 - x0, y1 - y0]


def _area(box_xyxy: np.ndarray) -> float:
    return float((box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]))
