"""The lists of packages agree, and what Binder would install is installed here and runs its lessons in Binder's memory.

The Binder test needs uv and its cache or the package index; without them it fails, since then nothing was checked.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = [ROOT / "environment.yml", ROOT / "binder" / "environment.yml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BINDER_LESSONS = ["00_setup", "12_realtime_detection"]
# mybinder.org ends a kernel when all of a user's processes together pass 2 GiB; JupyterLab is one of them.
BINDER_MIB, JUPYTERLAB_MIB = 2048, 512
SMALL = {"frames": 60, "fp32_frames": 30, "calib_images": 8, "test_images": 40}     # a third of lesson 12's minute


def known() -> dict[str, list[Requirement]]:
    """Every requirement of pyproject.toml by its package's name, references of extras to extras left out."""
    found: dict[str, list[Requirement]] = {}
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]:
        requirement = Requirement(line)
        if requirement.name != PROJECT["name"]:
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def pins() -> dict[str, list[str]]:
    """Versions in constraints.txt by package; several where they differ between Pythons."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            found.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return found


def conda_and_pip(path: Path) -> tuple[list[str], list[str]]:
    """The two lists of an environment.yml."""
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    (pip,) = (d["pip"] for d in dependencies if isinstance(d, dict))
    return [d for d in dependencies if isinstance(d, str)], pip


def problems(path: Path, conda: list[str], pip: list[str]) -> list[str]:
    """What in an environment's lists pyproject.toml does not know or constraints.txt contradicts."""
    found = []
    for line in conda:
        name, _, version = line.partition("=")
        if name not in ("python", "pip"):
            found.append(f"{line}: from conda; everything but Python comes from pip")
        elif name == "python" and version not in SpecifierSet(PROJECT["requires-python"]):
            found.append(f"{line}: pyproject.toml has {PROJECT['requires-python']}")
    if "--constraint" not in {line.split()[0] for line in pip}:
        found.append("no --constraint: versions that nobody tested")
    for line in pip:
        option, _, value = line.rpartition(" ")
        if option in ("--constraint", "--editable"):
            place, _, extras = value.partition("[")
            expected = ROOT / "constraints.txt" if option == "--constraint" else ROOT
            if (path.parent / place).resolve() != expected:
                found.append(f"{line}: from {path.parent.name} that is not {expected.name}")
            found += [f"{line}: no extra {e!r}" for e in re.findall(r"[\w-]+", extras) if e not in EXTRAS]
        else:
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name not in known():
                found.append(f"{line}: not in pyproject.toml")
            found += [f"{line}: {v} in constraints.txt" for v in pins().get(name, []) if v not in requirement.specifier]
    return found


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda p: p.parent.name)
def test_environments_name_only_what_pyproject_knows_and_constraints_allow(path):
    assert problems(path, *conda_and_pip(path)) == []


@pytest.mark.parametrize(
    ("conda", "pip", "expected"),
    [
        (["python=3.10"], [], "pyproject.toml has"),
        (["numpy"], [], "from conda"),
        ([], ["--constraint constraints.txt"], "from binder that is not constraints.txt"),
        ([], ["--editable ."], "from binder that is not"),
        ([], ["--editable ..[lab,gpus]"], "no extra 'gpus'"),
        ([], ["nunpy"], "not in pyproject.toml"),
        ([], ["numpy<2"], "in constraints.txt"),
        ([], [], "no --constraint"),
    ],
)
def test_a_wrong_line_is_found(conda, pip, expected):
    assert any(expected in problem for problem in problems(ENVIRONMENTS[1], conda, pip))


def test_every_package_that_tests_install_is_pinned_within_its_bounds():
    unpinned = {canonicalize_name(Requirement(r).name) for e in ("gpu", "cuda") for r in EXTRAS[e]}
    for name, requirements in known().items():
        if name not in unpinned:
            assert pins().get(name), f"{name} has no line in constraints.txt; write it again, see its first line"
            assert all(version in r.specifier for r in requirements for version in pins()[name]), name


def test_the_base_has_no_pytorch_and_the_extras_that_need_it_bring_it():
    assert not any(Requirement(r).name in ("torch", "torchvision", "torchmetrics") for r in PROJECT["dependencies"])
    assert all("trtkit[torch]" in EXTRAS[extra] for extra in ("lab", "test"))


