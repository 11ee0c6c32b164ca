"""Where do Q and DQ go? Lesson 06.

A QuantizeLinear/DequantizeLinear pair on a tensor says: here, these 8-bit codes flow. A backend that finds DQ -> Conv
-> Q runs the convolution in integers. Two targets want the pairs in different places:

target="cpu" (ONNX Runtime): affine UINT8 activations, INT8 weights; a pair on both sides of every operator, LeakyRelu
    included, since ORT has integer kernels for each and fuses none of them. U8 x S8 is what VNNI multiplies; S8 x S8
    costs 1.7 times as much. Biases become INT32 with scale = scale_x * scale_w.
target="trt" (TensorRT): symmetric INT8 activations, a pair at the inputs of convolutions only and at the residual
    input of an Add; none between a convolution and its activation, which TensorRT fuses. Biases stay float.

Weights are per output channel for both. Source: TensorRT developer guide, "Explicit Quantization"; ORT's
documentation, "Quantize ONNX models".
Left out so far: lint, sensitivity, MatMul and Gemm.
"""

import fnmatch
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit import quant
from trtkit.calib import Range

CPU_OPS = ("Conv", "LeakyRelu", "Add", "Concat", "Resize")
TARGETS = ("cpu", "trt")


def activation_names(model: onnx.ModelProto) -> list[str]:
    """Tensors that `insert_qdq` may need a range for, for either target: graph inputs and outputs of `CPU_OPS`."""
    outputs = [out for node in model.graph.node if node.op_type in CPU_OPS for out in node.output]
    return [i.name for i in model.graph.input] + outputs


def conv_names(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions, in the order in which they run."""
    return [node.name for node in model.graph.node if node.op_type == "Conv"]


def head_convs(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that write a graph output; they usually stay float."""
    outputs = {o.name for o in model.graph.output}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and outputs & set(node.output)]


def insert_qdq(
    model: onnx.ModelProto, table: Mapping[str, Range], *, target: str, skip: Iterable[str] = ()
) -> onnx.ModelProto:
    """A copy of the graph with explicit Q/DQ.

    Args:
        model: BatchNorm folded, named nodes, no Q/DQ yet.
        table: a range for each of `activation_names(model)` that gets a pair.
        target: "cpu" or "trt".
        skip: names of convolutions that stay float, or patterns such as "/head*/predict/Conv".

    Returns:
        The quantized copy.

    Raises:
        ValueError: unknown target, a graph that has Q/DQ or BatchNormalization, a skip that matches no convolution, or
            a tensor without a range.
    """
    _check(model, target)
    skipped = _match(skip, conv_names(model))
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    constants = _constant_tensors(graph)
    paired = _tensors_to_pair(graph, target, skipped)
    qparams = _activation_qparams(graph, paired, table, target)

    nodes: list[onnx.NodeProto] = []
    extra: list[onnx.TensorProto] = []
    for name in (i.name for i in graph.input):
        if name in qparams:
            nodes += _pair(name, qparams[name], extra)
    for node in graph.node:
        source = list(node.input)
        for i, name in enumerate(source):
            if name in qparams and _reads_codes(node, i, source, paired, target, skipped):
                node.input[i] = name + "_dq"
        if node.op_type == "Conv" and node.name not in skipped:
            nodes += _quantize_weights(node, source, constants, qparams[source[0]], target, extra)
        nodes.append(node)
        for out in node.output:
            if out in qparams:
                nodes += _pair(out, qparams[out], extra)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(extra)
    _drop_unused(graph)
    onnx.checker.check_model(quantized)
    return quantized


