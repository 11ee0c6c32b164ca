"""A course of good and bad notebooks: every bad one is named with its cause, and nothing outlives the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from trtkit import course, executor, job, lessons, report
from trtkit.check import CLAIM_MIME

CLAIM = """from IPython.display import display
claim = {{"name": "latency_ms", "value": {0}, "at_least": None, "at_most": 20, "unit": "ms", "runner": "ort · CPU",
         "device": "cpu", "holds": {0} <= 20}}
display({{"{1}": claim, "text/plain": "latency_ms: {0} ms"}}, raw=True)
assert claim["holds"], "FAILS"
"""
KILL_SELF = "import os\nos.kill(os.getpid(), 9)"
# Deaf to interrupts, so that only a kill ends it.
HANG = ("import os, pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "pathlib.Path('{0}').write_text(str(os.getpid()))\nwhile True:\n    time.sleep(0.01)")
WAIT_S = 60


def make(folder: Path, name: str, *sources: str, parameters: str = "count = 1") -> Path:
    cells = [new_markdown_cell(f"# {name}"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    written = new_notebook(cells=[*cells, *map(new_code_cell, sources)])
    written.metadata |= {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    written.metadata["language_info"] = {"name": "python"}
    nbformat.write(written, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def command(*args) -> list[str]:
    return [sys.executable, "-m", "trtkit", "lessons", "run", *map(str, args)]


def run_cli(*args) -> subprocess.CompletedProcess:
    env = {**os.environ, "TQDM_DISABLE": "1"}
    return subprocess.run(command(*args), capture_output=True, text=True, env=env, timeout=300)


def read_report(out: Path) -> dict[str, dict]:
    return {r["name"]: r for r in json.loads((out / "report.json").read_text())["notebooks"]}


def is_alive(pid: int) -> bool:
    """A zombie that nobody waited for is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, what: str):
    end_s = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < end_s, f"waited {WAIT_S} s for {what}"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def bad_course(tmp_path_factory):
    """The command's result and the folder of its report, for one notebook of each kind."""
    folder = tmp_path_factory.mktemp("lessons")
    make(folder, "00_good", CLAIM.format(13.5, CLAIM_MIME), "count")
    make(folder, "01_claim", CLAIM.format(25.0, CLAIM_MIME))
    make(folder, "02_code", "x = {}\nx['a']")
    make(folder, "03_hang", "while True: pass")
    make(folder, "04_missing", "import a_package_that_is_not_here")
    make(folder, "05_memory", "raise MemoryError('unable to allocate 5 GiB')")
    make(folder, "06_prints", "for _ in range(100):\n    print('x' * 10**6)", "print('went on')")
    make(folder, "07_syntax", "x = (1,\ny = 2")
    make(folder, "08_parameters", parameters="count = = 1")
    bare = nbformat.read(make(folder, "09_bare"), 4)
    bare.cells.pop(1)
    nbformat.write(bare, folder / "09_bare.ipynb")
    (folder / "10_broken.ipynb").write_text('{"cells": [')
    # The largest process below the command is what 100 MB of prints would blow up.
    code = ("import resource, sys; from trtkit.cli import main; code = main(sys.argv[1:]); "
            "sys.stderr.write(f'peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}'); sys.exit(code)")
    args = [*sorted(folder.glob("*.ipynb")), "--out", folder / "out", "-j", 2, "--cell-timeout-s", 15]
    done = subprocess.run(
        [sys.executable, "-c", code, "lessons", "run", *map(str, args)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    return done, folder / "out"


def test_each_notebook_is_reported_with_its_cause_cell_and_first_error_line(bad_course):
    done, out = bad_course
    expected = {
        "00_good": (None, None, None),
        "01_claim": ("claim", 3, "AssertionError: FAILS"),
        "02_code": ("code", 3, "KeyError: 'a'"),
        "03_hang": ("timeout", 3, "CellTimeoutError: A cell timed out"),
        "04_missing": ("missing dependency", 3, "ModuleNotFoundError: No module named 'a_package"),
        "05_memory": ("memory", 3, "MemoryError: unable to allocate 5 GiB"),
        "06_prints": (None, None, None),
        "07_syntax": ("code", 3, "SyntaxError: '(' was never closed (line 1 of the cell)"),
        "08_parameters": ("code", 0, "ValueError: notebook: 08_parameters.ipynb, line 1 of its parameters cell"),
        "09_bare": ("code", 0, "ValueError: notebook: 09_bare.ipynb has no parameters; expected a cell tagged"),
        "10_broken": ("code", 0, "ValueError: notebook: 10_broken.ipynb cannot be read"),
    }
    found = read_report(out)
    assert list(found) == list(expected), "in the order of the course"
    for name, (cause, cell, line) in expected.items():
        assert (found[name]["cause"], found[name]["cell"]) == (cause, cell), found[name]
        assert found[name]["status"] == ("failed" if cause else "passed")
        assert (found[name]["error"] or "").startswith(line or "")
        assert found[name]["duration_s"] > 0
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "02_code" in done.stdout and str(out / "index.html") in done.stdout


def test_claims_and_runners_are_collected_also_from_a_claim_that_fails(bad_course):
    found = read_report(bad_course[1])
    assert [(c["name"], c["value"], c["holds"]) for c in found["00_good"]["claims"]] == [("latency_ms", 13.5, True)]
    assert [(c["value"], c["holds"], c["line"]) for c in found["01_claim"]["claims"]] == [
        (25.0, False, "latency_ms: 25.0 ms")
    ]
    assert found["01_claim"]["runners"] == ["ort · CPU"]


def test_every_notebook_that_ran_leaves_a_notebook_and_a_page(bad_course):
    out = bad_course[1]
    for name, record in read_report(out).items():
        if name < "08":
            assert (out / record["page"]).stat().st_size > 10_000
            nbformat.validate(nbformat.read(out / record["notebook"], 4))
        else:
            assert record["page"] is record["notebook"] is None
    assert "KeyError" in (out / "02_code.html").read_text()
    assert not list(out.glob("*.tmp"))


def test_100_mb_of_prints_leave_small_files_and_a_line_that_says_so(bad_course):
    done, out = bad_course
    record = read_report(out)["06_prints"]
    assert record["output_cut"] and record["dropped_mib"] == pytest.approx(100 / 1.048576 - 1, abs=0.2)
    assert (out / "06_prints.ipynb").stat().st_size < 2 * executor.MAX_OUTPUT_CHARS
    cells = nbformat.read(out / "06_prints.ipynb", 4).cells
    assert "MiB of output dropped" in cells[2].outputs[-1].text
    assert cells[3].outputs[0].text == "went on\n"
    assert int(done.stderr.rpartition("peak ")[2]) < 500 * 1024, "KiB of the largest process"


def test_a_killed_kernel_is_reported_within_seconds_of_a_limit_of_minutes(tmp_path):
    last = f"import pathlib, time\npathlib.Path('{tmp_path / 'last'}').write_text(str(time.time()))\n"
    killed = make(tmp_path, "04_killed", "print('before')", last + KILL_SELF)
    found = course.run({killed: {}}, tmp_path / "out", cell_timeout_s=300)["notebooks"][0]
    assert time.time() - float((tmp_path / "last").read_text()) < 15
    assert (found["status"], found["cause"], found["cell"]) == ("failed", "dead kernel", 4)
    assert "before" in (tmp_path / "out" / "04_killed.ipynb").read_text(), "what it did is kept"


def test_a_kernel_that_died_while_the_system_killed_for_memory_ran_out_of_it(tmp_path, monkeypatch):
    counts = iter([3, 4])
    monkeypatch.setattr(job, "oom_kills", lambda: next(counts))
    found = report.new_record("01_a", {}, None)
    dead = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stderr.write('last words'); sys.exit(7)"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=(words := (tmp_path / "words").open("w+b")), start_new_session=True,
    )
    one = job.Job(tmp_path / "01_a.ipynb", found, dead, words, oom_kills=job.oom_kills())
    while not one.ended:
        one.listen()
    one.finish(tmp_path, 900)
    assert (found["status"], found["cause"]) == ("failed", "memory") and "last words" in found["error"]


def test_a_notebook_over_its_limit_is_killed_with_its_kernel(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    hang = make(tmp_path, "03_hang", HANG.format(pid))
    monkeypatch.setattr(job.Job, "seconds", lambda self: 901.0 if pid.is_file() and pid.read_text() else 0.0)
    found = course.run({hang: {}}, tmp_path / "out", notebook_timeout_s=900)["notebooks"][0]
    assert (found["status"], found["cause"], found["cell"]) == ("failed", "timeout", 3)
    assert found["duration_s"] == 901 and found["over_budget"] and "--notebook-timeout-s" in found["error"]
    assert not is_alive(int(pid.read_text()))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_course_leaves_a_true_report_and_no_kernel(tmp_path, number, code):
    hang = make(tmp_path, "01_hang", HANG.format(tmp_path / "pid"))
    later = make(tmp_path, "02_later")
    out = tmp_path / "out"
    process = subprocess.Popen(command(hang, later, "--out", out), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        pid = int(wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), "the kernel"))
        assert is_alive(pid)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert process.returncode == code
    if number == signal.SIGINT:
        assert not is_alive(pid), "the command ended before its kernels"
        assert stderr.rstrip().endswith(b"stopped by Ctrl-C") and b"Traceback" not in stderr
    wait_for(lambda: not is_alive(pid), "the kernel's end")
    assert {name: r["status"] for name, r in read_report(out).items()} == {"01_hang": "stopped", "02_later": "not run"}
    assert "stopped" in (out / "index.html").read_text()


def test_a_disk_that_fills_up_stops_the_course_with_one_line_and_keeps_the_report(tmp_path):
    good = make(tmp_path, "01_good")
    large = make(tmp_path, "02_large", "print('x' * 900_000)")
    later = make(tmp_path, "03_later")
    args = " ".join(command(good, large, later, "--out", tmp_path / "out"))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 600; exec {args}"], capture_output=True, text=True, timeout=300,      # KiB a file
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "File too large" in done.stderr and "free space" in done.stderr and "--resume" in done.stderr
    statuses = {name: r["status"] for name, r in read_report(tmp_path / "out").items()}
    assert statuses == {"01_good": "passed", "02_large": "stopped", "03_later": "not run"}


def test_a_folder_that_cannot_be_written_is_found_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    done = run_cli(make(tmp_path, "01_a"), "--out", tmp_path / "file" / "out")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot be written" in done.stderr


def test_results_never_overwrite_the_lessons(tmp_path):
    notebook = make(tmp_path, "01_a")
    before = notebook.read_bytes()
    with pytest.raises(ValueError, match="expected another folder"):
        course.run({notebook: {}}, tmp_path)
    with pytest.raises(ValueError, match="expected another folder"):
        lessons.run_notebook(notebook, tmp_path, progress=False)
    assert notebook.read_bytes() == before and not (tmp_path / "report.json").exists()


def test_two_notebooks_of_one_name_are_refused(tmp_path):
    (tmp_path / "b").mkdir()
    both = {make(tmp_path, "01_a"): {}, make(tmp_path / "b", "01_a"): {}}
    with pytest.raises(ValueError, match="'01_a'"):
        course.run(both, tmp_path / "out")


@pytest.fixture
def two(tmp_path):
    """One with count and out_dir, one with count and frames."""
    return [make(tmp_path, "01_a", parameters="count = 1\nout_dir: str = '../build'"),
            make(tmp_path, "02_b", parameters="count, other = 1, 2\ncount = 2\nframes = 3  # of them\nfast = True")]


def test_out_dir_goes_to_those_who_ask_for_it_unless_it_is_given(two, tmp_path):
    chosen = course.parameters_for(two, {"count": 5}, {}, tmp_path / "out")
    assert chosen == {two[0]: {"count": 5, "out_dir": str(tmp_path / "out")}, two[1]: {"count": 5}}
    chosen = course.parameters_for(two, {}, {"out_dir": "here", "frames": 9}, tmp_path / "out")
    assert chosen == {two[0]: {"out_dir": "here"}, two[1]: {"frames": 9}}


@pytest.mark.parametrize(
    ("given", "optional", "message"),
    [
        ({"frames": 1}, {}, r"got 'frames', which 01_a lacks; expected one of .*--optional frames="),
        ({"frmes": 1}, {}, r"got 'frmes', which 01_a, 02_b lacks"),
        ({}, {"frmes": 1}, r"got --optional 'frmes', which no notebook has; expected one of \['count', 'fast'"),
        ({}, {"fast": "no"}, r"parameter fast: got 'no', expected True or False"),
    ],
)
def test_parameters_that_would_be_lost_are_refused(two, tmp_path, given, optional, message):
    with pytest.raises(ValueError, match=message):
        course.parameters_for(two, given, optional, tmp_path / "out")


@pytest.mark.parametrize(
    "args", [["-p", "frames=1"], ["-p", "fast=false"], ["-p", "count=1", "-p", "count=2"], ["-j", "0"],
             ["--cell-timeout-s", "-1"], ["-p", "count={1, 2}"], ["-p", "count=1e999"]],
)
def test_bad_arguments_end_with_exit_code_2_before_anything_runs(two, tmp_path, args, capsys):
    from trtkit import cli

    try:
        code = cli.main(["lessons", "run", *map(str, two), "--out", str(tmp_path / "out"), *args])
    except SystemExit as e:                     # argparse
        code = e.code
    assert code == 2 and "got" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture
def begun(monkeypatch):
    """Names of the notebooks that a course begins; none of them runs."""
    names = []

    def begin(notebook, *_):
        names.append(notebook.stem)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "begin", begin)
    return names


