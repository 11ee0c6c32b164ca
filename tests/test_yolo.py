import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit import yolo
from trtkit.engine import TensorSpec


def _heads(rng, classes=3, size=96, scale=2.0):
    return [(rng.normal(size=(1, 3 * (5 + classes), size // s, size // s)) * scale).astype(np.float32)
            for s in yolo.STRIDES]


def _decode_slowly(heads, conf_thr, all_anchors=yolo.ANCHORS, strides=yolo.STRIDES):
    """The docstring's formula, cell by cell, in Python's doubles."""
    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    found = []
    for head, s, anchors in zip(heads, strides, all_anchors, strict=True):
        per_anchor = head.shape[1] // len(anchors)
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


@pytest.mark.parametrize(("height", "width"), [(64, 160), (96, 32), (128, 128)])
@pytest.mark.parametrize("strides", [(32, 16, 8), (32, 16), (8,), (16, 4)])
def test_decode_takes_any_stride_and_any_rectangle(rng, height, width, strides):
    anchors = rng.uniform(5, 200, (len(strides), 2, 2)).astype(np.float32)
    heads = [rng.normal(size=(1, 2 * 7, height // s, width // s)).astype(np.float32) * 2 for s in strides]
    got = yolo.decode(heads, conf_thr=0.2, anchors=anchors, strides=strides)
    expected = _decode_slowly(heads, 0.2, anchors, strides)
    np.testing.assert_allclose(np.column_stack(got), expected, rtol=2e-5, atol=2e-3)    # in the documented order
    assert len(expected)


def test_infinite_logits_are_no_harm_and_half_floats_are_widened():
    heads = [np.full((1, 18, 96 // s, 96 // s), -np.inf, np.float32) for s in yolo.STRIDES]
    heads[0][0, :6, 1, 1] = [0, 0, np.inf, -np.inf, np.inf, np.inf]
    boxes, scores, labels = yolo.decode(heads)
    assert np.isfinite(boxes).all() and scores.tolist() == [1] and labels.tolist() == [0]
    half = yolo.decode([h.astype(np.float16) for h in heads])
    assert half[0].dtype == half[1].dtype == np.float32 and np.array_equal(half[0], boxes)


@pytest.mark.parametrize("channel", [0, 3, 4, 5])
def test_a_nan_is_named_by_head_anchor_and_cell(rng, channel):
    heads = _heads(rng)
    heads[1][0, 8 + 4, 3, 2] = 9                                    # a cell that passes the threshold
    heads[1][0, 8 + channel, 3, 2] = np.nan
    with pytest.raises(ValueError, match=r"heads\[1\].*NaN at anchor 1, cell \(2, 3\).*FP16"):
        yolo.decode(heads)


def test_decoded_outputs_give_the_candidates_that_pass_in_order():
    boxes = np.arange(24, dtype=np.float32).reshape(1, 6, 4)
    scores = np.zeros((1, 6, 3), np.float32)
    scores[0, [4, 1, 1], [2, 0, 1]] = 0.9, 0.25, 0.3
    got = yolo.decode_boxes(boxes, scores)
    assert got[0].tolist() == boxes[0, [1, 1, 4]].tolist() and got[2].tolist() == [0, 1, 2]
    np.testing.assert_allclose(got[1], [0.25, 0.3, 0.9], rtol=1e-6)
    scores[0, 5, 2] = np.nan
    with pytest.raises(ValueError, match="NaN at box 5"):
        yolo.decode_boxes(boxes, scores)
    for wrong in (boxes[:, :5], boxes[0], np.concatenate([boxes, boxes])):
        with pytest.raises(ValueError, match="boxes_xyxy, scores"):
            yolo.decode_boxes(wrong, np.zeros((1, 6, 3), np.float32))
    with pytest.raises(ValueError, match="conf_thr"):
        yolo.decode_boxes(boxes, scores, conf_thr=0)


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
        (lambda h: h[::-1], r"expected one input.*order of \(32, 16, 8\)"),
        (lambda h: [h[0], h[1][..., :5], h[2]], r"\(96, 80\).*multiples of 32"),
    ],
)
def test_decode_refuses_other_heads(rng, change, match):
    with pytest.raises(ValueError, match=match):
        yolo.decode(change(_heads(rng)))


@pytest.mark.parametrize("anchors", [yolo.ANCHORS[:2], yolo.ANCHORS[0], np.zeros((3, 3, 4))])
def test_decode_refuses_anchors_of_other_heads(rng, anchors):
    with pytest.raises(ValueError, match=r"anchors: got shape.*\(3, A, 2\)"):
        yolo.decode(_heads(rng), anchors=anchors)


@pytest.mark.parametrize("conf_thr", [0, 1, -0.1, 1.5, float("nan")])
def test_decode_refuses_a_threshold_that_is_no_probability(rng, conf_thr):
    with pytest.raises(ValueError, match="conf_thr"):
        yolo.decode(_heads(rng), conf_thr=conf_thr)


def _one_box(classes=3):
    """Heads that see one thing: class 2 in a box of 62x45 pixels around (200, 216) of the 416x416 input."""
    heads = [np.full((1, 3 * (5 + classes), 416 // s, 416 // s), -20.0, np.float32) for s in yolo.STRIDES]
    first = 5 + classes                                         # channels of the second anchor, (62, 45)
    heads[1][0, first : first + 4, 13, 12] = 0                  # centre (12.5, 13.5) * 16
    heads[1][0, [first + 4, first + 5 + 2], 13, 12] = 15
    return heads


IN_NET = np.array([[200 - 31, 216 - 22.5, 200 + 31, 216 + 22.5]])


@given(st.integers(64, 900), st.integers(64, 900))
def test_postprocess_maps_a_box_back_to_the_pixels_of_the_image(width, height):
    _, place = yolo.letterbox_u8(np.zeros((height, width, 3), np.uint8), 416)
    got = yolo.postprocess(_one_box(), place)
    assert got.labels.tolist() == [2] and got.scores[0] > 0.99
    expected = np.clip(place.to_image(IN_NET), 0, [width, height, width, height])
    np.testing.assert_allclose(got.boxes_xyxy, expected, atol=1e-2)


def test_a_box_in_the_padding_is_no_detection():
    _, place = yolo.letterbox_u8(np.zeros((40, 400, 3), np.uint8), 416)         # image in rows 187 to 229
    heads = _one_box()
    assert len(yolo.postprocess(heads, place).scores) == 1
    heads[1] = np.roll(heads[1], 8, axis=2)                                     # 128 pixels further down
    got = yolo.postprocess(heads, place)
    assert got.boxes_xyxy.shape == (0, 4) and got.scores.shape == got.labels.shape == (0,)


def test_no_detections_are_empty_arrays_with_their_shapes_and_types():
    heads = [np.full((1, 24, 96 // s, 96 // s), -20.0, np.float32) for s in yolo.STRIDES]
    _, place = yolo.letterbox_u8(np.zeros((40, 40, 3), np.uint8), 96)
    got = yolo.postprocess(heads, place)
    assert (got.boxes_xyxy.shape, got.boxes_xyxy.dtype) == ((0, 4), np.float32)
    assert got.scores.shape == got.labels.shape == (0,)
    assert got.scores.dtype == np.float32 and got.labels.dtype == np.int64


def test_class_agnostic_keeps_one_box_where_two_classes_share_it():
    heads = _one_box()
    heads[1][0, 8 + 5 + 0, 13, 12] = 7                                          # class 0 as well, less sure
    _, place = yolo.letterbox_u8(np.zeros((416, 416, 3), np.uint8), 416)
    assert yolo.postprocess(heads, place).labels.tolist() == [2, 0]
    assert yolo.postprocess(heads, place, class_aware=False).labels.tolist() == [2]


@pytest.mark.parametrize("option", [{"iou_thr": 1.5}, {"iou_thr": -1}, {"conf_thr": 0}, {"conf_thr": 2}])
def test_postprocess_refuses_thresholds_out_of_range(option):
    _, place = yolo.letterbox_u8(np.zeros((416, 416, 3), np.uint8), 416)
    with pytest.raises(ValueError, match=next(iter(option))):
        yolo.postprocess(_one_box(), place, **option)


class Recorder:
    """A runner that returns what it was made with, and remembers what it was fed."""

    label = "recorder"

    def __init__(self, outputs, shape=("batch", 3, 96, 96), dtype=np.float32):
        self.inputs, self.answers, self.fed = {"images": TensorSpec(shape, np.dtype(dtype))}, outputs, []

    def infer(self, feed):
        self.fed.append(feed["images"])
        return self.answers


def test_detect_takes_the_size_from_the_runner_and_feeds_the_letterboxed_image(rng):
    heads = _heads(np.random.default_rng(1))
    runner, img = Recorder(dict(zip("abc", heads, strict=True))), rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    got = yolo.detect(runner, img)
    x, place = yolo.letterbox(img, 96)
    np.testing.assert_array_equal(runner.fed[0], x)
    expected = yolo.postprocess(heads, place)
    np.testing.assert_array_equal(got.boxes_xyxy, expected.boxes_xyxy)
    assert (np.diff(got.scores) <= 0).all() and got.boxes_xyxy[:, 2].max() <= 120


def test_detect_feeds_a_rectangle_and_half_floats_where_the_runner_wants_them(rng):
    heads = {f"{s}": rng.normal(size=(1, 24, 64 // s, 160 // s)).astype(np.float16) for s in yolo.STRIDES}
    runner = Recorder(heads, (1, 3, 64, 160), np.float16)
    got = yolo.detect(runner, rng.integers(0, 256, (50, 90, 3), dtype=np.uint8), conf_thr=0.3)
    assert runner.fed[0].shape == (1, 3, 64, 160) and runner.fed[0].dtype == np.float16
    assert len(got.scores) and got.boxes_xyxy.dtype == got.scores.dtype == np.float32


def test_a_batch_is_its_images_one_by_one_in_one_call(rng):
    imgs = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((80, 120), (1, 300), (96, 96))]
    single = [_heads(np.random.default_rng(i)) for i in range(3)]
    runner = Recorder(dict(zip("abc", (np.concatenate(h) for h in zip(*single, strict=True)), strict=True)))
    found = yolo.detect_batch(runner, imgs)
    assert len(runner.fed) == 1 and runner.fed[0].shape == (3, 3, 96, 96) and len(found) == 3
    for img, heads, got in zip(imgs, single, found, strict=True):
        alone = yolo.detect(Recorder(dict(zip("abc", heads, strict=True))), img)
        assert np.array_equal(got.boxes_xyxy, alone.boxes_xyxy) and np.array_equal(got.scores, alone.scores)
    assert yolo.detect_batch(runner, []) == [] and len(runner.fed) == 1
