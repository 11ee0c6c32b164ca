"""From facts about a machine to findings: what is fine, what is not, and what to do about it. Lesson 00.

Every rule is a function of facts alone, so a test can hand it any machine. Rules on packages and on the GPU are in
`diagnose_packages` and `diagnose_gpu`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trtkit.machine import Folder, Machine

NO_FIX_NEEDED = "nothing to do"
SMALL_MEMORY_MIB, TIGHT_MEMORY_MIB = 2048, 4096             # the kernel of lesson 12 takes 730 MiB, of lesson 00 400
FULL_DISK_MIB, LOW_DISK_MIB = 100, 1024
ELSEWHERE = {                   # the folders that trtkit writes to, and how to choose others
    "engine plans": "export TRTKIT_CACHE=FOLDER",
    "lesson pages": "trtkit lessons run --out FOLDER",
    "temporary files": "export TMPDIR=FOLDER",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    `level`: "ok"; "note" where something differs that is worth knowing; "warn" where a lesson may fail or measure
    something else; "error" where something is broken. `fix` is "" exactly where the level is "ok".
    """

    topic: str
    level: Literal["ok", "note", "warn", "error"]
    found: str
    fix: str = ""


def cpu(machine: Machine) -> Iterator[Finding]:
    """Instruction sets, and what they mean for INT8."""
    has, model = machine.cpu_flags.__contains__, machine.cpu_model
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI",
             "asimd": "NEON", "asimddp": "dotprod", "i8mm": "i8mm"}
    listed = f"{model} with " + (", ".join(name for flag, name in names.items() if has(flag)) or "none of AVX2, NEON")
    slow = ("nothing to install; the lessons allow INT8 more time on such a CPU. To see it gain, use an x86 CPU with "
            "VNNI (Intel since 2019, AMD since Zen 4), an Arm CPU with dotprod, or a GPU")
    if not machine.cpu_flags:
        yield Finding("CPU", "note", f"{model}; which instructions it has is not known, nor how fast INT8 will be",
                      f"{NO_FIX_NEEDED}: lesson 12 measures it")
    elif has("avx512_vnni") or has("avx_vnni") or has("asimddp") or has("i8mm"):
        yield Finding("CPU", "ok", f"{listed}: multiplies 8-bit numbers directly, so INT8 models are faster than FP32")
    elif has("avx2"):
        # Without VNNI, ORT uses VPMADDUBSW, which adds pairs of products in 16 bits and saturates.
        yield Finding("CPU", "note", f"{listed}, no VNNI: INT8 models are 4 times smaller but hardly faster than FP32, "
                      "and may lose a little accuracy to 16-bit sums", slow)
    elif has("asimd"):
        yield Finding("CPU", "note", f"{listed}, no dotprod: INT8 models are 4 times smaller but hardly faster", slow)
    else:
        yield Finding("CPU", "warn", f"{listed}: every lesson runs, several times slower than its stated minutes", slow)


def cores(machine: Machine) -> Iterator[Finding]:
    """Cores, affinity and quota."""
    usable, quota = machine.usable_cores, machine.quota_cores
    listed = f"{usable} of {machine.cores} usable by this process"
    if quota is not None and quota < usable:
        threads = max(1, int(quota))
        yield Finding("cores", "note", f"{listed}, but a container quota grants the time of {quota:g}: more threads "
                      "than that wait for each other, and times scatter",
                      f"engine.build(graph, engine.BuildConfig(threads={threads})) in the notebooks, and "
                      f"export OMP_NUM_THREADS={threads} for PyTorch")
    elif usable == 1:
        yield Finding("cores", "note", f"{listed}: stated minutes and frame rates assume two",
                      f"{NO_FIX_NEEDED}, or give the process a second core (taskset, docker --cpuset-cpus)")
    else:
        yield Finding("cores", "ok", listed)


def memory(machine: Machine) -> Iterator[Finding]:
    """Memory, or the container's limit where that is less."""
    sizes = [mib for mib in (machine.memory_mib, machine.memory_limit_mib) if mib is not None]
    if not sizes:
        yield Finding("memory", "note", "its size is not known here", f"{NO_FIX_NEEDED}; the lessons want 4 GiB")
        return
    mib, limited = min(sizes), machine.memory_limit_mib == min(sizes)
    listed = f"{mib / 1024:.1f} GiB" + (" (limit of the container)" if limited else "")
    more = "use a larger machine"
    if limited:
        more = "raise the container's limit (docker --memory 4g, or the Hub's profile)"
    if mib < SMALL_MEMORY_MIB:
        yield Finding("memory", "warn", f"{listed}: notebooks run one at a time, but training and whatever else "
                      "imports PyTorch may be killed", f"{more}, and close the kernel of one notebook before the next")
    elif mib < TIGHT_MEMORY_MIB:
        yield Finding("memory", "note", f"{listed}: enough for a few notebooks at a time, tight for training",
                      f"close the kernels of other notebooks; to train, {more}")
    else:
        yield Finding("memory", "ok", listed)


def disk(folder: Folder) -> Iterator[Finding]:
    """Write access and free space of one folder, whose name is one of `ELSEWHERE`."""
    other, listed = ELSEWHERE[folder.name], f"{folder.name} in {folder.path}"
    if folder.problem:
        yield Finding("disk", "error", f"{listed}: cannot be written ({folder.problem})",
                      f"{other}, with a folder that you can write to")
        return
    free = folder.free_mib or 0
    level = "error" if free < FULL_DISK_MIB else "warn" if free < LOW_DISK_MIB else "ok"
    fix = f"delete files on that disk (plans in the cache can go, they are built again), or {other} on another"
    yield Finding("disk", level, f"{listed}: can be written, {_size(free)} free", "" if level == "ok" else fix)


def network(machine: Machine) -> Iterator[Finding]:
    """Only whether there is a way out; no host is contacted."""
    if machine.has_route is False:
        yield Finding("network", "note", "offline: every lesson runs, only installing packages needs a network",
                      NO_FIX_NEEDED)
    else:
        yield Finding("network", "ok", "not needed by any lesson; " + (
            "a default route exists" if machine.has_route else "not known whether there is one"))


def _size(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"
