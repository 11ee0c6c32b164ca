"""Rewrite a graph in the operators that an older parser reads. Lesson 05.

Many newer operators are functions: the standard says what they compute in terms of others, for example
Gelu(x) = x / 2 * (1 + Erf(x / sqrt(2))). ONNX's inliner writes that in the node's place, again and again until nothing
is left that the parser lacks; then ONNX's converter turns the opset down.
Source: ONNX, "Intermediate Representation", Functions; `onnx.inliner` and `onnx.version_converter`.
"""

import onnx
from onnx import inliner, version_converter

from trtkit.operators import DOMAINS, OPSETS, has_body, opset, require, unsupported, walk

IR_OF_OPSET_17 = 8          # version of the file format that came with opset 17, which TensorRT 8.6 was built for
ROUNDS = 8                  # functions whose bodies hold functions; the deepest of the standard have three


def lower(model: onnx.ModelProto, era: str = "8.6") -> onnx.ModelProto:
    """A graph of the same function that an older TensorRT reads.

    Args:
        model: any graph; unchanged.
        era: of the parser, see `operators.READS`.

    Returns:
        A copy, its tensors' names kept where they still exist. Rounding may differ: check parity.

    Raises:
        ValueError: an operator that neither the parser reads nor the standard defines by others; or one that ONNX's
            converter cannot bring to the older opset.
    """
    version = opset(model)
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    for _ in range(ROUNDS):
        missing = {u.op for u in unsupported(lowered, era)}
        todo = {(n.domain, n.op_type) for n in walk(lowered.graph.node)
                if n.domain in DOMAINS and n.op_type in missing and has_body(n, version)}
        if not todo:
            break
        lowered = inliner.inline_selected_functions(lowered, sorted(todo), inline_schema_functions=True)
    newest = OPSETS[era][1]
    if version > newest:
        lowered = to_opset(lowered, newest)
    cap_ir(lowered)
    require(lowered, era)
    onnx.checker.check_model(lowered)
    return lowered


def to_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A copy in another opset, by ONNX's own converter.

    Raises:
        ValueError: an operator does not exist there, or has no translation; in the converter's words.
    """
    try:
        converted = version_converter.convert_version(model, version)
    except RuntimeError as e:                   # of C++, one for everything
        reason = str(e).rpartition("failed:")[2].strip() or str(e)
        raise ValueError(f"opset: got {opset(model)}, expected one that ONNX's converter brings to {version}: "
                         f"{reason}; replace that operator first, with lowering.lower or surgery.replace") from e
    cap_ir(converted)
    return converted


def cap_ir(model: onnx.ModelProto) -> None:
    """Say the file format of opset 17 where the opset is no newer, in place; TensorRT 8.6 was built for that one."""
    if opset(model) <= 17:
        model.ir_version = min(model.ir_version, IR_OF_OPSET_17)
