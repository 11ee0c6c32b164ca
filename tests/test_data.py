import hashlib
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from trtkit import data, scenes
from trtkit.yolo import letterbox_u8


def _scene(boxes, visibility, labels=None):
    n = len(boxes)
    return scenes.Scene(
        np.zeros((40, 60, 3), np.uint8), np.array(boxes, np.float32), np.arange(n) if labels is None else labels,
        np.array(visibility, np.float32), np.arange(n), "day",
    )  # fmt: skip


def test_splits_share_no_seed():
    splits = [set(data.split_seeds(s, 1_000_000)) for s in ("train", "calib", "test")]
    assert all(len(s) == 1_000_000 for s in splits)
    assert not splits[0] & splits[1] and not splits[1] & splits[2] and not splits[0] & splits[2]


def test_a_longer_split_begins_with_the_shorter_one():
    assert list(data.split_seeds("test", 9))[:4] == list(data.split_seeds("test", 4))


@pytest.mark.parametrize(("split", "count"), [("val", 1), ("", 1), ("train", 0), ("test", -1), ("calib", 1_000_001)])
def test_unknown_splits_and_counts_are_refused(split, count):
    with pytest.raises(ValueError, match="got"):
        data.split_seeds(split, count)


def test_hidden_and_small_objects_are_ignored():
    box, hidden = [0, 0, 20, 20], data.MIN_VISIBILITY
    scene = _scene([box, box, box, [0, 0, 7.9, 30], [0, 0, 30, 7.9], [0, 0, 8, 8]], [1, hidden - 0.01, hidden, 1, 1, 1])
    assert data.ignored(scene).tolist() == [False, True, False, True, True, False]
    assert data.ignored(_scene(np.empty((0, 4)), [])).shape == (0,)


@pytest.fixture(scope="module")
def small_set():
    return data.training_set(range(3, 7), size=160, workers=2, progress=False)


def test_a_training_set_holds_the_letterboxed_scenes_in_the_order_of_the_seeds(small_set):
    assert small_set.images_u8.shape == (4, 3, 160, 160) and small_set.images_u8.dtype == np.uint8
    assert small_set.boxes_xyxy.shape == (4, 24, 4) and small_set.boxes_xyxy.dtype == np.float32
    assert small_set.labels.shape == (4, 24) and small_set.labels.dtype == np.int64
    for i, seed in enumerate(range(3, 7)):
        scene = scenes.render(seed)
        square, place = letterbox_u8(scene.img_hwc_u8, 160)
        np.testing.assert_array_equal(small_set.images_u8[i], square.transpose(2, 0, 1))
        n = len(scene.labels)
        assert (small_set.labels[i, n:] == -1).all() and (small_set.boxes_xyxy[i, n:] == 0).all()
        expected = np.where(data.ignored(scene), -2, scene.labels)
        np.testing.assert_array_equal(small_set.labels[i, :n], expected)
        back = (small_set.boxes_xyxy[i, :n] - np.array([place.pad_x, place.pad_y] * 2)) / place.scale
        np.testing.assert_allclose(back, scene.boxes_xyxy, atol=1e-3)