def _check(model: onnx.ModelProto, target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {TARGETS}")
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ValueError(f"model: got {node.op_type} {node.name!r}, expected a float graph; start from the export")
        if node.op_type == "BatchNormalization":
            raise ValueError(f"model: got BatchNormalization {node.name!r}, expected it folded; use export.export_onnx")


def _constant_tensors(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initializers by name, and by the names of their Identity copies: the exporter shares equal ones that way."""
    tensors = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
    return tensors


def _match(patterns: Iterable[str], names: list[str]) -> set[str]:
    matched = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ValueError(f"skip: got {pattern!r}, expected a convolution's name or a pattern, such as {names[0]!r}")
        matched.update(found)
    return matched


def _tensors_to_pair(graph: onnx.GraphProto, target: str, skipped: set[str]) -> set[str]:
    """Tensors that get a pair. A tensor that only float operators touch gets none."""
    feeds_conv = {n.input[0] for n in graph.node if n.op_type == "Conv" and n.name not in skipped}
    if target == "trt":
        return feeds_conv
    paired = set(feeds_conv)
    # An operator stays float when it is skipped, and an activation when what it reads is float.
    for node in graph.node:
        quantized_conv = node.op_type == "Conv" and node.name not in skipped
        if quantized_conv or (node.op_type == "LeakyRelu" and node.input[0] in paired):
            paired.update(node.output)
    # Adds, Concats and Resizes run in codes when all that they read are codes; a float branch is quantized where it
    # ends, at its activation, if the join's other branch is in codes.
    for node in graph.node:
        if node.op_type in ("Add", "Concat", "Resize"):
            data = [i for i in node.input if i] if node.op_type != "Resize" else [node.input[0]]
            if any(i in paired for i in data):
                paired.update(data)
                paired.update(node.output)
    return paired - {o.name for o in graph.output}


def _reads_codes(
    node: onnx.NodeProto, i: int, source: list[str], paired: set[str], target: str, skipped: set[str]
) -> bool:
    """Whether input i of the node is taken behind the pair. A float operator reads the float tensor."""
    if target == "cpu":
        return node.op_type in CPU_OPS and node.name not in skipped
    if node.op_type == "Conv":
        return node.name not in skipped
    # One input of a residual Add: the shortcut. The other comes from the convolution that TensorRT fuses the Add into.
    return node.op_type == "Add" and i == min(j for j, name in enumerate(source) if name in paired)


def _activation_qparams(
    graph: onnx.GraphProto, paired: set[str], table: Mapping[str, Range], target: str
) -> dict[str, quant.QParams]:
    qparams = {}
    for name in paired:
        if name not in table:
            raise ValueError(f"table: got no range for tensor {name!r}; collect it, see qdq.activation_names")
        r = table[name]
        try:
            qparams[name] = (
                quant.affine_qparams(r.low, r.high) if target == "cpu" else quant.symmetric_qparams(r.amax)
            )
        except ValueError as e:
            raise ValueError(f"tensor {name!r}: {e}") from e
    for node in graph.node:                 # nearest-neighbour resizing copies codes, so both sides share a scale
        if node.op_type == "Resize" and node.input[0] in qparams and node.output[0] in qparams:
            qparams[node.output[0]] = qparams[node.input[0]]
    return qparams


def _constants(name: str, q: quant.QParams, extra: list[onnx.TensorProto]) -> list[str]:
    extra.append(numpy_helper.from_array(np.asarray(q.scale, np.float32), name + "_scale"))
    extra.append(numpy_helper.from_array(np.asarray(q.zero_point, q.zero_point.dtype), name + "_zero_point"))
    return [name + "_scale", name + "_zero_point"]


def _pair(name: str, q: quant.QParams, extra: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    constants = _constants(name, q, extra)
    return [
        helper.make_node("QuantizeLinear", [name, *constants], [name + "_q"], name + "_QuantizeLinear"),
        helper.make_node("DequantizeLinear", [name + "_q", *constants], [name + "_dq"], name + "_DequantizeLinear"),
    ]


def _quantize_weights(
    node: onnx.NodeProto,
    source: list[str],
    constants: dict[str, np.ndarray],
    q_x: quant.QParams,
    target: str,
    extra: list[onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """Store the codes of a convolution's weights (and for the CPU its bias) and read them through DQ."""
    if missing := [name for name in source[1:] if name and name not in constants]:
        raise ValueError(f"model: {node.name!r} reads {missing[0]!r}, expected weights and bias as initializers of the "
                         "graph; fold constants first, or name the convolution in skip")
    weight = constants[source[1]]                                       # (C_out, C_in, kH, kW)
    bias = constants[source[2]] if len(source) > 2 else None            # (C_out,)
    for what, array in (("weights", weight), ("bias", bias)):
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{what} of {node.name!r}: got NaN or infinity, expected finite numbers; train it again")
    amax = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float64)
    if target == "cpu" and bias is not None:
        # INT32 codes of a bias count in steps of scale_x * scale_w. In a channel whose weights are (almost) zero that
        # step is too fine and the bias would clip, so such a channel gets the scale that puts its bias at 2^30.
        amax = np.maximum(amax, 127 * np.abs(bias) / (q_x.scale.astype(np.float64) * 2**30))
    q_w = quant.symmetric_qparams(amax, axis=0)
    # Two convolutions may share a tensor (the exporter merges equal ones) but not its scale: name it after the node.
    added = [_dequantized_constant(f"{node.name}.weight", quant.quantize(weight, q_w), q_w, extra)]
    node.input[1] = added[0].output[0]
    if target == "cpu" and bias is not None:
        scale = (q_x.scale.astype(np.float64) * q_w.scale).astype(np.float32)
        q_b = quant.QParams(scale, np.zeros(scale.shape, np.int32), -(2**31), 2**31 - 1, 0)
        codes = np.rint(bias / scale.astype(np.float64)).astype(np.int32)
        added.append(_dequantized_constant(f"{node.name}.bias", codes, q_b, extra))
        node.input[2] = added[1].output[0]
    return added


def _dequantized_constant(
    name: str, codes: np.ndarray, q: quant.QParams, extra: list[onnx.TensorProto]
) -> onnx.NodeProto:
    extra.append(numpy_helper.from_array(codes, name + "_codes"))
    constants = _constants(name, q, extra)
    return helper.make_node(
        "DequantizeLinear", [name + "_codes", *constants], [name + "_dq"], name + "_DequantizeLinear", axis=0
    )


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop what nothing reads any more: pairs whose readers are all float, copies of old weights, initializers."""
    used = {o.name for o in graph.output}
    keep = []
    for node in reversed(graph.node):                       # readers come after writers
        if node.op_type not in ("Identity", "QuantizeLinear", "DequantizeLinear") or node.output[0] in used:
            used.update(node.input)
            keep.append(node)
    nodes, initializers = keep[::-1], [i for i in graph.initializer if i.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
