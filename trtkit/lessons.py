"""Run notebooks as tests: papermill, with parameters that must exist. The course's CI and `make demo` call it."""

import ast
import contextlib
import os
import re
from pathlib import Path

from trtkit.files import replacing

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
BUILD = NOTEBOOKS.parent / "build"
CELL_TIMEOUT_S = 300


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse parameters that the notebook does not have; papermill itself only warns.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: not a notebook, no `parameters` cell, an unknown name, or text where the default is a boolean.
    """
    import papermill

    if not Path(notebook).is_file():
        names = sorted(p.name for p in NOTEBOOKS.glob("*.ipynb"))
        raise FileNotFoundError(f"notebook: got {notebook}, expected one of {names}")
    try:
        known = papermill.inspect_notebook(str(notebook))
    except Exception as e:              # papermill passes on whatever nbformat and json raise
        raise ValueError(f"notebook: {Path(notebook).name} cannot be read ({e}); restore it with git checkout") from e
    if not known:
        raise ValueError(f"notebook: {Path(notebook).name} has no parameters; expected a cell tagged `parameters`")
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(f"parameter: got {name!r}, expected one of {sorted(known)} of {Path(notebook).name}")
        if known[name]["default"] in ("True", "False") and not isinstance(value, bool):
            raise ValueError(f"parameter {name}: got {value!r}, expected True or False; the text 'false' would be true")


def parse_parameter(text: str) -> tuple[str, object]:
    """"name=value" from a command line; the value is a Python literal, or text where it is none.

    Raises:
        ValueError: no "=", or "true"/"false" in lower case.
    """
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError(f"parameter: got {text!r}, expected name=value, for example frames=100")
    if value in ("true", "false"):
        raise ValueError(f"parameter {name}: got {value!r}, expected True or False")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def run_notebook(
    notebook: Path, out_dir: Path = BUILD, parameters: dict | None = None, *, progress: bool = True
) -> Path:
    """Execute a notebook from top to bottom and write it, with its outputs, as .ipynb and .html.

    Args:
        notebook: the .ipynb file; it runs in its own folder, as in JupyterLab.
        out_dir: where to; made if it is not there.
        parameters: values for its `parameters` cell.
        progress: show a bar over its cells.

    Returns:
        Path of the .html.

    Raises:
        FileNotFoundError, ValueError: see `check_parameters`.
        OSError: `out_dir` cannot be written.
        papermill.PapermillExecutionError: a cell failed; the .ipynb shows which.
    """
    import nbformat
    import papermill

    notebook, out_dir = Path(notebook).resolve(), Path(out_dir).resolve()
    parameters = parameters or {}
    check_parameters(notebook, parameters)
    _require_writable(out_dir)
    executed = out_dir / notebook.name
    os.environ["TRTKIT_HEADLESS"] = "1"         # the kernel inherits it: a page keeps no moving bars
    papermill.execute_notebook(
        str(notebook), str(executed), parameters, cwd=str(notebook.parent), progress_bar=progress,
        execution_timeout=CELL_TIMEOUT_S, kernel_name="python3",
    )
    page = executed.with_suffix(".html")
    with replacing(page) as temporary:
        temporary.write_text(_html(nbformat.read(executed, 4)))
    return page


def _html(notebook) -> str:
    """A page that needs no network: nbconvert would fetch MathJax, so formulas become MathML, which browsers read."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1], display="block"), cell.source, flags=re.S)
            cell.source = re.sub(r"\$([^$\n]+)\$", lambda m: convert(m[1]), text)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    return re.sub(r'<script[^>]*src="https?://[^>]*>\s*</script>', "", html)


def _require_writable(folder: Path) -> None:
    """Find out before minutes of work are spent: try to write a file."""
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
