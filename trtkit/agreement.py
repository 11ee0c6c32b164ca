"""Do two runners see the same? Matched boxes, IoU and score gap, and what only one of them found. Lesson 11.

mAP compares a runner with the truth; two engines may have the same mAP and disagree about every second object. Here
they are compared with each other, without any truth, so on any image:
    agreement = sum of the IoU of boxes that both found / (boxes that both found + found by one alone)
which is 1 exactly where both found the same boxes with the same classes. Detect with a low threshold and compare at the
one that a user works with: a box that slipped from a score of 0.26 to 0.24 is not one that vanished.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtkit.engine import Runner
from trtkit.evaluate import CONF_THR
from trtkit.heads import check_conf
from trtkit.yolo import Detection, detect, iou


@dataclass(frozen=True)
class Agreement:
    """Two detections of one image, a and b; indices are of the detections as they were given.

    Attributes:
        pairs: (P, 2) int64, a box of a and the box of b on it; the score of both reaches the threshold.
        iou: (P,) float64 of each pair.
        score_gap: (P,) float64, score in b less score in a.
        relabelled: (P,) bool, whether the two have different classes.
        only_a, only_b: int64, boxes that reach the threshold in one alone.
        other_of_a, other_of_b: float64, for each of those the score of the box on it in the other, 0 without one.
    """

    pairs: np.ndarray
    iou: np.ndarray
    score_gap: np.ndarray
    relabelled: np.ndarray
    only_a: np.ndarray
    only_b: np.ndarray
    other_of_a: np.ndarray
    other_of_b: np.ndarray

    @property
    def boxes(self) -> int:
        """Found by a, by b or by both."""
        return len(self.pairs) + len(self.only_a) + len(self.only_b)

    @property
    def share(self) -> float:
        """The agreement, in [0, 1]; 1 where neither found anything. A pair of different classes adds no IoU."""
        return float(self.iou[~self.relabelled].sum() / self.boxes) if self.boxes else 1.0


@dataclass(frozen=True)
class Summary:
    """Over images.

    Attributes:
        share: as `Agreement.share`, of all boxes together.
        both, only_a, only_b: numbers of boxes.
        slipped: how many of those found by one alone the other saw too, with a score below the threshold.
        relabelled: how many of `both` have different classes.
        median_iou, lowest_iou: of the pairs, NaN without any.
        mean_score_gap, largest_score_gap: |score in b - score in a| of the pairs, NaN without any.
    """

    share: float
    both: int
    only_a: int
    only_b: int
    slipped: int
    relabelled: int
    median_iou: float
    lowest_iou: float
    mean_score_gap: float
    largest_score_gap: float


def compare(a: Detection, b: Detection, *, conf_thr: float = 0.25, iou_thr: float = 0.5) -> Agreement:
    """Match the boxes of two detections of one image.

    Pairs are formed by falling IoU, first within the classes, then among the rest. Where IoU ties, the score that is
    closer wins, then the order of the boxes.

    Args:
        a, b: all that was found, also below `conf_thr`: it says whether a box slipped or vanished.
        conf_thr: from which a box counts as found.
        iou_thr: from which two boxes are about the same object, above 0.

    Raises:
        ValueError: `conf_thr` outside (0, 1), an IoU threshold outside (0, 1], or a box or score that is NaN or
            infinite.
    """
    check_conf(conf_thr)
    if not 0 < iou_thr <= 1:
        raise ValueError(f"iou_thr: got {iou_thr}, expected above 0 and at most 1; try 0.5")
    for name, found in (("a", a), ("b", b)):
        if not (np.isfinite(found.boxes_xyxy).all() and np.isfinite(found.scores).all()):
            raise ValueError(f"{name}: got NaN or infinity, expected finite boxes and scores; look for an overflow in "
                             "the engine's outputs (FP16, a wrong scale)")
    overlap = iou(a.boxes_xyxy.astype(np.float64), b.boxes_xyxy.astype(np.float64))
    gap = b.scores[None, :].astype(np.float64) - a.scores[:, None]
    same = a.labels[:, None] == b.labels[None, :]
    partner = _pair(overlap, gap, same, iou_thr)                    # (N,) index into b or -1
    in_a = np.flatnonzero(partner >= 0)
    in_b = partner[in_a]
    strong_a, strong_b = a.scores >= conf_thr, b.scores >= conf_thr
    both = strong_a[in_a] & strong_b[in_b]
    i, j = in_a[both], in_b[both]
    other_of_a, other_of_b = np.zeros(len(a.scores)), np.zeros(len(b.scores))
    other_of_a[in_a], other_of_b[in_b] = b.scores[in_b], a.scores[in_a]
    only_a, only_b = (np.setdiff1d(np.flatnonzero(strong), paired) for strong, paired in ((strong_a, i), (strong_b, j)))
    return Agreement(np.stack([i, j], 1), overlap[i, j], gap[i, j], ~same[i, j], only_a, only_b,
                     other_of_a[only_a], other_of_b[only_b])


def _pair(overlap: np.ndarray, gap: np.ndarray, same: np.ndarray, iou_thr: float) -> np.ndarray:
    """(N,) which box of b belongs to each box of a; -1 for none."""
    partner = np.full(overlap.shape[0], -1)
    taken = np.zeros(overlap.shape[1], bool)
    i, j = np.nonzero(overlap >= iou_thr)
    # lexsort's last key is the first to count: same class, then IoU, then score, then order
    for k in np.lexsort((j, i, np.abs(gap[i, j]), -overlap[i, j], ~same[i, j])):
        if partner[i[k]] < 0 and not taken[j[k]]:
            partner[i[k]], taken[j[k]] = j[k], True
    return partner


def of_runners(
    a: Runner, b: Runner, images: Sequence[np.ndarray], *, conf_thr: float = 0.25, iou_thr: float = 0.5
) -> list[Agreement]:
    """Compare two detectors on images.

    Args:
        a, b: see `yolo.detect`.
        images: each (H, W, 3) uint8, RGB; no truth is needed.
        conf_thr, iou_thr: see `compare`.
    """
    return [compare(*(detect(runner, image, conf_thr=min(CONF_THR, conf_thr)) for runner in (a, b)),
                    conf_thr=conf_thr, iou_thr=iou_thr) for image in images]


def summary(images: Sequence[Agreement]) -> Summary:
    """Add up the agreement of images.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("images: got none, expected the agreement of at least one; see compare")
    iou_of_pairs, gaps, relabelled = (np.concatenate([getattr(x, name) for x in images])
                                      for name in ("iou", "score_gap", "relabelled"))
    others = np.concatenate([y for x in images for y in (x.other_of_a, x.other_of_b)])
    boxes, nothing = sum(x.boxes for x in images), len(gaps) == 0
    nan = float("nan")
    return Summary(
        share=float(iou_of_pairs[~relabelled].sum() / boxes) if boxes else 1.0,
        both=len(gaps),
        only_a=sum(len(x.only_a) for x in images),
        only_b=sum(len(x.only_b) for x in images),
        slipped=int((others > 0).sum()),
        relabelled=int(relabelled.sum()),
        median_iou=nan if nothing else float(np.median(iou_of_pairs)),
        lowest_iou=nan if nothing else float(iou_of_pairs.min()),
        mean_score_gap=nan if nothing else float(np.abs(gaps).mean()),
        largest_score_gap=nan if nothing else float(np.abs(gaps).max()),
    )
