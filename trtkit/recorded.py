"""Results that were measured on another machine, and what they were measured with. Lessons 07 to 09 and 11.

A machine without a GPU cannot measure one, and a number without its device, versions and date says nothing. So whoever
records writes `{"provenance": provenance(...), ...}` to `datasets/results/<gpu>_<trt>.json`, and whoever shows it
writes `caption(...)` beside it.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from trtkit import clocks, machine, nvidia
from trtkit.files import replacing

RESULTS = Path(__file__).resolve().parent.parent / "datasets" / "results"
# Distributions that hold a package, by the package's name; the first that is installed counts.
PACKAGES = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-bindings"),
    "torch": ("torch",),
    "pycuda": ("pycuda",),
    "cuda-bindings": ("cuda-bindings",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "polygraphy": ("polygraphy",),
    "numpy": ("numpy",),
}


def provenance(command: str, *, commit: str = "") -> dict:
    """What a result depends on besides the code that made it: device, clocks, driver, versions, commit and date.

    Args:
        command: what to type to get the result again, without paths of this machine.
        commit: of the code; "" takes $TRTKIT_COMMIT, which serves copies without a repository, else asks git.

    Returns:
        JSON object: "gpu", "compute_capability", "memory_mib", "sm_clock_mhz", "max_sm_clock_mhz", "driver", "cuda"
        (the highest that the driver runs), "cpu", "cores", "python", "versions", "commit", "command", "date". A fact
        that nobody could tell is "" or None.
    """
    nvml = nvidia.nvml_module()
    facts, host, clock = nvidia.read(nvml=nvml), machine.read(), clocks.read(nvml)
    gpu = facts.gpus[0] if facts.gpus else nvidia.Gpu("", "", None, None, False, ())
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "memory_mib": gpu.memory_mib,
        "sm_clock_mhz": clock.sm_mhz,
        "max_sm_clock_mhz": clock.max_sm_mhz,
        "driver": facts.driver,
        "cuda": facts.cuda,
        "cpu": host.cpu_model,
        "cores": host.usable_cores,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit or os.environ.get("TRTKIT_COMMIT") or _git_commit(),
        "command": command,
        "date": date.today().isoformat(),
    }


def file_name(made_from: dict) -> str:
    """Name of a results file, for example "h100_trt861.json": which GPU, which TensorRT.

    Args:
        made_from: what `provenance` returned.

    Raises:
        ValueError: no GPU or no TensorRT in it.
    """
    gpu, version = made_from["gpu"], made_from["versions"].get("tensorrt", "")
    if not (gpu and version):
        raise ValueError(f"provenance: got GPU {gpu!r} and TensorRT {version!r}, expected both; record where "
                         "`trtkit doctor` finds them")
    return f"{gpu_model(made_from)}_trt{''.join(version.split('.')[:3])}.json"


def gpu_model(made_from: dict) -> str:
    """The GPU as a file's name has it, "" without one.

    "NVIDIA H100 80GB HBM3" is h100, "NVIDIA A100-SXM4-80GB" a100sxm4, "NVIDIA GeForce RTX 4090" rtx4090.

    Args:
        made_from: what `provenance` returned.
    """
    words = re.split(r"[\s-]+", made_from["gpu"])
    return "".join(w for w in words if not re.fullmatch(r"NVIDIA|Tesla|GeForce|\d+GB|HBM\w+", w)).lower()


def write(path: Path, body: dict) -> None:
    """Write results whole or not at all.

    Raises:
        ValueError: NaN or infinity among the numbers; JSON has neither.
    """
    path = Path(path)
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text)


def load(name: str, folder: Path = RESULTS) -> dict:
    """Results that were recorded.

    Args:
        name: of a file, for example "h100_trt861.json".
        folder: where; by default those that come with trtkit.

    Raises:
        FileNotFoundError: not there; the message lists those that are.
        ValueError: no JSON, or results that do not say what they were measured with.
    """
    path = Path(folder) / name
    if not path.is_file():
        have = sorted(p.name for p in path.parent.glob("*.json"))
        raise FileNotFoundError(f"results: got {name!r}, expected one of {have}; record them on a GPU with: "
                                "python -m trtkit bench --record")
    try:
        body = json.loads(path.read_text())
        caption(body)
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"results: {name} holds no results with their provenance ({e!r}); restore it with: "
                         f"git checkout -- datasets/results/{name}") from e
    return body


def stamp(made_from: dict) -> dict:
    """What differs between the runs that fill one file: "command", "commit", "date" of `provenance`."""
    return {key: made_from[key] for key in ("command", "commit", "date")}


def step(name: str, part: str, folder: Path = RESULTS) -> dict:
    """A part of a results file, with "caption": where and when it was measured; {} where nobody recorded it.

    Args:
        name: of the file, such as "h100_lesson07.json".
        part: a key of it, whose value is an object.
        folder: of the file.
    """
    if not (Path(folder) / name).is_file():
        return {}
    body = load(name, folder)
    if part not in body:
        return {}
    made_from = {**body["provenance"], **body.get("measured", {}).get(part, {})}
    return {**body[part], "caption": caption({"provenance": made_from})}


def caption(body: dict) -> str:
    """One line for beside a table or picture.

    Args:
        body: results; their "provenance" is read.

    Returns:
        For example "recorded: NVIDIA H100 80GB HBM3, TensorRT 8.6.1, driver 580.95.05, 2026-11-22".
    """
    made_from = body["provenance"]
    version = made_from["versions"].get("tensorrt")
    facts = [
        made_from["gpu"] or made_from["cpu"],
        f"TensorRT {version}" if version else "",
        f"driver {made_from['driver']}" if made_from["driver"] else "",
        made_from["date"],
    ]
    return "recorded: " + ", ".join(filter(None, facts))


def _version(name: str) -> str:
    """Version of a package, "" where it is missing, without importing it: torch takes seconds."""
    module = sys.modules.get(name)
    if module is not None and isinstance(found := getattr(module, "__version__", None), str):
        return found
    for distribution in PACKAGES[name]:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    # A package that was put in place file by file, without its metadata; torch keeps its version in a file.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    found = re.search(r"__version__ = ['\"](\S+)['\"]", file.read_text()) if file and file.is_file() else None
    return found[1] if found else ""


def _git_commit() -> str:
    """Commit of this copy with "-dirty" behind it where files differ; "" without git or repository."""
    if not shutil.which("git"):
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
