"""How many joules one image costs, where the machine has a counter. Lesson 01.

Energy is counted by the hardware, not computed from a power that was read now and then:
    E = (counter after - counter before) * joules per count,    per image: E / images
A CPU's counter is RAPL, which Linux shows below /sys/class/powercap: the package, and the memory where it is counted
apart. A GPU's is NVML's, the whole card. Both include what the machine draws while it idles, and whatever else runs.
Left out on purpose: Jetson's sensors and plugs with a meter, which show watts and need sampling.
Source: Linux, Documentation/power/powercap; NVML API reference, nvmlDeviceGetTotalEnergyConsumption (Volta and later).
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtkit import nvidia
from trtkit.machine import ROOT, text

_PACKAGE = re.compile(r"intel-rapl:\d+")                # AMD's packages have the same name
_MEMORY = re.compile(r"intel-rapl:\d+:\d+")


@dataclass(frozen=True)
class Counter:
    """Joules that only grow.

    Attributes:
        name: what is counted, "RAPL package-0 + dram".
        read: the counts now, one per part.
        wraps_at: by part, the count after which it starts again at 0; 0 for never.
        joules: of one count.
    """

    name: str
    read: Callable[[], tuple[int, ...]]
    wraps_at: tuple[int, ...]
    joules: float

    def between(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Joules between two readings, which must be less than one round of the counter apart (minutes at least)."""
        counts = 0
        for b, a, wraps_at in zip(before, after, self.wraps_at, strict=True):
            if a < b and not wraps_at:
                raise ValueError(f"{self.name}: got {b} and then {a}, expected counts that grow; was the driver "
                                 "loaded anew? Measure again")
            counts += a - b if a >= b else a - b + wraps_at
        return counts * self.joules


@dataclass(frozen=True)
class Energy:
    """What a measurement took; `images` were processed in `seconds`."""

    joules: float
    seconds: float
    images: int
    counter: str

    @property
    def joules_per_image(self) -> float:
        """What idles is included."""
        return self.joules / self.images

    @property
    def watts(self) -> float:
        """The mean over the measurement."""
        return self.joules / self.seconds


def counter(kind: str, *, root: Path = ROOT, nvml: object | None = None) -> tuple[Counter | None, str]:
    """This machine's counter of joules.

    Args:
        kind: "cpu" or "gpu".
        root: where /sys is.
        nvml: NVML's Python module; by default the one that is installed, if any.

    Returns:
        The counter and its name; None and why there is none.

    Raises:
        ValueError: another kind.
    """
    if kind not in ("cpu", "gpu"):
        raise ValueError(f"kind: got {kind!r}, expected 'cpu' or 'gpu'")
    return _rapl(root) if kind == "cpu" else _nvml(nvml)


def measure(run: Callable[[], object], of: Counter, *, images: int = 1, seconds: float = 2.0) -> Energy:
    """Run again and again, and count the joules meanwhile.

    Args:
        run: one call, which must have finished its work when it returns (`infer` has).
        of: a `counter`.
        images: of one call.
        seconds: at least; counters move every 1 ms (RAPL) to 100 ms (NVML), so shorter runs would be rounded.

    Raises:
        ValueError: no image, or no time; or a counter that ran backwards.
    """
    if images < 1 or seconds <= 0:
        raise ValueError(f"measure: got {images} images in {seconds} s, expected at least 1 in more than 0 s")
    run()                                               # the first run sets up
    before, start, done = of.read(), time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds or not done:
        run()
        done += images
    return Energy(of.between(before, of.read()), took, done, of.name)


def _rapl(root: Path) -> tuple[Counter | None, str]:
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    names = {folder: text(folder / "name").strip() for folder in folders}
    # "psys" holds the packages as well, "core" and "uncore" are held by theirs; memory is beside its package.
    parts = [f for f in folders if (_PACKAGE.fullmatch(f.name) and names[f].startswith("package"))
             or (_MEMORY.fullmatch(f.name) and names[f] == "dram")]
    if not parts:
        return None, ("no energy counter of a CPU: /sys/class/powercap shows no RAPL package (a virtual machine or a "
                      "container hides it, or another kind of CPU)")
    files = [f / "energy_uj" for f in parts]
    if blind := [f for f in files if not text(f).strip().isdigit()]:
        return None, (f"an energy counter that only root may read, since it gives secrets away (CVE-2020-8694); where "
                      f"that does not matter: sudo chmod a+r {blind[0]}")
    wraps_at = tuple(int(text(f / "max_energy_range_uj") or 0) for f in parts)
    name = "RAPL " + " + ".join(names[f] for f in parts)
    return Counter(name, lambda: tuple(int(text(f)) for f in files), wraps_at, 1e-6), name


def _nvml(nvml: object | None) -> tuple[Counter | None, str]:
    def millijoules(nvml, gpu) -> int:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)

    if nvidia.ask_first(millijoules, nvml) is None:
        return None, ("no energy counter of a GPU: NVML is missing, finds no card, or will not say (before Volta, or a "
                      "slice of a card)")
    name = "NVML, the whole card"
    return Counter(name, lambda: (nvidia.ask_first(millijoules, nvml) or 0,), (0,), 1e-3), name
