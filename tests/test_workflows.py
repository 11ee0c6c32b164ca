"""The workflows and hooks are valid, run what they say, and never run a stranger's code on our machine."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOOKS = {h["id"]: h for h in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]}
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)


def load(path: Path) -> dict:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    body = yaml.safe_load(path.read_text())
    return {"on": body.pop(True), **body}


def schema_check(path: Path) -> subprocess.CompletedProcess:
    """Against GitHub's schema, of which the package check-jsonschema has a copy."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_there_are_both_workflows():
    assert [p.stem for p in WORKFLOWS] == ["cpu", "gpu"]


@each_workflow
def test_workflows_have_githubs_schema(path):
    done = schema_check(path)
    assert done.returncode == 0, done.stdout


def test_the_schema_refuses_a_job_without_a_machine(tmp_path):
    text = WORKFLOWS[0].read_text()
    (tmp_path / "w.yml").write_text(text.replace("    runs-on: ubuntu-24.04\n", "", 1))
    assert schema_check(tmp_path / "w.yml").returncode == 1


@pytest.mark.skipif(not shutil.which("actionlint"), reason="no actionlint on PATH; job `workflows` of cpu.yml runs it")
def test_actionlint_has_nothing_to_say():
    done = subprocess.run(["actionlint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@each_workflow
def test_jobs_end_in_time_may_write_nothing_and_use_exact_versions(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["cancel-in-progress"]
    assert "pull_request_target" not in workflow["on"]          # would hand our rights to a stranger's code
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.2.3")), step
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize(("path", "job"), [(WORKFLOWS[0], "test"), (WORKFLOWS[1], "lessons")])
def test_reports_are_kept_also_after_a_failure(path, job):
    (upload,) = (s for s in load(path)["jobs"][job]["steps"] if "upload-artifact" in s.get("uses", ""))
    assert upload["if"] == "${{ !cancelled() }}" and upload["with"]["path"] == "build/"


def test_cpu_runs_the_readmes_command_on_every_python_of_pyproject():
    job = load(WORKFLOWS[0])["jobs"]["test"]
    supported = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    assert job["strategy"]["matrix"]["python"] == [v for v in (f"3.{m}" for m in range(30)) if v in supported]
    assert [s["run"] for s in job["steps"] if "run" in s] == [".ci/run"]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_gpu_looks_at_the_gpu_first_and_runs_both_generations_of_tensorrt():
    workflow = load(WORKFLOWS[1])
    job = workflow["jobs"]["lessons"]
    assert "schedule" in workflow["on"] and "workflow_dispatch" in workflow["on"]
    assert job["steps"][0] == {"run": "nvidia-smi"}
    assert [e["tensorrt"] for e in job["strategy"]["matrix"]["include"]] == ["10", "11"]
    assert "--shm-size" in job["container"]["options"] and "self-hosted" in job["runs-on"]


def evaluate(expression: str, github: dict) -> bool:
    """A GitHub expression of !, &&, ||, ==, != and contains(), in Python; what a context lacks is None."""

    def lookup(match: re.Match) -> str:
        value = github
        for key in match[1].split(".")[1:]:
            if key == "*":
                return repr([item[match[1].rpartition(".")[2]] for item in value or ()])
            value = value.get(key) if value is not None else None
        return repr(value)

    python = re.sub(r"'[^']*'|(github(?:\.[\w*]+)+)", lambda m: lookup(m) if m[1] else m[0], expression)
    python = re.sub(r"!(?!=)", " not ", python.replace("&&", " and ").replace("||", " or "))
    return bool(eval(python, {"contains": lambda items, item: item in items}))


def pull_request(head: str, *labels: str) -> dict:
    request = {"labels": [{"name": label} for label in labels], "head": {"repo": {"full_name": head}}}
    return {"pull_request": request, "repository": {"fork": False}}


@pytest.mark.parametrize(
    ("event_name", "event", "runs"),
    [
        ("schedule", {"repository": {"fork": False}}, True),
        ("workflow_dispatch", {"repository": {"fork": False}}, True),
        ("schedule", {"repository": {"fork": True}}, False),
        ("pull_request", pull_request("us/trtkit", "gpu"), True),
        ("pull_request", pull_request("us/trtkit", "docs", "gpu"), True),
        ("pull_request", pull_request("us/trtkit", "gpu-later"), False),
        ("pull_request", pull_request("us/trtkit"), False),
        ("pull_request", pull_request("stranger/trtkit", "gpu"), False),
        ("pull_request", pull_request("stranger/trtkit"), False),
    ],
)
def test_gpu_runs_for_us_and_never_for_a_fork(event_name, event, runs):
    condition = load(WORKFLOWS[1])["jobs"]["lessons"]["if"]
    assert evaluate(condition, {"event_name": event_name, "event": event, "repository": "us/trtkit"}) is runs


def run_hook(name: str, *files: Path) -> subprocess.CompletedProcess:
    """A pre-commit hook's command, with the programs beside this Python in place of those of .venv."""
    entry = HOOKS[name]["entry"].replace(".venv/bin", str(Path(sys.executable).parent))
    return subprocess.run([*shlex.split(entry), *files], cwd=ROOT, capture_output=True, text=True, check=False)


def test_large_files_are_refused_and_all_committed_ones_pass(tmp_path):
    small, large = tmp_path / "a b.bin", tmp_path / "large.bin"
    small.write_bytes(bytes(1_000_000))
    large.write_bytes(bytes(1_000_001))
    assert run_hook("large-files", small).returncode == 0
    done = run_hook("large-files", large, small)
    assert done.returncode == 1 and "large.bin has more than 1 MB" in done.stdout and "a b.bin" not in done.stdout
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = git.stdout.split("\n")
    exclude = HOOKS["large-files"]["exclude"]
    committed = [ROOT / name for name in listed if (ROOT / name).is_file() and not re.search(exclude, name)]
    assert len(committed) > 50 and run_hook("large-files", *committed).stdout == ""


def test_nbstripout_keeps_golden_outputs_and_ids_and_drops_the_rest(tmp_path):
    cells = [nbformat.v4.new_code_cell("print(1)", id=f"cell-{i}", execution_count=7) for i in range(2)]
    for cell in cells:
        cell.outputs = [nbformat.v4.new_output("stream", text="1\n")]
        cell.metadata["papermill"] = cell.metadata["execution"] = {"duration": "1.5"}
    cells[1].metadata["tags"] = ["keep_output", "nbval-check-output"]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"}, "papermill": {"duration": 3},
        "language_info": {"name": "python", "version": "3.12.1"}, "widgets": {"state": {}},
    }
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "n.ipynb")
    assert run_hook("nbstripout", tmp_path / "n.ipynb").returncode == 0
    left = nbformat.read(tmp_path / "n.ipynb", 4)
    assert left.metadata == {"kernelspec": metadata["kernelspec"], "language_info": {"name": "python"}}
    assert [c.id for c in left.cells] == ["cell-0", "cell-1"]
    assert left.cells[0].outputs == [] and left.cells[0].metadata == {}
    assert left.cells[1].outputs[0].text == "1\n" and left.cells[1].execution_count == 7
    assert left.cells[1].metadata == {"tags": ["keep_output", "nbval-check-output"]}
