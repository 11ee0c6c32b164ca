"""What could this device do at best? Lessons 01 and 09.

A layer needs its multiply-adds and its bytes; a device has a peak and a bandwidth. The slower of the two decides:
    t >= max(2 * macs / peak, bytes / bandwidth)
Left out on purpose: caches (a tensor that stays in one moves no bytes of memory), launch times, and kernels that save
multiplications (Winograd); all three let a layer end up on the other side of the line, and lesson 09 finds where.
Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from trtkit.devices import Device


def attainable_ms(macs: float, bytes_moved: float, device: Device, precision: str = "fp32") -> float:
    """The least time that the device needs: max(2 * macs / peak, bytes / bandwidth).

    Args:
        macs: multiply-adds, at least 0.
        bytes_moved: between the chip and its memory, at least 0.
        device: its limits.
        precision: a key of `device.peak_tflops`.

    Returns:
        Milliseconds.

    Raises:
        ValueError: the device has no peak of this precision, or a negative number.
    """
    if macs < 0 or bytes_moved < 0:
        raise ValueError(f"work: got {macs} multiply-adds and {bytes_moved} bytes, expected at least 0 of each")
    compute_ms = 2 * macs / (device.peak(precision) * 1e9)
    return max(compute_ms, bytes_moved / (device.bandwidth_gb_per_s * 1e6))


def conv_macs(
    c_in: int, c_out: int, kernel_hw: tuple[int, int], out_hw: tuple[int, int], *, batch: int = 1, groups: int = 1
) -> int:
    """Multiply-adds of a convolution: N * H_out * W_out * C_out * (C_in / groups) * k_h * k_w.

    Every output number is a sum over one kernel window of the channels in its group. Biases are not counted.
    """
    return batch * out_hw[0] * out_hw[1] * c_out * (c_in // groups) * kernel_hw[0] * kernel_hw[1]


def matmul_macs(m: int, k: int, n: int, *, batch: int = 1) -> int:
    """Multiply-adds of (batch, m, k) @ (batch, k, n)."""
    return batch * m * k * n


def measured_cpu(*, size: int = 640, copy_mib: int | None = None, turns: int = 12) -> Device:
    """This machine's CPU, with a peak and a bandwidth that it has reached: the best of several runs of each.

    The peak comes from NumPy's float32 matrix products, one per core at the same time. (One product on all cores would
    make threads wait for each other inside of it: too small on 16 cores, they wait longer than they compute, and where
    other work takes a core away all wait for that one, which once made a fifteenth of the peak.) The bandwidth comes
    from copying an array that no cache holds, one part per core; a byte copied is counted twice, read and written. (The
    memory moves half as much again, since a line is read before it is overwritten.)

    Args:
        size: of the square matrices; 640 take a core some ms.
        copy_mib: of the array that is copied; None takes 32 per core, 64 at least and 512 at most.
        turns: of ten products and five copies each, about a second in all; the best of all counts, since what disturbs
            a run only makes it slower. Short runs at different times, so that some meet no other process.
    """
    cores = len(os.sched_getaffinity(0))
    a = np.ones((size, size), np.float32)
    products = [np.empty_like(a) for _ in range(cores)]
    copy_mib = copy_mib or min(32 * max(cores, 2), 512)
    source = np.ones((cores, copy_mib * 2**20 // 4 // cores), np.float32)
    target = np.empty_like(source)
    matmul_ms = copy_ms = float("inf")
    with threadpool_limits(1), ThreadPoolExecutor(cores) as pool:   # NumPy does both without the interpreter lock
        for _ in range(turns):
            matmul_ms = min(matmul_ms, _best_ms(lambda: list(pool.map(partial(np.matmul, a, a), products)), 10))
            copy_ms = min(copy_ms, _best_ms(lambda: list(pool.map(np.copyto, target, source)), 5))
    return Device(
        name=f"CPU, {cores} cores",
        peak_tflops={"fp32": 2 * matmul_macs(size, size, size, batch=cores) / matmul_ms / 1e9},
        bandwidth_gb_per_s=2 * source.nbytes / copy_ms / 1e6,
    )


def _best_ms(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return min(times[1:])                               # the first run also fetches memory from the system
