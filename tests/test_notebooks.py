"""Every notebook has the design's shape, runs from top to bottom, and keeps its golden outputs."""

import re
from pathlib import Path

import nbformat
import pytest

from trtkit import lessons

NOTEBOOKS = sorted(lessons.NOTEBOOKS.glob("*.ipynb"))
MAX_LINES, MEDIAN_LINES, MAX_CODE_RUN, MAX_PARAMETERS = 25, 6, 3, 8


def load(path: Path):
    return nbformat.read(path, 4)


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def code_cells(path: Path):
    return [c for c in load(path).cells if c.cell_type == "code"]


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_there_are_notebooks():
    assert {"00_setup", "12_realtime_detection"} <= {p.stem for p in NOTEBOOKS}


@each_notebook
def test_name_kernel_and_format_are_valid(path):
    notebook = load(path)
    nbformat.validate(notebook)
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert notebook.metadata.kernelspec.name == "python3"       # papermill needs it


@each_notebook
def test_opens_with_title_claim_and_aims_then_parameters(path):
    first, second = load(path).cells[:2]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.stem[:2]} · ")
    for part in ("**In one sentence:**", "*You will*", "*You need*", "*Time:*"):
        assert part in first.source, f"the first cell lacks {part}"
    assert tags(second) == {"parameters"}
    assert sum("parameters" in tags(c) for c in load(path).cells) == 1
    assert 1 <= len(second.source.splitlines()) <= MAX_PARAMETERS


@each_notebook
def test_closes_with_checkpoint_summary_exercises_and_references(path):
    text = "\n".join(c.source for c in load(path).cells if c.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[-4:] == ["Checkpoint", "Summary", "Exercises", "References"]
    assert text.count("**Predict") >= 2, "a prediction comes before each measurement"


@each_notebook
def test_cells_are_short_and_explained(path):
    lines = sorted(len(c.source.splitlines()) for c in code_cells(path))
    assert lines[-1] <= MAX_LINES and lines[len(lines) // 2] <= MEDIAN_LINES
    run = 0
    for cell in load(path).cells:
        run = run + 1 if cell.cell_type == "code" else 0
        assert run <= MAX_CODE_RUN, f"more than {MAX_CODE_RUN} code cells without words, at: {cell.source[:60]}"


@each_notebook
def test_cells_install_nothing_and_hide_nothing(path):
    for cell in code_cells(path):
        for forbidden in ("!pip", "%pip", "!apt", "sys.path", "import *", "urllib", "requests.", "/content/"):
            assert forbidden not in cell.source
        assert not re.search(r"(?<!\w)plt\.", cell.source), "plots belong to trtkit.plots"


@each_notebook
def test_exercises_have_stub_solution_and_check(path):
    cells = load(path).cells
    stubs = [c for c in cells if "exercise" in tags(c)]
    solutions = [c for c in cells if "solution" in tags(c)]
    checks = [c for c in cells if c.cell_type == "code" and c.source.startswith("check.exercise(")]
    assert len(stubs) == len(solutions) == len(checks) >= 2
    for stub, solution in zip(stubs, solutions, strict=True):
        assert "..." in stub.source and stub.source.splitlines()[0] == solution.source.splitlines()[0]


@each_notebook
def test_golden_cells_kept_their_outputs_and_only_they(path):
    golden = [c for c in code_cells(path) if "nbval-check-output" in tags(c)]
    assert golden, "no golden cell; a lesson without a checkpoint checks nothing"
    for cell in code_cells(path):
        if cell in golden:
            kept = "keep_output" in tags(cell) and cell.outputs and cell.execution_count
            assert kept, "a stripped check checks nothing"
        else:
            assert not cell.outputs, f"outputs in git: run nbstripout --keep-count; at {cell.source[:60]}"


@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path):
    """A failing cell raises; what remains to check is that the page shows something."""
    parameters = {"out_dir": str(tmp_path)} if path.stem.startswith("12") else {}
    page = lessons.run_notebook(path, tmp_path, parameters, progress=False)
    executed = nbformat.read(tmp_path / path.name, 4)
    pictures = [o for c in executed.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures and page.stat().st_size > 10_000
