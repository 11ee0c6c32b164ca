import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.engine import TensorSpec
from trtkit.evaluate import IOU_THRS, RECALLS, SIZES, Truth, detect_all, mean_average_precision, sizes_of, truths_of
from trtkit.scenes import Scene
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


LARGE, MEDIUM, SMALL = [0, 0, 96, 96], [100, 0, 132, 32], [200, 0, 231, 32]


def test_sizes_are_by_area_and_the_limit_belongs_to_the_larger_one():
    boxes = np.array([LARGE, MEDIUM, SMALL, [0, 0, 95, 97], [0, 0, 0, 5]], np.float32)
    assert [SIZES[i] for i in sizes_of(boxes)] == ["large", "medium", "small", "medium", "small"]


def test_a_miss_costs_its_own_size_alone():
    larger = [0, 0, 97, 97]             # 96 * 96 exactly would be in both sizes: pycocotools' ranges share their limits
    truth = _truth([larger, [100, 0, 140, 40], SMALL])
    accuracy = mean_average_precision([_found([larger, SMALL])], [truth], NAMES)
    assert accuracy.per_size == pytest.approx({"small": 1, "medium": 0, "large": 1})
    assert accuracy.ap("car", size="medium") == 0 and accuracy.ap("car", size="small") == pytest.approx(1)
    assert np.isnan(accuracy.ap("person")) and np.isnan(accuracy.ap("person", size="small"))
    only_large = mean_average_precision([_found([larger])], [_truth([larger])], NAMES)
    assert list(only_large.per_size) == ["large"]


def test_curve_is_the_highest_precision_at_this_recall_or_beyond():
    accuracy = mean_average_precision([_found([A, C, B], [0.9, 0.8, 0.7])], [_truth([A, B])], NAMES)
    expected = np.where(np.linspace(0, 1, 101) <= 0.5, 1, 2 / 3)
    assert accuracy.curve("car") == pytest.approx(expected) and RECALLS.tolist() == pytest.approx(np.arange(101) / 100)
    assert accuracy.ap("car", iou_thr=0.5) == pytest.approx(expected.mean()) == accuracy.map50


@settings(max_examples=30)
@given(_scenes())
def test_ap_takes_the_figures_apart(scenes):
    accuracy = mean_average_precision(*scenes, NAMES)
    assert accuracy.ap() == pytest.approx(accuracy.map50_95)
    assert accuracy.ap(iou_thr=0.5) == pytest.approx(accuracy.map50)
    for name, ap in accuracy.per_class.items():
        assert accuracy.ap(name) == pytest.approx(ap)
        assert np.mean([accuracy.curve(name, iou_thr=t).mean() for t in IOU_THRS]) == pytest.approx(ap)
    for size, ap in accuracy.per_size.items():
        assert accuracy.ap(size=size) == pytest.approx(ap)


@settings(max_examples=30)
@given(_scenes())
def test_the_truth_as_detections_scores_one(scenes):
    _, truths = scenes
    told = [_found(t.boxes_xyxy, np.full(len(t.labels), 0.5), t.labels) for t in truths]
    accuracy = mean_average_precision(told, truths, NAMES)
    assert (accuracy.map50, accuracy.map50_95) == pytest.approx((1, 1))
    assert all(ap == pytest.approx(1) for ap in (*accuracy.per_class.values(), *accuracy.per_size.values()))


@settings(max_examples=30)
@given(_scenes(), st.randoms())
def test_the_order_of_images_does_not_matter(scenes, random):
    detections, truths = scenes
    order = list(range(len(truths)))
    random.shuffle(order)
    mixed = mean_average_precision([detections[i] for i in order], [truths[i] for i in order], NAMES)
    accuracy = mean_average_precision(detections, truths, NAMES)
    assert np.array_equal(mixed.precision, accuracy.precision, equal_nan=True) and mixed == accuracy


