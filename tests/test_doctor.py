"""The doctor sees what a machine is like from its files, and says what to do about it. No real GPU is asked."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from trtkit import cli, diagnose, diagnose_gpu, diagnose_packages, doctor, machine, nvidia, packages
from trtkit.machine import MIB, Folder, Machine
from trtkit.nvidia import Gpu, Nvidia
from trtkit.packages import Packages

LEVELS = {"ok", "note", "warn", "error"}
X86 = "processor\t: {0}\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 avx {1}\n\n"
ARM = "processor\t: {0}\nFeatures\t: fp {1}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n"
UBUNTU = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n"

PC = Machine("Linux 6.1 x86_64", "Some CPU", frozenset({"avx2", "avx512f", "avx512_vnni"}), 8, 8, None, 16_000, 12_000,
             None, False, False, True)
H100 = Gpu("NVIDIA H100", "9.0", 81_559, 0, False, ())
ONE_GPU = Nvidia("580.65.06", "13.0", "/usr/lib/libcuda.so.1", ("nvidia0",), 1, (H100,), "", None)
NO_GPU = Nvidia("", "", "", (), 0, (), "nvidia-ml-py is not installed", None)
REQUIRES = ("numpy>=2", "onnx>=1.22", "onnxruntime>=1.24", "opencv-python-headless>=4.10",
            'torch>=2.8; extra == "torch"', 'torchvision>=0.23; extra == "torch"', 'pytest>=8.3; extra == "test"',
            'trtkit[torch]; extra == "test"', 'pycuda>=2025.1; extra == "cuda"', 'tensorrt-cu13>=10.13; extra == "gpu"',
            'tomli>=2; python_version < "3.0"')
VERSIONS = {"numpy": "2.3.0", "onnx": "1.23.2", "onnxruntime": "1.32.0", "opencv-python-headless": "5.0.0.93",
            "torch": "2.15.0", "torchvision": "0.29.2", "pytest": "9.0.0",
            "tensorrt-cu13": "10.13.2", "pycuda": "2026.1", "trtkit": "0.1.0",
            "ipykernel": "7.4.0"}
PIP = Packages(VERSIONS, {"torch": "13.2", "tensorrt-cu13": "13", "pycuda": "13"}, REQUIRES, "<3.14,>=3.11")
FOLDERS = tuple(Folder(name, Path("/somewhere"), 5000, "") for name in diagnose.ELSEWHERE)
HEALTHY = doctor.Facts("3.12.1", PC, FOLDERS, ONE_GPU, PIP, {"ort": "", "trt": ""}, False)


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder that stands for `/`."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def bad(found) -> list[diagnose.Finding]:
    """Those that are not ok; each must say what to do, and an ok one must not."""
    found = list(found)
    for f in found:
        assert f.level in LEVELS and f.topic and f.found and bool(f.fix) == (f.level != "ok"), f
    return [f for f in found if f.level != "ok"]


def only(found) -> diagnose.Finding:
    (one,) = bad(found)
    return one


def with_versions(**changes: str | None) -> Packages:
    """`PIP` with other versions (underscores stand for dashes); None uninstalls."""
    named = {name.replace("_", "-"): version for name, version in changes.items()}
    versions = {n: v for n, v in {**VERSIONS, **named}.items() if v is not None}
    return replace(PIP, versions=versions, cuda={n: c for n, c in PIP.cuda.items() if n in versions})


def test_a_healthy_machine_has_no_complaint():
    assert bad(doctor.examine(HEALTHY)) == []
    assert doctor.verdict(doctor.examine(HEALTHY)) == (
        "this machine runs: ONNX Runtime on the CPU, TensorRT on the GPU, PyTorch (training and export)")


# The machine


@pytest.mark.parametrize(
    ("cpuinfo", "vnni", "level", "says"),
    [
        (X86.format(0, "avx2 avx512f avx512_vnni"), True, "ok", "AVX512-VNNI"),
        (X86.format(0, "avx2 avx_vnni"), True, "ok", "AVX-VNNI"),
        (X86.format(0, "avx2"), False, "note", "no VNNI"),
        (X86.format(0, ""), False, "warn", "several times slower"),
        (ARM.format(0, "asimd asimddp i8mm"), False, "ok", "dotprod"),
        (ARM.format(0, "asimd"), False, "note", "no dotprod"),
        ("", False, "note", "not known"),
    ],
)
def test_cpu_features_and_what_they_mean_for_int8(tmp_path, cpuinfo, vnni, level, says):
    root = tree(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert machine.has_vnni(root) == vnni
    (finding,) = diagnose.cpu(machine.read(root))
    assert finding.level == level and says in finding.found
    bad([finding])


def test_a_flag_counts_only_where_every_core_has_it(tmp_path):
    root = tree(tmp_path, {"proc/cpuinfo": X86.format(0, "avx2 avx512_vnni") + X86.format(1, "avx2")})
    assert not machine.has_vnni(root) and "avx2" in machine.cpu_flags(root) and machine.read(root).cores == 2


def test_cpu_names(tmp_path):
    assert machine.cpu_model(tree(tmp_path / "x86", {"proc/cpuinfo": X86.format(0, "")})) == "Some CPU"
    assert "0xd0c" in machine.cpu_model(tree(tmp_path / "arm", {"proc/cpuinfo": ARM.format(0, "")}))
    jetson = {"proc/cpuinfo": ARM.format(0, ""), "proc/device-tree/model": "NVIDIA Jetson AGX Orin\0"}
    assert machine.cpu_model(tree(tmp_path / "jetson", jetson)) == "NVIDIA Jetson AGX Orin"
    assert machine.cpu_model(tmp_path / "nothing") == "unknown"


def test_where_no_file_tells_anything_the_facts_are_unknown_and_every_rule_still_answers(tmp_path):
    empty = machine.read(tmp_path)
    assert (empty.cpu_flags, empty.quota_cores, empty.memory_mib, empty.has_route) == (frozenset(), None, None, None)
    nothing = nvidia.read(tmp_path, {})
    facts = replace(HEALTHY, machine=empty, nvidia=nothing, packages=packages.read([str(tmp_path)]))
    assert {f.topic for f in bad(doctor.examine(facts))} >= {"CPU", "memory", "GPU", "Python", "PyTorch"}


V1, V2 = "4:memory:/a/b\n3:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/\n", "0::/a/b\n"


@pytest.mark.parametrize(
    ("files", "quota", "limit_mib"),
    [
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
          "sys/fs/cgroup/a/b/memory.max": f"{1536 * MIB}\n"}, 1.5, 1536),
        # The group above is the tighter one.
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
          "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
          "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": f"{700 * MIB}\n"}, 0.5, 700),
        # In a container /proc may name the path outside, while its own group is mounted at the top.
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None, None),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "300000\n",
          "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
          "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{900 * MIB}\n"}, 3.0, 900),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
        ({"proc/self/cgroup": "nonsense\n::\n", "sys/fs/cgroup/cpu.max": "what\n"}, None, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "100000 0\n",
          "sys/fs/cgroup/memory.max": "-5\n"}, None, None),
    ],
)
def test_cgroup_quotas_and_limits(tmp_path, files, quota, limit_mib):
    found = machine.read(tree(tmp_path, files))
    assert (found.quota_cores, found.memory_limit_mib) == (quota, limit_mib)


def test_a_quota_below_the_cores_names_the_threads_to_take():
    finding = only(diagnose.cores(replace(PC, quota_cores=2.5)))
    assert finding.level == "note" and "2.5" in finding.found and "threads=2)" in finding.fix
    assert "OMP_NUM_THREADS=1" in only(diagnose.cores(replace(PC, quota_cores=0.3))).fix
    assert not bad(diagnose.cores(replace(PC, quota_cores=8.0)))


@pytest.mark.parametrize(("listed", "usable"), [("0-3", 4), ("0-1,8", 3), ("5", 1), ("0,2-3,6-9", 7)])
def test_cores_that_this_process_may_use(tmp_path, listed, usable):
    root = tree(tmp_path, {"proc/self/status": f"Name:\tx\nCpus_allowed_list:\t{listed}\n"})
    assert machine.read(root).usable_cores == usable


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_real_cores_and_memory_are_those_that_python_sees():
    found = machine.read()
    assert found.usable_cores == len(os.sched_getaffinity(0))
    assert found.memory_mib == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB


@pytest.mark.parametrize(
    ("total", "limit", "level", "says"),
    [
        (16_000, None, None, ""), (1900, None, "warn", "one at a time"), (3000, None, "note", "tight for training"),
        (16_000, 1024, "warn", "limit of the container"), (16_000, 4096, None, ""), (None, None, "note", "not known"),
    ],
)
def test_memory_counts_what_the_container_may_take(total, limit, level, says):
    found = list(diagnose.memory(replace(PC, memory_mib=total, memory_limit_mib=limit)))
    assert [(f.level, says in f.found) for f in bad(found)] == ([(level, True)] if level else [])


ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
LOCAL = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
ZEROS = "0" * 32


@pytest.mark.parametrize(
    ("files", "has_route"),
    [
        ({"proc/net/route": ROUTES + "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"}, True),
        # A route that is down.
        ({"proc/net/route": ROUTES + LOCAL}, False),
        ({"proc/net/route": ROUTES + "eth0\t00000000\t010200C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n"}, False),
        ({"proc/net/route": ROUTES, "proc/net/ipv6_route": f"{ZEROS} 00 {ZEROS} 00 fd01 1 2 3 4   eth0\n"}, True),
        ({"proc/net/route": ROUTES, "proc/net/ipv6_route": f"{ZEROS} 00 {ZEROS} 00 {ZEROS} 1 2 3 4   lo\n"}, False),
    ],
)
def test_offline_is_seen_in_the_routes_alone(tmp_path, files, has_route):
    found = machine.read(tree(tmp_path, files))
    assert found.has_route is has_route
    assert [f.level for f in bad(diagnose.network(found))] == ([] if has_route else ["note"])


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    finding = only(diagnose.disk(machine.folder("engine plans", tmp_path / "file" / "cache")))
    assert finding.level == "error" and "cannot be written (Not a directory)" in finding.found
    assert "TRTKIT_CACHE" in finding.fix


def test_looking_at_a_folder_neither_makes_it_nor_leaves_a_file(tmp_path):
    found = machine.folder("engine plans", tmp_path / "a" / "b")
    assert found.problem == "" and found.free_mib > 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("free_mib", "level"), [(50, "error"), (500, "warn"), (5000, None)])
def test_low_disk(tmp_path, monkeypatch, free_mib, level):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free_mib * MIB))
    found = bad(diagnose.disk(machine.folder("temporary files", tmp_path)))
    assert [f.level for f in found] == ([level] if level else [])
    assert all(f"{free_mib} MiB free" in f.found and "TMPDIR" in f.fix for f in found)


# The driver and the GPU


class FakeNvml:
    """NVML's Python module; what is not an attribute is a question that this driver does not know."""

    class NVMLError(Exception):
        pass

    nvmlMemory_v2 = 2

    def __init__(self, *, fails: str = "", mig=None, slices=0, used_mib=0, own_mib=0, denied=()):
        self._fails, self._mig, self._slices = fails, mig, slices
        self._used_mib, self._own_mib, self._denied = used_mib, own_mib, denied

    def nvmlInit(self):
        if self._fails:
            raise self.NVMLError(self._fails)

    def nvmlShutdown(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return b"580.65.06"         # old modules return bytes

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return 13020

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return "card"

    def nvmlDeviceGetName(self, handle):
        return "NVIDIA H100 MIG 1g.10gb" if handle == "slice" else "NVIDIA H100"

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        self._may("capability")
        return 9, 0

    def nvmlDeviceGetMigMode(self, handle):
        if self._mig is None:
            raise self.NVMLError("Not Supported")
        return self._mig, self._mig

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):
        if index >= self._slices:
            raise self.NVMLError("Not Found")
        return "slice"

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        self._may(f"memory of {handle}")
        total, reserved = (10_240 if handle == "slice" else 81_559), 600
        return SimpleNamespace(total=total * MIB, reserved=reserved * MIB,
                               free=(total - reserved - self._used_mib) * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self._may("processes")
        own = SimpleNamespace(pid=os.getpid(), usedGpuMemory=self._own_mib * MIB)
        return [own, SimpleNamespace(pid=1, usedGpuMemory=None)]

    def _may(self, what):
        if what in self._denied:
            raise self.NVMLError("Insufficient Permissions")


def test_nvml_tells_driver_cuda_and_card(tmp_path):
    found = nvidia.read(tmp_path, {}, FakeNvml())
    assert (found.driver, found.cuda, found.nvml_problem) == ("580.65.06", "13.2", "")
    assert found.gpus == (H100,)


def test_memory_that_others_hold_is_a_warning_and_ours_is_not(tmp_path):
    busy = nvidia.read(tmp_path, {}, FakeNvml(used_mib=30_500, own_mib=500))
    finding = only(diagnose_gpu.cards(busy))
    assert finding.level == "warn" and "30,000 MiB of its 81,559 MiB" in finding.found
    assert not bad(diagnose_gpu.cards(nvidia.read(tmp_path, {}, FakeNvml(used_mib=500, own_mib=500))))


def test_memory_that_only_the_driver_reserves_is_nobodys(tmp_path):
    assert nvidia.read(tmp_path, {}, FakeNvml()).gpus[0].others_mib == 0


def test_a_slice_of_a_card_is_judged_by_itself(tmp_path):
    found = nvidia.read(tmp_path, {}, FakeNvml(mig=1, slices=2, denied=("memory of card",)))
    (gpu,) = found.gpus
    assert gpu.mig and gpu.mig_profiles == ("1g.10gb", "1g.10gb") and gpu.memory_mib == 10_240
    finding = only(diagnose_gpu.cards(found))
    assert finding.level == "note" and "1g.10gb" in finding.found and "n/a" in finding.found


def test_mig_without_a_slice_leaves_no_gpu(tmp_path):
    finding = only(diagnose_gpu.cards(nvidia.read(tmp_path, {}, FakeNvml(mig=1))))
    assert finding.level == "warn" and "no slice" in finding.found


def test_mig_that_is_off_is_not_mentioned(tmp_path):
    assert not bad(diagnose_gpu.cards(nvidia.read(tmp_path, {}, FakeNvml(mig=0))))


def test_refused_questions_leave_gaps_and_nothing_more(tmp_path):
    denied = ("memory of card", "capability", "processes")
    (gpu,) = nvidia.read(tmp_path, {}, FakeNvml(denied=denied)).gpus
    assert (gpu.name, gpu.compute_capability, gpu.memory_mib, gpu.others_mib) == ("NVIDIA H100", "", None, None)


def test_nvml_that_may_not_start_is_a_note_and_the_kernel_names_the_card(tmp_path):
    card = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n"
    root = tree(tmp_path, {"proc/driver/nvidia/version": OPEN, "dev/nvidia0": "",
                           "proc/driver/nvidia/gpus/0000:01:00.0/information": card,
                           "etc/ld.so.cache": "glibc\0libcuda.so.1\0/usr/lib64/libcuda.so.1\0"})
    found = nvidia.read(root, {}, FakeNvml(fails="Insufficient Permissions"))
    assert found.usable and found.driver == "580.65.06" and found.gpus[0].name == "NVIDIA H100 80GB HBM3"
    finding = only([*diagnose_gpu.driver(found, PC), *diagnose_gpu.cards(found)])
    assert finding.level == "note" and "Insufficient Permissions" in finding.found


def test_nvml_that_is_not_installed_is_named(tmp_path):
    finding = only(diagnose_gpu.cards(replace(ONE_GPU, nvml_problem=NO_GPU.nvml_problem)))
    assert finding.fix == "pip install nvidia-ml-py"


@pytest.mark.parametrize(("version", "driver"), [(UBUNTU, "535.183.01"), (OPEN, "580.65.06"), ("", "")])
def test_driver_version_from_the_kernel(tmp_path, version, driver):
    assert nvidia.read(tree(tmp_path, {"proc/driver/nvidia/version": version}), {}).driver == driver


def test_libcuda_is_found_as_the_loader_finds_it(tmp_path):
    cache = {"etc/ld.so.cache": "\0/usr/lib/libcudart.so.1\0/a/libcuda.so.11\0libcuda.so.1\0/usr/lib/x/libcuda.so.1\0"}
    root = tree(tmp_path, cache | {"mine/libcuda.so.1": ""})
    assert nvidia.read(root, {}).libcuda == "/usr/lib/x/libcuda.so.1"
    paths = f"/nowhere::{tmp_path / 'mine'}"
    assert nvidia.read(root, {"LD_LIBRARY_PATH": paths}).libcuda == str(tmp_path / "mine" / "libcuda.so.1")
    assert nvidia.read(tmp_path / "none", {}).libcuda == ""


CONTAINER, WSL = replace(PC, container=True), replace(PC, wsl=True)


@pytest.mark.parametrize(
    ("state", "where", "level", "found", "fix"),
    [
        (NO_GPU, PC, "note", "no NVIDIA GPU", "nothing to do"),
        (replace(NO_GPU, visible=""), PC, "note", "no NVIDIA GPU", "nothing to do"),
        (replace(NO_GPU, devices=("dxg",)), WSL, "note", "no NVIDIA GPU", "in Windows"),       # a card of another make
        (replace(NO_GPU, cards_on_bus=1), PC, "warn", "no driver is loaded", "580 or newer"),
        (replace(NO_GPU, libcuda="/x"), CONTAINER, "warn", "not passed on to this container", "--gpus all"),
        # A container sees its host's driver and the names of its cards in /proc.
        (replace(NO_GPU, driver="580.1", libcuda="/x", gpus=(H100,)), CONTAINER, "warn", "not passed on", "--gpus all"),
        (replace(NO_GPU, libcuda="/x"), WSL, "warn", "not passed on to this WSL", "wsl --update"),
        (replace(NO_GPU, libcuda="/x"), PC, "warn", "no device file", "nvidia-smi once as root"),
        (replace(ONE_GPU, libcuda=""), CONTAINER, "warn", "libcuda.so.1 is not found", "DRIVER_CAPABILITIES"),
        (replace(ONE_GPU, visible=""), PC, "warn", "CUDA_VISIBLE_DEVICES='' hides", "unset"),
        (replace(ONE_GPU, visible="-1"), PC, "warn", "CUDA_VISIBLE_DEVICES='-1' hides", "unset"),
    ],
)
def test_every_way_to_have_no_gpu_is_told_apart(state, where, level, found, fix):
    assert not state.usable
    finding = only(diagnose_gpu.driver(state, where))
    assert finding.level == level and found in finding.found and fix in finding.fix


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [(None, False), ("", True), ("-1", True), ("0", False), ("0,-1", False), ("-1,0", True), ("1", True), (" 0", False),
     ("GPU-8932f937", False), ("MIG-e0ca", False), ("NoDevFiles", True), ("1,0", True)],
)
def test_what_cuda_visible_devices_leaves_of_one_gpu(visible, hidden):
    state = replace(ONE_GPU, visible=visible)
    assert state.hidden == hidden and state.usable != hidden


