import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from trtkit.boxes import iou
from trtkit.suppress import MAX_CANDIDATES, nms, soft_nms, top_k

BOXES = st.lists(
    st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2), min_size=1, max_size=30
).map(lambda b: np.array([(x, y, x + w, y + h) for x, y, w, h in b], np.float32))


@st.composite
def scored_boxes(draw):
    """Boxes, distinct scores (which of two equally good ones goes first is our own rule), and labels."""
    boxes = draw(BOXES)
    n = len(boxes)
    scores = np.array(draw(st.permutations(range(1, n + 1))), np.float32) / (n + 1)
    return boxes, scores, np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))


@given(scored_boxes(), st.sampled_from([0.0, 0.2317, 0.4503, 0.7121, 1.0]))
def test_nms_equals_torchvision_within_classes_and_across(case, iou_thr):
    tensors = [torch.from_numpy(x) for x in case]
    kept = nms(*case, iou_thr=iou_thr)
    assert kept.tolist() == torchvision.ops.batched_nms(*tensors, iou_thr).tolist()
    agnostic = nms(case[0], case[1], None, iou_thr=iou_thr)
    assert agnostic.tolist() == torchvision.ops.nms(*tensors[:2], iou_thr).tolist()


@pytest.mark.parametrize("n", [300, 1500])
def test_nms_of_a_crowd_equals_torchvision(rng, n):
    corners = rng.uniform(0, 400, (n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 90, (n, 2))], 1).astype(np.float32)
    scores, labels = rng.permutation(n).astype(np.float32) / n, rng.integers(0, 4, n)
    tensors = [torch.from_numpy(x) for x in (boxes, scores, labels)]
    expected = torchvision.ops.batched_nms(*tensors, 0.45).tolist()
    assert nms(boxes, scores, labels, max_boxes=n).tolist() == expected
    assert nms(boxes, scores, labels, max_boxes=25).tolist() == expected[:25]


@given(BOXES, st.sampled_from([0.2317, 0.4503]))
def test_nms_leaves_no_two_close_boxes_even_with_equal_scores(boxes, iou_thr):
    labels = np.zeros(len(boxes), int)
    kept = nms(boxes, np.ones(len(boxes), np.float32), labels, iou_thr=iou_thr)
    overlap = iou(boxes[kept], boxes[kept]) - np.eye(len(kept))
    assert overlap.max() <= iou_thr
    gone = np.setdiff1d(np.arange(len(boxes)), kept)                # and each that went had a reason
    assert (iou(boxes[gone], boxes[kept]) > iou_thr).any(1).all()
    assert kept[0] == 0 and (np.diff(kept) > 0).all()               # of equals the first in the array


def test_nms_keeps_the_best_and_at_most_max_boxes(rng):
    n = 2500
    corners = np.arange(n, dtype=np.float32)[:, None] * 10
    boxes = np.concatenate([corners, corners, corners + 5, corners + 5], 1)     # none overlaps
    scores = rng.permutation(n).astype(np.float32)
    best = np.argsort(-scores).tolist()
    assert nms(boxes, scores, np.zeros(n, int), max_boxes=7).tolist() == best[:7]
    assert nms(boxes, scores, np.zeros(n, int), max_boxes=n).tolist() == best[:MAX_CANDIDATES]
    assert nms(boxes, scores, None, max_boxes=n, max_candidates=9).tolist() == best[:9]


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 12))
def test_top_k_is_a_stable_sort_cut_off(scores, k):
    scores = np.array(scores, np.float32)
    assert top_k(scores, k).tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def _soft_nms_slowly(boxes, scores, labels, method, iou_thr, sigma, score_thr, max_boxes):
    """Bodla et al. 2017, figure 2, in plain loops and Python's doubles."""
    left = {i: float(s) for i, s in enumerate(scores)}
    chosen = []
    while left and len(chosen) < max_boxes:
        m = max(left, key=lambda i: (left[i], -i))
        if left[m] < score_thr:
            break
        chosen.append((m, left.pop(m)))
        for i in left:
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = boxes[m].tolist(), boxes[i].tolist()
            w, h = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
            overlap = max(w, 0) * max(h, 0)
            ratio = overlap / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap)
            if labels is not None and labels[i] != labels[m]:
                continue
            if method == "gaussian":
                left[i] *= math.exp(-ratio**2 / sigma)
            elif ratio > iou_thr:
                left[i] *= 1 - ratio
    return chosen


