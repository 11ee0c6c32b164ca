"""What devices can do at best: the figures of data sheets, and which of them is here. Lesson 01.

A peak is units times operations per clock times clock, so a data sheet can be checked: `tests/test_devices.py` does.
Sheets advertise more than a network gets: with "sparsity" (twice), of a boost clock that a hot card does not hold, of a
module whose other accelerators count too. The figures here are dense and of the GPU alone.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

# Of the CUDA driver's interface, CUdevice_attribute in cuda.h; clocks come in kHz.
_ATTRIBUTES = {"sms": 16, "sm_khz": 13, "memory_khz": 36, "bus_bits": 37}
_MEASURE = ("measure it (a large matrix product, a large copy) and make a devices.Device of the result, or add its "
            "data sheet to trtkit/devices.py")


@dataclass(frozen=True)
class Device:
    """What a device can do at best.

    Attributes:
        name: as it is shown.
        peak_tflops: 10^12 floating-point (or integer) operations a second by type, "fp32", "fp16", "int8" and so on;
            a multiply-add is two. Dense: data sheets that count structured sparsity print the double.
        bandwidth_gb_per_s: of its main memory, 10^9 bytes a second, reads and writes together.
        tdp_w: watts that it may draw all the time; None where nobody says.
        sms: multiprocessors, which tell modules apart that share a name; None for a CPU.
    """

    name: str
    peak_tflops: Mapping[str, float]
    bandwidth_gb_per_s: float
    tdp_w: float | None = None
    sms: int | None = None

    def ridge(self, precision: str = "fp32") -> float:
        """Operations per byte at which compute and memory take equally long: layers below it wait for memory."""
        return 1000 * self.peak(precision) / self.bandwidth_gb_per_s

    def peak(self, precision: str = "fp32") -> float:
        """10^12 operations a second.

        Raises:
            ValueError: the device has no such units, or nobody says.
        """
        if precision not in self.peak_tflops:
            raise ValueError(f"precision: got {precision!r}, expected one of {sorted(self.peak_tflops)} on {self.name}")
        return self.peak_tflops[precision]


# "fp32" is the CUDA cores' figure, "tf32" what TensorRT uses for FP32 tensors unless told otherwise.
_TURING_TFLOPS = {"fp32": 8.1, "fp16": 65.0, "int8": 130.0}
_AMPERE_TFLOPS = {"fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0, "int8": 624.0}
_HOPPER_TFLOPS = {"fp32": 67.0, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4, "fp8": 1979.0, "int8": 1979.0}
# By the name that CUDA and NVML give; Jetsons by the module's, since every module says just "Xavier" or "Orin".
DEVICES = {
    # NVIDIA, "T4 tensor core GPU", data sheet, 2019. No sparsity. It prints 300 GB/s, an earlier one "320+"; the card's
    # own memory clock and bus width give 320.
    "Tesla T4": Device("T4", _TURING_TFLOPS, 320.0, 70.0, 40),
    # NVIDIA, "A100 tensor core GPU", data sheet, 2021, columns SXM, figures without the asterisk (sparsity).
    "NVIDIA A100-SXM4-40GB": Device("A100 SXM 40 GB", _AMPERE_TFLOPS, 1555.0, 400.0, 108),
    "NVIDIA A100-SXM4-80GB": Device("A100 SXM 80 GB", _AMPERE_TFLOPS, 2039.0, 400.0, 108),
    # NVIDIA, data sheets of H100 SXM5 and H200 SXM: tensor cores are printed with sparsity, here is half of that.
    "NVIDIA H100 80GB HBM3": Device("H100 SXM", _HOPPER_TFLOPS, 3350.0, 700.0, 132),
    "NVIDIA H200": Device("H200 SXM", _HOPPER_TFLOPS, 4800.0, 700.0, 132),
    # NVIDIA, "Jetson AGX Xavier series", data sheet: 512 CUDA and 64 tensor cores at 1.377 GHz, 256-bit LPDDR4x at
    # 4,266 MT/s. It prints 11 TFLOPS and 22 TOPS, and "32 TOPS" for the module with its two DLAs, left out here.
    "Jetson AGX Xavier": Device("Jetson AGX Xavier", {"fp32": 1.41, "fp16": 11.3, "int8": 22.6}, 136.5, 30.0, 8),
    # NVIDIA, "Jetson AGX Orin series", technical brief, 64 GB module: 5.3 TFLOPS of FP32; 170 sparse INT8 TOPS of the
    # GPU, so 85 dense and half of that in FP16. "275 TOPS" is sparse, with the DLAs.
    "Jetson AGX Orin 64GB": Device("Jetson AGX Orin 64 GB", {"fp32": 5.3, "fp16": 42.5, "int8": 85.0}, 204.8, 60.0, 16),
}
_MODULES = {"Xavier": "Jetson AGX Xavier", "Orin": "Jetson AGX Orin 64GB"}


@dataclass(frozen=True)
class Found:
    """What the CUDA driver says of its first device; 0 where it does not say.

    On a Jetson, `memory_mhz` and `bus_bits` are not those of its memory: drivers there repeat the GPU's clock.
    """

    name: str
    sms: int = 0
    sm_mhz: int = 0                 # the highest
    memory_mhz: int = 0             # the highest; two transfers a clock
    bus_bits: int = 0

    @property
    def bandwidth_gb_per_s(self) -> float:
        """Transfers a second times the bus's bytes."""
        return 2 * self.memory_mhz * self.bus_bits / 8 / 1000