def test_a_second_gpu_is_mentioned():
    assert "2 GPUs" in only(diagnose_gpu.cards(replace(ONE_GPU, gpus=(H100, H100)))).found


def test_cards_without_a_driver_are_counted_once(tmp_path):
    bus = "sys/bus/pci/devices"
    files = {f"{bus}/a/class": "0x030200", f"{bus}/a/vendor": "0x10de\n", f"{bus}/b/class": "0x040300",
             f"{bus}/b/vendor": "0x10de\n", f"{bus}/c/class": "0x030000", f"{bus}/c/vendor": "0x8086\n"}
    assert nvidia.read(tree(tmp_path, files), {}).cards_on_bus == 1      # b is the card's sound, c another make


# CUDA


def cuda_findings(state: Nvidia = ONE_GPU, **cuda: str) -> list[diagnose.Finding]:
    named = {name.replace("_", "-"): version for name, version in cuda.items()}
    return bad(diagnose_gpu.cuda(state, replace(PIP, versions=dict.fromkeys(named, "1.0"), cuda=named)))


def test_mixed_cuda_majors_name_every_package_and_the_pip_line():
    (finding,) = cuda_findings(torch="13.2", tensorrt_cu12="12", tensorrt_cu12_libs="12", pycuda="12")
    assert finding.level == "error"
    for text in ("torch 1.0 (CUDA 13.2)", "tensorrt-cu12 1.0 (CUDA 12)", "pycuda 1.0 (CUDA 12)"):
        assert text in finding.found
    assert "pip uninstall -y tensorrt-cu12 tensorrt-cu12-libs && pip install" in finding.fix
    assert "tensorrt-cu13" in finding.fix and "--no-binary pycuda pycuda" in finding.fix


