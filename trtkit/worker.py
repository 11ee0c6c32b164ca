"""One notebook in a process of its own: `python -m trtkit.worker`, started by `trtkit.course`.

In: one line of JSON with the arguments of `run_notebook`; then the pipe stays open, and when it closes, whoever started
this process is gone. Out: one line of JSON per event: {"kernel": process id}, {"cell": position}, and at the end
{"end": null}, or {"end": [error's name, error's text], "write_error": bool}.
"""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from pathlib import Path

from trtkit import lessons

WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}


def main() -> None:
    """Run the notebook and report; an error is an event, not an exit code."""
    # The kernel inherits descriptor 1 and may print there: keep the pipe under a number that nobody inherits.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    kernels: list[int] = []
    threading.Thread(target=_end_with_parent, args=(kernels,), daemon=True).start()

    def tell(**event) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    def on_kernel(pid: int) -> None:
        kernels.append(pid)
        tell(kernel=pid)

    try:
        lessons.run_notebook(
            Path(job["notebook"]), Path(job["out_dir"]), job["parameters"], progress=False,
            cell_timeout_s=job["cell_timeout_s"], on_cell=lambda position: tell(cell=position), on_kernel=on_kernel,
        )
    except Exception as e:                  # whatever a notebook can cause belongs into the report
        failed_cell = hasattr(e, "ename")   # papermill's error, which carries the name of the cell's own
        name, text = (e.ename, e.evalue) if failed_cell else (type(e).__name__, str(e))
        tell(end=[name, text], write_error=isinstance(e, OSError) and e.errno in WRITE_ERRORS)
    else:
        tell(end=None)


def _end_with_parent(kernels: list[int]) -> None:
    """A course that was killed must not leave kernels behind: the pipe closes, and all ends here."""
    os.read(0, 1)                           # not sys.stdin: Python cannot end while a thread holds its lock
    kill_groups(*kernels)
    os._exit(1)


def kill_groups(*leaders: int) -> None:
    """End process groups at once; one that is gone is fine."""
    for pid in leaders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
