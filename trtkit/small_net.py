"""A network that TensorRT builds in seconds: four convolutions with a shortcut. Lesson 07, and the tests on GPUs."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 32                   # pixels


def four_convolutions(seed: int = 0, channels: int = 32) -> onnx.ModelProto:
    """Four convolutions with LeakyReLU and a residual Add: "x" (N, 3, 32, 32) to "y" (N, 16, 16, 16), and "z", halved.

    Weights are scaled as He et al. do, so that no activation dies out.
    """
    rng = np.random.default_rng(seed)
    initializers, nodes = [], []

    def conv(name: str, source: str, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        weight = rng.normal(0, np.sqrt(2 / (c_in * kernel**2)), (c_out, c_in, kernel, kernel)).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"{name}.weight"))
        initializers.append(numpy_helper.from_array(rng.normal(0, 0.1, c_out).astype(np.float32), f"{name}.bias"))
        nodes.append(helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [name], name,
                                      kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[stride] * 2))

    def leaky(source: str, target: str) -> None:
        nodes.append(helper.make_node("LeakyRelu", [source], [target], target, alpha=0.1))

    conv("stem", "x", 3, channels, 3, 2)
    leaky("stem", "a")
    conv("reduce", "a", channels, channels, 1)
    leaky("reduce", "b")
    conv("expand", "b", channels, channels, 3)
    leaky("expand", "c")
    nodes.append(helper.make_node("Add", ["a", "c"], ["sum"], "shortcut"))
    conv("y", "sum", channels, 16, 1)
    initializers.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    nodes.append(helper.make_node("Mul", ["sum", "half"], ["z"], "halve"))
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", c, SIDE // 2, SIDE // 2])
         for name, c in (("y", 16), ("z", channels))], initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
