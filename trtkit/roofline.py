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


def measured_cpu(*, size: int | None = None, copy_mib: int | None = None, turns: int = 12) -> Device:
    """This machine's CPU, with a peak and a bandwidth that it has reached: the best of several runs of each.

    The peak comes from NumPy's float32 matrix product, whose BLAS uses all cores. The bandwidth comes from copying an
    array that no cache holds, one part per core; a byte copied is counted twice, read and written. (The memory moves
    half as much again, since a line is read before it is overwritten.)

    Args:
        size: of the square matrices; None lets it grow with the cores, see `work_for`.
        copy_mib: of the array that is copied; likewise.
        turns: of ten products and five copies each, about a second in all; the best of all counts, since what disturbs
            a run only makes it slower. Short runs at different times, so that some meet no other process.
    """
    cores = len(os.sched_getaffinity(0))
    size, copy_mib = (given or fitting for given, fitting in zip((size, copy_mib), work_for(cores), strict=True))
    a = np.ones((size, size), np.float32)
    product = np.empty_like(a)
    source = np.ones((cores, copy_mib * 2**20 // 4 // cores), np.float32)
    target = np.empty_like(source)
    matmul_ms = copy_ms = float("inf")
    # OMP_NUM_THREADS, which hubs set, would leave BLAS fewer cores than the runner has, and a roof below its layers.
    with threadpool_limits(cores), ThreadPoolExecutor(cores) as pool:   # NumPy copies without the interpreter lock
        for _ in range(turns):
            matmul_ms = min(matmul_ms, _best_ms(lambda: np.matmul(a, a, out=product), 10))
            copy_ms = min(copy_ms, _best_ms(lambda: list(pool.map(np.copyto, target, source)), 5))
    return Device(
        name=f"CPU, {cores} cores",
        peak_tflops={"fp32": 2 * matmul_macs(size, size, size) / matmul_ms / 1e9},
        bandwidth_gb_per_s=2 * source.nbytes / copy_ms / 1e6,
    )


def work_for(cores: int) -> tuple[int, int]:
    """Size of the matrices, and MiB of the array to copy, that keep so many cores busy for a millisecond or more.

    A product of two 512x512 matrices lasts 2 ms on two cores; on 16 the threads would wait for each other longer than
    they compute, and layers come out far below such a roof. Work per core stays: size^3 grows with the cores.
    """
    return 64 * round(8 * (cores / 2) ** (1 / 3) + 0.49), min(32 * max(cores, 2), 512)


def _best_ms(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return min(times[1:])                               # the first run also fetches memory from the system
