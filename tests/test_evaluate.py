import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.evaluate import Truth, mean_average_precision
from trtkit.yolo import Detection, iou

NAMES = ["car", "person"]


def _truth(boxes, labels=None, ignore=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels, int)
    return Truth(boxes, labels, np.zeros(len(boxes), bool) if ignore is None else np.array(ignore, bool))


def _found(boxes, scores=None, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.5, len(boxes)) if scores is None else np.array(scores)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels, int)
    return Detection(boxes, scores.astype(np.float32), labels)


A, B, C = [0, 0, 20, 20], [40, 0, 80, 30], [0, 50, 30, 90]
NOTHING = _found([])


def test_perfect_detections_score_one():
    accuracy = mean_average_precision([_found([A, B], labels=[0, 1])], [_truth([A, B], [0, 1])], NAMES)
    assert (accuracy.map50, accuracy.map50_95) == pytest.approx((1, 1))
    assert accuracy.per_class == pytest.approx({"car": 1, "person": 1})


def test_no_detections_score_zero_for_every_class_that_has_objects():
    accuracy = mean_average_precision([NOTHING], [_truth([A, B], [0, 1], [False, True])], NAMES)
    assert (accuracy.map50, accuracy.map50_95, accuracy.per_class) == (0, 0, {"car": 0})
    # the same answer as with one detection that hits nothing
    wrong = mean_average_precision([_found([C])], [_truth([A])], NAMES)
    assert (wrong.map50, wrong.map50_95, wrong.per_class) == (0, 0, {"car": 0})


def test_half_found_scores_51_of_101_recall_points():
    accuracy = mean_average_precision([_found([A])], [_truth([A, B])], NAMES)
    assert accuracy.map50 == pytest.approx(51 / 101)        # recalls 0, 0.01 ... 0.50 at precision 1


def test_a_false_alarm_above_halves_the_precision_and_one_below_costs_nothing():
    above = mean_average_precision([_found([C, A], [0.9, 0.8])], [_truth([A])], NAMES)
    below = mean_average_precision([_found([A, C], [0.9, 0.8])], [_truth([A])], NAMES)
    assert above.map50 == pytest.approx(0.5) and below.map50 == pytest.approx(1)


def test_a_second_detection_of_one_object_is_a_false_alarm():
    accuracy = mean_average_precision([_found([A, A, B], [0.9, 0.8, 0.7])], [_truth([A, B])], NAMES)
    assert accuracy.map50 == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_map50_95_counts_the_thresholds_that_the_overlap_reaches():
    shifted = [0, 0, 20, 15]                                # IoU 0.75 with A: right at 0.50, 0.55 ... 0.75
    accuracy = mean_average_precision([_found([shifted])], [_truth([A])], NAMES)
    assert accuracy.map50 == pytest.approx(1) and accuracy.map50_95 == pytest.approx(0.6)


def test_the_class_must_match_and_a_class_without_objects_does_not_count():
    accuracy = mean_average_precision([_found([A], labels=[1])], [_truth([A], [0])], NAMES)
    assert (accuracy.map50, accuracy.per_class) == (0, {"car": 0})
    accuracy = mean_average_precision([_found([A, C], labels=[0, 1])], [_truth([A], [0])], NAMES)
    assert accuracy.map50 == pytest.approx(1)


def test_a_detection_counts_only_in_its_own_image():
    accuracy = mean_average_precision([NOTHING, _found([A])], [_truth([A]), _truth([])], NAMES)
    assert accuracy.map50 == 0


def test_ignored_objects_count_neither_way():
    truth = _truth([A, B], ignore=[False, True])
    found_both = mean_average_precision([_found([B, A], [0.9, 0.8])], [truth], NAMES)
    found_one = mean_average_precision([_found([A])], [truth], NAMES)
    assert found_both.map50 == found_one.map50 == pytest.approx(1)
    missed = mean_average_precision([_found([B])], [truth], NAMES)
    assert missed.map50 == 0                                # finding an ignored object does not help either


def test_lengths_that_differ_and_truths_without_objects_are_refused():
    with pytest.raises(ValueError, match="got 1 images, expected 2"):
        mean_average_precision([NOTHING], [_truth([A])] * 2, NAMES)
    for truths in ([_truth([])], [_truth([A], ignore=[True])]):
        with pytest.raises(ValueError, match="no object that counts"):
            mean_average_precision([_found([A])], truths, NAMES)
    with pytest.raises(ValueError, match="no object that counts"):
        mean_average_precision([], [], NAMES)


