"""Run many notebooks: each in a process of its own, some at once, with time limits and a report that is always true."""

import selectors
import sys
from pathlib import Path

from trtkit import job, lessons, report
from trtkit.progress import bar

LOG_EVERY_S = 30
POLL_S = 0.5                    # how late a limit is noticed, and how often the bar's clock moves


def parameters_for(notebooks: list[Path], given: dict, optional: dict, out_dir: Path) -> dict[Path, dict]:
    """The parameters of each notebook; `out_dir` goes to those that have such a parameter.

    Args:
        notebooks: to run. One that cannot be read gets none: its failure belongs into the report.
        given: every notebook must have them.
        optional: at least one must have each of them.
        out_dir: of the run.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: a parameter that a notebook lacks, or text where a boolean is expected.
    """
    known = {}
    for notebook in notebooks:
        try:
            known[notebook] = lessons.default_parameters(notebook)
        except ValueError:
            known[notebook] = None
    readable = {notebook: names for notebook, names in known.items() if names is not None}
    for name in given:
        lacking = ", ".join(notebook.stem for notebook, names in readable.items() if name not in names)
        if lacking:
            every = sorted({each for names in readable.values() for each in names})
            raise ValueError(f"parameter: got {name!r}, which {lacking} lacks; expected one of {every}; "
                             f"--optional {name}=... sets it only where it exists")
    for name in optional:
        if readable and not any(name in names for names in readable.values()):
            raise ValueError(f"parameter: got --optional {name!r}, which no notebook has; "
                             f"expected one of {sorted({each for names in readable.values() for each in names})}")
    chosen = {"out_dir": str(out_dir.resolve()), **optional, **given}
    for notebook, names in readable.items():
        known[notebook] = {name: value for name, value in chosen.items() if name in names}
        lessons.check_parameters(notebook, known[notebook])
    return {notebook: names or {} for notebook, names in known.items()}


def run(
    parameters: dict[Path, dict],
    out_dir: Path,
    *,
    jobs: int = 1,
    cell_timeout_s: int = lessons.CELL_TIMEOUT_S,
    notebook_timeout_s: int = lessons.NOTEBOOK_TIMEOUT_S,
    resume: bool = False,
) -> dict:
    """Run notebooks in their order and write their pages and the report.

    Args:
        parameters: of each notebook, see `parameters_for`.
        out_dir: where to; made if it is not there.
        jobs: how many run at once.
        cell_timeout_s, notebook_timeout_s: limits; a notebook over its limit is killed.
        resume: keep the results of notebooks that passed and did not change.

    Returns:
        The report, as in `report.json`.

    Raises:
        OSError: `out_dir` cannot be written, before or during the run; what the report said before stays.
        ValueError: two notebooks of the same name, or a result would overwrite its lesson.
        KeyboardInterrupt: after all kernels are gone and the report is written.
    """
    out_dir = Path(out_dir).resolve()
    executed = [lessons.output_path(notebook, out_dir) for notebook in parameters]
    twice = sorted({path.stem for path in executed if executed.count(path) > 1})
    if twice:
        raise ValueError(f"notebooks: got {twice} more than once, expected different names; results would overwrite")
    lessons.require_writable(out_dir)
    previous = report.load(out_dir)
    former = report.last_records(previous)
    records, waiting = [], []
    for notebook, given in parameters.items():
        record = report.new_record(notebook.stem, given, former.get(notebook.stem))
        if resume and _is_current(former.get(notebook.stem), notebook, given, out_dir):
            record = {**former[notebook.stem], "resumed": True}
        else:
            waiting.append((notebook, record))
        records.append(record)
    limits = {"cell_timeout_s": cell_timeout_s, "notebook_timeout_s": notebook_timeout_s, "jobs": jobs}
    course = report.new_report(records, previous, limits)
    running: list[job.Job] = []
    total = sum(_count_cells(notebook) for notebook, _ in waiting)
    live = sys.stderr.isatty()          # a log gets a line now and then, not a bar that moves twice a second
    shown = bar(None, "lessons", unit="cell", total=total, miniters=1, mininterval=0.1 if live else LOG_EVERY_S)
    with shown as cells, selectors.DefaultSelector() as selector:
        try:
            report.write(course, out_dir)
            done = 0
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(job.begin(*waiting.pop(0), out_dir, cell_timeout_s))
                    selector.register(running[-1].process.stdout, selectors.EVENT_READ, running[-1])
                    report.write(course, out_dir)
                for ready, _ in selector.select(POLL_S):
                    ready.data.listen()
                for one in [one for one in running if one.ended or one.seconds() > notebook_timeout_s]:
                    selector.unregister(one.process.stdout)
                    running.remove(one)
                    done += _count_cells(one.notebook)
                    one.finish(out_dir, notebook_timeout_s)
                    report.write(course, out_dir)
                cells.set_postfix_str(", ".join(f"{one.notebook.stem} {one.cell}" for one in running), refresh=False)
                cells.update(done + sum(one.cell for one in running) - cells.n)
                if live:
                    cells.refresh()     # the clock moves also while a cell takes long
        finally:
            for one in running:
                one.kill()
    return course


def _count_cells(notebook: Path) -> int:
    try:
        return len(lessons.read_cells(notebook))
    except ValueError:
        return 0


def _is_current(record: dict | None, notebook: Path, parameters: dict, out_dir: Path) -> bool:
    """Whether a former result still stands."""
    outputs = [out_dir / f"{notebook.stem}{suffix}" for suffix in (".ipynb", ".html")]
    passed = bool(record) and record["status"] == "passed" and all(path.is_file() for path in outputs)
    return passed and record["key"] == job.key(notebook, parameters)
