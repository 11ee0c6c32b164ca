"""Where pairs must stand, must not, or must agree: the rules of `lint` that ask who reads whom. Lesson 06."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from trtkit.placement import (
    ACTIVATIONS,
    MOVERS,
    WEIGHTED,
    before_leaky,
    behind_activation,
    data_inputs,
    from_weighted,
    fusable,
    larger_than_1x1,
)
from trtkit.wiring import Wiring

Q, DQ = "QuantizeLinear", "DequantizeLinear"
CHANNELS = 32               # TensorRT packs INT8 channels by 32


@dataclass(frozen=True)
class Fault:
    """`rule` by name, `level` of severity, `where` (a node), `found` (got, expected), and the `fix`."""

    rule: str
    level: Literal["error", "warning", "note"]
    where: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.level} {self.rule}: {self.where}: {self.found}. Fix: {self.fix}."


def quantizers(wires: Wiring) -> list[onnx.NodeProto]:
    """All Q and DQ nodes."""
    return [node for node in wires.nodes if node.op_type in (Q, DQ)]


def parameters(wires: Wiring, node: onnx.NodeProto) -> tuple[np.ndarray | None, np.ndarray]:
    """Scale (None where it is computed) and zero point of a Q or DQ; UINT8 0 where it has none, as ONNX has it."""
    zero_point = wires.constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero_point is None:
        codes = codes_of(wires, node)
        zero_point = np.zeros((), np.uint8 if codes is None else codes.dtype)
    return wires.constants.get(node.input[1]), zero_point


def codes_of(wires: Wiring, node: onnx.NodeProto) -> np.ndarray | None:
    """The constant that a Q or DQ reads, None where it reads an activation."""
    return wires.constants.get(node.input[0])


def _dq_behind(wires: Wiring, name: str) -> onnx.NodeProto | None:
    """The DQ that a tensor comes from, seen through operators that only move numbers."""
    node = wires.writer.get(name)
    while node is not None and node.op_type in (*MOVERS, "Cast"):
        node = wires.writer.get(node.input[0])
    return node if node is not None and node.op_type == DQ else None


def _quantized(wires: Wiring) -> set[str]:
    return {node.name for node in wires.nodes
            if node.op_type in WEIGHTED and all(_dq_behind(wires, name) for name in node.input[:2])}


def _batchnorm(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in wires.nodes:
        if node.op_type == "BatchNormalization":
            yield Fault("batchnorm", "error", node.name, "BatchNormalization is not folded: weights were quantized "
                        "without its factors", "fold it before Q/DQ: export.export_onnx, or fold_batchnorm")


def _missing_half(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in quantizers(wires):
        readers = wires.readers.get(node.output[0], [])
        source = wires.writer.get(node.input[0])
        if node.op_type == Q:
            others = [r for r in readers if r.op_type != DQ]
            if others or not readers:
                who = f"{others[0].op_type} {others[0].name!r}" if others else "nothing"
                yield Fault("missing_dq", "error", node.name, f"its codes are read by {who}, expected DequantizeLinear",
                            "put a DequantizeLinear with the same scale behind it")
        elif codes_of(wires, node) is None and node.input[0] not in wires.inputs and source.op_type != Q:
            yield Fault("missing_q", "error", node.name, f"it reads {source.op_type} {source.name!r}, expected codes",
                        "put a QuantizeLinear with the same scale before it")
        elif source is not None and source.op_type == Q and not _agree(wires, [source, node]):
            yield Fault("pair_mismatch", "error", node.name, f"its scale or zero_point is not that of {source.name!r}",
                        "give both halves of a pair the same constants")


def _agree(wires: Wiring, nodes: list[onnx.NodeProto]) -> bool:
    scales, zero_points = zip(*(parameters(wires, node) for node in nodes), strict=True)
    return all(s is not None and np.array_equal(s, scales[0], equal_nan=True) for s in scales) and all(
        np.array_equal(z, zero_points[0]) for z in zero_points)


def _half_quantized(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in wires.nodes:
        if node.op_type not in WEIGHTED:
            continue
        behind = [_dq_behind(wires, name) for name in node.input[:2]]
        if sum(dq is None for dq in behind) == 1:
            name = node.input[behind.index(None)]
            rule = "float_weight" if name in wires.constants else "float_input"
            yield Fault(rule, "error", node.name, f"it reads {name!r} in float and the other input in codes, so it "
                        "runs in float", "put a pair on both inputs, or on none")


def _before_activation(wires: Wiring, target: str) -> Iterator[Fault]:
    """TensorRT fuses an activation; ORT a Relu. A pair in between stops that, and spends codes on what Relu drops.

    Before a LeakyRelu it helps TensorRT, if it has the scale of what stands behind: see `_leaky_relu`.
    """
    kinds = ACTIVATIONS if target == "trt" else ("Relu",)
    for q in quantizers(wires):
        if q.op_type != Q or wires.writer_type(q.input[0]) not in WEIGHTED:
            continue
        readers = [r for dq in wires.readers.get(q.output[0], ()) for r in wires.readers.get(dq.output[0], ())]
        stopped = [r for r in readers if r.op_type in kinds and not _helps(wires, q, r)]
        # On the CPU other readers may need these codes; the Relu then has its own.
        if stopped and (target == "trt" or len(readers) == len(stopped)):
            yield Fault("before_activation", "warning", q.name, f"a pair stands between {wires.writer_type(q.input[0])}"
                        f" and {stopped[0].op_type} {stopped[0].name!r}", "move the pair behind the activation")


def _helps(wires: Wiring, q: onnx.NodeProto, activation: onnx.NodeProto) -> bool:
    """Whether a pair before a LeakyRelu is one that `placement` would put there."""
    behind = wires.readers.get(activation.output[0], [])
    if activation.op_type != "LeakyRelu" or not behind:
        return False
    if [r.op_type for r in behind] == ["Add"]:
        return True
    return larger_than_1x1(wires, q.input[0]) and all(r.op_type == Q and _agree(wires, [q, r]) for r in behind)


def _leaky_relu(wires: Wiring, target: str) -> Iterator[Fault]:
    """TensorRT's fast INT8 kernels end in codes or a Relu; one that ends in a LeakyRelu takes up to four times as long.

    Of 1x1 convolutions only those into an Add count: there a pair need only be moved. Where values reach far below
    zero, it stands behind on purpose (`placement.FAR`): the graph does not tell.
    """
    quantized = _quantized(wires)
    for node in wires.nodes if target == "trt" else ():
        before = before_leaky(wires, node.output[0], quantized)
        pairs = wires.readers.get(node.output[0], [])
        if not before or not pairs or any(q.op_type != Q for q in pairs):
            continue
        ends = [r for q in pairs for dq in wires.readers.get(q.output[0], ())
                for r in wires.readers.get(dq.output[0], ())]
        into_add = [r.op_type for r in ends] == ["Add"] and not any(
            fusable(wires, name, quantized) for name in ends[0].input)
        if into_add or larger_than_1x1(wires, before):
            yield Fault("leaky_relu", "warning", node.name, "got a pair behind it alone, expected one before it: no "
                        f"fast kernel computes {wires.writer_type(before)} and LeakyRelu in one",
                        "move the pair before the LeakyRelu" if into_add else "put a pair of the same scale before it, "
                        "unless that clips much below zero")


def _residual(wires: Wiring, target: str) -> Iterator[Fault]:
    """A convolution that writes to the Add takes it over and reads the shortcut's codes; any other Add reads both."""
    quantized = _quantized(wires)
    for node in wires.nodes if target == "trt" else ():
        if node.op_type != "Add" or not all(wires.is_activation(name) for name in node.input):
            continue
        paired = [wires.writer_type(_before_leaky_relu(wires, name)) == DQ for name in node.input]
        sources = [_before_pair(wires, name) for name in node.input]
        # A pair that others read too is there anyhow.
        fused = [fusable(wires, source, quantized) and len(wires.readers[name]) == 1
                 for source, name in zip(sources, node.input, strict=True)]
        found = fix = ""
        if not any(paired) and any(from_weighted(wires, name, quantized) for name in sources):
            found = "no input, expected it on the shortcut: the Add reads it in float"
            fix = "put a pair on the shortcut"
        elif all(paired) and any(fused):
            found = "both inputs, expected one: the Add cannot fuse into the convolution before it"
            fix = "keep the pair on the shortcut, drop the other"
        elif sum(paired) == 1 and sum(fused) == 1 and fused[paired.index(True)]:
            found = "the convolution's output, expected it on the shortcut: the Add cannot fuse into that convolution"
            fix = "move the pair to the other input"
        elif sum(paired) == 1 and behind_activation(wires, sources[paired.index(False)], quantized):
            found = ("one input, expected both: behind an activation the Add is a kernel of its own, and must convert "
                     "the codes to the other input's floats")
            fix = "put a pair on the other input too"
        if found:
            yield Fault("residual", "warning", node.name, f"got Q/DQ on {found}", fix)


