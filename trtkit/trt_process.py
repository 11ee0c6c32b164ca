"""A process of its own for what TensorRT may not survive: building an engine, and reading a plan of doubtful origin.

The notebook's kernel lives on when the builder runs out of memory, crashes or is interrupted, and the device memory of
a build is gone with its process. Both sides talk in lines of JSON.
"""

import faulthandler
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from trtkit.engine import BackendError, BuildConfig
from trtkit.progress import bar

ERRORS = {"BackendError": BackendError, "ValueError": ValueError}


_idle: "list[_Process] | None" = None         # wait for the next task of a `kept` block; None outside of one


@contextmanager
def kept() -> Iterator[None]:
    """Tasks of the block share processes, one for each thread that asks at the same time; see `engine.kept_builder`."""
    global _idle
    if _idle is not None:           # blocks may be nested; the outermost one counts
        yield
        return
    _idle = []
    try:
        yield
    finally:
        ended, _idle = _idle, None
        for process in ended:
            process.end()


def run(task: str, *, config: BuildConfig | None = None, **request: str) -> dict:
    """Do a task in a process of its own and show how far it is.

    Args:
        task: "build" or "probe".
        config: for "build".
        request: "graph" and "plan", paths.

    Returns:
        What `backend_trt.build_here` returned; {} after "probe".

    Raises:
        BackendError, ValueError: as raised there, or the process died.
        KeyboardInterrupt: passed on; the process is ended first.
    """
    process, answer = _take(), {}
    try:
        answer = process.ask({"task": task, **request, "config": asdict(config) if config else None,
                              "keep": _idle is not None})
        if "result" not in answer:
            process.wait()              # its exit code tells why
    finally:
        if "result" in answer and _idle is not None:
            _idle.append(process)
        else:
            process.end()
    if "error" in answer:
        raise ERRORS[answer["type"]](answer["error"])
    if "result" not in answer:
        raise BackendError(f"{task}: TensorRT's process {_end(process.popen.returncode)}: {process.said}")
    return answer["result"]


def _take() -> "_Process":
    """One that waits, or a new one."""
    while _idle:
        with suppress(IndexError):                  # another thread was faster
            process = _idle.pop()
            if process.popen.poll() is None:
                return process
            process.end()
    return _Process()


class _Process:
    """The other process, and what it writes to stderr."""

    def __init__(self):
        self.said = "it said nothing"
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")       # noqa: SIM115, `end` closes it
        # A session of its own, so that Ctrl-C reaches this process alone, which then ends the other.
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "trtkit.trt_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._stderr, text=True, start_new_session=True, env=_environment(),
        )

    def ask(self, request: dict) -> dict:
        """Its answer; {} where it ended without one."""
        with suppress(BrokenPipeError):             # it died at once; what it said is told
            self.popen.stdin.write(json.dumps(request) + "\n")
            self.popen.stdin.flush()                # open until the end: that it closes tells that we are gone
        return _follow(self.popen, request["task"])

    def wait(self) -> None:
        """Until it has ended, after an answer that is its last, or without one; keeps what it said."""
        with suppress(BrokenPipeError):
            self.popen.stdin.close()
        self.popen.wait()
        self._stderr.seek(0)
        self.said = self._stderr.read()[-1500:].strip() or self.said

    def end(self) -> None:
        """With everything that it has started."""
        with self.popen, self._stderr:              # closes the pipes, too
            with suppress(BrokenPipeError):
                self.popen.stdin.close()
            if self.popen.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self.popen.pid, signal.SIGKILL)


def _follow(process: subprocess.Popen, task: str) -> dict:
    """Move the bar until the answer comes; {} where the process ends without one."""
    with bar(None, task, unit="step") as progress:
        for line in process.stdout:
            if not line.endswith("\n"):             # it died while it wrote
                break
            event = json.loads(line)
            if "phase" in event:
                progress.set_description(f"{task}: {event['phase']}")
            elif "step" in event:
                progress.reset(total=event["of"])
                progress.update(event["step"])
            else:
                return event
    return {}


def _environment() -> dict[str, str]:
    """Where this package is found, also in a notebook's folder and where it is not installed."""
    here = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}


def _end(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, perhaps since this machine ran out of memory; take optimization_level=1 or a smaller batch"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    """The other side: tasks from stdin, until it closes, and events to stdout."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                           # libraries print to stdout too
    faulthandler.enable()                   # where it was, if TensorRT crashes

    def tell(**event) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    requests: queue.SimpleQueue[dict] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    kernels = None
    while True:
        request = requests.get()
        try:
            from trtkit import backend_trt, cuda, trt_plan

            with cuda.primary_context():
                if request["keep"] and kernels is None:
                    kernels = backend_trt.keep_kernels()
                if request["task"] == "build":
                    config = BuildConfig(**request["config"])
                    result = backend_trt.build_here(Path(request["graph"]), Path(request["plan"]), config, tell)
                else:
                    trt_plan.deserialize(Path(request["plan"]), trt_plan.Log())
                    result = {}
        except (BackendError, ValueError) as e:
            tell(error=str(e), type="ValueError" if isinstance(e, ValueError) else "BackendError")
        else:
            tell(result=result)


def _read(requests: "queue.SimpleQueue[dict]") -> None:
    """Hand requests on. A caller that has what it wanted closes our stdin, and so does a kernel that is killed: nobody
    wants an engine any more then, and the GPU should be free."""
    with os.fdopen(os.dup(0)) as lines:             # sys.stdin would be locked by this thread when the process ends
        for line in lines:
            requests.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
