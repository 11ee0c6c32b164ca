"""The report: causes, comparison with the run before, and files that are whole and need no network."""

import json
import re

import pytest

from trtkit import causes, report, report_page

LIMITS = {"cell_timeout_s": 300, "notebook_timeout_s": 900, "jobs": 1}
LABEL = "onnxruntime 1.32 · CPU 2 threads"


def claim(value=10.0, *, name="latency_ms", runner=LABEL, holds=True, unit="ms") -> dict:
    return {"name": name, "value": value, "runner": runner, "holds": holds, "unit": unit, "line": f"{name} {value}",
            "cell": 3}


def record(
    name="01_a", *, status="passed", duration_s=10.0, claims=(), parameters=None, former=None, **changes
) -> dict:
    made = report.new_record(name, parameters or {}, former)
    made |= {"status": status, "duration_s": duration_s, "claims": list(claims), **changes}
    report.compare(made)
    return made


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("AssertionError", "expected 3 boxes", "code"),
        ("KeyError", "'a'", "code"),
        ("TimeoutError", "raised by the cell itself", "code"),
        ("CellTimeoutError", "A cell timed out", "timeout"),
        ("NotebookTimeoutError", "longer than 900 s", "timeout"),
        ("RuntimeError", "Kernel didn't respond in 60 seconds", "timeout"),
        ("DeadKernelError", "Kernel died", "dead kernel"),
        ("RuntimeError", "Kernel died before replying to kernel_info", "dead kernel"),
        ("MemoryError", "", "memory"),
        ("_ArrayMemoryError", "Unable to allocate 5 GiB", "memory"),                    # NumPy's
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", "memory"),  # PyTorch's
        ("RuntimeError", "CUDA error: out of memory", "memory"),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory", "memory"),
        ("ModuleNotFoundError", "No module named 'pycuda'", "missing dependency"),
        ("ModuleNotFoundError", "No module named 'trtkit'", "missing dependency"),
        ("ModuleNotFoundError", "No module named 'trtkit.nothing'", "code"),
        ("ImportError", "cannot import name 'nothing' from 'trtkit' (/x/__init__.py)", "code"),
        ("ImportError", "libcudart.so.12: cannot open shared object file", "missing dependency"),
        ("BackendError", "backend 'trt': TensorRT is not installed", "missing dependency"),
        ("BackendError", "onnxruntime 1.32 refused x.onnx: bad node", "code"),
    ],
)
def test_cause(name, text, expected):
    assert causes.cause(name, text) == expected and expected in causes.CAUSES


def test_cause_needs_more_than_the_error():
    assert causes.cause("AssertionError", "FAILS", broken_claim=True) == "claim"
    assert causes.cause("KeyError", "'a'", broken_claim=True) == "code"
    assert causes.cause("DeadKernelError", "Kernel died", oom_killed=True) == "memory"
    assert causes.cause("KeyError", "'a'", oom_killed=True) == "code"       # another process was killed


def test_first_line_is_one_line_that_says_what_to_do():
    line = causes.first_line("SyntaxError", "'(' was never closed (4182639.py, line 3)\nmore")
    assert line == "SyntaxError: '(' was never closed (line 3 of the cell); correct the cell"
    assert "--cell-timeout-s" in causes.first_line("CellTimeoutError", "A cell timed out, after 3 s.\nThe message")
    assert len(causes.first_line("ValueError", "x" * 10**6)) < 1000
    assert causes.first_line("StopIteration", "") == "StopIteration: "


def test_slower_needs_half_as_much_again_the_same_parameters_and_two_passes():
    former = record(duration_s=10.0)
    assert record(duration_s=14.9, former=former)["slower"] is None
    assert record(duration_s=20.0, former=former)["slower"] == 2.0
    assert record(duration_s=20.0, former=former, parameters={"frames": 9})["slower"] is None
    assert record(duration_s=20.0, former=former, status="failed")["slower"] is None
    assert record(duration_s=20.0, former=record(status="failed"))["slower"] is None


def test_a_failed_run_in_between_does_not_lose_the_baseline():
    passed = record(duration_s=10.0)
    failed = record(duration_s=1.0, status="failed", former=passed)
    assert record(duration_s=20.0, former=failed)["slower"] == 2.0