@pytest.mark.parametrize(
    ("change", "runs_again"),
    [
        ("nothing", False), ("another lesson", False), ("the lesson", True), ("its page", True), ("its result", True),
        ("parameters", True), ("it failed", True), ("it was stopped", True), ("the package", True),
    ],
)
def test_resume_runs_what_failed_did_not_finish_or_changed(two, tmp_path, begun, monkeypatch, change, runs_again):
    one, out = two[0], tmp_path / "out"
    out.mkdir()
    record = report.new_record(one.stem, {}, None) | {"status": "passed", "duration_s": 1.0, "key": job.key(one, {})}
    for suffix in (".ipynb", ".html"):
        (out / f"{one.stem}{suffix}").write_text("result")
    parameters = {}
    if change == "another lesson":
        two[1].write_text("{}")
    elif change == "the lesson":
        make(tmp_path, "01_a", "a_new_cell", parameters="count = 1\nout_dir = ''")
    elif change in ("its page", "its result"):
        (out / f"{one.stem}{'.html' if change == 'its page' else '.ipynb'}").unlink()
    elif change == "parameters":
        parameters = {"count": 2}
    elif change.startswith("it "):
        record["status"] = change.split()[-1]
    elif change == "the package":
        (tmp_path / "new.py").write_text("")
        monkeypatch.setattr(job, "PACKAGE", tmp_path)
    limits = {"cell_timeout_s": 1, "notebook_timeout_s": 1, "jobs": 1}
    report.write(report.new_report([record], report.load(out), limits), out)
    if runs_again:
        with pytest.raises(KeyboardInterrupt):
            course.run({one: parameters}, out, resume=True)
        assert begun == ["01_a"] and read_report(out)["01_a"]["status"] == "not run"
    else:
        found = course.run({one: parameters}, out, resume=True)["notebooks"]
        assert begun == [] and found == [record | {"resumed": True}]


