"""The start of a new lesson: a notebook that keeps every rule of `shape`, and its exercises.

It runs and passes as it is, so that an author replaces one working piece after the other.
"""

import re
from pathlib import Path

from trtkit.files import replacing

OPENING = """# {number} · {title}
**In one sentence:** TODO: what is true, and measured in this lesson.

*You will*
* TODO: predict something from a formula;
* TODO: measure it.

*You need* lesson 00. *Time:* 20 minutes; the notebook runs in less than one."""

PARAMETERS = """repeats = 20          # timed multiplications; defaults are the smoke run on two cores
size = 256            # of the matrices"""

IMPORTS = """import time

import numpy as np

from trtkit import check, plots, scenes"""

PICTURE = """## TODO: one idea
TODO: a question from the student's world, then the formula with every symbol named:

$$t = \\frac{2 n^3}{rate}$$

TODO: a picture to look at, and a sentence on what to see in it."""

PICTURE_CODE = """plots.images([scenes.render(seed).img_hwc_u8 for seed in range(3)], ["a", "b", "c"])"""

FIRST_PREDICTION = """> **See:** TODO.

**Predict:** TODO: how many times slower is the scratch version? Write a number down before you go on."""

SCRATCH = """a = np.ones((size, size), np.float32)
scratch = np.array([[row @ column for column in a.T] for row in a])
assert np.allclose(scratch, a @ a)              # TODO: scratch equals trtkit"""

SECOND_PREDICTION = """**Predict:** TODO: what does doubling the size cost? Then measure."""

MEASURE = """times_ms = []
for _ in range(repeats):
    start = time.perf_counter()
    a @ a
    times_ms.append(1000 * (time.perf_counter() - start))
gflop_per_s = 2 * size**3 / np.median(times_ms) / 1e6
check.claim("{number}_gflop_per_s", gflop_per_s, at_least=0.01, unit="GFLOP/s")"""

CHECKPOINT = """## Checkpoint
TODO: what must be the same on every machine."""

GOLDEN = """print("scratch equals the library:", bool(np.allclose(scratch, a @ a)))"""
GOLDEN_OUTPUT = "scratch equals the library: True\n"

CLOSING = """## Summary
You have
* TODO: predicted something from a formula, off by a factor of **TODO**;
* TODO: measured it.

## Exercises
**1.** TODO. Write `gflop(n)`: the work of multiplying two n by n matrices, in GFLOP."""

SECOND_EXERCISE = "**2.** TODO. Write `speedup(before_ms, after_ms)`: how many times faster?"

REFERENCES = """## References
* TODO: author, *title*, year, and the section that the formula is from.

Next: TODO."""

EXERCISES = '''"""Exercises of lesson {number}: what a right answer is, and what to say to those who are stuck."""

from trtkit.check import Exercise


def _gflop(n: int) -> float:
    return 2 * n**3 / 1e9


def _speedup(before_ms: float, after_ms: float) -> float:
    return before_ms / after_ms


EXERCISES = {{
    "{number}_gflop": Exercise(
        _gflop,
        [(100,), (1024,)],
        (
            "each of the n * n results is a sum of n products",
            "a product and an addition are two operations, and 1 GFLOP is 1e9 of them",
            "return 2 * n**3 / 1e9",
        ),
    ),
    "{number}_speedup": Exercise(
        _speedup,
        [(20.0, 10.0), (30.0, 12.0)],
        (
            "2 means half the time",
            "it is a ratio, and it is above 1 when `after_ms` is the smaller one",
            "return before_ms / after_ms",
        ),
    ),
}}
'''


def new_lesson(number: str, slug: str, notebooks: Path, package: Path) -> tuple[Path, Path]:
    """Write the notebook and the exercises of a new lesson.

    Args:
        number: two digits.
        slug: of a-z, 0-9 and _.
        notebooks: folder of the lessons.
        package: folder of `exercises_NN.py`.

    Returns:
        Paths of the notebook and of its exercises.

    Raises:
        ValueError: a malformed number or slug.
        FileExistsError: there is such a lesson already.
    """
    import nbformat

    if not re.fullmatch(r"\d\d", number) or not re.fullmatch(r"[a-z][a-z0-9_]*", slug):
        raise ValueError(f"lesson: got {number!r} {slug!r}, expected two digits and a-z, 0-9, _: 05 onnx_export")
    exercises = package / f"exercises_{number}.py"
    taken = [*notebooks.glob(f"{number}_*.ipynb"), *([exercises] if exercises.exists() else [])]
    if taken:
        raise FileExistsError(f"lesson {number}: {taken[0].name} exists; choose another number")
    path = notebooks / f"{number}_{slug}.ipynb"
    with replacing(path) as temporary:
        nbformat.write(_notebook(number, slug.replace("_", " ").capitalize()), temporary)
    exercises.write_text(EXERCISES.format(number=number))
    return path, exercises


def _notebook(number: str, title: str):
    from nbformat import v4

    golden = _code(GOLDEN, "keep_output", "nbval-check-output")
    golden.outputs, golden.execution_count = [v4.new_output("stream", text=GOLDEN_OUTPUT)], 1
    cells = [
        v4.new_markdown_cell(OPENING.format(number=number, title=title)),
        _code(PARAMETERS, "parameters"),
        _code(IMPORTS),
        v4.new_markdown_cell(PICTURE),
        _code(PICTURE_CODE),
        v4.new_markdown_cell(FIRST_PREDICTION),
        _code(SCRATCH),
        v4.new_markdown_cell(SECOND_PREDICTION),
        _code(MEASURE.format(number=number), "nbval-ignore-output"),
        v4.new_markdown_cell(CHECKPOINT),
        golden,
        v4.new_markdown_cell(CLOSING),
        *exercise_cells(f"{number}_gflop", "def gflop(n):", "    return 2 * n**3 / 1e9"),
        v4.new_markdown_cell(SECOND_EXERCISE),
        *exercise_cells(f"{number}_speedup", "def speedup(before_ms, after_ms):", "    return before_ms / after_ms"),
        v4.new_markdown_cell(REFERENCES),
    ]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def exercise_cells(name: str, signature: str, solution: str) -> list:
    """Stub, solution and check of an exercise, with the metadata that nbgrader reads.

    Args:
        name: "NN_function".
        signature: the line with `def`.
        solution: the body, indented.
    """
    stub = _code(f'{signature}\n    ...                 # your code; stuck? check.hint("{name}", 1), then 2 and 3',
                 "exercise")
    solved = _code(f"{signature}\n{solution}", "solution")
    solved.metadata["jupyter"] = {"source_hidden": True}
    check = _code(f'check.exercise("{name}", {name[3:]})', "nbval-ignore-output")
    both = {"schema_version": 3, "task": False, "cell_type": "code"}
    stub.metadata["nbgrader"] = {"grade_id": name, "grade": False, "solution": True, "locked": False, **both}
    check.metadata["nbgrader"] = {
        "grade_id": f"{name}_check", "grade": True, "solution": False, "locked": True, "points": 1, **both}
    return [stub, solved, check]


def _code(source: str, *tags: str):
    from nbformat import v4

    return v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})
