"""The graphs whose engines `tests/bench/latency.py` compares."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from latency import GRAPHS, graphs, half_interface


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    makers = graphs(0.25, tmp_path_factory.mktemp("work"))
    assert tuple(makers) == GRAPHS
    return {name: make() for name, make in makers.items()}


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"images": x})


def test_a_half_interface_changes_the_type_at_the_border_alone(models):
    before, after = models["fp16"], models["fp16, half interface"]
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node if n.op_type != "Cast"]
    x = np.random.default_rng(0).random((1, 3, 416, 416), np.float32)
    for wide, narrow in zip(run(before, x), run(after, x.astype(np.float16)), strict=True):
        assert narrow.dtype == np.float16
        np.testing.assert_allclose(narrow, wide, atol=2e-3 * np.abs(wide).max())
    onnx.checker.check_model(half_interface(before), full_check=True)


def test_the_others_are_what_their_names_say(models):
    kinds = {name: [n.op_type for n in model.graph.node] for name, model in models.items()}
    assert [n for n in GRAPHS if "LeakyRelu" not in kinds[n]] == ["fp16, relu"]
    assert [n for n in GRAPHS if "SpaceToDepth" in kinds[n]] == ["fp16, blocks", "int8, blocks"]
    assert [n for n in GRAPHS if "QuantizeLinear" in kinds[n]] == [n for n in GRAPHS if n.startswith("int8")]
    halves = {name: sum(i.data_type == onnx.TensorProto.FLOAT16 and len(i.dims) == 4 for i in model.graph.initializer)
              for name, model in models.items() if name.startswith("int8")}
    assert halves == {"int8": 4, "int8, blocks": 3, "int8, stem": 3, "int8, stem, heads": 0}


def test_one_image_is_all_that_a_fixed_graph_takes(models):
    x = np.random.default_rng(0).random((2, 3, 416, 416), np.float32)
    for fixed, any_number in zip(run(models["fp16, one"], x[:1]), run(models["fp16"], x[:1]), strict=True):
        np.testing.assert_array_equal(fixed, any_number)
    with pytest.raises(Exception, match="invalid dimensions"):
        run(models["fp16, one"], x)
