"""What is committed under datasets/ is what the manifest, the model card and the design say."""

import json

import numpy as np
import pytest

from trtkit import data, engine, export, models, scenes, video, yolo

WEIGHTS = "weights/yolov3_w025.safetensors"


def test_every_committed_file_is_in_the_manifest_with_its_hash():
    listed = data.manifest()["files"]
    found = {p.relative_to(data.DATASETS).as_posix() for p in data.DATASETS.rglob("*") if p.is_file()}
    assert {n for n in found if not n.endswith((".md", "manifest.json"))} == set(listed)
    for name, entry in listed.items():
        data.dataset_file(name)                     # raises where a byte differs
        assert entry["licence"] == "Apache-2.0" and entry["origin"]


def test_sizes_stay_within_their_limits():
    assert (data.DATASETS / WEIGHTS).stat().st_size <= 8.5e6
    assert (data.DATASETS / "clip.mp4").stat().st_size <= 1.5e6


@pytest.fixture(scope="module")
def truth():
    body = json.loads(data.dataset_file("clip_truth.json").read_text())
    assert tuple(body["classes"]) == scenes.CLASSES
    return [np.array(rows).reshape(-1, len(body["columns"])) for rows in body["frames"]]


def test_clip_is_twenty_seconds_of_640x480(truth):
    info = video.source_info(data.dataset_file("clip.mp4"))
    assert (info.width, info.height, info.fps, info.frame_count) == (640, 480, 25, 500)
    assert len(truth) == 500 and len({int(t) for rows in truth for t in rows[:, 0]}) > 20


def test_detector_finds_what_the_ground_truth_of_the_clip_says(truth, tmp_path):
    model = models.load_weights(data.dataset_file(WEIGHTS))
    frames = list(video.frames(data.dataset_file("clip.mp4"), limit=201))[::50]
    hits = total = 0
    with engine.load(engine.build(export.export_onnx(model, tmp_path / "clip.onnx"))) as runner:
        for frame in frames:
            found = yolo.detect(runner, frame.img_hwc_u8)
            rows = truth[frame.index]
            clear = rows[(rows[:, 2] > 0.8) & (rows[:, 6] - rows[:, 4] > 30)]
            overlap = yolo.iou(clear[:, 3:7], found.boxes_xyxy) * (clear[:, 1:2] == found.labels)
            hits, total = hits + (overlap.max(1, initial=0) > 0.5).sum(), total + len(clear)
    assert total > 20 and hits / total > 0.85


def test_model_card_names_the_recorded_accuracy_of_its_own_weights():
    card = (data.DATASETS / "weights" / "README.md").read_text()
    command = json.loads((data.DATASETS / "results" / "train_yolov3_w025_h100.json").read_text())["command"]
    assert "mAP50 0.958, mAP50-95 0.679" in card and command in card