@pytest.mark.parametrize(
    ("old", "new", "drifts"),
    [(10.0, 10.9, False), (10.0, 11.1, True), (10.0, 8.9, True), (-10.0, -11.1, True), (0.0, 0.0, False),
     (0.0, 1e-3, True), ("nan", "nan", False), ("nan", 1.0, True), (1.0, "inf", True)],
)
def test_drift_is_a_tenth_of_the_former_value(old, new, drifts):
    found = record(claims=[claim(new)], former=record(claims=[claim(old)]))["drift"]
    assert [(d["old_value"], d["value"]) for d in found] == ([(old, new)] if drifts else [])


def test_drift_sees_a_claim_that_holds_no_more_though_it_hardly_moved():
    found = record(status="failed", claims=[claim(10.01, holds=False)], former=record(claims=[claim(10.0)]))["drift"]
    assert [(d["old_holds"], d["holds"]) for d in found] == [(True, False)]


def test_drift_compares_only_the_same_runner_and_the_same_turn_of_a_loop():
    assert not record(claims=[claim(99.0, runner="tensorrt 10")], former=record(claims=[claim(10.0)]))["drift"]
    loop = [claim(1.0), claim(2.0), claim(3.0)]
    assert not record(claims=loop, former=record(claims=loop))["drift"]
    changed = record(claims=[claim(1.0), claim(2.0), claim(4.0)], former=record(claims=loop))["drift"]
    assert [(d["old_value"], d["value"]) for d in changed] == [(3.0, 4.0)]


def test_records_of_notebooks_that_did_not_run_now_are_kept_for_later(tmp_path):
    nothing = report.load(tmp_path)
    report.write(report.new_report([record("01_a"), record("02_b")], nothing, LIMITS), tmp_path)
    report.write(report.new_report([record("02_b", duration_s=5.0)], report.load(tmp_path), LIMITS), tmp_path)
    known = report.last_records(report.load(tmp_path))
    assert known["01_a"]["duration_s"] == 10.0 and known["02_b"]["duration_s"] == 5.0


@pytest.mark.parametrize("text", [None, "", "{", "\xff"])
def test_a_former_report_that_cannot_be_read_counts_as_none(tmp_path, text):
    if text is not None:
        (tmp_path / "report.json").write_text(text, encoding="latin-1")
    assert report.last_records(report.load(tmp_path)) == {}


def test_a_full_disk_leaves_the_former_report_whole(tmp_path, monkeypatch):
    from pathlib import Path

    course = report.new_report([record()], report.load(tmp_path), LIMITS)
    report.write(course, tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    write_text = Path.write_text

    def full(self, text, *args, **kwargs):
        write_text(self, text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left.*free space.*--resume"):
        report.write(course, tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "report.json"]


def test_json_is_strict_and_counts_every_status(tmp_path):
    records = [record("01_a", claims=[claim("nan", holds=False)]), record("02_b", status="failed"),
               record("03_c", status="stopped"), report.new_record("04_d", {}, None)]
    report.write(report.new_report(records, report.load(tmp_path), LIMITS), tmp_path)
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert read["counts"] == {"passed": 1, "failed": 1, "stopped": 1, "not run": 1}
    assert read["machine"]["cores"] >= 1 and read["limits"]["budget_s"] == report.BUDGET_S


def test_page_says_everything_escapes_it_and_loads_nothing(tmp_path):
    evil = "<script>alert(1)</script>"
    records = [
        record("01_a", duration_s=130.0, over_budget=True, page="01_a.html", claims=[claim(12.0)], runners=[LABEL],
               former=record(claims=[claim(10.0)], duration_s=10.0), parameters={}),
        record("02_b", status="failed", cause="code", cell=7, error=f"KeyError: {evil}", parameters={"text": evil}),
        record("03_c", status="stopped", duration_s=None),
    ]
    course = report.new_report(records, report.load(tmp_path), LIMITS)
    report.write(course, tmp_path)
    page = (tmp_path / "index.html").read_text()
    for part in ('href="01_a.html"', "130.0 s", "over the budget", "1 of 1 claims hold", LABEL, "13.0 times", "10 → 12",
                 ">passed<", ">failed<", ">stopped<", "in cell 7", "1 passed · 1 failed · 1 stopped"):
        assert part in page, part
    assert evil not in page and not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert report_page.html(course) == page