def test_rendering_in_processes_works_after_this_process_used_opencvs_threads():
    """Forked, it would wait forever: the child would wait for threads that only the parent has."""
    code = (
        "import cv2, numpy as np; from trtkit import data\n"
        "cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)\n"
        "print(data.training_set(range(2), size=64, workers=2, progress=False).images_u8.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "(2, 3, 64, 64)", done.stderr


def test_the_number_of_workers_changes_nothing(small_set):
    alone = data.training_set(range(3, 5), size=160, workers=1, progress=False)
    np.testing.assert_array_equal(alone.images_u8, small_set.images_u8[:2])
    np.testing.assert_array_equal(alone.labels, small_set.labels[:2])


def test_scenes_with_more_objects_than_fit_keep_the_first_24(monkeypatch):
    many = _scene([[0, 0, 20, 20]] * 30, [1] * 30)
    monkeypatch.setattr(scenes, "render", lambda seed: many)
    _, boxes, labels = data._training_sample(0, 64)
    assert boxes.shape == (24, 4) and labels.tolist() == list(range(24))


def test_ignored_objects_are_labelled_minus_two_in_the_training_set(monkeypatch):
    scene = _scene([[0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 4, 4]], [1, 0.1, 1], labels=np.array([5, 5, 5]))
    monkeypatch.setattr(scenes, "render", lambda seed: scene)
    _, boxes, labels = data._training_sample(0, 64)
    assert labels[:4].tolist() == [5, -2, -2, -1]
    # 60 x 40 pixels in a square of 64: scaled by 64 / 60, 10 rows of grey above
    np.testing.assert_allclose(boxes[0], np.array([0, 0, 20, 20]) * 64 / 60 + [0, 10, 0, 10], atol=1e-4)


def test_the_hash_of_scenes_depends_on_pixels_boxes_labels_and_order():
    a, b = _scene([[0, 0, 20, 20]], [1]), _scene([[0, 0, 20, 21]], [1])
    c = _scene([[0, 0, 20, 20]], [1], labels=np.array([4]))
    d = _scene([[0, 0, 20, 20]], [1])
    d.img_hwc_u8[3, 3, 1] = 1
    digests = {data.scenes_sha256(s) for s in ([a], [b], [c], [d], [a, b], [b, a])}
    assert len(digests) == 6
    assert data.scenes_sha256([a]) == data.scenes_sha256([_scene([[0, 0, 20, 20]], [1])])


def _numbered(seed: int):
    """A stand-in for `scenes.render`: its box tells the seed."""
    return _scene([[0, 0, seed, seed]], [1])


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """A datasets folder with one file and a manifest that knows it."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(b"sixteen bytes...")
    sha256 = hashlib.sha256(b"sixteen bytes...").hexdigest()
    body = {
        "files": {name: {"sha256": sha256} for name in ("weights/w.bin", "gone")},
        "test_split": {"sha256": data.scenes_sha256(_numbered(2_000_000 + i) for i in range(2)), "opencv": "4.x"},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(body))
    (tmp_path / "stranger").write_bytes(b"not in the manifest")
    monkeypatch.setattr(data, "DATASETS", tmp_path)
    monkeypatch.setattr(data, "TEST_IMAGES", 2)
    monkeypatch.setattr(scenes, "render", _numbered)
    return tmp_path


def test_a_file_of_the_manifest_is_found(datasets):
    assert data.dataset_file("weights/w.bin") == datasets / "weights" / "w.bin"


@pytest.mark.parametrize("position", [0, 7, 15])
def test_one_flipped_bit_is_noticed(datasets, position):
    path = datasets / "weights" / "w.bin"
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"weights/w\.bin.*damaged"):
        data.dataset_file("weights/w.bin")


@pytest.mark.parametrize("name", ["gone", "stranger", "no such file", "../manifest.json", "manifest.json", "weights"])
def test_files_that_are_missing_or_not_in_the_manifest_are_refused(datasets, name):
    with pytest.raises(FileNotFoundError, match=r"weights/w\.bin"):
        data.dataset_file(name)


def test_the_recorded_test_split_loads_without_a_warning(datasets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.load_split("test", 2, progress=False)) == 2


def test_other_pixels_than_those_recorded_warn_and_still_load(datasets):
    body = json.loads((datasets / "manifest.json").read_text())
    body["test_split"]["sha256"] = "0" * 64
    (datasets / "manifest.json").write_text(json.dumps(body))
    with pytest.warns(UserWarning, match=r"test split: got pixels .* expected 000000000000.*constraints"):
        assert len(data.load_split("test", 2, progress=False)) == 2
    with warnings.catch_warnings():                         # a part of the split, or another one, is not compared
        warnings.simplefilter("error")
        data.load_split("test", 1, progress=False)
        data.load_split("calib", 2, progress=False)


def test_a_split_is_its_seeds_rendered(datasets):
    assert [s.boxes_xyxy[0, 2] for s in data.load_split("calib", 2, progress=False)] == [1_000_000, 1_000_001]
