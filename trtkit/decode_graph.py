"""Let the engine decode: a graph with raw heads becomes one that returns boxes and scores. Lesson 10.

It computes the formula of `heads` for all 10,647 boxes, with operators that every TensorRT from 8.5 on has:
    head (N, A*(5+K), H, W) -> (N, A, 5+K, H*W) -> boxes (N, A*H*W, 4), scores (N, A*H*W, K)
and joins the heads. NMS stays outside: its number of results depends on the image, which a static engine cannot have.
Coordinates need FP32, since FP16 steps by 0.25 at 416 pixels: add the decoding after every other change of the graph
(Q/DQ, `half`); FP16 heads are cast back first.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit.heads import ANCHORS, DECODED, MAX_LOG_SIDE, STRIDES

OLDEST_OPSET = 13           # whose Split takes its sizes as an input
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def with_decode(
    model: onnx.ModelProto, *, anchors: np.ndarray = ANCHORS, strides: Sequence[int] = STRIDES
) -> onnx.ModelProto:
    """A copy of a detector's graph that returns decoded boxes in place of its heads.

    Args:
        model: one image input (N, 3, H, W) with fixed H and W, N may be open; one output (N, A * (5 + K), H/s, W/s) per
            stride s, FP32 or FP16, in the order of `strides`; opset 13 or newer.
        anchors: (strides, A, 2), pixels of the network input.
        strides: pixels per cell.

    Returns:
        The copy, with the outputs "boxes" (N, B, 4) FP32, x0 y0 x1 y1 in pixels of the network input, and "scores"
        (N, B, K) FP32, B = sum of A * H/s * W/s. `yolo.detect` takes a runner of it.

    Raises:
        ValueError: the graph has other inputs or outputs, an open height or width, or an older opset.
    """
    anchors = np.asarray(anchors, np.float32)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ValueError(f"opset: got {opset}, expected {OLDEST_OPSET} or newer; export the graph again")
    grids = _grids(model, anchors, strides)
    decoded = onnx.ModelProto()
    decoded.CopyFrom(model)
    graph = decoded.graph
    if taken := set(DECODED) & {name for node in graph.node for name in (*node.input, *node.output)}:
        raise ValueError(f"model: got a graph with a tensor named {sorted(taken)[0]!r}, expected raw heads; is it "
                         "decoded already?")
    parts = [_append_head(graph, head, stride, wh, shape)
             for head, stride, wh, shape in zip(model.graph.output, strides, anchors, grids, strict=True)]
    for name, of_heads in zip(DECODED, zip(*parts, strict=True), strict=True):
        graph.node.append(helper.make_node("Concat", of_heads, [name], f"decode/{name}", axis=1))
    batch = model.graph.output[0].type.tensor_type.shape.dim[0]
    boxes, classes = sum(len(wh) * h * w for wh, (_, h, w) in zip(anchors, grids, strict=True)), grids[0][0]
    del graph.output[:]
    for name, last in zip(DECODED, (4, classes), strict=True):
        first = batch.dim_value or batch.dim_param or "batch"
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, boxes, last]))
    onnx.checker.check_model(decoded)
    return decoded


def _grids(model: onnx.ModelProto, anchors: np.ndarray, strides: Sequence[int]) -> list[tuple[int, int, int]]:
    """(K, H, W) of each head, checked against the input."""
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    outputs = list(onnx.shape_inference.infer_shapes(model).graph.output)
    if len(inputs) != 1 or len(outputs) != len(strides) or anchors.shape != (len(strides), *anchors.shape[1:2], 2):
        raise ValueError(f"model: got {len(inputs)} inputs, {len(outputs)} outputs and anchors of shape "
                         f"{anchors.shape}, expected one image and a head and a row of anchors for each of the "
                         f"strides {tuple(strides)}")
    sides = _dims(inputs[0])[2:]
    if len(sides) != 2 or 0 in sides or any(side % max(strides) for side in sides):
        raise ValueError(f"{inputs[0].name}: got height and width {sides} (0 is open), expected fixed multiples of "
                         f"{max(strides)}; export with a fixed size, the grid becomes a constant of the graph")
    grids = []
    for output, stride in zip(outputs, strides, strict=True):
        dims, wanted = _dims(output), [side // stride for side in sides]
        channels = dims[1] if len(dims) == 4 else 0
        if dims[2:] != wanted or channels % anchors.shape[1] or channels < 6 * anchors.shape[1] or (
                output.type.tensor_type.elem_type not in FLOATS):
            raise ValueError(f"{output.name}: got shape {dims}, expected float (N, {anchors.shape[1]} * (5 + K), "
                             f"{wanted[0]}, {wanted[1]}) for stride {stride}; outputs come in the order of the strides")
        grids.append((channels // anchors.shape[1] - 5, *wanted))
    return grids


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """Shape with 0 where a dimension is open."""
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def _append_head(graph: onnx.GraphProto, head, stride: int, anchor_wh: np.ndarray, grid) -> tuple[str, str]:
    """Append the nodes of one head; names of its boxes (N, A*H*W, 4) and scores (N, A*H*W, K)."""
    classes, height, width = grid
    prefix = f"decode/{head.name}"

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{prefix}/{name}"))
        return f"{prefix}/{name}"

    def node(kind: str, name: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes) -> str:
        names = [f"{prefix}/{o}" for o in outputs or (name,)]
        graph.node.append(helper.make_node(kind, inputs, names, f"{prefix}/{name}", **attributes))
        return names[0]

    def rows(name: str, tensor: str, last: int) -> str:                 # (N, A, last, H*W) -> (N, A*H*W, last)
        turned = node("Transpose", f"{name}_turned", tensor, perm=[0, 1, 3, 2])
        return node("Reshape", name, turned, constant(f"{name}_shape", np.array([0, -1, last], np.int64)))

    raw = head.name
    if head.type.tensor_type.elem_type == TensorProto.FLOAT16:
        raw = node("Cast", "float", raw, to=TensorProto.FLOAT)
    shape = np.array([0, len(anchor_wh), 5 + classes, height * width], np.int64)        # 0: the batch as it is
    cells = node("Reshape", "cells", raw, constant("shape", shape))                     # (N, A, 5+K, H*W)
    node("Split", "split", cells, constant("sizes", np.array([2, 2, 1, classes], np.int64)), axis=2,
         outputs=("t_xy", "t_wh", "t_o", "t_class"))
    cell = np.stack(np.meshgrid(np.arange(width), np.arange(height)), 0).reshape(1, 1, 2, -1).astype(np.float32)
    shifted = node("Add", "in_cells", node("Sigmoid", "in_cell", f"{prefix}/t_xy"), constant("cell", cell))
    centre = node("Mul", "centre", shifted, constant("stride", np.array(stride, np.float32)))
    bounded = node("Min", "bounded", f"{prefix}/t_wh", constant("most", np.array(MAX_LOG_SIDE, np.float32)))
    half_anchor = (anchor_wh / 2).astype(np.float32).reshape(1, -1, 2, 1)
    half = node("Mul", "half", node("Exp", "grown", bounded), constant("half_anchor", half_anchor))
    corners = node("Concat", "corners", node("Sub", "low", centre, half), node("Add", "high", centre, half), axis=2)
    score = node("Mul", "score", node("Sigmoid", "objectness", f"{prefix}/t_o"),
                 node("Sigmoid", "class", f"{prefix}/t_class"))
    return rows("boxes", corners, 4), rows("scores", score, classes)