def test_one_major_in_different_minors_is_fine_and_unknown_ones_do_not_count():
    assert cuda_findings(torch="13.2", tensorrt_cu13="13", tensorrt="unknown", pycuda="unknown") == []


def test_torch_for_the_cpu_beside_a_gpu_is_a_note_and_else_nothing():
    assert [f.level for f in cuda_findings(torch="")] == ["note"]
    assert cuda_findings(NO_GPU, torch="") == []


@pytest.mark.parametrize(
    ("driver", "cuda", "torch", "needs"),
    [
        ("535.183.01", "12.2", "13.2", "580"), ("535.183.01", "", "13.2", "580"), ("470.1", "11.4", "12.8", "525"),
        ("390.1", "", "11.8", "450"), ("580.65", "13.0", "13.2", None), ("525.60", "", "12.8", None),
        ("550.54", "13.0", "13.2", None),       # a forward-compatible libcuda: NVML knows better than the number
        ("", "", "13.2", None),
    ],
)
def test_a_driver_too_old_for_a_package_is_an_error(driver, cuda, torch, needs):
    found = cuda_findings(replace(ONE_GPU, driver=driver, cuda=cuda), torch=torch)
    assert [f.level for f in found] == (["error"] if needs else [])
    assert all(f"update the driver to {needs} or newer" in f.fix and "torch" in f.found for f in found)


