"""The course's report as one HTML page that needs no network."""

from html import escape

COLUMNS = ("Lesson", "Status", "Time", "Measured", "Findings")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; background: #fbfbfd; margin: 2rem auto; max-width: 72rem;
       padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } p { margin: .2rem 0 } .dim { color: #667085; font-size: .88em }
table { border-collapse: collapse; width: 100%; margin-top: 1.4rem; background: #fff; border: 1px solid #e4e7ec }
th { text-align: left; font-size: .8em; color: #667085; font-weight: 600; background: #f5f6f9 }
th, td { padding: .6rem .8rem; border-bottom: 1px solid #e4e7ec; vertical-align: top }
table { table-layout: fixed } .w0 { width: 17% } .w1 { width: 12% } .w2 { width: 13% } .w3 { width: 26% }
a { color: #1d4ed8; text-decoration: none } a:hover { text-decoration: underline }
.status { display: inline-block; padding: .05rem .6rem; border-radius: 1rem; font-weight: 600; white-space: nowrap }
.passed { background: #dcf5e3; color: #14652f } .failed { background: #fde2e0; color: #9b1c16 }
.stopped { background: #fdf0d0; color: #7a4d05 } .not { background: #eceef2; color: #475467 }
.bar { background: #eceef2; border-radius: 3px; height: 7px; width: 8rem; margin-top: .4rem; overflow: hidden }
.bar div { background: #4f8fdc; height: 100% } .bar .over { background: #e0912f }
code { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
td > code { display: block }
summary { cursor: pointer; white-space: nowrap } details code { display: block; margin-top: .25rem }
.bad { color: #9b1c16 } .note { color: #7a4d05 } .nowrap { white-space: nowrap }
"""


def html(report: dict) -> str:
    """The page of a report as `trtkit.report` makes it."""
    counts = [f"{n} {status}" for status, n in report["counts"].items() if n]
    limits, machine = report["limits"], report["machine"]
    shown_limits = (f"limits {limits['cell_timeout_s']} s per cell, {limits['notebook_timeout_s']} s per notebook; "
                    f"{limits['jobs']} at once")
    compared = f"Compared with the run of {_minute(report['compared_with'])}." if report["compared_with"] else ""
    heads = "".join(f'<th class="w{i}">{head}</th>' for i, head in enumerate(COLUMNS))
    rows = "\n".join(_row(record, limits["budget_s"]) for record in report["notebooks"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>trtkit: {escape(", ".join(counts))}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>{escape(" · ".join(counts) or "No lessons")}</h1>
<p>{_minute(report["date"])} · {escape(machine["cpu"])}, {machine["cores"]} cores. {compared}</p>
<p class="dim">trtkit {escape(report["trtkit"])}, Python {escape(report["python"])}; {escape(shown_limits)}</p>
<table><tr>{heads}</tr>
{rows}
</table></body></html>
"""


def _minute(date: str) -> str:
    return f'<span class="nowrap">{escape(date[:16].replace("T", " "))}</span>'


def _row(record: dict, budget_s: float) -> str:
    name = escape(record["name"])
    link = record["page"] or record["notebook"]             # a killed notebook left no page
    title = f'<a href="{escape(link)}">{name}</a>' if link else name
    parameters = "".join(f"<div><code>{escape(f'{k}={v}')}</code></div>" for k, v in record["parameters"].items()
                         if k != "out_dir")
    word = record["status"]
    resumed = f'<div class="dim">unchanged since {_minute(record["date"])}</div>' if record["resumed"] else ""
    cells = [
        f'<td>{title}<div class="dim">{parameters}</div></td>',
        f'<td><span class="status {word.split()[0]}">{word}</span>{resumed}</td>',
        f"<td>{_time(record, budget_s)}</td>",
        f"<td>{_claims(record)}</td>",
        f"<td>{_findings(record)}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _time(record: dict, budget_s: float) -> str:
    seconds = record["duration_s"]
    if seconds is None:
        return ""
    over = ' class="over"' if record["over_budget"] else ""
    text = f'<span class="nowrap">{seconds:.1f} s <span class="dim">of {budget_s:g} s</span></span>'
    bar = f'<div class="bar"><div{over} style="width:{min(100, 100 * seconds / budget_s):.0f}%"></div></div>'
    return text + bar + ('<div class="note">over the budget</div>' if record["over_budget"] else "")


def _claims(record: dict) -> str:
    claims = record["claims"]
    runners = "".join(f'<div class="dim">{escape(label)}</div>' for label in record["runners"])
    if not claims:
        return f'<span class="dim">no claims</span>{runners}' if record["duration_s"] is not None else ""
    held = sum(claim["holds"] for claim in claims)
    lines = "".join(f'<code{"" if c["holds"] else " class=bad"}>{escape(c["line"])}</code>' for c in claims)
    open_ = "" if held == len(claims) else " open"
    return f"<details{open_}><summary>{held} of {len(claims)} claims hold</summary>{lines}</details>{runners}"


def _findings(record: dict) -> str:
    found = []
    if record["error"]:
        where = f" in cell {record['cell']}" if record["cell"] else ""
        found.append(f'<div class="bad"><b>{record["cause"]}</b>{where}</div><code>{escape(record["error"])}</code>')
    if record["slower"]:
        former_s = record["baseline"]["duration_s"]
        found.append(f'<div class="note"><b>slower</b>: {record["slower"]:.1f} times the former {former_s:.1f} s</div>')
    for drift in record["drift"]:
        unit, what = escape(drift["unit"]), escape(drift["name"])
        change = f"{_number(drift['old_value'])} → {_number(drift['value'])} {unit}".rstrip()
        if drift["holds"] != drift["old_holds"]:
            change += ", holds again" if drift["holds"] else ", holds no more"
        found.append(f'<div class="note"><b>moved</b>: {what} {change}</div>')
    if record["output_cut"]:
        found.append(f'<div class="note"><b>output cut</b>: {record["dropped_mib"]:.1f} MiB dropped</div>')
    return "".join(found)


def _number(value: float | str) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.4g}"