@pytest.fixture(scope="module")
def binder(tmp_path_factory):
    """(folder, python): a copy of the repository and a new environment, made as repo2docker does, with uv for pip."""
    folder = tmp_path_factory.mktemp("binder")
    repository, venv = folder / "repository", folder / "venv"
    for name in ("binder", "datasets", "notebooks", "trtkit"):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    listed = repository / "binder" / "pip.txt"          # pip takes both paths from binder/, as conda and mamba call it
    listed.write_text("\n".join(conda_and_pip(ENVIRONMENTS[1])[1]) + "\n")
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert uv, "uv is neither beside this Python nor on PATH; make test installs it, or: pip install uv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python", "--requirement", "pip.txt"]
    for offline in (["--offline"], []):                 # from the cache where it has all, else from the package index
        done = subprocess.run([*install, *offline], cwd=listed.parent, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return repository, venv / "bin" / "python"
    pytest.fail(f"Binder's list cannot be installed; this test needs the package index or uv's cache: {done.stderr}")


def environment(folder: Path) -> dict[str, str]:
    """A user's environment in which nothing of this one is found or touched."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRTKIT_", "PYTHON", "VIRTUAL_ENV", "JUPYTER"))}
    return {**kept, "HOME": str(folder)}


def run_limited(python: Path, code: str, folder: Path, *args: str) -> tuple[subprocess.CompletedProcess, float]:
    """Run code on two CPUs with 2 GiB for each process; also the highest sum of all its processes' memory, MiB."""
    limit = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({BINDER_MIB << 20},) * 2)\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"       # each thread reserves memory
    )
    command = [python, "-c", limit + code, *args]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=pipe, stderr=pipe, text=True)
    peaks_mib, ended = [0.0], threading.Event()

    def watch():
        while not ended.wait(0.1):
            peaks_mib.append(tree_mib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        ended.set()
        watcher.join()
    return subprocess.CompletedProcess(command, process.returncode, out, err), max(peaks_mib)


def tree_mib(pid: int) -> float:
    """Memory of a process and its descendants, MiB; pages that several share count once."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:            # one has ended meanwhile; the next look will be whole
        return 0.0
    return total / 2**20


def test_binders_environment_is_small_and_has_no_pytorch(binder):
    _, python = binder
    packages = next((python.parent.parent / "lib").glob("python*/site-packages"))
    assert not [p.name for p in packages.iterdir() if re.match(r"torch|nvidia|tensorrt", p.name)]
    size_mib = sum(p.stat().st_size for p in packages.rglob("*") if p.is_file()) / 2**20
    assert 100 < size_mib < 1024


def test_post_build_runs_in_binders_environment(binder, tmp_path):
    repository, python = binder
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    command = [repository / "binder" / "postBuild"]
    env = {**environment(tmp_path), "PATH": path}
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.startswith("trtkit: onnxruntime"), done.stderr


def test_post_build_stops_the_build_of_a_broken_image(binder, tmp_path):
    """With another Python first on PATH, as after a failed install."""
    repository, _ = binder
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    env = {**environment(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([repository / "binder" / "postBuild"], cwd=repository, env=env, timeout=60, check=False)
    assert done.returncode == 3


def test_binders_lessons_run_in_binders_memory(binder, tmp_path):
    repository, python = binder
    code = (
        "from pathlib import Path\n"
        "from trtkit import lessons\n"
        "assert lessons.NOTEBOOKS.is_relative_to(sys.argv[1]), lessons.NOTEBOOKS\n"
        f"for name in {BINDER_LESSONS}:\n"
        f"    parameters = {{'out_dir': sys.argv[2], **{SMALL}}} if name.startswith('12') else {{}}\n"
        "    print(lessons.run_notebook(lessons.NOTEBOOKS / f'{name}.ipynb', Path(sys.argv[2]), parameters, "
        "progress=False))\n"
    )
    done, peak_mib = run_limited(python, code, tmp_path, str(repository), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == len(BINDER_LESSONS)
    assert 200 < peak_mib < BINDER_MIB - JUPYTERLAB_MIB


def test_the_memory_limit_ends_what_asks_for_more_and_the_watch_sees_what_children_use(binder, tmp_path):
    _, python = binder
    done, _ = run_limited(python, "import numpy; numpy.ones((3, 1 << 30), numpy.uint8)", tmp_path)
    assert done.returncode == 1 and "MemoryError" in done.stderr
    hold = "import numpy, time; a = numpy.ones((600, 1 << 20), numpy.uint8); time.sleep(0.5)"
    twice = f"import subprocess; subprocess.run([sys.executable, '-c', {hold!r}], check=True); {hold}"
    done, peak_mib = run_limited(python, twice, tmp_path)
    assert done.returncode == 0 and 600 < peak_mib < 1100
