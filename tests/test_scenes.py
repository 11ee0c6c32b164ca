"""Scenes: the same pixels for a seed, boxes that fit what was drawn, tracks that hold, classes in balance."""

import hashlib
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit import scene_compose, scenes
from trtkit.scene_art import Place
from trtkit.scene_backdrop import paint_backdrop
from trtkit.scene_compose import compose
from trtkit.scene_place import BUS, CAR, Actor, place_objects, place_scenery
from trtkit.scene_street import layout
from trtkit.scene_vehicles import bus, car
from trtkit.yolo import iou


def digest(scene: scenes.Scene) -> str:
    arrays = (scene.img_hwc_u8, scene.boxes_xyxy, scene.labels, scene.visibility, scene.track_ids)
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def assert_valid(scene: scenes.Scene, width: int, height: int) -> None:
    n = len(scene.labels)
    assert scene.img_hwc_u8.shape == (height, width, 3) and scene.img_hwc_u8.dtype == np.uint8
    assert scene.boxes_xyxy.shape == (n, 4) and scene.boxes_xyxy.dtype == np.float32
    assert scene.labels.dtype == np.int64 and scene.track_ids.dtype == np.int64
    assert scene.visibility.shape == (n,) and scene.visibility.dtype == np.float32
    assert (scene.boxes_xyxy[:, :2] >= 0).all() and (scene.boxes_xyxy[:, 2:] <= (width, height)).all()
    assert (scene.boxes_xyxy[:, 2:] > scene.boxes_xyxy[:, :2]).all()
    assert ((scene.labels >= 0) & (scene.labels < len(scenes.CLASSES))).all()
    assert ((scene.visibility > 0) & (scene.visibility <= 1)).all()
    assert len(set(scene.track_ids.tolist())) == n
    assert scene.condition in scenes.CONDITIONS


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from([(640, 480), (64, 64), (333, 200), (200, 416)]))
def test_any_seed_and_size_gives_a_valid_scene(seed, size):
    assert_valid(scenes.render(seed, width=size[0], height=size[1]), *size)


def test_larger_than_the_cached_textures():
    assert_valid(scenes.render(1, width=1920, height=1280, condition="rain"), 1920, 1280)


def test_conditions_differ_in_light_and_contrast():
    light, contrast = {}, {}
    for condition in scenes.CONDITIONS:
        shots = [scenes.render(seed, condition=condition) for seed in range(4)]
        assert {s.condition for s in shots} == {condition}
        light[condition] = np.mean([s.img_hwc_u8.mean() for s in shots])
        contrast[condition] = np.mean([s.img_hwc_u8.std() for s in shots])
    assert min(light, key=light.get) == "night" and max(light, key=light.get) == "fog"
    assert light["dusk"] < light["day"] and contrast["fog"] < contrast["day"]


