"""How does a network learn to live with 8 bits? Quantization-aware training. Lesson 06.

Fine-tuning with fake quantization in the forward pass, so that the weights find values that survive it. Where it goes
is asked of `qdq.insert_qdq` itself: the network is exported and quantized, and the Q/DQ graph is run node by node in
torch, with live float weights in the place of stored codes. So training sees the very pairs that will be deployed.
Ranges of activations stay those of the calibration table; weights learn around them.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import nn

from trtkit import train
from trtkit.calib import Range
from trtkit.data import TrainingSet
from trtkit.export import OUTPUT_NAMES, export_onnx, fold_batchnorm
from trtkit.fake_quant import Pair, QuantizedConv
from trtkit.files import replacing
from trtkit.progress import bar
from trtkit.qdq import insert_qdq

TRACE_SIZE = 64             # of the input when the graph is only read; no name depends on it


class FakeQuantized(nn.Module):
    """A network that computes what its Q/DQ graph computes, and whose float weights can be trained; see `prepare`.

    Attributes: `float_model`, the network with BatchNorm folded, which holds the parameters; `recipe`, the arguments
    of `insert_qdq`; `output_names`, those of the graph.
    """

    def __init__(self, float_model: nn.Module, graph: onnx.ModelProto, recipe: dict):
        super().__init__()
        self.float_model, self.recipe = float_model, recipe
        self.output_names = tuple(o.name for o in graph.graph.output)
        self._input = graph.graph.input[0].name
        self._steps = _steps(float_model, graph, insert_qdq(graph, **recipe))
        self._owned = nn.ModuleList(f for f, _, _ in self._steps if isinstance(f, nn.Module))     # .to() moves them

    def forward(self, x_nchw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the network takes, float32; its outputs as a tuple, in the graph's order."""
        values = {self._input: x_nchw}
        for function, inputs, output in self._steps:
            values[output] = function(*(values[name] for name in inputs))
        return tuple(values[name] for name in self.output_names)


def _steps(
    float_model: nn.Module, graph: onnx.ModelProto, quantized: onnx.ModelProto
) -> list[tuple[Callable, list[str], str]]:
    """The Q/DQ graph as torch functions, each with the names of its inputs and its output, in the order of the run."""
    constants = {i.name: numpy_helper.to_array(i) for i in quantized.graph.initializer}
    float_inputs = {n.name: list(n.input) for n in graph.graph.node}
    coded, pairs, steps = {}, {}, []
    for node in quantized.graph.node:
        inputs, out = list(node.input), node.output[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            constants[out] = numpy_helper.to_array(attributes["value"])
        elif node.op_type == "QuantizeLinear":
            coded[out] = inputs[0]
        elif node.op_type == "DequantizeLinear" and inputs[0] in coded:
            pairs[out] = Pair(constants[inputs[1]], constants[inputs[2]])
            steps.append((pairs[out], [coded[inputs[0]]], out))
        elif node.op_type == "Conv":
            changed = [new != old for new, old in zip(inputs, float_inputs[node.name], strict=True)]
            conv = _conv_of(float_model, node.name, float_inputs[node.name][1])
            if changed[1]:
                conv = QuantizedConv(conv, pairs[inputs[0]].scale, bias_in_codes=any(changed[2:]))
            steps.append((conv, inputs[:1], out))
        elif node.op_type == "LeakyRelu":
            steps.append((partial(F.leaky_relu, negative_slope=attributes.get("alpha", 0.01)), inputs, out))
        elif node.op_type == "Add":
            steps.append((torch.add, inputs, out))
        elif node.op_type == "Concat":
            steps.append((partial(_concat, dim=attributes["axis"]), inputs, out))
        elif node.op_type == "Resize" and attributes["mode"] == b"nearest":
            factors = tuple(float(f) for f in constants[inputs[2]][2:])
            steps.append((partial(F.interpolate, scale_factor=factors, mode="nearest"), inputs[:1], out))
        # Stored codes are read from the live weights instead.
        elif not (node.op_type == "DequantizeLinear" and inputs[0] in constants):
            raise ValueError(f"prepare: got operator {node.op_type} ({node.name!r}), expected Conv, LeakyRelu, Add, "
                             "Concat or nearest Resize; add it to qat._steps")
    return steps


def _conv_of(float_model: nn.Module, node: str, weight: str) -> nn.Conv2d:
    # The exporter names weights as the state dict does, also where it merges equal ones.
    modules = dict(float_model.named_modules())
    conv = modules.get(weight.removesuffix(".weight"))
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"prepare: {node!r} reads weights {weight!r}, expected those of an nn.Conv2d of the network; "
                         "call layers as modules, without computing their weights")
    return conv


