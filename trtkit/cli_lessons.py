"""The command group `trtkit lessons`."""

import argparse
import sys
from pathlib import Path

from trtkit import grade, lessons


def add(commands) -> None:
    """Add the group to the subparsers of `trtkit`."""
    group = commands.add_parser("lessons", help="run the course's notebooks")
    actions = group.add_subparsers(required=True, metavar="ACTION")

    run = actions.add_parser("run", help="execute notebooks, write their pages and a report")
    run.add_argument("notebook", nargs="*", help="for example 00_setup or notebooks/00_setup.ipynb; none means all")
    run.add_argument("-j", type=_positive, default=1, metavar="N", help="so many at once")
    run.add_argument("-p", action="append", default=[], metavar="NAME=VALUE",
                     help="a parameter that every one of these notebooks has")
    run.add_argument("--optional", action="append", default=[], metavar="NAME=VALUE",
                     help="a parameter for those of them that have it")
    run.add_argument("--resume", action="store_true", help="only what failed, did not finish, or changed")
    run.add_argument("--out", type=Path, default=lessons.BUILD, help="folder for pages and report")
    run.add_argument("--cell-timeout-s", type=_positive, default=lessons.CELL_TIMEOUT_S, metavar="S")
    run.add_argument("--notebook-timeout-s", type=_positive, default=lessons.NOTEBOOK_TIMEOUT_S, metavar="S")
    run.set_defaults(command=_run)

    student = actions.add_parser("student", help="write the students' edition: no solutions, no outputs")
    student.add_argument("dir", type=Path)
    student.add_argument("notebook", nargs="*", help="none means all")
    student.add_argument("--nbgrader", action="store_true", help="write nbgrader's source/ASSIGNMENT folder instead")
    student.set_defaults(command=_student)

    check = actions.add_parser("check", help="score a filled-in copy; writes DIR/check.json")
    check.add_argument("dir", type=Path)
    check.add_argument("--timeout-s", type=_positive, default=grade.TIMEOUT_S, metavar="S", help="for each answer")
    check.add_argument("--memory-mib", type=_positive, default=grade.MEMORY_MIB, metavar="MIB", help="for each answer")
    check.set_defaults(command=_check)

    new = actions.add_parser("new", help="start a new lesson")
    new.add_argument("number", metavar="NN")
    new.add_argument("slug", help="for example onnx_export")
    new.set_defaults(command=_new)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    """Exit code 1 when a notebook failed."""
    from trtkit import course

    notebooks = _paths(args.notebook)
    given, optional = (_parameters(texts) for texts in (args.p, args.optional))
    parameters = course.parameters_for(notebooks, given, optional, args.out)
    report = course.run(
        parameters, args.out, jobs=args.j, resume=args.resume, cell_timeout_s=args.cell_timeout_s,
        notebook_timeout_s=args.notebook_timeout_s,
    )
    sys.stdout.write(_summary(report) + f"\nreport: {args.out.resolve() / 'index.html'}\n")
    return 1 if report["counts"]["failed"] else 0


def _student(args: argparse.Namespace) -> None:
    from trtkit import edition

    for path in edition.write(args.dir, _paths(args.notebook), nbgrader=args.nbgrader):
        sys.stdout.write(f"{path}\n")


def _check(args: argparse.Namespace) -> int:
    """Exit code 1 when an answer is not right."""
    results = grade.score(args.dir, lessons.NOTEBOOKS, timeout_s=args.timeout_s, memory_mib=args.memory_mib)
    grade.write(results, args.dir / "check.json")
    sys.stdout.write(f"{grade.as_table(results)}\n{args.dir / 'check.json'}\n")
    return 0 if all(r.status == "right" for r in results) else 1


def _new(args: argparse.Namespace) -> None:
    from trtkit import skeleton

    for path in skeleton.new_lesson(args.number, args.slug, lessons.NOTEBOOKS, Path(__file__).parent):
        sys.stdout.write(f"{path}\n")
    sys.stdout.write("Next: CONTRIBUTING.md, step 3\n")


def _paths(names: list[str]) -> list[Path]:
    """The notebooks so called; all of them in order where there is no name."""
    return [_path(name) for name in names] or sorted(lessons.NOTEBOOKS.glob("*.ipynb"))


def _path(name: str) -> Path:
    return Path(name) if name.endswith(".ipynb") else lessons.NOTEBOOKS / f"{name}.ipynb"


def _parameters(texts: list[str]) -> dict[str, object]:
    pairs = [lessons.parse_parameter(text) for text in texts]
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"parameter: got {sorted(twice)} more than once, expected one value each")
    return dict(pairs)


def _summary(report: dict) -> str:
    from trtkit import check

    rows = []
    for record in report["notebooks"]:
        claims = record["claims"]
        rows.append({
            "lesson": record["name"],
            "status": "unchanged" if record["resumed"] else record["status"],
            "seconds": f"{record['duration_s']:.1f}",
            "claims": f"{sum(c['holds'] for c in claims)} of {len(claims)}",
            "finding": f"{record['cause']}, cell {record['cell']}: {record['error']}" if record["error"] else "",
        })
    return check.table(rows)
