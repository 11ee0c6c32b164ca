import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from trtkit import yolo

SIDES = st.integers(1, 900)


@given(SIDES, SIDES, st.sampled_from([32, 160, 416]))
def test_letterbox_keeps_the_aspect_and_pads_grey(width, height, size):
    square, place = yolo.letterbox_u8(np.full((height, width, 3), 255, np.uint8), size)
    assert square.shape == (size, size, 3)
    white = (square == 255).all(2)
    assert (square[~white] == 128).all()                            # nothing but image and grey
    ys, xs = np.nonzero(white)
    w, h = np.ptp(xs) + 1, np.ptp(ys) + 1
    assert white.sum() == w * h                                     # one solid rectangle
    assert max(w, h) == size                                        # that touches two sides
    assert abs(w - max(1, width * place.scale)) <= 0.5 and abs(h - max(1, height * place.scale)) <= 0.5
    left, right, top, bottom = xs.min(), size - 1 - xs.max(), ys.min(), size - 1 - ys.max()
    assert abs(left - right) <= 1 and abs(top - bottom) <= 1        # centred
    assert (left, top) == (place.pad_x, place.pad_y)


@given(st.integers(40, 900), st.integers(40, 900), st.randoms(use_true_random=False))
def test_a_rectangle_lands_where_the_placement_says(width, height, random):
    if max(width, height) > 8 * min(width, height):
        width = height
    x0, y0 = random.randrange(0, width // 2), random.randrange(0, height // 2)
    x1, y1 = random.randrange(x0 + width // 3, width), random.randrange(y0 + height // 3, height)
    img = np.zeros((height, width, 3), np.uint8)
    img[y0:y1, x0:x1] = 255
    square, place = yolo.letterbox_u8(img, 416)
    inside = square[..., 0].astype(int)
    inside[:, : place.pad_x] = inside[: place.pad_y] = 0
    ys, xs = np.nonzero(inside > 128)
    expected = np.array([x0, y0, x1, y1]) * place.scale + np.array([place.pad_x, place.pad_y] * 2)
    # Upscaling smears an edge over half an image pixel, and grey stays 128: compare within one and a half steps.
    found = np.array([xs.min(), ys.min(), min(xs.max() + 1, 416 - place.pad_x), min(ys.max() + 1, 416 - place.pad_y)])
    assert np.abs(found - expected).max() <= 1


def test_network_input_is_the_square_in_0_to_1_planes_first(rng):
    img = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (square, place), (x, place_x) = yolo.letterbox_u8(img, 96), yolo.letterbox(img, 96)
    assert x.shape == (1, 3, 96, 96) and x.dtype == np.float32 and place == place_x
    np.testing.assert_allclose(x[0], square.transpose(2, 0, 1) / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("img", "size", "match"),
    [
        (np.zeros((4, 4), np.uint8), 416, r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), 416, r"\(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), 416, "float32"),
        (np.zeros((0, 4, 3), np.uint8), 416, r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), 400, "400"),
        (np.zeros((4, 4, 3), np.uint8), 0, "multiple of 32"),
        (np.zeros((4, 4, 3), np.uint8), -32, "multiple of 32"),
    ],
)
def test_letterbox_refuses_what_is_no_rgb_image(img, size, match):
    with pytest.raises(ValueError, match=match):
        yolo.letterbox_u8(img, size)


def _heads(rng, classes=3, size=96, scale=2.0):
    return [(rng.normal(size=(1, 3 * (5 + classes), size // s, size // s)) * scale).astype(np.float32)
            for s in yolo.STRIDES]


def _decode_slowly(heads, conf_thr):
    """The docstring's formula, cell by cell, in Python's doubles."""
    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    found = []
    for head, s, anchors in zip(heads, yolo.STRIDES, yolo.ANCHORS, strict=True):
        per_anchor = head.shape[1] // 3
        for a, (pw, ph) in enumerate(anchors):
            for cy in range(head.shape[2]):
                for cx in range(head.shape[3]):
                    t = head[0, a * per_anchor : (a + 1) * per_anchor, cy, cx].tolist()
                    tx, ty, tw, th, to, *t_class = t
                    for k, t in enumerate(t_class):
                        score = sigmoid(to) * sigmoid(t)
                        if score >= conf_thr:
                            bx, by = (sigmoid(tx) + cx) * s, (sigmoid(ty) + cy) * s
                            bw, bh = pw * math.exp(tw), ph * math.exp(th)
                            found.append((bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2, score, k))
    return np.array(found).reshape(-1, 6)


@pytest.mark.parametrize("conf_thr", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("classes", [1, 3])
def test_decode_equals_the_formula_cell_by_cell(rng, conf_thr, classes):
    heads = _heads(rng, classes)
    boxes, scores, labels = yolo.decode(heads, conf_thr=conf_thr)
    expected = _decode_slowly(heads, conf_thr)
    assert len(boxes) == len(expected) > 0
    got = np.column_stack([boxes, scores, labels])
    # The same set; both are sorted by score, which has no ties here.
    np.testing.assert_allclose(got[np.argsort(scores)], expected[np.argsort(expected[:, 4])], rtol=2e-5, atol=2e-4)
    assert boxes.dtype == scores.dtype == np.float32 and labels.dtype == np.int64


def test_every_one_of_the_10647_boxes_can_be_found():
    heads = [np.full((1, 18, 416 // s, 416 // s), 9.0, np.float32) for s in yolo.STRIDES]
    for head in heads:
        head.reshape(3, 6, -1)[:, 0:4] = 0
    boxes, _, _ = yolo.decode(heads, conf_thr=0.99)
    assert len(boxes) == 10_647
    assert len(np.unique(boxes, axis=0)) == 10_647
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centres.min() == 4 and centres.max() == 412              # half a stride of 8 from the sides
    sides = np.unique((boxes[:, 2:] - boxes[:, :2]).round(), axis=0)
    assert sides.tolist() == sorted(yolo.ANCHORS.reshape(9, 2).tolist())


def test_decode_of_silence_is_empty():
    heads = [np.full((1, 24, 96 // s, 96 // s), -20.0, np.float32) for s in yolo.STRIDES]
    boxes, scores, labels = yolo.decode(heads)
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


def test_a_huge_width_stays_finite():
    heads = [np.full((1, 18, 3, 3), 500.0, np.float32)] + [np.full((1, 18, n, n), -9.0, np.float32) for n in (6, 12)]
    boxes, scores, _ = yolo.decode(heads)
    assert len(boxes) and np.isfinite(boxes).all() and (scores <= 1).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h[:2], "2 arrays"),
        (lambda h: [h[0][0], *h[1:]], r"heads\[0\]"),
        (lambda h: [*h[:2], np.concatenate([h[2]] * 2)], r"heads\[2\].*one image at a time"),
        (lambda h: [h[0], h[1][:, :-1], h[2]], r"heads\[1\]"),
        (lambda h: [h[0][:, :15], h[1], h[2]], r"heads\[0\]"),
    ],
)
def test_decode_refuses_other_heads(rng, change, match):
    with pytest.raises(ValueError, match=match):
        yolo.decode(change(_heads(rng)))


@pytest.mark.parametrize("conf_thr", [0, 1, -0.1, 1.5, float("nan")])
def test_decode_refuses_a_threshold_that_is_no_probability(rng, conf_thr):
    with pytest.raises(ValueError, match="conf_thr"):
        yolo.decode(_heads(rng), conf_thr=conf_thr)


# Integer corners: overlaps are exact, so both sides round the same quotient.
BOXES = st.lists(
    st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2), min_size=1, max_size=30
).map(lambda b: np.array([(x, y, x + w, y + h) for x, y, w, h in b], np.float32))


@given(BOXES, BOXES)
def test_iou_equals_torchvision(a, b):
    expected = torchvision.ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(yolo.iou(a, b), expected, rtol=1e-6)


@given(BOXES)
def test_iou_is_symmetric_one_with_itself_and_at_most_one(a):
    got = yolo.iou(a, a)
    np.testing.assert_array_equal(got, got.T)
    assert (np.diag(got) == 1).all() and got.min() >= 0 and got.max() <= 1


def test_iou_of_empty_boxes_is_zero_and_warns_nothing():
    empty = np.array([[5, 5, 5, 5], [9, 9, 3, 3]], np.float32)
    with np.errstate(all="raise"):
        assert yolo.iou(empty, empty).tolist() == [[0, 0], [0, 0]]
    assert yolo.iou(np.empty((0, 4), np.float32), empty).shape == (0, 2)


@given(BOXES, st.data(), st.sampled_from([0.0, 0.2317, 0.4503, 0.7121, 1.0]))
def test_nms_equals_torchvision_class_by_class(boxes, data, iou_thr):
    n = len(boxes)
    # Distinct scores: which of two equally good boxes goes first is not specified.
    scores = np.array(data.draw(st.permutations(range(1, n + 1))), np.float32) / (n + 1)
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    kept = yolo.nms(boxes, scores, labels, iou_thr=iou_thr)
    expected = torchvision.ops.batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), iou_thr).numpy()
    assert kept.tolist() == expected.tolist()


@given(BOXES, st.sampled_from([0.2317, 0.4503]))
def test_nms_leaves_no_two_close_boxes_even_with_equal_scores(boxes, iou_thr):
    labels = np.zeros(len(boxes), int)
    kept = yolo.nms(boxes, np.ones(len(boxes), np.float32), labels, iou_thr=iou_thr)
    overlap = yolo.iou(boxes[kept], boxes[kept]) - np.eye(len(kept))
    assert overlap.max() <= iou_thr
    gone = np.setdiff1d(np.arange(len(boxes)), kept)                # and each that went had a reason
    assert (yolo.iou(boxes[gone], boxes[kept]) > iou_thr).any(1).all()


def test_nms_keeps_the_best_and_at_most_max_boxes(rng):
    n = 2500
    corners = np.arange(n, dtype=np.float32)[:, None] * 10
    boxes = np.concatenate([corners, corners, corners + 5, corners + 5], 1)     # none overlaps
    scores = rng.permutation(n).astype(np.float32)
    best = np.argsort(-scores)
    assert yolo.nms(boxes, scores, np.zeros(n, int), max_boxes=7).tolist() == best[:7].tolist()
    assert yolo.nms(boxes, scores, np.zeros(n, int), max_boxes=n).tolist() == best[: yolo.MAX_CANDIDATES].tolist()


def test_nms_of_nothing_is_nothing():
    kept = yolo.nms(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, int))
    assert kept.shape == (0,) and kept.dtype == np.int64


@given(st.integers(64, 900), st.integers(64, 900))
def test_postprocess_maps_a_box_back_to_the_pixels_of_the_image(width, height):
    _, place = yolo.letterbox_u8(np.zeros((height, width, 3), np.uint8), 416)
    heads = [np.full((1, 24, 416 // s, 416 // s), -20.0, np.float32) for s in yolo.STRIDES]
    heads[1][0, 8 + 0 : 8 + 4, 13, 12] = 0                      # anchor (62, 45), centre (12.5, 13.5) * 16
    heads[1][0, [8 + 4, 8 + 5 + 2], 13, 12] = 15
    got = yolo.postprocess(heads, place)
    assert got.labels.tolist() == [2] and got.scores[0] > 0.99
    in_net = np.array([200 - 31, 216 - 22.5, 200 + 31, 216 + 22.5])
    back = (in_net - np.array([place.pad_x, place.pad_y] * 2)) / place.scale
    expected = np.clip(back, 0, [width, height, width, height])
    np.testing.assert_allclose(got.boxes_xyxy[0], expected, atol=1e-2)


def test_detect_takes_the_size_from_the_runner_and_feeds_the_letterboxed_image(rng):
    class Recorder:
        def __init__(self):
            self.inputs = {"images": type("Spec", (), {"shape": ("batch", 3, 96, 96)})()}

        def infer(self, feed):
            self.fed = feed["images"]
            return dict(zip("abc", _heads(np.random.default_rng(1)), strict=True))

    runner, img = Recorder(), rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    got = yolo.detect(runner, img)
    x, place = yolo.letterbox(img, 96)
    np.testing.assert_array_equal(runner.fed, x)
    expected = yolo.postprocess(_heads(np.random.default_rng(1)), place)
    np.testing.assert_array_equal(got.boxes_xyxy, expected.boxes_xyxy)
    assert (np.diff(got.scores) <= 0).all() and got.boxes_xyxy[:, 2].max() <= 120
