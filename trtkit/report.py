"""What a course run found out, one record per notebook: status, cause of a failure, claims, change since the last run.

`report.json` is for machines and for the next run's comparison, `index.html` (`trtkit.report_page`) for people. Both
are rewritten whenever a notebook begins or ends, so that they are true at any moment: a notebook that runs is listed
as stopped, which is what it is when nobody comes back to change that.
"""

import datetime
import json
import math
import platform
from pathlib import Path

import trtkit
from trtkit import causes, lessons, machine, report_page
from trtkit.files import replacing

BUDGET_S = 120                  # of a notebook with its defaults, on two CPU cores
SLOWER = 1.5                    # times its former duration
DRIFT = 0.1                     # of a claim's former value


def now() -> str:
    """Date and time with the zone, ISO 8601, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def load(out_dir: Path) -> dict:
    """The last report of a folder, or one of no notebooks where there is none that can be read."""
    try:
        return json.loads((out_dir / "report.json").read_text())
    except (OSError, ValueError):
        return {"date": None, "notebooks": [], "others": []}


def last_records(report: dict) -> dict[str, dict]:
    """The newest record of each notebook that a report knows, by name."""
    return {record["name"]: record for record in [*report["others"], *report["notebooks"]]}


def new_record(name: str, parameters: dict, former: dict | None) -> dict:
    """A notebook that did not run yet.

    Args:
        name: for example "00_setup".
        parameters: that it will get.
        former: its record of the run before; the last one that passed is kept as what to compare with.
    """
    baseline = None
    if former:
        kept = ("date", "duration_s", "parameters", "claims")
        baseline = {k: former[k] for k in kept} if former["status"] == "passed" else former["baseline"]
    return {
        "name": name, "status": "not run", "resumed": False, "date": now(), "duration_s": None, "over_budget": False,
        "parameters": parameters, "runners": [], "claims": [], "dropped_mib": 0.0, "output_cut": False, "cause": None,
        "cell": None, "error": None, "slower": None, "drift": [], "key": None, "notebook": None, "page": None,
        "baseline": baseline,
    }


def finish(
    record: dict, out_dir: Path, duration_s: float, error: tuple[str, str] | None, cell: int, *, oom_killed: bool
) -> None:
    """Fill in how a notebook ended.

    Args:
        record: of `new_record`, changed in place.
        out_dir: where its executed .ipynb and page are, if they came to be.
        duration_s: wall time, start of its process to its end.
        error: name and text of what ended it, None if it passed.
        cell: position, from 1, of the last cell that started.
        oom_killed: the system killed a process for its memory meanwhile.
    """
    executed = out_dir / f"{record['name']}.ipynb"
    for kind, path in (("notebook", executed), ("page", executed.with_suffix(".html"))):
        record[kind] = path.name if path.is_file() else None
    found = _read_executed(executed) if record["notebook"] else {"claims": [], "dropped_mib": 0.0, "failed_cell": None}
    record["claims"], record["dropped_mib"] = found["claims"], found["dropped_mib"]
    record["output_cut"] = found["dropped_mib"] > 0
    record["runners"] = sorted({c["runner"] for c in found["claims"] if c["runner"]})
    record |= {"duration_s": round(duration_s, 2), "over_budget": duration_s > BUDGET_S}
    record["status"] = "failed" if error else "passed"
    if error:
        record["cell"] = found["failed_cell"] or cell
        broken_claim = any(c["cell"] == record["cell"] and not c["holds"] for c in found["claims"])
        record["cause"] = causes.cause(*error, broken_claim=broken_claim, oom_killed=oom_killed)
        record["error"] = causes.first_line(*error)
    compare(record)


def _read_executed(path: Path) -> dict:
    """Claims, dropped output and the failing cell of an executed notebook, cells counted as in the lesson."""
    from trtkit.check import CLAIM_MIME

    claims, dropped_chars, failed_cell, position = [], 0, None, 0
    for cell in lessons.read_cells(path):
        tags = lessons.tags(cell)
        if "papermill-error-cell-tag" in tags:
            continue
        position += "injected-parameters" not in tags
        dropped_chars += cell["metadata"].get("trtkit_dropped_chars", 0)
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                failed_cell = failed_cell or position
            if claim := output.get("data", {}).get(CLAIM_MIME):
                line = "".join(output["data"].get("text/plain", ""))
                claims.append({**claim, "line": line or f"{claim['name']}: {claim['value']}", "cell": position})
    return {"claims": claims, "dropped_mib": round(dropped_chars / 2**20, 2), "failed_cell": failed_cell}


def compare(record: dict) -> None:
    """Mark a record that is slower than its baseline, and claims that moved away from it, in place.

    `slower`: duration over the former one, if above `SLOWER`, both passed, and the parameters are the same.
    `drift`: claims of the same name and runner that hold no more, hold again, or moved by more than `DRIFT`.
    """
    baseline = record["baseline"]
    if not baseline:
        return
    if record["status"] == "passed" and record["parameters"] == baseline["parameters"]:
        ratio = record["duration_s"] / max(baseline["duration_s"], 0.01)
        record["slower"] = round(ratio, 2) if ratio > SLOWER else None
    former = _by_identity(baseline["claims"])
    for identity, claim in _by_identity(record["claims"]).items():
        old = former.get(identity)
        if old and (old["holds"] != claim["holds"] or _moved(old["value"], claim["value"])):
            new = {k: claim[k] for k in ("name", "runner", "unit", "value", "holds")}
            record["drift"].append({**new, "old_value": old["value"], "old_holds": old["holds"]})


def _by_identity(claims: list[dict]) -> dict[tuple, dict]:
    """By name, runner and how often that pair came before: a lesson may state a claim in a loop."""
    found: dict[tuple, dict] = {}
    for claim in claims:
        nth = sum(key[:2] == (claim["name"], claim["runner"]) for key in found)
        found[claim["name"], claim["runner"], nth] = claim
    return found


def _moved(old: float | str, new: float | str) -> bool:
    if isinstance(old, str) or isinstance(new, str):            # nan and infinities are text in JSON
        return old != new
    return not math.isclose(old, new) and abs(new - old) > DRIFT * abs(old)


def write(report: dict, out_dir: Path) -> None:
    """Write `report.json` and `index.html`, each whole or not at all.

    Raises:
        OSError: with what to do.
    """
    statuses = [record["status"] for record in report["notebooks"]]
    report["counts"] = {status: statuses.count(status) for status in ("passed", "failed", "stopped", "not run")}
    try:
        for name, text in (("report.json", json.dumps(report, indent=1, allow_nan=False)),
                           ("index.html", report_page.html(report))):
            with replacing(out_dir / name) as temporary:
                temporary.write_text(text)
    except OSError as e:
        hint = "free space, then go on with --resume"
        raise OSError(e.errno, f"{out_dir} cannot be written ({e.strerror}); {hint}") from e


def new_report(records: list[dict], previous: dict, limits: dict) -> dict:
    """A report before anything ran.

    Args:
        records: of this run.
        previous: the report before, whose records of other notebooks are kept for later runs.
        limits: numbers to show, such as "cell_timeout_s".
    """
    names = {record["name"] for record in records}
    return {
        "date": now(), "compared_with": previous["date"],
        "trtkit": trtkit.__version__, "python": platform.python_version(),
        "machine": {"cpu": machine.cpu_model(), "cores": machine.read().usable_cores},
        "limits": {"budget_s": BUDGET_S, **limits}, "counts": {}, "notebooks": records,
        "others": [record for name, record in last_records(previous).items() if name not in names],
    }
