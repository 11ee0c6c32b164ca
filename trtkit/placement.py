"""Which tensors flow as 8-bit codes, and who reads them so? Lesson 06.

target="cpu" (ONNX Runtime): a pair on both sides of every operator that has an integer kernel, LeakyRelu included,
    since ORT fuses none of them. Two exceptions: none before a Relu, which ORT drops since UINT8 codes clip at zero
    anyhow, and none between a MatMul and the constant that is added to it.
target="trt" (TensorRT): a pair at the inputs of Conv, Gemm and MatMul, and of a residual Add: on the shortcut, and on
    the other input too where an activation stands between the convolution and the Add, as in YOLOv3. The Add cannot
    be fused into the convolution then, so both should write and read 8 bits: measured on an H100, one pair per Add
    cost 23 conversions to FP16 and 0.06 ms of 0.85. No pair between a convolution and its activation, which TensorRT
    fuses, but for LeakyRelu: 8.6's fast INT8 kernels end in a Relu or in codes, and what ends in a LeakyRelu took up to
    four times as long. A pair before it, with the scale of its output, changes no code above zero and adds no layer to
    the engine. YOLOv3-416 on an H100, 32 images: 4.8 ms instead of 8.3
    (datasets/results/activation_yolov3_h100.json). It stands there only if all readers of the LeakyRelu read codes
    directly, none through a MaxPool or Concat. What lies below the negative of that range clips; in the trained
    detector the lowest is 1.5 times as far away, and where it is more than `FAR` times, there is no such pair. With a
    slope of 0.1 the codes -5, -15, -25 ... land midway between two codes, where the last bit decides: two backends
    may differ there, each as right as the other.
    Operators that only move numbers get none either: TensorRT moves a Q up through them, which is free where both
    sides share one scale.

Source: TensorRT developer guide, "Explicit Quantization"; ORT's documentation, "Quantize ONNX models". NVIDIA's advice
on LeakyRelu is the opposite, no pair before it (NVIDIA/TensorRT issue 2134, of 2022, for Turing and Ampere).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from trtkit.calib import Range
from trtkit.wiring import Wiring

TARGETS = ("cpu", "trt")
WEIGHTED = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid")
MOVERS = ("MaxPool", "Resize", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")   # codes in, same codes out
MEANS = ("GlobalAveragePool", "AveragePool")
JOINS = ("Add", "Mul", "Concat")
FAR = 2.0                   # a uniform tensor loses 11 dB at 1.5, the trained detector's bell-shaped ones nothing
CPU_OPS = (*WEIGHTED, *ACTIVATIONS, *MOVERS, *MEANS, *JOINS)


@dataclass(frozen=True)
class Placement:
    """`paired`: tensors that get a Q/DQ pair. `reads`: (first output of a node, index of its input) behind the pair.
    `scaled_as`: a paired tensor -> another one whose scale it takes."""

    paired: set[str]
    reads: set[tuple[str, int]]
    scaled_as: dict[str, str] = field(default_factory=dict)

    def source(self, name: str) -> str:
        """The tensor whose range a paired tensor takes, itself as a rule."""
        return self.scaled_as.get(name, name)


def data_inputs(node: onnx.NodeProto) -> list[int]:
    """Indices of the inputs that may carry codes; the others are shapes, axes, weights or biases."""
    if node.op_type in JOINS:
        return list(range(len(node.input)))
    return [0, 1] if node.op_type in ("Gemm", "MatMul") else [0]


def place(wires: Wiring, target: str, quantized: set[str], table: Mapping[str, Range]) -> Placement:
    """Where the pairs go.

    Args:
        wires: of a float graph.
        target: "cpu" or "trt".
        quantized: names of the Conv, Gemm and MatMul nodes that shall run in 8 bits.
        table: ranges; what is missing is not needed here.

    Returns:
        The placement; `qdq.insert_qdq` writes it into the graph. A pair whose readers all turn out float is no use.
    """
    feeds = {node.input[i] for node in wires.nodes if node.op_type in WEIGHTED and node.name in quantized
             for i in data_inputs(node) if wires.is_activation(node.input[i])}
    return _place_cpu(wires, feeds, quantized) if target == "cpu" else _place_trt(wires, feeds, quantized, table)


def _place_cpu(wires: Wiring, feeds: set[str], quantized: set[str]) -> Placement:
    paired = set(feeds)
    for node in wires.nodes:
        data = [node.input[i] for i in data_inputs(node) if i < len(node.input)]
        if node.op_type in WEIGHTED:
            runs_in_codes = node.name in quantized
        elif node.op_type in JOINS:
            # A float branch is quantized where it ends if the join's other branch is in codes. Joins with a constant
            # (a bias, a factor) stay float: the constant has no range, and 8 bits of it would be lost for nothing.
            runs_in_codes = _is_join(wires, node) and any(name in paired for name in data)
            paired.update(data if runs_in_codes else ())
        else:
            runs_in_codes = node.op_type in CPU_OPS and data[0] in paired
        if runs_in_codes:
            paired.add(_settled(wires, node.output[0]))
    paired -= wires.outputs - feeds
    reads = {(node.output[0], i) for node in wires.nodes
             if node.op_type in CPU_OPS and (node.op_type not in WEIGHTED or node.name in quantized)
             for i in data_inputs(node) if node.input[i] in paired}
    # Floats, too, read a Relu behind its pair: if one reads it before, the convolution that wrote it runs in floats.
    reads |= {(node.output[0], 0) for node in wires.nodes if node.op_type in WEIGHTED and node.name not in quantized
              and node.input[0] in paired and wires.writer_type(node.input[0]) == "Relu"}
    return Placement(paired, reads)


def _is_join(wires: Wiring, node: onnx.NodeProto) -> bool:
    return node.op_type in JOINS and all(wires.is_activation(name) for name in node.input)


def _settled(wires: Wiring, name: str) -> str:
    """The tensor behind which the pair of an output belongs: behind a lone Relu, and behind a MatMul's bias."""
    readers = wires.readers.get(name, [])
    if len(readers) != 1 or name in wires.outputs:
        return name
    bias = readers[0].op_type == "Add" and wires.writer_type(name) == "MatMul" and not _is_join(wires, readers[0])
    return _settled(wires, readers[0].output[0]) if bias or readers[0].op_type == "Relu" else name


