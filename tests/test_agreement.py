import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate import NOTHING, A, B, C, _found

from trtkit.agreement import compare, of_runners, summary
from trtkit.engine import TensorSpec
from trtkit.yolo import Detection, iou

LOWER = [0, 0, 20, 15]              # IoU 0.75 with A


@st.composite
def _detections(draw, most=8):
    n = draw(st.integers(0, most))
    corners = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40), st.integers(1, 40)),
                            min_size=n, max_size=n))
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in corners], np.float32).reshape(-1, 4)
    scores = draw(st.lists(st.integers(1, 99), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    return Detection(boxes, np.array(scores, np.float32) / 100, np.array(labels, int))


@given(_detections())
def test_agreement_with_itself_is_total(found):
    same = compare(found, found)
    strong = int((found.scores >= 0.25).sum())
    assert same.share == pytest.approx(1) and len(same.pairs) == strong
    assert not len(same.only_a) and not len(same.only_b) and not same.relabelled.any()
    assert (same.score_gap == 0).all() and same.iou == pytest.approx(np.ones(strong))


@given(_detections(), _detections())
def test_every_box_is_in_one_place_and_pairs_overlap(a, b):
    x = compare(a, b)
    strong = [np.flatnonzero(d.scores >= 0.25).tolist() for d in (a, b)]
    assert sorted([*x.pairs[:, 0], *x.only_a]) == strong[0] and sorted([*x.pairs[:, 1], *x.only_b]) == strong[1]
    assert 0 <= x.share <= 1 + 1e-12 and (x.iou >= 0.5).all()
    overlap = iou(a.boxes_xyxy, b.boxes_xyxy)
    assert x.iou == pytest.approx(overlap[x.pairs[:, 0], x.pairs[:, 1]])
    assert x.relabelled.tolist() == (a.labels[x.pairs[:, 0]] != b.labels[x.pairs[:, 1]]).tolist()


@given(_detections(), _detections())
def test_swapping_the_two_turns_the_signs(a, b):
    x, y = compare(a, b), compare(b, a)
    assert (len(x.pairs), len(x.only_a), len(x.only_b)) == (len(y.pairs), len(y.only_b), len(y.only_a))
    assert sorted(x.score_gap) == pytest.approx(sorted(-y.score_gap)) and x.share == pytest.approx(y.share)


@given(_detections(), _detections(), st.randoms())
def test_the_order_of_boxes_with_distinct_overlaps_does_not_matter(a, b, random):
    overlap = iou(a.boxes_xyxy, b.boxes_xyxy)
    if len(set(overlap[overlap > 0].tolist())) < (overlap > 0).sum():
        return                                              # ties go by the order, as documented
    order = list(range(len(b.scores)))
    random.shuffle(order)
    shuffled = Detection(b.boxes_xyxy[order], b.scores[order], b.labels[order])
    x, y = compare(a, b), compare(a, shuffled)
    assert {(i, j) for i, j in x.pairs.tolist()} == {(i, order[j]) for i, j in y.pairs.tolist()}


def test_pairs_by_hand():
    a = _found([A, B, C], [0.9, 0.8, 0.3], [0, 1, 0])
    b = _found([B, LOWER], [0.7, 0.95], [1, 0])
    x = compare(a, b)
    assert {tuple(p) for p in x.pairs.tolist()} == {(0, 1), (1, 0)}
    by_a = dict(zip(x.pairs[:, 0].tolist(), zip(x.iou, x.score_gap, strict=True), strict=True))
    assert by_a[0] == pytest.approx((0.75, 0.05)) and by_a[1] == pytest.approx((1, -0.1))
    assert x.only_a.tolist() == [2] and x.other_of_a.tolist() == [0] and not len(x.only_b)
    assert x.share == pytest.approx(1.75 / 3)


def test_a_box_that_slipped_below_the_threshold_is_not_one_that_vanished():
    x = compare(_found([A, B], [0.26, 0.9]), _found([A, C], [0.24, 0.9]))
    assert x.only_a.tolist() == [0, 1] and x.other_of_a == pytest.approx([0.24, 0])
    assert x.only_b.tolist() == [1] and x.other_of_b.tolist() == [0]
    assert summary([x]).slipped == 1 and summary([x]).both == 0
    assert len(compare(_found([A], [0.26]), _found([A], [0.24]), conf_thr=0.2).pairs) == 1


def test_the_own_class_comes_first_and_the_rest_is_relabelled():
    two = _found([A, A], [0.9, 0.8], [0, 1])
    x = compare(two, _found([A, LOWER], [0.9, 0.8], [1, 0]))
    assert {tuple(p) for p in x.pairs.tolist()} == {(0, 1), (1, 0)} and not x.relabelled.any()
    x = compare(_found([A], labels=[0]), _found([A], labels=[1]))
    assert x.relabelled.tolist() == [True] and x.share == 0


def test_where_overlaps_tie_the_closer_score_wins():
    x = compare(_found([A, A], [0.9, 0.5]), _found([A, A], [0.5, 0.9]))
    assert {tuple(p) for p in x.pairs.tolist()} == {(0, 1), (1, 0)} and (x.score_gap == 0).all()


def test_nothing_found_by_both_is_agreement_and_by_one_is_none():
    assert compare(NOTHING, NOTHING).share == 1
    assert compare(_found([A]), NOTHING).share == compare(NOTHING, _found([A])).share == 0
    x = summary([compare(NOTHING, NOTHING)])
    assert x.share == 1 and x.both == x.slipped == 0 and np.isnan([x.median_iou, x.mean_score_gap]).all()


def test_summary_weighs_boxes_not_images():
    images = [compare(_found([A, B]), _found([A, B])), compare(_found([A]), _found([LOWER])),
              compare(_found([A]), NOTHING)]
    x = summary(images)
    assert (x.both, x.only_a, x.only_b) == (3, 1, 0)
    assert x.share == pytest.approx(2.75 / 4) and x.median_iou == 1 and x.lowest_iou == pytest.approx(0.75)
    with pytest.raises(ValueError, match="images: got none"):
        summary([])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="conf_thr: got nan"):
        compare(_found([A]), _found([A]), conf_thr=np.nan)
    for bad in (_found([A], [np.nan]), _found([[0, 0, np.inf, 1]])):
        with pytest.raises(ValueError, match="b: got NaN or infinity"):
            compare(NOTHING, bad)
    for thr in (0, -1, 1.1):
        with pytest.raises(ValueError, match="iou_thr: got"):
            compare(NOTHING, NOTHING, iou_thr=thr)


class _OneBox:
    """A runner that sees one object in the middle of the coarsest head; `shift` moves its logit of objectness."""

    label, inputs = "test", {"images": TensorSpec((1, 3, 96, 96), np.dtype(np.float32))}

    def __init__(self, objectness: float):
        self._objectness = objectness

    def infer(self, feed):
        heads = [np.full((1, 3 * 6, n, n), -20, np.float32) for n in (3, 6, 12)]
        heads[0][0, :6, 1, 1] = [0, 0, 0, 0, self._objectness, 20]
        return dict(enumerate(heads))


def test_runners_are_compared_on_images_without_truth():
    images = [np.zeros((96, 96, 3), np.uint8)] * 2
    same = of_runners(_OneBox(3), _OneBox(3), images)
    assert [x.share for x in same] == [1, 1] and summary(same).both == 2
    fainter = summary(of_runners(_OneBox(3), _OneBox(-2), images))          # a score of 0.12
    assert fainter.only_a == fainter.slipped == 2
    gone = summary(of_runners(_OneBox(3), _OneBox(-20), images))
    assert gone.only_a == 2 and gone.slipped == 0
