"""COCO's files, made small from our own scenes: what is read back must score as the scenes themselves do."""

import json
import zipfile

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from trtkit import coco, data, evaluate
from trtkit.scenes import CLASSES
from trtkit.yolo import Detection

# Ids with gaps and out of order, as COCO's are.
IDS = (90, 3, 17, 44, 8, 62)


def _write(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def scenes():
    return data.load_split("test", 6, progress=False)


@pytest.fixture(scope="module")
def body(scenes):
    """The JSON of the scenes; the labels of COCO are the ranks of the ids."""
    annotations = []
    for i, scene in enumerate(scenes):
        for box, label, crowd in zip(scene.boxes_xyxy.tolist(), scene.labels, data.ignored(scene), strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": 100 - i, "category_id": IDS[label],
                                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "iscrowd": int(crowd),
                                "area": 1.0})
    return {"images": [{"id": 100 - i, "file_name": f"{i:012}.png"} for i in range(len(scenes))] + [
                {"id": 7, "file_name": "000000000999.png"}],
            "categories": [{"id": k, "name": name} for k, name in zip(IDS, CLASSES, strict=True)],
            "annotations": annotations}


@pytest.fixture
def zips(tmp_path, scenes, body):
    members = {f"val2017/{i:012}.png": cv2.imencode(".png", s.img_hwc_u8[..., ::-1])[1].tobytes()
               for i, s in enumerate(scenes)}
    members["val2017/000000000999.png"] = cv2.imencode(".png", np.full((40, 50), 7, np.uint8))[1].tobytes()
    member = {"annotations/instances_val2017.json": json.dumps(body).encode()}
    return _write(tmp_path / "val2017.zip", members), _write(tmp_path / "annotations.zip", member)


def test_images_and_boxes_come_back(zips, scenes):
    truth = coco.read_annotations(zips[1])
    read = list(coco.pictures(zips[0], truth))
    assert len(read) == 7 and truth.class_names == tuple(np.array(CLASSES)[np.argsort(IDS)])
    for (img, found), scene in zip(read, scenes, strict=False):
        assert np.array_equal(img, scene.img_hwc_u8)
        np.testing.assert_allclose(found.boxes_xyxy, scene.boxes_xyxy, rtol=0, atol=1e-3)
        assert [truth.class_names[k] for k in found.labels] == [CLASSES[k] for k in scene.labels]
        assert np.array_equal(found.ignore, data.ignored(scene))
    img, empty = read[-1]
    assert img.shape == (40, 50, 3) and (img == 7).all()        # a grey image, without objects
    assert empty.boxes_xyxy.shape == (0, 4) and empty.labels.dtype == np.int64 and empty.ignore.dtype == bool


def test_labels_are_in_the_order_that_pycocotools_gives(zips, body, tmp_path):
    (tmp_path / "instances.json").write_text(json.dumps(body))
    api = COCO(tmp_path / "instances.json")
    truth = coco.read_annotations(zips[1])
    assert truth.class_names == tuple(c["name"] for c in api.loadCats(sorted(api.getCatIds())))
    counts = np.bincount(np.concatenate([t.labels for t in truth.truths.values()]), minlength=6)
    assert counts.tolist() == [len(api.getAnnIds(catIds=[k])) for k in sorted(api.getCatIds())]


def test_they_score_as_the_scenes_do(zips, scenes):
    """Detections are the objects themselves, some moved, in the labels of either side."""
    rng, ranks = np.random.default_rng(0), np.argsort(np.argsort(IDS))
    ours, theirs = [], []
    for s in scenes:
        boxes, scores = s.boxes_xyxy + rng.normal(0, 4, s.boxes_xyxy.shape).clip(-9, 9).astype(np.float32), rng.random(
            len(s.labels)).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        ours.append(Detection(boxes, scores, s.labels))
        theirs.append(Detection(boxes, scores, ranks[s.labels]))
    truth = coco.read_annotations(zips[1])
    expected = evaluate.mean_average_precision(ours, evaluate.truths_of(scenes), CLASSES)
    got = evaluate.mean_average_precision(theirs, [t for _, t in coco.pictures(zips[0], truth, count=6)],
                                          truth.class_names)
    assert 0.1 < got.map50_95 < 0.99
    assert got.map50_95 == pytest.approx(expected.map50_95, abs=1e-6)
    assert got.per_class == pytest.approx(expected.per_class, abs=1e-6)


def test_count_takes_the_first_by_name(zips):
    truth = coco.read_annotations(zips[1])
    assert len(list(coco.pictures(zips[0], truth, count=2))) == 2
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"count: got {count}, expected at least 1, or None for all 7"):
            next(coco.pictures(zips[0], truth, count=count))


def test_missing_and_broken_zips_are_named(tmp_path, zips):
    truth = coco.read_annotations(zips[1])
    (tmp_path / "page.zip").write_text("<html>sign in</html>")
    with pytest.raises(FileNotFoundError, match=r"trtkit fetch none\.zip"):
        coco.read_annotations(tmp_path / "none.zip")
    for read in (lambda p: coco.read_annotations(p), lambda p: next(coco.pictures(p, truth))):
        with pytest.raises(ValueError, match=r"page\.zip is no intact zip file"):
            read(tmp_path / "page.zip")
    with pytest.raises(ValueError, match=r"has no annotations/instances_train2017\.json, expected one of"):
        coco.read_annotations(zips[1], "train2017")
    with pytest.raises(ValueError, match=r"annotations\.zip lacks 0+0\.png; are images"):
        next(coco.pictures(zips[1], truth))


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_damaged_image_is_named(tmp_path, zips, content):
    broken = _write(tmp_path / "broken.zip", {f"val2017/{0:012}.png": content})
    with pytest.raises(ValueError, match=r"0{12}\.png is no image"):
        next(coco.pictures(broken, coco.read_annotations(zips[1])))


@pytest.mark.parametrize("damage", [
    lambda body: body.pop("categories"),
    lambda body: body["annotations"][0].update(category_id=5),
    lambda body: body["annotations"][0].update(bbox=[1, 2, 3]),
    lambda body: body["annotations"][0].update(image_id=5),
])
def test_annotations_that_make_no_sense_are_refused(tmp_path, body, damage):
    broken = json.loads(json.dumps(body))
    damage(broken)
    path = _write(tmp_path / "a.zip", {"annotations/instances_val2017.json": json.dumps(broken).encode()})
    with pytest.raises(ValueError, match=r"instances_val2017\.json is not what COCO's data format says"):
        coco.read_annotations(path)


def test_json_that_is_cut_off_is_refused(tmp_path):
    path = _write(tmp_path / "a.zip", {"annotations/instances_val2017.json": b'{"images": ['})
    with pytest.raises(ValueError, match="not what COCO's data format says"):
        coco.read_annotations(path)