@given(scored_boxes(), st.sampled_from(["linear", "gaussian"]), st.booleans(), st.sampled_from([0.0, 0.3021, 0.6013]))
def test_soft_nms_equals_the_papers_loop(case, method, class_aware, iou_thr):
    boxes, scores, labels = case
    labels = labels if class_aware else None
    kept, lowered = soft_nms(boxes, scores, labels, method=method, iou_thr=iou_thr, sigma=0.4, score_thr=0.05,
                             max_boxes=12)
    expected = _soft_nms_slowly(boxes, scores, labels, method, iou_thr, 0.4, 0.05, 12)
    # Two scores that end within rounding of each other may change places: compare what each box got.
    np.testing.assert_allclose(lowered, [s for _, s in expected], rtol=1e-4)
    if len(expected) < 2 or np.abs(np.diff([s for _, s in expected])).min() > 1e-5:
        assert kept.tolist() == [i for i, _ in expected]
    assert kept.dtype == np.int64 and lowered.dtype == np.float32
    assert (lowered <= scores[kept] + 1e-7).all() and (np.diff(lowered) <= 1e-7).all()


@given(scored_boxes())
def test_gaussian_of_a_tiny_sigma_is_greedy_nms_at_zero(case):
    kept, lowered = soft_nms(*case, method="gaussian", sigma=1e-9)
    assert kept.tolist() == nms(*case, iou_thr=0.0).tolist()
    assert np.array_equal(lowered, case[1][kept])


def test_soft_nms_by_hand_and_the_first_of_equals():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [100, 0, 110, 10]], np.float32)        # IoU 0.5, 0
    scores = np.array([0.9, 0.8, 0.9], np.float32)
    kept, lowered = soft_nms(boxes, scores, None, method="linear")
    assert kept.tolist() == [0, 2, 1]
    np.testing.assert_allclose(lowered, [0.9, 0.9, 0.4], rtol=1e-6)
    _, lowered = soft_nms(boxes, scores, None, sigma=0.5)
    np.testing.assert_allclose(lowered, [0.9, 0.9, 0.8 * math.exp(-0.5)], rtol=1e-6)
    kept, _ = soft_nms(boxes, scores, np.array([0, 1, 0]), score_thr=0.85)
    assert kept.tolist() == [0, 2]
    twin, lowered = soft_nms(boxes[[0, 0]], scores[[0, 0]], None, method="linear")         # IoU 1: nothing is left
    assert twin.tolist() == [0] and len(lowered) == 1
    with np.errstate(all="raise"):
        kept, lowered = soft_nms(boxes[[0, 0, 2]], scores, None, method="linear", score_thr=0)
    assert kept.tolist() == [0, 2, 1]
    np.testing.assert_allclose(lowered, [0.9, 0.9, 0])


@pytest.mark.parametrize("call", [nms, soft_nms])
def test_nothing_in_nothing_out(call):
    nothing = np.empty((0, 4), np.float32), np.empty(0, np.float32)
    for labels in (np.empty(0, int), None):
        kept = call(*nothing, labels)
        kept = kept[0] if isinstance(kept, tuple) else kept
        assert kept.shape == (0,) and kept.dtype == np.int64


BOX, SCORE, LABEL = np.array([[0, 0, 9, 9]], np.float32), np.array([0.5], np.float32), np.array([0])


@pytest.mark.parametrize("call", [nms, soft_nms])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scores": np.array([np.nan], np.float32)}, r"scores\[0\].*nan"),
        ({"scores": np.array([np.inf], np.float32)}, r"scores\[0\].*inf"),
        ({"scores": np.array([0.5, 0.4])}, r"\(2,\).*\(1,\)"),
        ({"labels": np.array([0, 1])}, r"\(2,\).*\(1,\)"),
        ({"boxes_xyxy": np.array([[0, 0, np.nan, 9]])}, r"boxes_xyxy\[0\].*nan"),
        ({"boxes_xyxy": np.zeros((1, 3))}, r"\(1, 3\)"),
        ({"iou_thr": -0.01}, "iou_thr.*-0.01"),
        ({"iou_thr": 1.01}, "iou_thr.*1.01"),
        ({"iou_thr": float("nan")}, "iou_thr.*nan"),
        ({"max_boxes": 0}, "max_boxes"),
        ({"max_candidates": 0}, "max_candidates"),
    ],
)
def test_what_cannot_be_suppressed_is_refused(call, change, match):
    with pytest.raises(ValueError, match=match):
        call(**{"boxes_xyxy": BOX, "scores": SCORE, "labels": LABEL} | change)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"method": "soft"}, "'soft'.*linear"), ({"sigma": 0}, "sigma"), ({"score_thr": 1.5}, "score_thr"),
     ({"score_thr": -0.1}, "score_thr"), ({"sigma": float("nan")}, "sigma")],
)
def test_soft_nms_refuses_other_options(change, match):
    with pytest.raises(ValueError, match=match):
        soft_nms(BOX, SCORE, LABEL, **change)
