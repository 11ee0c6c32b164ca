"""The data sets: scenes by seed, split into train, calib and test.

A split is a range of seeds, so nothing large is stored. `datasets/manifest.json` keeps a hash of the test split's
pixels: another OpenCV may round differently, and then its mAP is not the published one.
"""

import hashlib
import json
import multiprocessing
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from trtkit import scenes
from trtkit.files import sha256
from trtkit.progress import bar
from trtkit.yolo import letterbox_u8

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
FIRST_SEED = {"train": 0, "calib": 1_000_000, "test": 2_000_000}
TEST_IMAGES = 200
# A person could not name what is hidden this far or smaller than this; evaluation and training pass over it.
MIN_VISIBILITY = 0.2
MIN_SIDE_PX = 8
# By folder; a folder that has none cannot enter the manifest.
ORIGINS = {
    "": "drawn by `trtkit datasets`",
    "graphs": "exported by `trtkit datasets`",
    "results": "recorded; its `command` says how",
    "weights": "trained by `trtkit train`; pruned ones by `tests/bench/prune_yolov3.py`",
}
MAX_OBJECTS = 24            # per training image, beyond any scene


def split_seeds(split: str, count: int) -> range:
    """Seeds of the first `count` images of "train", "calib" or "test".

    Raises:
        ValueError: unknown split, or a count below 1 or beyond the next split.
    """
    if split not in FIRST_SEED:
        raise ValueError(f"split: got {split!r}, expected one of {list(FIRST_SEED)}")
    if not 1 <= count <= 1_000_000:
        raise ValueError(f"count: got {count}, expected 1 to 1,000,000 images")
    return range(FIRST_SEED[split], FIRST_SEED[split] + count)


def load_split(split: str, count: int = TEST_IMAGES, *, progress: bool = True) -> list[scenes.Scene]:
    """Render the first `count` images of a split. The whole test split is checked against the manifest.

    Returns:
        The scenes; a warning says so if this machine's libraries drew other pixels than those the published mAP is of.
    """
    seeds = split_seeds(split, count)
    split_scenes = [scenes.render(seed) for seed in bar(seeds, f"render {split}", unit="img", show=progress)]
    if split == "test" and count == TEST_IMAGES:
        recorded = manifest()["test_split"]
        if (digest := scenes_sha256(split_scenes)) != recorded["sha256"]:
            warnings.warn(
                f"test split: got pixels {digest[:12]}, expected {recorded['sha256'][:12]}, which OpenCV "
                f"{recorded['opencv']} drew; this one is {cv2.__version__}. mAP may differ from the model card by a "
                "few tenths; install the versions of constraints.txt to compare exactly",
                stacklevel=2,
            )
    return split_scenes


def scenes_sha256(split_scenes: Iterable[scenes.Scene]) -> str:
    """Hash of the pixels and boxes of scenes, in their order."""
    digest = hashlib.sha256()
    for scene in split_scenes:
        digest.update(scene.img_hwc_u8.tobytes())
        digest.update(scene.boxes_xyxy.astype(np.float32).tobytes())
        digest.update(scene.labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def manifest() -> dict:
    """`datasets/manifest.json`: files with their sha256, and the test split's hash."""
    return json.loads((DATASETS / "manifest.json").read_text())


def file_entry(name: str) -> dict[str, str]:
    """What the manifest keeps of a committed file: its hash, licence and origin."""
    return {"sha256": sha256(DATASETS / name), "licence": "Apache-2.0", "origin": ORIGINS[name.rpartition("/")[0]]}


def dataset_file(name: str) -> Path:
    """Path of a committed file, its bytes checked against the manifest.

    Args:
        name: relative to `datasets/`, for example "weights/yolov3_w025.safetensors".

    Raises:
        FileNotFoundError: not there, or not in the manifest.
        ValueError: its bytes are not those of the manifest.
    """
    entries, path = manifest()["files"], DATASETS / name
    if name not in entries or not path.is_file():
        raise FileNotFoundError(f"datasets: got {name!r}, expected a file of the manifest: {sorted(entries)}")
    digest = sha256(path)
    if digest != entries[name]["sha256"]:
        raise ValueError(
            f"datasets: {name} has sha256 {digest[:12]}, expected {entries[name]['sha256'][:12]}; the file is damaged, "
            f"restore it with: git checkout -- datasets/{name}"
        )
    return path


def ignored(scene: scenes.Scene) -> np.ndarray:
    """(N,) bool: objects too hidden or too small to ask a detector for."""
    sides = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
    return (scene.visibility < MIN_VISIBILITY) | (sides.min(1) < MIN_SIDE_PX)


@dataclass(frozen=True)
class TrainingSet:
    """Letterboxed images in memory.

    Shapes: `images_u8` (N, 3, S, S) uint8; `boxes_xyxy` (N, 24, 4) float32, pixels of the network input;
    `labels` (N, 24) int64, -1 where there is no object, -2 where one is to be ignored.
    """

    images_u8: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray


def _training_sample(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cv2.setNumThreads(1)                                # one process per core already
    scene = scenes.render(seed)
    square, place = letterbox_u8(scene.img_hwc_u8, size)
    n = min(len(scene.labels), MAX_OBJECTS)
    boxes, labels = np.zeros((MAX_OBJECTS, 4), np.float32), np.full(MAX_OBJECTS, -1, np.int64)
    boxes[:n] = scene.boxes_xyxy[:n] * place.scale + np.array([place.pad_x, place.pad_y] * 2)
    labels[:n] = np.where(ignored(scene), -2, scene.labels)[:n]
    return np.ascontiguousarray(square.transpose(2, 0, 1)), boxes, labels


def training_set(
    seeds: Sequence[int], *, size: int = 416, workers: int | None = None, progress: bool = True
) -> TrainingSet:
    """Render scenes for training, in parallel.

    Args:
        seeds: one per image, for example `split_seeds("train", 2000)`.
        size: of the network input, pixels, a multiple of 32.
        workers: processes; None takes the CPUs that this process may use.
        progress: show a bar.

    Returns:
        The set; 0.5 MB an image at 416.

    A script must call this below `if __name__ == "__main__":`, since each process imports it anew; notebooks need not.
    """
    workers = workers or len(os.sched_getaffinity(0))
    images = np.empty((len(seeds), 3, size, size), np.uint8)
    boxes = np.empty((len(seeds), MAX_OBJECTS, 4), np.float32)
    labels = np.empty((len(seeds), MAX_OBJECTS), np.int64)
    # Not fork: a child of a process in which OpenCV's threads have run waits for them forever.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        samples = pool.map(partial(_training_sample, size=size), seeds, chunksize=16)
        for i, sample in enumerate(bar(samples, "render train", total=len(seeds), unit="img", show=progress)):
            images[i], boxes[i], labels[i] = sample
    return TrainingSet(images, boxes, labels)
