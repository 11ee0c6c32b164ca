"""A notebook that runs in a process of its own, seen from the course that started it."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from trtkit import lessons, machine, report, worker

PACKAGE = Path(__file__).resolve().parent
MANIFEST = lessons.NOTEBOOKS.parent / "datasets" / "manifest.json"


def key(notebook: Path, parameters: dict) -> str:
    """Hash of all that a notebook's result depends on: its bytes, parameters, this package, the datasets."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for path in (notebook, MANIFEST, *sorted(PACKAGE.glob("*.py"))):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def oom_kills() -> int:
    """How many processes of our cgroup the system has killed for their memory; 0 where it does not tell."""
    lines = machine.text(Path("/proc/self/cgroup")).splitlines()
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    top = Path("/sys/fs/cgroup")
    events = machine.text(top / group / "memory.events") or machine.text(top / "memory.events")
    return int(dict(line.split() for line in events.splitlines()).get("oom_kill", 0))


@dataclass
class Job:
    """A worker process and what it told so far."""

    notebook: Path
    record: dict                                # in the course's report, filled in as things happen
    process: subprocess.Popen                   # of `trtkit.worker`
    stderr: object                              # temporary file
    began_s: float = field(default_factory=time.monotonic)
    oom_kills: int = field(default_factory=oom_kills)
    kernels: list[int] = field(default_factory=list)    # process ids
    cell: int = 0                               # position, from 1, of the last that started
    end: dict | None = None                     # the last event
    ended: bool = False                         # that event came, or the pipe is closed
    heard: bytes = b""                          # the beginning of a line

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began_s

    def listen(self) -> None:
        """Take the events that are there; to be called when the pipe can be read."""
        chunk = os.read(self.process.stdout.fileno(), 2**16)
        *lines, self.heard = (self.heard + chunk).split(b"\n")
        for event in map(json.loads, lines):
            self.cell = event.get("cell", self.cell)
            self.kernels += [event["kernel"]] if "kernel" in event else []
            self.end = event if "end" in event else self.end
        self.ended = not chunk or self.end is not None

    def finish(self, out_dir: Path, notebook_timeout_s: int) -> None:
        """Fill in the record; a process that did not end is over its limit and is killed.

        Raises:
            OSError: the worker could not write its files.
        """
        seconds, end = self.seconds(), self.end or {}
        if not self.ended:
            where = f"in cell {self.cell}; shorten it, or raise --notebook-timeout-s"
            end = {"end": ("NotebookTimeoutError", f"longer than {notebook_timeout_s} s, {where}")}
        elif not self.end:
            code = self.process.wait()
            self.stderr.seek(0)
            last = self.stderr.read()[-2000:].decode(errors="replace").strip().rpartition("\n")[2]
            end = {"end": ("DeadWorkerError", f"the process that ran it ended with code {code}: {last}")}
        self.kill()
        if end.get("write_error"):
            hint = f"{out_dir} is full or cannot be written: free space, then go on with --resume"
            raise OSError(f"{': '.join(end['end'])}; {hint}")
        oom_killed = oom_kills() > self.oom_kills
        report.finish(self.record, out_dir, seconds, end["end"], self.cell, oom_killed=oom_killed)

    def kill(self) -> None:
        """End the process and its kernel, which leads a group of its own, whatever they do."""
        worker.kill_groups(self.process.pid, *([] if self.end else self.kernels))   # else it has seen its kernel end
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def begin(notebook: Path, record: dict, out_dir: Path, cell_timeout_s: int) -> Job:
    """Start the process; from now on the record says "stopped", until it is known how the notebook ended."""
    for suffix in (".ipynb", ".html"):          # an old page must not pass for this run's
        (out_dir / f"{notebook.stem}{suffix}").unlink(missing_ok=True)
    record |= {"status": "stopped", "date": report.now(), "key": key(notebook, record["parameters"])}
    task = {"notebook": str(notebook.resolve()), "out_dir": str(out_dir), "parameters": record["parameters"],
            "cell_timeout_s": cell_timeout_s}
    stderr = tempfile.TemporaryFile()           # noqa: SIM115 (closed in kill)
    process = subprocess.Popen(
        [sys.executable, "-m", "trtkit.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
        start_new_session=True,
    )
    with contextlib.suppress(BrokenPipeError):  # it died at once; finish() tells
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()                   # and stays open: see trtkit.worker
    return Job(notebook, record, process, stderr)
