"""From a torch module to an ONNX graph that is still the same function. Lesson 05.

BatchNorm folds into the convolution before it, since both are affine per channel:
    w' = w * gamma / sqrt(var + eps)        b' = beta + (b - mean) * gamma / sqrt(var + eps)
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2.
Graphs are written as one file (below 2 GB): ONNX refuses linked external data, and a copied folder breaks it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from trtkit.decode_graph import with_decode
from trtkit.export_torch import OPSET, write
from trtkit.files import replacing
from trtkit.wiring import fold_identities

if TYPE_CHECKING:           # imported where it is used: lessons without PyTorch need the rest
    from torch import nn

OUTPUT_NAMES = ("head32", "head16", "head8")


def fold_batchnorm(model: "nn.Module") -> "nn.Module":
    """A copy in eval mode in which each BatchNorm2d right behind a Conv2d is folded into it.

    Args:
        model: any module whose (Conv2d, BatchNorm2d) pairs are neighbours in an nn.Sequential.

    Returns:
        The copy; the BatchNorm places hold nn.Identity. The argument is unchanged.
    """
    from torch import nn

    folded = copy.deepcopy(model).eval()
    for block in [m for m in folded.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(block) - 1):
            if isinstance(block[i], nn.Conv2d) and isinstance(block[i + 1], nn.BatchNorm2d):
                block[i] = nn.utils.fusion.fuse_conv_bn_eval(block[i], block[i + 1])
                block[i + 1] = nn.Identity()
    return folded


def export_onnx(
    model: "nn.Module",
    path: Path,
    *,
    size: int | tuple[int, int] = 416,
    channels: int = 3,
    batch: int = 0,
    output_names: Sequence[str] = OUTPUT_NAMES,
    exporter: str = "torchscript",
    opset: int = OPSET,
    keep_batchnorm: bool = False,
    decode: bool = False,
) -> Path:
    """Fold BatchNorm and write the ONNX graph of a network that takes images, FP32.

    Args:
        model: takes one tensor (N, channels, height, width) float32, here named "images". Exported in eval mode;
            unchanged.
        path: of the .onnx file; written under another name first, so a failed export leaves nothing.
        size: side of the input, or height and width, pixels; multiples of 32 for YOLOv3.
        channels: of the input.
        batch: of the input and of every output; 0 leaves it open.
        output_names: one per output tensor.
        exporter: "torchscript" or "dynamo", see `export_torch`.
        opset: 17 is the newest that TensorRT 8.6 reads.
        keep_batchnorm: fold nothing, to see what others do with it.
        decode: of a detector: also decode in the graph, with outputs "boxes" and "scores", see `decode_graph`.

    Returns:
        `path`.

    Raises:
        ValueError: a size below 1, the graph still holds a BatchNormalization, or what `export_torch.write` refuses.
        ModuleNotFoundError: the dynamo exporter lacks a package.
    """
    import torch

    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width, channels) < 1 or batch < 0:
        raise ValueError(f"images: got batch={batch}, channels={channels}, size={size}, expected each at least 1, and "
                         "batch=0 for one that stays open")
    # Sizes 0 and 1 are special to the dynamo exporter; the other one runs the example, so a smaller one is quicker.
    rows = batch or (2 if exporter == "dynamo" else 1)
    example = torch.rand(rows, channels, height, width, generator=torch.Generator().manual_seed(0))
    ready = copy.deepcopy(model).eval() if keep_batchnorm else fold_batchnorm(model)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(ready.cpu().float(), temporary, (example,), input_names=("images",), output_names=output_names,
              exporter=exporter, opset=opset, dynamic_batch=not batch, keep_batchnorm=keep_batchnorm)
        graph = onnx.load(temporary)
        fold_identities(graph.graph)
        if decode:
            graph = with_decode(graph)
        onnx.checker.check_model(graph)
        onnx.save(graph, temporary)
        left = [n.name for n in graph.graph.node if n.op_type == "BatchNormalization"]
        if left and not keep_batchnorm:
            raise ValueError(f"export: got {len(left)} BatchNormalization nodes (first {left[0]}), expected none; "
                             "put each BatchNorm2d right behind its Conv2d in one nn.Sequential")
    return path


def max_abs_diff(
    runner,
    reference: "nn.Module | Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray] | Sequence[np.ndarray]]",
    x_nchw: np.ndarray,
) -> float:
    """Largest absolute difference between a runner's outputs and a reference's, over all outputs.

    Args:
        runner: an `engine.Runner` of the exported graph.
        reference: the torch module that was exported, or a function of a feed: `infer` of another runner, or
            `functools.partial(onnx.reference.ReferenceEvaluator(graph).run, None)`. Outputs by name, or in the
            runner's order.
        x_nchw: (N, 3, S, S) float32.

    Returns:
        The difference, in the outputs' unit (logits for YOLOv3).

    Raises:
        ValueError: no image, or the reference has other outputs than the runner.
    """
    if not x_nchw.size:
        raise ValueError(f"x_nchw: got shape {x_nchw.shape}, expected at least one image")
    (name,) = runner.inputs
    got = runner.infer({name: x_nchw})
    expected = _torch_outputs(reference, x_nchw) if hasattr(reference, "forward") else reference({name: x_nchw})
    if isinstance(expected, Mapping):
        if expected.keys() != got.keys():
            raise ValueError(f"reference: got outputs {sorted(expected)}, expected the runner's {sorted(got)}")
        expected = [expected[key] for key in got]
    # np.max, since Python's max drops a NaN that is not the first.
    return float(np.max([np.abs(g - e).max() for g, e in zip(got.values(), expected, strict=True)]))


def _torch_outputs(model: "nn.Module", x_nchw: np.ndarray) -> list[np.ndarray]:
    import torch

    with torch.inference_mode():
        outputs = copy.deepcopy(model).eval()(torch.from_numpy(x_nchw))
    return [o.numpy() for o in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]


def expose_tensors(graph: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of the graph that also returns the named inner tensors, for calibration and debugging.

    Args:
        graph: any ONNX model.
        names: tensors that some node writes.

    Returns:
        The copy, original outputs first.

    Raises:
        ValueError: a name that no node writes.
    """
    written = {out for node in graph.graph.node for out in node.output}
    if unknown := [n for n in names if n not in written]:
        raise ValueError(f"expose_tensors: got {unknown[0]!r}, expected a tensor that a node of the graph writes")
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    have = {out.name for out in exposed.graph.output}
    exposed.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names if n not in have
    )
    return exposed
