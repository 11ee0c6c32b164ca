"""Every answer gets its verdict, whatever it does; stubs fail, solutions pass."""

import json
import subprocess
import sys
import textwrap
import time

import nbformat
import pytest

from trtkit import edition, grade, lessons
from trtkit.shape import code_cells, tags

LESSONS = sorted(lessons.NOTEBOOKS.glob("*.ipynb"))


def fill(folder, answers: dict[str, str]):
    """The student edition of lesson 00 with some answers."""
    (path,) = edition.write(folder, LESSONS[:1])
    notebook = nbformat.read(path, 4)
    for cell in code_cells(notebook.cells):
        if (name := cell.metadata.get("nbgrader", {}).get("grade_id")) in answers:
            cell.source = textwrap.dedent(answers[name])
    nbformat.write(notebook, path)
    return folder


def score(folder, **limits):
    return grade.score(folder, lessons.NOTEBOOKS, progress=False, **limits)


def test_every_stub_of_the_course_fails_with_a_hint(tmp_path):
    edition.write(tmp_path, LESSONS)
    results = score(tmp_path)
    assert len(results) >= 2 * len(LESSONS)
    assert {r.status for r in results} == {"empty"} and all("Hint:" in r.message for r in results)


def test_every_solution_of_the_course_passes(tmp_path):
    edition.write(tmp_path, LESSONS)
    for path in LESSONS:
        filled = nbformat.read(tmp_path / path.name, 4)
        solutions = iter(c.source for c in nbformat.read(path, 4).cells if "solution" in tags(c))
        for cell in filled.cells:
            if "exercise" in tags(cell):
                cell.source = next(solutions)
        nbformat.write(filled, tmp_path / path.name)
    results = score(tmp_path)
    assert len(results) >= 2 * len(LESSONS)
    assert {r.status for r in results} == {"right"}, grade.as_table(results)


RIGHT = "def grid_boxes(size):\n    return sum(3 * (size // s) ** 2 for s in (8, 16, 32))"
# What the answer does: its code, the verdict, and what the message must say.
BAD = {
    "wrong": ("def images_per_s(b, t):\n    return b / t", "wrong", "got 0.05, expected 50.0"),
    "hangs": ("def images_per_s(b, t):\n    while True: pass", "timeout", "still running after 4 s"),
    "hangs while it is defined": ("while True: pass", "timeout", "still running"),
    "ignores being asked to stop": (
        """
        import signal, time
        def images_per_s(b, t):
            for s in (signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_IGN)
            while True:
                try: time.sleep(100)
                except BaseException: pass
        """, "timeout", "still running"),
    "prints forever": ("def images_per_s(b, t):\n    while True: print('x' * 1000)", "timeout", "still running"),
    "crashes": ("def images_per_s(b, t):\n    import os; os.kill(os.getpid(), 11)", "crashed", "signal SIGSEGV"),
    "exits": ("def images_per_s(b, t):\n    raise SystemExit(0)", "crashed", "exit code 0"),
    "exits hard": ("def images_per_s(b, t):\n    import os; os._exit(3)", "crashed", "exit code 3"),
    "takes all memory": ("def images_per_s(b, t):\n    x = []\n    while True: x.append(bytearray(10**8))",
                         "memory", "more than 512 MiB"),
    "one huge array": ("import numpy as np\ndef images_per_s(b, t):\n    return np.ones(10**10)", "memory", "512 MiB"),
    "fills the disk": ("def images_per_s(b, t):\n    f = open('big', 'w')\n    while True: f.write('x' * 10**6)",
                       "error", "File too large"),
    "raises": ("def images_per_s(b, t):\n    return b / 0", "error", "ZeroDivisionError"),
    "recurses forever": ("def images_per_s(b, t):\n    return images_per_s(b, t)", "error", "RecursionError"),
    "does not parse": ("def images_per_s(b, t:\n    return 1", "error", "SyntaxError"),
    "renamed": ("def images(b, t):\n    return 1", "error", "no function images_per_s"),
    "a number": ("images_per_s = 3", "wrong", "expected a function"),
    "removes the verdict's folder": (
        """
        import os, shutil
        def images_per_s(b, t):
            shutil.rmtree(os.getcwd())
            return 1
        """, "crashed", "exit code 1"),
}


@pytest.mark.parametrize("what", BAD)
def test_answer_that_misbehaves_loses_its_point_and_nothing_else(tmp_path, what):
    source, status, message = BAD[what]
    fill(tmp_path, {"00_images_per_s": source, "00_grid_boxes": RIGHT})
    start = time.perf_counter()
    bad, good = score(tmp_path, timeout_s=4, memory_mib=512)
    assert (bad.status, good.status) == (status, "right"), bad
    assert message in bad.message and time.perf_counter() - start < 60


def test_what_an_answer_leaves_running_is_ended(tmp_path):
    sleeper = """
        import subprocess
        def images_per_s(b, t):
            subprocess.Popen(['sleep', '4242.4242'])
            return 1"""
    fill(tmp_path, {"00_images_per_s": sleeper})
    score(tmp_path)
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "4242.4242" not in commands


def test_lesson_imports_and_helper_cells_count(tmp_path):
    fill(tmp_path, {"00_grid_boxes": "def grid_boxes(size):\n    return sum(3 * cells(size, s) for s in yolo.STRIDES)"})
    path = tmp_path / LESSONS[0].name
    notebook = nbformat.read(path, 4)
    grade_ids = [c.metadata.get("nbgrader", {}).get("grade_id") for c in notebook.cells]
    at = grade_ids.index("00_grid_boxes")
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("def cells(size, s):\n    return np.square(size // s)"))
    nbformat.write(notebook, path)
    assert [r.status for r in score(tmp_path)] == ["empty", "right"]


def test_a_copy_cannot_change_its_checks(tmp_path):
    fill(tmp_path, {"00_grid_boxes": "def grid_boxes(size):\n    return 1", "00_grid_boxes_check": "print('right')"})
    assert score(tmp_path)[1].status == "wrong"


def test_removed_cell_and_broken_file_are_missing_answers(tmp_path):
    fill(tmp_path, {})
    path = tmp_path / LESSONS[0].name
    notebook = nbformat.read(path, 4)
    notebook.cells = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") != "00_grid_boxes"]
    nbformat.write(notebook, path)
    first, second = score(tmp_path)
    assert (first.status, second.status) == ("empty", "missing") and "fresh student edition" in second.message
    path.write_text("{")
    assert [r.status for r in score(tmp_path)] == ["missing", "missing"]
    assert "cannot be read" in score(tmp_path)[0].message


def test_folder_without_lessons_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="without a lesson in it"):
        score(tmp_path)


def test_command_line_writes_json_and_a_table(tmp_path):
    fill(tmp_path, {"00_grid_boxes": RIGHT})
    command = [sys.executable, "-m", "trtkit", "lessons", "check", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr            # not everything is right
    assert "1 of 2 right" in done.stdout and "Hint: a second has 1000 ms" in done.stdout
    body = json.loads((tmp_path / "check.json").read_text())
    assert (body["right"], body["of"]) == (1, 2)
    assert [r["status"] for r in body["results"]] == ["empty", "right"]
