"""What did TensorRT make of the graph? The engine inspector's JSON as a table. Lessons 07 and 09.

Each layer of an engine is one kernel, or a few: which types and memory formats it reads and writes, which tactic was
chosen, and which nodes of the ONNX graph went into it. Reformat layers are the builder's own: they only change a
tensor's type or format between two others, and cost time.
TensorRT 8 and 10 describe a tensor as {"Format/Datatype": "Row major linear FP16 format"}, TensorRT 11 has "Format" and
"DataType" apart. Source: TensorRT Developer Guide, "Engine Inspector"; migration guide 10 to 11, "IEngineInspector".
"""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from trtkit import precision

COLUMNS = ["name", "type", "precision", "in_dtypes", "out_dtypes", "in_formats", "out_formats", "in_shapes",
           "out_shapes", "tactic", "origin", "nodes"]
ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]|]+?)\s*(?:\||\])")


def frame(layers: Sequence[Mapping]) -> pd.DataFrame:
    """One row per layer, in the engine's order.

    Args:
        layers: the inspector's JSON of each layer, of an engine that was built with `BuildConfig(detailed=True)`:
            `TrtRunner.layers()`, or "layers" of a plan's sidecar.

    Returns:
        Text columns "name", "type" (of layer: "Reformat", "CaskConvolution", ...), "precision" (type of its weights,
        where it has none the narrowest type that it reads), "tactic", "origin" (of copies: "CAST" and "QDQ" stand in
        the graph, "REFORMAT" is the builder's idea). Columns of lists, one entry per tensor: "in_dtypes", "out_dtypes"
        ("FP32", "FP16", "INT8", ...), "in_formats", "out_formats" (the inspector's words), "in_shapes", "out_shapes";
        and "nodes" (names of ONNX nodes). What the JSON does not tell is "".

    Raises:
        ValueError: an entry that is not detailed; a list without layers.
    """
    if not layers:
        raise ValueError("layers: got none, expected the inspector's; build with BuildConfig(detailed=True)")
    return pd.DataFrame([_row(i, layer) for i, layer in enumerate(layers)], columns=COLUMNS)


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Number of layers by type (rows) and precision (columns), the commonest type first."""
    found = pd.crosstab(table["type"], table["precision"])
    return found.loc[found.sum(axis=1).sort_values(ascending=False, kind="stable").index]


def reformats(table: pd.DataFrame) -> pd.DataFrame:
    """The layers that only change a tensor's type or format. Copies of type "NoOp" were found needless: no cost."""
    return table[table["type"].str.contains("Reformat")]


def nodes(layer: Mapping) -> list[str]:
    """Names of the ONNX nodes that went into a layer, in its order.

    The metadata name them exactly, "[ONNX Layer: a][ONNX Layer: b]"; without metadata, the name is taken apart:
    "a + b", "PWN(a, b)", "a || b". Copies that the builder added, and constants, have none.
    """
    if exact := ONNX_NODE.findall(str(layer.get("Metadata") or "")):
        return list(dict.fromkeys(exact))
    name = str(layer.get("Name") or "")
    if name.startswith("Reformatting CopyNode") or layer.get("LayerType") == "Constant":
        return []
    return list(dict.fromkeys(part for part in precision.SEPARATORS.split(name) if part and part != "PWN"))


def _row(i: int, layer: Mapping) -> dict:
    if not isinstance(layer, Mapping) or "LayerType" not in layer:
        raise ValueError(f"layers[{i}]: got {str(layer)[:80]!r}, expected an object with \"LayerType\"; "
                         "the engine holds names only: build it with BuildConfig(detailed=True)")
    reads, writes = (_tensors(layer.get(key)) for key in ("Inputs", "Outputs"))
    return {
        "name": str(layer.get("Name", "")),
        "type": str(layer["LayerType"]),
        "precision": min(precision.reads(layer), key=lambda t: precision.WIDTH[t], default=""),
        "in_dtypes": [precision.type_of(t) for t in reads],
        "out_dtypes": [precision.type_of(t) for t in writes],
        "in_formats": [_format(t) for t in reads],
        "out_formats": [_format(t) for t in writes],
        "in_shapes": [tuple(t.get("Dimensions", ())) for t in reads],
        "out_shapes": [tuple(t.get("Dimensions", ())) for t in writes],
        "tactic": str(layer.get("TacticName") or layer.get("TacticValue") or ""),
        "origin": str(layer.get("Origin", "")),
        "nodes": nodes(layer),
    }


def _tensors(listed: object) -> list[Mapping]:
    """Names alone, as in engines that are not detailed, tell nothing."""
    return [t for t in listed if isinstance(t, Mapping)] if isinstance(listed, list) else []


def _format(tensor: Mapping) -> str:
    return str(tensor.get("Format") or tensor.get("Format/Datatype") or "")