@pytest.mark.parametrize("label", [2, -1])
def test_labels_without_a_name_are_refused(label):
    for found, truth in ((_found([A], labels=[label]), _truth([A])), (_found([A]), _truth([A, B], [0, label]))):
        with pytest.raises(ValueError, match=f"label {label}"):
            mean_average_precision([found], [truth], NAMES)


def _average_precision(detections, truths, label: int, threshold: float) -> float:
    """AP of one class, written from COCO's text: greedy by score, each object claimed once, 101 recall points."""
    rows = sorted(
        ((float(s), i, box) for i, d in enumerate(detections)
         for box, s, k in zip(d.boxes_xyxy, d.scores, d.labels, strict=True) if k == label),
        key=lambda row: -row[0],
    )  # fmt: skip
    objects = [t.boxes_xyxy[t.labels == label].astype(np.float64) for t in truths]
    free, hits = [[True] * len(o) for o in objects], []
    for _, i, box in rows:
        overlaps = iou(box[None].astype(np.float64), objects[i])[0] if len(objects[i]) else []
        best = max((j for j in range(len(overlaps)) if free[i][j] and overlaps[j] >= threshold),
                   key=lambda j, o=overlaps: o[j], default=None)
        hits.append(best is not None)
        if best is not None:
            free[i][best] = False
    total = sum(map(len, objects))
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    recall = right / total
    return float(np.mean([max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)]))


@st.composite
def _scenes(draw):
    """Objects on a loose grid, detections near some of them; distinct scores, since ties have no defined order."""
    images = draw(st.integers(1, 3))
    truths, boxes, labels, owner = [], [], [], []
    for i in range(images):
        n = draw(st.integers(1 if i == 0 else 0, 4))
        objects = [[60 * j, 0, 60 * j + draw(st.integers(20, 50)), draw(st.integers(20, 50))] for j in range(n)]
        kinds = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
        truths.append(_truth(objects, kinds))
        for box, kind in zip(objects, kinds, strict=True):
            for _ in range(draw(st.integers(0, 2))):
                boxes.append([box[0] + draw(st.integers(-6, 6)), 0, box[2], box[3] + draw(st.integers(-6, 6))])
                labels.append(kind if draw(st.booleans()) else 1 - kind)
                owner.append(i)
    scores = np.array(draw(st.permutations(range(1, len(boxes) + 1)))) / (len(boxes) + 1)
    owner = np.array(owner, int)
    detections = []
    for i in range(images):
        mine = np.flatnonzero(owner == i)
        mine = mine[np.argsort(-scores[mine])]
        detections.append(_found([boxes[m] for m in mine], scores[mine], [labels[m] for m in mine]))
    return detections, truths


@settings(max_examples=40)
@given(_scenes())
def test_map_equals_an_independent_average_precision(scenes):
    detections, truths = scenes
    accuracy = mean_average_precision(detections, truths, NAMES)
    present = sorted({int(k) for t in truths for k in t.labels})
    ap = np.array([[_average_precision(detections, truths, k, 0.5 + 0.05 * i) for i in range(10)] for k in present])
    assert accuracy.map50 == pytest.approx(ap[:, 0].mean(), abs=1e-6)
    assert accuracy.map50_95 == pytest.approx(ap.mean(), abs=1e-6)
    expected = {NAMES[k]: ap[i].mean() for i, k in enumerate(present)}
    assert accuracy.per_class == pytest.approx(expected, abs=1e-6)


def test_map_equals_torchmetrics(rng):
    import torch
    from torchmetrics import detection

    detections, truths = [], []
    for _ in range(5):
        corner = rng.uniform(0, 300, (6, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 80, (6, 2))], 1)
        labels = rng.integers(0, 2, 6)
        truths.append(_truth(boxes, labels))
        moved = boxes + rng.normal(size=boxes.shape) * 4
        guessed = np.where(rng.random(6) < 0.8, labels, 1 - labels)
        detections.append(_found(moved, rng.permutation(6) / 7 + 0.1, guessed))
    metric = detection.MeanAveragePrecision(class_metrics=True)
    metric.update(
        [{"boxes": torch.tensor(d.boxes_xyxy), "scores": torch.tensor(d.scores), "labels": torch.tensor(d.labels)}
         for d in detections],
        [{"boxes": torch.tensor(t.boxes_xyxy), "labels": torch.tensor(t.labels)} for t in truths],
    )  # fmt: skip
    theirs, ours = metric.compute(), mean_average_precision(detections, truths, NAMES)
    assert ours.map50 == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert ours.map50_95 == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert list(ours.per_class.values()) == pytest.approx(theirs["map_per_class"].tolist(), abs=1e-6)


def test_nothing_is_printed(capsys):
    mean_average_precision([_found([A])], [_truth([A])], NAMES)
    assert capsys.readouterr().out == ""
