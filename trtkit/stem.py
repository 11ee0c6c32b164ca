"""YOLOv3's stem on a quarter of the pixels with four times the channels: the same numbers, other kernels. Lesson 11.

Three input channels fill no tensor core, and TensorRT 8.6 has no kernel for three that also computes the LeakyReLU. So
the 2x2 pixels of a block become channels (SpaceToDepth), and both the first convolution and the one behind it, which
halves the size, take weights that do the same sums on blocks. The result is exact up to the order of additions. Known
from MLPerf's ResNet-50 as the space-to-depth stem. Do it before calibration: the tensors behind are others. On an H100
(TensorRT 8.6.1, YOLOv3-416, INT8, 32 images, level 1) the engine took 4.66 ms instead of 4.79, but without a pair
before the stem's own LeakyRelu (see `placement`) 6.48 instead of 5.84. At level 3 a plain stem in 8 bits beats it, 4.13
ms instead of 4.46: for three channels of codes there is a kernel, if without the LeakyReLU. One image gains nothing:
0.627 ms both ways, and in FP16 0.716 instead of 0.711.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.placement import ACTIVATIONS
from trtkit.wiring import attribute, wiring

DEPTH = "images_depth"          # the blocks of the input


def stem_to_depth(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose stem computes on blocks of 2x2 pixels.

    Args:
        model: begins with Conv 3x3 of stride 1, an activation for nobody else, Conv 3x3 of stride 2; both padded by 1,
            in one group, with weights and biases stored as initializers, such as `export.export_onnx` writes them.
            Height and width are even, which is not checked: an odd size fails when it runs.

    Returns:
        The copy; its inputs and outputs are as before. "images_depth" (N, 4 C, H / 2, W / 2) holds the blocks.

    Raises:
        ValueError: it begins otherwise.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, wires = changed.graph, wiring(changed)
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    first = next((n for n in wires.nodes if n.op_type == "Conv"), None)
    between = wires.readers.get(first.output[0], []) if first is not None else []
    second = wires.readers.get(between[0].output[0], []) if len(between) == 1 else []
    kinds = [n.op_type for n in (first, *between, *second) if n is not None]
    if (len(second) != 1 or kinds[1] not in ACTIVATIONS or kinds[2] != "Conv"
            or any(len(n.input) != 3 or not set(n.input[1:]) <= set(tensors) for n in (first, second[0]))
            or {first.output[0], between[0].output[0]} & wires.outputs
            or (_geometry(first), _geometry(second[0])) != ((3, 1, 1, 1, 1), (3, 2, 1, 1, 1))):
        raise ValueError(f"stem: got {kinds or 'no Conv'}, expected Conv 3x3, an activation, Conv 3x3 of stride 2, "
                         "both padded by 1, in one group, with stored weights and biases, and no output of the graph "
                         "between them; leave another stem as it is")
    for node, rewritten in ((first, _full_to_blocks), (second[0], _halving_to_blocks)):
        weight, bias = (tensors[name] for name in node.input[1:])
        new = {f"{node.output[0]}_weight_blocks": np.ascontiguousarray(rewritten(weight)),
               f"{node.output[0]}_bias_blocks": np.tile(bias, 4) if node is first else bias}
        node.input[1:] = list(new)                      # others may share the old ones
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in new.items())
    read = {name for node in graph.node for name in node.input}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _set(second[0], kernel_shape=[2, 2], strides=[1, 1], pads=[1, 1, 0, 0])
    to_depth = helper.make_node("SpaceToDepth", [first.input[0]], [DEPTH], DEPTH, blocksize=2)
    graph.node.insert(wires.nodes.index(first), to_depth)
    first.input[0] = DEPTH
    del graph.value_info[:]
    return changed


def _geometry(node: onnx.NodeProto) -> tuple[int, ...]:
    """Kernel, stride, padding and dilation, those that are the same in all directions, and the groups."""
    asked = (("kernel_shape", ()), ("strides", (1,)), ("pads", (0,)), ("dilations", (1,)))
    found = [set(attribute(node, name, default)) for name, default in asked]
    return (*(v.pop() for v in found if len(v) == 1), attribute(node, "group", 1))


def _set(node: onnx.NodeProto, **attributes) -> None:
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])


def _full_to_blocks(weight: np.ndarray) -> np.ndarray:
    """(M, C, 3, 3) on pixels to (4 M, 4 C, 3, 3) on blocks; channels are ordered (row, column, channel), as ONNX does.

    The pixel `k - 1` beside the one in row `p` of its block lies in block `(p + k - 1) // 2`, in its row
    `(p + k - 1) % 2`.
    """
    m, c = weight.shape[:2]
    blocks = np.zeros((2, 2, m, 2, 2, c, 3, 3), weight.dtype)
    for py, px, ky, kx in np.ndindex(2, 2, 3, 3):
        (by, qy), (bx, qx) = divmod(py + ky - 1, 2), divmod(px + kx - 1, 2)
        blocks[py, px, :, qy, qx, :, by + 1, bx + 1] = weight[:, :, ky, kx]
    return blocks.reshape(4 * m, 4 * c, 3, 3)


def _halving_to_blocks(weight: np.ndarray) -> np.ndarray:
    """(M, C, 3, 3) of stride 2 on pixels to (M, 4 C, 2, 2) of stride 1 on blocks, padded at the top and left only."""
    m, c = weight.shape[:2]
    blocks = np.zeros((m, 2, 2, c, 2, 2), weight.dtype)
    for ky, kx in np.ndindex(3, 3):
        (by, qy), (bx, qx) = divmod(ky - 1, 2), divmod(kx - 1, 2)
        blocks[:, qy, qx, :, by + 1, bx + 1] = weight[:, :, ky, kx]
    return blocks.reshape(m, 4 * c, 2, 2)
