"""Did the lesson hold? Claims that can fail, and the automatic checks of the exercises.

A claim is a measured number with a bound: it shows one line, records itself in the notebook's output for the course's
report, and fails the notebook when it does not hold. An exercise calls the student's function on several inputs and
says which one was wrong; its reference, inputs and hints are in `exercises_NN.py`, NN being the lesson's number.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trtkit.bounds import BOUNDS
from trtkit.machine import has_vnni

CLAIM_MIME = "application/vnd.trtkit.claim+json"


def claim(
    name: str,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
    runner: Any = None,
) -> None:
    """State a measured number and the bound it must keep.

    Args:
        name: what was measured, for example "int8_map50_loss".
        value: finite.
        at_least: lower bound, inclusive.
        at_most: upper bound, inclusive. Without any bound, `bounds.BOUNDS` has it for the runner's device class.
        unit: shown behind the numbers.
        runner: what was measured on, an `engine.Runner` or its label; None where no runner was involved.

    Shows one line with the value, which differs between machines: tag the cell nbval-ignore-output.

    Raises:
        AssertionError: the bound does not hold, or the value is not finite.
        ValueError: there is no bound; a claim that cannot fail is none.
    """
    value = float(value)
    label = getattr(runner, "label", runner)
    device = device_class(label) if label else None
    if at_least is None and at_most is None:
        bounds = _bounds_of(name, device)
        at_least, at_most = bounds.get("at_least"), bounds.get("at_most")
    shown = [f"{sign} {bound:g}" for sign, bound in ((">=", at_least), ("<=", at_most)) if bound is not None]
    holds = math.isfinite(value) and (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    measured = f"{name}: {value:.4g} {unit}".rstrip()
    line = f"{'holds' if holds else 'FAILS'}  {measured}  (claimed {' and '.join(shown)})"
    if label:
        line += f"  on {label}"
    number = value if math.isfinite(value) else str(value)          # JSON has no NaN
    _show(line, {"name": name, "value": number, "at_least": at_least, "at_most": at_most, "unit": unit,
                 "runner": label, "device": device, "holds": holds})
    if not holds:
        raise AssertionError(line)


def device_class(label: str) -> Literal["gpu", "cpu-vnni", "cpu"]:
    """Which bounds a runner's label falls under; "cpu-vnni" has 8-bit multiply-add instructions."""
    if label.startswith("tensorrt"):
        return "gpu"
    return "cpu-vnni" if has_vnni() else "cpu"


def _bounds_of(name: str, device: str | None) -> dict[str, float]:
    if name not in BOUNDS:
        raise ValueError(f"claim {name!r}: got no bound, expected at_least, at_most, or an entry in trtkit/bounds.py; "
                         "a claim must be able to fail")
    if device not in BOUNDS[name]:
        raise ValueError(f"claim {name!r}: got device class {device}, expected one of {sorted(BOUNDS[name])}; give "
                         "the runner, or add its class to trtkit/bounds.py")
    return BOUNDS[name][device]


