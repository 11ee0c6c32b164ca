"""Editions of the course: for students, without solutions; for nbgrader, with the solutions between its marks.

A lesson in git has, for each exercise, a stub, a solution and a check. A student gets stub and check. nbgrader wants
one cell with the solution between `### BEGIN SOLUTION` and `### END SOLUTION`, from which it makes the stub itself.
"""

import shutil
from itertools import pairwise
from pathlib import Path

from trtkit.files import replacing
from trtkit.lessons import read_cells
from trtkit.shape import code_cells, tags


def student(notebook):
    """A copy without solutions and outputs.

    Args:
        notebook: nbformat 4 node; not modified.
    """
    return _without_outputs(notebook, [c for c in notebook.cells if "solution" not in tags(c)])


def nbgrader_source(notebook):
    """A copy as nbgrader's source directory wants it: each solution in its stub's cell, between nbgrader's marks.

    Args:
        notebook: nbformat 4 node; not modified.
    """
    code = code_cells(notebook.cells)
    solution_of = {stub.id: after.source for stub, after in pairwise(code) if "exercise" in tags(stub)}
    copy = student(notebook)
    for cell in copy.cells:
        if cell.id in solution_of:
            signature, *body = solution_of[cell.id].splitlines()
            marked = ["    ### BEGIN SOLUTION", *body, "    ### END SOLUTION"]
            cell.source = "\n".join([signature, *marked])
    return copy


def write(out_dir: Path, notebooks: list[Path], *, nbgrader: bool = False) -> list[Path]:
    """Write an edition of some lessons, with the figures that their text shows.

    Args:
        out_dir: folder, made if it is not there.
        notebooks: the lessons.
        nbgrader: write what nbgrader's `source/ASSIGNMENT` folder wants instead of the students' edition.

    Returns:
        The files written.

    Raises:
        FileNotFoundError, ValueError: no such lesson, or it cannot be read.
        FileExistsError: a lesson is there already; it may hold a student's answers.
    """
    import nbformat

    out_dir = Path(out_dir)
    for path in notebooks:
        read_cells(path)                        # what cannot be read is named before anything is written
    targets = {path: out_dir / path.name for path in notebooks}
    for target in targets.values():
        if target.exists():
            raise FileExistsError(f"edition: {target} exists and may hold answers; choose another folder, or move it")
    out_dir.mkdir(parents=True, exist_ok=True)
    make = nbgrader_source if nbgrader else student
    for path, target in targets.items():
        notebook = nbformat.read(path, 4)
        with replacing(target) as temporary:
            nbformat.write(make(notebook), temporary)
        if any("figures/" in c.source for c in notebook.cells):
            shutil.copytree(path.parent / "figures", out_dir / "figures", dirs_exist_ok=True)
    return list(targets.values())


def _without_outputs(notebook, cells: list):
    import nbformat

    copy = nbformat.from_dict({**notebook, "cells": cells})
    copy = nbformat.reads(nbformat.writes(copy), 4)         # a deep copy
    for cell in code_cells(copy.cells):
        cell.outputs, cell.execution_count = [], None
    return copy
