"""What each layer of a graph costs: multiply-adds, parameters and bytes. Lessons 01 and 09.

Counted on the ONNX graph with its shapes inferred, nothing is run; `cost_torch` does the same for a PyTorch module. A
backend fuses nodes, and what stays inside a fused kernel moves no bytes: `by_layer` adds up nodes in that way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from trtkit import roofline
from trtkit.wiring import attribute

SMALL = 1024            # numbers; shape inference reads the values of constants (scales, shapes), which are few
# Which input of a convolution is the kernel.
CONVOLUTIONS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}
PRODUCTS = {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}
# These multiply too, or hold graphs that may; better no number than one without them.
NOT_COUNTED = {"Attention", "DeformConv", "Einsum", "GRU", "If", "Loop", "LSTM", "RNN", "Scan"}


@dataclass(frozen=True)
class Cost:
    """Of one node, or of nodes that run as one kernel.

    Attributes:
        name: of the node or layer.
        op: operator; several are joined by "+".
        macs: multiply-adds; only convolutions and matrix products have any.
        weight_bytes: of the constants that it reads.
        inputs, outputs: bytes of the tensors that it reads and writes, by name.
        params: numbers in the constants that it reads; one that two nodes share counts at both.
    """

    name: str
    op: str
    macs: int
    weight_bytes: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    params: int = 0

    @property
    def activation_bytes(self) -> int:
        """What it writes."""
        return sum(self.outputs.values())

    @property
    def bytes_moved(self) -> int:
        """Weights, inputs and outputs, each once."""
        return self.weight_bytes + sum(self.inputs.values()) + self.activation_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte, two to a multiply-add: the x axis of a roofline."""
        return 2 * self.macs / max(self.bytes_moved, 1)


def costs(model: onnx.ModelProto, *, batch: int = 1) -> list[Cost]:
    """Cost of every node, in the graph's order; Constant nodes left out.

    Args:
        model: every tensor's shape must follow from the inputs' shapes.
        batch: takes the place of a first dimension that has no number.

    Raises:
        ValueError: the shape of a tensor is not known (named), or an operator of `NOT_COUNTED`.
    """
    constants = {i.name for i in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    types = _tensor_types(model, batch)

    def n_bytes(name: str) -> int:
        shape, dtype = types[name]
        return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    found = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        read = list(dict.fromkeys(name for name in node.input if name))
        written = [name for name in node.output if name]
        if missing := [name for name in (*read, *written) if name not in types]:
            raise ValueError(f"node {node.name!r}: got no shape of {missing}, expected one that follows from the "
                             "inputs'; give every input a fixed shape, only the batch may be open")
        found.append(Cost(
            name=node.name or written[0],
            op=node.op_type,
            macs=_macs(node, {name: types[name][0] for name in (*read, *written)}),
            weight_bytes=sum(n_bytes(name) for name in read if name in constants),
            inputs={name: n_bytes(name) for name in read if name not in constants},
            outputs={name: n_bytes(name) for name in written},
            params=sum(int(np.prod(types[name][0], dtype=np.int64)) for name in read if name in constants),
        ))
    return found


def fused(parts: Sequence[Cost], name: str, kept: set[str]) -> Cost:
    """The cost of nodes that run as one kernel: tensors that only pass between them move no bytes.

    Args:
        parts: of `costs`.
        name: of the whole.
        kept: tensors that others read as well, or that the graph returns; those are written in any case.
    """
    written = {tensor: n for part in parts for tensor, n in part.outputs.items()}
    read = {tensor: n for part in parts for tensor, n in part.inputs.items()}
    return Cost(
        name=name,
        op="+".join(part.op for part in parts),
        macs=sum(part.macs for part in parts),
        weight_bytes=sum(part.weight_bytes for part in parts),
        inputs={tensor: n for tensor, n in read.items() if tensor not in written},
        outputs={tensor: n for tensor, n in written.items() if tensor in kept or tensor not in read},
        params=sum(part.params for part in parts),
    )


def by_layer(parts: Sequence[Cost], layers: Mapping[str, Sequence[str]]) -> dict[str, Cost]:
    """Cost of each layer of an engine.

    Args:
        parts: of `costs`.
        layers: names of nodes, or of tensors that they write, by layer. A node that no layer names was fused into
            the one that reads it. Names that the graph does not have are passed over: engines add layers of their own.

    Returns:
        Cost by layer; layers without a node of the graph (copies, reformats) are left out.
    """
    layer_of = {name: layer for layer, names in layers.items() for name in names}
    home: dict[str, str] = {}                           # node -> layer
    reader: dict[str, str] = {}                         # tensor -> layer of a node that reads it
    for part in reversed(parts):                        # readers before writers
        own = [layer_of[n] for n in (part.name, *part.outputs) if n in layer_of]
        behind = [reader[t] for t in part.outputs if t in reader]
        if own or behind:
            home[part.name] = (own or behind)[0]
            reader |= dict.fromkeys(part.inputs, home[part.name])
    groups: dict[str, list[Cost]] = {}
    for part in parts:
        if part.name in home:
            groups.setdefault(home[part.name], []).append(part)
    readers: dict[str, set[str]] = {}
    for part in parts:
        for tensor in part.inputs:
            readers.setdefault(tensor, set()).add(home.get(part.name, part.name))
    return {
        layer: fused(group, layer, {t for part in group for t in part.outputs if readers.get(t, {""}) - {layer}})
        for layer, group in groups.items()
    }


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type in NOT_COUNTED:
        raise ValueError(f"node {node.name!r}: got {node.op_type}, expected convolutions and matrix products; the "
                         f"multiply-adds of {node.op_type} are not counted here: cost_torch counts the PyTorch module")
    if node.op_type in CONVOLUTIONS:
        x, w, y = (shapes[name] for name in (node.input[0], node.input[CONVOLUTIONS[node.op_type]], node.output[0]))
        groups = attribute(node, "group", 1)
        # A transposed convolution reads every input number once per kernel element; a convolution writes so.
        transposed = node.op_type == "ConvTranspose"
        pixels, c_in, c_out = (x, w[0], w[1] * groups) if transposed else (y, w[1] * groups, w[0])
        return roofline.conv_macs(c_in, c_out, (int(np.prod(w[2:])), 1), (int(np.prod(pixels[2:])), 1),
                                  batch=x[0], groups=groups)
    if node.op_type in PRODUCTS:
        a, y = shapes[node.input[0]], shapes[node.output[0]]
        k = a[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else a[-1]
        return roofline.matmul_macs(int(np.prod(y)), k, 1)
    return 0


def _tensor_types(model: onnx.ModelProto, batch: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every tensor that inference can tell."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = model.graph.name or "g"
    graph.node.extend(model.graph.node)
    initializers = {i.name for i in model.graph.initializer}
    graph.input.extend(i for i in model.graph.input if i.name not in initializers)
    for value in graph.input:
        first = value.type.tensor_type.shape.dim[:1]
        if first and not first[0].HasField("dim_value"):
            first[0].dim_value = batch
    for initializer in model.graph.initializer:
        if int(np.prod(initializer.dims)) <= SMALL:
            graph.initializer.append(initializer)
        else:                                           # as an input: no copy of its numbers
            graph.input.append(
                helper.make_tensor_value_info(initializer.name, initializer.data_type, list(initializer.dims)))
    graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.graph.output)
    inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    found = {i.name: (tuple(i.dims), np.dtype(helper.tensor_dtype_to_np_dtype(i.data_type)))
             for i in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            found[value.name] = (tuple(d.dim_value for d in tensor.shape.dim), dtype)
    return found
