"""Q/DQ graphs that are wrong on purpose, to measure what each rule of placement is worth. Lesson 06.

Every function takes a graph that `qdq.insert_qdq` made for TensorRT and returns a copy with one rule broken everywhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from trtkit import quant
from trtkit.calib import Range
from trtkit.placement import ACTIVATIONS
from trtkit.qdq_nodes import pair
from trtkit.wiring import wiring

Q, DQ = "QuantizeLinear", "DequantizeLinear"


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def _replace(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
    for i in model.graph.initializer:
        if i.name in values:
            i.CopyFrom(numpy_helper.from_array(values[i.name], i.name))


def weights_per_tensor(model: onnx.ModelProto) -> onnx.ModelProto:
    """One scale for all output channels of a convolution's weights."""
    broken, constants = _copy(model), _constants(model)
    writers = {node.output[0]: node for node in broken.graph.node}
    values = {}
    for conv in (n for n in broken.graph.node if n.op_type == "Conv" and n.input[1] in writers):
        codes, scale, zero_point = writers[conv.input[1]].input
        weight = constants[codes] * constants[scale].reshape(-1, 1, 1, 1)
        q = quant.symmetric_qparams(np.abs(weight).max())
        values |= {codes: quant.quantize(weight, q), scale: q.scale, zero_point: q.zero_point}
    _replace(broken, values)
    return broken


def bias_in_8_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Biases of quantized convolutions as INT8 codes with one scale."""
    broken, constants = _copy(model), _constants(model)
    nodes, extra, writers = [], [], {node.output[0]: node.op_type for node in model.graph.node}
    for node in broken.graph.node:
        if node.op_type == "Conv" and writers.get(node.input[1]) == DQ:
            q = quant.symmetric_qparams(np.abs(constants[node.input[2]]).max())
            codes = numpy_helper.from_array(quant.quantize(constants[node.input[2]], q), node.name + ".bias_codes")
            extra.append(codes)
            dq = pair(node.name + ".bias", q, extra)[1]
            dq.input[0] = codes.name
            nodes.append(dq)
            node.input[2] = dq.output[0]
        nodes.append(node)
    return _with(broken, nodes, extra)


def pairs_before_activations(model: onnx.ModelProto, table: Mapping[str, Range]) -> onnx.ModelProto:
    """A pair between each convolution and its activation, with the range that the table has for what stands there.

    Before a LeakyRelu that is a fault only if that range is wider than the one behind.
    """
    broken = pairs_behind_leaky_relus(model)
    nodes, extra, writers = [], [], {node.output[0]: node.op_type for node in broken.graph.node}
    for node in broken.graph.node:
        if node.op_type in ACTIVATIONS and writers.get(node.input[0]) == "Conv":
            nodes += pair(node.input[0], quant.symmetric_qparams(table[node.input[0]].amax), extra)
            node.input[0] += "_dq"
        nodes.append(node)
    return _with(broken, nodes, extra)


def pairs_behind_leaky_relus(model: onnx.ModelProto) -> onnx.ModelProto:
    """No pair before a LeakyRelu, but behind it, as NVIDIA advises: those into an Add move, the others have one."""
    broken = _copy(model)
    wires = wiring(broken)
    extra: list[onnx.TensorProto] = []
    nodes = {node.output[0]: [node] for node in wires.nodes}        # by output, and what follows it
    for leaky in (n for n in wires.nodes if n.op_type == "LeakyRelu" and wires.writer_type(n.input[0]) == DQ):
        dq = wires.writer[leaky.input[0]]
        q = wires.writer[dq.input[0]]
        leaky.input[0] = q.input[0]
        nodes[q.output[0]], nodes[dq.output[0]] = [], []
        readers = [n for n in wires.readers[leaky.output[0]] if n.op_type != Q]
        if readers:
            scale, zero_point = (wires.constants[name] for name in q.input[1:])
            moved = pair(leaky.output[0], quant.QParams(scale, zero_point, -127, 127), extra)
            nodes[leaky.output[0]] += moved
            for node in readers:
                node.input[:] = [moved[1].output[0] if name == leaky.output[0] else name for name in node.input]
    return _with(broken, [node for group in nodes.values() for node in group], extra)


def pairs_on_shortcuts_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """No pair on the later input of each Add that reads two: right behind a convolution, wrong behind an activation."""
    broken = _copy(model)
    writers = {node.output[0]: node for node in broken.graph.node}
    order = {node.output[0]: i for i, node in enumerate(broken.graph.node)}
    for add in (n for n in broken.graph.node if n.op_type == "Add"):
        readers = {}                                        # of a DQ: the Add, or the LeakyRelu between
        for node in (writers.get(name) for name in add.input):
            leaky = node is not None and node.op_type == "LeakyRelu"
            dq = writers.get(node.input[0]) if leaky else node
            if dq is not None and dq.op_type == DQ:
                readers[dq.output[0]] = node if leaky else add
        if len(readers) == 2:
            later = max(readers, key=order.get)
            source = writers[writers[later].input[0]].input[0]
            reader = readers[later]
            reader.input[:] = [source if name == later else name for name in reader.input]
    for _ in range(2):                                      # a DQ that nobody reads, then its Q
        read = {name for node in broken.graph.node for name in node.input}
        kept = [n for n in broken.graph.node if n.op_type not in (Q, DQ) or n.output[0] in read]
        broken = _with(broken, kept, [])
    return broken


def _with(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], extra: Sequence[onnx.TensorProto]
) -> onnx.ModelProto:
    """The model with other nodes, more initializers, and without those that nobody reads."""
    read = {name for node in nodes for name in node.input}
    initializers = [i for i in (*model.graph.initializer, *extra) if i.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    onnx.checker.check_model(model)
    return model


def narrowed(table: Mapping[str, Range], tensor: str, factor: float = 50) -> dict[str, Range]:
    """A copy of a table in which one tensor's range is `factor` times too narrow, as after a bad calibration.

    Raises:
        ValueError: the table has no such tensor.
    """
    if tensor not in table:
        raise ValueError(f"tensor: got {tensor!r}, expected a name of the table, such as {next(iter(table))!r}")
    return {**table, tensor: Range(table[tensor].low / factor, table[tensor].high / factor)}
