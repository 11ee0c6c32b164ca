"""Build once, run many: one call for every backend. Lessons 00 and 07.

A graph (ONNX file) is built into a plan (what a backend has made of it for this machine), and a plan is loaded into a
Runner, which every measurement takes. The name of a plan holds a hash of the graph, the configuration and the
machine, so a changed graph never meets an old plan.
"""

import hashlib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from trtkit.files import replacing, sha256

BACKENDS = ("ort", "trt")


class BackendError(RuntimeError):
    """A backend refused a graph or a plan; the message holds what it said."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a runner: `shape` holds a string where a dimension is dynamic; `dtype` is NumPy's."""

    shape: tuple[int | str, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class BuildConfig:
    """What a build depends on besides the graph.

    `threads` for CPU backends; 0 takes the CPUs that this process may use.
    """

    threads: int = 0

    def __post_init__(self):
        if self.threads < 0:
            raise ValueError(f"threads: got {self.threads}, expected 0 (all that this process may use) or more")
        if self.threads == 0:
            object.__setattr__(self, "threads", len(os.sched_getaffinity(0)))


class Runner(Protocol):
    """A loaded plan. Close it, or use it in a `with` block; it holds a session or GPU memory.

    `label` names the backend, its version and the device, for example "onnxruntime 1.32.0 · CPU 2 threads".
    """

    label: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; returns arrays that the caller owns. Raises ValueError for a wrong name, shape or dtype."""
        ...

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        ...


def available() -> dict[str, str]:
    """Backends by name: "" where this machine can run one, else why not and what to do."""
    why = dict.fromkeys(BACKENDS, "")
    if importlib.util.find_spec("onnxruntime") is None:
        why["ort"] = "onnxruntime is not installed; run make demo, or pip install onnxruntime"
    why["trt"] = "this version of trtkit has no TensorRT backend yet; use backend='ort'"
    return why


def _choose(backend: str) -> str:
    state = available()
    if backend == "auto":
        for name in ("trt", "ort"):
            if not state[name]:
                return name
        raise BackendError("backend: got 'auto', but none can run: " + "; ".join(f"{k}: {v}" for k, v in state.items()))
    if backend not in state:
        raise ValueError(f"backend: got {backend!r}, expected 'auto' or one of {list(state)}")
    if state[backend]:
        raise BackendError(f"backend {backend!r}: {state[backend]}")        # an explicit choice never falls back
    return backend


def cache_dir() -> Path:
    """Where plans are kept: $TRTKIT_CACHE, else .cache/trtkit in the home folder."""
    return Path(os.environ.get("TRTKIT_CACHE") or Path.home() / ".cache" / "trtkit")


def build(graph: Path, config: BuildConfig | None = None, *, backend: str = "auto") -> Path:
    """Turn a graph into a plan for this machine, or find the plan that an earlier call made.

    Args:
        graph: an ONNX file.
        config: see `BuildConfig`.
        backend: "ort", "trt", or "auto" for the fastest that is available.

    Returns:
        Path of the plan in `cache_dir()`; a JSON file beside it says what it was made from.

    Raises:
        FileNotFoundError: no such graph.
        ValueError: unknown backend.
        BackendError: the backend is missing or refuses the graph.
    """
    graph, config = Path(graph), config or BuildConfig()
    name = _choose(backend)
    if not graph.is_file():
        raise FileNotFoundError(f"graph: got {graph}, expected an existing ONNX file; write one with export_onnx")
    from trtkit import backend_ort

    graph_sha256, environment = sha256(graph), backend_ort.environment()
    key_parts = [name, graph_sha256, environment, json.dumps(asdict(config), sort_keys=True)]
    key = hashlib.sha256("\n".join(key_parts).encode()).hexdigest()[:16]
    plan = cache_dir() / f"{graph.stem}.{key}.{name}.onnx"
    if _is_intact(plan):
        return plan
    plan.parent.mkdir(parents=True, exist_ok=True)
    with replacing(plan) as temporary:
        backend_ort.build(graph, temporary, config)
        sidecar = {
            "backend": name,
            "graph_sha256": graph_sha256,
            "plan_sha256": sha256(temporary),
            "environment": environment,
            "config": asdict(config),
        }
    # Last, so a build that was interrupted has no sidecar and is made again.
    with replacing(_sidecar_path(plan)) as temporary:
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n")
    return plan


def _sidecar_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def _is_intact(plan: Path) -> bool:
    try:
        return json.loads(_sidecar_path(plan).read_text())["plan_sha256"] == sha256(plan)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(plan: Path) -> Runner:
    """Load a plan that `build` made.

    Raises:
        FileNotFoundError: no plan, or no sidecar beside it.
        BackendError: the plan's bytes are not those that were built, or the backend refuses them.
    """
    plan = Path(plan)
    if not plan.is_file() or not _sidecar_path(plan).is_file():
        raise FileNotFoundError(f"plan: got {plan}, expected a plan with its .json beside it; make one with build()")
    if not _is_intact(plan):
        raise BackendError(f"plan: {plan.name} has changed since it was built; delete it and call build() again")
    try:
        config = BuildConfig(**json.loads(_sidecar_path(plan).read_text())["config"])
    except (KeyError, TypeError) as e:
        raise BackendError(f"plan: the .json beside {plan.name} is damaged ({e!r}); delete it and call build()") from e
    from trtkit import backend_ort

    return backend_ort.OrtRunner(plan, config)
