"""Record a lesson's measurements on a GPU, step by step. Lessons 04 and 07.

Builds take minutes and a GPU is lent for few of them: so the file is written after each step, what it holds of other
steps stays, and a step that fails leaves the others alone.
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from trtkit import engine, recorded
from trtkit.engine import BackendError


def check(steps: Collection[str], known: Collection[str]) -> None:
    """Before anything is measured.

    Raises:
        ValueError: an unknown step.
        BackendError: no TensorRT or no GPU.
    """
    if unknown := set(steps) - set(known):
        raise ValueError(f"steps: got {sorted(unknown)}, expected some of {list(known)}")
    if why := engine.available()["trt"]:
        raise BackendError(why)


def run(out: Path, steps: Iterable[str], measure: Callable[[str], object], about: Callable[[], dict]) -> None:
    """Measure steps and write each; "measured" says of each by which command and commit it came, and when.

    Args:
        out: of the JSON file.
        steps: their names.
        measure: (name) -> what to write of it, a JSON value.
        about: what else belongs into the file, "provenance" above all; asked for at every writing.

    Raises:
        BackendError: a step failed, after the others were done.
    """
    out, failed = Path(out), {}
    body = recorded.load(out.name, out.parent) if out.is_file() else {}
    for step in steps:
        try:
            body[step] = measure(step)
        except (BackendError, ValueError, OSError) as e:
            failed[step] = str(e)
        said = about()
        if step not in failed:
            body["measured"] = {**body.get("measured", {}), step: recorded.stamp(said["provenance"])}
        recorded.write(out, {**body, **said})
    if failed:
        raise BackendError(f"{out.name} lacks {'; '.join(f'{k}: {v}' for k, v in failed.items())}")
