"""Findings on the NVIDIA driver, the GPUs, and whether all packages mean the same CUDA. Lesson 00."""

import re
from collections.abc import Iterator

from trtkit.diagnose import NO_FIX_NEEDED, Finding
from trtkit.machine import Machine
from trtkit.nvidia import OLDEST_DRIVER, Gpu, Nvidia
from trtkit.packages import Packages

OTHERS_MIB = 200            # less than a CUDA context takes; below it nobody else computes there
NEWEST_NEEDED = max(OLDEST_DRIVER.values())
HOW_TO_PASS_ON = {
    "WSL": "in Windows: wsl --update, and install NVIDIA's Windows driver",
    "container": "start the container with --gpus all (Docker, Podman), or ask for a GPU profile (JupyterHub)",
    "system": "run nvidia-smi once as root, which makes the device files; in a container: start it with --gpus all",
}


def driver(nvidia: Nvidia, machine: Machine) -> Iterator[Finding]:
    """Whether CUDA programs find a device, and if not, at which step it ends."""
    # WSL has /dev/dxg for a GPU of any make.
    traces = nvidia.driver or nvidia.libcuda or set(nvidia.devices) - {"dxg"}
    here = "WSL" if machine.wsl else "container" if machine.container else "system"
    if not traces and not nvidia.cards_on_bus:
        yield Finding("GPU", "note", "no NVIDIA GPU here: every lesson runs on the CPU",
                      f"{NO_FIX_NEEDED}; " + ("if Windows has an NVIDIA card, install its driver in Windows"
                                              if machine.wsl else "with one, the same notebooks run on it"))
    elif not traces:
        yield Finding("GPU", "warn", "an NVIDIA card is in this machine, but no driver is loaded",
                      f"install NVIDIA's driver {NEWEST_NEEDED} or newer (Ubuntu: sudo ubuntu-drivers install), then "
                      "restart the machine")
    elif not nvidia.devices and nvidia.nvml_problem:
        yield Finding("GPU", "warn", f"{_named(nvidia)} is here, but no device file such as /dev/nvidia0: the GPU was "
                      f"not passed on to this {here}, or there is none", HOW_TO_PASS_ON[here])
    elif not nvidia.libcuda:
        yield Finding("GPU", "warn", f"{_named(nvidia)} is loaded, but its library libcuda.so.1 is not found",
                      "in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility; else install the driver's "
                      "compute part (Ubuntu: libnvidia-compute-NNN), or add its folder to LD_LIBRARY_PATH")
    elif nvidia.hidden:
        yield Finding("GPU", "warn", f"CUDA_VISIBLE_DEVICES={nvidia.visible!r} hides the GPU from every program",
                      "unset CUDA_VISIBLE_DEVICES, or export CUDA_VISIBLE_DEVICES=0")
    else:
        yield Finding("GPU", "ok", _named(nvidia) + (f", runs CUDA up to {nvidia.cuda}" if nvidia.cuda else ""))


def cards(nvidia: Nvidia) -> Iterator[Finding]:
    """Each GPU: what it is, who else uses it, whether it is a slice of one."""
    for gpu in nvidia.gpus:
        facts = [gpu.name, gpu.compute_capability and f"compute capability {gpu.compute_capability}",
                 gpu.memory_mib and f"{gpu.memory_mib:,} MiB"]
        yield Finding("GPU", "ok", ", ".join(filter(None, facts)))
        if gpu.others_mib and gpu.others_mib > OTHERS_MIB:
            yield Finding("GPU", "warn", f"other programs hold {gpu.others_mib:,} MiB of its {gpu.memory_mib:,} MiB: "
                          "times will scatter, and large batches may not fit",
                          "nvidia-smi shows whose; wait for them, or take another GPU with CUDA_VISIBLE_DEVICES")
        if gpu.mig:
            yield _mig(gpu)
    if len(nvidia.gpus) > 1:
        yield Finding("GPU", "note", f"{len(nvidia.gpus)} GPUs: programs take the first one",
                      f"{NO_FIX_NEEDED}; export CUDA_VISIBLE_DEVICES=1 takes the second")
    if nvidia.nvml_problem and nvidia.usable:
        missing = "not installed" in nvidia.nvml_problem
        yield Finding("GPU", "note", f"memory in use and MIG are not known: {nvidia.nvml_problem}",
                      "pip install nvidia-ml-py" if missing else
                      "see whether nvidia-smi works; after an update of the driver restart the machine")


