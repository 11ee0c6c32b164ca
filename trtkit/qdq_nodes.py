"""The nodes that Q/DQ is made of: pairs on activations, codes of weights and biases. Lesson 06.

Weights are symmetric INT8 per output channel for both targets. For the CPU a bias becomes INT32 with
scale = scale_x * scale_w, so that it adds to the sums of products as it is; for TensorRT it stays float.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit import quant
from trtkit.wiring import Wiring, channel_axis


def _constants(name: str, q: quant.QParams, extra: list[onnx.TensorProto]) -> list[str]:
    extra.append(numpy_helper.from_array(np.asarray(q.scale, np.float32), name + "_scale"))
    extra.append(numpy_helper.from_array(np.asarray(q.zero_point, q.zero_point.dtype), name + "_zero_point"))
    return [name + "_scale", name + "_zero_point"]


def pair(name: str, q: quant.QParams, extra: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Q and DQ behind the tensor `name`, which write "<name>_q" and "<name>_dq"; their constants go to `extra`."""
    constants = _constants(name, q, extra)
    return [
        helper.make_node("QuantizeLinear", [name, *constants], [name + "_q"], name + "_QuantizeLinear"),
        helper.make_node("DequantizeLinear", [name + "_q", *constants], [name + "_dq"], name + "_DequantizeLinear"),
    ]


def quantize_weights(
    node: onnx.NodeProto,
    source: list[str],
    wires: Wiring,
    q_x: quant.QParams | None,
    target: str,
    extra: list[onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """Store the codes of a node's weights (and for the CPU its bias) and read them through DQ.

    Args:
        node: Conv, Gemm or MatMul; its inputs are changed. Gemm and MatMul may compute both, and have no weights then.
        source: names of its inputs in the float graph.
        wires: of the float graph.
        q_x: parameters of its first input, None where that is constant.
        target: "cpu" or "trt".
        extra: takes the codes, scales and zero points.

    Returns:
        The DequantizeLinear nodes to put before it.

    Raises:
        ValueError: a convolution that computes its weights or bias, or NaN or infinity in them.
    """
    constants = wires.constants
    if node.op_type == "Conv" and (missing := [name for name in source[1:] if name and name not in constants]):
        raise ValueError(f"model: {node.name!r} reads {missing[0]!r}, expected weights and bias as initializers of the "
                         "graph; fold constants first, or name the convolution in skip")
    bias = constants.get(source[2]) if len(source) > 2 else None            # (C_out,)
    added = []
    for i in (0, 1):
        if source[i] not in constants:
            continue
        weight = constants[source[i]]                                       # Conv: (C_out, C_in, kH, kW)
        _require_finite(node, "weights", weight)
        _require_finite(node, "bias", bias)
        axis = channel_axis(node, i, weight.ndim)
        others = tuple(a for a in range(weight.ndim) if a != axis)
        amax = np.asarray(np.abs(weight).max(axis=others), np.float64)
        int32_bias = target == "cpu" and q_x is not None and bias is not None and bias.shape == amax.shape
        if int32_bias:
            # INT32 codes of a bias count in steps of scale_x * scale_w. In a channel whose weights are (almost) zero
            # that step is too fine and the bias would clip: such a channel gets the scale that puts its bias at 2^30.
            amax = np.maximum(amax, 127 * np.abs(bias) / (q_x.scale.astype(np.float64) * 2**30))
        q_w = quant.symmetric_qparams(amax, axis=axis)
        # Two nodes may share a tensor (the exporter merges equal ones) but not its scale: name it after the node.
        added.append(_dequantized_constant(f"{node.name}.weight{i if i != 1 else ''}", quant.quantize(weight, q_w),
                                           q_w, extra))
        node.input[i] = added[-1].output[0]
        if int32_bias:
            scale = (q_x.scale.astype(np.float64) * q_w.scale).astype(np.float32)
            q_b = quant.QParams(scale, np.zeros(scale.shape, np.int32), -(2**31), 2**31 - 1, 0)
            codes = np.rint(bias / scale.astype(np.float64)).astype(np.int32)
            added.append(_dequantized_constant(f"{node.name}.bias", codes, q_b, extra))
            node.input[2] = added[-1].output[0]
    return added


def _require_finite(node: onnx.NodeProto, what: str, array: np.ndarray | None) -> None:
    if array is not None and not np.isfinite(array).all():
        raise ValueError(f"{what} of {node.name!r}: got NaN or infinity, expected finite numbers; train it again")


def _dequantized_constant(
    name: str, codes: np.ndarray, q: quant.QParams, extra: list[onnx.TensorProto]
) -> onnx.NodeProto:
    extra.append(numpy_helper.from_array(codes, name + "_codes"))
    constants = _constants(name, q, extra)
    return helper.make_node(
        "DequantizeLinear", [name + "_codes", *constants], [name + "_dq"], name + "_DequantizeLinear", axis=q.axis or 0
    )
