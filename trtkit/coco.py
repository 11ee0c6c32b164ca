"""COCO's images and objects, read out of its two zip files where they lie. For pretrained weights; lesson 10.

    images, objects = fetch("val2017.zip"), fetch("annotations_trainval2017.zip")       # 1 GB, see trtkit.fetch
    truth = coco.read_annotations(objects)
    found = [yolo.detect(runner, img, conf_thr=0.01) for img, _ in coco.pictures(images, truth)]
    evaluate.mean_average_precision(found, [t for _, t in coco.pictures(images, truth)], truth.class_names)

Labels count COCO's 80 categories in the order of their ids, which have gaps; that is the order of darknet's coco.names
and of the outputs of its weights. A crowd becomes an ignored object, as in COCO's protocol. Sizes are taken from boxes
here and from outlines there, so AP by size is not comparable to published figures; mAP is.
Source: cocodataset.org, "Data format".
"""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from trtkit.evaluate import Truth


@dataclass(frozen=True)
class Annotations:
    """`class_names`, one per label; `truths` by the file name of each image, also of those without objects."""

    class_names: tuple[str, ...]
    truths: dict[str, Truth]


def read_annotations(path: Path, split: str = "val2017") -> Annotations:
    """The objects of one split.

    Args:
        path: annotations_trainval2017.zip.
        split: "val2017" or "train2017".

    Raises:
        FileNotFoundError: no such file.
        ValueError: no zip, one without this split, or one whose boxes or categories make no sense.
    """
    member = f"annotations/instances_{split}.json"
    with _opened(Path(path)) as archive:
        if member not in archive.namelist():
            raise ValueError(f"coco: {Path(path).name} has no {member}, expected one of {archive.namelist()[:8]}")
        text = archive.read(member)
    try:
        body = json.loads(text)
        categories = sorted(body["categories"], key=lambda c: c["id"])
        label_of = {c["id"]: label for label, c in enumerate(categories)}
        objects: dict[int, list] = {image["id"]: [] for image in body["images"]}
        for a in body["annotations"]:
            x, y, w, h = a["bbox"]
            objects[a["image_id"]].append(((x, y, x + w, y + h), label_of[a["category_id"]], bool(a["iscrowd"])))
        return Annotations(tuple(c["name"] for c in categories),
                           {image["file_name"]: _truth(objects[image["id"]]) for image in body["images"]})
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"coco: {member} is not what COCO's data format says ({type(e).__name__}: {e}); fetch it "
                         "again") from e


def pictures(images: Path, annotations: Annotations, *, count: int | None = None) -> Iterator[tuple[np.ndarray, Truth]]:
    """Images with their objects, one at a time, in the order of their names.

    Args:
        images: a zip of the split's images, val2017.zip.
        annotations: of the same split.
        count: only the first so many, at least 1; None for all of them.

    Yields:
        (H, W, 3) uint8 RGB, and the objects in pixels of it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: count below 1; no zip; an image that is missing or damaged (named).
    """
    if count is not None and count < 1:
        raise ValueError(f"count: got {count}, expected at least 1, or None for all {len(annotations.truths)}")
    with _opened(Path(images)) as archive:
        by_name = {Path(name).name: name for name in archive.namelist()}
        for name in sorted(annotations.truths)[:count]:
            if name not in by_name:
                raise ValueError(f"coco: {Path(images).name} lacks {name}; are images and annotations of one split?")
            yield _decoded(name, archive.read(by_name[name])), annotations.truths[name]


def _opened(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"coco: got {path}, expected a zip file; get it with: trtkit fetch {path.name}")
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as e:
        raise ValueError(f"coco: {path.name} is no intact zip file ({e}); fetch it again") from e


def _decoded(name: str, data: bytes) -> np.ndarray:
    img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None     # grey ones become RGB too
    if img is None:
        raise ValueError(f"coco: {name} is no image that OpenCV can read; fetch the zip again")
    return cv2.cvtColor(img, cv2.COLOR_BGR2RGB)


def _truth(objects: list[tuple[tuple[float, ...], int, bool]]) -> Truth:
    boxes, labels, crowds = zip(*objects, strict=True) if objects else ((), (), ())
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(crowds, bool))
