"""Inputs of `trtkit.small_net`, and how the tests build it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from trtkit import engine, export
from trtkit.small_net import SIDE

BATCH = (1, 2, 4)
CONFIG = engine.BuildConfig(batch=BATCH, optimization_level=1)


def batch(n: int, seed: int = 0) -> np.ndarray:
    """(n, 3, 32, 32) float32 in [0, 1]."""
    return np.random.default_rng(seed).random((n, 3, SIDE, SIDE), np.float32)


def clear_batch(int8: Path, n: int, seed: int = 0, margin: float = 1e-4) -> np.ndarray:
    """As `batch`, of images for which no quantizer of the graph meets a value near the middle of two codes.

    Near the middle the last bit of a sum decides on the code, and two right backends differ by a whole step; elsewhere
    they must agree. So this is what makes a bound of one step a fair one, and a narrower one, too.

    Args:
        int8: a graph with Q/DQ pairs.
        n, seed: see `batch`; images that do not qualify are passed over.
        margin: in steps; rounding of float32 sums moves a value by a tenth of the default.
    """
    model = onnx.load(int8)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scales = {node.input[0]: constants[node.input[1]] for node in model.graph.node
              if node.op_type == "QuantizeLinear" and node.input[0] not in constants}
    names = [name for name in scales if name != "x"]
    session = as_written(export.expose_tensors(model, names).SerializeToString())
    images, candidates = [], np.random.default_rng(seed)
    while len(images) < n:
        x = candidates.random((1, 3, SIDE, SIDE), np.float32)
        seen = {"x": x, **dict(zip(names, session.run(names, {"x": x}), strict=True))}
        if all(_clearance(seen[name] / scale) > margin for name, scale in scales.items()):
            images.append(x)
    return np.concatenate(images)


def as_written(model: bytes | str) -> ort.InferenceSession:
    """ONNX Runtime without its optimizations, which round biases to multiples of the product of two scales.

    That alone moves values over the middle of two codes; TensorRT keeps biases in float32.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _clearance(steps: np.ndarray) -> float:
    """Distance, in steps, of the value closest to a middle between two codes; beyond the last code there is none."""
    inside = steps[np.abs(steps) < 128]
    return float(np.abs(inside - np.floor(inside) - 0.5).min())


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())
