"""One convolution with many numbers of channels: does every channel less save time? Lesson 04.

Kernels work on blocks of channels, so a number between two blocks costs as much as the larger one: time over channels
is a staircase. Source: NVIDIA, "Convolutional Layers User's Guide", "Channels In And Out".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit import inspector
from trtkit.engine import BackendError

CHANNELS = (*range(8, 129, 8), 12, 33, 50, 65, 100)
MAPS = (4, 104, 104)                # batch, height and width: large enough that a kernel is no launch alone


def write_graph(path: Path, channels: Sequence[int] = CHANNELS, maps: tuple[int, int, int] = MAPS) -> Path:
    """Write an FP32 graph with one chain of three 3x3 convolutions for each number of channels, side by side.

    The middle one counts: it reads what a convolution wrote and writes what a convolution reads, in whatever format
    the builder likes best, as inside of a network. One graph for all of them needs one build.

    Args:
        path: of the .onnx file.
        channels: one or more.
        maps: batch, height, width of all tensors.

    Returns:
        `path`; inputs "x8" (N, 8, H, W) and so on, outputs "y8", nodes "c8_0", "c8_1", "c8_2".
    """
    rng = np.random.default_rng(0)
    batch, height, width = maps
    nodes, constants, inputs, outputs = [], [], [], []
    for c in channels:
        shape = [batch, c, height, width]
        inputs.append(helper.make_tensor_value_info(f"x{c}", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"y{c}", TensorProto.FLOAT, shape))
        last = f"x{c}"
        for i in range(3):
            kernel = rng.normal(0, (2 / (9 * c)) ** 0.5, (c, c, 3, 3)).astype(np.float32)
            constants.append(numpy_helper.from_array(kernel, f"c{c}_{i}.weight"))
            constants.append(numpy_helper.from_array(np.zeros(c, np.float32), f"c{c}_{i}.bias"))
            activated = f"y{c}" if i == 2 else f"c{c}_{i}.relu"
            nodes.append(helper.make_node("Conv", [last, f"c{c}_{i}.weight", f"c{c}_{i}.bias"], [f"c{c}_{i}.out"],
                                          f"c{c}_{i}", kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [f"c{c}_{i}.out"], [activated], f"c{c}_{i}_relu"))
            last = activated
    graph = helper.make_graph(nodes, "staircase", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def middle_ms(times: Mapping[str, float], channels: Sequence[int] = CHANNELS) -> dict[int, float]:
    """Milliseconds of each chain's middle convolution.

    Args:
        times: by layer of the engine, as its profiler names them.
        channels: of the graph.

    Raises:
        BackendError: a convolution that no layer names.
    """
    of_node = {node: ms for name, ms in times.items() for node in inspector.nodes({"Name": name})}
    if missing := [c for c in channels if f"c{c}_1" not in of_node]:
        raise BackendError(f"staircase: got no layer for c{missing[0]}_1 among {list(times)[:6]}; did the builder fuse "
                           "the chain into one layer?")
    return {c: of_node[f"c{c}_1"] for c in sorted(channels)}
