"""How fast the GPU's clock runs, and what holds it back, from NVML. Lesson 09.

A time without its clock cannot be compared: the same kernel takes 40 % longer where the clock has dropped by as much.
NVML may not answer (no driver, a slice of a card, missing rights); then the facts are None, and no measurement fails.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from trtkit import nvidia

# NVML API reference, group NvmlClocksEventReasons. "idle" and the clocks that an administrator set are reasons too.
REASONS = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
    0x100: "display clocks",
}


@dataclass(frozen=True)
class Clocks:
    """One look at a GPU's clock; None where NVML does not say.

    `reasons` says why the clock is not higher: of `REASONS`, or a hexadecimal number that is not among them.
    """

    sm_mhz: int | None = None
    max_sm_mhz: int | None = None
    reasons: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if self.sm_mhz is None:
            return "SM clock n/a"
        held = ", ".join(self.reasons) if self.reasons else "nothing" if self.reasons == () else "n/a"
        return f"SM clock {self.sm_mhz} of {self.max_sm_mhz or 'n/a'} MHz, held back by: {held}"


def read(nvml: object | None = None, env: Mapping[str, str] = os.environ) -> Clocks:
    """Look once; takes NVML a millisecond or more, so never inside of what is timed.

    Args:
        nvml: NVML's Python module; by default the one that is installed, if any.
        env: of CUDA_VISIBLE_DEVICES, whose first entry is CUDA's device 0.
    """
    return nvidia.ask_first(lambda nvml, gpu: Clocks(
        sm_mhz=_answer(nvml, "nvmlDeviceGetClockInfo", gpu, nvml.NVML_CLOCK_SM),
        max_sm_mhz=_answer(nvml, "nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_SM),
        reasons=_reasons(nvml, gpu),
    ), nvml, env) or Clocks()


def _reasons(nvml, handle) -> tuple[str, ...] | None:
    mask = _answer(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if mask is None:                                    # its name before driver 535
        mask = _answer(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    if mask is None:
        return None
    unknown = mask & ~sum(REASONS)
    return (*(name for bit, name in REASONS.items() if mask & bit), *([hex(unknown)] if unknown else []))


def _answer(nvml, question: str, *args) -> int | None:
    try:
        return getattr(nvml, question)(*args)
    except (nvml.NVMLError, AttributeError):            # not for this card or user; or an older module
        return None