def test_same_seed_same_scene_also_in_another_process():
    script = (
        "import hashlib, cv2; from trtkit import scenes; cv2.setNumThreads(3); scenes.render(99)\n"
        "s = scenes.render(3); c = list(scenes.clip(4, 2))[1]\n"
        "print(hashlib.sha256(s.img_hwc_u8.tobytes()).hexdigest(), hashlib.sha256(c.img_hwc_u8.tobytes()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    images = [scenes.render(3).img_hwc_u8, list(scenes.clip(4, 2))[1].img_hwc_u8]
    assert printed == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert digest(scenes.render(3)) == digest(scenes.render(3)) != digest(scenes.render(4))


def test_global_random_state_is_neither_used_nor_touched():
    np.random.seed(1)
    before, first = np.random.get_state()[1].copy(), digest(scenes.render(5))
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert digest(scenes.render(5)) == first


@pytest.fixture(scope="module")
def many():
    return [scenes.render(seed) for seed in range(100)]


def test_every_class_and_condition_is_well_represented(many):
    labels = np.concatenate([s.labels for s in many])
    share = np.bincount(labels, minlength=6) / len(labels)
    assert share.min() >= 0.08, dict(zip(scenes.CLASSES, share.round(3), strict=True))
    assert {s.condition for s in many} == set(scenes.CONDITIONS)
    assert 5 < np.mean([len(s.labels) for s in many]) < 13


def test_sizes_and_occlusion_are_mixed_but_mostly_clear(many):
    heights = np.concatenate([s.boxes_xyxy[:, 3] - s.boxes_xyxy[:, 1] for s in many])
    visibility = np.concatenate([s.visibility for s in many])
    assert np.quantile(heights, 0.05) < 28 and heights.max() > 200
    assert 0.02 < (visibility < 0.5).mean() < 0.25
    assert (visibility > 0.9).mean() > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_visibility_fit_the_pixels_that_vanish_with_the_object(seed, monkeypatch):
    """Oracle: paint the scene again without one object, and look where the picture changes."""
    for effect in ("_shadows", "_bloom", "_reflect"):  # they reach beyond the object itself
        monkeypatch.setattr(scene_compose, effect, lambda *args: None)
    rng = np.random.default_rng(seed)
    street = layout(rng, "day", 640, 480)
    backdrop = paint_backdrop(street, rng)
    actors = place_objects(street, rng) + place_scenery(street, rng)
    full, (boxes, _, visibility, tracks) = compose(street, backdrop, actors)
    assert len(tracks) >= 3
    for box, seen, track in zip(boxes, visibility, tracks, strict=True):
        without, _ = compose(street, backdrop, [a for a in actors if a.track != track])
        ys, xs = np.nonzero(np.abs(full.astype(int) - without).max(2) > 8)
        assert len(xs) > 0
        changed = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (changed[:2] >= box[:2] - 2).all() and (changed[2:] <= box[2:] + 2).all()  # nothing outside the box
        if seen == 1:
            assert np.abs(changed - box).max() <= 3  # and the box is no larger than the object


def test_visibility_is_one_alone_and_small_behind_a_bus():
    rng = np.random.default_rng(0)
    street = layout(rng, "day", 640, 480)._replace(cross_z=0.0)
    street = street._replace(camera=street.camera._replace(cx=320.0))
    backdrop = np.full((480, 640, 3), 128, np.uint8)
    far = Actor(CAR, 0, car(0), Place(0.8, 0, 30, np.pi))
    near = Actor(BUS, 1, bus(0), Place(0.0, 0, 14, np.pi))
    aside = Actor(CAR, 2, car(1), Place(5.0, 0, 16, np.pi))
    _, (_, _, visibility, tracks) = compose(street, backdrop, [near, far, aside])
    assert dict(zip(tracks.tolist(), visibility.tolist(), strict=True)) == {2: 1.0, 1: 1.0}  # the far car is hidden
    partly = far._replace(place=far.place._replace(x=4.4))
    _, (_, _, visibility, tracks) = compose(street, backdrop, [partly, near])
    assert 0.05 < visibility[tracks.tolist().index(0)] < 0.95


def test_cut_off_by_the_border_counts_as_hidden():
    rng = np.random.default_rng(0)
    street = layout(rng, "day", 640, 480)._replace(cross_z=0.0)
    edge = (640 - street.camera.cx) / street.camera.focal * 12  # x of the right border, 12 m ahead
    cut = Actor(CAR, 0, car(3), Place(edge, 0, 12, np.pi))
    _, (boxes, _, visibility, _) = compose(street, np.zeros((480, 640, 3), np.uint8), [cut])
    assert boxes[0, 2] == 640 and 0.35 < visibility[0] < 0.65


@pytest.fixture(scope="module")
def film():
    return list(scenes.clip(2, 60, condition="day"))


def test_clip_keeps_tracks_and_moves_them_smoothly(film):
    label_of, compared = {}, 0
    for before, after in pairwise(film):
        assert_valid(after, 640, 480)
        for track, label in zip(after.track_ids.tolist(), after.labels.tolist(), strict=True):
            assert label_of.setdefault(track, label) == label
        inner = [(s.boxes_xyxy[:, :2] > 0).all(1) & (s.boxes_xyxy[:, 2:] < (640, 480)).all(1) for s in (before, after)]
        old = {t: b for t, b, ok in zip(before.track_ids.tolist(), before.boxes_xyxy, inner[0], strict=True) if ok}
        for track, box, ok in zip(after.track_ids.tolist(), after.boxes_xyxy, inner[1], strict=True):
            if ok and track in old and min(box[2] - box[0], box[3] - box[1]) >= 10:
                assert iou(old[track][None], box[None])[0, 0] > 0.3
                compared += 1
    assert compared > 200


def test_clip_is_lively_and_its_camera_stands_still(film):
    first, last = set(film[0].track_ids.tolist()), set(film[-1].track_ids.tolist())
    assert last - first and first - last  # some enter, some leave
    assert len({label for s in film for label in s.labels.tolist()}) >= 5
    still = np.abs(film[0].img_hwc_u8.astype(int) - film[-1].img_hwc_u8).max(2) <= 2
    assert still.mean() > 0.5


def test_the_signal_changes(film):
    long = scenes.clip(2, 25, fps=1.0, condition="day")
    lamps = set()
    for scene in long:
        x0, y0, x1, y1 = scene.boxes_xyxy[scene.track_ids == 1][0].astype(int)
        red, green = scene.img_hwc_u8[y0:y1, x0:x1, :2].astype(int).transpose(2, 0, 1)
        lamps.add("red" if (red - green).max() > (green - red).max() else "green")
    assert lamps == {"red", "green"}


def test_clip_is_lazy_and_repeatable():
    frames = scenes.clip(6, 10**9)
    assert digest(next(frames)) == digest(next(scenes.clip(6, 1)))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"seed": -1}, ["seed", "-1", "at least 0"]),
        ({"seed": 1.5}, ["seed", "1.5", "int"]),
        ({"width": 63}, ["width", "63", "64"]),
        ({"height": 480.0}, ["height", "480.0", "int"]),
        ({"height": True}, ["height", "True"]),
        ({"condition": "snow"}, ["condition", "snow", "fog"]),
    ],
)
def test_bad_inputs_say_what_to_do(wrong, words):
    for call in (lambda seed=0, **k: scenes.render(seed, **k), lambda seed=0, **k: scenes.clip(seed, 3, **k)):
        with pytest.raises(ValueError) as error:
            call(**wrong)
        assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("frames", [0, -3, 2.0, True])
def test_clip_refuses_bad_frame_counts(frames):
    with pytest.raises(ValueError, match=r"frames: got .*at least 1"):
        scenes.clip(0, frames)


@pytest.mark.parametrize("fps", [0, -25.0, float("nan")])
def test_clip_refuses_bad_fps(fps):
    with pytest.raises(ValueError, match="fps: got"):
        scenes.clip(0, 3, fps=fps)