def _concat(*tensors: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat(tensors, dim)


def prepare(
    model: nn.Module,
    table: Mapping[str, Range],
    *,
    target: str,
    skip: Iterable[str] = (),
    output_names: tuple[str, ...] = OUTPUT_NAMES,
) -> FakeQuantized:
    """Fold BatchNorm and put fake quantization where `insert_qdq` puts pairs.

    Args:
        model: of convolutions, LeakyReLU, additions, concatenations and nearest upsampling, such as `YOLOv3`.
        table: ranges of the exported graph's tensors, see `calib.ranges`.
        target: "cpu" or "trt".
        skip: convolutions that stay float, as for `insert_qdq`.
        output_names: as for `export_onnx`.

    Returns:
        A second network, all of whose weights and biases train; the argument is unchanged.

    Raises:
        ValueError: the model is prepared already, the table belongs to another graph or lacks a tensor, an operator
            beyond those above, or what `insert_qdq` refuses.
    """
    if any(isinstance(m, FakeQuantized) for m in model.modules()):
        raise ValueError("model: got a network that is prepared already, expected a float one; prepare its float_model")
    # Folding in PyTorch freezes the biases that it makes where the convolution had none.
    folded = fold_batchnorm(model).cpu().float().requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(folded, Path(folder) / "float.onnx", size=TRACE_SIZE, output_names=output_names)
        graph = onnx.load(path)
    written = {i.name for i in graph.graph.input} | {out for n in graph.graph.node for out in n.output}
    if unknown := sorted(table.keys() - written):
        raise ValueError(f"table: got a range for {unknown[0]!r}, which this network's graph lacks, expected its own "
                         "table; calibrate it again")
    return FakeQuantized(folded, graph, {"table": dict(table), "target": target, "skip": tuple(skip)})


def export_qdq(prepared: FakeQuantized, path: Path, *, size: int = 416) -> Path:
    """Write the Q/DQ graph of the trained weights: `export_onnx`, then `insert_qdq` with the same table.

    Args:
        prepared: from `prepare`, trained or not.
        path: of the .onnx file.
        size: side of the input, pixels, a multiple of 32.

    Returns:
        `path`. Nodes and names are those of the graph that was never trained; weights differ.
    """
    path = Path(path)
    export_onnx(prepared.float_model, path, size=size, output_names=prepared.output_names)
    with replacing(path) as temporary:
        onnx.save(insert_qdq(onnx.load(path), **prepared.recipe), temporary)
    return path


def finetune(
    prepared: FakeQuantized,
    data: TrainingSet,
    *,
    steps: int = 200,
    batch: int = 8,
    lr: float = 1e-4,
    augment: bool = True,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> list[float]:
    """Train the weights in place, on the detector's own loss, with Adam and a cosine from `lr` to 0.

    Args:
        prepared: from `prepare`.
        data: see `data.training_set`.
        steps: at least 1.
        batch: images a step.
        lr: first learning rate; a tenth of that of a training from scratch or less.
        augment: mirror, zoom and recolour images, see `train.augment`.
        seed: of the choice of images.
        device: "cuda", "cpu", or None for the GPU where there is one.
        progress: show a bar with the loss.

    Returns:
        The loss of each step. The network is back on the CPU.

    Raises:
        ValueError: steps or batch below 1, lr not above 0, or no images.
        FloatingPointError: the loss is no longer finite; the weights are those of the step before.
    """
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if not lr > 0:
        raise ValueError(f"lr: got {lr}, expected a learning rate above 0, such as 1e-4")
    if len(data.images_u8) == 0:
        raise ValueError("data: got 0 images, expected at least one; see data.training_set")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    prepared.to(device)
    images, boxes, labels = (torch.from_numpy(a).to(device) for a in (data.images_u8, data.boxes_xyxy, data.labels))
    optimizer = torch.optim.Adam(prepared.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng, losses = torch.Generator(device).manual_seed(seed), []
    shown = bar(range(steps), "fine-tune", total=steps, unit="step", show=progress)
    for step in shown:
        pick = torch.randint(len(images), (batch,), generator=rng, device=device)
        x, b, k = images[pick].float().div_(255), boxes[pick], labels[pick]
        if augment:
            x, b, k = train.augment(x, b, k, rng)
        loss = train.yolo_loss(list(prepared(x)), b, k)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"finetune: loss is {losses[-1]} at step {step}; lower lr (now {lr})")
        shown.set_postfix(loss=f"{losses[-1]:.3f}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prepared.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    prepared.cpu()
    return losses
