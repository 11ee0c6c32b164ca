"""YOLOv3's stem on a quarter of the pixels with four times the channels: the same numbers, other kernels.

Three input channels fill no tensor core, and TensorRT 8.6 has no kernel for three that also computes the LeakyReLU. So
the 2x2 pixels of a block become channels (SpaceToDepth), and both the first convolution and the one behind it, which
halves the size, take weights that do the same sums on blocks. The result is exact up to the order of additions.
Known from MLPerf's ResNet-50 as the space-to-depth stem. An experiment of `placement.py`, not part of the kit.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.wiring import wiring

DEPTH = "images_depth"          # the blocks of the input


def stem_to_depth(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose stem computes on blocks of 2x2 pixels.

    Args:
        model: begins with Conv 3x3 of stride 1, an activation for nobody else, Conv 3x3 of stride 2; both padded by 1,
            with a bias. Height and width are even.

    Raises:
        ValueError: it begins otherwise.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, wires = changed.graph, wiring(changed)
    first = next(n for n in graph.node if n.op_type == "Conv")
    between = wires.readers[first.output[0]]
    second = wires.readers[between[0].output[0]] if len(between) == 1 else []
    if len(second) != 1 or (_geometry(first), _geometry(second[0])) != ((3, 1, 1), (3, 2, 1)):
        raise ValueError(f"stem: got {first.name}, {[n.op_type for n in between]}, {[n.name for n in second]}, "
                         "expected Conv 3x3, an activation, Conv 3x3 of stride 2, all padded by 1")
    tensors = {t.name: t for t in graph.initializer}
    for node, rewritten in ((first, _full_to_blocks), (second[0], _halving_to_blocks)):
        weight, bias = (tensors[name] for name in node.input[1:3])
        blocks = rewritten(numpy_helper.to_array(weight))
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(blocks), weight.name))
        if node is first:
            bias.CopyFrom(numpy_helper.from_array(np.tile(numpy_helper.to_array(bias), 4), bias.name))
    _set(second[0], kernel_shape=[2, 2], strides=[1, 1], pads=[1, 1, 0, 0])
    graph.node.insert(0, helper.make_node("SpaceToDepth", [first.input[0]], [DEPTH], DEPTH, blocksize=2))
    first.input[0] = DEPTH
    del graph.value_info[:]
    return changed


def _geometry(node: onnx.NodeProto) -> tuple[int, ...]:
    """Kernel, stride and padding, if they are the same in all directions."""
    found = {a.name: set(a.ints) for a in node.attribute}
    asked = (found.get("kernel_shape"), found.get("strides", {1}), found.get("pads", {0}))
    return tuple(next(iter(v)) for v in asked if v and len(v) == 1)


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
