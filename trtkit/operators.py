"""Which operators does TensorRT's ONNX parser read? Asked of a graph before a build of minutes. Lesson 05.

The tables hold names. What a parser wants of an operator's attributes and types (2D or 3D pooling only, weights that
are constants, ...) it says itself when it parses; a graph that passes here can still be refused there.
Sources: TensorRT 8.6.1's own library, libnvonnxparser.so.8.6.1, asked about every name in ONNX's schemas by
`IParser::supportsOperator`, and the three that it hides from ONNX Runtime alone (NonMaxSuppression, NonZero, RoiAlign).
For 10.15 the table "Supported ONNX Operators" of onnx-tensorrt, docs/operators.md, which says what came in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import defs

OPSETS = {"8.6": (9, 17), "10.15": (9, 24)}             # era -> oldest and newest opset
_READS_86 = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
    HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu
    Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Reshape Resize ReverseSequence RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape Shrink
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
_SINCE_86 = """
    Attention BlackmanWindow CastLike DeformConv Gelu HammingWindow HannWindow Hardmax Mish RMSNormalization
    RotaryEmbedding STFT TensorScatter
"""
READS = {"8.6": frozenset(_READS_86.split()), "10.15": frozenset(f"{_READS_86}{_SINCE_86}".split())}
DOMAINS = ("", "ai.onnx")   # two names of the standard's own
# Plugins that TensorRT brings; their nodes' domain does not matter to the parser.
PLUGIN_SUFFIX = "_TRT"


@dataclass(frozen=True)
class Unsupported:
    """A node, or the opset, that a parser does not read.

    Attributes:
        node: its name, "" for the opset.
        op: operator with its domain in front, for example "com.microsoft.FusedConv".
        advice: what to use instead.
    """

    node: str
    op: str
    advice: str

    def __str__(self):
        return f"{self.op} in node {self.node!r}: {self.advice}" if self.node else f"{self.op}: {self.advice}"


def unsupported(model: onnx.ModelProto, era: str = "8.6") -> list[Unsupported]:
    """What a TensorRT of an era does not read in a graph; empty where it knows every operator.

    Args:
        model: any graph; bodies of If, Loop and Scan are looked at too, and functions that it brings along.
        era: a key of `READS`.

    Raises:
        ValueError: an unknown era.
    """
    if era not in READS:
        raise ValueError(f"era: got {era!r}, expected one of {sorted(READS)}")
    low, high = OPSETS[era]
    version = opset(model)
    found = []
    if not low <= version <= high:
        found.append(Unsupported("", f"opset {version}", f"TensorRT {era} reads {low} to {high}; export with "
                                 f"opset={min(max(version, low), high)}, or convert the graph: lowering.lower"))
    own = {(f.domain, f.name) for f in model.functions}
    bodies = [f.node for f in model.functions]
    for node in (n for part in (model.graph.node, *bodies) for n in walk(part)):
        known = node.op_type in READS[era] if node.domain in DOMAINS else (
            (node.domain, node.op_type) in own or node.op_type.endswith(PLUGIN_SUFFIX))
        if not known:
            name = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
            found.append(Unsupported(node.name or f"that writes {node.output[0]}", name, _advice(node, version, era)))
    return found


def require(model: onnx.ModelProto, era: str = "8.6") -> None:
    """Raise where `unsupported` finds something.

    Raises:
        ValueError: each node, its operator and what to use instead, at most five of them.
    """
    found = unsupported(model, era)
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(f"model: got {len(found)} things that TensorRT {era} does not read, expected none: "
                         f"{'; '.join(map(str, found[:5]))}{more}")


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operators in a graph.

    Raises:
        ValueError: the graph does not say.
    """
    for entry in model.opset_import:
        if entry.domain in DOMAINS:
            return entry.version
    raise ValueError(f"model: got opset imports {[o.domain for o in model.opset_import]}, expected one of the standard "
                     "domain; onnx.helper.make_opsetid(\"\", 17)")


def walk(nodes) -> Iterator[onnx.NodeProto]:
    """Nodes, and those inside of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from walk(graph.node)


def _advice(node: onnx.NodeProto, version: int, era: str) -> str:
    if node.domain not in DOMAINS:
        return ("the domain belongs to another tool: export without its optimizer, replace the node with surgery."
                "replace, or write a TensorRT plugin")
    if has_body(node, version):
        return "ONNX defines it in terms of others, so lowering.lower can write those in its place"
    if newer := [e for e in READS if e != era and node.op_type in READS[e]]:
        return f"TensorRT {newer[0]} reads it; else replace it with surgery.replace"
    return "replace it with operators that the parser reads (surgery.replace), or move it out of the graph"


def has_body(node: onnx.NodeProto, version: int) -> bool:
    """Whether the standard itself defines an operator in terms of others, as a function."""
    try:
        schema = defs.get_schema(node.op_type, version, "")
    except defs.SchemaError:
        return False
    return node.domain in DOMAINS and (schema.has_function or schema.has_context_dependent_function)
