"""Keras on PyTorch. Its backend is chosen once, at import, so each test is a process of its own or a stand-in."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from trtkit import export_keras

NEEDS_KERAS = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="the extra keras is not installed")
PATH_OF_A_MODEL = """
import importlib.util, sys
import numpy as np, onnx
from trtkit import engine, export_keras, graph_summary, operators, simplify
keras = export_keras.keras_on_torch()
assert export_keras.keras_on_torch() is keras and "tensorflow" not in sys.modules
layers = keras.layers
keras.utils.set_random_seed(0)

def network(**convolution):
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(8, 3, padding="same", **convolution),
                              layers.BatchNormalization(), layers.LeakyReLU(0.1), layers.GlobalAveragePooling2D(),
                              layers.Dropout(0.5), layers.Dense(4)])
    statistics = np.random.default_rng(0).uniform(0.5, 1.5, (4, 8)).astype("f4")
    model.layers[1].set_weights(list(statistics))
    return model

def apart(path, model, batch):
    x = np.random.default_rng(batch).random((batch, 16, 16, 3), np.float32)
    with engine.load(engine.build(path, backend="ort")) as runner:
        return np.abs(runner.infer({"images": x})["y"] - keras.ops.convert_to_numpy(model(x, training=False))).max()

for name, settings in (("plain", {}), ("strided", {"strides": 2})):
    model = network(**settings)
    path = export_keras.export_keras(model, sys.argv[1] + f"/new/{name}.onnx")
    graph = onnx.load(path)
    found = graph_summary.summary(graph)
    assert (found.opset, found.ir_version) == (17, 8) and found.inputs == {"images": "float32 (batch, 16, 16, 3)"}
    assert found.outputs == {"y": "float32 (batch, 4)"}
    assert operators.unsupported(graph) == [], operators.unsupported(graph)
    assert max(apart(path, model, n) for n in (1, 2, 5)) < 1e-5
    if importlib.util.find_spec("onnxslim"):
        try:
            slim = simplify.simplify(graph)
        except ValueError as e:                 # onnxslim 0.1.98 turns the padding of the strided one around
            assert name == "strided" and "another function" in str(e)
            continue
        onnx.save(slim, path)
        assert max(apart(path, model, n) for n in (1, 2, 5)) < 1e-5
        assert len(slim.graph.node) < len(graph.graph.node) / 2
two = keras.Input((4,))
both = keras.Model([two, keras.Input((4,))], two * 2)
try:
    export_keras.export_keras(both, sys.argv[1] + "/both.onnx")
except ValueError as e:
    print("refused:", e)
"""


@NEEDS_KERAS
def test_a_keras_model_goes_all_the_way_to_a_runner(tmp_path):
    done = subprocess.run([sys.executable, "-c", PATH_OF_A_MODEL, str(tmp_path)], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused: model: got 2 inputs and 1 outputs, expected one of each" in done.stdout


def test_another_backend_is_refused(monkeypatch):
    stand_in = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "jax"))
    monkeypatch.setitem(sys.modules, "keras", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(RuntimeError, match="got the backend 'jax', expected 'torch'; restart the process"):
        export_keras.keras_on_torch()


def test_without_keras_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"Keras is not installed.*\.\[keras\]"):
        export_keras.keras_on_torch()
