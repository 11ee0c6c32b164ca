"""What is in the file? An ONNX graph on one screen: versions, inputs, outputs, operators, parameters. Lesson 05.

Left out on purpose: a viewer. Where there is a browser, `netron model.onnx` shows every node and number.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from trtkit.operators import DOMAINS, opset, walk

# Types that weights are stored in; shapes and indices are INT64 and INT32.
WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
           TensorProto.UINT8)


@dataclass(frozen=True)
class Summary:
    """Of one graph.

    Attributes:
        opset: version of the standard operators.
        ir_version: of the file format.
        producer: program that wrote it, with its version.
        other_domains: version by domain of operators that are not the standard's.
        inputs, outputs: type and shape by name, for example "float32 (batch, 3, 416, 416)".
        operators: number of nodes by operator, commonest first, those of subgraphs counted too; Constant left out.
        nodes: their sum.
        parameters: numbers in constants of the types of `WEIGHTS`.
        weights_mib: of all constants, MiB.
    """

    opset: int
    ir_version: int
    producer: str
    other_domains: Mapping[str, int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    operators: Mapping[str, int]
    nodes: int
    parameters: int
    weights_mib: float

    def __str__(self):
        lines = [
            f"opset {self.opset}, IR {self.ir_version}, written by {self.producer or 'nobody who says so'}",
            *(f"other operators: {name} {version}" for name, version in self.other_domains.items()),
            *(f"input   {name}: {spec}" for name, spec in self.inputs.items()),
            *(f"output  {name}: {spec}" for name, spec in self.outputs.items()),
            f"{self.parameters:,} parameters, {self.weights_mib:.2f} MiB of constants",
            f"{self.nodes} nodes: " + ", ".join(f"{n} {op}" for op, n in self.operators.items()),
        ]
        return "\n".join(lines)


def summary(model: onnx.ModelProto) -> Summary:
    """Count and name what is in a graph; nothing is run, and no weights are copied.

    Raises:
        ValueError: the graph does not say its opset.
    """
    graph = model.graph
    constants = [*graph.initializer, *(a.t for n in graph.node if n.op_type == "Constant"
                                       for a in n.attribute if a.name == "value")]
    stored = {i.name for i in graph.initializer}
    counts = Counter(name(n) for n in walk(graph.node) if n.op_type != "Constant")
    return Summary(
        opset=opset(model),
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        other_domains={o.domain: o.version for o in model.opset_import if o.domain not in DOMAINS},
        inputs={i.name: spec(i) for i in graph.input if i.name not in stored},
        outputs={o.name: spec(o) for o in graph.output},
        operators=dict(counts.most_common()),
        nodes=counts.total(),
        parameters=sum(math.prod(t.dims) for t in constants if t.data_type in WEIGHTS),
        weights_mib=sum(math.prod(t.dims) * _itemsize(t) for t in constants) / 2**20,
    )


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Shape of every tensor that ONNX's shape inference can tell, in the order of the graph.

    Returns:
        Shapes by name, a text where a dimension is open ("?" where it has no name). Tensors of unknown rank are left
        out. Constants too.
    """
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    stored = {i.name for i in graph.initializer}
    known = {v.name: _dims(v) for v in (*graph.input, *graph.value_info, *graph.output)
             if v.type.tensor_type.HasField("shape") and v.name not in stored}
    order = [*(i.name for i in graph.input), *(name for node in graph.node for name in node.output)]
    return {name: known[name] for name in order if name in known}


def name(node: onnx.NodeProto) -> str:
    """Operator of a node, its domain in front unless it is the standard's: "com.microsoft.FusedConv"."""
    return node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"


def spec(value: onnx.ValueInfoProto) -> str:
    """Type and shape of an input or output: "float32 (batch, 3, 416, 416)"."""
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return f"{dtype} ({', '.join(map(str, _dims(value)))})"


def _dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    names = (d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim)
    # Shape inference calls a dimension without a name "unk__0".
    return tuple("?" if isinstance(name, str) and (not name or name.startswith("unk__")) else name for name in names)


def _itemsize(tensor: onnx.TensorProto) -> int:
    return helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
