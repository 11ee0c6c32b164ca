"""The shape of a lesson, as rules that a machine can check, so that a reviewer need not.

`problems` lists what a notebook breaks. `tests/test_notebooks.py` wants none in any lesson, and `CONTRIBUTING.md`
gives the reasons. Left out on purpose: whether a lesson teaches; that needs a reader.
"""

import ast
import re
import statistics
from pathlib import Path

MAX_CELL_LINES, MEDIAN_CELL_LINES, MAX_CODE_RUN, MAX_PARAMETERS, MAX_FUNCTION_LINES = 25, 6, 3, 8, 12
OPENING = ("**In one sentence:**", "*You will*", "*You need*", "*Time:*")
CLOSING = ["Checkpoint", "Summary", "Exercises", "References"]
# No network, no installs, nothing that works on one machine only; plots belong to trtkit.plots.
FORBIDDEN = ("!pip", "%pip", "!apt", "sys.path", "import *", "urllib", "requests.", "/content/", "plt.")


def problems(path: Path) -> list[str]:
    """What a notebook breaks of the rules for lessons, one sentence each; empty when it keeps them all.

    Raises:
        ValueError: the file is no notebook.
    """
    import nbformat

    path = Path(path)
    try:
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
    except Exception as e:              # nbformat and json raise many kinds
        raise ValueError(f"notebook: {path.name} cannot be read ({e}); restore it with git checkout") from e
    found = []
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem):
        found.append(f"name: got {path.name}, expected NN_slug.ipynb with a slug of a-z, 0-9 and _")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("kernel: expected python3; papermill needs it, and every machine has it")
    for rule in (_opening, _closing, _cells, _code, _exercises, _golden):
        found += rule(path.stem[:2], notebook.cells)
    return found


def tags(cell: dict) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def code_cells(cells: list) -> list:
    """The code cells, in order."""
    return [c for c in cells if c.cell_type == "code"]


def _opening(number: str, cells: list) -> list[str]:
    if len(cells) < 2 or cells[0].cell_type != "markdown":
        return ["opening: expected a Markdown cell with the title, then the parameters cell"]
    found = [f"opening: the first cell lacks {part}" for part in OPENING if part not in cells[0].source]
    if not cells[0].source.startswith(f"# {number} · "):
        found.append(f"opening: expected a title that starts with '# {number} · '")
    tagged = sum("parameters" in tags(c) for c in cells)
    if tagged != 1 or tags(cells[1]) != {"parameters"}:
        found.append(f"parameters: got {tagged} cells tagged parameters, expected one, right after the title")
    elif not 1 <= len(cells[1].source.splitlines()) <= MAX_PARAMETERS:
        found.append(f"parameters: got {len(cells[1].source.splitlines())} lines, expected 1 to {MAX_PARAMETERS}")
    return found


def _closing(number: str, cells: list) -> list[str]:
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", text, re.M)
    found = [] if headings[-4:] == CLOSING else [f"closing: got headings {headings[-4:]}, expected {CLOSING}"]
    if (count := text.count("**Predict")) < 2:
        found.append(f"predictions: got {count} '**Predict', expected at least 2; one before each measurement")
    return found


def _cells(number: str, cells: list) -> list[str]:
    found = []
    lines = [len(c.source.splitlines()) for c in code_cells(cells)]
    if max(lines, default=0) > MAX_CELL_LINES:
        found.append(f"cells: the longest has {max(lines)} lines, expected at most {MAX_CELL_LINES}; one idea a cell")
    if lines and statistics.median(lines) > MEDIAN_CELL_LINES:
        found.append(f"cells: the median is {statistics.median(lines):g} lines, expected at most {MEDIAN_CELL_LINES}")
    run = 0
    for cell in cells:
        run = run + 1 if cell.cell_type == "code" else 0
        if run == MAX_CODE_RUN + 1:
            found.append(f"cells: more than {MAX_CODE_RUN} code cells without words, at: {cell.source[:60]!r}")
    return found


def _code(number: str, cells: list) -> list[str]:
    found = []
    for cell in code_cells(cells):
        found += [f"code: {bad!r} in {cell.source[:60]!r}" for bad in FORBIDDEN
                  if re.search(rf"(?<!\w){re.escape(bad)}", cell.source)]
        try:
            functions = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.FunctionDef)]
        except SyntaxError as e:
            found.append(f"code: {e.msg} in {cell.source[:60]!r}")
            continue
        found += [f"code: function {f.name} has {f.end_lineno - f.lineno + 1} lines, expected at most "
                  f"{MAX_FUNCTION_LINES}; it belongs to the module" for f in functions
                  if f.end_lineno - f.lineno + 1 > MAX_FUNCTION_LINES]
    return found


def _exercises(number: str, cells: list) -> list[str]:
    """Triples of stub, solution and check, with the metadata that nbgrader reads."""
    code = code_cells(cells)
    stubs = [i for i, c in enumerate(code) if "exercise" in tags(c)]
    solutions = sum("solution" in tags(c) for c in code)
    found = []
    if len(stubs) < 2 or solutions != len(stubs):
        found.append(f"exercises: got {len(stubs)} stubs and {solutions} solutions, expected two or more of each")
    for i in stubs:
        stub, *following = code[i : i + 3]
        signature = re.match(r"def (\w+)\(.*\):", stub.source)
        if not signature or "..." not in stub.source or "check.hint(" not in stub.source:
            found.append(f"exercises: expected 'def name(...):', '...' and check.hint(...) in {stub.source[:60]!r}")
            continue
        name = f"{number}_{signature[1]}"
        if len(following) < 2 or "solution" not in tags(following[0]):
            found.append(f"exercises: {name}: expected stub, solution, check, in this order")
            continue
        solution, check = following
        if not solution.source.startswith(signature[0]):
            found.append(f"exercises: {name}: the solution's first line differs from the stub's")
        if check.source.strip() != f'check.exercise("{name}", {signature[1]})':
            found.append(f'exercises: {name}: expected the cell check.exercise("{name}", {signature[1]})')
        if _nbgrader(stub) != (name, True, False) or _nbgrader(check) != (f"{name}_check", False, True):
            found.append(f"exercises: {name}: nbgrader metadata missing or wrong; copy it from another lesson")
    return found


def _nbgrader(cell: dict) -> tuple:
    record = cell.metadata.get("nbgrader", {})
    return record.get("grade_id"), record.get("solution"), record.get("grade")


def _golden(number: str, cells: list) -> list[str]:
    code = code_cells(cells)
    golden = [c for c in code if "nbval-check-output" in tags(c)]
    found = [] if golden else ["golden: expected a checkpoint cell tagged keep_output and nbval-check-output"]
    found += [f"golden: a stripped check checks nothing: execute the notebook and keep the output of {c.source[:60]!r}"
              for c in golden if not ("keep_output" in tags(c) and c.outputs and c.execution_count)]
    found += [f"golden: outputs in git at {c.source[:60]!r}: run nbstripout --keep-count"
              for c in code if c.outputs and c not in golden]
    return found
