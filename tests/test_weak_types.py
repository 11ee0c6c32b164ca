import numpy as np
import onnx
import onnxruntime as ort
import pytest

from trtkit import half, precision, qdq
from trtkit.calib import Range
from trtkit.weak_types import FLOATS, asks, lower


@pytest.fixture(scope="module")
def graphs(yolo_graph):
    """Q/DQ beside FP16 heads and stem; FP16 alone; FP32."""
    model = onnx.load(yolo_graph)
    table = {name: Range(-6.0, 6.0) for name in qdq.activation_names(model)}
    skip = [*qdq.head_convs(model), qdq.conv_names(model)[0]]
    return {"mixed": qdq.insert_qdq(model, table, target="trt", skip=skip, rest="fp16"),
            "fp16": half.to_fp16(model), "fp32": model, "skipped": skip}


def _run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x})


def test_a_mixture_becomes_fp32_with_the_same_pairs_and_the_names_of_what_was_fp16(graphs):
    lowered, in_half = lower(graphs["mixed"])
    assert in_half == set(graphs["skipped"])
    assert not precision.has_half(lowered)
    assert not [n for n in lowered.graph.node if n.op_type == "Cast" and n.attribute[0].i in FLOATS]
    for kind in ("QuantizeLinear", "DequantizeLinear", "Conv"):
        count = [sum(n.op_type == kind for n in m.graph.node) for m in (lowered, graphs["mixed"])]
        assert count[0] == count[1] > 0
    onnx.checker.check_model(lowered, full_check=True)
    assert [o.name for o in lowered.graph.output] == [o.name for o in graphs["mixed"].graph.output]


def test_it_computes_the_same_but_for_fp16s_rounding(graphs, rng):
    x = rng.random((1, 3, 96, 96), dtype=np.float32)
    for got, expected in zip(_run(lower(graphs["mixed"])[0], x), _run(graphs["mixed"], x), strict=True):
        assert np.abs(got - expected).max() <= 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_what_does_not_mix_is_left_as_it_is_and_fp16_is_asked_for(graphs, name):
    lowered, in_half = lower(graphs[name])
    assert lowered is graphs[name]
    convolutions = {node.name for node in graphs[name].graph.node if node.op_type == "Conv"}
    assert in_half == (convolutions if name == "fp16" else set())


def test_the_argument_is_not_changed(graphs):
    before = graphs["mixed"].SerializeToString()
    lower(graphs["mixed"])
    assert graphs["mixed"].SerializeToString() == before


def test_only_fp16_alone_is_tried_by_its_flag_first(graphs):
    first_nothing = [asks(graphs[name], lower(graphs[name])[1])[0] == set() for name in ("mixed", "fp16", "fp32")]
    assert first_nothing == [False, True, True]
    assert [len(asks(graphs[name], lower(graphs[name])[1])) for name in ("mixed", "fp16", "fp32")] == [1, 2, 1]
