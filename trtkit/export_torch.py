"""Two exporters of PyTorch, one way to call them. Lesson 05.

"torchscript" runs the module once and writes down which operators ran; "dynamo" reads its Python code, with sizes as
symbols (`torch.export`). The first knows opsets up to 20 and is no longer developed; the second begins at opset 18, so
that an older parser needs its result converted.
Source: PyTorch documentation, "torch.onnx", both exporters.
"""

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from trtkit.export_checks import check_open, check_size, data_dependent, outputs_of
from trtkit.files import replacing
from trtkit.lowering import to_opset

if TYPE_CHECKING:           # imported where it is used: lessons without PyTorch import `export`
    import torch
    from torch import nn

OPSET = 17                  # the newest that TensorRT 8.6's parser reads
OPSETS = {"torchscript": (13, 20), "dynamo": (13, 24)}      # of the exporter; 13 is the first with per-channel Q/DQ
DYNAMO_FIRST = 18           # below, its result is converted


def write(
    model: "nn.Module",
    path: Path,
    example: "Sequence[torch.Tensor]",
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    exporter: str = "torchscript",
    opset: int = OPSET,
    dynamic_batch: bool = True,
    keep_batchnorm: bool = False,
) -> Path:
    """Write a module as an ONNX graph, FP32 or whatever types it has.

    Args:
        model: any module in eval mode on the CPU; unchanged.
        path: of the .onnx file; written under another name first, so a failed export leaves nothing.
        example: its positional inputs; with a dynamic batch at least 2 along the first dimension of each, since sizes 0
            and 1 are special to the dynamo exporter.
        input_names: one per input.
        output_names: one per output tensor.
        exporter: "torchscript" or "dynamo".
        opset: of the graph.
        dynamic_batch: leave the first dimension of every input and output open, named "batch".
        keep_batchnorm: leave BatchNorm a node of its own; else both exporters fold it into a convolution before it.

    Returns:
        `path`.

    Raises:
        ValueError: an unknown exporter, an opset out of range, an example that the module refuses, another number of
            outputs, a module that is random, looks at numbers or fixes the batch, weights of 2 GiB and more, or a
            graph that does not exist in this opset.
        ModuleNotFoundError: the dynamo exporter needs onnxscript.
    """
    if exporter not in OPSETS:
        raise ValueError(f"exporter: got {exporter!r}, expected one of {sorted(OPSETS)}")
    low, high = OPSETS[exporter]
    if not low <= opset <= high:
        raise ValueError(f"opset: got {opset}, expected {low} to {high} for the {exporter} exporter; TensorRT 8.6 "
                         f"reads {OPSET} at most, TensorRT 10 reads 9 to 24")
    check_size(model)
    outputs = outputs_of(model, example)
    if len(outputs) != len(output_names):
        raise ValueError(f"output_names: got {list(output_names)}, expected {len(outputs)} names, since the module "
                         f"returns tensors of shapes {[tuple(y.shape) for y in outputs]}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    export = _torchscript if exporter == "torchscript" else _dynamo
    with replacing(path) as temporary:
        export(model, temporary, tuple(example), list(input_names), list(output_names), opset, dynamic_batch,
               keep_batchnorm)
        graph = onnx.load(temporary)
        if dynamic_batch and outputs[0].ndim:
            check_open(graph, len(example[0]))
        onnx.checker.check_model(graph)
        onnx.save(graph, temporary)
    return path


def _torchscript(model, path, example, input_names, output_names, opset, dynamic_batch, keep_batchnorm) -> None:
    import torch

    names = (*input_names, *output_names) if dynamic_batch else ()
    mode = torch.onnx.TrainingMode.PRESERVE if keep_batchnorm else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")         # also about its age, at every call
        torch.onnx.export(
            model, example, str(path), input_names=input_names, output_names=output_names,
            dynamic_axes={name: {0: "batch"} for name in names}, opset_version=opset, training=mode, dynamo=False,
        )
    # It warns alike of a Python number made from a shape, which is harmless, and of one made from data.
    if any(issubclass(w.category, torch.jit.TracerWarning) for w in caught) and (
            place := data_dependent(model, example)):
        raise ValueError(_branch(place))


def _dynamo(model, path, example, input_names, output_names, opset, dynamic_batch, keep_batchnorm) -> None:
    if importlib.util.find_spec("onnxscript") is None:
        raise ModuleNotFoundError("onnxscript is not installed, and PyTorch's dynamo exporter needs it: "
                                  "pip install --editable '.[export]'", name="onnxscript")
    import torch

    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if dynamic_batch else None for _ in example)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, example, str(path), input_names=input_names, output_names=output_names, dynamic_shapes=shapes,
                opset_version=max(opset, DYNAMO_FIRST), optimize=not keep_batchnorm, dynamo=True, external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as e:
        if place := data_dependent(model, example):
            raise ValueError(_branch(place)) from e
        raise ValueError(f"dynamo: {str(e.__cause__ or e).strip()}; expected a module that torch.export takes: try "
                         "exporter=\"torchscript\"") from e
    finally:
        quiet.setLevel(level)
    if opset < DYNAMO_FIRST:
        onnx.save(to_opset(onnx.load(path), opset), path)


def _branch(place: str) -> str:
    return (f"model: got a step that looks at the numbers themselves, at {place}; expected tensor operators alone, "
            "since the graph would hold what came out for the example, its branch or its count; use torch.where, or "
            "export both parts")
