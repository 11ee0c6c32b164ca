"""Which NVIDIA driver and GPUs there are, without touching CUDA or TensorRT. Lesson 00.

TensorRT without a device raises odd errors and its runtime ends the process, so this asks everything else: files below
/proc, /sys and /dev, and NVML, the driver's library for monitors. Any question may go unanswered (a container, a MIG
slice, missing rights); the fact is then empty or None.
"""

import ctypes
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from trtkit.machine import MIB, ROOT, text

T = TypeVar("T")
VENDOR_ID = "0x10de"
DEVICE_PATTERNS = ("nvidia[0-9]*", "dxg", "nvhost-gpu", "nvhost-ctrl-gpu")      # a PC; WSL; two kinds of Jetson
# The first driver for each CUDA major; release notes of the CUDA toolkit, table of minor-version compatibility.
OLDEST_DRIVER = {13: 580, 12: 525, 11: 450}


@dataclass(frozen=True)
class Gpu:
    """One card; None or "" where NVML would not say."""

    name: str
    compute_capability: str         # for example "9.0"
    memory_mib: int | None
    others_mib: int | None          # taken by other processes
    mig: bool                       # cut into slices
    mig_profiles: tuple[str, ...]   # of the slices that this process may see, for example "1g.10gb"


@dataclass(frozen=True)
class Nvidia:
    """The driver as seen from here, and its GPUs."""

    driver: str                     # version, "" without one
    cuda: str                       # highest CUDA version that the driver runs, "" where not known
    libcuda: str                    # path of libcuda.so.1, "" where the loader finds none
    devices: tuple[str, ...]        # names of device files below /dev
    cards_on_bus: int               # with or without a driver
    gpus: tuple[Gpu, ...]
    nvml_problem: str               # why NVML says nothing
    visible: str | None             # CUDA_VISIBLE_DEVICES, None where it is not set

    @property
    def hidden(self) -> bool:
        """Whether CUDA_VISIBLE_DEVICES leaves no GPU; CUDA stops reading it at the first entry that names none."""
        if self.visible is None:
            return False
        first = self.visible.split(",")[0].strip()
        beyond = first.isdigit() and bool(self.gpus) and int(first) >= len(self.gpus)
        return beyond or not re.match(r"\d+$|GPU-|MIG-", first)

    @property
    def usable(self) -> bool:
        """Whether CUDA programs can be expected to find a device.

        Names of GPUs alone do not count: a container sees those of its host in /proc, also where it may not use them.
        """
        return bool(self.libcuda and (self.devices or not self.nvml_problem)) and not self.hidden


