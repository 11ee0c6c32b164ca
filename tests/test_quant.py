import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper

from trtkit import quant

FLOATS = st.floats(-1e6, 1e6, width=32)
EXTREME = st.floats(-(2.0**127), 2.0**127, width=32)


def _ort_round_trip(axis):
    """ONNX's own definition, run by ORT: x -> QuantizeLinear -> DequantizeLinear, for U8 and S8."""
    sessions = {}
    for code in (TensorProto.UINT8, TensorProto.INT8):
        shape = [] if axis is None else ["c"]
        graph = helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=axis or 0),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=axis or 0),
            ],
            "round_trip",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
                helper.make_tensor_value_info("scale", TensorProto.FLOAT, shape),
                helper.make_tensor_value_info("zero", code, shape),
            ],
            [
                helper.make_tensor_value_info("q", code, None),
                helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        sessions[np.dtype(np.uint8 if code == TensorProto.UINT8 else np.int8)] = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(x, q):
        return sessions[q.dtype].run(None, {"x": x, "scale": q.scale, "zero": q.zero_point})

    return run


PER_TENSOR, PER_CHANNEL = _ort_round_trip(None), _ort_round_trip(1)


@given(arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=FLOATS), FLOATS, FLOATS)
def test_affine_uint8_equals_onnxruntime_bit_for_bit(x, a, b):
    q = quant.affine_qparams(min(a, b), max(a, b))          # a range that has nothing to do with x, so much saturates
    codes, values = PER_TENSOR(x, q)
    np.testing.assert_array_equal(quant.quantize(x, q), codes)
    np.testing.assert_array_equal(quant.fake_quantize(x, q), values)


@given(arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=FLOATS))
def test_symmetric_int8_equals_onnxruntime_bit_for_bit(x):
    q = quant.symmetric_qparams(np.abs(x).max())
    codes, values = PER_TENSOR(x, q)
    np.testing.assert_array_equal(quant.quantize(x, q), codes)
    np.testing.assert_array_equal(quant.fake_quantize(x, q), values)


@given(arrays(np.float32, (2, 5, 3), elements=FLOATS))
def test_per_channel_int8_equals_onnxruntime_bit_for_bit(x):
    q = quant.symmetric_qparams(np.abs(x).max(axis=(0, 2)), axis=1)
    codes, values = PER_CHANNEL(x, q)
    np.testing.assert_array_equal(quant.quantize(x, q), codes)
    np.testing.assert_array_equal(quant.fake_quantize(x, q), values)


@given(arrays(np.float32, 16, elements=EXTREME))
def test_scales_are_finite_and_positive_for_any_float32(x):
    for q in (quant.symmetric_qparams(np.abs(x).max()), quant.affine_qparams(x.min(), x.max())):
        assert q.scale.dtype == np.float32 and np.isfinite(q.scale) and q.scale > 0
        assert np.isfinite(quant.fake_quantize(x, q)).all()


@given(arrays(np.float32, 32, elements=FLOATS))
def test_error_inside_the_range_is_at_most_half_a_step(x):
    for q in (quant.symmetric_qparams(np.abs(x).max()), quant.affine_qparams(x.min(), x.max())):
        error = np.abs(x.astype(np.float64) - quant.fake_quantize(x, q))
        # A rounded zero point may move the affine range's ends by half a step; 1e-4 steps is float32's own rounding.
        allowed = q.scale * (0.5 + 1e-4) if q.qmin < 0 else q.scale * (1 + 1e-4)
        assert error.max() <= allowed
        inside = (x > (q.qmin - q.zero_point + 0.0) * q.scale) & (x < (q.qmax - q.zero_point + 0.0) * q.scale)
        assert (error[inside] <= q.scale * (0.5 + 1e-4)).all()


@given(FLOATS, FLOATS)
def test_zero_is_exact_in_any_affine_range(a, b):
    q = quant.affine_qparams(min(a, b), max(a, b))
    assert quant.fake_quantize(np.zeros(3, np.float32), q).tolist() == [0, 0, 0]
    assert q.qmin <= q.zero_point <= q.qmax


def test_ties_round_to_the_even_code():
    q = quant.symmetric_qparams(127.0)                      # scale exactly 1
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5], np.float32)
    assert quant.quantize(x, q).tolist() == [0, 2, 2, 0, -2, -2, 126]


def test_values_beyond_the_range_saturate_and_minus_128_stays_unused():
    x = np.array([-1e9, -2.0, 2.0, 1e9], np.float32)
    assert quant.quantize(x, quant.symmetric_qparams(1.0)).tolist() == [-127, -127, 127, 127]
    assert quant.quantize(x, quant.affine_qparams(-1, 1)).tolist() == [0, 0, 255, 255]


