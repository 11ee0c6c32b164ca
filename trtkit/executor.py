"""papermill's engine with three changes that a course needs. Import it inside functions: papermill takes two seconds.

1. A cell keeps at most `MAX_OUTPUT_CHARS` of text; the rest is dropped before it is stored, and the cell says so.
2. The notebook so far is on disk, whole, about once a second, and not twice for each cell.
3. Who runs it hears of every cell that starts.
"""

import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

from trtkit.files import replacing

MAX_OUTPUT_CHARS = 2**20
OUTPUT_OVERHEAD_CHARS = 100     # JSON around one output: a million empty prints must not pass either
MAX_ERROR_CHARS = 20_000        # of an error's text and of each line of its traceback
SAVE_EVERY_S = 1.0
IOPUB_TIMEOUT_S = 60            # nbclient's 4 s is too short for a kernel that printed 100 MB


def execute(
    notebook: Path,
    executed: Path,
    parameters: dict,
    *,
    cell_timeout_s: int,
    progress: bool,
    manager,
    on_cell: Callable[[int], None] | None = None,
) -> None:
    """Run a notebook and write it, with its outputs, to `executed`, also when it fails.

    Args:
        notebook: what to run.
        executed: where to; whole at any time.
        parameters: known to exist.
        cell_timeout_s: of one cell.
        progress: show papermill's bar.
        manager: of the kernel, see `kernel.start`; ended afterwards.
        on_cell: called with the position, from 1, of each cell of `notebook` that starts.

    Raises:
        papermill.PapermillExecutionError: a cell failed.
        nbclient.exceptions.CellTimeoutError, DeadKernelError: as they say.
        OSError: `executed` cannot be written.
    """
    saver = _Saver(executed)
    source = str(notebook).replace("{", "{{").replace("}", "}}")        # papermill takes a path for a format string
    try:
        papermill.execute_notebook(
            source, None, parameters, engine_name="trtkit", kernel_name="python3", cwd=str(notebook.parent),
            progress_bar=progress, execution_timeout=cell_timeout_s, iopub_timeout=IOPUB_TIMEOUT_S,
            saver=saver, on_cell=on_cell, manager=manager,
        )
    finally:
        saver.save()                # with the marks that papermill puts beside a failed cell


class _Saver:
    """Holds the notebook that papermill works on, which it gives to nobody when a cell fails."""

    def __init__(self, path: Path):
        self.path, self.notebook, self.saved_s = path, None, 0.0

    def save(self) -> None:
        if self.notebook is not None:
            with replacing(self.path) as temporary:
                nbformat.write(self.notebook, temporary)
            self.saved_s = time.monotonic()


class _Record(NotebookExecutionManager):
    def __init__(self, nb, saver: _Saver, on_cell: Callable[[int], None] | None, **options):
        super().__init__(nb, **options)
        self.saver, self.on_cell, self.position = saver, on_cell, 0
        saver.notebook = nb

    def save(self, **kwargs):
        if time.monotonic() - self.saver.saved_s >= SAVE_EVERY_S:
            self.saver.save()

    def cell_start(self, cell, cell_index=None, **kwargs):
        super().cell_start(cell, cell_index, **kwargs)
        # papermill's own cell is no cell of the lesson: it counts as part of the parameters cell before it
        self.position += "injected-parameters" not in cell.metadata.get("tags", [])
        if self.on_cell:
            self.on_cell(self.position)


class _Client(PapermillNotebookClient):
    kept_chars = dropped_chars = 0      # of the cell that runs

    def execute_cell(self, cell, cell_index, **kwargs):
        self.kept_chars = self.dropped_chars = 0
        try:
            return super().execute_cell(cell, cell_index, **kwargs)
        finally:
            if self.dropped_chars:
                text = (f"\n... {self.dropped_chars / 2**20:.1f} MiB of output dropped: "
                        f"a cell keeps {MAX_OUTPUT_CHARS / 2**20:g} MiB; print less\n")
                cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text=text))
                cell.metadata["trtkit_dropped_chars"] = self.dropped_chars

    def clear_output(self, outs, msg, cell_index):
        super().clear_output(outs, msg, cell_index)
        if not self.clear_before_next_output:
            self.kept_chars = 0

    def output(self, outs, msg, display_id, cell_index):
        if self.clear_before_next_output:
            self.kept_chars = 0
        content = msg["content"]
        if msg["msg_type"] == "error":                  # kept always: it is what tells that the cell failed
            content["evalue"] = content["evalue"][:MAX_ERROR_CHARS]
            content["traceback"] = [line[:MAX_ERROR_CHARS] for line in content["traceback"]]
            return super().output(outs, msg, display_id, cell_index)
        size, room = _text_chars(content), MAX_OUTPUT_CHARS - self.kept_chars
        self.kept_chars += min(size, room)
        if size > room:
            self.dropped_chars += size - room
            if msg["msg_type"] != "stream" or not room:
                return None
            content["text"] = content["text"][:room]
        return super().output(outs, msg, display_id, cell_index)


def _text_chars(content: dict) -> int:
    """Length of what a message shows; pictures are no text, however they are coded."""
    data = content.get("data", {}).items()
    shown = [content.get("text", ""), *(v for kind, v in data if isinstance(v, str) and not kind.startswith("image/"))]
    return OUTPUT_OVERHEAD_CHARS + sum(map(len, shown))


class _Engine(NBClientEngine):
    @classmethod
    def execute_notebook(cls, nb, kernel_name, *, saver, on_cell, manager, progress_bar, start_timeout,
                         execution_timeout, iopub_timeout, **_):
        record = _Record(nb, saver, on_cell, progress_bar=progress_bar)
        record.notebook_start()
        client = _Client(
            record, km=manager, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=execution_timeout,
            iopub_timeout=iopub_timeout, log=papermill.log.logger,
        )
        try:
            client.execute(cleanup_kc=True)
        finally:
            record.cleanup_pbar()
            record.notebook_complete()
        return record.nb


papermill_engines.register("trtkit", _Engine)
