from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate import NAMES, NOTHING, A, B, C, _found, _scenes, _truth

from trtkit.evaluate import SIZES
from trtkit.evaluate_errors import KINDS, confusion, judge, kinds, misses

SHIFTED = [0, 0, 20, 8]             # IoU 0.4 with A


def _one(found, truth, **options):
    (judged,) = judge([found], [truth], len(NAMES), **options)
    return judged


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        (_found([A]), _truth([A]), {"right": 1}),
        (_found([A], labels=[1]), _truth([A]), {"confused": 1, "missed": 1}),
        (_found([A, A]), _truth([A]), {"right": 1, "duplicate": 1}),
        (_found([A, A], labels=[0, 1]), _truth([A]), {"right": 1, "duplicate": 1}),
        (_found([SHIFTED]), _truth([A]), {"displaced": 1, "missed": 1}),
        (_found([A, SHIFTED]), _truth([A]), {"right": 1, "invented": 1}),
        (_found([SHIFTED], labels=[1]), _truth([A]), {"invented": 1, "missed": 1}),
        (_found([C]), _truth([A]), {"invented": 1, "missed": 1}),
        (_found([B]), _truth([A, B], ignore=[False, True]), {"ignored": 1, "missed": 1}),
        (_found([B, B, A]), _truth([A, B], ignore=[False, True]), {"ignored": 2, "right": 1}),
        (NOTHING, _truth([A, B]), {"missed": 2}),
        (_found([A]), _truth([]), {"invented": 1}),
        (NOTHING, _truth([]), {}),
    ],
)
def test_each_kind_on_a_case_made_by_hand(found, truth, expected):
    assert kinds([_one(found, truth)]) == dict.fromkeys([*KINDS, "missed"], 0) | expected


def test_a_surer_detection_of_another_class_takes_no_object_from_a_right_one():
    judged = _one(_found([A, A], [0.9, 0.6], [1, 0]), _truth([A]))
    assert judged.kinds.tolist() == ["duplicate", "right"]
    assert judged.found_by.tolist() == [1] and judged.objects.tolist() == [0, 0]


def test_the_best_score_has_first_choice_and_takes_the_best_overlap():
    near = [2, 0, 22, 20]           # IoU 0.82 with A
    judged = _one(_found([A, near], [0.5, 0.9]), _truth([A, near]))
    assert judged.objects.tolist() == [0, 1] and judged.kinds.tolist() == ["right", "right"]
    judged = _one(_found([A, A], [0.5, 0.9]), _truth([A]))
    assert judged.kinds.tolist() == ["duplicate", "right"]


def test_a_part_of_an_ignored_object_is_ignored_as_in_coco():
    # a quarter of the object, but all of the detection
    judged = _one(_found([[0, 0, 10, 10]]), _truth([A], ignore=[True]))
    assert judged.kinds.tolist() == ["ignored"] and not judged.missed.any()


def test_the_threshold_takes_detections_away_before_anything_is_counted():
    found = _found([A, B], [0.9, 0.2])
    assert kinds([_one(found, _truth([A, B]))])["missed"] == 1
    assert kinds([_one(found, _truth([A, B]), conf_thr=0.1)])["missed"] == 0


def test_confusion_matrix_by_hand():
    judged = judge([_found([A, B, C], labels=[0, 1, 1]), NOTHING],
                   [_truth([A, B], [0, 0]), _truth([C], [1])], 2)           # fmt: skip
    # a car as car, a car as person, a person missed, and a person where nothing is
    assert confusion(judged, 2).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_misses_by_class_and_size():
    large, medium, small = [0, 0, 96, 96], [0, 0, 32, 32], [0, 0, 31, 32]
    truths = [_truth([large, medium], [0, 1]), _truth([small], [1])]
    missed, total = misses(judge([_found([large]), NOTHING], truths, 2), 2)
    assert total.tolist() == [[0, 0, 1], [1, 1, 0]] and missed.tolist() == [[0, 0, 0], [1, 1, 0]]
    assert missed.shape == (2, len(SIZES))