def nvml_module() -> ModuleType | None:
    """The Python module of NVML, None where it is not installed."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    return pynvml


def cuda_problem() -> str:
    """Why CUDA finds no device here, and what to do; "" where it finds one.

    Asks the driver itself. TensorRT must not be touched before: without a device its builder raises TypeError and its
    runtime ends the process.
    """
    count = ctypes.c_int(0)
    try:
        libcuda = ctypes.CDLL("libcuda.so.1")
        error = libcuda.cuInit(0) or libcuda.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):           # no such library, or a stand-in for it that was meant for linking
        return "no NVIDIA driver here; nothing to do, every lesson runs on the CPU; with a card: install its driver"
    if error or not count.value:
        fix = "look at nvidia-smi; in a container: start it with --gpus all"
        if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
            fix = "CUDA_VISIBLE_DEVICES hides it: unset CUDA_VISIBLE_DEVICES"
        return f"the NVIDIA driver shows no GPU, CUDA error {error}; {fix}"
    return ""


def ask_first(
    question: Callable[[ModuleType, object], T], nvml: ModuleType | None = None, env: Mapping[str, str] = os.environ
) -> T | None:
    """Ask NVML about CUDA's first device; None where NVML is missing or will not say (a slice, no rights, no driver).

    Args:
        question: called with NVML's module and the device's handle.
        nvml: by default the one that is installed, if any.
        env: of CUDA_VISIBLE_DEVICES, whose first entry is CUDA's device 0. Without it, CUDA and NVML may still count
            different cards in different orders.
    """
    nvml = nvml if nvml is not None else nvml_module()
    if nvml is None:
        return None
    first = env.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    try:
        nvml.nvmlInit()
        try:
            if first.startswith(("GPU-", "MIG-")):
                return question(nvml, nvml.nvmlDeviceGetHandleByUUID(first))
            return question(nvml, nvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return None


def read(root: Path = ROOT, env: Mapping[str, str] = os.environ, nvml: object | None = None) -> Nvidia:
    """All facts.

    Args:
        root: where /proc, /sys, /dev and /etc are.
        env: environment variables.
        nvml: what `nvml_module` returned, or None to do without.
    """
    driver = _driver_of_kernel(root)
    cuda, gpus, problem = "", (), "nvidia-ml-py is not installed"
    if nvml is not None:
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as e:
            problem = str(e)
        else:
            driver = _ask(nvml, "nvmlSystemGetDriverVersion") or driver
            number = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")            # 13020 is 13.2
            cuda = f"{number // 1000}.{number % 1000 // 10}" if number else ""
            gpus = tuple(_gpu(nvml, i) for i in range(_ask(nvml, "nvmlDeviceGetCount") or 0))
            problem = "" if gpus else "NVML lists no GPU"
            _ask(nvml, "nvmlShutdown")
    return Nvidia(
        driver=driver,
        cuda=cuda,
        libcuda=_libcuda(root, env),
        devices=tuple(sorted(p.name for pattern in DEVICE_PATTERNS for p in (root / "dev").glob(pattern))),
        cards_on_bus=_cards_on_bus(root),
        gpus=gpus or _gpus_of_kernel(root),
        nvml_problem=problem,
        visible=env.get("CUDA_VISIBLE_DEVICES"),
    )


def _ask(nvml, question: str, *args, **kwargs):
    """One answer of NVML; None where this driver, card or user may not have it."""
    try:
        answer = getattr(nvml, question)(*args, **kwargs)
    except (nvml.NVMLError, AttributeError):            # older NVML modules lack some questions
        return None
    return answer.decode() if isinstance(answer, bytes) else answer


def _gpu(nvml, index: int) -> Gpu:
    handle = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)               # (now, after a reset)
    slices = []
    if mode and mode[0]:
        count = _ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
        slices = [_ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, i) for i in range(count)]
        slices = [s for s in slices if s is not None]
    # Of a sliced card an ordinary user may not know the whole memory, and its other slices do not concern us.
    memory_mib, others_mib = _memory(nvml, slices[0] if slices else handle)
    return Gpu(
        name=_ask(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU",
        compute_capability=".".join(map(str, capability)) if capability else "",
        memory_mib=memory_mib,
        others_mib=others_mib,
        mig=bool(mode and mode[0]),
        mig_profiles=tuple((_ask(nvml, "nvmlDeviceGetName", s) or "unknown").split("MIG ")[-1] for s in slices),
    )


def _memory(nvml, handle) -> tuple[int | None, int | None]:
    """Total, and what others took; MiB."""
    # The first version of this call counts hundreds of MiB that the driver reserves as used.
    info = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle, version=getattr(nvml, "nvmlMemory_v2", None))
    info = info or _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    if info is None:
        return None, None
    taken = info.total - info.free - getattr(info, "reserved", 0)
    processes = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or []
    own = sum(p.usedGpuMemory or 0 for p in processes if p.pid == os.getpid())
    return info.total // MIB, max(0, taken - own) // MIB


def _driver_of_kernel(root: Path) -> str:
    """From "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 ..."."""
    found = re.search(r"Module(?: for \S+)?\s+(\d+\.[\d.]+)", text(root / "proc/driver/nvidia/version"))
    return found[1] if found else text(root / "sys/module/nvidia/version").strip()


def _gpus_of_kernel(root: Path) -> tuple[Gpu, ...]:
    """Names alone, where NVML says nothing."""
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    names = [re.search(r"^Model:\s*(.+?)\s*$", text(file), re.M) for file in files]
    return tuple(Gpu(name[1], "", None, None, False, ()) for name in names if name)


def _libcuda(root: Path, env: Mapping[str, str]) -> str:
    """Where the loader would find it: LD_LIBRARY_PATH, else the loader's cache, whose entries are plain paths."""
    for folder in filter(None, env.get("LD_LIBRARY_PATH", "").split(":")):
        if (Path(folder) / "libcuda.so.1").exists():
            return str(Path(folder) / "libcuda.so.1")
    found = re.search(r"/[^\0]*/libcuda\.so\.1(?=\0)", text(root / "etc/ld.so.cache"))
    return found[0] if found else ""


def _cards_on_bus(root: Path) -> int:
    functions = (root / "sys/bus/pci/devices").glob("*")
    display = [f for f in functions if text(f / "class").startswith("0x03")]        # not the card's sound function
    return sum(text(f / "vendor").strip() == VENDOR_ID for f in display)
