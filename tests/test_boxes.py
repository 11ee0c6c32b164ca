import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from trtkit import boxes
from trtkit.boxes import giou, iou

# Integer corners: overlaps are exact, so both sides round the same quotient.
BOXES = st.lists(
    st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2), min_size=1, max_size=30
).map(lambda b: np.array([(x, y, x + w, y + h) for x, y, w, h in b], np.float32))


@given(BOXES, BOXES)
def test_iou_and_giou_equal_torchvision(a, b):
    both = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(iou(a, b), torchvision.ops.box_iou(*both).numpy(), rtol=1e-6)
    np.testing.assert_allclose(giou(a, b), torchvision.ops.generalized_box_iou(*both).numpy(), rtol=1e-6, atol=1e-7)


@given(BOXES)
def test_iou_is_symmetric_one_with_itself_and_at_most_one(a):
    got = iou(a, a)
    np.testing.assert_array_equal(got, got.T)
    assert (np.diag(got) == 1).all() and got.min() >= 0 and got.max() <= 1


@given(BOXES, BOXES, st.floats(0.01, 100), st.integers(-500, 500))
def test_giou_is_bounded_by_iou_and_knows_no_unit_or_origin(a, b, scale, shift):
    got = giou(a, b)
    assert (got <= iou(a, b) + 1e-7).all() and got.min() >= -1
    np.testing.assert_allclose(giou(a.astype(float) * scale + shift, b.astype(float) * scale + shift), got, atol=1e-6)


def test_giou_tells_near_from_far_where_iou_is_zero():
    a = np.array([[0, 0, 10, 10]], np.float32)
    apart = np.array([[10 + d, 0, 20 + d, 10] for d in (0, 10, 90)], np.float32)
    assert iou(a, apart).tolist() == [[0, 0, 0]]
    np.testing.assert_allclose(giou(a, apart), [[0, -10 / 30, -90 / 110]], rtol=1e-6)      # -gap / length, by hand


def test_boxes_without_area_count_zero_and_warn_nothing():
    empty = np.array([[5, 5, 5, 5], [9, 9, 3, 3]], np.float32)
    with np.errstate(all="raise"):
        assert iou(empty, empty).tolist() == [[0, 0], [0, 0]]
        assert np.isfinite(giou(empty, empty)).all()
    assert iou(np.empty((0, 4), np.float32), empty).shape == giou(np.empty((0, 4), np.float32), empty).shape == (0, 2)
    assert boxes.area(empty).tolist() == [0, 0]


def test_whole_numbers_and_halves_are_taken_too():
    a = np.array([[0, 0, 10, 10]])
    assert iou(a, a + np.array([5, 0, 5, 0])).dtype == np.float64
    np.testing.assert_allclose(iou(a, a + np.array([5, 0, 5, 0])), [[1 / 3]])
    assert iou(a.astype(np.float16), a.astype(np.float16)).dtype == np.float32


@pytest.mark.parametrize("measure", [iou, giou])
@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (np.zeros(4), r"b_xyxy: got shape \(4,\).*\(N, 4\)"),
        (np.zeros((2, 5)), r"\(2, 5\)"),
        (np.zeros(0), r"np\.empty\(\(0, 4\)\)"),
        (np.array([[0, 0, 1, 1], [0, np.nan, 1, 1]]), r"b_xyxy\[1\].*nan"),
        (np.array([[0, 0, np.inf, 1]]), r"b_xyxy\[0\].*inf"),
    ],
)
def test_what_is_no_box_is_refused(measure, bad, match):
    with pytest.raises(ValueError, match=match):
        measure(np.zeros((1, 4)), bad)