def test_without_resume_everything_runs_in_order_and_the_run_before_is_compared(two, tmp_path):
    out = tmp_path / "out"
    first = course.run({two[0]: {}, two[1]: {"count": 3}}, out, jobs=2)
    assert [r["status"] for r in first["notebooks"]] == ["passed", "passed"] and first["compared_with"] is None
    assert "count = 3" in (out / "02_b.ipynb").read_text()
    former = json.loads((out / "report.json").read_text())
    former["notebooks"][0]["duration_s"] = 0.1
    (out / "report.json").write_text(json.dumps(former))
    again = course.run({two[0]: {}}, out)
    assert again["notebooks"][0]["slower"] > 1.5 and again["compared_with"] == first["date"]
    assert course.run({two[0]: {}, two[1]: {"count": 3}}, out, resume=True)["notebooks"][1]["resumed"]


def test_kernel_is_headless_and_the_caller_is_not_changed(tmp_path, monkeypatch):
    monkeypatch.delenv("TRTKIT_HEADLESS", raising=False)
    asks = make(tmp_path, "01_asks", "import os\nassert os.environ['TRTKIT_HEADLESS']")
    lessons.run_notebook(asks, tmp_path / "out", progress=False)
    assert "TRTKIT_HEADLESS" not in os.environ
