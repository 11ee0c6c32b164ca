"""What the GPU tests share: a small network in three precisions, and its engines, built once per session.

A build takes TensorRT 8.6 some seconds even for four convolutions: builds share a process, but for the tests of that
process itself, and tests that need another plan copy the cache.
"""

import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from trtkit import calib, engine, export, half, qdq
from trtkit.small_net import four_convolutions

from .small_net import CONFIG, as_written, batch


@pytest.fixture(scope="session", autouse=True)
def builder():
    """Kernels are loaded once."""
    with engine.kept_builder():
        yield


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """Paths of the network by precision; INT8's last convolution stays float, as a head does."""
    folder = tmp_path_factory.mktemp("graphs")
    model = four_convolutions()
    for node in model.graph.node:           # a slope of 0.1 puts the codes -5, -15 ... midway between two codes, where
        if node.op_type == "LeakyRelu":     # the last bit of a product decides, and two backends may differ
            node.attribute[0].f = 0.1003
    paths = {precision: folder / f"net_{precision}.onnx" for precision in ("fp32", "fp16", "int8")}
    onnx.save(model, paths["fp32"])
    onnx.save(half.to_fp16(model), paths["fp16"])
    onnx.save(export.expose_tensors(model, qdq.activation_names(model)[1:]), folder / "exposed.onnx")
    with engine.load(engine.build(folder / "exposed.onnx", backend="ort")) as runner:
        seen = calib.collect(lambda x: {"x": x, **runner.infer({"x": x})}, [batch(4, s) for s in range(8)],
                             progress=False)
    quantized = qdq.insert_qdq(model, calib.ranges(seen, "max"), target="trt", skip=["y"])
    onnx.save(quantized, paths["int8"])
    return SimpleNamespace(**paths)


@pytest.fixture(scope="session")
def plans(graphs):
    """TensorRT plans of the three graphs, for batches of 1 to 4."""
    return SimpleNamespace(**{p: engine.build(g, CONFIG, backend="trt") for p, g in vars(graphs).items()})


@pytest.fixture(scope="session")
def expected(graphs):
    """What ONNX Runtime makes of an input, with the graph as it is written: `expected(precision, x)`."""
    sessions = {p: as_written(str(g)) for p, g in vars(graphs).items()}

    def infer(precision: str, x: np.ndarray) -> dict[str, np.ndarray]:
        names = [y.name for y in sessions[precision].get_outputs()]
        return dict(zip(names, sessions[precision].run(names, {"x": x}), strict=True))

    return infer


@pytest.fixture
def runner(plans):
    """An open runner of the FP32 engine, this test's own."""
    with engine.load(plans.fp32) as r:
        yield r


@pytest.fixture
def own_cache(plans, tmp_path, monkeypatch):
    """A copy of the cache with all plans, for tests that damage them: `own_cache.fp32` and so on."""
    folder = tmp_path / "cache"
    shutil.copytree(engine.cache_dir(), folder)
    monkeypatch.setenv("TRTKIT_CACHE", str(folder))
    return SimpleNamespace(**{p: folder / plan.name for p, plan in vars(plans).items()})
