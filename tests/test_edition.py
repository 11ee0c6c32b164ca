"""What students get has no solutions; what nbgrader gets, nbgrader takes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from trtkit import edition, lessons
from trtkit.shape import code_cells, tags

LESSONS = sorted(lessons.NOTEBOOKS.glob("*.ipynb"))


def read(path):
    return nbformat.read(path, 4)


def test_student_edition_has_every_cell_but_solutions_and_no_outputs(tmp_path):
    for path, written in zip(LESSONS, edition.write(tmp_path / "student", LESSONS), strict=True):
        ours, theirs = read(path).cells, read(written).cells
        assert [c.source for c in theirs] == [c.source for c in ours if "solution" not in tags(c)]
        assert len(theirs) < len(ours) and not any(c.outputs or c.execution_count for c in code_cells(theirs))


def test_the_course_itself_is_not_changed(tmp_path):
    before = [p.read_bytes() for p in LESSONS]
    edition.write(tmp_path / "a", LESSONS)
    edition.write(tmp_path / "b", LESSONS, nbgrader=True)
    assert [p.read_bytes() for p in LESSONS] == before


@pytest.mark.parametrize("nbgrader", [False, True])
def test_answers_that_are_there_are_never_overwritten(tmp_path, nbgrader):
    (tmp_path / LESSONS[1].name).write_text("answers")
    with pytest.raises(FileExistsError, match=f"{LESSONS[1].name} exists and may hold answers"):
        edition.write(tmp_path, LESSONS, nbgrader=nbgrader)
    assert [p.name for p in tmp_path.iterdir()] == [LESSONS[1].name]


def test_lessons_that_are_missing_or_broken_are_named_before_anything_is_written(tmp_path):
    (tmp_path / "01_bad.ipynb").write_text("{")
    for bad, error in (("99_none.ipynb", FileNotFoundError), ("01_bad.ipynb", ValueError)):
        with pytest.raises(error, match=bad.removesuffix(".ipynb")):
            edition.write(tmp_path / "out", [*LESSONS, tmp_path / bad])
    assert not (tmp_path / "out").exists()


def test_figures_come_along(tmp_path):
    source = tmp_path / "course"
    (source / "figures").mkdir(parents=True)
    (source / "figures" / "grid.svg").write_text("<svg/>")
    cell = nbformat.v4.new_markdown_cell("![grid](figures/grid.svg)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source / "02_x.ipynb")
    edition.write(tmp_path / "out", [source / "02_x.ipynb"])
    assert (tmp_path / "out" / "figures" / "grid.svg").read_text() == "<svg/>"


def test_nbgrader_cell_holds_the_solution_between_the_marks(tmp_path):
    (written,) = edition.write(tmp_path, LESSONS[:1], nbgrader=True)
    cell = next(c for c in read(written).cells if "exercise" in tags(c))
    assert cell.source == ("def images_per_s(batch, latency_ms):\n    ### BEGIN SOLUTION\n"
                           "    return batch * 1000 / latency_ms\n    ### END SOLUTION")


def nbgrader(*args: str, cwd) -> str:
    """One of nbgrader's commands, from the environment that runs the tests."""
    command = [sys.executable, "-m", "nbgrader", *args]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}      # it calls alembic by name
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nbgrader_validates_the_lessons_as_they_are(tmp_path):
    """Its `validate` runs a notebook and wants every graded cell to pass."""
    path = tmp_path / LESSONS[0].name
    shutil.copy(LESSONS[0], path)
    assert "Success" in nbgrader("validate", path.name, cwd=tmp_path)


@pytest.fixture(scope="module")
def assignment(tmp_path_factory):
    """A course folder in which nbgrader made the students' version of every lesson, without a complaint."""
    folder = tmp_path_factory.mktemp("nbgrader")
    (folder / "nbgrader_config.py").write_text("c = get_config()\nc.CourseDirectory.course_id = 'trtkit'\n")
    edition.write(folder / "source" / "course", LESSONS, nbgrader=True)
    nbgrader("generate_assignment", "course", cwd=folder)
    return folder


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_nbgrader_makes_stubs_of_every_lesson(assignment, path):
    released = read(assignment / "release" / "course" / path.name)
    stubs = [c for c in released.cells if "exercise" in tags(c)]
    assert len(stubs) >= 2
    assert all("raise NotImplementedError()" in c.source and "SOLUTION" not in c.source for c in stubs)


def test_nbgrader_grades_a_submission(assignment):
    """One right and one wrong answer give 1 of 2 points."""
    released = read(assignment / "release" / "course" / LESSONS[0].name)
    stubs = [c for c in released.cells if "exercise" in tags(c)]
    stubs[0].source = "def images_per_s(batch, latency_ms):\n    return 1000 * batch / latency_ms"
    stubs[1].source = "def grid_boxes(size):\n    return 10647"
    for cell in code_cells(released.cells):         # the lesson itself was tested above; here only the exercises run
        if "nbgrader" not in cell.metadata:
            cell.source = "from trtkit import check" if cell.source.startswith("import") else ""
    submitted = assignment / "submitted" / "ada" / "course" / LESSONS[0].name
    submitted.parent.mkdir(parents=True)
    nbformat.write(released, submitted)
    nbgrader("autograde", "course", cwd=assignment)
    nbgrader("export", "--to", "grades.csv", cwd=assignment)
    exercises = sum("exercise" in tags(c) for path in LESSONS for c in read(path).cells)
    assert f",1.0,{float(exercises)}" in (assignment / "grades.csv").read_text()
