"""A process of its own for what TensorRT may not survive: building an engine, and reading a plan of doubtful origin.

The notebook's kernel lives on when the builder runs out of memory, crashes or is interrupted, and the device memory of
a build is gone with its process. Both sides talk in lines of JSON.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from trtkit.engine import BackendError, BuildConfig
from trtkit.progress import bar

ERRORS = {"BackendError": BackendError, "ValueError": ValueError}


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
    request = {"task": task, **request, "config": asdict(config) if config else None}
    # A session of its own, so that Ctrl-C reaches this process alone, which then ends the other.
    with tempfile.TemporaryFile("w+", errors="replace") as stderr, subprocess.Popen(
        [sys.executable, "-m", "trtkit.trt_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
        text=True, start_new_session=True, env=_environment(),
    ) as process:
        try:
            with suppress(BrokenPipeError):             # it died at once; what it said is told below
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()                   # open until the end: that it closes tells that we are gone
            answer = _follow(process, task)
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if "error" in answer:
            raise ERRORS[answer["type"]](answer["error"])
        if "result" not in answer:
            stderr.seek(0)
            raise BackendError(f"{task}: TensorRT's process {_end(process.returncode)}: "
                               f"{stderr.read()[-1500:].strip() or 'it said nothing'}")
        return answer["result"]


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
    """The other side: one task from stdin, events to stdout."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                           # libraries print to stdout too
    faulthandler.enable()                   # where it was, if TensorRT crashes

    def tell(**event) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from trtkit import backend_trt, cuda

        if request["task"] == "build":
            config = BuildConfig(**request["config"])
            result = backend_trt.build_here(Path(request["graph"]), Path(request["plan"]), config, tell)
        else:
            with cuda.primary_context():
                backend_trt.deserialize(Path(request["plan"]), backend_trt.Log())
            result = {}
    except (BackendError, ValueError) as e:
        tell(error=str(e), type="ValueError" if isinstance(e, ValueError) else "BackendError")
    else:
        tell(result=result)


def _end_with_parent() -> None:
    """A kernel that is killed closes our stdin; nobody wants the engine then, and the GPU should be free."""
    while os.read(0, 4096):         # sys.stdin would be locked by this thread when the process ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
