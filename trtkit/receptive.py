"""How much of the image can one number of the network see? The receptive field. Lesson 10.

Along a chain of layers with kernels k and strides d, a number covers r pixels and its neighbour lies j pixels further:
    r = r + (k - 1) * j         j = j * d           starting with r = j = 1
Where branches join, the widest counts; upsampling by u makes neighbours u times closer, j = j / u.
That is the border of what *can* matter. What does matter is measured: see lesson 10.
Source: Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", Distill.
"""

from typing import NamedTuple

import onnx
from onnx import numpy_helper

ELEMENTWISE = {"Add", "Cast", "Concat", "DequantizeLinear", "Identity", "LeakyRelu", "Mul", "QuantizeLinear", "Relu",
               "Sigmoid", "Sub", "BatchNormalization"}


class Field(NamedTuple):
    """Receptive field of a tensor, in pixels of the input: side of the square, and step between neighbours."""

    side: float
    step: float


def receptive_fields(model: onnx.ModelProto) -> dict[str, Field]:
    """The receptive field of every tensor that depends on the input, by name.

    Args:
        model: of square convolutions and poolings (undilated or dilated), elementwise operators, Concat along channels
            and Resize by a constant whole factor to nearest neighbours; one input.

    Returns:
        Fields by tensor; a side larger than the image means that each number may depend on every pixel.

    Raises:
        ValueError: an operator that mixes positions in another way.
    """
    constants = {i.name: i for i in model.graph.initializer}
    (image,) = [i.name for i in model.graph.input if i.name not in constants]
    fields = {image: Field(1, 1)}
    for node in model.graph.node:
        sources = [fields[name] for name in node.input if name in fields]
        if not sources:
            if node.op_type == "Constant":
                constants[node.output[0]] = node.attribute[0].t
            continue
        side, step = max(s.side for s in sources), max(s.step for s in sources)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Conv", "MaxPool", "AveragePool"):
            kernel = attributes.get("kernel_shape") or list(constants[node.input[1]].dims)[2:]
            side += (max(kernel) - 1) * attributes.get("dilations", [1])[0] * step
            step *= attributes.get("strides", [1])[0]
        elif node.op_type == "Resize":
            step /= float(numpy_helper.to_array(constants[node.input[2]])[-1])
        elif node.op_type not in ELEMENTWISE:
            raise ValueError(f"{node.name}: got operator {node.op_type}, expected one of Conv, MaxPool, AveragePool, "
                             f"Resize and {sorted(ELEMENTWISE)}; cut the graph before it")
        fields[node.output[0]] = Field(side, step)
    return fields
