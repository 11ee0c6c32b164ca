import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trtkit.letterbox import letterbox, letterbox_u8

SIDES = st.one_of(st.integers(1, 900), st.just(1), st.sampled_from([2, 3, 31, 33, 415, 417, 2500]))
SIZES = st.sampled_from([32, 160, 416, (416, 416), (256, 416), (320, 32)])


@given(SIDES, SIDES, SIZES)
@example(1, 900, 416)
@example(2500, 1, 416)
def test_letterbox_keeps_the_aspect_and_pads_grey(width, height, size):
    padded, place = letterbox_u8(np.full((height, width, 3), 255, np.uint8), size)
    input_h, input_w = size if isinstance(size, tuple) else (size, size)
    assert padded.shape == (input_h, input_w, 3)
    white = (padded == 255).all(2)
    assert (padded[~white] == 128).all()                            # nothing but image and grey
    ys, xs = np.nonzero(white)
    w, h = np.ptp(xs) + 1, np.ptp(ys) + 1
    assert white.sum() == w * h                                     # one solid rectangle
    assert w == input_w or h == input_h                             # that touches two sides
    assert abs(w - max(1, width * place.scale)) <= 0.5 and abs(h - max(1, height * place.scale)) <= 0.5
    left, right, top, bottom = xs.min(), input_w - 1 - xs.max(), ys.min(), input_h - 1 - ys.max()
    assert abs(left - right) <= 1 and abs(top - bottom) <= 1        # centred
    assert (left, top, w, h) == (place.pad_x, place.pad_y, place.inner_width, place.inner_height)
    # The image's corners and the rectangle's are each other's, to the last bit.
    corners = np.array([[left, top, left + w, top + h]], np.float32)
    assert place.to_image(corners).tolist() == [[0, 0, width, height]]
    assert place.to_input(np.array([[0, 0, width, height]], np.float32)).tolist() == corners.tolist()


@given(SIDES, SIDES, SIZES, st.lists(st.tuples(*[st.floats(-1, 2)] * 4), max_size=5))
def test_boxes_come_back(width, height, size, corners):
    _, place = letterbox_u8(np.zeros((height, width, 3), np.uint8), size)
    boxes = np.array(corners).reshape(-1, 4) * np.array([width, height] * 2)     # also outside the image
    np.testing.assert_allclose(place.to_image(place.to_input(boxes)), boxes, rtol=1e-12, atol=1e-9)
    narrow = boxes.astype(np.float32)
    back = place.to_image(place.to_input(narrow))
    assert back.dtype == np.float32
    # Half a step of float32 in the network's rectangle, as seen in the image's pixels.
    step = 1e-7 * (np.abs(place.to_input(narrow)).max(initial=1)) * max(width / place.inner_width,
                                                                        height / place.inner_height)
    np.testing.assert_allclose(back, narrow, rtol=1e-6, atol=2 * step)
    clipped = place.clip(boxes)
    assert (clipped >= 0).all() and (clipped <= [width, height] * 2).all()


@given(st.integers(40, 900), st.integers(40, 900), SIZES, st.randoms(use_true_random=False))
def test_a_rectangle_lands_where_the_placement_says(width, height, size, random):
    if max(width, height) > 8 * min(width, height):
        width = height
    x0, y0 = random.randrange(0, width // 2), random.randrange(0, height // 2)
    x1, y1 = random.randrange(x0 + width // 3, width), random.randrange(y0 + height // 3, height)
    img = np.zeros((height, width, 3), np.uint8)
    img[y0:y1, x0:x1] = 255
    padded, place = letterbox_u8(img, size)
    inside = padded[..., 0].astype(int)
    far_x, far_y = place.pad_x + place.inner_width, place.pad_y + place.inner_height
    inside[:, : place.pad_x] = inside[: place.pad_y] = inside[:, far_x:] = inside[far_y:] = 0
    ys, xs = np.nonzero(inside > 128)
    (expected,) = place.to_input(np.array([[x0, y0, x1, y1]], float))
    # Resizing smears an edge over a pixel: compare within one.
    if min(expected[2] - expected[0], expected[3] - expected[1]) >= 2:
        assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - expected).max() <= 1


def test_one_factor_for_both_sides_would_miss_a_thin_picture():
    _, place = letterbox_u8(np.zeros((1, 900, 3), np.uint8), 416)
    box = np.array([[0, 0, 900, 1]], np.float32)
    (x0, y0, x1, y1), = place.to_input(box)
    assert (x1 - x0, y1 - y0) == (416, 1)                           # 0.46 rows were rounded to one
    assert place.to_image(place.to_input(box)).tolist() == box.tolist()


@pytest.mark.parametrize("size", [96, (96, 64)])
def test_network_input_is_the_rectangle_in_0_to_1_planes_first(rng, size):
    img = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (padded, place), (x, place_x) = letterbox_u8(img, size), letterbox(img, size)
    assert x.shape == (1, 3, *padded.shape[:2]) and x.dtype == np.float32 and place == place_x
    np.testing.assert_allclose(x[0], padded.transpose(2, 0, 1) / 255, atol=1e-7)


def test_an_image_that_fits_is_left_alone(rng):
    img = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    padded, place = letterbox_u8(img, (64, 96))
    assert np.array_equal(padded, img) and (place.scale, place.pad_x, place.pad_y) == (1, 0, 0)


@pytest.mark.parametrize(
    ("img", "size", "match"),
    [
        (np.zeros((4, 4), np.uint8), 416, r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), 416, r"\(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), 416, "float32"),
        (np.zeros((0, 4, 3), np.uint8), 416, r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), 400, "400"),
        (np.zeros((4, 4, 3), np.uint8), 417, "417.*multiple of 32"),
        (np.zeros((4, 4, 3), np.uint8), 0, "multiple of 32"),
        (np.zeros((4, 4, 3), np.uint8), -32, "multiple of 32"),
        (np.zeros((4, 4, 3), np.uint8), 416.0, "416.0"),
        (np.zeros((4, 4, 3), np.uint8), (416, 400), r"\(416, 400\)"),
        (np.zeros((4, 4, 3), np.uint8), (416,), r"\(416,\)"),
        (np.zeros((4, 4, 3), np.uint8), ("height", 416), "height"),
    ],
)
def test_letterbox_refuses_what_is_no_rgb_image_or_no_input(img, size, match):
    with pytest.raises(ValueError, match=match):
        letterbox_u8(img, size)


def test_placement_refuses_a_nan():
    _, place = letterbox_u8(np.zeros((40, 40, 3), np.uint8), 96)
    for there in (place.to_input, place.to_image):
        with pytest.raises(ValueError, match=r"boxes_xyxy\[0\].*nan"):
            there(np.array([[np.nan, 0, 1, 1]]))
