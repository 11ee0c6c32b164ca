"""Each rule about the shape of a lesson finds its fault, planted into a lesson that keeps them all."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from trtkit import lessons, shape


def tagged(cells: list, tag: str):
    return next(c for c in cells if tag in shape.tags(c))


def replace(cells: list, old: str, new: str):
    for cell in cells:
        cell.source = cell.source.replace(old, new)


def five_line_cells(cells: list):
    cells += [c for i in range(60) for c in (new_markdown_cell(f"{i}"), new_code_cell("x = 1\n" * 7))]


# What is wrong, how to plant it, and what the complaint must say.
FAULTS = {
    "title without the number": (lambda c: replace(c[:1], "# 00", "#"), "opening: expected a title"),
    "no aims": (lambda c: replace(c[:1], "*You will*", ""), "lacks .You will"),
    "no time": (lambda c: replace(c[:1], "*Time:*", ""), "lacks .Time"),
    "no parameters cell": (lambda c: c.pop(1), "got 0 cells tagged parameters"),
    "two parameters cells": (lambda c: c.insert(5, c[1].copy()), "got 2 cells tagged parameters"),
    "nine parameters": (lambda c: setattr(c[1], "source", "a = 1\n" * 9), "got 9 lines"),
    "no summary": (lambda c: replace(c, "## Summary", "### Summary"), "closing: got headings"),
    "nothing predicted": (lambda c: replace(c, "**Predict", "**Guess"), "got 0 '..Predict'"),
    "a long cell": (lambda c: setattr(c[4], "source", "x = 1\n" * 26), "longest has 26 lines"),
    "long cells": (five_line_cells, "median is 7 lines"),
    "four code cells in a row": (lambda c: c.extend(new_code_cell("1") for _ in range(4)), "more than 3 code cells"),
    "an install": (lambda c: c.append(new_code_cell("!pip install torch")), "code: '!pip'"),
    "a star import": (lambda c: c.append(new_code_cell("from numpy import *")), r"code: 'import \*'"),
    "a plot in a cell": (lambda c: c.append(new_code_cell("plt.plot([1])")), "code: 'plt.'"),
    "a syntax error": (lambda c: c.append(new_code_cell("def f(:")), "invalid syntax"),
    "a long function": (lambda c: c.append(new_code_cell("def f():" + "\n    x = 1" * 12)), "function f has 13 lines"),
    "one exercise": (lambda c: c.remove(tagged(c, "exercise")), "got 1 stubs and 2 solutions"),
    "no hint in the stub": (lambda c: replace(c, "check.hint(", "check.help("), r"and check.hint\("),
    "no solution between": (lambda c: tagged(c, "solution").metadata.tags.clear(), "stub, solution, check"),
    "another signature": (
        lambda c: setattr(tagged(c, "solution"), "source", "def other(x):\n    return x"), "differs from the stub's"),
    "another check": (lambda c: replace(c, 'check.exercise("00', 'check.exercise("01'), "expected the cell check"),
    "no nbgrader metadata": (lambda c: tagged(c, "exercise").metadata.pop("nbgrader"), "nbgrader metadata missing"),
    "no golden cell": (lambda c: tagged(c, "nbval-check-output").metadata.tags.clear(), "expected a checkpoint cell"),
    "stripped golden cell": (
        lambda c: tagged(c, "nbval-check-output").update(outputs=[]), "a stripped check checks nothing"),
    "golden cell never run": (
        lambda c: tagged(c, "nbval-check-output").update(execution_count=None), "a stripped check checks nothing"),
    "an output in git": (
        lambda c: c[2].outputs.append(nbformat.v4.new_output("stream", text="x")), "golden: outputs in git"),
}


@pytest.fixture
def lesson():
    return nbformat.read(lessons.NOTEBOOKS / "00_setup.ipynb", 4)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(lesson, tmp_path, fault):
    plant, complaint = FAULTS[fault]
    plant(lesson.cells)
    for i, cell in enumerate(lesson.cells):
        cell.id = str(i)
    nbformat.write(lesson, tmp_path / "00_setup.ipynb")
    found = shape.problems(tmp_path / "00_setup.ipynb")
    assert any(re.search(complaint, f) for f in found), found




def test_name_and_kernel_are_checked(lesson, tmp_path):
    lesson.metadata.kernelspec.name = "my_env"
    nbformat.write(lesson, tmp_path / "Setup.ipynb")
    found = " ".join(shape.problems(tmp_path / "Setup.ipynb"))
    assert "expected NN_slug.ipynb" in found and "kernel: expected python3" in found


@pytest.mark.parametrize("body", ["", "not json", "{}", '{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, body):
    (tmp_path / "00_bad.ipynb").write_text(body)
    with pytest.raises(ValueError, match=r"00_bad\.ipynb cannot be read"):
        shape.problems(tmp_path / "00_bad.ipynb")
