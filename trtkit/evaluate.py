"""How good are the boxes? COCO's mAP, computed by pycocotools. Lessons 10 and 11.

AP of a class is the area under precision over recall (101 points), where a detection counts as right when its IoU with
an unclaimed object of its class reaches a threshold. mAP50 uses 0.5, mAP50-95 averages ten thresholds 0.5 ... 0.95.
Sizes are COCO's, by area of the box in pixels of the image: small below 32 * 32, large from 96 * 96.
Which object was missed or taken for another: `evaluate_errors`.
Source: Lin et al. 2014, "Microsoft COCO"; cocodataset.org, "Detection Evaluation".
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trtkit.data import ignored
from trtkit.engine import Runner
from trtkit.scenes import CLASSES, Scene
from trtkit.yolo import Detection, detect

CONF_THR = 0.01             # the precision-recall curve needs its tail of unsure detections
SIZES = ("small", "medium", "large")
LIMITS_PX2 = (32**2, 96**2)             # the areas between them
IOU_THRS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Accuracy:
    """What COCO's protocol says, all in [0, 1].

    Attributes:
        map50: at IoU 0.5, the mean over classes.
        map50_95: averaged over IoU 0.5 to 0.95.
        per_class: the latter of each class by name; a class without objects is left out.
        per_size: the latter of "small", "medium" and "large" objects; a size without objects is left out.
        class_names: one per label.
        precision: (10, 101, K, 4) at `IOU_THRS`, at `RECALLS`, of each class, for all sizes and each of `SIZES`; the
            highest precision at this recall or beyond, 0 where that recall is not reached, NaN without objects.
    """

    map50: float
    map50_95: float
    per_class: dict[str, float]
    per_size: dict[str, float]
    class_names: tuple[str, ...]
    precision: np.ndarray = field(repr=False, compare=False)

    def ap(self, name: str | None = None, *, size: str = "all", iou_thr: float | None = None) -> float:
        """AP of a class, of objects of one size, at one threshold.

        Args:
            name: of the class; None for the mean over those with objects.
            size: "all" or one of `SIZES`.
            iou_thr: one of `IOU_THRS`; None for the mean over all ten.

        Returns:
            In [0, 1]; NaN where there is no such object.

        Raises:
            ValueError: an unknown class, size or threshold.
        """
        thresholds = slice(None) if iou_thr is None else [_threshold(iou_thr)]
        classes = slice(None) if name is None else [_position("class", name, self.class_names)]
        chosen = self.precision[thresholds][:, :, classes, _position("size", size, ("all", *SIZES))]
        known = chosen[np.isfinite(chosen)]
        return float(known.mean()) if known.size else float("nan")

    def curve(self, name: str, *, size: str = "all", iou_thr: float = 0.5) -> np.ndarray:
        """(101,) precision of a class at `RECALLS`, whose mean is the AP; arguments and errors as in `ap`."""
        where = _position("class", name, self.class_names), _position("size", size, ("all", *SIZES))
        return self.precision[_threshold(iou_thr), :, *where]


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
        detections: one per image; at most the 100 best of an image count. Boxes are taken as they are: one that
            reaches out of its image has that much less IoU. Of equal scores, those of earlier images come first.
        truths: one per image, in the same order.
        class_names: one per label.

    Returns:
        The accuracy; 0 for each class that has objects when nothing was detected.

    Raises:
        ValueError: lengths differ, no object that is not ignored; or, with the image's number, a label without a name,
            a box or score that is NaN or infinite, a box whose right edge is left of its left one.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    check(detections, truths, len(class_names))
    if not any((~t.ignore).any() for t in truths):
        raise ValueError("truths: got no object that counts, expected at least one; mAP of nothing has no meaning")
    objects = [
        {"image_id": i, "category_id": int(label), **_box(box), "iscrowd": int(ignore)}
        for i, t in enumerate(truths)
        for box, label, ignore in zip(t.boxes_xyxy, t.labels, t.ignore, strict=True)
    ]
    results = [
        {"image_id": i, "category_id": int(label), **_box(box), "iscrowd": 0, "score": float(score)}
        for i, d in enumerate(detections)
        for box, label, score in zip(d.boxes_xyxy, d.labels, d.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):         # it prints its progress
        sides = []
        for annotations in (objects, results):              # COCO.loadRes would refuse an empty list
            side = COCO()
            side.dataset = {
                "images": [{"id": i} for i in range(len(truths))],
                "categories": [{"id": k, "name": name} for k, name in enumerate(class_names)],
                "annotations": [{"id": n + 1, **a} for n, a in enumerate(annotations)],
            }
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]       # (10, 101, K, 4), with at most 100 detections an image
    precision = np.where(precision > -1, precision, np.nan)
    return _accuracy(precision, tuple(class_names))


def _accuracy(precision: np.ndarray, class_names: tuple[str, ...]) -> Accuracy:
    ap = precision.mean(1)                                  # (10, K, 4)
    per_class = dict(zip(class_names, ap[:, :, 0].mean(0).tolist(), strict=True))
    has_objects = np.isfinite(ap[0])                        # (K, 4)
    per_size = {size: float(np.nanmean(ap[..., i])) for i, size in enumerate(SIZES, 1) if has_objects[:, i].any()}
    return Accuracy(
        map50=float(np.nanmean(ap[0, :, 0])),
        map50_95=float(np.nanmean(ap[..., 0])),
        per_class={name: x for name, x in per_class.items() if np.isfinite(x)},
        per_size=per_size,
        class_names=class_names,
        precision=precision,
    )


def check(detections: Sequence[Detection], truths: Sequence[Truth], classes: int) -> None:
    """What is compared must fit together; errors as in `mean_average_precision`."""
    if len(detections) != len(truths):
        raise ValueError(f"detections: got {len(detections)} images, expected {len(truths)}, one per truth")
    for what, images in (("detections", detections), ("truths", truths)):
        for i, image in enumerate(images):
            _check_image(f"{what}[{i}]", image, classes)


def _check_image(where: str, image: Detection | Truth, classes: int) -> None:
    boxes, labels = image.boxes_xyxy, image.labels
    third = image.scores if isinstance(image, Detection) else image.ignore
    if boxes.shape != (len(labels), 4) or third.shape != (len(labels),):
        raise ValueError(f"{where}: got boxes of shape {boxes.shape}, {len(labels)} labels and {len(third)} scores or "
                         "flags, expected (N, 4) boxes and N of each")
    if (wrong := labels[(labels < 0) | (labels >= classes)]).size:      # pycocotools would drop them in silence
        raise ValueError(f"{where}: got label {wrong[0]}, expected 0 to {classes - 1}; name it")
    for name, numbers in (("boxes_xyxy", boxes), ("scores", third)):
        if not np.isfinite(numbers).all():
            raise ValueError(f"{where}.{name}: got NaN or infinity, expected finite numbers; look for an overflow in "
                             "the engine's outputs (FP16, a wrong scale)")
    if (turned := boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)]).size:
        raise ValueError(f"{where}.boxes_xyxy: got {turned[0].tolist()}, expected (left, top, right, bottom)")


def detect_all(runner: Runner, scenes: Sequence[Scene], *, conf_thr: float = CONF_THR) -> list[Detection]:
    """What a runner finds in each scene; see `yolo.detect`."""
    return [detect(runner, scene.img_hwc_u8, conf_thr=conf_thr) for scene in scenes]


def truths_of(scenes: Sequence[Scene]) -> list[Truth]:
    """The objects of scenes; those that `data.ignored` names do not count."""
    return [Truth(scene.boxes_xyxy, scene.labels, ignored(scene)) for scene in scenes]


def score(runner: Runner, test: Sequence[Scene]) -> Accuracy:
    """Detect in every scene of a test set and score the result.

    Args:
        runner: see `yolo.detect`.
        test: for example `data.load_split("test")`.
    """
    return mean_average_precision(detect_all(runner, test), truths_of(test), CLASSES)


def sizes_of(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(N,) int64: position in `SIZES` of each box of (N, 4), by its area."""
    return np.digitize((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1), LIMITS_PX2)


def _threshold(iou_thr: float) -> int:
    close = np.flatnonzero(np.isclose(IOU_THRS, iou_thr))
    if not close.size:
        raise ValueError(f"iou_thr: got {iou_thr}, expected one of 0.5, 0.55 ... 0.95, or None for all")
    return int(close[0])


def _position(what: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise ValueError(f"{what}: got {name!r}, expected one of {list(names)}")
    return names.index(name)


def _box(box_xyxy: np.ndarray) -> dict:
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