def _before_leaky_relu(wires: Wiring, name: str) -> str:
    """What the LeakyRelu reads that writes a tensor; the tensor itself where none does."""
    return wires.writer[name].input[0] if wires.writer_type(name) == "LeakyRelu" else name


def _before_pair(wires: Wiring, name: str) -> str:
    """The float tensor that a DQ's codes were made from; the tensor itself where it is no such thing."""
    if wires.writer_type(name) != DQ or wires.writer_type(wires.writer[name].input[0]) != Q:
        return name
    return wires.writer[wires.writer[name].input[0]].input[0]


def _requantized(wires: Wiring, target: str) -> Iterator[Fault]:
    """Different scales on both sides of an operator that copies codes: it must requantize or run in float."""
    for node in wires.nodes:
        if node.op_type not in ((*MOVERS, "Concat") if target == "trt" else MOVERS):
            continue
        data = [node.input[i] for i in data_inputs(node)]
        around = [wires.writer[name] for name in data if wires.writer_type(name) == DQ]
        # TensorRT moves a Q up through the operator: one on a tensor that is read in float meets it there.
        floats = data if target == "trt" else ()
        around += [r for name in (*floats, *node.output) for r in wires.readers.get(name, ()) if r.op_type == Q]
        if around and not _agree(wires, around):
            scales = sorted({float(s.flat[0]) for s, _ in (parameters(wires, n) for n in around) if s is not None})
            yield Fault("requantized", "warning", node.name, f"got scales {', '.join(f'{s:.4g}' for s in scales)} "
                        f"around {node.op_type}, expected one", "give all of them the widest range")


def _twice(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in quantizers(wires):
        if node.op_type == Q and wires.writer_type(node.input[0]) == DQ:
            yield Fault("twice", "warning", node.name, f"it reads {wires.writer[node.input[0]].name!r}: the tensor is "
                        "quantized twice", "drop one of the two pairs")


def _channels(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in wires.nodes if target == "trt" else ():
        dq = wires.writer.get(node.input[1]) if node.op_type == "Conv" else None
        codes = codes_of(wires, dq) if dq is not None and dq.op_type == DQ else None
        if codes is not None and (odd := [c for c in codes.shape[:2] if c % CHANNELS]):
            yield Fault("channels", "note", node.name, f"got {odd[0]} channels, expected a multiple of {CHANNELS}: "
                        "TensorRT pads the rest with zeros", "choose or prune to a multiple, or leave it in FP16")


PLACES = (_batchnorm, _missing_half, _half_quantized, _before_activation, _leaky_relu, _residual, _requantized, _twice,
          _channels)
