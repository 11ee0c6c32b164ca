"""Why a notebook failed: one of six classes, and one line that says it."""

import re

CAUSES = ("claim", "timeout", "dead kernel", "missing dependency", "memory", "code")
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|failed to allocate memory|bad_alloc", re.I)
MAX_LINE_CHARS = 300


def cause(name: str, text: str, *, broken_claim: bool = False, oom_killed: bool = False) -> str:
    """Class of a failure, one of `CAUSES`.

    Args:
        name: of the exception, for example "AssertionError".
        text: its message.
        broken_claim: the cell had recorded a claim that does not hold.
        oom_killed: the system killed a process for its memory during the notebook.
    """
    if name == "AssertionError" and broken_claim:
        return "claim"
    if name in ("CellTimeoutError", "NotebookTimeoutError") or "Kernel didn't respond" in text:
        return "timeout"
    if name.endswith("MemoryError") or OUT_OF_MEMORY.search(text):          # NumPy's and PyTorch's have longer names
        return "memory"
    if name in ("DeadKernelError", "DeadWorkerError") or "Kernel died" in text:
        return "memory" if oom_killed else "dead kernel"
    own_module = re.search(r"from 'trtkit|'trtkit\.", text)                 # a wrong name, not a missing package
    if name in ("ModuleNotFoundError", "ImportError") and not own_module:
        return "missing dependency"
    if name == "BackendError" and text.startswith("backend"):               # asked for, and not on this machine
        return "missing dependency"
    return "code"


def first_line(name: str, text: str) -> str:
    """An error in one line, with what to do where the error itself does not say it."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    # IPython names cells by numbers that say nothing: "invalid syntax (4182639.py, line 3)"
    line = re.sub(r"\((?:<[^>]*>|\d+\.py), line (\d+)\)$", r"(line \1 of the cell); correct the cell", line)
    hints = {
        "DeadKernelError": "; it crashed in native code, or something killed it",
        "CellTimeoutError": " Make it shorter, or raise --cell-timeout-s",
    }
    return f"{name}: {line[:MAX_LINE_CHARS]}{hints.get(name, '')}"