def _some_ignored(truths, data):
    return [_truth(t.boxes_xyxy, t.labels, data.draw(st.lists(st.booleans(), min_size=len(t.labels),
                                                              max_size=len(t.labels)))) for t in truths]


@given(_scenes(), st.floats(0.05, 0.9), st.data())
def test_right_ones_and_misses_equal_pycocotools(scenes, conf_thr, data):
    detections, truths = scenes[0], _some_ignored(scenes[1], data)
    judged = judge(detections, truths, 2, conf_thr=conf_thr)
    for image, (right, ignored, missed) in zip(judged, _by_pycocotools(detections, truths, conf_thr), strict=True):
        counted = Counter(image.kinds.tolist())
        assert (counted["right"], counted["ignored"], int(image.missed.sum())) == (right, ignored, missed)


def _by_pycocotools(detections, truths, conf_thr):
    """Per image: right, ignored and missed at IoU 0.5, from COCOeval's own matches."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def side(rows):
        coco = COCO()
        coco.dataset = {"images": [{"id": i} for i in range(len(truths))], "categories": [{"id": 0}, {"id": 1}],
                        "annotations": [{"id": n + 1, "area": r["bbox"][2] * r["bbox"][3], **r}
                                        for n, r in enumerate(rows)]}
        coco.createIndex()
        return coco

    def row(i, box, label):
        x0, y0, x1, y1 = map(float, box)
        return {"image_id": i, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}

    gt = side([{**row(i, b, k), "iscrowd": int(g)} for i, t in enumerate(truths)
               for b, k, g in zip(t.boxes_xyxy, t.labels, t.ignore, strict=True)])
    dt = side([{**row(i, b, k), "iscrowd": 0, "score": float(s)} for i, d in enumerate(detections)
               for b, k, s in zip(d.boxes_xyxy, d.labels, d.scores, strict=True) if s >= np.float32(conf_thr)])
    evaluation = COCOeval(gt, dt, "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    for i in range(len(truths)):
        seen = [e for e in evaluation.evalImgs if e and e["image_id"] == i]
        matched = [(e["dtMatches"][0] > 0, e["dtIgnore"][0] > 0) for e in seen]
        yield (sum(int((m & ~g).sum()) for m, g in matched), sum(int(g.sum()) for _, g in matched),
               sum(int(((e["gtMatches"][0] == 0) & (e["gtIgnore"] == 0)).sum()) for e in seen))


@settings(max_examples=40)
@given(_scenes(), st.data())
def test_rows_are_objects_and_columns_are_detections(scenes, data):
    detections, truths = scenes[0], _some_ignored(scenes[1], data)
    judged = judge(detections, truths, 2, conf_thr=0.01)
    matrix, counts = confusion(judged, 2), kinds(judged)
    objects = Counter(int(k) for t in truths for k in t.labels[~t.ignore])
    counted = Counter(int(k) for j in judged for k in j.labels[j.kinds != "ignored"])
    assert matrix.sum(1)[:2].tolist() == [objects[0], objects[1]]
    assert matrix.sum(0)[:2].tolist() == [counted[0], counted[1]]
    assert np.trace(matrix[:2, :2]) == counts["right"] and matrix[:2].sum() - counts["right"] == counts["missed"]
    missed, total = misses(judged, 2)
    assert missed.sum() == counts["missed"] and total.sum(1).tolist() == matrix.sum(1)[:2].tolist()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="got 1 images, expected 2"):
        judge([NOTHING], [_truth([A])] * 2, 2)
    with pytest.raises(ValueError, match=r"detections\[0\].scores: got NaN"):
        judge([_found([A], [np.nan])], [_truth([A])], 2)
    with pytest.raises(ValueError, match="conf_thr: got nan"):
        judge([_found([A])], [_truth([A])], 2, conf_thr=np.nan)
    for thresholds in ({"iou_thr": 0.1}, {"iou_near": 0.0}, {"iou_thr": 1.5}, {"iou_near": 0.6}):
        with pytest.raises(ValueError, match="expected 0 < iou_near < iou_thr <= 1"):
            judge([NOTHING], [_truth([A])], 2, **thresholds)
