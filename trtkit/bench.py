"""`trtkit bench`: what TensorRT reaches on this GPU, recorded with everything that the numbers depend on. Lesson 11.

A GPU is lent for minutes, and builds take longer than measurements. So every step writes its result into the file as
soon as it has it; a run that was cut off keeps what it has, and the next one, asked for other parts, adds to the file.
"""

import json
import traceback
from collections.abc import Callable
from pathlib import Path

from trtkit import engine, recorded
from trtkit.bench_steps import PARTS, Settings, steps
from trtkit.engine import BackendError

WHAT = ("YOLOv3-416, width 1.0 (80 classes, random weights) and 0.25 (6 classes, trained), as TensorRT engines and in "
        "PyTorch; times are of the device, milliseconds, unless a name says otherwise")
SAME = ("gpu", "driver", "versions")        # without these in common, results do not belong into one file


def run(settings: Settings, say: Callable[[str], None]) -> Path:
    """Measure, and write each result as soon as it is there.

    Args:
        settings: see there.
        say: gets a line per step.

    Returns:
        Path of the results' file.

    Raises:
        ValueError: unknown parts, or the file there is of another GPU, driver or of other versions.
        BackendError: no TensorRT or no GPU; or steps failed: all others were done, and their results written.
    """
    if unknown := set(settings.parts) - set(PARTS):
        raise ValueError(f"only: got {sorted(unknown)}, expected some of {PARTS}")
    if problem := engine.available()["trt"]:
        raise BackendError(f"bench: {problem}; it measures TensorRT and needs a GPU, see README.md")
    made_from = recorded.provenance(settings.command, commit=settings.commit)
    path = Path(settings.out) / recorded.file_name(made_from)
    merged(path, made_from)                     # refuses before the device's time is spent
    failed = []
    for part in [p for p in PARTS if p in settings.parts]:
        for key, step in steps(part, settings, say):
            try:
                for name, result in step():
                    recorded.write(path, add(merged(path, made_from), part, name, result, made_from))
                    say(f"{part} {name}: {brief(result)}")
            except Exception as e:              # one step that fails must not cost the others, nor what they measured
                failed.append(f"{part} {key}")
                say(f"{part} {key} FAILED: {type(e).__name__}: {e}\n{traceback.format_exc()}")
    if failed:
        raise BackendError(f"bench: {len(failed)} steps failed: {', '.join(failed)}; the others are in {path}")
    return path


def merged(path: Path, made_from: dict) -> dict:
    """The results so far; a new file's where there is none.

    Raises:
        ValueError: they are of another GPU, driver or of other versions.
    """
    if not path.is_file():
        return {"what": WHAT, "provenance": made_from}
    body = json.loads(path.read_text())
    for fact in SAME:
        if body["provenance"][fact] != made_from[fact]:
            raise ValueError(f"results: {path} was measured with {fact} {body['provenance'][fact]}, expected "
                             f"{made_from[fact]}; write to another folder with --out, or delete the file")
    return body


def add(body: dict, part: str, name: str, result: dict, made_from: dict) -> dict:
    """Results with one more, which says by which command and commit it came, since a file may be of several."""
    return {**body, part: {**body.get(part, {}), name: {**result, "measured": recorded.stamp(made_from)}}}


def brief(result: dict) -> str:
    """A result on one line, for whoever waits."""
    flat = {k: v["median_ms"] if isinstance(v, dict) and "median_ms" in v else v
            for k, v in result.get("contenders", result).items()}
    return ", ".join(f"{k} {v}" for k, v in flat.items() if isinstance(v, int | float | str))[:400]