# Packages


def install(site: Path, name: str, version: str, **files: str | bytes) -> None:
    """A distribution as pip leaves it; `files` by path below `site`, with "__" for "/"."""
    tree(site, {f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"})
    for path, content in files.items():
        target = site / (path.replace("__", "/") + (".py" if isinstance(content, str) else ".cpython-311.so"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("line", "cuda"),
    [("cuda: Optional[str] = '13.2'", "13.2"), ("cuda = '12.8'", "12.8"), ("cuda: Optional[str] = None", ""),
     ("", "unknown")],
)
def test_the_cuda_of_torch_is_read_from_its_files(tmp_path, line, cuda):
    install(tmp_path, "torch", "2.15.0", torch__version=f"debug = False\n{line}\nhip: Optional[str] = None\n")
    assert packages.read([str(tmp_path)]).cuda == {"torch": cuda}


@pytest.mark.parametrize(
    ("content", "cuda"),
    [(b"\0libcudart.so.12\0cuCtxCreate_v2\0", "12"), (b"\0libcuda.so.1\0libcurand.so.10\0cuCtxCreate_v4\0", "13"),
     (b"\0cuCtxCreate_v2\0", "12"), (b"", "unknown")],
)
def test_the_cuda_of_pycuda_is_read_from_its_extension(tmp_path, content, cuda):
    install(tmp_path, "pycuda", "2026.1", pycuda___driver=content)
    assert packages.read([str(tmp_path)]).cuda == {"pycuda": cuda}


def test_tensorrt_has_its_cuda_in_its_name(tmp_path):
    for name in ("tensorrt", "tensorrt_cu12", "tensorrt_cu12_libs", "tensorrt-cu13-bindings", "tensorrt_bindings"):
        install(tmp_path, name, "10.13.2")
    assert packages.read([str(tmp_path)]).cuda == {
        "tensorrt": "unknown", "tensorrt-bindings": "unknown", "tensorrt-cu12": "12", "tensorrt-cu12-libs": "12",
        "tensorrt-cu13-bindings": "13"}


def test_the_first_of_two_installed_versions_counts_as_it_does_for_python(tmp_path):
    install(tmp_path / "a", "onnx", "1.23.0")
    install(tmp_path / "b", "onnx", "1.20.0")
    assert packages.read([str(tmp_path / "a"), str(tmp_path / "b")]).versions == {"onnx": "1.23.0"}


def test_remains_of_an_uninstall_are_passed_over(tmp_path):
    tree(tmp_path, {"onnx-1.20.0.dist-info/RECORD": "", "~umpy-2.0.dist-info/METADATA": ""})
    assert packages.read([str(tmp_path)]).versions == {}


def test_two_onnxruntimes_are_an_error_and_the_fix_removes_both():
    finding = only(diagnose_packages.software(with_versions(onnxruntime_gpu="1.24.0"), gpu=True))
    assert finding.level == "error"
    assert finding.fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"


def test_two_opencvs_are_a_warning():
    finding = only(diagnose_packages.software(with_versions(opencv_python="5.0.0"), gpu=True))
    assert finding.level == "warn" and finding.fix.endswith("pip install opencv-python-headless")


def test_the_other_onnxruntime_alone_is_no_missing_package():
    changed = with_versions(onnxruntime=None, onnxruntime_gpu="1.32.0")
    assert not bad(diagnose_packages.software(changed, gpu=True))


@pytest.mark.parametrize(
    ("version", "unsafe"), [("1.21.0", True), ("1.9.0", True), ("1.22.0", False), ("1.100", False)]
)
def test_an_onnx_that_follows_links_is_an_error(version, unsafe):
    found = bad(diagnose_packages.software(with_versions(onnx=version), gpu=True))
    assert [(f.level, "CVE" in f.found) for f in found] == ([("error", True)] if unsafe else [])


def test_missing_and_old_packages_give_one_pip_line_each():
    changed = with_versions(numpy="1.26.4", onnxruntime=None, torch="2.7.1+cu126")
    found = bad(diagnose_packages.software(changed, gpu=True))
    assert [(f.level, f.fix) for f in found] == [
        ("error", "make demo, or pip install 'onnxruntime>=1.24'"),
        ("warn", "pip install --upgrade 'numpy>=2' 'torch>=2.8'"),
    ]


def test_versions_that_no_standard_knows_are_old_and_prereleases_are_not():
    assert "numpy" in only(diagnose_packages.software(with_versions(numpy="two"), gpu=True)).found
    assert not bad(diagnose_packages.software(with_versions(numpy="3.0rc1"), gpu=True))


def test_missing_extras_say_what_is_not_possible():
    without = with_versions(pytest=None, tensorrt_cu13=None, pycuda=None)
    cuda, gpu, tests = bad(diagnose_packages.software(without, gpu=True))
    assert cuda.level == gpu.level == tests.level == "note"
    assert "lesson 08" in cuda.found and "lessons 07 to 09" in gpu.found and tests.fix == "make test"
    assert [f.fix for f in bad(diagnose_packages.software(without, gpu=False))] == ["make test"]


def test_any_tensorrt_will_do():
    other = with_versions(tensorrt_cu13=None, tensorrt_cu12="10.13.2")
    assert not bad(diagnose_packages.software(other, gpu=True))


def test_without_pytorch_there_is_no_training_but_a_course():
    without = replace(HEALTHY, packages=with_versions(torch=None, torchvision=None))
    finding = only(doctor.examine(without))
    assert finding.level == "note" and finding.fix == "pip install --editable '.[torch]'"
    assert "; not: PyTorch (training and export), because not installed" in doctor.verdict(doctor.examine(without))


@pytest.mark.parametrize(
    ("version", "good"), [("3.11.7", True), ("3.13.0", True), ("3.10.2", False), ("3.14.0", False)]
)
def test_python_versions(version, good):
    assert [f.level for f in bad(diagnose_packages.python(version, PIP))] == ([] if good else ["error"])


def test_trtkit_that_is_not_installed_is_a_warning():
    finding = only(diagnose_packages.python("3.12.0", Packages({}, {}, (), "")))
    assert finding.level == "warn" and "pip install --editable ." in finding.fix


@pytest.mark.parametrize(
    ("hub", "version", "noted"), [(True, "7.4.0", True), (True, "6.29", False), (False, "7.4.0", False)]
)
def test_kernels_that_others_may_listen_to(hub, version, noted):
    found = bad(diagnose_packages.jupyter(with_versions(ipykernel=version), hub=hub))
    assert [f.level for f in found] == (["note"] if noted else [])
    assert all('transport = "ipc"' in f.fix for f in found)


def test_backends_that_are_missing_are_in_the_verdict_with_their_reason():
    backends = {"ort": "it is not installed; pip install it", "trt": "no driver"}
    found = doctor.examine(replace(HEALTHY, backends=backends))
    ort, trt = bad(found)
    assert (ort.level, ort.found, ort.fix) == ("error", "it is not installed", "pip install it")
    assert (trt.level, trt.found) == ("note", "no driver") and trt.fix
    assert doctor.verdict(found) == (
        "this machine runs: PyTorch (training and export); not: ONNX Runtime on the CPU, because it is not installed; "
        "TensorRT on the GPU, because no driver")


# The whole, on the machine at hand


@pytest.fixture(scope="module")
def here() -> tuple[doctor.Facts, list[diagnose.Finding]]:
    facts = doctor.gather()
    return facts, doctor.examine(facts)


def test_findings_here_are_complete_and_shown_in_full(here):
    _, findings = here
    bad(findings)
    text = doctor.report(findings)
    assert all(f.found in text and f.fix in text for f in findings)
    assert text.splitlines()[-1] == doctor.verdict(findings)
    shown = {topic for topics in doctor.SECTIONS.values() for topic in topics}
    assert {f.topic for f in findings} <= shown


def test_python_and_backends_here_are_fine(here):
    _, findings = here
    by_topic = {f.topic: f.level for f in findings}
    assert by_topic["Python"] == "ok" and by_topic["backend ort"] == "ok"       # or these tests would not run


def test_json_round_trips(here):
    facts, findings = here
    body = json.loads(doctor.as_json(facts, findings))
    assert [diagnose.Finding(**f) for f in body["findings"]] == findings
    assert body["facts"]["machine"]["cpu_flags"] == sorted(facts.machine.cpu_flags)
    assert body["facts"]["packages"]["versions"]["numpy"] and body["ok"] == (not doctor.has_errors(findings))


def test_the_summary_is_short_and_begins_with_what_is_wrong(here):
    _, findings = here
    broken = doctor.examine(replace(HEALTHY, packages=with_versions(onnx="1.20.0", onnxruntime_gpu="1.20"),
                                    machine=replace(PC, memory_mib=1000), nvidia=NO_GPU))
    for found in (findings, broken, [*broken] * 5):
        assert len(doctor.summary(found).splitlines()) <= 12
    levels = [line.split()[0] for line in doctor.summary(broken).splitlines()[2:-1]]
    assert levels == sorted(levels, key=["ERROR", "WARN", "note", "ok"].index)
    assert levels[:3] == ["ERROR", "ERROR", "WARN"]


@pytest.mark.parametrize(("cache_below_a_file", "code"), [(False, 0), (True, 1)])
def test_exit_code_says_whether_something_is_broken(tmp_path, monkeypatch, capsys, cache_below_a_file, code):
    (tmp_path / "file").write_text("")
    cache = machine.folder("engine plans", tmp_path / ("file/x" if cache_below_a_file else "x"))
    changed = replace(HEALTHY, folders=(cache,))
    monkeypatch.setattr(doctor, "gather", lambda: changed)
    assert cli.main(["doctor"]) == code
    out = capsys.readouterr().out
    assert ("ERROR disk" in out) == bool(code) and out.splitlines()[-1].startswith("this machine runs: ")
    assert cli.main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] is not bool(code)


def test_no_backend_is_imported_with_or_without_a_device(tmp_path):
    """TensorRT may end the process where there is no device; here its import does, and that of others too."""
    for name in ("tensorrt", "pycuda", "torch", "onnxruntime"):
        tree(tmp_path, {f"{name}/__init__.py": "import os\nos._exit(77)\n"})
    install(tmp_path, "tensorrt_cu12", "10.13.2")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env)

    assert run("-c", "import tensorrt").returncode == 77
    done = run("-m", "trtkit", "doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    assert json.loads(done.stdout)["facts"]["packages"]["versions"]["tensorrt-cu12"] == "10.13.2"
    done = run("-c", (
        "from dataclasses import replace; from trtkit import doctor; from trtkit.nvidia import Nvidia\n"
        "gpu = Nvidia('580.1', '13.0', '/x', ('nvidia0',), 1, (), '', None)\n"
        "assert gpu.usable\n"
        "print(doctor.report(doctor.examine(replace(doctor.gather(), nvidia=gpu))))"
    ))
    assert done.returncode == 0 and "NVIDIA driver 580.1" in done.stdout, done.stderr
