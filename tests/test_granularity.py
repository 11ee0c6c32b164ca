"""Scales per tensor, channel and group, from 2 to 8 bits. ONNX's blocked QuantizeLinear is the oracle for groups."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from trtkit import granularity, quant

FLOATS = st.floats(-1e6, 1e6, width=32)


def _ort_blocked(x, q, code):
    """QuantizeLinear and DequantizeLinear of opset 21 with a block size, run by ONNX Runtime."""
    zero = helper.make_tensor("zero", code, q.scale.shape, q.zero_point.ravel().astype(int).tolist())
    attributes = {"axis": q.axis, "block_size": q.group_size} if q.group_size else {"axis": q.axis or 0}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **attributes),
        ],
        "blocked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [numpy_helper.from_array(q.scale, "scale"), zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([(0, 2), (1, 4), (1, 12), (2, 3), (2, 1)]),
       st.sampled_from([(8, True), (8, False), (4, True), (4, False)]))
def test_groups_equal_onnxruntime_bit_for_bit(seed, group, kind):
    (axis, size), (bits, signed) = group, kind
    x = np.random.default_rng(seed).normal(0, 3, (4, 12, 6)).astype(np.float32)
    code = getattr(TensorProto, f"{'' if signed else 'U'}INT{bits}")
    affine = quant.affine_qparams(*granularity.reduce_range(x, axis=axis, group_size=size), axis=axis, group_size=size,
                                  bits=bits, signed=signed)
    np.testing.assert_array_equal(quant.fake_quantize(x, affine), _ort_blocked(x, affine, code))
    if signed:
        # Up to the largest value itself: beyond it ONNX would go on to -8 or -128, and we stay symmetric.
        amax = granularity.reduce_amax(x, axis=axis, group_size=size)
        symmetric = quant.symmetric_qparams(amax, axis=axis, group_size=size, bits=bits)
        np.testing.assert_array_equal(quant.fake_quantize(x, symmetric), _ort_blocked(x, symmetric, code))


@given(arrays(np.float32, (3, 4), elements=FLOATS), st.sampled_from([None, 0, 1]), st.sampled_from([4, 8]))
def test_affine_per_channel_equals_onnxruntime_bit_for_bit(x, axis, bits):
    q = quant.affine_qparams(*granularity.reduce_range(x, axis=axis), axis=axis, bits=bits)
    code = TensorProto.UINT8 if bits == 8 else TensorProto.UINT4
    np.testing.assert_array_equal(quant.fake_quantize(x, q), _ort_blocked(x, q, code))


@pytest.mark.parametrize(("axis", "group_size", "shape"), [
    (None, None, ()), (0, None, (4,)), (1, None, (6,)), (-1, None, (2,)), (1, 3, (4, 2, 2)), (-2, 2, (4, 3, 2)),
    (0, 4, (1, 6, 2)), (2, 1, (4, 6, 2)),
])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_granularity_and_width(axis, group_size, shape, bits, rng):
    """No value is off by more than half a step of its own scale, and every code fits its bits."""
    x = rng.normal(size=(4, 6, 2)).astype(np.float32)
    amax = granularity.reduce_amax(x, axis=axis, group_size=group_size)
    low, high = granularity.reduce_range(x, axis=axis, group_size=group_size)
    assert amax.shape == low.shape == high.shape == shape
    for q in (
        quant.symmetric_qparams(amax, axis=axis, group_size=group_size, bits=bits),
        quant.affine_qparams(low, high, axis=axis, group_size=group_size, bits=bits),
        quant.affine_qparams(low, high, axis=axis, group_size=group_size, bits=bits, signed=True),
    ):
        assert q.scale.shape == q.zero_point.shape == shape and q.scale.dtype == np.float32
        codes = quant.quantize(x, q)
        assert codes.dtype == q.dtype and q.qmax - q.qmin < 2**bits
        assert q.qmin <= codes.min() and codes.max() <= q.qmax
        scale = granularity.spread(q.scale, x.shape, axis, group_size)
        error = np.abs(quant.dequantize(codes, q) - x)
        assert (error <= scale * (0.5001 if q.zero_point.max() == q.zero_point.min() == 0 else 1.0001)).all()


def test_finer_scales_lose_less_where_channels_differ(rng):
    x = rng.normal(size=(8, 64)).astype(np.float32) * 2.0 ** np.arange(8)[:, None].astype(np.float32)

    def db(axis, group_size=None):
        q = quant.symmetric_qparams(granularity.reduce_amax(x, axis=axis, group_size=group_size), axis=axis,
                                    group_size=group_size, bits=4)
        error = np.square(quant.fake_quantize(x, q) - x).sum(1) / np.square(x).sum(1)
        return -10 * np.log10(error.mean())

    assert db(1, 16) > db(0) + 1 > db(None) + 5


def test_int4_keeps_the_range_symmetric_and_uint4_uses_all_codes():
    x = np.array([-9.0, -7.0, 3.5, 7.0, 9.0], np.float32)
    assert quant.quantize(x, quant.symmetric_qparams(7.0, bits=4)).tolist() == [-7, -7, 4, 7, 7]
    assert quant.quantize(x, quant.affine_qparams(-7.0, 8.0, bits=4)).tolist() == [0, 0, 11, 14, 15]
    assert quant.quantize(x, quant.affine_qparams(-7.0, 8.0, bits=4, signed=True)).tolist() == [-8, -8, 3, 6, 7]


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-40, 3e38])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_constant_tensors_survive_in_every_granularity(value, bits):
    x = np.full((2, 4), value, np.float32)
    for axis, group_size in ((None, None), (0, None), (1, 2)):
        low, high = granularity.reduce_range(x, axis=axis, group_size=group_size)
        amax = granularity.reduce_amax(x, axis=axis, group_size=group_size)
        for q in (quant.symmetric_qparams(amax, axis=axis, group_size=group_size, bits=bits),
                  quant.affine_qparams(low, high, axis=axis, group_size=group_size, bits=bits)):
            assert np.isfinite(q.scale).all() and (q.scale > 0).all()
            np.testing.assert_allclose(quant.fake_quantize(x, q), x, rtol=1e-6, atol=1e-38)


def test_one_element_and_float16():
    for x in (np.array(2.5, np.float16), np.array([[2.5]], np.float16), np.array([-65504], np.float16)):
        q = quant.symmetric_qparams(granularity.reduce_amax(x))
        assert q.scale.dtype == np.float32
        np.testing.assert_allclose(quant.fake_quantize(x, q), x.astype(np.float32), rtol=1e-6)


X = np.ones((4, 6), np.float32)
GROUPS = quant.symmetric_qparams(np.ones((4, 2)), axis=1, group_size=3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: granularity.reduce_amax(X[:0]), r"shape \(0, 6\)"),
        (lambda: granularity.reduce_amax(X, axis=2), "axis 2 for shape"),
        (lambda: granularity.reduce_amax(X, axis=-3), "axis -3"),
        (lambda: granularity.reduce_amax(np.float32(1), axis=0), "axis 0"),
        (lambda: granularity.reduce_amax(X, group_size=2), "axis: got None"),
        (lambda: granularity.reduce_amax(X, axis=1, group_size=4), r"\[1, 2, 3, 6\]"),
        (lambda: granularity.reduce_amax(X, axis=1, group_size=0), "group_size: got 0"),
        (lambda: granularity.reduce_amax(np.array([1, np.nan])), r"x\[1\]: got nan"),
        (lambda: granularity.reduce_range(np.array([np.inf, 1])), r"x\[0\]: got inf"),
        (lambda: quant.symmetric_qparams(np.ones((4, 2)), group_size=3), "axis=None, group_size=3"),
        (lambda: quant.symmetric_qparams(np.ones((4, 2)), axis=1), r"shape \(4, 2\) with axis=1"),
        (lambda: quant.symmetric_qparams(1.0, bits=1), "bits: got 1"),
        (lambda: quant.symmetric_qparams(1.0, bits=16), "bits: got 16"),
        (lambda: quant.affine_qparams(0, 1, bits=4.0), "bits: got 4.0"),
        (lambda: quant.affine_qparams(np.zeros(2), np.ones(3), axis=0), "the same"),
        (lambda: quant.affine_qparams(np.array([0, 2]), np.ones(2), axis=0), "got 2.0, 1.0"),
        (lambda: quant.affine_qparams(np.array([0, np.nan]), np.ones(2), axis=0), "low, high"),
        (lambda: quant.quantize(X[:, :4], GROUPS), "groups of 3|group_size"),
        (lambda: quant.quantize(X[:2], GROUPS), r"\(2, 2\) groups of 3 on axis 1, expected \(4, 2\)"),
        (lambda: quant.dequantize(np.ones((3, 6), np.int8), GROUPS), "groups of 3"),
        (lambda: quant.quantize(X, quant.symmetric_qparams(np.ones(4), axis=-3)), "axis -3"),
    ],
)
def test_wrong_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
