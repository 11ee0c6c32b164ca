"""Run one notebook as a test: papermill, with parameters that must exist. `trtkit.course` runs many of them."""

import ast
import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from trtkit import kernel

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
BUILD = NOTEBOOKS.parent / "build"
CELL_TIMEOUT_S = 300
NOTEBOOK_TIMEOUT_S = 900


def read_cells(notebook: Path) -> list[dict]:
    """Cells of an .ipynb file as plain dictionaries, `source` as one text; nbformat takes two seconds to import.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: it is no notebook of format 4.
    """
    if not Path(notebook).is_file():
        names = sorted(p.name for p in NOTEBOOKS.glob("*.ipynb"))
        raise FileNotFoundError(f"notebook: got {notebook}, expected one of {names}")
    try:
        cells = json.loads(Path(notebook).read_bytes())["cells"]
        return [{"metadata": {}, "outputs": [], **cell, "source": "".join(cell["source"])} for cell in cells]
    except (ValueError, KeyError, TypeError) as e:
        reason = f"{type(e).__name__}: {e}"
        raise ValueError(f"notebook: {Path(notebook).name} cannot be read ({reason}); restore it with git") from e


def tags(cell: dict) -> list[str]:
    """Of a cell of `read_cells`."""
    return cell["metadata"].get("tags", [])


def default_parameters(notebook: Path) -> dict[str, object]:
    """Names of a notebook's parameters with their defaults; the source text where a default is no literal.

    Raises:
        FileNotFoundError, ValueError: see `read_cells`.
        ValueError: no cell tagged `parameters`, nothing in it, or it is no Python.
    """
    name = Path(notebook).name
    found = [c["source"] for c in read_cells(notebook) if "parameters" in tags(c)]
    try:
        statements = ast.parse(found[0]).body if found else []
    except SyntaxError as e:
        where = f"line {e.lineno} of its parameters cell"
        raise ValueError(f"notebook: {name}, {where}: {e.msg}; expected name = value") from e
    defaults = {}
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and statement.value is not None:
                defaults[target.id] = _literal(ast.unparse(statement.value))
    if not defaults:
        raise ValueError(f"notebook: {name} has no parameters; expected a cell tagged `parameters` with name = value")
    return defaults


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse parameters that the notebook does not have; papermill itself only warns.

    Raises:
        FileNotFoundError, ValueError: see `default_parameters`.
        ValueError: an unknown name, or text where the default is a boolean.
    """
    known = default_parameters(notebook)
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(f"parameter: got {name!r}, expected one of {sorted(known)} of {Path(notebook).name}")
        if isinstance(known[name], bool) and not isinstance(value, bool):
            raise ValueError(f"parameter {name}: got {value!r}, expected True or False; the text 'false' would be true")


def parse_parameter(text: str) -> tuple[str, object]:
    """"name=value" from a command line; the value is a Python literal, or text where it is none.

    Raises:
        ValueError: no "=", "true"/"false" in lower case, or a literal that JSON does not know.
    """
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError(f"parameter: got {text!r}, expected name=value, for example frames=100")
    if value in ("true", "false"):
        raise ValueError(f"parameter {name}: got {value!r}, expected True or False")
    try:
        return name, json.loads(json.dumps(_literal(value), allow_nan=False))
    except (ValueError, TypeError) as e:
        raise ValueError(f"parameter {name}: got {value!r}, expected a finite number, text, True, False, None, "
                         "a list or a dict of these") from e


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def run_notebook(
    notebook: Path,
    out_dir: Path = BUILD,
    parameters: dict | None = None,
    *,
    progress: bool = True,
    cell_timeout_s: int = CELL_TIMEOUT_S,
    on_cell: Callable[[int], None] | None = None,
    on_kernel: Callable[[int], None] | None = None,
) -> Path:
    """Execute a notebook from top to bottom and write it, with its outputs, as .ipynb and .html, also when it fails.

    Args:
        notebook: the .ipynb file; it runs in its own folder, as in JupyterLab.
        out_dir: where to; made if it is not there.
        parameters: values for its `parameters` cell.
        progress: show a bar over its cells.
        cell_timeout_s: of one cell.
        on_cell: called with the position, from 1, of each cell that starts.
        on_kernel: called with the process id of the kernel, which leads a process group of its own.

    Returns:
        Path of the .html.

    Raises:
        FileNotFoundError, ValueError: see `check_parameters`.
        OSError: `out_dir` cannot be written.
        papermill.PapermillExecutionError: a cell failed; the page shows which.
        nbclient.exceptions.CellTimeoutError, DeadKernelError: as they say.
    """
    notebook, parameters = Path(notebook).resolve(), parameters or {}
    check_parameters(notebook, parameters)
    executed = output_path(notebook, out_dir)
    require_writable(executed.parent)
    manager = kernel.start(notebook.parent)
    try:
        if on_kernel:
            on_kernel(manager.provisioner.pid)
        from trtkit import executor, page  # two seconds, while the kernel starts on another core

        warm_up = threading.Thread(target=page.warm_up, daemon=True)
        warm_up.start()                     # two more, while the kernel runs the first cells
        try:
            executor.execute(notebook, executed, parameters, cell_timeout_s=cell_timeout_s, progress=progress,
                             manager=manager, on_cell=on_cell)
        finally:
            warm_up.join()
            if executed.is_file():          # not where the disk is full
                page.write(executed, executed.with_suffix(".html"))
    finally:
        kernel.stop(manager)
    return executed.with_suffix(".html")


def output_path(notebook: Path, out_dir: Path) -> Path:
    """Where the executed notebook goes.

    Raises:
        ValueError: it would overwrite the lesson.
    """
    executed = Path(out_dir).resolve() / Path(notebook).name
    if executed == Path(notebook).resolve():
        raise ValueError(f"out: got {out_dir}, where the lessons are; expected another folder, or {notebook} is lost")
    return executed


def require_writable(folder: Path) -> None:
    """Find out before minutes of work are spent: try to write a file.

    Raises:
        OSError: with what to do.
    """
    probe = folder / ".write_test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("x")
    except OSError as e:
        raise OSError(
            e.errno, f"{folder} cannot be written ({e.strerror}); free space, fix its permissions, or choose another "
            "folder with --out"
        ) from e
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