def test_sizes_equal_torchmetrics(rng):
    import torch
    from torchmetrics import detection

    corner = rng.uniform(0, 300, (40, 2))
    boxes = np.concatenate([corner, corner + 15 * 10 ** rng.uniform(0, 1, (40, 2))], 1).astype(np.float32)
    truth, found = _truth(boxes), _found(boxes + rng.normal(size=boxes.shape) * 2, rng.permutation(40) / 41)
    metric = detection.MeanAveragePrecision()
    metric.update([{"boxes": torch.tensor(found.boxes_xyxy), "scores": torch.tensor(found.scores),
                    "labels": torch.tensor(found.labels)}],
                  [{"boxes": torch.tensor(truth.boxes_xyxy), "labels": torch.tensor(truth.labels)}])   # fmt: skip
    theirs, ours = metric.compute(), mean_average_precision([found], [truth], NAMES)
    assert ours.per_size == pytest.approx({size: float(theirs[f"map_{size}"]) for size in SIZES}, abs=1e-6)


def test_a_box_out_of_the_image_is_taken_as_it_is():
    beyond = mean_average_precision([_found([[-20, 0, 20, 20]])], [_truth([A])], NAMES)          # IoU 0.5
    assert beyond.map50 == pytest.approx(1) and beyond.map50_95 == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (_found([A], [np.nan]), r"detections\[1\].scores: got NaN"),
        (_found([A], [np.inf]), r"detections\[1\].scores: got NaN or infinity"),
        (_found([[0, np.nan, 1, 1]]), r"detections\[1\].boxes_xyxy: got NaN"),
        (_found([[20, 0, 0, 20]]), r"detections\[1\].boxes_xyxy: got \[20.0, 0.0, 0.0, 20.0\], expected \(left, top"),
        (Detection(np.zeros((1, 4), np.float32), np.zeros(2, np.float32), np.zeros(1, int)), "got boxes of shape"),
        (Detection(np.zeros(4, np.float32), np.zeros(1, np.float32), np.zeros(1, int)), "got boxes of shape"),
    ],
)
def test_bad_detections_are_refused_and_their_image_is_named(found, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision([NOTHING, found], [_truth([A])] * 2, NAMES)


def test_bad_truths_are_refused():
    with pytest.raises(ValueError, match=r"truths\[0\].boxes_xyxy: got NaN"):
        mean_average_precision([NOTHING], [_truth([[0, 0, np.nan, 1]])], NAMES)


def test_what_is_not_there_is_refused_by_name():
    accuracy = mean_average_precision([_found([A])], [_truth([A])], NAMES)
    for options, message in (({"name": "bus"}, "class: got 'bus'"), ({"size": "huge"}, "size: got 'huge'"),
                             ({"iou_thr": 0.52}, "iou_thr: got 0.52")):
        with pytest.raises(ValueError, match=message):
            accuracy.ap(**options)
        with pytest.raises(ValueError, match=message):
            accuracy.curve(**{"name": "car", **options})


def test_scenes_are_detected_and_told_one_by_one():
    class Blind:
        label, inputs = "test", {"images": TensorSpec((1, 3, 96, 96), np.dtype(np.float32))}

        def infer(self, feed):
            return {n: np.full((1, 18, n, n), -20, np.float32) for n in (3, 6, 12)}

    picture = np.zeros((64, 64, 3), np.uint8)
    boxes = np.array([[0, 0, 20, 20], [0, 0, 4, 20], [0, 0, 20, 20]], np.float32)
    scene = Scene(picture, boxes, np.array([0, 1, 2]), np.array([1, 1, 0.1], np.float32), np.arange(3), "day")
    assert [len(d.scores) for d in detect_all(Blind(), [scene, scene])] == [0, 0]
    (truth,) = truths_of([scene])
    assert truth.ignore.tolist() == [False, True, True]         # too narrow, too hidden


def test_nothing_is_printed(capsys):
    mean_average_precision([_found([A])], [_truth([A])], NAMES)
    assert capsys.readouterr().out == ""
