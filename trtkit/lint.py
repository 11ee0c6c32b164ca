"""What is wrong with a Q/DQ graph? Lesson 06.

A misplaced pair is no error to a backend: it runs, only slower or less exactly than it could. So somebody has to look.
`lint` asks every rule, of numbers here and of places in `lint_rules`, and says what to do about each finding.
Left out on purpose: ranges that are too wide or too narrow. They need data; see `sensitivity.tensor_sqnr`.

Source: TensorRT developer guide, "Q/DQ Layer-Placement Recommendations".
"""

from collections.abc import Iterator

import numpy as np
import onnx

from trtkit.lint_rules import PLACES, Fault, codes_of, parameters, quantizers
from trtkit.placement import TARGETS, WEIGHTED
from trtkit.wiring import Wiring, channel_axis, wiring

MIN_CODES = 16              # of 127: a channel that uses fewer has lost three of its seven bits


def lint(model: onnx.ModelProto, target: str) -> list[Fault]:
    """Faults of a graph with explicit Q/DQ, for the backend that shall run it.

    Args:
        model: from `qdq.insert_qdq` or any other tool.
        target: "cpu" for ONNX Runtime, "trt" for TensorRT.

    Returns:
        The faults, rule by rule, in the order of the graph; empty where all is well. Level "error": wrong results or
        no build. "warning": slower or less exact than need be. "note": worth knowing, may be fine.

    Raises:
        ValueError: unknown target.
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {TARGETS}")
    wires, numbers = wiring(model), (_scale, _zero_point, _axis, _per_tensor, _bias)
    return [fault for rule in (*numbers, *PLACES) for fault in rule(wires, target)]


def _scale(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in quantizers(wires):
        scale, _ = parameters(wires, node)
        if scale is None:
            yield Fault("scale", "error", node.name, f"the scale {node.input[1]!r} is computed, expected a constant",
                        "store the scale as an initializer")
        elif not (np.isfinite(scale) & (scale > 0)).all():
            bad = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
            yield Fault("scale", "error", node.name, f"got scale {bad:g}, expected finite numbers above 0",
                        "calibrate again; a tensor that was zero on every image stays float")


def _zero_point(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in quantizers(wires) if target == "trt" else ():
        _, zero_point = parameters(wires, node)
        if zero_point.dtype == np.uint8 or (zero_point != 0).any():
            yield Fault("zero_point", "error", node.name,
                        f"got {zero_point.dtype} zero_point {int(zero_point.flat[np.argmax(zero_point != 0)])}, "
                        "expected INT8 with 0; TensorRT has no other",
                        "quantize symmetrically: insert_qdq(..., target='trt')")


def _axis(wires: Wiring, target: str) -> Iterator[Fault]:
    """One scale per channel leaves the sum over products only if it is the output channel."""
    for node in quantizers(wires):
        scale, _ = parameters(wires, node)
        if scale is None or scale.size == 1:
            continue
        codes = codes_of(wires, node)
        if codes is None:
            yield Fault("axis", "error", node.name, f"got {scale.size} scales for an activation, expected one",
                        "quantize activations per tensor")
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % codes.ndim
        if scale.size != codes.shape[axis]:
            yield Fault("axis", "error", node.name, f"got {scale.size} scales for {codes.shape[axis]} channels on axis "
                        f"{axis}", "make one scale per output channel")
            continue
        for reader in wires.readers.get(node.output[0], ()):
            i = list(reader.input).index(node.output[0])
            if reader.op_type in WEIGHTED and i < 2 and axis != channel_axis(reader, i, codes.ndim):
                yield Fault("axis", "error", node.name, f"got scales along axis {axis}, expected axis "
                            f"{channel_axis(reader, i, codes.ndim)}, {reader.op_type} {reader.name!r}'s output "
                            "channels", "quantize weights per output channel; rewrite axis, scales and codes")


def _per_tensor(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in wires.nodes:
        dq = wires.writer.get(node.input[1]) if node.op_type in WEIGHTED else None
        codes = codes_of(wires, dq) if dq is not None and dq.op_type == "DequantizeLinear" else None
        axis = None if codes is None else channel_axis(node, 1, codes.ndim)
        scale = None if axis is None else parameters(wires, dq)[0]
        if scale is None or scale.size != 1 or codes.shape[axis] == 1:
            continue
        largest = np.abs(codes.astype(np.int32)).max(axis=tuple(a for a in range(codes.ndim) if a != axis))
        if (few := int(((largest > 0) & (largest < MIN_CODES)).sum())):
            yield Fault("per_tensor", "warning", dq.name, f"got one scale for {len(largest)} channels, of which {few} "
                        f"use fewer than {MIN_CODES} of 127 codes", "quantize weights per output channel")


def _bias(wires: Wiring, target: str) -> Iterator[Fault]:
    for node in wires.nodes:
        if node.op_type not in WEIGHTED or len(node.input) < 3:
            continue
        x, w, b = (wires.writer.get(name) for name in node.input)
        if b is None or b.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            continue
        if target == "trt":
            yield Fault("bias", "warning", b.name, f"got Q/DQ on the bias of {node.name!r}, expected none: TensorRT "
                        "adds it in float", "store the bias as float")
            continue
        scales = [parameters(wires, n)[0] for n in (x, w, b) if n is not None and n.op_type == "DequantizeLinear"]
        if len(scales) == 3 and not any(s is None for s in scales):
            expected = scales[0] * scales[1]
            if expected.shape != scales[2].shape or not np.allclose(expected, scales[2], rtol=1e-4, atol=0):
                yield Fault("bias", "error", b.name, f"got the bias of {node.name!r} in steps of "
                            f"{scales[2].flat[0]:.3g}, expected scale_x * scale_w = {expected.flat[0]:.3g}",
                            "quantize the bias again whenever either scale changes")