def ask_cuda(libcuda: object | None = None) -> Found | None:
    """Ask the CUDA driver about its first device; None where there is no driver or no device.

    Args:
        libcuda: the driver's library; by default the one that the system finds.
    """
    index, number = ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    try:
        libcuda = libcuda or ctypes.CDLL("libcuda.so.1")
        if libcuda.cuInit(0) or libcuda.cuDeviceGet(ctypes.byref(index), 0):
            return None
        if libcuda.cuDeviceGetName(name, len(name), index):
            return None
        facts = {}
        for key, attribute in _ATTRIBUTES.items():
            failed = libcuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, index)
            facts[key] = 0 if failed else number.value
    except (OSError, AttributeError):           # no driver, or a stand-in for it that was meant for linking
        return None
    return Found(name.value.decode(), facts["sms"], facts["sm_khz"] // 1000, facts["memory_khz"] // 1000,
                 facts["bus_bits"])


def here(found: Found | None = None) -> tuple[Device | None, str]:
    """The data sheet of the GPU in this machine.

    Args:
        found: by default what `ask_cuda` says.

    Returns:
        The sheet and what was found; None and what to do about it, where there is no GPU, or one without a sheet.
    """
    found = found or ask_cuda()
    if found is None:
        return None, "no GPU here: take a device of devices.DEVICES by its name, or roofline.measured_cpu()"
    facts = f"{found.name}: {found.sms} multiprocessors, at most {found.sm_mhz} MHz"
    if found.name not in _MODULES and found.bandwidth_gb_per_s:
        facts += f", {found.bus_bits} bits at {found.memory_mhz} MHz make {found.bandwidth_gb_per_s:,.0f} GB/s"
    sheet = DEVICES.get(_MODULES.get(found.name, found.name))
    if sheet is None:
        return None, f"{facts}. Not in the table of data sheets: {_MEASURE}"
    if found.sms and found.sms != sheet.sms:            # another module of that name, or a slice of a card
        return None, f"{facts}. The data sheet of {sheet.name} has {sheet.sms}, so it is not for this one: {_MEASURE}"
    return sheet, facts


def find(label: str) -> Device | None:
    """The data sheet of a runner's device; None for one that `DEVICES` lacks (also a slice of a card that it has).

    Args:
        label: an `engine.Runner`'s, "tensorrt 8.6.1 · NVIDIA H100 80GB HBM3".
    """
    return DEVICES.get(label.rpartition(" · ")[2])
