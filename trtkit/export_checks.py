"""Can this module become a graph at all? Asked before anything is written. Lesson 05.

A graph holds one sequence of operators, and its numbers may depend on nothing but the inputs. So three kinds of module
cannot be exported faithfully: one that refuses the example, one that rolls dice, and one that looks at a number to
decide what to compute. The last is the treacherous one: a trace records the branch that the example took, and is silent
about the other.
"""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import torch
    from torch import nn

FILE_LIMIT = 2**31          # bytes: one protobuf message, which an ONNX file is, holds no more
SAME = 1e-3                 # of an output's span; threads may add in another order, dice differ by far more


def outputs_of(model: "nn.Module", example: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
    """Run a module on the example and return its outputs as a flat list; twice where it drew random numbers.

    Args:
        model: in eval mode, on the CPU.
        example: its positional inputs.

    Raises:
        ValueError: it refuses the example, returns something else than tensors, or two runs differ.
    """
    import torch

    shown = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in example)
    runs = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            try:
                y = model(*example)
            except (RuntimeError, TypeError, ValueError, IndexError) as e:     # what PyTorch and forward() raise
                raise ValueError(f"example: got {shown}, and the module refuses it: {e}; expected shapes that its "
                                 "forward() takes") from e
            runs.append([y] if isinstance(y, torch.Tensor) else list(y) if isinstance(y, tuple | list) else [y])
            if torch.equal(before, torch.get_rng_state()):
                break                                   # no dice were rolled, so another run would be the same
    for i, (a, b) in enumerate(zip(runs[0], runs[-1], strict=True)):
        if not isinstance(a, torch.Tensor):
            raise ValueError(f"output {i}: got {type(a).__name__}, expected a tensor; wrap the module in one whose "
                             "forward() returns a tensor or a tuple of tensors")
        if a.numel() and a.is_floating_point():
            apart = (a - b).abs().max().item()
            if apart > SAME * max(float(a.abs().max()), 1e-6):
                raise ValueError(f"output {i}: got two runs of one input that differ by {apart:.3g}, expected equal "
                                 "ones; something is still random: F.dropout needs training=self.training")
    return runs[0]


def data_dependent(model: "nn.Module", example: "Sequence[torch.Tensor]") -> str:
    """Where a module makes Python or NumPy numbers of a tensor's: "file.py:12: if x.mean() > 0:", "" where it does not.

    It runs on fake tensors, which have a shape and no numbers, so that asking for a shape is no offence. Nor are
    operators that they cannot follow: sizes that depend on data, or custom operators.
    """
    import torch
    from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode, UnsupportedOperatorException

    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model(*(mode.from_tensor(x) for x in example))
    except (DynamicOutputShapeException, UnsupportedOperatorException):
        return ""
    except (RuntimeError, TypeError) as e:
        inside = Path(torch.__file__).parent
        frames = [f for f in traceback.extract_tb(e.__traceback__) if inside not in Path(f.filename).parents]
        return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}"
    return ""


def check_open(graph: onnx.ModelProto, batch: int) -> None:
    """A graph whose batch shall be open must not hold the example's anywhere.

    Args:
        graph: with outputs whose first dimension is the batch.
        batch: of the example.

    Raises:
        ValueError: an input or output that has this many rows whatever comes in.
    """
    # The exporter writes "batch" at the outputs whatever the nodes compute; what is inferred from those goes before it.
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    stored = {i.name for i in inferred.initializer}
    for value in (*inferred.input, *inferred.output):
        first = value.type.tensor_type.shape.dim[:1]
        if value.name not in stored and first and first[0].dim_value == batch:
            raise ValueError(f"{value.name}: got a batch that is always the example's, {batch}, expected an open one; "
                             "the module makes a Python number of a shape: write x.flatten(1) or x.shape[0], without "
                             "int(); or export with a fixed batch")


def check_size(model: "nn.Module") -> None:
    """One file holds 2 GiB at most; beyond, the weights lie in files of their own beside it.

    Raises:
        ValueError: the parameters and buffers take more.
    """
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if size >= FILE_LIMIT:
        raise ValueError(f"model: got {size / 2**30:.2f} GiB of weights, expected less than 2 GiB, which is what one "
                         "ONNX file holds; export it in FP16 (model.half()), or write the weights as external data "
                         "(torch.onnx.export(..., external_data=True)) and keep both files together")
