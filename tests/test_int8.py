"""Integer arithmetic against ONNX Runtime's own integer kernels, bit for bit, on shapes that nobody chose."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trtkit import int8, machine, quant

TYPES = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}
# Without VNNI, x86 kernels add two U8 x S8 products in 16 bits: 2 * 255 * 64 still fits. U8 weights are exact anywhere.
S8_LIMIT = 127 if machine.has_vnni() else 64


def _ort(op, feeds, out_dtype, domain="", **attributes):
    """One node, run by ONNX Runtime: every feed an input, in order; a name starting with _ is left out."""
    kinds = {**TYPES, np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
    used = {name: np.asarray(value) for name, value in feeds.items() if value is not None}
    inputs = [name if name in used else "" for name in feeds]
    while inputs[-1] == "":
        inputs.pop()
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], domain=domain, **attributes)],
        op,
        [helper.make_tensor_value_info(n, kinds[v.dtype], v.shape) for n, v in used.items()],
        [helper.make_tensor_value_info("y", TYPES[np.dtype(out_dtype)], None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, used)[0]


def _activation(rng, signed):
    low, high = -rng.uniform(0, 4), rng.uniform(0.1, 4)
    return quant.affine_qparams(low, high, signed=signed)


def _codes(rng, q, shape, limit=None):
    low, high = (q.qmin, q.qmax + 1) if limit is None else (-limit, limit + 1)
    return rng.integers(low, high, shape).astype(q.dtype)


def _weights(rng, shape, axis, signed, per_channel):
    """Codes and parameters: S8 symmetric, per channel where asked, or U8 affine with a zero point of its own."""
    if not signed:
        q = quant.affine_qparams(-rng.uniform(0.1, 1), rng.uniform(0.1, 1))
        return _codes(rng, q, shape), q
    channels = axis if per_channel else None
    q = quant.symmetric_qparams(rng.uniform(0.1, 2, shape[axis]) if per_channel else 0.7, axis=channels)
    return _codes(rng, q, shape, S8_LIMIT), q


def _result(rng, sums_scale, signed):
    """A range of the result that most sums fall into and some do not, so that both ends saturate."""
    width = float(sums_scale * rng.uniform(0.3, 2))
    return quant.affine_qparams(-width * rng.uniform(0, 1), width, signed=signed)


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 9), st.integers(1, 70), st.integers(1, 40), *[st.booleans()] * 3, st.integers(0, 2))
def test_matmul_equals_onnxruntime_bit_for_bit(seed, m, k, n, signed_a, signed_b, per_column, batch_dims):
    rng = np.random.default_rng(seed)
    q_a = _activation(rng, signed_a)
    if q_a.dtype == np.int8:
        signed_b = True                                     # ORT has no S8 x U8 product
    a = _codes(rng, q_a, (*(2, 3)[:batch_dims], m, k))
    b, q_b = _weights(rng, (k, n), 1, signed_b, per_column)
    q_y = _result(rng, q_a.scale * q_b.scale.max() * 60 * 60 * np.sqrt(k), signed_a)
    expected = _ort("QLinearMatMul", {
        "a": a, "a_scale": q_a.scale, "a_zero": q_a.zero_point, "b": b, "b_scale": q_b.scale, "b_zero": q_b.zero_point,
        "y_scale": q_y.scale, "y_zero": q_y.zero_point}, q_y.dtype)
    got = int8.int8_matmul(a, b, q_a, q_b, q_y)
    assert got.dtype == q_y.dtype
    np.testing.assert_array_equal(got, expected)


@given(seeds, st.integers(1, 9), st.integers(1, 70), st.integers(1, 40), st.booleans(), st.booleans())
def test_gemm_with_bias_equals_onnxruntime_bit_for_bit(seed, m, k, n, signed, per_column):
    rng = np.random.default_rng(seed)
    q_a = _activation(rng, signed)
    a = _codes(rng, q_a, (m, k))
    b, q_b = _weights(rng, (k, n), 1, True, per_column)
    q_y = _result(rng, q_a.scale * q_b.scale.max() * 60 * 60 * np.sqrt(k), signed)
    bias = rng.integers(-30_000, 30_000, n).astype(np.int32)
    expected = _ort("QGemm", {
        "a": a, "a_scale": q_a.scale, "a_zero": q_a.zero_point, "b": b, "b_scale": q_b.scale, "b_zero": q_b.zero_point,
        "c": bias, "y_scale": q_y.scale, "y_zero": q_y.zero_point}, q_y.dtype, "com.microsoft")
    np.testing.assert_array_equal(int8.int8_matmul(a, b, q_a, q_b, q_y, bias), expected)


@given(
    seeds,
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),      # N, C / g, C_out / g, g
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4)),    # H, W, kH, kW
    st.tuples(st.integers(1, 3), st.integers(1, 3)),                                            # stride, dilation
    st.tuples(*[st.integers(0, 3)] * 4),
    *[st.booleans()] * 4,
)
def test_conv2d_equals_onnxruntime_bit_for_bit(
    seed, channels, sizes, steps, padding, signed_x, signed_w, per_channel, with_bias
):
    rng = np.random.default_rng(seed)
    (n, c, c_out, groups), (height, width, k_h, k_w), (stride, dilation) = channels, sizes, steps
    height, width = (max(size, dilation * (k - 1) + 1) for size, k in ((height, k_h), (width, k_w)))
    q_x = _activation(rng, signed_x)
    x = _codes(rng, q_x, (n, c * groups, height, width))
    w, q_w = _weights(rng, (c_out * groups, c, k_h, k_w), 0, signed_w or signed_x, per_channel)
    q_y = _result(rng, q_x.scale * q_w.scale.max() * 60 * 60 * np.sqrt(c * k_h * k_w), signed_x)
    bias = rng.integers(-30_000, 30_000, c_out * groups).astype(np.int32) if with_bias else None
    expected = _ort("QLinearConv", {
        "x": x, "x_scale": q_x.scale, "x_zero": q_x.zero_point, "w": w, "w_scale": q_w.scale, "w_zero": q_w.zero_point,
        "y_scale": q_y.scale, "y_zero": q_y.zero_point, "bias": bias}, q_y.dtype,
        strides=[stride] * 2, dilations=[dilation] * 2, pads=list(padding), group=groups)
    got = int8.int8_conv2d(x, w, q_x, q_w, q_y, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    assert got.dtype == q_y.dtype
    np.testing.assert_array_equal(got, expected)


def test_depthwise_convolution_of_a_layer_s_size_equals_onnxruntime(rng):
    q_x, q_y = quant.affine_qparams(-1, 3), quant.affine_qparams(-4, 4)
    x = _codes(rng, q_x, (1, 32, 26, 26))
    w, q_w = _weights(rng, (32, 1, 3, 3), 0, True, True)
    expected = _ort("QLinearConv", {
        "x": x, "x_scale": q_x.scale, "x_zero": q_x.zero_point, "w": w, "w_scale": q_w.scale, "w_zero": q_w.zero_point,
        "y_scale": q_y.scale, "y_zero": q_y.zero_point}, q_y.dtype, pads=[1] * 4, group=32)
    np.testing.assert_array_equal(int8.int8_conv2d(x, w, q_x, q_w, q_y, padding=1, groups=32), expected)


@given(seeds, st.booleans())
def test_sums_at_the_edge_between_two_codes_round_as_in_onnxruntime(seed, convolution):
    """Scales that put every sum within float32's rounding of k + 1/2: any other order or width of arithmetic shows."""
    rng = np.random.default_rng(seed)
    q_a = quant.symmetric_qparams(rng.uniform(0.1, 9))
    q_y = quant.affine_qparams(-rng.uniform(1, 9), rng.uniform(1, 9), signed=True)
    a, b = _codes(rng, q_a, (1, 30), 127), _codes(rng, q_a, (30, 400), S8_LIMIT)
    sums = (a.astype(int) @ b)[0]
    sums[sums == 0] = 1
    scale = np.abs((rng.integers(0, 60, 400) + 0.5) * q_y.scale / (sums * q_a.scale))
    q_b = quant.QParams(scale.astype(np.float32), np.zeros(400, np.int8), -127, 127, 1)
    names = {"scale_a": q_a.scale, "zero_a": q_a.zero_point}
    if convolution:
        x, w = a.reshape(1, 30, 1, 1), np.ascontiguousarray(b.T).reshape(400, 30, 1, 1)
        q_w = quant.QParams(q_b.scale, q_b.zero_point, -127, 127, 0)
        expected = _ort("QLinearConv", {"x": x, **names, "w": w, "scale_w": q_w.scale, "zero_w": q_w.zero_point,
                                        "scale_y": q_y.scale, "zero_y": q_y.zero_point}, np.int8)
        got = int8.int8_conv2d(x, w, q_a, q_w, q_y)
    else:
        expected = _ort("QLinearMatMul", {"a": a, **names, "b": b, "scale_b": q_b.scale, "zero_b": q_b.zero_point,
                                          "scale_y": q_y.scale, "zero_y": q_y.zero_point}, np.int8)
        got = int8.int8_matmul(a, b, q_a, q_b, q_y)
    np.testing.assert_array_equal(got, expected)


