"""The table of operators against the parser that is here, and graphs that it refuses until they are lowered."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper

from trtkit import engine, eras, lowering, operators
from trtkit.engine import BackendError, BuildConfig

if WHY := engine.available()["trt"]:
    pytest.skip(f"no TensorRT on a GPU: {WHY}", allow_module_level=True)

from trtkit import backend_trt, cuda

CONFIG = BuildConfig(batch=(1, 1, 2), optimization_level=1, timing_cache=False)
# TensorRT 8.6 denies these three to ONNX Runtime alone, which asks in this way; it parses them.
DENIED = {"NonMaxSuppression", "NonZero", "RoiAlign"}


def gelu() -> onnx.ModelProto:
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4, 8, 8]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Gelu", ["x"], ["y"], name="only")], "g", io[:1], io[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_the_parser_knows_what_the_table_says():
    trt = backend_trt.trt
    era = eras.era_of(trt)
    if era not in operators.READS:
        pytest.skip(f"no table of TensorRT {era}")
    names = {s.name for s in defs.get_all_schemas_with_history() if s.domain == ""}
    with cuda.primary_context():
        builder = trt.Builder(backend_trt.LOGGER)
        network = builder.create_network(backend_trt._network_flags())
        parser = trt.OnnxParser(network, backend_trt.LOGGER)
        known = {n for n in names if parser.supports_operator(n)}
        del parser, network, builder
    assert known - DENIED == operators.READS[era] - DENIED


def test_what_the_table_refuses_the_parser_refuses_and_the_lowered_graph_is_built(tmp_path):
    if eras.era_of(backend_trt.trt) != "8.6":
        pytest.skip("newer parsers read Gelu")
    model = gelu()
    onnx.save(model, tmp_path / "gelu.onnx")
    with pytest.raises(BackendError, match=r"Gelu|opset"):
        engine.build(tmp_path / "gelu.onnx", CONFIG, backend="trt")
    onnx.save(lowering.lower(model), tmp_path / "lowered.onnx")
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    with engine.load(engine.build(tmp_path / "gelu.onnx", backend="ort")) as runner:
        expected = runner.infer({"x": x})["y"]
    with engine.load(engine.build(tmp_path / "lowered.onnx", CONFIG, backend="trt")) as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], expected, atol=1e-4)
