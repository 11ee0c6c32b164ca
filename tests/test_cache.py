"""Plans under attack: many builders at once, builders that die, files that others could have written."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from filelock import FileLock
from onnx import TensorProto, helper, numpy_helper

from trtkit import backend_ort, engine
from trtkit import cache as plans
from trtkit.engine import BackendError, BuildConfig

ONE_THREAD = BuildConfig(threads=1)

# A process that builds with ORT and notes each build in a file. "hang": it writes half a plan and waits to be killed.
BUILDER = """
import os, sys, time
from pathlib import Path
from trtkit import backend_ort, engine

real, (graph, log, how) = backend_ort.build, sys.argv[1:]

def noted(source, plan, config):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    if how == "hang":
        plan.write_bytes(b"half a plan")
        print("half", flush=True)
        time.sleep(600)
    time.sleep(0.3)                     # long enough that all others ask meanwhile
    return real(source, plan, config)

backend_ort.build = noted
plan = engine.build(Path(graph), engine.BuildConfig(threads=1), backend="ort")
engine.load(plan).close()
print(plan, flush=True)
"""


def _write_graph(path: Path, *, external: bool = False, weight: float = 2.0) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"], "mul")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.full(3, weight, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=path.name + ".data", size_threshold=0)
    return path


@pytest.fixture
def graph(tmp_path):
    return _write_graph(tmp_path / "g.onnx")


@pytest.fixture
def plan(graph, cache):
    return engine.build(graph, ONE_THREAD, backend="ort")


def _build(graph: Path) -> Path:
    return engine.build(graph, ONE_THREAD, backend="ort")


def _start(graph: Path, log: Path, how: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(graph), str(log), how]
    environment = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _rebuilt(graph: Path, why: str) -> Path:
    """Build again, which must say why in one line."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        plan = _build(graph)
    (warning,) = [str(w.message) for w in seen if w.category is UserWarning]
    assert why in warning and warning.startswith(plan.name) and "\n" not in warning
    engine.load(plan).close()
    return plan


# --- many at once, and some that die ---


def test_eight_processes_that_want_the_same_plan_build_it_once(graph, cache, tmp_path):
    log = tmp_path / "builds"
    processes = [_start(graph, log) for _ in range(8)]
    said = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    assert len(log.read_text().splitlines()) == 1 and said == {str(_build(graph))}
    assert sorted(p.name for p in cache.iterdir()) == sorted([Path(*said).name, Path(*said).name + ".json", "locks"])


@pytest.fixture
def killed(graph, cache, tmp_path):
    """The pid of a builder that was killed while it wrote."""
    process = _start(graph, tmp_path / "builds", "hang")
    try:
        assert process.stdout.readline() == "half\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return process.pid


