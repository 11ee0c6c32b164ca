"""Inputs that the GPU's tests compare backends with; these run anywhere."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from .small_net import as_written, batch, clear_batch, relative_error


def _between(graph: Path, x: np.ndarray, *, integers: bool) -> float:
    """Largest difference, over both outputs, of ONNX Runtime with its optimizations and without."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "0" if integers else "1")
    optimized = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    pairs = zip(optimized.run(None, {"x": x}), as_written(str(graph)).run(None, {"x": x}), strict=True)
    return max(relative_error(a, b) for a, b in pairs)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_without_values_near_a_middle_right_backends_agree(graphs, n):
    x = clear_batch(graphs.int8, n, seed=n)
    assert x.shape == (n, 3, 32, 32) and x.dtype == np.float32
    assert _between(graphs.int8, x, integers=False) <= 1e-5


def test_kernels_of_integers_round_biases_and_differ_by_more_than_a_step(graphs):
    """Else the graph as written need not be what TensorRT is compared with."""
    assert max(_between(graphs.int8, clear_batch(graphs.int8, 3, seed=s), integers=True) for s in range(4)) > 1 / 127


def test_clear_means_farther_than_the_margin_from_a_middle(graphs):
    model = onnx.load(graphs.int8)
    quantizer = next(n for n in model.graph.node if n.input[0] == "x")
    scale = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == quantizer.input[1])

    def closest(images: np.ndarray) -> float:
        steps = images / scale
        return np.abs(steps - np.floor(steps) - 0.5)[np.abs(steps) < 128].min()

    assert closest(clear_batch(graphs.int8, 8)) > 1e-4 > closest(batch(8))


def test_images_differ_from_each_other_and_by_seed(graphs):
    images = np.concatenate([clear_batch(graphs.int8, 2, seed=s) for s in (1, 2)])
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4
