"""Did the lesson hold? Claims that can fail, and the automatic checks of the exercises.

A claim is a measured number with a bound; it prints one line and raises when it does not hold, so that the notebook
fails. An exercise's check calls the student's function on several inputs and says which one was wrong.
"""

import math
from collections.abc import Callable

import numpy as np


def claim(
    name: str, value: float, *, at_least: float | None = None, at_most: float | None = None, unit: str = ""
) -> None:
    """State a measured number and the bound it must keep.

    Args:
        name: what was measured, for example "int8_map50_loss".
        value: finite.
        at_least: lower bound, inclusive.
        at_most: upper bound, inclusive.
        unit: printed behind the numbers.

    Prints one line with the value, which differs between machines: tag the cell nbval-ignore-output.

    Raises:
        AssertionError: the bound does not hold, or the value is not finite.
        ValueError: no bound was given; a claim that cannot fail is none.
    """
    if at_least is None and at_most is None:
        raise ValueError(f"claim {name!r}: got no bound, expected at_least or at_most; a claim must be able to fail")
    bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", at_least), ("<=", at_most)) if bound is not None]
    holds = math.isfinite(value) and (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    measured = f"{name}: {value:.4g} {unit}".rstrip()
    line = f"{'holds' if holds else 'FAILS'}  {measured}  (claimed {' and '.join(bounds)})"
    if not holds:
        raise AssertionError(line)
    print(line)                         # a claim is meant to be read in the notebook


def exercise(name: str, answer: Callable) -> None:
    """Check a student's function.

    Args:
        name: of the exercise, one of `EXERCISES`.
        answer: what the student wrote.

    Prints one line when every case is right.

    Raises:
        AssertionError: says which input gave what, and what was expected.
        ValueError: unknown name.
    """
    if name not in EXERCISES:
        raise ValueError(f"exercise: got {name!r}, expected one of {sorted(EXERCISES)}")
    reference, cases, hint = EXERCISES[name]
    for case in cases:
        got, expected = answer(*case), reference(*case)
        if got is None:
            raise AssertionError(f"{name}: your function returned nothing yet. Hint: {hint}")
        if not np.allclose(got, expected, rtol=1e-4, atol=1e-6):
            shown = ", ".join(np.array2string(np.asarray(a), precision=3, threshold=8) for a in case)
            raise AssertionError(f"{name}({shown}): got {got}, expected {expected}. Hint: {hint}")
    print(f"right  {name}: {len(cases)} of {len(cases)} cases")


def _images_per_s(batch: int, latency_ms: float) -> float:
    return batch * 1000 / latency_ms


def _grid_boxes(size: int) -> int:
    return sum(3 * (size // stride) ** 2 for stride in (32, 16, 8))


def _frames_dropped(source_fps: float, frame_ms: np.ndarray) -> int:
    """A camera keeps one newest frame; whatever else arrives while one is processed is lost."""
    return int(sum(max(0, math.floor(ms * source_fps / 1000)) for ms in np.asarray(frame_ms)))


def _amdahl(infer_ms: float, other_ms: float, infer_speedup: float) -> float:
    return (infer_ms + other_ms) / (infer_ms / infer_speedup + other_ms)


EXERCISES: dict[str, tuple[Callable, list[tuple], str]] = {
    "setup_images_per_s": (
        _images_per_s,
        [(1, 20.0), (8, 40.0), (32, 4.29)],
        "a batch of N images that takes t milliseconds gives N images per t / 1000 seconds",
    ),
    "setup_grid_boxes": (
        _grid_boxes,
        [(416,), (320,), (608,)],
        "each of the strides 32, 16, 8 has (size / stride)^2 cells with three boxes each",
    ),
    "realtime_frames_dropped": (
        _frames_dropped,
        [(25.0, [30.0, 39.0]), (25.0, [41.0, 90.0, 10.0]), (30.0, [100.0] * 5)],
        "while one frame is processed for t ms, floor(t * fps / 1000) new ones arrive that nobody takes",
    ),
    "realtime_amdahl": (
        _amdahl,
        [(20.0, 10.0, 2.0), (25.0, 5.0, 4.0), (10.0, 10.0, 1e9)],
        "old total over new total; only the inference part gets faster",
    ),
}


def table(rows: list[dict[str, str]], caption: str = "") -> str:
    """Rows with the same keys as aligned text, for a notebook and a terminal alike."""
    header = list(rows[0])
    lines = [header, *([str(row[key]) for key in header] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "  ".join("-" * w for w in widths), *text[1:], *([caption] if caption else [])])