def _show(line: str, record: dict) -> None:
    """The line to read, and the record that the report collects from the notebook's output."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        ipython.display.publish_display_data({"text/plain": line, CLAIM_MIME: record})
    else:
        sys.stdout.write(f"{line}\n")


@dataclass(frozen=True)
class Exercise:
    """What a student's function is compared with.

    Attributes:
        reference: computes the right answer: a number, an array, text, or a tuple, list or dict of those.
        cases: arguments of each call, at least two that differ in their answer.
        hints: three, each giving away more; the first is part of every failure's message.
        rtol, atol: numbers count as equal within atol + rtol * |expected|.
    """

    reference: Callable
    cases: list[tuple]
    hints: tuple[str, str, str]
    rtol: float = 1e-4
    atol: float = 1e-6


@dataclass(frozen=True)
class Verdict:
    """How an answer did: `status`, and a line that says which input gave what."""

    status: Literal["right", "wrong", "empty", "error"]
    message: str


def find_exercise(name: str) -> Exercise:
    """The exercise called "NN_function", from `exercises_NN.py`.

    Raises:
        ValueError: no such exercise.
    """
    try:
        known = importlib.import_module(f"trtkit.exercises_{name[:2]}").EXERCISES
    except ModuleNotFoundError:
        known = {}
    if name not in known:
        raise ValueError(f"exercise: got {name!r}, expected a name like 00_images_per_s, here one of {sorted(known)}")
    return known[name]


def judge(name: str, answer: Callable) -> Verdict:
    """Call `answer` on every case of an exercise and compare with the reference. Stops at the first wrong one."""
    exercise = find_exercise(name)
    more = f"Hint: {exercise.hints[0]}. For another: check.hint({name!r}, 2)"
    if not callable(answer):
        return Verdict("wrong", f"{name}: got {type(answer).__name__}, expected a function. {more}")
    for case in exercise.cases:
        shown = ", ".join(np.array2string(np.asarray(a), precision=3, threshold=8) for a in case)
        try:
            got = answer(*_copies(case))
        except NotImplementedError:             # nbgrader's stub
            got = None
        except MemoryError:
            raise                               # no fault of this input: the process has had enough
        except Exception as e:                  # whatever a student's code may raise
            return Verdict("error", f"{name}({shown}) raised {type(e).__name__}: {e}. {more}")
        expected = exercise.reference(*case)
        if got is None:
            return Verdict("empty", f"{name}: your function returned nothing yet. {more}")
        if not _same(got, expected, exercise.rtol, exercise.atol):
            return Verdict("wrong", f"{name}({shown}): got {got!r:.200}, expected {expected!r:.200}. {more}")
    return Verdict("right", f"{name}: {len(exercise.cases)} of {len(exercise.cases)} cases")


def exercise(name: str, answer: Callable) -> None:
    """Check a student's function, in the notebook.

    Args:
        name: "NN_function", NN being the lesson.
        answer: what the student wrote.

    Prints one line when every case is right.

    Raises:
        AssertionError: says which input gave what, what was expected, and the first hint.
        ValueError: unknown name.
    """
    verdict = judge(name, answer)
    if verdict.status != "right":
        raise AssertionError(verdict.message)
    sys.stdout.write(f"right  {verdict.message}\n")


def hint(name: str, level: int = 1) -> None:
    """Show hint 1, 2 or 3 of an exercise; each gives away more.

    Raises:
        ValueError: unknown name, or another level.
    """
    hints = find_exercise(name).hints
    if level not in (1, 2, 3):
        raise ValueError(f"hint: got level {level!r}, expected 1, 2 or 3")
    sys.stdout.write(f"Hint {level} of {len(hints)}: {hints[level - 1]}.\n")


def _copies(case: tuple) -> list:
    """An answer that changes its arguments must not change the case for the reference."""
    return [a.copy() if isinstance(a, np.ndarray | list | dict) else a for a in case]


def _same(got: object, expected: object, rtol: float, atol: float) -> bool:
    if isinstance(expected, dict):
        return isinstance(got, dict) and got.keys() == expected.keys() and all(
            _same(got[k], v, rtol, atol) for k, v in expected.items())
    if isinstance(expected, str) or expected is None:
        return got == expected
    try:
        numbers, wanted = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    except (TypeError, ValueError):             # text, a ragged list, an object of the student's own
        both = isinstance(got, tuple | list) and isinstance(expected, tuple | list)
        return both and len(got) == len(expected) and all(
            _same(g, e, rtol, atol) for g, e in zip(got, expected, strict=True))
    return numbers.shape == wanted.shape and np.allclose(numbers, wanted, rtol, atol, equal_nan=True)


def table(rows: list[dict[str, str]], caption: str = "") -> str:
    """Rows with the same keys as aligned text, for a notebook and a terminal alike."""
    header = list(rows[0])
    lines = [header, *([str(row[key]) for key in header] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "  ".join("-" * w for w in widths), *text[1:], *([caption] if caption else [])])