def test_a_builder_that_was_killed_leaves_nothing_that_loads_and_no_lock(graph, cache, killed):
    (orphan,) = [p for p in cache.iterdir() if p.name != "locks"]
    assert orphan.name.endswith(f".{killed}.tmp") and orphan.read_bytes() == b"half a plan"
    with pytest.raises(FileNotFoundError):
        engine.load(orphan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")                  # nothing was there before: nothing to warn about
        plan = _build(graph)
    engine.load(plan).close()
    assert not orphan.exists()


def test_orphans_of_other_plans_are_left_alone(graph, cache, killed):
    other = cache / "other.0123456789abcdef.ort.onnx.77.tmp"
    other.write_bytes(b"somebody writes this now")
    _build(graph)
    assert other.exists() and len(list(cache.glob("*.tmp"))) == 1


def test_a_plan_that_another_process_builds_is_waited_for_and_not_for_ever(plan, graph, monkeypatch):
    lock = plan.parent / "locks" / (plan.name + ".lock")
    plan.unlink()
    monkeypatch.setattr(plans, "WAIT_S", 0.2)
    with FileLock(lock), pytest.raises(TimeoutError) as e:
        _build(graph)
    assert str(lock) in str(e.value) and "another process" in str(e.value) and not plan.exists()
    engine.load(_build(graph)).close()


def test_who_finds_a_plan_waits_for_nobody(plan, graph, monkeypatch):
    monkeypatch.setattr(plans, "WAIT_S", 0.2)
    with FileLock(plan.parent / "locks" / (plan.name + ".lock")):
        assert _build(graph) == plan


def test_a_lock_ends_with_an_exception(cache):
    with suppress(KeyError), plans.locked("x"):
        raise KeyError
    with plans.locked("x"):
        pass


# --- files that others could have written ---


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.parametrize("which", ["plan", "sidecar"])
def test_what_others_can_write_is_refused_and_built_again(plan, graph, which, mode):
    file = plan if which == "plan" else plans.sidecar_path(plan)
    file.chmod(mode)
    why = f"{file.name} can be written by others (mode {mode:o})"
    with pytest.raises(BackendError) as e:
        engine.load(plan)
    assert why in str(e.value) and "build()" in str(e.value)
    assert _rebuilt(graph, why) == plan
    assert {p.stat().st_mode & 0o777 for p in (plan, plans.sidecar_path(plan))} == {0o600}


def test_what_others_can_only_read_is_loaded(plan):
    plan.chmod(0o644)
    engine.load(plan).close()


def test_what_belongs_to_somebody_else_is_refused_and_built_again(plan, graph, monkeypatch):
    me = os.getuid()
    with monkeypatch.context() as m:
        m.setattr(os, "getuid", lambda: me + 1)
        with pytest.raises(BackendError, match=rf"belongs to user {me}, not to you \({me + 1}\)"):
            engine.load(plan)
        with pytest.warns(UserWarning, match=f"belongs to user {me}.*built again"):
            _build(graph)
    engine.load(plan).close()


@pytest.mark.parametrize("umask", [0o002, 0o000, 0o077])
def test_the_users_umask_does_not_make_plans_that_cannot_be_loaded(graph, cache, umask):
    before = os.umask(umask)
    try:
        plan = _build(graph)
    finally:
        os.umask(before)
    engine.load(plan).close()
    assert cache.stat().st_mode & 0o777 == 0o700            # nobody else may put a plan there


def test_a_plan_of_another_machine_is_refused_and_built_again(plan, graph):
    sidecar = plans.sidecar(plan)
    plans.sidecar_path(plan).write_text(json.dumps(sidecar | {"environment": "onnxruntime 0.1 on a toaster"}))
    with pytest.raises(BackendError, match=r"it was made on onnxruntime 0\.1 on a toaster, this is onnxruntime"):
        engine.load(plan)
    assert _rebuilt(graph, "on a toaster") == plan
    assert plans.sidecar(plan)["environment"] == backend_ort.environment()


def test_what_another_version_of_the_builder_made_is_built_again(plan, graph, monkeypatch):
    assert plans.sha256(Path(backend_ort.__file__))[:8] == backend_ort.CODE
    monkeypatch.setattr(backend_ort, "CODE", "0" * 8)
    with pytest.raises(BackendError, match=r"it was made on .* this is"):
        engine.load(plan)
    assert _build(graph) != plan


@pytest.mark.parametrize("key", ["backend", "graph_sha256", "config", "environment", "plan_sha256"])
def test_a_sidecar_that_does_not_tell_all_is_not_trusted(plan, graph, key):
    sidecar = plans.sidecar(plan)
    del sidecar[key]
    plans.sidecar_path(plan).write_text(json.dumps(sidecar))
    with pytest.raises(BackendError, match=key):
        engine.load(plan)
    assert _rebuilt(graph, key) == plan


def test_a_plan_from_elsewhere_wants_trust_in_so_many_words(plan, tmp_path):
    elsewhere = tmp_path / "elsewhere" / plan.name
    elsewhere.parent.mkdir()
    for source in (plan, plans.sidecar_path(plan)):
        (elsewhere.parent / source.name).write_bytes(source.read_bytes())
    with pytest.raises(BackendError, match=r"not in the cache.*executable code.*trust=True"):
        engine.load(elsewhere)
    x = np.ones((2, 3), np.float32)
    with engine.load(elsewhere, trust=True) as runner:
        assert runner.infer({"x": x})["y"].tolist() == [[2, 2, 2]] * 2
    elsewhere.chmod(0o666)
    engine.load(elsewhere, trust=True).close()


def test_a_link_out_of_the_cache_does_not_make_a_plan_ours(plan, tmp_path):
    away = tmp_path / plan.name
    plan.rename(away)
    plan.symlink_to(away)
    with pytest.raises(BackendError, match="not in the cache"):
        engine.load(plan)


def test_a_cache_reached_through_a_link_is_the_cache(graph, cache, tmp_path, monkeypatch):
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    cache.symlink_to(real)
    engine.load(_build(graph)).close()


# --- the folder ---


def test_a_cache_that_is_a_file_is_named(graph, cache):
    cache.write_text("this is no folder")
    with pytest.raises(OSError, match=str(cache)):
        _build(graph)


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(graph, cache, monkeypatch):
    def refused(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(PermissionError) as e:
        _build(graph)
    assert str(cache) in str(e.value) and "TRTKIT_CACHE" in str(e.value)


# --- what a plan's name depends on ---


def test_external_data_belongs_to_the_graph(cache, tmp_path):
    graph = _write_graph(tmp_path / "g.onnx", external=True)
    data = tmp_path / "g.onnx.data"
    assert np.frombuffer(data.read_bytes()[:12], np.float32).tolist() == [2, 2, 2]
    first, bytes_of_graph = _build(graph), graph.read_bytes()
    data.write_bytes(np.full(3, 5, np.float32).tobytes() + data.read_bytes()[12:])
    assert graph.read_bytes() == bytes_of_graph
    second = _build(graph)
    assert first != second
    with engine.load(second) as runner:
        assert runner.infer({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[5, 5, 5]]
    with engine.load(first) as runner:          # a plan has its weights in it
        assert runner.infer({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]
    data.unlink()
    assert plans.graph_sha256(graph) not in (plans.sidecar(p)["graph_sha256"] for p in (first, second))


def test_settings_of_another_backend_do_not_change_a_plans_name(plan, graph):
    other = BuildConfig(threads=1, batch=(1, 4, 4), workspace_mib=7, optimization_level=0, detailed=False)
    assert engine.build(graph, other, backend="ort") == plan


def test_a_configuration_survives_its_sidecar():
    config = BuildConfig(threads=1, batch=(1, 2, 4), shapes={"x": ((1, 3), (2, 3), (4, 3))})
    read = json.loads(json.dumps({k: getattr(config, k) for k in config.__dataclass_fields__}))
    assert BuildConfig(**read) == config


@pytest.mark.parametrize(("fields", "match"), [
    ({"batch": (0, 1, 2)}, "batch: got"), ({"batch": (1, 4, 2)}, "batch: got"), ({"batch": (1, 2)}, "batch: got"),
    ({"shapes": {"x": ((1, 3), (2, 3))}}, "shapes: x"), ({"shapes": {"x": ((2, 3), (1, 3), (4, 3))}}, "shapes: x"),
    ({"shapes": {"x": ((1,), (2, 3), (4, 3))}}, "shapes: x"),
    ({"shapes": {"x": ((0, 3), (1, 3), (4, 3))}}, "shapes: x"),
    ({"workspace_mib": 0}, "workspace_mib: got 0"), ({"optimization_level": 6}, "optimization_level: got 6"),
    ({"timing_iterations": 0}, "timing_iterations: got 0"), ({"aux_streams": -1}, "aux_streams: got -1"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        BuildConfig(**fields)


def test_a_second_call_costs_no_build(plan, graph, monkeypatch):
    def never(*args):
        raise AssertionError("built again")

    monkeypatch.setattr(backend_ort, "build", never)
    start = time.time_ns()
    assert _build(graph) == plan and plan.stat().st_mtime_ns < start
