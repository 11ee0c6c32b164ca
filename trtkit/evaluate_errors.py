"""What kind of mistakes? Missed, confused, found twice, invented. Lesson 11.

mAP is one number; this says what it is made of, at the threshold that a user works with. Every detection gets a kind:
    right       the best unclaimed object of its class has IoU >= iou_thr; as in COCO's protocol, best scores first
    ignored     the like, of an object that does not count; here overlap / area of the detection >= iou_thr
    confused    of the rest: on an unclaimed object of another class
    duplicate   on an object that another detection has claimed
    displaced   near an object of its class that nobody found: iou_near <= IoU < iou_thr
    invented    none of these
An object that nobody claimed was missed, also where a displaced box is near.
Source: Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors", section 2.2. Left out on
purpose: its errors of two kinds at once, which are "invented" here, and what correcting each kind would gain.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtkit.evaluate import SIZES, Truth, check, sizes_of
from trtkit.heads import check_conf
from trtkit.yolo import Detection, iou

KINDS = ("right", "confused", "duplicate", "displaced", "invented", "ignored")


@dataclass(frozen=True)
class Judged:
    """One image, detection by detection and object by object.

    Attributes:
        kinds: (N,) str of `KINDS`, one per detection.
        objects: (N,) int64, the object that the kind is about; -1 for "invented".
        found_by: (M,) int64, the detection that claimed the object, rightly or confused; -1 for an object that was
            missed, or does not count.
        labels: (N,) int64 of the detections.
        truth: the objects.
    """

    kinds: np.ndarray
    objects: np.ndarray
    found_by: np.ndarray
    labels: np.ndarray
    truth: Truth

    @property
    def missed(self) -> np.ndarray:
        """(M,) bool: objects that count, and that no detection of their class found."""
        right = np.zeros(len(self.found_by), bool)
        right[self.objects[self.kinds == "right"]] = True
        return ~right & ~self.truth.ignore


def judge(
    detections: Sequence[Detection],
    truths: Sequence[Truth],
    classes: int,
    *,
    conf_thr: float = 0.25,
    iou_thr: float = 0.5,
    iou_near: float = 0.1,
) -> list[Judged]:
    """Say of each detection what kind it is.

    Args:
        detections: one per image.
        truths: one per image, in the same order.
        classes: how many there are; labels are below it.
        conf_thr: detections with a lower score are passed over; indices are of those that are left, in their order.
        iou_thr: from which a box counts as right.
        iou_near: from which it counts as near.

    Returns:
        One per image.

    Raises:
        ValueError: thresholds that are not 0 < iou_near < iou_thr <= 1, or what `evaluate.check` refuses.
    """
    if not 0 < iou_near < iou_thr <= 1:
        raise ValueError(f"iou: got iou_near={iou_near} and iou_thr={iou_thr}, expected 0 < iou_near < iou_thr <= 1")
    check(detections, truths, classes)
    return [_judge(at_least(d, conf_thr), t, iou_thr, iou_near) for d, t in zip(detections, truths, strict=True)]


def at_least(detection: Detection, conf_thr: float) -> Detection:
    """The detections whose score reaches a threshold, in their order; ValueError for one outside (0, 1)."""
    check_conf(conf_thr)
    kept = detection.scores >= conf_thr
    return Detection(detection.boxes_xyxy[kept], detection.scores[kept], detection.labels[kept])


def _judge(found: Detection, truth: Truth, iou_thr: float, iou_near: float) -> Judged:
    overlap = iou(found.boxes_xyxy.astype(np.float64), truth.boxes_xyxy.astype(np.float64))     # (N, M)
    same = found.labels[:, None] == truth.labels[None, :]
    counts = ~truth.ignore
    kinds = np.full(len(found.scores), "invented", dtype="<U9")
    objects = np.full(len(found.scores), -1)
    found_by = np.full(len(truth.labels), -1)
    order = np.argsort(-found.scores, kind="stable")

    def give(i: int, kind: str, candidates: np.ndarray, measure: np.ndarray, at_least: float, claims: bool) -> None:
        """Detection i gets the kind where one of the objects reaches the measure."""
        reached = np.flatnonzero(candidates & (measure[i] >= at_least))
        if kinds[i] == "invented" and reached.size:
            kinds[i], objects[i] = kind, reached[measure[i, reached].argmax()]
            if claims:
                found_by[objects[i]] = i

    inside = _inside(overlap, found.boxes_xyxy, truth.boxes_xyxy)
    for i in order:
        give(i, "right", same[i] & counts & (found_by < 0), overlap, iou_thr, True)
        give(i, "ignored", same[i] & ~counts, inside, iou_thr, False)
    for i in order:             # after all right ones: a confused detection takes no object from a right one
        give(i, "confused", ~same[i] & counts & (found_by < 0), overlap, iou_thr, True)
    for i in order:
        give(i, "duplicate", found_by >= 0, overlap, iou_thr, False)
        give(i, "displaced", same[i] & counts & (found_by < 0), overlap, iou_near, False)
    return Judged(kinds, objects, found_by, found.labels, truth)


def _inside(overlap: np.ndarray, boxes_xyxy: np.ndarray, of_xyxy: np.ndarray) -> np.ndarray:
    """(N, M): intersection over the first box's own area, from the IoU: overlap = iou * (a + b) / (1 + iou)."""
    area, area_of = ((b[:, 2:] - b[:, :2]).astype(np.float64).prod(1) for b in (boxes_xyxy, of_xyxy))
    intersection = overlap * (area[:, None] + area_of[None, :]) / (1 + overlap)
    return np.divide(intersection, area[:, None], out=np.zeros_like(overlap), where=area[:, None] > 0)


def kinds(judged: Sequence[Judged]) -> dict[str, int]:
    """How many detections are of each kind, and how many objects were "missed"."""
    found = Counter(str(kind) for image in judged for kind in image.kinds)
    return {kind: found[kind] for kind in KINDS} | {"missed": sum(int(image.missed.sum()) for image in judged)}


def confusion(judged: Sequence[Judged], classes: int) -> np.ndarray:
    """What was taken for what.

    Returns:
        (K + 1, K + 1) int64. Row k: objects of class k, by the class that they were found as, the last column those
        that nobody found. Last row: detections without an object of their own (duplicate, displaced, invented), by
        class. So row k adds up to the objects of class k, column k to the detections of class k that count.
    """
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for image in judged:
        labels = np.append(image.labels, classes)                   # the last one is for found_by == -1
        counts = ~image.truth.ignore
        np.add.at(matrix, (image.truth.labels[counts], labels[image.found_by[counts]]), 1)
        extra = np.isin(image.kinds, ("duplicate", "displaced", "invented"))
        np.add.at(matrix, (classes, image.labels[extra]), 1)
    return matrix


def misses(judged: Sequence[Judged], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """How many objects were missed, and how many there were.

    Returns:
        Two (K, 3) int64, by class and by size in the order of `evaluate.SIZES`. An object that was found as another
        class was missed.
    """
    missed, total = (np.zeros((classes, len(SIZES)), np.int64) for _ in range(2))
    for image in judged:
        where = image.truth.labels, sizes_of(image.truth.boxes_xyxy)
        np.add.at(missed, where, image.missed)
        np.add.at(total, where, ~image.truth.ignore)
    return missed, total
