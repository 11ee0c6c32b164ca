"""Who writes and who reads each tensor of a graph. Lesson 06.

What `placement`, `qdq` and `lint` ask an ONNX graph, answered once for all nodes.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

Graph = onnx.ModelProto     # for modules of upper layers, which name no onnx


@dataclass(frozen=True)
class Wiring:
    """Tensors by name.

    `writer` is the node that computes a tensor; graph inputs and constants have none. `readers` holds a node once per
    input that reads the tensor. `constants` are initializers, Constant nodes and Identity copies of either (the
    exporter shares equal tensors that way). `not_float` are tensors known to hold something else than FP32.
    """

    nodes: list[onnx.NodeProto]
    writer: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]
    constants: dict[str, np.ndarray]
    inputs: list[str]
    outputs: set[str]
    not_float: set[str]

    def is_activation(self, name: str) -> bool:
        """Whether a tensor depends on the network's input and holds FP32 (or a type that the graph does not tell)."""
        return bool(name) and name not in self.constants and name not in self.not_float

    def writer_type(self, name: str) -> str:
        """Operator that computes a tensor; "" for graph inputs and constants."""
        return self.writer[name].op_type if name in self.writer else ""


def wiring(model: onnx.ModelProto) -> Wiring:
    """Look at a graph once; nothing in it is changed."""
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    writer: dict[str, onnx.NodeProto] = {}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        writer.update(dict.fromkeys(node.output, node))
        for name in node.input:
            readers.setdefault(name, []).append(node)
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    inputs = [i.name for i in graph.input if i.name not in constants]       # old graphs list their initializers too
    return Wiring(list(graph.node), writer, readers, constants, inputs, {o.name for o in graph.output},
                  _not_float(model))


def _not_float(model: onnx.ModelProto) -> set[str]:
    """Types need no weights, so a skeleton without them is inferred: large graphs would be copied three times."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = model.graph.name or "g"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    graph.input.extend(model.graph.input)
    known = {i.name for i in graph.input}
    graph.input.extend(helper.make_tensor_value_info(i.name, i.data_type, list(i.dims))
                       for i in model.graph.initializer if i.name not in known)
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    return {v.name for v in (*inferred.input, *inferred.value_info, *inferred.output)
            if v.type.tensor_type.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)}


def fold_identities(graph: onnx.GraphProto) -> None:
    """Let nodes read a constant itself instead of an Identity copy of it, in place.

    PyTorch's exporter stores equal tensors once, such as the zero biases of fresh weights, and hands out copies. Beside
    Q/DQ, TensorRT 8.6 takes such a bias for an activation: 66 of YOLOv3's 75 convolutions got one, and 65 kernels were
    there to copy them (H100, datasets/results/placement_yolov3_h100.json).
    """
    source = {i.name: i.name for i in graph.initializer}
    outputs = {o.name for o in graph.output}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in source and node.output[0] not in outputs:
            source[node.output[0]] = source[node.input[0]]
            continue
        if node.op_type == "Constant":
            source[node.output[0]] = node.output[0]
        node.input[:] = [source.get(name, name) for name in node.input]
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def channel_axis(node: onnx.NodeProto, i: int, ndim: int) -> int | None:
    """Axis of the output channels in input i of a Conv, Gemm or MatMul; None where it has no such axis.

    One scale per output channel can leave the sum over the other axes; one per input channel cannot.
    """
    if i != 1 or ndim < 2:
        return None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        return 1 if ndim == 2 else None
    return 0


def attribute(node: onnx.NodeProto, name: str, default):
    """An attribute's value, or the default where the node does not have it."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
