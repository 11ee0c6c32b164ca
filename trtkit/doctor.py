"""What can this machine run, and why not the rest? Lesson 00 and `trtkit doctor`.

Reads files, package metadata and NVML; imports no backend. TensorRT above all: without a device its import works and
its first use may end the process. Contacts no host, writes nothing, takes a fraction of a second.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

from trtkit import diagnose, diagnose_gpu, diagnose_packages, machine, nvidia, packages
from trtkit.diagnose import Finding

MARKS = {"ok": "ok", "note": "note", "warn": "WARN", "error": "ERROR"}
SECTIONS = {
    "This machine": ("CPU", "cores", "memory", "disk", "network"),
    "NVIDIA GPU": ("GPU", "CUDA"),
    "Software": ("Python", "packages", "PyTorch", "Jupyter"),
    "What runs graphs": ("backend ort", "backend trt"),
}
CAPABILITIES = {
    "backend ort": "ONNX Runtime on the CPU",
    "backend trt": "TensorRT on the GPU",
    "PyTorch": "PyTorch (training and export)",
}
SUMMARY_ROWS, FOUND_WIDTH = 9, 84


@dataclass(frozen=True)
class Facts:
    """Everything that `examine` judges."""

    python: str                         # "3.12.1"
    machine: machine.Machine
    folders: tuple[machine.Folder, ...]
    nvidia: nvidia.Nvidia
    packages: packages.Packages
    backends: dict[str, str]            # as `engine.available` returns them
    hub: bool                           # started by a JupyterHub


def gather() -> Facts:
    """The facts of this machine and this Python."""
    from trtkit import engine, lessons

    places = (engine.cache_dir(), lessons.BUILD, Path(tempfile.gettempdir()))
    return Facts(
        python=".".join(map(str, sys.version_info[:3])),
        machine=machine.read(),
        folders=tuple(map(machine.folder, diagnose.ELSEWHERE, places)),
        nvidia=nvidia.read(nvml=nvidia.nvml_module()),
        packages=packages.read(),
        backends=engine.available(),
        hub="JUPYTERHUB_USER" in os.environ,
    )


def examine(facts: Facts | None = None) -> list[Finding]:
    """Every finding, in the order in which they are shown.

    Args:
        facts: None gathers those of this machine.
    """
    facts = facts or gather()
    return [
        *diagnose.cpu(facts.machine),
        *diagnose.cores(facts.machine),
        *diagnose.memory(facts.machine),
        *(finding for folder in facts.folders for finding in diagnose.disk(folder)),
        *diagnose.network(facts.machine),
        *diagnose_gpu.driver(facts.nvidia, facts.machine),
        *diagnose_gpu.cards(facts.nvidia),
        *diagnose_gpu.cuda(facts.nvidia, facts.packages),
        *diagnose_packages.python(facts.python, facts.packages),
        *diagnose_packages.software(facts.packages, gpu=facts.nvidia.usable),
        *diagnose_packages.pytorch(facts.packages),
        *diagnose_packages.jupyter(facts.packages, hub=facts.hub),
        *diagnose_packages.backends(facts.backends),
    ]


def verdict(findings: Iterable[Finding]) -> str:
    """One line: what runs here, what does not, and why."""
    by_topic = {f.topic: f for f in findings}
    looked_at = [(what, by_topic[topic]) for topic, what in CAPABILITIES.items() if topic in by_topic]
    runs = [what for what, f in looked_at if f.level == "ok"]
    rest = [f"{what}, because {f.found}" for what, f in looked_at if f.level != "ok"]
    return f"this machine runs: {', '.join(runs) or 'nothing'}" + (f"; not: {'; '.join(rest)}" if rest else "")


def report(findings: list[Finding]) -> str:
    """All findings as text, grouped, each with its fix below it, and the verdict as the last line."""
    lines = []
    for section, topics in SECTIONS.items():
        lines.append(section)
        for finding in (f for topic in topics for f in findings if f.topic == topic):
            lines.append(f"  {MARKS[finding.level]:6}{finding.topic:12}{finding.found}")
            lines += [f"{'':20}fix: {finding.fix}"] if finding.fix else []
        lines.append("")
    return "\n".join([*lines, verdict(findings)])


def summary(findings: list[Finding]) -> str:
    """At most twelve lines for a notebook: what is wrong first, then what runs, in words without the fixes."""
    from trtkit import check

    order = ["error", "warn", "note", "ok"]
    ranked = sorted(findings, key=lambda f: (order.index(f.level), f.topic not in CAPABILITIES))
    shown = ranked[:SUMMARY_ROWS]
    rows = [{"": MARKS[f.level], "what": f.topic, "found": shorten(f.found, FOUND_WIDTH, placeholder=" ...")}
            for f in shown]
    more = f"and {len(findings) - len(shown)} more; " if len(findings) > len(shown) else ""
    return check.table(rows, f"{more}in full, with what to do: trtkit doctor")


def as_json(facts: Facts, findings: list[Finding]) -> str:
    """One JSON object: `ok`, `verdict`, `findings`, and `facts` as `gather` found them."""
    body = {
        "ok": not has_errors(findings),
        "verdict": verdict(findings),
        "findings": [asdict(f) for f in findings],
        "facts": asdict(facts),
    }
    return json.dumps(body, indent=1, default=lambda x: sorted(x) if isinstance(x, frozenset) else str(x))


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether something is broken, so that a lesson that should run here will not."""
    return any(f.level == "error" for f in findings)