def _place_trt(wires: Wiring, feeds: set[str], quantized: set[str], table: Mapping[str, Range]) -> Placement:
    paired = set(feeds)
    reads = {(node.output[0], i) for node in wires.nodes if node.op_type in WEIGHTED and node.name in quantized
             for i in data_inputs(node) if node.input[i] in feeds}
    split: dict[str, str] = {}                      # a tensor -> the LeakyRelu's output that gives it its scale
    for node in wires.nodes:
        if node.op_type == "Add" and _is_join(wires, node) and (i := _shortcut(wires, node, paired, quantized)) >= 0:
            alone = not any(fusable(wires, name, quantized) for name in node.input)     # else a convolution takes it
            for j in (i, 1 - i) if behind_activation(wires, node.input[1 - i], quantized) else (i,):
                name = node.input[j]
                before = before_leaky(wires, name, quantized, table)
                if alone and before and len(wires.readers[name]) == 1:
                    split[before] = name            # the Add's kernel does the LeakyRelu on the way
                else:
                    paired.add(name)
                    reads.add((node.output[0], j))
    for name in paired:
        in_codes = all((node.output[0], i) in reads for node in wires.readers[name]
                       for i, read in enumerate(node.input) if read == name)
        before = before_leaky(wires, name, quantized, table)
        if in_codes and before and larger_than_1x1(wires, before):
            split[before] = name
    return Placement(paired | set(split), reads | {(name, 0) for name in split.values()}, split)


