"""PyTorch as a contender: eager FP32 as it comes, and FP16 with what its users know to be fast. Lesson 11."""

import copy
from collections.abc import Callable

import torch

from trtkit.bench_rounds import queued_ms

GRAPH_WARM_UP = 3           # runs before a capture; cuDNN chooses its kernels in the first


class Event:
    """A `torch.cuda.Event` with the methods of `cuda.Event`."""

    def __init__(self):
        self._event = torch.cuda.Event(enable_timing=True)

    def record(self, stream: torch.cuda.Stream) -> None:
        """Put the mark behind everything on the stream so far."""
        self._event.record(stream)

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""
        self._event.synchronize()

    def elapsed_ms(self, since: "Event") -> float:
        """Milliseconds from `since` to this event."""
        return since._event.elapsed_time(self._event)

    def close(self) -> None:
        """PyTorch frees it."""


def timed(launch: Callable[[], object]) -> Callable[[int], list[float]]:
    """A contender for `bench_rounds.interleave`: device time of each of n runs, milliseconds."""
    return lambda n: queued_ms(launch, Event, torch.cuda.current_stream(), n)


def eager_fp32(model: torch.nn.Module, x_nchw: torch.Tensor, *, tf32: bool = True) -> Callable[[], object]:
    """One run of a copy of the module on the GPU, NCHW, otherwise with PyTorch's defaults.

    Args:
        model: on any device, in eval mode.
        x_nchw: (N, 3, H, W) float32.
        tf32: let convolutions round their inputs to 10 bits, PyTorch's default; without, all 23 bits count.
    """
    model, x = copy.deepcopy(model).cuda(), x_nchw.cuda()

    def launch():
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            return model(x)

    return launch


def graphed_fp16(model: torch.nn.Module, x_nchw: torch.Tensor) -> Callable[[], object]:
    """One replay of a CUDA graph of a copy of the module in FP16, channels_last, with the fastest of cuDNN's kernels.

    Args: see `eager_fp32`.
    """
    model = copy.deepcopy(model).half().to(memory_format=torch.channels_last).cuda()
    x = x_nchw.half().to(memory_format=torch.channels_last).cuda()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARM_UP):
                model(x)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            heads = model(x)

    def launch():
        graph.replay()
        return heads            # keeps the graph's memory, and the module's, alive

    launch.model, launch.images = model, x      # the graph reads both where they lie: PyTorch must not free them
    return launch


def heads_of(launch: Callable[[], object]) -> list:
    """The outputs of one run as float32 NumPy arrays."""
    return [head.float().cpu().numpy() for head in launch()]


def release() -> None:
    """Give the memory that PyTorch keeps for later back to the device."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