def test_negating_a_tensor_negates_its_symmetric_codes(rng):
    x = rng.normal(size=1000).astype(np.float32)
    q = quant.symmetric_qparams(2.0)
    np.testing.assert_array_equal(quant.quantize(-x, q), -quant.quantize(x, q))


def test_sqnr_of_a_full_scale_uniform_meets_the_closed_form(rng):
    """Signal a^2 / 3 over noise step^2 / 12 with step = 2a / 254: 20 log10(254) = 48.10 dB, for 254 steps over 2a."""
    x = rng.uniform(-1, 1, 400_000).astype(np.float32)
    got = quant.sqnr_db(x, quant.fake_quantize(x, quant.symmetric_qparams(1.0)))
    assert got == pytest.approx(20 * np.log10(2 * 127), abs=0.02)


def test_sqnr_of_a_known_noise():
    assert quant.sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 3.5])) == pytest.approx(20.0)
    assert quant.sqnr_db(np.ones(3), np.ones(3)) == np.inf
    with pytest.raises(ValueError, match="only zeros"):
        quant.sqnr_db(np.zeros(3), np.ones(3))
    for x, y, error in ((np.zeros((0, 3)), np.zeros((0, 3)), "at least one number"),
                        (np.ones(3), np.array([1, np.nan, 1]), r"x_quantized\[1\]: got nan"),
                        (np.array([np.inf, 1]), np.ones(2), r"x\[0\]: got inf")):
        with pytest.raises(ValueError, match=error):
            quant.sqnr_db(x, y)
    with pytest.raises(ValueError, match="shape"):
        quant.sqnr_db(np.zeros(3), np.ones(4))


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-30, 3e38])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_constant_tensors_survive(value, shape):
    x = np.full(shape, value, np.float32)
    for q in (quant.symmetric_qparams(abs(float(x.flat[0]))), quant.affine_qparams(x.min(), x.max())):
        got = quant.fake_quantize(x, q)
        assert got.shape == shape and got.dtype == np.float32
        np.testing.assert_allclose(got, x, rtol=1e-6)


def test_a_dead_channel_gets_scale_one_and_leaves_the_others_alone():
    q = quant.symmetric_qparams(np.array([0.0, 127.0]), axis=0)
    assert q.scale.tolist() == [1.0, 1.0]
    assert quant.fake_quantize(np.array([[0.0], [3.0]], np.float32), q).tolist() == [[0.0], [3.0]]


def test_an_empty_tensor_stays_empty():
    x = np.empty((0, 3), np.float32)
    assert quant.fake_quantize(x, quant.symmetric_qparams(1.0)).shape == (0, 3)


@given(arrays(np.float16, 8, elements=st.floats(-65504, 65504, width=16)))
def test_float16_gives_what_its_float32_copy_gives(x):
    q = quant.affine_qparams(x.min(), x.max())
    np.testing.assert_array_equal(quant.fake_quantize(x, q), quant.fake_quantize(x.astype(np.float32), q))
    assert np.isfinite(q.scale)


def test_the_argument_is_not_changed(rng):
    x = rng.normal(size=(4, 4)).astype(np.float32)
    before = x.copy()
    quant.fake_quantize(x, quant.symmetric_qparams(1.0))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_position(bad):
    x = np.array([0.0, 1.0, bad], np.float32)
    with pytest.raises(ValueError, match=r"x\[2\]"):
        quant.quantize(x, quant.symmetric_qparams(1.0))
    with pytest.raises(ValueError, match=r"amax\[2\]"):
        quant.symmetric_qparams(np.abs(x), axis=0)
    with pytest.raises(ValueError, match="low, high"):
        quant.affine_qparams(-1, bad)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: quant.symmetric_qparams(-1.0), "-1.0"),
        (lambda: quant.symmetric_qparams(1e300), "float32"),
        (lambda: quant.symmetric_qparams(np.ones(3)), "axis"),
        (lambda: quant.symmetric_qparams(1.0, axis=0), "axis"),
        (lambda: quant.affine_qparams(1, -1), "low <= high"),
        (lambda: quant.quantize(np.ones((2, 3)), quant.symmetric_qparams(np.ones(4), axis=0)), "4 channels on axis 0"),
        (lambda: quant.quantize(np.ones(4), quant.symmetric_qparams(np.ones(4), axis=1)), "axis 1"),
    ],
)
def test_wrong_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
