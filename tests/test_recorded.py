import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from trtkit import nvidia, recorded

MADE_FROM = {
    "gpu": "NVIDIA H100 80GB HBM3", "cpu": "Some CPU", "driver": "580.95.05", "versions": {"tensorrt": "8.6.1"},
    "date": "2026-11-22",
}


def test_provenance_says_what_this_process_runs(monkeypatch):
    monkeypatch.delenv("TRTKIT_COMMIT", raising=False)
    found = recorded.provenance("python -m trtkit bench")
    assert found["command"] == "python -m trtkit bench"
    assert found["versions"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(found)) == found


def test_versions_are_those_of_the_packages_without_importing_them():
    code = ("import sys; from trtkit import recorded; v = recorded.provenance('x')['versions']; "
            "assert 'torch' not in sys.modules and 'onnx' not in sys.modules; "
            "import onnx, onnxruntime; assert v['onnx'] == onnx.__version__; "
            "assert v['onnxruntime'] == onnxruntime.__version__")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_of_a_package_without_metadata_is_in_its_version_file(tmp_path, monkeypatch):
    (tmp_path / "filepackage").mkdir()
    (tmp_path / "filepackage" / "__init__.py").write_text("raise RuntimeError('was imported')\n")
    (tmp_path / "filepackage" / "version.py").write_text("__all__ = []\n__version__ = '2.11.0+cu130'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(recorded.PACKAGES, "filepackage", ("no-such-distribution",))
    assert recorded.provenance("x")["versions"]["filepackage"] == "2.11.0+cu130"


def test_provenance_has_what_nvml_tells(monkeypatch):
    class NVMLError(Exception):
        pass

    nvml = SimpleNamespace(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, nvmlMemory_v2=2, nvmlInit=lambda: None, nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.95.05", nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetCudaComputeCapability=lambda h: (9, 0), nvmlDeviceGetName=lambda h: "NVIDIA H100 80GB HBM3",
        nvmlDeviceGetMemoryInfo=lambda h, version=None: SimpleNamespace(total=80 << 30, free=70 << 30, reserved=0),
        nvmlDeviceGetComputeRunningProcesses=lambda h: [], nvmlDeviceGetClockInfo=lambda h, kind: 1755,
        nvmlDeviceGetMaxClockInfo=lambda h, kind: 1980,
    )
    monkeypatch.setattr(nvidia, "nvml_module", lambda: nvml)
    found = recorded.provenance("x")
    assert (found["gpu"], found["compute_capability"]) == ("NVIDIA H100 80GB HBM3", "9.0")
    assert (found["driver"], found["cuda"], found["memory_mib"]) == ("580.95.05", "13.0", 80 * 1024)
    assert (found["sm_clock_mhz"], found["max_sm_clock_mhz"]) == (1755, 1980)


def test_commit_is_the_argument_then_the_variable_then_gits(monkeypatch):
    monkeypatch.setenv("TRTKIT_COMMIT", "from the variable")
    assert recorded.provenance("x", commit="given")["commit"] == "given"
    assert recorded.provenance("x")["commit"] == "from the variable"
    monkeypatch.delenv("TRTKIT_COMMIT")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=recorded.RESULTS.parent, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("this copy is no repository")
    assert recorded.provenance("x")["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_without_git_the_commit_is_empty(monkeypatch):
    monkeypatch.delenv("TRTKIT_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert recorded.provenance("x")["commit"] == ""


@pytest.mark.parametrize(
    ("gpu", "version", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "8.6.1", "h100_trt861.json"),
        ("NVIDIA H100 PCIe", "8.6.1", "h100pcie_trt861.json"),
        ("NVIDIA H200", "10.15.1.29", "h200_trt10151.json"),
        ("NVIDIA A100-SXM4-80GB", "10.15.1.29", "a100sxm4_trt10151.json"),
        ("Tesla T4", "8.6.1.post1", "t4_trt861.json"),
        ("NVIDIA GeForce RTX 4090", "11.4.0.106", "rtx4090_trt1140.json"),
        ("NVIDIA L4", "8.6.1", "l4_trt861.json"),
    ],
)
def test_file_name_is_gpu_and_version(gpu, version, name):
    assert recorded.file_name({**MADE_FROM, "gpu": gpu, "versions": {"tensorrt": version}}) == name


@pytest.mark.parametrize("lacking", [{"gpu": ""}, {"versions": {"torch": "2.11.0"}}])
def test_no_file_name_without_gpu_or_tensorrt(lacking):
    with pytest.raises(ValueError, match="expected both"):
        recorded.file_name({**MADE_FROM, **lacking})


def test_caption_names_device_versions_and_date():
    assert recorded.caption({"provenance": MADE_FROM}) == (
        "recorded: NVIDIA H100 80GB HBM3, TensorRT 8.6.1, driver 580.95.05, 2026-11-22")
    assert recorded.caption({"provenance": {**MADE_FROM, "gpu": "", "driver": "", "versions": {}}}) == (
        "recorded: Some CPU, 2026-11-22")


def test_what_was_written_is_what_is_loaded(tmp_path):
    body = {"provenance": MADE_FROM, "numbers": [1, 2.5, None], "deep": {"ü": {}}}
    recorded.write(tmp_path / "new folder" / "x.json", body)
    assert recorded.load("x.json", tmp_path / "new folder") == body
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["x.json"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, bad):
    recorded.write(tmp_path / "x.json", {"provenance": MADE_FROM})
    before = (tmp_path / "x.json").read_bytes()
    with pytest.raises((ValueError, TypeError)):
        recorded.write(tmp_path / "x.json", {"provenance": MADE_FROM, "ms": bad})
    assert (tmp_path / "x.json").read_bytes() == before and len(os.listdir(tmp_path)) == 1


def test_missing_results_are_named_with_those_that_are_there(tmp_path):
    recorded.write(tmp_path / "h200_trt861.json", {"provenance": MADE_FROM})
    with pytest.raises(FileNotFoundError, match=r"h100_trt861\.json.*h200_trt861\.json.*bench --record"):
        recorded.load("h100_trt861.json", tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"provenance": {}}', '{"provenance": 3}', "null"])
def test_results_without_provenance_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json holds no results with their provenance"):
        recorded.load("x.json", tmp_path)


def test_committed_results_of_gpus_say_what_they_were_measured_with():
    for path in recorded.RESULTS.glob("*_trt*.json"):
        body = recorded.load(path.name)
        assert recorded.file_name(body["provenance"]) == path.name
        assert body["provenance"]["commit"] and body["provenance"]["command"].startswith("python -m trtkit bench")
