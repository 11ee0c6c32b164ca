"""A whole graph in FP16: the same function to FP16's ten bits, its interface FP32, other types untouched."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import SIZE
from onnx import TensorProto, helper, numpy_helper
from test_qdq import _images

from trtkit import calib, half, qdq, quant


def _run(model: onnx.ModelProto, feed: dict) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type by tensor, by ONNX's own inference, which fails where types do not fit together."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return types | {i.name: i.data_type for i in graph.initializer}


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: dict[str, int]) -> onnx.ModelProto:
    """images (batch, 4, 8, 8) and index (2,) to what the nodes compute, on three axes."""
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4, 8, 8]),
              helper.make_tensor_value_info("index", TensorProto.INT64, [2])]
    outs = [helper.make_tensor_value_info(name, kind, [None] * 3) for name, kind in outputs.items()]
    graph = helper.make_graph(nodes, "g", inputs, outs, [numpy_helper.from_array(v, n) for n, v in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def mixed() -> onnx.ModelProto:
    """Operators whose inputs are not all data, tensors that are no floats, constants of every kind, and a Cast."""
    node, rng = helper.make_node, np.random.default_rng(0)
    return _graph([
        node("Conv", ["images", "w", "b"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Clip", ["c", "low", "high"], ["clipped"], "clip"),
        node("Clip", ["clipped", "", "high"], ["clipped2"], "clip_above"),
        node("Resize", ["clipped2", "", "scales"], ["large"], "resize", mode="nearest"),
        node("Pad", ["large", "pads", "fill"], ["padded"], "pad"),
        node("Shape", ["images"], ["shape"], "shape"),
        node("Gather", ["shape", "zero"], ["n"], "batch", axis=0),
        node("Concat", ["n", "rest"], ["target"], "target", axis=0),
        node("Reshape", ["padded", "target"], ["flat"], "reshape"),
        node("Gather", ["flat", "index"], ["taken"], "gather", axis=2),
        node("Cast", ["index"], ["index_f"], "cast", to=TensorProto.FLOAT),
        node("Reshape", ["index_f", "column"], ["index_c"], "reshape2"),
        node("Add", ["taken", "index_c"], ["sum"], "add"),
        node("Constant", [], ["k"], "constant", value=numpy_helper.from_array(np.float32(0.5))),
        node("Identity", ["k0"], ["copy"], "copy"),
        node("Mul", ["sum", "k"], ["scaled"], "mul"),
        node("Mul", ["scaled", "copy"], ["y"], "mul2"),
        node("TopK", ["y", "three"], ["best", "where"], "topk", axis=1),
        node("Greater", ["y", "k"], ["is_large"], "greater"),
        node("Where", ["is_large", "y", "k"], ["kept"], "choose"),
    ], {
        "w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32),
        "low": np.float32(-2), "high": np.float32(3), "scales": np.float32([1, 1, 2, 2]),
        "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "fill": np.float32(0.25), "zero": np.int64([0]),
        "rest": np.int64([4, -1]), "column": np.int64([1, 1, 2]), "k0": np.float32([[[2.0]]]), "three": np.int64([3]),
    }, {"best": TensorProto.FLOAT, "where": TensorProto.INT64, "kept": TensorProto.FLOAT, "y": TensorProto.FLOAT})


def test_yolo_runs_in_fp16_throughout_and_is_half_as_large(yolo_graph):
    model = onnx.load(yolo_graph)
    small = half.to_fp16(model)
    types = _types(small)
    interface = {v.name for v in (*small.graph.input, *small.graph.output)}
    assert {types[n] for n in interface} == {TensorProto.FLOAT}
    single = {out for node in small.graph.node for out in node.output if types[out] == TensorProto.FLOAT}
    scales = {n.input[2] for n in small.graph.node if n.op_type == "Resize"}        # FP32, whatever is resized
    assert single == {o.name for o in small.graph.output} | scales
    weighted = [n for n in small.graph.node if n.op_type == "Conv"]
    assert len(weighted) == 75 and {types[i] for n in weighted for i in n.input} == {TensorProto.FLOAT16}
    assert [n.op_type for n in small.graph.node if n.op_type == "Cast"] == ["Cast"] * 4     # in once, out per head
    assert small.ByteSize() < 0.52 * model.ByteSize()
    assert not [i.name for i in small.graph.initializer if i.data_type == TensorProto.FLOAT]


def test_yolo_computes_the_same_in_fp16_to_its_ten_bits(yolo_graph):
    model = onnx.load(yolo_graph)
    feed = {"images": _images(1, SIZE, seed=3)}
    for expected, got in zip(_run(model, feed), _run(half.to_fp16(model), feed), strict=True):
        assert got.dtype == np.float32 and not np.array_equal(got, expected)
        assert quant.sqnr_db(expected, got) > 45        # one rounding to 11 bits: some 73 dB; a hundred in a row: 53


def test_settings_indices_and_booleans_keep_their_types(mixed):
    types = _types(half.to_fp16(mixed))
    single, integer, short = TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16
    assert {types[n] for n in ("images", "best", "kept", "y", "scales")} == {single}
    assert {types[n] for n in ("index", "shape", "n", "target", "where", "pads", "rest", "three")} == {integer}
    assert types["is_large"] == TensorProto.BOOL
    assert {types[n + "_fp16"] for n in ("c", "clipped", "large", "padded", "flat", "taken", "sum", "scaled", "y", "w",
                                         "b", "low", "high", "fill")} == {short}


def test_a_graph_with_all_of_them_computes_the_same_in_fp16(mixed):
    images = np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32) / 3
    feed = {"images": images, "index": np.int64([20, 40])}          # of 18 x 18, inside the padding
    before = mixed.SerializeToString()
    small = half.to_fp16(mixed)
    assert mixed.SerializeToString() == before
    expected, got = (dict(zip([o.name for o in m.graph.output], _run(m, feed), strict=True)) for m in (mixed, small))
    assert {n: a.dtype for n, a in got.items()} == {n: a.dtype for n, a in expected.items()}
    for name in ("best", "kept", "y"):
        np.testing.assert_allclose(got[name], expected[name], rtol=5e-3, atol=5e-3)
        assert not np.array_equal(got[name], expected[name])
    np.testing.assert_array_equal(got["where"], expected["where"])


def test_copies_of_constants_leave_no_identity_behind(mixed):
    assert not [n.name for n in half.to_fp16(mixed).graph.node if n.op_type == "Identity"]


@pytest.mark.parametrize(("value", "named"), [(7e4, "w"), (-7e4, "w"), (np.inf, "b"), (np.nan, "b")])
def test_a_weight_that_fp16_cannot_hold_is_named(mixed, value, named):
    tensor = next(i for i in mixed.graph.initializer if i.name == named)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[1] = value
    tensor.CopyFrom(numpy_helper.from_array(array, named))
    with pytest.raises(ValueError, match=rf"tensor '{named}': got magnitude .*, expected at most 65504"):
        half.to_fp16(mixed)


def test_the_largest_number_of_fp16_is_taken(mixed):
    tensor = next(i for i in mixed.graph.initializer if i.name == "b")
    tensor.CopyFrom(numpy_helper.from_array(np.float32([65504, -65504, 0, 1e-9]), "b"))
    got = next(i for i in half.to_fp16(mixed).graph.initializer if i.name == "b_fp16")
    assert numpy_helper.to_array(got).tolist() == [65504, -65504, 0, 0]


def test_a_graph_with_pairs_is_refused_with_the_way_out(yolo_graph):
    model = onnx.load(yolo_graph)
    table = {n: calib.Range(-1, 1) for n in qdq.activation_names(model)}
    with pytest.raises(ValueError, match=r"got QuantizeLinear '.*', expected a float graph.*rest='fp16'"):
        half.to_fp16(qdq.insert_qdq(model, table, target="trt"))
