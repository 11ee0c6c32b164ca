"""Score a filled-in copy of the course: every answer in a process of its own, with limits.

An answer may hang, crash, print forever or take all memory; it then loses its point and nothing else. This is no
sandbox: the process may still read files and use the network. Run strangers' copies in a container.
"""

import ast
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from trtkit import check
from trtkit.progress import bar
from trtkit.shape import code_cells, tags

TIMEOUT_S, MEMORY_MIB, FILE_MIB = 30.0, 2048, 16
JOB, VERDICT = "job.json", "verdict.json"


@dataclass(frozen=True)
class Result:
    """One exercise of one copy.

    Attributes:
        lesson: name of the notebook, without .ipynb.
        exercise: "NN_function".
        status: right, wrong, empty (the stub is still there), error (it raised), timeout, memory, crashed (the process
            ended by itself) or missing (no such cell in the copy).
        message: one line: which input gave what, or what to do.
        seconds: the whole process, its start included.
    """

    lesson: str
    exercise: str
    status: str
    message: str
    seconds: float = 0.0


def score(
    folder: Path, lessons_dir: Path, *, timeout_s: float = TIMEOUT_S, memory_mib: int = MEMORY_MIB,
    progress: bool = True,
) -> list[Result]:
    """Check every exercise of the lessons in a folder.

    Args:
        folder: the copy; lessons that it does not have are passed over.
        lessons_dir: the course's own notebooks, which say what the exercises are. A copy cannot change its checks.
        timeout_s: for each answer, its imports included.
        memory_mib: of data that an answer's process may allocate.
        progress: show a bar.

    Returns:
        A result for each exercise, in the order of the lessons.

    Raises:
        FileNotFoundError: no lesson in `folder`.
    """
    import nbformat

    copies = [p for p in sorted(Path(folder).glob("*.ipynb")) if (Path(lessons_dir) / p.name).is_file()]
    if not copies:
        names = sorted(p.name for p in Path(lessons_dir).glob("*.ipynb"))
        raise FileNotFoundError(f"check: got {folder} without a lesson in it, expected some of {names}")
    work = []
    for path in copies:
        ours = nbformat.read(Path(lessons_dir) / path.name, 4).cells
        names = [c.metadata.nbgrader.grade_id for c in code_cells(ours) if "exercise" in tags(c)]
        try:
            theirs, problem = nbformat.read(path, 4).cells, ""
        except Exception as e:                  # nbformat and json raise many kinds
            theirs, problem = [], f"{path.name} cannot be read ({type(e).__name__}); save it again from JupyterLab"
        work += [(path.stem, name, _answer(theirs, name), ours, problem) for name in names]

    results = []
    for lesson, name, answer, ours, problem in bar(work, "check", unit="exercise", show=progress):
        if answer is None:
            why = problem or f"no cell for {name}; copy it again from a fresh student edition"
            results.append(Result(lesson, name, "missing", why))
        else:
            source = f"{_imports(ours, answer)}\n{answer}"
            results.append(_run(lesson, name, source, timeout_s, memory_mib))
    return results


def write(results: list[Result], path: Path) -> None:
    """The results as JSON: `right`, `of`, and a record each."""
    right = sum(r.status == "right" for r in results)
    body = {"right": right, "of": len(results), "results": [asdict(r) for r in results]}
    Path(path).write_text(json.dumps(body, indent=1) + "\n")


def as_table(results: list[Result]) -> str:
    """The results as text, a line each, the score below."""
    rows = [{"lesson": r.lesson, "exercise": r.exercise, "result": r.status, "s": f"{r.seconds:.1f}",
             "why": "" if r.status == "right" else " ".join(r.message.removeprefix(f"{r.exercise}: ").split())}
            for r in results]
    return check.table(rows, f"{sum(r.status == 'right' for r in results)} of {len(results)} right")


def _answer(cells: list, name: str) -> str | None:
    """The student's code for an exercise: from its cell to the next check, so that helper cells count too."""
    code = code_cells(cells)
    starts = [i for i, c in enumerate(code) if c.metadata.get("nbgrader", {}).get("grade_id") == name]
    if not starts:
        return None
    sources = []
    for cell in code[starts[0] :]:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            break
        sources.append(cell.source)
    return "\n".join(sources)


def _imports(cells: list, answer: str) -> str:
    """Those imports of the lesson whose names the answer uses; all of them would load PyTorch for every exercise."""
    try:
        used = {n.id for n in ast.walk(ast.parse(answer)) if isinstance(n, ast.Name)}
    except SyntaxError:
        return ""                               # the answer's process reports it
    lines = []
    for cell in code_cells(cells):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                node.names = [a for a in node.names if (a.asname or a.name).split(".")[0] in used]
                lines += [ast.unparse(node)] if node.names else []
    return "\n".join(dict.fromkeys(lines))


def _run(lesson: str, name: str, source: str, timeout_s: float, memory_mib: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="trtkit-check-", ignore_cleanup_errors=True) as folder:
        job = {"name": name, "source": source, "memory_mib": memory_mib}
        (Path(folder) / JOB).write_text(json.dumps(job))
        start = time.perf_counter()
        # Output goes nowhere: an answer that prints forever fills no disk and only runs into its time limit.
        process = subprocess.Popen(
            [sys.executable, "-m", "trtkit.grade"], cwd=folder, env={**os.environ, "TRTKIT_HEADLESS": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
            verdict = _read_verdict(Path(folder) / VERDICT, name, code)
        except subprocess.TimeoutExpired:
            verdict = {"status": "timeout", "message": f"{name}: still running after {timeout_s:g} s; does a loop end?"}
        finally:
            _kill_group(process)                # also what the answer left running
        return Result(lesson, name, **verdict, seconds=round(time.perf_counter() - start, 2))


def _read_verdict(path: Path, name: str, code: int) -> dict[str, str]:
    try:
        verdict = json.loads(path.read_text())
        return {"status": str(verdict["status"]), "message": str(verdict["message"])}
    except (OSError, ValueError, KeyError, TypeError):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return {"status": "crashed", "message": f"{name}: the process ended with {how} before it gave an answer"}


def _kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _main() -> None:
    """In the answer's process: define it, judge it, leave the verdict in a file."""
    job = json.loads(Path(JOB).read_text())
    limits = ((resource.RLIMIT_DATA, job["memory_mib"]), (resource.RLIMIT_FSIZE, FILE_MIB), (resource.RLIMIT_CORE, 0))
    for kind, mib in limits:
        resource.setrlimit(kind, (mib * 2**20,) * 2)
    name = job["name"]
    verdict_path = Path(VERDICT).resolve()      # the answer may change the folder
    namespace: dict = {"__name__": "answer"}
    try:
        exec(compile(job["source"], name, "exec"), namespace)
        function = namespace.get(name[3:])
        verdict = check.judge(name, function) if function else check.Verdict(
            "error", f"{name}: no function {name[3:]} in the cell; keep the stub's first line")
        outcome = asdict(verdict)
    except MemoryError:
        namespace.clear()                       # room for what is left to do
        outcome = {"status": "memory", "message": f"{name}: more than {job['memory_mib']} MiB"}
    except Exception as e:                      # whatever a student's code may raise
        outcome = {"status": "error", "message": f"{name}: {type(e).__name__}: {e}"}
    verdict_path.write_text(json.dumps(outcome))


if __name__ == "__main__":
    _main()
