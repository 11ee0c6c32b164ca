"""What does it cost to move bytes? Copies between host and device, or within the host, by size. Lesson 08.

time(n) = t0 + n / bandwidth        t0: what a call costs however little it moves

Pinned (page-locked) pages cannot be moved or swapped, so the device fetches them by itself. From pageable memory the
driver first copies into a pinned buffer of its own: the bytes travel twice, and the calling thread does half the work.
Source: CUDA C++ Best Practices Guide, "Pinned Memory". Without a GPU the same question is asked of the host's memory:
what do pages cost that nobody has touched yet, against a buffer that is used again?
"""

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trtkit import nvidia

SIZES = tuple(4096 * 2**i for i in range(15))           # 4 kB to 64 MB


@dataclass(frozen=True)
class Copy:
    """One size copied one way; times are medians.

    Attributes:
        direction: "h2d" host to device, "d2h" device to host, "host" within the host.
        memory: of the host's end: "pageable" or "pinned"; within the host "new pages" or "reused".
        nbytes: that were copied.
        host_ms: from the call until the bytes are there, by the host's clock.
        event_ms: what the device says it took, from CUDA events; None within the host.
    """

    direction: Literal["h2d", "d2h", "host"]
    memory: str
    nbytes: int
    host_ms: float
    event_ms: float | None = None

    @property
    def gb_per_s(self) -> float:
        """Bandwidth that the caller sees, 10^9 bytes per second, by the host's clock."""
        return self.nbytes / self.host_ms / 1e6


def device_copies(sizes: Sequence[int] = SIZES, *, runs: int = 30) -> list[Copy]:
    """Measure copies to the GPU and back, from pageable and from pinned memory.

    Args:
        sizes: bytes, each at least 1.
        runs: of each copy, at least 1, after 3 that do not count; the kinds of copy take turns, so that a change of
            clocks meets all of them.

    Returns:
        Four records for each size.

    Raises:
        ValueError: a size or `runs` below 1.
        BackendError: CUDA refuses, for example for want of memory.
    """
    _check(sizes, runs)
    from trtkit import cuda

    found = []
    with cuda.primary_context(), cuda.Stream() as stream, cuda.Event() as start, cuda.Event() as end:
        for nbytes in sizes:
            with cuda.DeviceBuffer(nbytes) as buffer, cuda.PinnedArray((nbytes,), np.uint8) as pinned:
                hosts = {"pageable": np.ones(nbytes, np.uint8), "pinned": pinned.array}
                pinned.array[:] = 1
                calls = {}
                for memory, array in hosts.items():
                    calls["h2d", memory] = lambda a=array, b=buffer: cuda.copy_to_device(b, a, stream)
                    calls["d2h", memory] = lambda a=array, b=buffer: cuda.copy_to_host(a, b, stream)
                times = {key: [] for key in calls}
                for _ in range(runs + 3):
                    for key, call in calls.items():
                        begun = time.perf_counter()
                        start.record(stream)
                        call()
                        end.record(stream)
                        stream.synchronize()
                        times[key].append(((time.perf_counter() - begun) * 1e3, end.elapsed_ms(start)))
            for (direction, memory), pairs in times.items():
                host_ms, event_ms = np.median(pairs[3:], axis=0)
                found.append(Copy(direction, memory, nbytes, float(host_ms), float(event_ms)))
    return found


def host_copies(sizes: Sequence[int] = SIZES, *, runs: int = 15) -> list[Copy]:
    """Measure copies within the host's memory, into a buffer that is reused and into pages that are new.

    New pages come straight from the kernel, which must find and clear each one when it is first written: what a
    program pays that allocates a fresh array for every frame.

    Args:
        sizes: bytes, each at least 1.
        runs: of each copy, at least 1, after one that does not count.

    Returns:
        Two records for each size.

    Raises:
        ValueError: a size or `runs` below 1.
    """
    _check(sizes, runs)
    found = []
    for nbytes in sizes:
        source, buffer = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
        times = {"reused": [], "new pages": []}
        for _ in range(runs + 1):
            pages = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)      # unmapped with its last reference
            times["reused"].append(_timed_ms(lambda s=source, b=buffer: np.copyto(b, s)))
            times["new pages"].append(_timed_ms(lambda s=source, p=pages: np.copyto(p, s)))
        found += [Copy("host", memory, nbytes, float(np.median(ms[1:]))) for memory, ms in times.items()]
    return found


def _check(sizes: Sequence[int], runs: int) -> None:
    if runs < 1:
        raise ValueError(f"runs: got {runs}, expected at least 1")
    if bad := [n for n in sizes if n < 1]:
        raise ValueError(f"sizes: got {bad[0]} bytes, expected at least 1")


def _timed_ms(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def fit(copies: Sequence[Copy]) -> tuple[float, float]:
    """The line time(n) = t0 + n / bandwidth through one kind of copy.

    Least squares of the *relative* error, so that small copies count as much as large ones.

    Args:
        copies: of one direction and memory, of at least two sizes.

    Returns:
        t0 in ms and the bandwidth in GB/s, both of the host's clock. Neither is below 0; a bandwidth of infinity says
        that the time did not grow with the size.

    Raises:
        ValueError: several kinds of copy, or fewer than two sizes.
    """
    kinds = {(c.direction, c.memory) for c in copies}
    if len(kinds) != 1 or len({c.nbytes for c in copies}) < 2:
        raise ValueError(f"copies: got {len(copies)} of kinds {sorted(kinds)}, expected two or more sizes of one kind")
    nbytes = np.array([c.nbytes for c in copies], np.float64)
    ms = np.array([c.host_ms for c in copies])
    # Divided by ms on both sides: 1 = t0 / ms + slope * n / ms.
    (t0, slope), *_ = np.linalg.lstsq(np.stack([1 / ms, nbytes / ms], 1), np.ones(len(ms)), rcond=None)
    if t0 < 0:                                          # no latency to be seen: the line goes through 0
        t0, slope = 0.0, float((nbytes / ms).sum() / ((nbytes / ms) ** 2).sum())
    return float(t0), float(1e-6 / slope) if slope > 0 else float("inf")


def pcie_gb_per_s(generation: int, width: int) -> float:
    """What a PCI Express link carries one way, GB/s; headers of its packets take another tenth or so.

    rate * coding * width / 8: generation 3 moves 8 billion bits per second and lane, each later one twice as many; of
    130 bits 128 are data, in generation 6 of 256 bytes 242. Source: PCI Express base specification, physical layer.

    Args:
        generation: 3 to 6.
        width: lanes, at least 1.

    Raises:
        ValueError: another generation, or no lane.
    """
    if not 3 <= generation <= 6 or width < 1:
        raise ValueError(f"PCIe: got generation {generation} x{width}, expected generation 3 to 6, 1 lane or more")
    coding = 242 / 256 if generation == 6 else 128 / 130
    return 8.0 * 2 ** (generation - 3) * coding * width / 8


def pcie_link() -> tuple[int, int] | None:
    """Highest PCIe generation and width of the first GPU's link, as NVML tells; None where it does not.

    The highest, not the current: an idle card slows its link down, and speeds it up for a copy.
    """
    return nvidia.ask_first(lambda nvml, gpu: (
        nvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu), nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu)))
