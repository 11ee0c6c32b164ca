"""Findings on Python, packages, Jupyter and backends. Lesson 00."""

from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from trtkit.diagnose import Finding
from trtkit.packages import Packages

ONNX_FLOOR = "1.22"             # CVE-2026-34446 and its kin: external data through links
# Packages that install the same module over one another.
RIVALS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    "opencv-python-headless": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless",
                               "opencv-contrib-python"),
}
EXTRAS = {                      # what is not possible without them, and how to get them
    "torch": ("training and other networks", "pip install --editable '.[torch]'"),
    "lab": ("JupyterLab", "make lab"),
    "test": ("the tests", "make test"),
    "cuda": ("lesson 08 and GPU monitoring", "pip install --editable '.[cuda]', with a CUDA toolkit on the PATH"),
    "gpu": ("lessons 07 to 09 on the GPU", "pip install --editable '.[gpu]', with NVIDIA's package index set in "
            "PIP_EXTRA_INDEX_URL and a CUDA toolkit on the PATH"),
}
GPU_EXTRAS = ("cuda", "gpu")


def python(version: str, packages: Packages) -> Iterator[Finding]:
    """Whether trtkit is installed, and supports this Python (`version` as in "3.12.1")."""
    if "trtkit" not in packages.versions:
        yield Finding("Python", "warn", "trtkit itself is not installed in this Python, so its needs are not checked",
                      "in the folder of its pyproject.toml: make demo, or pip install --editable .")
    supported = ", ".join(sorted(packages.requires_python.split(","), reverse=True))       # ">=3.11, <3.14"
    if _meets(supported, version):
        yield Finding("Python", "ok", version + (f" (supported: {supported})" if supported else ""))
    else:
        yield Finding("Python", "error", f"{version}, while trtkit supports {supported}",
                      "install a supported Python, for example 3.12, then: make clean demo PYTHON=python3.12")


def software(packages: Packages, *, gpu: bool) -> Iterator[Finding]:
    """Missing, outdated and clashing packages; `gpu`: whether CUDA programs find a device."""
    for module, names in RIVALS.items():
        both = [name for name in names if name in packages.versions]
        if len(both) > 1:
            level = "error" if module == "onnxruntime" else "warn"
            yield Finding("packages", level, f"{' and '.join(both)} are installed and overwrite each other's files",
                          f"pip uninstall -y {' '.join(both)} && pip install {module}")
    onnx = packages.versions.get("onnx")
    if onnx and not _meets(f">={ONNX_FLOOR}", onnx):
        yield Finding("packages", "error", f"onnx {onnx} lets a model file read and write outside its folder "
                      "(CVE-2026-34446)", f"pip install --upgrade 'onnx>={ONNX_FLOOR}'")
    needed = [r for r in packages.needed() if r.name != "torch"]            # a course without training is still one
    missing = [r for r in needed if not _installed(packages, r.name)]
    old = [r for r in _asked(packages).values() if _too_old(packages, r) and r.name != "onnx"]
    if missing:
        yield Finding("packages", "error", f"{_names(missing)} not installed; trtkit cannot do without",
                      f"make demo, or pip install {_quoted(missing)}")
    if old:
        listed = ", ".join(f"{r.name} {_installed(packages, r.name)} (expected {r.specifier})" for r in old)
        yield Finding("packages", "warn", f"older than trtkit is tested with: {listed}",
                      f"pip install --upgrade {_quoted(old)}")
    if needed and not missing and not old:
        yield Finding("packages", "ok", f"all {len(needed)} that trtkit cannot do without are here, none too old")
    yield from _extras(packages, gpu)


def pytorch(packages: Packages) -> Iterator[Finding]:
    """PyTorch, without which there is no training."""
    if "torch" in packages.versions:
        built_for = f"CUDA {packages.cuda['torch']}" if packages.cuda.get("torch") else "the CPU"
        yield Finding("PyTorch", "ok", f"{packages.versions['torch']}, built for {built_for}")
    else:
        yield Finding("PyTorch", "note", "not installed: no training, no QAT, no export from PyTorch; lessons that "
                      "only run a graph do without", EXTRAS["torch"][1])


def jupyter(packages: Packages, *, hub: bool) -> Iterator[Finding]:
    """How a kernel talks to the server on a machine that others use too."""
    version = packages.versions.get("ipykernel")
    if hub and version and _meets(">=7", version):
        yield Finding("Jupyter", "note", f"ipykernel {version} talks to the notebook server over unencrypted TCP, "
                      "which other users of this JupyterHub machine may listen to",
                      'in jupyter_server_config.py: c.KernelManager.transport = "ipc"')


def backends(available: dict[str, str]) -> Iterator[Finding]:
    """What `engine.available` says."""
    for name, why_not in available.items():
        reason, _, fix = why_not.partition("; ")
        level = "note" if name != "ort" else "error"            # the one that every machine can have
        yield Finding(f"backend {name}", level, reason, fix or "see the findings above") if why_not else Finding(
            f"backend {name}", "ok", "ready")


def _asked(packages: Packages) -> dict[str, Requirement]:
    """What trtkit and all its extras ask for, by name."""
    return {r.name: r for extra in ("", *packages.extras()) for r in packages.needed(extra)}


def _extras(packages: Packages, gpu: bool) -> Iterator[Finding]:
    useless = []
    for extra in packages.extras():
        missing = [r for r in packages.needed(extra) if r.name != "torch" and not _installed(packages, r.name)]
        purpose, fix = EXTRAS.get(extra, (f"extra {extra!r}", f"pip install --editable '.[{extra}]'"))
        if extra in GPU_EXTRAS and not gpu:
            useless += missing
        elif missing and (extra != "torch" or "torch" in packages.versions):        # `pytorch` has said it already
            yield Finding("packages", "note", f"{_names(missing)} not installed; needed for {purpose}", fix)
    if useless:
        yield Finding("packages", "ok", f"{_names(useless)} not installed, nor of use without a GPU")


def _installed(packages: Packages, name: str) -> str | None:
    """Version of a package, or of one that installs the same module."""
    if name.startswith("tensorrt"):
        return next((v for n, v in packages.versions.items() if n.startswith("tensorrt")), None)
    return next((packages.versions[n] for n in RIVALS.get(name, (name,)) if n in packages.versions), None)


def _too_old(packages: Packages, requirement: Requirement) -> bool:
    version = _installed(packages, requirement.name)
    return version is not None and not _meets(str(requirement.specifier), version)


def _meets(specifier: str, version: str) -> bool:
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _names(requirements: list[Requirement]) -> str:
    return ", ".join(r.name for r in requirements)


def _quoted(requirements: list[Requirement]) -> str:
    """As a shell takes them, without their markers: 'torchmetrics[detection]>=1.9'."""
    extras = [f"[{','.join(sorted(r.extras))}]" if r.extras else "" for r in requirements]
    return " ".join(f"'{r.name}{extra}{r.specifier}'" for r, extra in zip(requirements, extras, strict=True))