def cuda(nvidia: Nvidia, packages: Packages) -> Iterator[Finding]:
    """One CUDA major in all packages, and a driver that runs it."""
    majors = {name: int(version.split(".")[0]) for name, version in packages.cuda.items() if version[:1].isdigit()}
    listed = ", ".join(f"{name} {packages.versions[name]} (CUDA {packages.cuda[name]})" for name in majors)
    if len(set(majors.values())) > 1:
        keep = majors.get("torch", max(majors.values()))            # the largest download, and the others fit either
        others = [name for name, major in majors.items() if major != keep]
        yield Finding("CUDA", "error", f"packages of different CUDA versions in one process: {listed}",
                      _unite(others, keep))
    elif majors:
        yield Finding("CUDA", "ok", f"all packages use one version: {listed}")
    if nvidia.usable and packages.cuda.get("torch") == "":
        yield Finding("CUDA", "note", "PyTorch is built for the CPU only and will not use this machine's GPU",
                      "install the build for CUDA that pytorch.org's start page names")
    runs = _runs(nvidia)
    if too_new := [name for name, major in majors.items() if runs and major > runs]:
        wanted = max(majors[name] for name in too_new)
        yield Finding("CUDA", "error", f"{_named(nvidia)} runs CUDA up to {nvidia.cuda or runs}: too old for "
                      f"{', '.join(too_new)}, built for CUDA {wanted}",
                      f"update the driver to {OLDEST_DRIVER.get(wanted, NEWEST_NEEDED)} or newer, or install these "
                      f"packages' builds for CUDA {runs}")


def _named(nvidia: Nvidia) -> str:
    return f"NVIDIA driver {nvidia.driver}" if nvidia.driver else "an NVIDIA driver"


def _mig(gpu: Gpu) -> Finding:
    if not gpu.mig_profiles:
        return Finding("GPU", "warn", "MIG is on, but there is no slice, so programs find no GPU",
                       "ask the administrator for a slice, or as root: nvidia-smi mig -cgi 19 -C (19 is the smallest)")
    return Finding("GPU", "note", f"MIG is on; yours: {', '.join(gpu.mig_profiles)}, a slice of the card. Its "
                   "utilisation is n/a, NVIDIA reports none for slices",
                   f"{NO_FIX_NEEDED}; judge by the measured times")


def _runs(nvidia: Nvidia) -> int | None:
    """Highest CUDA major that the driver runs: what it says itself, else by its version."""
    if nvidia.cuda:
        return int(nvidia.cuda.split(".")[0])
    number = re.match(r"\d+", nvidia.driver)
    if not number:
        return None
    enough = [major for major, oldest in OLDEST_DRIVER.items() if oldest <= int(number[0])]
    return max(enough, default=min(OLDEST_DRIVER) - 1)


def _unite(others: list[str], major: int) -> str:
    """The pip lines that bring every package to one CUDA major."""
    steps = []
    if tensorrt := [name for name in others if name.startswith("tensorrt")]:
        # All of them: the front end of one and the libraries of another load without a word and crash later.
        steps.append(f"pip uninstall -y {' '.join(tensorrt)} && pip install --force-reinstall tensorrt-cu{major} (with "
                     "NVIDIA's package index in PIP_EXTRA_INDEX_URL)")
    if "pycuda" in others:
        steps.append(f"with nvcc of CUDA {major} first on the PATH: pip install --force-reinstall --no-cache-dir "
                     "--no-binary pycuda pycuda")
    return "; ".join(steps)
