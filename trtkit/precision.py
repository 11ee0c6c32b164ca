"""Did the engine keep the precision that the graph asks for? Lesson 07.

A builder may take a slower, wider type without a word: an INT8 flag that is missing, a Q/DQ pair in the wrong place, a
type that no kernel supports. The engine then works, and is FP32. So the types of the layers, as TensorRT's inspector
tells them, are held against the graph: what a Conv, Gemm or MatMul reads in it is what its layer must read.
"""

import re
from collections.abc import Mapping, Sequence

import onnx

from trtkit.placement import WEIGHTED
from trtkit.wiring import wiring

WIDTH = {"INT8": 8, "FP8": 8, "FP16": 16, "BF16": 16, "FP32": 32}
# Between node names in "weights + DQ + Conv + PWN(LeakyRelu)", "a || b" and "[ONNX Layer: Conv | property]\x1e...".
SEPARATORS = re.compile(r"\s*(?:\+|\|+|,|[\[\](){}\x1e]|ONNX Layer:|\.\.\.)\s*")
TYPES = {"int8": "INT8", "fp8": "FP8", "fp16": "FP16", "half": "FP16", "bf16": "BF16", "bfloat16": "BF16",
         "fp32": "FP32", "float": "FP32"}
TYPE = re.compile(rf"\b({'|'.join(TYPES)})\b", re.IGNORECASE)


def asked(model: onnx.ModelProto) -> dict[str, str]:
    """Precision that a graph asks for, by name of each Conv, Gemm and MatMul.

    Returns:
        "INT8" where activation and weight come out of DequantizeLinear, "FP16" or "BF16" where the weight is of that
        type, else "FP32". Products of two activations are FP32 unless both are dequantized.
    """
    wires = wiring(model)
    types = {i.name: i.data_type for i in model.graph.initializer}
    names = {onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.BFLOAT16: "BF16"}
    found = {}
    for node in wires.nodes:
        if node.op_type in WEIGHTED:
            if all(wires.writer_type(name) == "DequantizeLinear" for name in node.input[:2]):
                found[node.name] = "INT8"
            else:
                found[node.name] = next((names[types[i]] for i in node.input if types.get(i) in names), "FP32")
    return found


def has_quantized(model: onnx.ModelProto) -> bool:
    """Whether a graph holds Q/DQ nodes."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def has_half(model: onnx.ModelProto) -> bool:
    """Whether a graph holds FP16 weights, inputs or casts."""
    half = onnx.TensorProto.FLOAT16
    graph = model.graph
    return (any(i.data_type == half for i in graph.initializer)
            or any(v.type.tensor_type.elem_type == half for v in (*graph.input, *graph.output))
            or any(node.op_type == "Cast" and node.attribute[0].i == half for node in graph.node))


def type_of(tensor: Mapping) -> str:
    """Type of a tensor in an inspector's JSON: "INT8", "FP16", "FP32" ..., "" where it names none that we know.

    TensorRT 8 and 10 write "Format/Datatype": "Channel major FP16 format where channel % 8 == 0", TensorRT 11 writes
    "DataType" apart from "Format".
    """
    text = str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
    match = TYPE.search(text)
    return TYPES[match[1].lower()] if match else ""


def reads(layer: Mapping) -> set[str]:
    """Types that a layer computes with: its weights', or where it has none, its inputs'.

    Weights come first, since TensorRT 8.6 tells nothing about the tensors of an engine with dynamic shapes ("N/A due
    to dynamic shapes"), also with an execution context that knows them. An empty set where it tells neither.
    """
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and (found := type_of({"DataType": weights.get("Type")})):
        return {found}
    return {type_of(t) for t in layer.get("Inputs", []) if isinstance(t, Mapping)} - {""}


def nodes_of(layer: Mapping) -> set[str]:
    """Names of the ONNX nodes that were fused into a layer, as far as its name and metadata tell."""
    return {part for part in SEPARATORS.split(f"{layer.get('Name', '')} + {layer.get('Metadata', '')}") if part}


def problems(model: onnx.ModelProto, layers: Sequence[Mapping]) -> list[str]:
    """What runs wider than the graph asks; empty if all is well.

    Args:
        model: the graph that the engine was built from.
        layers: of the inspector's JSON, detailed.

    Returns:
        One line per layer, the first lines first in the graph. A layer whose name or types the inspector does not
        give is not counted; but at least one layer must show each precision that the graph asks for.
    """
    wanted, shown, lines = asked(model), set(), []
    for layer in layers:
        types = reads(layer)
        shown |= types
        for name in sorted(nodes_of(layer) & wanted.keys()):
            narrow = wanted[name]
            if types and min(WIDTH[t] for t in types) > WIDTH[narrow]:
                lines.append(f"{name}: the graph asks for {narrow}, the engine reads {' and '.join(sorted(types))}")
    lines += [f"no layer reads {p}, which the graph asks of {list(wanted.values()).count(p)} nodes"
              for p in sorted(set(wanted.values()) - shown - {"FP32"})]
    return lines
