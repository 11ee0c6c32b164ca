"""Every notebook has the design's shape and runs from top to bottom; each rule of the shape can fail."""

import re

import nbformat
import pytest

from trtkit import lessons, shape

NOTEBOOKS = sorted(lessons.NOTEBOOKS.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_there_are_notebooks():
    assert {"00_setup", "12_realtime_detection"} <= {p.stem for p in NOTEBOOKS}


@each_notebook
def test_keeps_the_shape_of_a_lesson(path):
    assert shape.problems(path) == []


@each_notebook
def test_is_in_the_readme_with_its_minutes(path):
    minutes = re.search(r"\*Time:\* (\d+) minutes", path.read_text())[1]
    row = rf"^\| {path.stem[:2]} \| \[.+\]\(notebooks/{path.name}\) \| {minutes} \| .+ \|$"
    assert re.search(row, (lessons.NOTEBOOKS.parent / "README.md").read_text(), re.M)


@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path):
    """A failing cell raises; what remains to check is that the page shows something."""
    parameters = {"out_dir": str(tmp_path)} if path.stem.startswith("12") else {}
    page = lessons.run_notebook(path, tmp_path, parameters, progress=False)
    executed = nbformat.read(tmp_path / path.name, 4)
    pictures = [o for c in executed.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures and page.stat().st_size > 10_000
