"""What could this device do at best? Lesson 09.

A layer needs its multiply-adds and its bytes; a device has a peak and a bandwidth. The slower of the two decides:
    t >= max(2 * macs / peak, bytes / bandwidth)
Left out on purpose: caches (a tensor that stays in one moves no bytes of memory), launch times, and kernels that save
multiplications (Winograd); all three let a layer end up on the other side of the line, and lesson 09 finds where.
Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Device:
    """What a device can do at best.

    Attributes:
        name: as it is shown.
        peak_tflops: 10^12 floating-point (or integer) operations a second by type, "fp32", "fp16", "int8" and so on;
            a multiply-add is two. Dense: data sheets that count structured sparsity print the double.
        bandwidth_gb_per_s: of its main memory, 10^9 bytes a second, reads and writes together.
    """

    name: str
    peak_tflops: Mapping[str, float]
    bandwidth_gb_per_s: float

    def ridge(self, precision: str = "fp32") -> float:
        """Operations per byte at which compute and memory take equally long: layers below it wait for memory."""
        return 1000 * _peak(self, precision) / self.bandwidth_gb_per_s


# By the name that CUDA and NVML give. NVIDIA's data sheets of H100 SXM5 and H200 SXM, tensor-core figures without
# sparsity; "fp32" is the CUDA cores' figure, "tf32" what TensorRT uses for FP32 tensors unless told otherwise.
_HOPPER_TFLOPS = {"fp32": 67.0, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4, "fp8": 1979.0, "int8": 1979.0}
DEVICES = {
    "NVIDIA H100 80GB HBM3": Device("H100 SXM", _HOPPER_TFLOPS, 3350.0),
    "NVIDIA H200": Device("H200 SXM", _HOPPER_TFLOPS, 4800.0),
}


def find(label: str) -> Device | None:
    """The data sheet of a runner's device; None for one that `DEVICES` lacks (also a slice of a card that it has).

    Args:
        label: an `engine.Runner`'s, "tensorrt 8.6.1 · NVIDIA H100 80GB HBM3".
    """
    return DEVICES.get(label.rpartition(" · ")[2])


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
    compute_ms = 2 * macs / (_peak(device, precision) * 1e9)
    return max(compute_ms, bytes_moved / (device.bandwidth_gb_per_s * 1e6))


def _peak(device: Device, precision: str) -> float:
    if precision not in device.peak_tflops:
        raise ValueError(f"precision: got {precision!r}, expected one of {sorted(device.peak_tflops)} on {device.name}")
    return device.peak_tflops[precision]


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


def measured_cpu(*, size: int = 512, copy_mib: int = 64, turns: int = 12) -> Device:
    """This machine's CPU, with a peak and a bandwidth that it has reached: the best of several runs of each.

    The peak comes from NumPy's float32 matrix product, whose BLAS uses all cores. The bandwidth comes from copying an
    array that no cache holds, one part per core; a byte copied is counted twice, read and written. (The memory moves
    half as much again, since a line is read before it is overwritten.)

    Args:
        size: of the square matrices.
        copy_mib: of the array that is copied.
        turns: of ten products and five copies each, about a second in all; the best of all counts, since what disturbs
            a run only makes it slower. Short runs at different times, so that some meet no other process.
    """
    a = np.ones((size, size), np.float32)
    product = np.empty_like(a)
    cores = len(os.sched_getaffinity(0))
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


def _best_ms(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return min(times[1:])                               # the first run also fetches memory from the system