def test_multiplying_codes_is_multiplying_values_up_to_half_a_step(rng):
    """Against float64 arithmetic on the values that the codes stand for."""
    q_a, q_b = quant.affine_qparams(-1, 2), quant.symmetric_qparams(np.ones(5), axis=1)
    a, b = _codes(rng, q_a, (7, 33)), _codes(rng, q_b, (33, 5), 127)
    exact = quant.dequantize(a, q_a).astype(np.float64) @ quant.dequantize(b, q_b)
    q_y = quant.affine_qparams(exact.min(), exact.max())
    error = np.abs(quant.dequantize(int8.int8_matmul(a, b, q_a, q_b, q_y), q_y) - exact)
    assert error.max() <= q_y.scale * 1.001                 # the rounded zero point may clip an end by half a step


def test_ties_of_requantization_go_to_the_even_code():
    q = quant.affine_qparams(0, 255)                        # scale 1, zero point 0
    acc = np.array([1, 3, 5, 510, 511], np.int32)
    assert int8.requantize(acc, np.float32(0.5), q).tolist() == [0, 2, 2, 255, 255]


Q = quant.symmetric_qparams(1.0)
A, B = np.ones((2, 3), np.int8), np.ones((3, 4), np.int8)
X, W = np.ones((1, 2, 4, 4), np.int8), np.ones((6, 2, 3, 3), np.int8)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: int8.int8_matmul(A, A, Q, Q, Q), "same K"),
        (lambda: int8.int8_matmul(A[0], B, Q, Q, Q), "same K"),
        (lambda: int8.int8_matmul(A.astype(np.uint8), B, Q, Q, Q), "a: got uint8"),
        (lambda: int8.int8_matmul(A.astype(np.float32), B, Q, Q, Q), "a: got float32"),
        (lambda: int8.int8_matmul(A, B, quant.symmetric_qparams(np.ones(3), axis=1), Q, Q), "q_a: got axis=1"),
        (lambda: int8.int8_matmul(A, B, Q, quant.symmetric_qparams(np.ones(3), axis=0), Q), "weights: got axis=0"),
        (lambda: int8.int8_matmul(A, B, Q, quant.symmetric_qparams(np.ones(5), axis=1), Q), "5 scales, expected 4"),
        (lambda: int8.int8_matmul(A, B, Q, Q, Q, np.ones(4)), r"bias: got float64 \(4,\)"),
        (lambda: int8.int8_matmul(A, B, Q, Q, Q, np.ones(3, np.int32)), "bias: got int32"),
        (lambda: int8.int8_matmul(np.full((1, 140_000), -127, np.int8), np.full((140_000, 1), 127, np.int8), Q, Q, Q),
         "split the inner dimension"),
        (lambda: int8.int8_matmul(A, B, quant.symmetric_qparams(1e38), quant.symmetric_qparams(1e38), Q), "scales"),
        (lambda: int8.int8_conv2d(X, W, Q, Q, Q, groups=2), "groups=2"),
        (lambda: int8.int8_conv2d(X[0], W, Q, Q, Q), "x, w: got shapes"),
        (lambda: int8.int8_conv2d(X, W, Q, Q, Q, dilation=2), "spans"),
        (lambda: int8.int8_conv2d(X, W, Q, Q, Q, stride=0), "stride"),
        (lambda: int8.int8_conv2d(X, W, Q, Q, Q, padding=-1), "padding"),
        (lambda: int8.int8_conv2d(X, W, Q, Q, Q, np.ones(6)), "bias: got float64"),
        (lambda: int8.int8_conv2d(X, W, Q, quant.symmetric_qparams(np.ones(2), axis=1), Q), "weights: got axis=1"),
        (lambda: int8.int8_conv2d(X, W, Q, Q, quant.symmetric_qparams(np.ones(6), axis=1)), "q_y: got axis=1"),
    ],
)
def test_wrong_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_an_empty_batch_gives_an_empty_result():
    assert int8.int8_matmul(A[:0], B, Q, Q, Q).shape == (0, 4)
    assert int8.int8_conv2d(X[:0], W, Q, Q, Q).shape == (0, 6, 2, 2)
