"""TensorRT plans on disk: executable code that is loaded only as it was built, here, by us."""

import json
import shutil
import subprocess
import sys

import pytest

from trtkit import cache, engine

if WHY := engine.available()["trt"]:
    pytest.skip(f"no TensorRT on a GPU: {WHY}", allow_module_level=True)

from trtkit.engine import BackendError
from trtkit.files import sha256

from .small_net import CONFIG, batch


def _damaged(plan, how: str) -> None:
    data = bytearray(plan.read_bytes())
    if how == "one byte flipped":
        data[len(data) // 2] ^= 0xFF
    elif how == "truncated":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    else:
        data[:] = b"this is no plan\n" * 100
    plan.write_bytes(data)


@pytest.mark.parametrize("how", ["one byte flipped", "truncated", "empty", "text"])
def test_damaged_plan_is_not_loaded(own_cache, how):
    _damaged(own_cache.fp32, how)
    with pytest.raises(BackendError, match="changed since it was built"):
        engine.load(own_cache.fp32)


def test_damaged_plan_is_built_again_and_says_why(own_cache, graphs):
    _damaged(own_cache.fp32, "truncated")
    with pytest.warns(UserWarning, match=r"changed since it was built; built again"):
        plan = engine.build(graphs.fp32, CONFIG, backend="trt")
    assert plan == own_cache.fp32
    with engine.load(plan) as runner:
        assert runner.infer({"x": batch(1)})["y"].shape == (1, 16, 16, 16)


@pytest.mark.parametrize("how", ["truncated", "text"])
def test_damaged_plan_that_is_trusted_is_refused_and_the_process_lives(runner, own_cache, how):
    """The hash is right and trust=True: TensorRT itself must refuse, in a process of its own, since it may crash."""
    _damaged(own_cache.fp32, how)
    sidecar = cache.sidecar_path(own_cache.fp32)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "plan_sha256": sha256(own_cache.fp32)}))
    with pytest.raises(BackendError):
        engine.load(own_cache.fp32, trust=True)
    assert runner.infer({"x": batch(1)})["y"].shape == (1, 16, 16, 16)


@pytest.mark.parametrize(("old", "new"), [("tensorrt ", "tensorrt 1."), ("sm_", "sm_1"), ("NVIDIA", "NVIDIA Other")])
def test_plan_of_another_version_or_gpu_is_not_loaded(own_cache, old, new):
    _edit_environment(own_cache.fp32, old, new)
    with pytest.raises(BackendError, match="it was made on"):
        engine.load(own_cache.fp32)


def test_plan_of_another_driver_is_built_again_and_says_why(own_cache, graphs):
    before = _edit_environment(own_cache.fp32, "driver ", "driver 1")
    with pytest.warns(UserWarning, match=r"it was made on .*; built again"):
        assert engine.build(graphs.fp32, CONFIG, backend="trt") == own_cache.fp32
    assert cache.sidecar(own_cache.fp32)["environment"] == before


def _edit_environment(plan, old: str, new: str) -> str:
    """Returns what it was before."""
    facts = cache.sidecar(plan)
    assert old in facts["environment"]
    edited = {**facts, "environment": facts["environment"].replace(old, new)}
    cache.sidecar_path(plan).write_text(json.dumps(edited))
    return facts["environment"]


def test_plan_from_elsewhere_needs_trust(own_cache, tmp_path):
    for file in (own_cache.fp32, cache.sidecar_path(own_cache.fp32)):
        shutil.copy(file, tmp_path)
    foreign = tmp_path / own_cache.fp32.name
    with pytest.raises(BackendError, match="trust=True"):
        engine.load(foreign)
    with engine.load(foreign, trust=True) as runner:
        assert runner.infer({"x": batch(1)})["y"].shape == (1, 16, 16, 16)


def test_plan_that_others_may_write_is_not_loaded(own_cache):
    own_cache.fp32.chmod(0o666)
    with pytest.raises(BackendError, match="written by others"):
        engine.load(own_cache.fp32)


def test_found_plan_is_not_touched(own_cache, graphs):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in own_cache.fp32.parent.glob("*.plan*")}
    assert engine.build(graphs.fp32, CONFIG, backend="trt") == own_cache.fp32
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in own_cache.fp32.parent.glob("*.plan*")} == before


def test_several_processes_build_once(own_cache, tmp_path):
    from trtkit import bench_runtime

    found = bench_runtime.processes(tmp_path, count=4)
    assert found["builds"] == 1 and found["different_plans"] == 1


def test_engines_leave_no_device_memory_behind(own_cache):
    """A few cycles of load, infer, close; `trtkit bench --only memory` does fifty, with builds."""
    from trtkit import cuda

    def cycle() -> None:
        with engine.load(own_cache.fp32) as runner:
            runner.infer({"x": batch(4)})

    for _ in range(3):
        cycle()
    before_mib, _ = cuda.memory_mib()
    for _ in range(20):
        cycle()
    assert cuda.open_bytes() == 0 and before_mib - cuda.memory_mib()[0] <= 8


def test_runner_that_nobody_closed_does_not_disturb_the_end_of_the_process(plans):
    code = ("import sys; from pathlib import Path; import numpy as np; from trtkit import engine; "
            "r = engine.load(Path(sys.argv[1])); "
            "print(r.infer({'x': np.zeros((1, 3, 32, 32), np.float32)})['y'].shape)")
    done = subprocess.run([sys.executable, "-c", code, str(plans.fp32)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "PyCUDA" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout == "(1, 16, 16, 16)\n"
