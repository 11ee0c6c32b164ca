"""The runner of notebooks refuses what papermill lets pass, and leaves nothing half-written."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

from trtkit import cli, lessons, page


@pytest.fixture
def notebook(tmp_path):
    parameters = new_code_cell("count = 1\nfast = True", metadata={"tags": ["parameters"]})
    cells = [parameters, new_code_cell("assert count < 5")]
    written = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    written.metadata["language_info"] = {"name": "python"}
    nbformat.write(written, tmp_path / "01_tiny.ipynb")
    return tmp_path / "01_tiny.ipynb"


def test_parameters_that_exist_are_taken(notebook, tmp_path):
    page = lessons.run_notebook(notebook, tmp_path / "out", {"count": 4, "fast": False}, progress=False)
    assert page.is_file() and "count = 4" in (tmp_path / "out" / "01_tiny.ipynb").read_text()


def test_unknown_parameter_is_refused_before_anything_runs(notebook, tmp_path):
    with pytest.raises(ValueError, match="got 'cuont', expected one of \\['count', 'fast'\\]"):
        lessons.run_notebook(notebook, tmp_path / "out", {"cuont": 4}, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["fast=false", "fast=true", "fast", "=1"])
def test_command_line_parameters_that_mean_something_else_are_refused(text):
    with pytest.raises(ValueError, match="parameter"):
        lessons.parse_parameter(text)


def test_text_is_no_boolean(notebook):
    with pytest.raises(ValueError, match="expected True or False"):
        lessons.check_parameters(notebook, {"fast": "no"})


@pytest.mark.parametrize(
    ("text", "expected"), [("n=3", ("n", 3)), ("n=0.5", ("n", 0.5)), ("f=False", ("f", False)), ("s=a/b", ("s", "a/b"))]
)
def test_parse_parameter_reads_python_literals_and_plain_text(text, expected):
    assert lessons.parse_parameter(text) == expected


@pytest.mark.parametrize("body", ["", "not json", "{}"])
def test_broken_notebook_is_named(tmp_path, body):
    (tmp_path / "bad.ipynb").write_text(body)
    with pytest.raises(ValueError, match=r"bad\.ipynb"):
        lessons.check_parameters(tmp_path / "bad.ipynb", {})


def test_missing_notebook_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match="00_setup"):
        lessons.check_parameters(lessons.NOTEBOOKS / "99_none.ipynb", {})


def test_output_folder_that_cannot_be_written_is_found_before_running(notebook, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        lessons.run_notebook(notebook, tmp_path / "file" / "out", progress=False)


def test_full_disk_is_found_before_running(notebook, tmp_path, monkeypatch):
    from pathlib import Path

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        lessons.run_notebook(notebook, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / notebook.name).exists()


def run_cli(*args: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "TQDM_DISABLE": "1"}
    return subprocess.run([sys.executable, "-m", "trtkit", *args], capture_output=True, text=True, env=env)


def test_bad_input_ends_in_one_line_and_exit_code_2(notebook, tmp_path):
    done = run_cli("lessons", "run", str(notebook), "--out", str(tmp_path / "out"), "-p", "speed=1")
    assert done.returncode == 2 and done.stderr.startswith("trtkit: parameter: got 'speed'")
    assert "Traceback" not in done.stderr


def test_failing_cell_ends_in_exit_code_1_and_names_the_error(notebook, tmp_path):
    done = run_cli("lessons", "run", str(notebook), "--out", str(tmp_path / "out"), "-p", "count=9")
    assert done.returncode == 1 and "code, cell 2: AssertionError" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [(DeadKernelError("Kernel died"), "DeadKernelError: Kernel died; it crashed"),
     (CellTimeoutError("A cell timed out"), "CellTimeoutError: A cell timed out Make it shorter")],
)
def test_demo_whose_kernel_dies_or_hangs_ends_in_one_line_and_exit_code_1(monkeypatch, capsys, error, line):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(lessons, "run_notebook", fail)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err.startswith(f"trtkit: the notebook failed: {line}")


def test_demo_refuses_a_parameter_that_lesson_12_does_not_have(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "-p", "fps=30"]) == 2
    assert "expected one of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pages_show_formulas_and_need_no_network(notebook):
    written = nbformat.read(notebook, 4)
    written.cells.append(nbformat.v4.new_markdown_cell("A share $p$ of\n$$\\frac{1}{1-p}$$\ncosts 5 dollars"))
    shown = page.html(written)
    assert shown.count("<math") == 2 and "$p$" not in shown and not re.search(r'<script[^>]*src="http', shown)


def test_video_on_the_command_line_is_found_from_the_shells_folder(tmp_path, monkeypatch):
    seen = {}

    def stop(path, out, parameters):
        seen.update(parameters)
        raise ValueError("seen enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lessons, "run_notebook", stop)
    assert cli.main(["demo", "--out", str(tmp_path), "-p", "source=street.mp4"]) == 2
    assert seen["source"] == str(tmp_path / "street.mp4")
