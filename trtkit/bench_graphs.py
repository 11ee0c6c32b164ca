"""The networks that `trtkit bench` measures: YOLOv3-416 of two widths as FP32, FP16 and INT8 graphs. Lessons 04, 11.

Width 0.25 is the trained detector. Nobody gives trained weights of width 1.0 away under a licence that we could pass
on, and a device computes random numbers as fast as trained ones. They must not be just any numbers, though: with fresh
weights, activations die out over 75 layers, and then no error and no INT8 range means anything. So its BatchNorms take
their statistics from a few images, as after training.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from trtkit import calib, data, engine, export, half, qdq, scenes, weights, yolo
from trtkit.files import sha256

if TYPE_CHECKING:               # imported where it is used: the trained detector needs no PyTorch
    from torch import nn

TRAINED = "weights/yolov3_w025.safetensors"
WIDTHS = (1.0, 0.25)
PRECISIONS = ("fp32", "fp16", "int8")
RANDOM_CLASSES = 80             # COCO's, as in the paper
STATISTICS_IMAGES = 4
CALIB_IMAGES = {1.0: 4, 0.25: 32}       # random weights need real ranges, not good ones


def images(count: int, *, split: str = "test") -> np.ndarray:
    """(count, 3, 416, 416) float32 in [0, 1]: the first scenes of a split, letterboxed."""
    seeds = data.split_seeds(split, count)
    return np.concatenate([yolo.letterbox(scenes.render(seed).img_hwc_u8)[0] for seed in seeds])


def weights_file(width: float, folder: Path) -> Path:
    """Weights of one of the networks; those of width 1.0 are drawn from a seed once and kept in `folder`.

    Raises:
        ValueError: a width that is not in `WIDTHS`.
    """
    if width not in WIDTHS:
        raise ValueError(f"width: got {width}, expected one of {WIDTHS}")
    if width == 0.25:
        return data.dataset_file(TRAINED)
    path = Path(folder) / "random_w1.safetensors"
    if not path.is_file():
        from trtkit import models

        path.parent.mkdir(parents=True, exist_ok=True)
        models.save_weights(seeded(models.YOLOv3, RANDOM_CLASSES, width), path)
    return path


def seeded(network: type, *args) -> "nn.Module":
    """A network with random weights whose BatchNorms have seen a few images, in eval mode."""
    import torch

    torch.manual_seed(0)
    return settled(network(*args))


def settled(model: "nn.Module") -> "nn.Module":
    """The same network in eval mode, its BatchNorms' statistics taken from a few images: after weights have changed."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None                  # plain averages: one batch sets them
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(torch.from_numpy(images(STATISTICS_IMAGES, split="calib")))
    return model.eval()


def graph(width: float, precision: str, folder: Path) -> Path:
    """Write one graph; the precision is in it, as Casts or as Q/DQ pairs.

    Args:
        width: one of `WIDTHS`.
        precision: one of `PRECISIONS`. In "int8" the convolutions that write the heads stay float, here in FP16. The
            first one does not, unlike lesson 06's: for three channels of codes TensorRT has a kernel of its own, and
            for FP16 it has none as fast.
        folder: for graphs, random weights and calibration tables.

    Returns:
        Its path; input "images" (N, 3, 416, 416) float32, heads as outputs.

    Raises:
        ValueError: unknown width or precision.
    """
    folder = Path(folder)
    return typed(weights.to_graph(weights_file(width, folder), folder / f"w{width:g}_fp32.onnx"), precision, width)


def typed(fp32: Path, precision: str, width: float) -> Path:
    """Write a graph of one of the networks in another precision, beside it.

    Args:
        fp32: of `weights.to_graph`; pruned ones too. Its name ends in "_fp32.onnx".
        precision: see `graph`.
        width: of the network before it was pruned: how many images give the ranges.

    Returns:
        Its path, which ends in the precision; `fp32` itself for "fp32".

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {PRECISIONS}")
    path = fp32.with_name(f"{fp32.stem.removesuffix('_fp32')}_{precision}.onnx")
    if precision == "fp16":
        onnx.save(half.to_fp16(onnx.load(fp32)), path)
    elif precision == "int8":
        model = onnx.load(fp32)
        quantized = qdq.insert_qdq(model, table(fp32, width), target="trt", skip=qdq.head_convs(model), rest="fp16")
        onnx.save(quantized, path)
    return path


def table(fp32: Path, width: float) -> dict[str, calib.Range]:
    """The largest values seen in the calibration images: lesson 12's table. Kept beside the graph."""
    path, digest = fp32.with_suffix(".calib.json"), sha256(fp32)
    batches = list(images(CALIB_IMAGES[width], split="calib")[:, None])
    of_images = calib.images_sha256(batches)
    if path.is_file():
        try:
            return calib.load_table(path, graph_sha256=digest, calib_sha256=of_images)
        except ValueError:          # of another version of weights or images: make it again
            path.unlink()
    model = onnx.load(fp32)
    exposed = fp32.with_suffix(".exposed.onnx")
    onnx.save(export.expose_tensors(model, qdq.activation_names(model)[1:]), exposed)
    with engine.load(engine.build(exposed, backend="ort")) as runner:
        seen = calib.collect(lambda x: {"images": x, **runner.infer({"images": x})}, batches, progress=False)
    exposed.unlink()
    ranges = calib.ranges(seen, "max")
    calib.save_table(path, ranges, graph_sha256=digest, images=seen.images, calib_sha256=of_images, method="max")
    return ranges
