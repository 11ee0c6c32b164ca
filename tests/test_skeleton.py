"""A new lesson starts out right: its shape, its run, its golden cell, its exercises."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trtkit import check, shape, skeleton


@pytest.fixture
def lesson(tmp_path):
    return skeleton.new_lesson("77", "new_idea", tmp_path, tmp_path)


def test_skeleton_keeps_the_shape(lesson):
    notebook, exercises = lesson
    assert (notebook.name, exercises.name) == ("77_new_idea.ipynb", "exercises_77.py")
    assert shape.problems(notebook) == []


def test_a_lesson_made_on_the_command_line_runs_and_its_golden_cell_holds(tmp_path):
    """In a copy of the package, as an author would in a clone."""
    package = Path(check.__file__).parent
    shutil.copytree(package, tmp_path / "trtkit", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "datasets").symlink_to(package.parent / "datasets")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "CONTRIBUTING.md" in run("trtkit", "lessons", "new", "77", "new_idea")
    assert "1 of 1" in run("trtkit", "lessons", "run")                      # its claim
    run("pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "notebooks")


def test_skeleton_solutions_are_the_reference(lesson):
    spec = importlib.util.spec_from_file_location("exercises_77", lesson[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(module.EXERCISES) == {"77_gflop", "77_speedup"}
    assert module.EXERCISES["77_gflop"].reference(1000) == 2.0


@pytest.mark.parametrize(("number", "slug"), [("7", "x"), ("007", "x"), ("07", "Big"), ("07", "a-b"), ("07", "../x")])
def test_malformed_names_are_refused(tmp_path, number, slug):
    with pytest.raises(ValueError, match="expected two digits"):
        skeleton.new_lesson(number, slug, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lesson_is_never_overwritten(lesson, tmp_path):
    with pytest.raises(FileExistsError, match=r"77_new_idea\.ipynb exists; choose another number"):
        skeleton.new_lesson("77", "other", tmp_path, tmp_path)
    lesson[0].unlink()
    with pytest.raises(FileExistsError, match=r"exercises_77\.py exists"):
        skeleton.new_lesson("77", "other", tmp_path, tmp_path)
