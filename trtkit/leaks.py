"""Does memory come back? Probes of device and host memory, and their curve over the steps of a program. Lesson 08.

A leak in Python is not memory that nobody can reach, it is memory that somebody still can: a list that grows, the
notebook's `Out`, the traceback of an exception. So the curve, not the code, says whether a program leaks.
"""

import os
from collections.abc import Callable
from pathlib import Path

from trtkit import nvidia

MIB = 1 << 20


def curve(step: Callable[[int], object], steps: int, probe: Callable[[], float]) -> list[float]:
    """Ask `probe` before the first step and after each one.

    Args:
        step: called with 0, 1, ...; what it returns is dropped.
        steps: how often, at least 1.
        probe: for example `device_used_mib`.

    Returns:
        `steps` + 1 values of the probe, less the first of them: growth in the probe's unit, starting at 0.

    Raises:
        ValueError: `steps` below 1.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    values = [probe()]
    for i in range(steps):
        step(i)
        values.append(probe())
    return [v - values[0] for v in values]


def per_step(growth: list[float], *, skip: int = 1) -> float:
    """Mean growth of one step, in the unit of the curve.

    Args:
        growth: from `curve`.
        skip: steps at the beginning that do not count: pools and caches are filled there once.

    Raises:
        ValueError: nothing is left after `skip`.
    """
    if len(growth) < skip + 2:
        raise ValueError(f"growth: got {len(growth)} values, expected at least {skip + 2} to skip {skip} steps")
    return (growth[-1] - growth[skip]) / (len(growth) - 1 - skip)


def resident_mib() -> float:
    """Host memory of this process that is in RAM, MiB, from /proc/self/statm."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def device_used_mib() -> float:
    """Memory of the GPU in use by anybody, MiB, from CUDA's own count: total less free."""
    from trtkit import cuda

    free_mib, total_mib = cuda.memory_mib()
    return float(total_mib - free_mib)


def nvml_used_mib() -> float | None:
    """Memory of the first GPU in use by anybody, MiB, as NVML and nvidia-smi see it from outside the process.

    None where NVML is missing or will not say (a slice of a card, a container without rights).
    """
    used = nvidia.ask_first(lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used)
    return None if used is None else used / MIB
