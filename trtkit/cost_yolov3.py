"""The YOLOv3 of the paper as a graph of shapes, for counting: no weights, no PyTorch, a millisecond. Lesson 01.

`datasets/graphs/yolov3.onnx` has the nodes at a quarter of the width. Four times the channels make the paper's network,
248 MB of weights that nobody needs to count them.
"""

import re

import onnx

from trtkit.data import dataset_file
from trtkit.heads import ANCHORS_PER_HEAD
from trtkit.weights import STRUCTURE

TIMES = 4                       # the paper's channels over the structure's
IMAGE_CHANNELS = 3
# By the first part of a node's name. What a head needs besides itself (the 1x1 in front, the upsampling) counts there.
_STAGES = {"stem": "stem", **{f"stages.{i}": f"stage {i + 1}" for i in range(5)}, "head32": "head 32",
           "lateral16": "head 16", "upsample": "head 16", "Concat": "head 16", "head16": "head 16",
           "lateral8": "head 8", "upsample_1": "head 8", "Concat_1": "head 8", "head8": "head 8"}
STAGES = list(dict.fromkeys(_STAGES.values()))


def paper_graph(size: int = 416, num_classes: int = 80) -> onnx.ModelProto:
    """YOLOv3 at width 1, BatchNorm folded, with shapes in place of weights: for `costs.costs`, not for a backend.

    Args:
        size: side of the input in pixels, a multiple of 32.
        num_classes: K, at least 1.

    Raises:
        ValueError: a size or number of classes that the network does not take.
    """
    if size < 32 or size % 32:
        raise ValueError(f"size: got {size}, expected a multiple of 32, the stride of the coarsest grid")
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}, expected at least 1")
    model = onnx.load(dataset_file(STRUCTURE))
    graph = model.graph
    outputs = {output.name for output in graph.output}
    predicting = {name for node in graph.node if node.output[0] in outputs for name in node.input[1:]}
    for tensor in graph.initializer:
        if not tensor.name.endswith((".weight", ".bias")):
            continue
        tensor.dims[0] = ANCHORS_PER_HEAD * (5 + num_classes) if tensor.name in predicting else TIMES * tensor.dims[0]
        if len(tensor.dims) == 4 and tensor.dims[1] != IMAGE_CHANNELS:
            tensor.dims[1] *= TIMES
    for side in graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = size
    for output in graph.output:                     # their shapes follow from the input's
        output.type.tensor_type.ClearField("shape")
    return model


def stage_of(node: str) -> str:
    """The part of the network that a node of a YOLOv3 graph belongs to, one of `STAGES`; "" for other names.

    Args:
        node: its name, "/stages.2/stages.2.1/reduce/reduce.0/Conv", or that of a backend's layer, which holds the names
            of nodes: "Reformatting CopyNode for Input Tensor 0 to /stem/stem.0/Conv" belongs to the stem. An output of
            the network, "head8", names a part as well.
    """
    first = re.search(r"/([\w.]+)", node)
    return _STAGES.get(first[1] if first else node, "")