def before_leaky(wires: Wiring, name: str, quantized: set[str], table: Mapping[str, Range] | None = None) -> str:
    """What a quantized operator writes for the LeakyRelu alone that writes the tensor, and where a pair of the tensor's
    scale clips little; "" where that is not so."""
    if wires.writer_type(name) != "LeakyRelu" or name in wires.outputs:
        return ""
    before = wires.writer[name].input[0]
    clips = table and before in table and name in table and table[before].low < -FAR * table[name].amax
    return before if fusable(wires, before, quantized) and not clips else ""


def larger_than_1x1(wires: Wiring, name: str) -> bool:
    """Whether a convolution with a larger kernel writes the tensor; the others were not measured with the pair."""
    weight = wires.writer[name].input[1]
    if wires.writer_type(weight) == "DequantizeLinear":
        weight = wires.writer[weight].input[0]
    return weight in wires.constants and any(side > 1 for side in wires.constants[weight].shape[2:])


def _shortcut(wires: Wiring, node: onnx.NodeProto, paired: set[str], quantized: set[str]) -> int:
    """Index of the input of a residual Add that is its shortcut, -1 where nothing is quantized.

    TensorRT fuses the Add into a convolution that writes the other input itself, and reads the shortcut in 8 bits.
    Where no input is such a convolution's, or both, the shortcut is what has codes already, or what is there first.
    """
    fused = [i for i, name in enumerate(node.input) if fusable(wires, name, quantized)]
    if len(fused) == 1:
        return 1 - fused[0]
    ready = [i for i, name in enumerate(node.input) if name in paired]
    if ready:
        return ready[0]
    order = {n.output[0]: k for k, n in enumerate(wires.nodes)}
    if not any(from_weighted(wires, name, quantized) for name in node.input):
        return -1
    return min(range(2), key=lambda i: order.get(node.input[i], -1))


def fusable(wires: Wiring, name: str, quantized: set[str]) -> bool:
    """Whether an Add that reads a tensor can be fused into the quantized operator that writes it for nobody else."""
    node = wires.writer.get(name)
    return (node is not None and node.op_type in WEIGHTED and node.name in quantized
            and len(wires.readers[name]) == 1 and name not in wires.outputs)


def behind_activation(wires: Wiring, name: str, quantized: set[str]) -> bool:
    """Whether a tensor comes from a quantized Conv, Gemm or MatMul through an activation."""
    return wires.writer_type(name) in ACTIVATIONS and from_weighted(wires, name, quantized)


def from_weighted(wires: Wiring, name: str, quantized: set[str]) -> bool:
    """Whether a tensor comes from a quantized Conv, Gemm or MatMul, directly or through its activation."""
    node = wires.writer.get(name)
    if node is not None and node.op_type in ACTIVATIONS:
        node = wires.writer.get(node.input[0])
    return node is not None and node.op_type in WEIGHTED and node.name in quantized


def shared_ranges(
    wires: Wiring, placement: Placement, table: Mapping[str, Range], target: str
) -> dict[str, Range]:
    """The range of each paired tensor, equal on both sides of an operator that copies codes, and of a LeakyRelu.

    On the CPU the output takes its input's range; Concat does not count, since ORT's requantizes in a table. For
    TensorRT all that meets at a Concat or mover takes the widest range of the group, and needs one Q only.
    """
    ranges = {source: table[source] for source in map(placement.source, placement.paired)}
    if target == "cpu":
        for node in wires.nodes:
            if node.op_type in MOVERS and node.input[0] in ranges and node.output[0] in ranges:
                ranges[node.output[0]] = ranges[node.input[0]]
        return ranges
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            name = group[name]
        return name

    for node in wires.nodes:
        if node.op_type in (*MOVERS, "Concat"):
            for i in data_inputs(node):
                if wires.is_activation(node.input[i]):
                    group[root(node.input[i])] = root(node.output[0])
    widest: dict[str, Range] = {}
    for name, r in ranges.items():
        have = widest.get(root(name), r)
        widest[root(name)] = Range(min(have.low, r.low), max(have.high, r.high))
    return {name: widest[root(placement.source(name))] for name in placement.paired}
