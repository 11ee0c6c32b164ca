"""What the machine is: CPU, cores, memory, network, folders. Lesson 00.

Every fact is read from files below /proc and /sys, so it costs no process and a test can put other files in their
place with `root`. Where a file is missing (another system than Linux, a container that hides it) the fact is empty or
None; nothing here raises.
"""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path("/")
MIB = 2**20
RTF_UP = 1                          # flag of a route that is in use, linux/route.h


@dataclass(frozen=True)
class Machine:
    """Facts that a program may want to know before it takes threads or memory; None where they are not known."""

    system: str                     # for example "Linux 6.1.0 x86_64"
    cpu_model: str
    cpu_flags: frozenset[str]
    cores: int                      # logical CPUs of the machine
    usable_cores: int               # those that this process may run on (affinity, cpuset)
    quota_cores: float | None       # CPU time a cgroup grants, in cores; None without a quota
    memory_mib: int | None
    available_mib: int | None       # without swapping, at the time of the call
    memory_limit_mib: int | None    # of the cgroup; None without a limit
    container: bool
    wsl: bool
    has_route: bool | None          # a default route; no host was contacted


@dataclass(frozen=True)
class Folder:
    """A folder that trtkit writes to; it need not exist yet."""

    name: str                       # what it is for
    path: Path
    free_mib: int | None
    problem: str                    # "" where a file can be written, else why not


def read(root: Path = ROOT) -> Machine:
    """All facts of this machine, or of the files below `root`."""
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", text(root / "proc/meminfo"), re.M))
    cores = max(1, len(_cpuinfo(root, "processor")) or os.cpu_count() or 1)
    marks = [root / ".dockerenv", root / "run/.containerenv", root / "var/run/secrets/kubernetes.io"]
    kernel = text(root / "proc/sys/kernel/osrelease").strip() or platform.release()
    return Machine(
        system=f"{platform.system()} {kernel} {platform.machine()}",
        cpu_model=cpu_model(root),
        cpu_flags=cpu_flags(root),
        cores=cores,
        usable_cores=_usable_cores(root) or cores,
        quota_cores=_quota_cores(root),
        memory_mib=int(memory["MemTotal"]) // 1024 if "MemTotal" in memory else None,
        available_mib=int(memory["MemAvailable"]) // 1024 if "MemAvailable" in memory else None,
        memory_limit_mib=_memory_limit_mib(root),
        container=any(mark.exists() for mark in marks),
        wsl="microsoft" in kernel.lower(),
        has_route=_has_route(root),
    )


@cache
def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction-set names as Linux writes them, for example "avx2", "avx512_vnni", "asimddp"; empty elsewhere.

    Only those that every core has: a thread may move to any of them.
    """
    lines = _cpuinfo(root, "flags") or _cpuinfo(root, "Features")
    return frozenset.intersection(*(frozenset(line.split()) for line in lines)) if lines else frozenset()


def has_vnni(root: Path = ROOT) -> bool:
    """Whether an x86 CPU multiplies and adds 8-bit numbers in one instruction (AVX512-VNNI or AVX-VNNI)."""
    return not cpu_flags(root).isdisjoint({"avx512_vnni", "avx_vnni"})


@cache
def cpu_model(root: Path = ROOT) -> str:
    """The CPU's name, for example "AMD EPYC 9354"; "unknown" where the system does not tell."""
    if names := _cpuinfo(root, "model name"):
        return names[0]
    if board := text(root / "proc/device-tree/model").strip("\0\n "):           # Arm boards: "NVIDIA Jetson AGX Orin"
        return board
    implementer, part = _cpuinfo(root, "CPU implementer"), _cpuinfo(root, "CPU part")
    return f"Arm, implementer {implementer[0]}, part {part[0]}" if implementer and part else "unknown"


def folder(name: str, path: Path) -> Folder:
    """Look at a folder, or at the nearest one above it that exists, without leaving anything there."""
    path = Path(path).absolute()
    try:
        nearest = next(p for p in (path, *path.parents) if p.exists())
        free_mib = shutil.disk_usage(nearest).free // MIB
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b"x")
    except OSError as e:
        return Folder(name, path, None, e.strerror or str(e))
    return Folder(name, path, free_mib, "")


def text(path: Path) -> str:
    """A file's text, "" where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cpuinfo(root: Path, key: str) -> list[str]:
    """The values of a key in /proc/cpuinfo, one per core."""
    return re.findall(rf"^{key}\s*:[ \t]*(.*?)[ \t]*$", text(root / "proc/cpuinfo"), re.M)


def _usable_cores(root: Path) -> int:
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", text(root / "proc/self/status"), re.M)
    ranges = re.findall(r"(\d+)(?:-(\d+))?", allowed[1]) if allowed else []         # "0-3,8"
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def _cgroup_files(root: Path, controller: str, name_v1: str, name_v2: str) -> Iterator[tuple[str, Path]]:
    """The texts of a setting, from the process's own group up to the one that is mounted, since each can limit.

    A container sees its own group mounted at the top, while /proc may still name the path outside of it.
    """
    mounted = root / "sys/fs/cgroup"
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if controllers and controller in controllers.split(","):
            top, name = next((mounted / c for c in (controllers, controller) if (mounted / c).is_dir()), None), name_v1
        elif not controllers:
            top, name = mounted, name_v2
        else:
            continue
        parts = Path(group.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            if top and (content := text(top.joinpath(*parts[:depth], name)).strip()):
                yield content, top.joinpath(*parts[:depth])


def _quota_cores(root: Path) -> float | None:
    quotas = []
    for content, group in _cgroup_files(root, "cpu", "cpu.cfs_quota_us", "cpu.max"):
        quota, *period = content.split()                                # v2 writes both: "150000 100000"
        period = period or text(group / "cpu.cfs_period_us").split()
        if quota.isdigit() and period and period[0].isdigit() and int(period[0]) > 0:      # else "max" or -1
            quotas.append(int(quota) / int(period[0]))
    return min(quotas, default=None)


def _memory_limit_mib(root: Path) -> int | None:
    files = _cgroup_files(root, "memory", "memory.limit_in_bytes", "memory.max")
    limits = [int(content) for content, _ in files if content.isdigit() and int(content) < 2**62]   # v1's "none"
    return min(limits) // MIB if limits else None


def _has_route(root: Path) -> bool | None:
    """Whether packets to anywhere have a way out, by IPv4 or IPv6; None where the kernel does not tell."""
    v4, v6 = text(root / "proc/net/route"), text(root / "proc/net/ipv6_route")
    if not v4 and not v6:
        return None
    # Columns: interface, destination, gateway, flags, three counters, mask.
    flags = re.findall(r"^\S+\s+0{8}\s+\S+\s+([0-9A-Fa-f]+)(?:\s+\S+){3}\s+0{8}\s", v4, re.M)
    # The kernel keeps an unreachable default route on the loopback interface of IPv6.
    return any(int(f, 16) & RTF_UP for f in flags) or bool(re.search(r"^0{32} 00 .* (?!lo$)\S+$", v6, re.M))
