"""FP16, also beside INT8, for builders that choose types themselves, TensorRT 8.5 and 8.6. Lesson 07.

A flag only allows them FP16; small layers may then stay FP32 (four convolutions of 32 channels did, on an H100). Where
they do, what the graph computes in FP16 is asked of the builder layer by layer, see `asks`. A graph that mixes 8 bits
with FP16 also has Casts where they meet. A weakly typed builder takes a Cast literally: the tensors before it become
FP32 in plain row-major order, and every convolution that touches one gets slow. So for that era, and only there, Casts
between floats of such a graph are dropped, and its weights become FP32. With the Casts, two of YOLOv3's three FP16
heads ran in FP32, and the convolutions before them wrote FP32 (H100, datasets/results/placement_yolov3_h100.json).
"""

import numpy as np
import onnx
from onnx import numpy_helper

from trtkit.precision import asked, has_half, has_quantized

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def lower(model: onnx.ModelProto) -> tuple[onnx.ModelProto, set[str]]:
    """Take the Casts out of a graph that mixes Q/DQ and FP16.

    Args:
        model: any graph; one that does not mix the two is returned as it is.

    Returns:
        A graph in FP32 with the same Q/DQ, and the names of the nodes that shall compute in FP16.
    """
    in_half = {name for name, precision in asked(model).items() if precision == "FP16"}
    if not (has_quantized(model) and has_half(model)):
        return model, in_half
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    interface = {o.name for o in graph.output}
    source: dict[str, str] = {}             # what a dropped Cast wrote -> what it read
    kept = []
    for node in graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Cast" and node.attribute[0].i in FLOATS and node.output[0] not in interface:
            source[node.output[0]] = node.input[0]
        elif node.op_type == "Cast" and node.attribute[0].i in FLOATS:
            node.op_type = "Identity"       # a graph output keeps its name
            del node.attribute[:]
            kept.append(node)
        else:
            kept.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    return lowered, in_half


def asks(model: onnx.ModelProto, in_half: set[str]) -> list[set[str]]:
    """What to ask for layer by layer, one build after the other until an engine is as narrow as its graph.

    FP16 alone: nothing first, since a builder that only got the flag may mix kernels as it likes, and found a faster
    engine (0.67 ms against 0.74, YOLOv3-416 on an H100). Beside INT8 that leaves layers in FP32, so all at once.

    Args:
        model: any graph.
        in_half: names of its nodes that shall compute in FP16, see `lower`.
    """
    return [in_half] if has_quantized(model) or not in_half else [set(), in_half]
