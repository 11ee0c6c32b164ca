"""What does the host pay to start a network? Kernel by kernel, or with one CUDA graph. Lessons 08 and 09.

An enqueue launches every kernel by itself, some microseconds of the CPU each; a graph launches all of them with one
call. Where the CPU needs longer to launch than the device to run, the inference is host-bound, and a graph helps.
Source: CUDA C++ Programming Guide, "CUDA Graphs"; TensorRT developer guide, "Enqueue-Bound Workloads and CUDA Graphs".
"""

import time
from typing import Any

import numpy as np


def launch_cost(runner: Any, *, runs: int = 200) -> dict[str, dict[str, float]]:
    """What it costs the host to start a network, and how long the device then takes.

    Args:
        runner: a `runner_trt.TrtRunner` whose input has been staged.
        runs: of each way, at least 1, after 10 that do not count; the two ways take turns in blocks of ten.

    Returns:
        By "graph" and "enqueue": medians of "host_ms" (until the call returns), "device_ms" (between two events around
        it) and "total_ms" (until everything is done, by the host's clock).

    Raises:
        ValueError: `runs` below 1.
    """
    if runs < 1:
        raise ValueError(f"runs: got {runs}, expected at least 1")
    from trtkit import cuda

    before, ways = runner.use_graph, {"graph": True, "enqueue": False}
    times = {way: [] for way in ways}
    with cuda.primary_context(), cuda.Event() as start, cuda.Event() as end:
        try:
            runner.upload()
            while len(times["enqueue"]) < runs + 10:
                for way, use_graph in ways.items():
                    runner.use_graph = use_graph
                    times[way] += [_one_launch(runner, start, end) for _ in range(10)]
        finally:
            runner.use_graph = before
    names = ("host_ms", "device_ms", "total_ms")
    return {way: dict(zip(names, map(float, np.median(t[10:], axis=0)), strict=True)) for way, t in times.items()}


def _one_launch(runner: Any, start: Any, end: Any) -> tuple[float, float, float]:
    start.record(runner.stream)
    begun = time.perf_counter()
    runner.launch()
    returned = time.perf_counter()
    end.record(runner.stream)
    runner.stream.synchronize()
    return (returned - begun) * 1e3, end.elapsed_ms(start), (time.perf_counter() - begun) * 1e3
