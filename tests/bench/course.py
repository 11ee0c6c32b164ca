"""What `trtkit lessons run` costs over plain papermill, and what a second job saves, each as a ratio of this machine.

usage: .venv/bin/python tests/bench/course.py [--rounds 3] [notebook ...]
The pairs take turns in one run. It asserts nothing: times belong to a machine, not to a test.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_notebook

from trtkit import lessons

EQUAL_NOTEBOOKS, BUSY_S = 4, 6.0
BUSY = "total = 0\nfor i in range({}):\n    total += i * i"


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a command that must succeed, started in `folder`."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def overhead(notebooks: list[Path], rounds: int) -> None:
    """Print runner time over papermill's, for each notebook, median of pairs that take turns."""
    medians = []
    for notebook in notebooks:
        out, plain = (Path(tempfile.mkdtemp()) for _ in range(2))
        # papermill's command as one would type it, from the notebook's folder; `trtkit` from the same
        commands = {
            "papermill": [str(Path(sys.executable).parent / "papermill"), notebook.name, str(plain / notebook.name)],
            "trtkit": [sys.executable, "-m", "trtkit", "lessons", "run", notebook.name, "--out", str(out)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(rounds):
            for name in list(commands)[:: 1 if turn % 2 else -1]:
                times[name].append(seconds(commands[name], notebook.parent))
        medians.append({name: float(np.median(values)) for name, values in times.items()})
        ratio = medians[-1]["trtkit"] / medians[-1]["papermill"]
        shown = ", ".join(f"{name} {' '.join(f'{s:.1f}' for s in values)} s" for name, values in times.items())
        print(f"{notebook.stem}: ratio of medians {ratio:.3f}   ({shown})", flush=True)
        shutil.rmtree(out), shutil.rmtree(plain)
    ours, plain_s = (sum(m[name] for m in medians) for name in ("trtkit", "papermill"))
    print(f"all: trtkit {ours:.1f} s with pages, papermill {plain_s:.1f} s without, ratio {ours / plain_s:.3f}"
          "  (target <= 1.05)", flush=True)


def two_jobs(rounds: int) -> None:
    """Print how much faster `-j 2` is on equal notebooks, each busy on one core."""
    folder = Path(tempfile.mkdtemp())
    # A fixed amount of work, not a fixed time: two at once on one core must take twice as long.
    rate = _steps_per_s()
    source = BUSY.format(int(rate * BUSY_S))
    for number in range(EQUAL_NOTEBOOKS):
        cells = [new_code_cell("steps = 1", metadata={"tags": ["parameters"]}), new_code_cell(source)]
        written = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        nbformat.write(written, folder / f"{number:02}_equal.ipynb")
    names = [path.name for path in sorted(folder.glob("*.ipynb"))]
    times: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(rounds):
        for jobs, values in times.items():
            command = [sys.executable, "-m", "trtkit", "lessons", "run", *names, "-j", jobs, "--out", "out"]
            values.append(seconds(command, folder))
    one, two = (float(np.median(times[jobs])) for jobs in "12")
    print(f"-j 2: {one:.1f} s one by one, {two:.1f} s two at once, {one / two:.2f} times faster  (target >= 1.6)")
    shutil.rmtree(folder)
    bare = [sys.executable, "-c", source]
    alone = seconds(bare, Path.cwd())
    start = time.perf_counter()
    for process in [subprocess.Popen(bare) for _ in range(2)]:
        process.wait()
    gain = 2 * alone / (time.perf_counter() - start)
    print(f"      two bare Python processes at once: {gain:.2f} times faster; 2 where both cores are free", flush=True)


def _steps_per_s() -> float:
    start = time.perf_counter()
    exec(BUSY.format(3_000_000), {})        # globals, as in a notebook, are slower than a function's own names
    return 3_000_000 / (time.perf_counter() - start)


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("notebook", nargs="*", type=Path, help="instead of all lessons")
    args = parser.parse_args()
    notebooks = [path.resolve() for path in args.notebook] or sorted(lessons.NOTEBOOKS.glob("*.ipynb"))
    two_jobs(args.rounds)
    overhead(notebooks, args.rounds)


if __name__ == "__main__":
    main()
