"""Some nodes of an FP32 graph run in FP16, between Casts. Lesson 06.

What leaves 8 bits need not go back to 32. Casts stand where FP16 nodes meet others; Q and DQ stay FP32, since opset 17
knows no other, and so does the graph's interface.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

FP16_MAX = float(np.finfo(np.float16).max)
FOLLOWERS = ("Relu", "LeakyRelu", "Sigmoid")


def run_in_fp16(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Convert nodes of a graph, in place.

    Args:
        graph: FP32; nodes in the order in which they run.
        names: of nodes that compute in floats. An activation behind one of them follows it.

    Raises:
        ValueError: a weight beyond FP16's 65,504 (named).
    """
    constants = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    half: set[str] = set()                      # tensors that FP16 nodes write
    chosen: set[str] = set()                    # first outputs of FP16 nodes
    for node in graph.node:
        if node.name in names or (node.op_type in FOLLOWERS and node.input[0] in half):
            chosen.add(node.output[0])
            half.update(node.output)
    interface = {o.name for o in graph.output}
    read_elsewhere = {name for node in graph.node if node.output[0] not in chosen for name in node.input} | interface
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        if node.output[0] not in chosen:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if not name:
                continue
            node.input[i] = name + "_fp16"
            if name in made or name in half:
                continue
            made.add(name)
            if name in constants:
                graph.initializer.append(_to_fp16(constants[name], name))
            else:
                nodes.append(_cast(name, name + "_fp16", onnx.TensorProto.FLOAT16))
        written = list(node.output)
        node.output[:] = [name + "_fp16" for name in written]
        nodes.append(node)
        nodes += [_cast(name + "_fp16", name, onnx.TensorProto.FLOAT) for name in written if name in read_elsewhere]
    del graph.node[:]
    graph.node.extend(nodes)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}_Cast", to=to)


def _to_fp16(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if values.size and not np.abs(values).max() <= FP16_MAX:
        raise ValueError(f"tensor {name!r}: got magnitude {np.abs(values).max()}, expected at most {FP16_MAX:g} for "
                         "FP16; keep rest='fp32'")
    return numpy_helper.from_array(values.astype(np.float16), name + "_fp16")
