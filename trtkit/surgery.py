"""Cut, replace, rename, prepend: graphs changed without the program that made them. Lesson 05.

Each function takes a graph and returns another; the argument is unchanged. The work is done by what ONNX brings along:
`onnx.utils.Extractor`, `onnx.inliner`, `onnx.compose`. New nodes are written in ONNX's own text form, in which
`y = Relu(x)` is a node.
Source: ONNX, "Python API overview"; "ONNX textual syntax".
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, inliner, parser
from onnx.utils import Extractor

from trtkit.operators import DOMAINS, opset

OWN_DOMAIN = "trtkit"       # of functions that exist only until they are inlined


def cut(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph between tensors, as a graph of its own: to test it, time it, or hand it to somebody.

    Args:
        model: its tensors' shapes must be inferable, since inputs and outputs carry their type.
        inputs: tensors that the part reads; they become its inputs.
        outputs: tensors that it returns.

    Raises:
        ValueError: no outputs, a tensor that the graph does not have, or one that the outputs need and the inputs do
            not give.
    """
    if not outputs:
        raise ValueError("cut: got no outputs, expected at least one tensor")
    written = {name for node in model.graph.node for name in node.output}
    fed = {i.name for i in model.graph.input}
    if unknown := [n for n in (*inputs, *outputs) if n not in written | fed]:
        raise ValueError(f"cut: got {unknown[0]!r}, expected a tensor of the graph, one of graph_summary.shapes")
    typed = onnx.shape_inference.infer_shapes(model)        # inputs and outputs carry type and shape
    try:
        part = Extractor(typed).extract_model(list(inputs), list(outputs))
    except ValueError as e:                     # ONNX's own check: a tensor without a type
        raise ValueError(f"cut: got inputs {list(inputs)} and outputs {list(outputs)}, expected tensors whose type "
                         f"ONNX can infer: {e}") from e
    constants = {i.name for i in part.graph.initializer}
    have = {*inputs, *constants, *(name for node in part.graph.node for name in node.output)}
    lacking = sorted({n for node in part.graph.node for n in node.input if n} - have)
    if lacking or not set(outputs) <= have - set(inputs):
        raise ValueError(f"cut: got inputs {list(inputs)}, expected tensors from which {list(outputs)} can be computed"
                         + (f"; {lacking[0]!r} is missing" if lacking else ", not behind them"))
    return part


def replace(model: onnx.ModelProto, op_type: str, body: str) -> onnx.ModelProto:
    """Every node of one operator replaced by others.

    Args:
        model: opset and names stay.
        op_type: of the standard's operators, for example "Gelu".
        body: a function in ONNX's text form, without its header: inputs and outputs in the operator's order, then the
            nodes. Attributes of the node are read with @: "(x) => (y) { y = LeakyRelu <alpha: float = @alpha> (x) }".

    Returns:
        A copy without the operator; its subgraphs are left alone.

    Raises:
        ValueError: no such node, or a body that cannot be parsed or that does not fit.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = [n for n in changed.graph.node if n.op_type == op_type and n.domain in DOMAINS]
    if not nodes:
        raise ValueError(f"replace: got {op_type!r}, expected one of {sorted({n.op_type for n in model.graph.node})}")
    attributes = sorted({a.name for n in nodes for a in n.attribute if f"@{a.name}" in body})
    header = f'<opset_import: ["" : {opset(model)}], domain: "{OWN_DOMAIN}">\n{op_type}'
    header += f" <{', '.join(attributes)}>" if attributes else ""
    try:
        function = parser.parse_function(f"{header} {body}")
    except parser.ParseError as e:
        raise ValueError(f"replace: got a body that ONNX cannot parse: {e}; expected one like "
                         "(x) => (y) { y = Relu(x) }") from e
    for node in nodes:
        if len(node.input) > len(function.input) or len(node.output) != len(function.output):
            raise ValueError(f"replace: got a body with {len(function.input)} inputs and {len(function.output)} "
                             f"outputs, expected {len(node.input)} and {len(node.output)}, as node {node.name!r} has")
        node.domain = OWN_DOMAIN
        kept = [a for a in node.attribute if a.name in attributes]
        del node.attribute[:]
        node.attribute.extend(kept)
    changed.functions.append(function)
    changed.opset_import.append(helper.make_opsetid(OWN_DOMAIN, 1))
    return _clean(inliner.inline_local_functions(changed))


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Tensors with other names, wherever they occur: inputs, outputs, inner ones, constants.

    Args:
        model: without subgraphs that read the tensors.
        names: new by old.

    Raises:
        ValueError: a name that no tensor has, or a new one that is taken.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    all_names = {n for node in graph.node for n in (*node.input, *node.output)} | {
        v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    if unknown := [old for old in names if old not in all_names]:
        raise ValueError(f"rename: got {unknown[0]!r}, expected a tensor of the graph")
    stay = all_names - set(names)
    if taken := [new for new in names.values() if new in stay or list(names.values()).count(new) > 1]:
        raise ValueError(f"rename: got {taken[0]!r} as a new name, expected one that no tensor of the graph has")
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    onnx.checker.check_model(changed)
    return changed


def uint8_input(model: onnx.ModelProto, scale: float = 1 / 255) -> onnx.ModelProto:
    """A graph that takes bytes: Cast to float and Mul by a factor, in front of its one input. A quarter of the copying.

    Args:
        model: one float32 input.
        scale: from a byte to what the network was trained on.

    Returns:
        A graph with an input of the same name and shape, UINT8.

    Raises:
        ValueError: another number of inputs, one that is not float32, or a scale that is 0, NaN or infinite in float32.
    """
    with np.errstate(over="ignore"):
        stored = np.float32(scale)                  # as the graph holds it
    if not (np.isfinite(stored) and stored):
        raise ValueError(f"scale: got {scale}, expected a finite number other than 0, such as 1/255")
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ValueError(f"uint8_input: got inputs {[i.name for i in inputs]}, expected one, float32")
    name = inputs[0].name
    inner = f"{name}_float"
    byte = onnx.ValueInfoProto()
    byte.CopyFrom(inputs[0])
    byte.type.tensor_type.elem_type = TensorProto.UINT8
    real = onnx.ValueInfoProto()
    real.CopyFrom(inputs[0])
    real.name = inner
    front = helper.make_model(
        helper.make_graph(
            [helper.make_node("Cast", [name], [f"{name}_cast"], f"{name}/Cast", to=TensorProto.FLOAT),
             helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [inner], f"{name}/Mul")],
            "bytes", [byte], [real], [helper.make_tensor(f"{name}_scale", TensorProto.FLOAT, [], [scale])]),
        opset_imports=list(model.opset_import), ir_version=model.ir_version)
    back = rename(model, {name: f"{name}_network"})
    return compose.merge_models(front, back, [(inner, f"{name}_network")])


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the import of a domain that nobody uses any more, which ORT and TensorRT would ask about."""
    kept = [o for o in model.opset_import if o.domain != OWN_DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    return model
