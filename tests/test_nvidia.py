"""`nvidia.cuda_problem` beside drivers that are there, are not, fail, or were only meant for linking."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtkit import nvidia


class _Driver:
    """libcuda with the two calls that are asked; CUDA numbers its errors, 0 is success."""

    def __init__(self, devices: int = 1, init_error: int = 0, count_error: int = 0):
        self.devices, self.init_error, self.count_error, self.calls = devices, init_error, count_error, []

    def cuInit(self, flags):
        assert flags == 0
        self.calls.append("cuInit")
        return self.init_error

    def cuDeviceGetCount(self, count):
        self.calls.append("cuDeviceGetCount")
        count._obj.value = self.devices
        return self.count_error


@pytest.fixture
def install(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(driver):
        def load(name):
            assert name == "libcuda.so.1"
            if isinstance(driver, Exception):
                raise driver
            return driver

        monkeypatch.setattr(ctypes, "CDLL", load)

    return put


@pytest.mark.parametrize("devices", [1, 8])
def test_a_driver_with_a_device_is_no_problem(install, devices):
    driver = _Driver(devices)
    install(driver)
    assert nvidia.cuda_problem() == "" and driver.calls == ["cuInit", "cuDeviceGetCount"]


def test_without_a_driver_the_way_on_is_named(install):
    install(OSError("libcuda.so.1: cannot open shared object file: No such file or directory"))
    assert "no NVIDIA driver" in nvidia.cuda_problem() and "install its driver" in nvidia.cuda_problem()


@pytest.mark.parametrize(("driver", "error"), [
    (_Driver(devices=0), 0), (_Driver(init_error=100), 100), (_Driver(init_error=803), 803),
    (_Driver(count_error=3), 3),
])
def test_a_driver_that_shows_no_device_gives_its_error(install, driver, error):
    install(driver)
    problem = nvidia.cuda_problem()
    assert "shows no GPU" in problem and f"CUDA error {error}" in problem and "CUDA_VISIBLE_DEVICES" not in problem
    assert driver.calls[1:] == ([] if driver.init_error else ["cuDeviceGetCount"])         # not asked after a failure


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_a_hidden_device_is_told_as_such(install, monkeypatch, visible):
    install(_Driver(init_error=100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "CUDA_VISIBLE_DEVICES hides it" in nvidia.cuda_problem()
    install(_Driver())
    assert nvidia.cuda_problem() == ""              # one that is set and hides nothing


def _ask_with(folder: Path) -> str:
    """In a process that finds the libraries of a folder first."""
    done = subprocess.run([sys.executable, "-c", "from trtkit import nvidia; print(nvidia.cuda_problem())"],
                          env={**os.environ, "LD_LIBRARY_PATH": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_library_without_cudas_functions_is_no_driver(tmp_path):
    """As the stub that images for building carry: a real library, loaded by the real loader."""
    maps = Path("/proc/self/maps").read_text()
    libc = next(line.split()[-1] for line in maps.splitlines() if "/libc.so" in line or "/libc-" in line)
    (tmp_path / "libcuda.so.1").symlink_to(libc)
    assert "no NVIDIA driver" in _ask_with(tmp_path)


def test_a_file_that_is_no_library_is_no_driver(tmp_path):
    (tmp_path / "libcuda.so.1").write_text("not ELF")
    # The loader says so at once, and does not look for another.
    assert "no NVIDIA driver" in _ask_with(tmp_path) or not nvidia.cuda_problem()
