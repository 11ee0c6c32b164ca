"""A float graph becomes one with explicit Q/DQ. Lesson 06.

A QuantizeLinear/DequantizeLinear pair on a tensor says: here, these 8-bit codes flow. A backend that finds DQ -> Conv
-> Q runs the convolution in integers. Where the pairs go depends on the target, see `placement`; so do the numbers:

target="cpu" (ONNX Runtime): affine UINT8 activations, INT8 weights. U8 x S8 is what VNNI multiplies; S8 x S8 costs 1.7
    times as much.
target="trt" (TensorRT): symmetric INT8 activations and weights.

How weights and biases are stored is in `qdq_nodes`. Source: TensorRT developer guide, "Explicit Quantization"; ORT's
documentation, "Quantize ONNX models".
"""

import fnmatch
from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from trtkit import quant
from trtkit.calib import Range
from trtkit.half import run_in_fp16
from trtkit.placement import CPU_OPS, JOINS, TARGETS, WEIGHTED, Placement, data_inputs, place, shared_ranges
from trtkit.qdq_nodes import pair, quantize_weights
from trtkit.wiring import Wiring, fold_identities, wiring

RESTS = ("fp32", "fp16")


def activation_names(model: onnx.ModelProto) -> list[str]:
    """Tensors that `insert_qdq` may need a range for, for either target, in the order in which they are computed.

    Graph inputs, and what operators of `placement.CPU_OPS` write; and what Conv, Gemm, MatMul, Add, Mul and Concat
    read, whoever wrote it. Only FP32 tensors: shapes and indices have no range.
    """
    wires = wiring(model)
    needed = {node.input[i] for node in wires.nodes if node.op_type in (*WEIGHTED, *JOINS) for i in data_inputs(node)}
    needed.update(out for node in wires.nodes if node.op_type in CPU_OPS for out in node.output)
    computed = [out for node in wires.nodes for out in node.output if out in needed]
    return [name for name in (*wires.inputs, *computed) if wires.is_activation(name)]


def conv_names(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions, in the order in which they run."""
    return [node.name for node in model.graph.node if node.op_type == "Conv"]


def weighted_names(model: onnx.ModelProto) -> list[str]:
    """Names of what `insert_qdq` quantizes and `skip` matches: Conv, Gemm and MatMul, in the order they run."""
    return [node.name for node in model.graph.node if node.op_type in WEIGHTED]


def head_convs(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that write a graph output; they usually stay float."""
    outputs = {o.name for o in model.graph.output}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and outputs & set(node.output)]


def insert_qdq(
    model: onnx.ModelProto,
    table: Mapping[str, Range],
    *,
    target: str,
    skip: Iterable[str] = (),
    rest: str = "fp32",
) -> onnx.ModelProto:
    """A copy of the graph with explicit Q/DQ.

    Args:
        model: FP32, BatchNorm folded, no Q/DQ yet; its Conv, Gemm and MatMul nodes have names.
        table: a range for each of `activation_names(model)` that gets a pair.
        target: "cpu" or "trt".
        skip: names of Conv, Gemm and MatMul nodes that stay float, or patterns such as "/head*/predict/Conv".
        rest: "fp16" runs the skipped nodes, and activations behind them, in FP16 between Casts.

    Returns:
        The quantized copy.

    Raises:
        ValueError: unknown target or rest, a graph that has Q/DQ, BatchNormalization or nodes without a name, a skip
            that matches nothing, a tensor without a range or with one that is zero, NaN or infinite.
    """
    _check(model, target, rest)
    skipped = _match(skip, weighted_names(model))
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    fold_identities(quantized.graph)
    graph, wires = quantized.graph, wiring(quantized)
    placement = place(wires, target, set(weighted_names(model)) - skipped, table)
    qparams = _activation_qparams(wires, placement, table, target)

    nodes: list[onnx.NodeProto] = []
    extra: list[onnx.TensorProto] = []
    for name in wires.inputs:
        if name in qparams:
            nodes += pair(name, qparams[name], extra)
    for node in wires.nodes:
        source = list(node.input)
        for i, name in enumerate(source):
            if (node.output[0], i) in placement.reads:
                node.input[i] = name + "_dq"
        if node.op_type in WEIGHTED and node.name not in skipped:
            nodes += quantize_weights(node, source, wires, qparams.get(source[0]), target, extra)
        nodes.append(node)
        for out in node.output:
            if out in qparams:
                nodes += pair(out, qparams[out], extra)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(extra)
    if rest == "fp16":
        run_in_fp16(graph, skipped)
    _drop_unused(graph)
    onnx.checker.check_model(quantized)
    return quantized


def _check(model: onnx.ModelProto, target: str, rest: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {TARGETS}")
    if rest not in RESTS:
        raise ValueError(f"rest: got {rest!r}, expected one of {RESTS}")
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ValueError(f"model: got {node.op_type} {node.name!r}, expected a float graph; start from the export")
        if node.op_type == "BatchNormalization":
            raise ValueError(f"model: got BatchNormalization {node.name!r}, expected it folded; use export.export_onnx")
    if half := [i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16]:
        raise ValueError(f"model: got FP16 tensor {half[0]!r}, expected an FP32 graph; insert Q/DQ first, with "
                         "rest='fp16' for what stays float")
    names = weighted_names(model)
    if doubtful := [name for name in names if not name or names.count(name) > 1]:
        raise ValueError(f"model: got {len(doubtful)} Conv, Gemm or MatMul nodes without a name of their own (first "
                         f"{doubtful[0]!r}), expected unique names; set node.name = node.output[0]")


def _match(patterns: Iterable[str], names: list[str]) -> set[str]:
    matched = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ValueError(f"skip: got {pattern!r}, expected the name of a Conv, Gemm or MatMul or a pattern, such "
                             f"as {names[0] if names else 'none in this graph'!r}; see qdq.weighted_names")
        matched.update(found)
    return matched


def _activation_qparams(
    wires: Wiring, placement: Placement, table: Mapping[str, Range], target: str
) -> dict[str, quant.QParams]:
    order = [*wires.inputs, *(out for node in wires.nodes for out in node.output)]
    sources = {placement.source(name) for name in placement.paired}
    if missing := [name for name in order if name in sources and name not in table]:
        raise ValueError(f"table: got no range for tensor {missing[0]!r} and {len(missing) - 1} others of "
                         f"{len(sources)}; was it made for another graph? Collect qdq.activation_names")
    for name in sources:
        r = table[name]
        if r.low == r.high == 0:
            raise ValueError(f"tensor {name!r}: got the range 0 to 0, expected values; it was zero on every "
                             "calibration image: calibrate with more, or skip the layer that reads it")
        if not (np.isfinite([r.low, r.high]).all() and r.low <= 0 <= r.high):
            raise ValueError(f"tensor {name!r}: got the range {r.low} to {r.high}, expected finite low <= 0 <= high; "
                             "calibrate again, see calib.ranges")
    ranges = shared_ranges(wires, placement, table, target)
    if target == "cpu":
        return {name: quant.affine_qparams(r.low, r.high) for name, r in ranges.items()}
    return {name: quant.symmetric_qparams(r.amax) for name, r in ranges.items()}


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop what nothing reads any more: pairs whose readers are all float, and old weights."""
    used = {o.name for o in graph.output}
    keep = []
    for node in reversed(graph.node):                       # readers come after writers
        constant = node.op_type in ("Constant", "QuantizeLinear", "DequantizeLinear")
        if not constant or node.output[0] in used:
            used.update(node.input)
            keep.append(node)
    nodes, initializers = keep[::-1], [i for i in graph.initializer if i.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
