"""The process that builds engines: what it says arrives, and however it ends, the caller learns it.

Nothing here needs TensorRT: the other process finds stand-ins for `backend_trt` and `cuda`, put there before its first
import, and does in `build_here` what the test says.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from trtkit import trt_process
from trtkit.engine import BackendError, BuildConfig

STAND_IN = """
import json, os, signal, subprocess, sys, time
from contextlib import nullcontext
from types import ModuleType

def build_here(graph, plan, config, tell):
{build}

def deserialize(plan, log):
{deserialize}

def keep_kernels():
    os.environ["KERNELS"] = str(int(os.environ.get("KERNELS", "0")) + 1)
    return "a builder"

backend_trt, cuda, trt_plan = map(ModuleType, ("trtkit.backend_trt", "trtkit.cuda", "trtkit.trt_plan"))
backend_trt.build_here, trt_plan.deserialize, trt_plan.Log = build_here, deserialize, object
backend_trt.keep_kernels = keep_kernels
cuda.primary_context = nullcontext
sys.modules |= {{"trtkit.backend_trt": backend_trt, "trtkit.cuda": cuda, "trtkit.trt_plan": trt_plan}}
"""
ROOT = Path(trt_process.__file__).parents[1]
CONFIG = BuildConfig(threads=1, batch=(1, 2, 4), shapes={"x": ((1, 3), (2, 3), (4, 3))})


@pytest.fixture
def child(tmp_path, monkeypatch):
    """`child(body)` says what the other process does; returns a function that asks it to build."""
    def prepare(build: str = "return {}", deserialize: str = "pass"):
        bodies = {k: textwrap.indent(textwrap.dedent(v).strip("\n"), "    ")
                  for k, v in {"build": build, "deserialize": deserialize}.items()}
        (tmp_path / "sitecustomize.py").write_text(STAND_IN.format(**bodies))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return lambda: trt_process.run("build", graph="a/g.onnx", plan=str(tmp_path / "p.plan"), config=CONFIG)

    return prepare


def _gone(pid: int, wait_s: float = 20) -> bool:
    """Whether a process ends, or has ended and waits for its parent."""
    for _ in range(int(wait_s / 0.05)):
        stat = Path(f"/proc/{pid}/stat")
        with suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


# --- what it says arrives ---


def test_the_result_and_all_of_the_request_pass_through(child, tmp_path):
    build = child("return {'said': [str(graph), str(plan)], 'config': config.__dict__, 'kind': type(config).__name__}")
    result = build()
    assert result["said"] == ["a/g.onnx", str(tmp_path / "p.plan")] and result["kind"] == "BuildConfig"
    assert BuildConfig(**result["config"]) == CONFIG


def test_a_long_result_passes_through(child):
    result = child("return {'layers': [{'Name': 'n' * 1000, 'é': '\\u001e\\n'}] * 1000}")()
    assert result["layers"] == [{"Name": "n" * 1000, "é": "\u001e\n"}] * 1000


def test_it_runs_in_a_process_and_session_of_its_own(child):
    result = child("return {'pid': os.getpid(), 'session': os.getsid(0)}")()
    assert result["pid"] != os.getpid() and result["session"] == result["pid"]
    assert _gone(result["pid"])


@pytest.mark.parametrize("error", [BackendError, ValueError])
def test_errors_come_back_as_what_they_were(child, error):
    build = child(f"from trtkit.engine import BackendError\nraise {error.__name__}('line 1\\nline 2: \"é\"')")
    with pytest.raises(error) as e:
        build()
    assert str(e.value) == 'line 1\nline 2: "é"' and type(e.value) is error


def test_what_libraries_print_does_not_disturb_the_conversation(child):
    body = """
    print("to Python's stdout", flush=True)
    os.write(1, b'{"result": {"forged": 1}}\\n')
    os.write(2, b"[TRT] to stderr\\n" * 10000)
    subprocess.run(["echo", "from a grandchild"])
    return {"built": 1}
    """
    assert child(body)() == {"built": 1}


def test_a_plan_is_probed_in_the_other_process(child, tmp_path):
    child(deserialize="if not plan.exists(): raise ValueError(f'no {plan.name}')")
    with pytest.raises(ValueError, match=r"no p\.plan"):
        trt_process.run("probe", plan=str(tmp_path / "p.plan"))
    (tmp_path / "p.plan").write_bytes(b"")
    assert trt_process.run("probe", plan=str(tmp_path / "p.plan")) == {}


# --- however it ends ---


@pytest.mark.parametrize(("body", "says"), [
    ("os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
    ("os.abort()", "died of SIGABRT"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "was killed, perhaps since this machine ran out of memory"),
    ("os._exit(7)", "ended with exit code 7"),
    ("import nothing_of_this_name", "exit code 1.*No module named 'nothing_of_this_name'"),
])
def test_a_death_is_a_named_error_with_what_was_said_last(child, body, says):
    build = child(f"os.write(2, b'[TRT] [E] the last words\\n')\n{body}")
    with pytest.raises(BackendError, match=rf"(?s)^build: TensorRT's process .*{says}") as e:
        build()
    assert "the last words" in str(e.value) or "nothing_of_this_name" in str(e.value)


def test_a_death_in_the_middle_of_the_answer_is_a_death(child):
    build = child("""
    (events,) = [cell.cell_contents for cell in tell.__closure__]
    events.write('{"result": {"layers": [')
    events.flush()
    os.kill(os.getpid(), signal.SIGSEGV)
    """)
    with pytest.raises(BackendError, match="died of SIGSEGV"):
        build()


def test_a_process_that_dies_at_once_and_silently_says_so(child, tmp_path):
    build = child()
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    with pytest.raises(BackendError, match=r"ended with exit code 3: it said nothing"):
        build()


def test_an_interrupt_ends_the_other_process_and_all_that_it_started(child, tmp_path):
    pids = tmp_path / "pids"
    build = child(f"""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open({str(pids)!r} + ".tmp", "w") as file:
        json.dump([os.getpid(), grandchild.pid], file)
    os.rename({str(pids)!r} + ".tmp", {str(pids)!r})
    time.sleep(60)
    """)
    here = threading.get_ident()

    def interrupt():
        while not pids.exists():
            time.sleep(0.05)
        signal.pthread_kill(here, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # shells ignore it for what runs behind "&"
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            build()
    finally:
        signal.signal(signal.SIGINT, before)
    started = json.loads(pids.read_text())
    assert len(started) == 2 and all(_gone(pid) for pid in started)


def test_it_ends_with_the_process_that_asked(child, tmp_path):
    pid_file = tmp_path / "pid"
    child(f"""
    with open({str(pid_file)!r} + ".tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename({str(pid_file)!r} + ".tmp", {str(pid_file)!r})
    time.sleep(60)
    """)
    code = "from trtkit import trt_process as t; t.run('build', graph='g', plan='p', config=t.BuildConfig())"
    asking = subprocess.Popen([sys.executable, "-c", code],
                              env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))})
    try:
        while not pid_file.exists():
            assert asking.poll() is None
            time.sleep(0.05)
    finally:
        asking.kill()
        asking.wait()
    assert _gone(int(pid_file.read_text()))


# --- a block of builds ---

WHO = "return {'pid': os.getpid(), 'kernels': os.environ.get('KERNELS')}"


def test_builds_of_a_block_share_a_process_that_keeps_its_kernels(child):
    build = child(WHO)
    with trt_process.kept():
        first = build()
        with trt_process.kept():            # a function that is called in the block may have its own
            second = build()
        assert build() == second == first and first["kernels"] == "1"
        assert not _gone(first["pid"], 0.1)
    assert _gone(first["pid"])
    alone = build()
    assert alone["kernels"] is None and alone["pid"] != first["pid"]


def test_a_block_ends_its_process_after_an_exception_too(child):
    build = child(WHO)
    with pytest.raises(ZeroDivisionError), trt_process.kept():
        pid = build()["pid"]
        raise ZeroDivisionError
    assert _gone(pid)


@pytest.mark.parametrize("fault", ["raise ValueError('no')", "os._exit(3)"])
def test_after_a_failure_the_next_build_of_a_block_has_a_new_process(child, tmp_path, fault):
    build = child(f"if not plan.exists():\n    {fault}\n{WHO}")
    with trt_process.kept():
        with pytest.raises((ValueError, BackendError)):
            build()
        (tmp_path / "p.plan").write_bytes(b"")
        good = build()
        os.kill(good["pid"], signal.SIGKILL)        # while nobody asks
        trt_process._idle[0].popen.wait()
        assert build()["pid"] != good["pid"]


def test_threads_of_a_block_do_not_wait_for_each_other(child, tmp_path):
    """Each of two builds ends only once the other one has begun."""
    build = child("""
    open(plan.with_name(f"begun_{os.getpid()}"), "w").close()
    while len(list(plan.parent.glob("begun_*"))) < 2:
        time.sleep(0.02)
    return {"pid": os.getpid()}
    """)
    with trt_process.kept(), ThreadPoolExecutor(2) as pool:
        pids = {future.result(timeout=60)["pid"] for future in [pool.submit(build) for _ in range(2)]}
    assert len(pids) == 2 and all(_gone(pid) for pid in pids)


# --- progress ---


class _Bar:
    def __init__(self, *args, **options):
        self.calls = [("made", *args)]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.calls.append(("closed",))

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.append((name, *args, *options.values()))


def test_progress_moves_the_bar_while_the_build_runs(child, monkeypatch):
    bars = []
    monkeypatch.setattr(trt_process, "bar", lambda *a, **k: bars.append(_Bar(*a, **k)) or bars[-1])
    child("tell(phase='Tactics')\nfor i in (1, 2): tell(step=i, of=2)\nreturn {}")()
    assert bars[0].calls == [("made", None, "build"), ("set_description", "build: Tactics"),
                             ("reset", 2), ("update", 1), ("reset", 2), ("update", 2), ("closed",)]
