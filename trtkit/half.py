"""An FP32 graph runs in FP16, all of it or some of its nodes, between Casts. Lessons 06, 07 and 11.

What leaves 8 bits need not go back to 32. Casts stand where FP16 nodes meet others; Q and DQ stay FP32, since opset 17
knows no other, and so does the graph's interface.
"""

from collections.abc import Callable, Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.wiring import fold_identities, wiring

FP16_MAX = float(np.finfo(np.float16).max)
FOLLOWERS = ("Relu", "LeakyRelu", "Sigmoid")
SCALED = ("Resize", "Upsample")             # their scales, after the data, are FP32 whatever the data is


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that computes in FP16 throughout; its inputs and outputs stay FP32.

    Args:
        model: FP32, without Q/DQ; nodes in the order in which they run.

    Returns:
        The copy, half as large: an engine that is typed by its graph runs it in FP16.

    Raises:
        ValueError: Q/DQ nodes, or a weight beyond FP16's 65,504 (named).
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for node in half.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ValueError(f"model: got {node.op_type} {node.name!r}, expected a float graph; for INT8 with FP16 "
                             "around it use insert_qdq(..., rest='fp16')")
    fold_identities(half.graph)
    wires = wiring(half)
    computed = {node.output[0] for node in wires.nodes if wires.is_activation(node.output[0])}
    _convert(half.graph, lambda node: node.output[0] in computed and node.op_type != "Cast", wires.not_float)
    used = {name for node in half.graph.node for name in node.input} | {o.name for o in half.graph.output}
    kept = [i for i in half.graph.initializer if i.name in used]
    del half.graph.initializer[:], half.graph.value_info[:]         # FP32 weights that nobody reads; types that changed
    half.graph.initializer.extend(kept)
    onnx.checker.check_model(half)
    return half


def run_in_fp16(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Convert nodes of a graph, in place.

    Args:
        graph: FP32; nodes in the order in which they run.
        names: of nodes that compute in floats. An activation behind one of them follows it.

    Raises:
        ValueError: a weight beyond FP16's 65,504 (named).
    """
    half: set[str] = set()                      # tensors that FP16 nodes write

    def follows(node: onnx.NodeProto) -> bool:
        chosen = node.name in names or (node.op_type in FOLLOWERS and node.input[0] in half)
        half.update(node.output if chosen else ())
        return chosen

    _convert(graph, follows)


def _convert(
    graph: onnx.GraphProto, wanted: Callable[[onnx.NodeProto], bool], not_float: Collection[str] = ()
) -> None:
    constants = {i.name: i for i in graph.initializer}
    half: set[str] = set()                      # tensors that FP16 nodes write
    chosen: set[str] = set()                    # first outputs of FP16 nodes
    for node in graph.node:
        if wanted(node):
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
            if not name or name in not_float or (i > 0 and node.op_type in SCALED):
                continue
            node.input[i] = name + "_fp16"
            if name in made or name in half:
                continue
            made.add(name)
            if name in constants:
                graph.initializer.append(_to_fp16(constants[name], name))
            else:
                nodes.append(_cast(name, name + "_fp16", onnx.TensorProto.FLOAT16))
        written = [name for name in node.output if name and name not in not_float]      # not the indices of a TopK
        node.output[:] = [name + "_fp16" if name in written else name for name in node.output]
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
                         "FP16; stay in FP32 (insert_qdq: rest='fp32')")
    return numpy_helper.from_array(values.astype(np.float16), name + "_fp16")
