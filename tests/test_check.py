"""Claims fail when they should, and exercises tell right from wrong."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from trtkit import check
from trtkit.bounds import BOUNDS

PACKAGE = Path(check.__file__).parent


def test_claim_that_holds_says_value_and_bound(capsys):
    check.claim("loss", 0.4, at_most=1, unit="points")
    assert capsys.readouterr().out == "holds  loss: 0.4 points  (claimed <= 1)\n"


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(1.01, {"at_most": 1}), (0.99, {"at_least": 1}), (math.nan, {"at_most": 1}), (math.inf, {"at_least": 0})],
)
def test_claim_that_does_not_hold_raises(value, bounds):
    with pytest.raises(AssertionError, match="FAILS  x"):
        check.claim("x", value, **bounds)


def test_claim_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="must be able to fail"):
        check.claim("x", 1.0)


def test_failing_claim_says_what_it_ran_on():
    with pytest.raises(AssertionError, match=r"on onnxruntime 1\.30 · CPU"):
        check.claim("x", 2, at_most=1, runner="onnxruntime 1.30 · CPU 2 threads")


def test_bound_of_a_claim_depends_on_the_device(monkeypatch, capsys):
    bounds = {"gpu": {"at_most": 1}, "cpu": {"at_most": 3}, "cpu-vnni": {"at_most": 2}}
    monkeypatch.setattr(check, "BOUNDS", {"t": bounds})
    for has_vnni, bound in ((False, 3), (True, 2)):
        monkeypatch.setattr(check, "has_vnni", lambda has=has_vnni: has)
        check.claim("t", bound, runner="onnxruntime 1.30 · CPU 2 threads")
        with pytest.raises(AssertionError, match=f"<= {bound}"):
            check.claim("t", bound + 0.1, runner="onnxruntime 1.30 · CPU 2 threads")
    with pytest.raises(AssertionError, match="<= 1"):
        check.claim("t", 1.5, runner="tensorrt 8.6.1 · NVIDIA H100")


@pytest.mark.parametrize("runner", [None, "tensorrt 8.6.1 · NVIDIA H100"])
def test_device_without_a_bound_is_refused(monkeypatch, runner):
    monkeypatch.setattr(check, "BOUNDS", {"t": {"cpu": {"at_most": 3}}})
    with pytest.raises(ValueError, match="expected one of \\['cpu'\\]"):
        check.claim("t", 1, runner=runner)


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_every_bound_can_fail_on_every_device_class(name):
    for device, bounds in BOUNDS[name].items():
        assert device in ("cpu", "cpu-vnni", "gpu") and bounds and set(bounds) <= {"at_least", "at_most"}


@pytest.mark.parametrize(("value", "stored"), [(0.5, 0.5), (2.0, 2.0), (math.nan, "nan")])
def test_claim_in_a_notebook_records_itself_even_when_it_fails(value, stored):
    cell = new_code_cell(f"from trtkit import check\ncheck.claim('x', float('{value}'), at_most=1, unit='ms')")
    notebook = new_notebook(cells=[cell])
    NotebookClient(notebook, allow_errors=True).execute()
    record = cell.outputs[0].data[check.CLAIM_MIME]
    assert record == {"name": "x", "value": stored, "at_least": None, "at_most": 1, "unit": "ms", "runner": None,
                      "device": None, "holds": value <= 1}
    assert cell.outputs[0].data["text/plain"].startswith("holds" if value <= 1 else "FAILS")
    assert (cell.outputs[-1].output_type == "error") == (not value <= 1)


EXERCISES = {name: exercise for path in PACKAGE.glob("exercises_*.py")
             for name, exercise in importlib.import_module(f"trtkit.{path.stem}").EXERCISES.items()}


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_exercise_takes_the_reference_and_refuses_stub_and_constant(name):
    exercise = EXERCISES[name]
    check.exercise(name, exercise.reference)
    assert len(exercise.cases) >= 2
    with pytest.raises(AssertionError, match=r"returned nothing yet\. Hint"):
        check.exercise(name, lambda *args: None)
    constant = exercise.reference(*exercise.cases[0])
    with pytest.raises(AssertionError, match="expected"):
        check.exercise(name, lambda *args: constant)


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_exercise_has_three_hints_that_give_away_more_and_more(name, capsys):
    hints = EXERCISES[name].hints
    assert len(set(hints)) == 3 and "return" in hints[2] and "return" not in hints[0]
    for level in (1, 2, 3):
        check.hint(name, level)
        assert capsys.readouterr().out == f"Hint {level} of 3: {hints[level - 1]}.\n"


@pytest.mark.parametrize("level", [0, 4, "2"])
def test_there_are_three_hints(level):
    with pytest.raises(ValueError, match="expected 1, 2 or 3"):
        check.hint("00_grid_boxes", level)


@pytest.mark.parametrize("name", ["nope", "00_nope", "99_images_per_s", ""])
def test_unknown_exercise_says_what_a_name_looks_like(name):
    with pytest.raises(ValueError, match="expected a name like 00_images_per_s"):
        check.exercise(name, lambda: 1)


ANSWERS = {     # reference's answer, an equal one, a wrong one
    "number": (1.0, 1.00005, 1.001),
    "array": (np.ones(3), [1.0, 1.0, 1.0], np.ones(2)),
    "shape": (np.ones((1, 3)), np.ones((1, 3)), np.ones(3)),
    "text": ("INT8", "INT8", "FP32"),
    "text for a number": (1.0, 1, "one"),
    "tuple of different things": ((1, "a"), [1, "a"], (1, "b")),
    "dict": ({"a": 1.0}, {"a": 1.0 + 1e-6}, {"a": 1.0, "b": 2}),
    "nan": (math.nan, math.nan, 0.0),
    "ragged": ([[1], [1, 2]], [[1], [1, 2]], [[1], [1, 3]]),
    "object": (1.0, 1.0, object()),
    "boolean": (True, np.True_, False),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_of_any_kind_are_compared(monkeypatch, kind):
    expected, equal, wrong = ANSWERS[kind]
    exercise = check.Exercise(lambda: expected, [()], ("a", "b", "c"))
    monkeypatch.setattr(check, "find_exercise", lambda name: exercise)
    assert check.judge("00_x", lambda: equal).status == "right"
    assert check.judge("00_x", lambda: wrong).status == "wrong"


def test_answer_that_raises_or_is_no_function_or_changes_its_input(monkeypatch):
    exercise = check.Exercise(lambda x: x.sum(), [(np.arange(4.0),), (np.ones(2),)], ("a", "b", "c"))
    monkeypatch.setattr(check, "find_exercise", lambda name: exercise)
    verdict = check.judge("00_x", lambda x: x.nope)
    assert verdict.status == "error" and "AttributeError" in verdict.message and "[0. 1. 2. 3.]" in verdict.message
    assert check.judge("00_x", 3).status == "wrong"

    def greedy(x):
        x *= 2
        return x.sum() / 2

    assert check.judge("00_x", greedy).status == "right"
    assert exercise.cases[0][0].tolist() == [0, 1, 2, 3]


def test_table_aligns_columns():
    text = check.table([{"a": "1", "long": "x"}, {"a": "22", "long": "yy"}], "caption")
    assert text.splitlines() == ["a   long", "--  ----", "1   x", "22  yy", "caption"]
