"""Build once, run many: one call for every backend. Lessons 00 and 07.

A graph (ONNX file) is built into a plan (what a backend has made of it for this machine), and a plan is loaded into a
Runner, which every measurement takes. `cache` keeps the plans.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from trtkit import cache, nvidia

BACKENDS = ("ort", "trt")
SUFFIX = {"ort": ".ort.onnx", "trt": ".plan"}
Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


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

    Attributes:
        threads: for ORT; 0 takes the CPUs that this process may use.
        batch: for TensorRT, smallest, most frequent and largest value of a first dimension that the graph leaves open.
            The engine is fastest at the second, and takes nothing outside the range.
        shapes: for TensorRT, smallest, most frequent and largest shape by name of the input, where more than the first
            dimension is open.
        workspace_mib: for TensorRT, GPU memory that one layer may use besides its tensors, MiB.
        optimization_level: for TensorRT, 0 (builds fast) to 5 (tries everything); 3 is its own default.
        detailed: for TensorRT, keep in the plan what the inspector tells about each layer.
        timing_cache: for TensorRT, keep measured times of kernels for the next build on this machine.
        sparse: for TensorRT, also try kernels that skip zeros, for weights that have two in each four along the input
            channels; see `trtkit.masks`.
        timing_iterations: for TensorRT, how often each kernel is timed; the builder takes the one with the best
            average. TensorRT's own default is 1, that of trtexec 8.
        aux_streams: for TensorRT, how many streams may run branches of the network beside the main one; None lets it
            decide.
    """

    threads: int = 0
    batch: tuple[int, int, int] = (1, 1, 8)
    shapes: Shapes = field(default_factory=dict)
    workspace_mib: int = 2048
    optimization_level: int = 3
    detailed: bool = True
    timing_cache: bool = True
    sparse: bool = False
    timing_iterations: int = 1
    aux_streams: int | None = None

    def __post_init__(self):
        if self.threads < 0:
            raise ValueError(f"threads: got {self.threads}, expected 0 (all that this process may use) or more")
        if self.threads == 0:
            object.__setattr__(self, "threads", len(os.sched_getaffinity(0)))
        if not (len(self.batch) == 3 and 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]):
            raise ValueError(f"batch: got {self.batch}, expected (min, opt, max) with 1 <= min <= opt <= max")
        for name, three in self.shapes.items():
            if len(three) != 3 or len({len(shape) for shape in three}) != 1 or not all(
                    1 <= low <= opt <= high for low, opt, high in zip(*three, strict=True)):
                raise ValueError(f"shapes: {name}: got {three}, expected (min, opt, max) shapes of equal rank, with "
                                 "1 <= min <= opt <= max in each dimension")
        if self.workspace_mib < 1:
            raise ValueError(f"workspace_mib: got {self.workspace_mib}, expected at least 1")
        if not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimization_level: got {self.optimization_level}, expected 0 to 5")
        if self.timing_iterations < 1:
            raise ValueError(f"timing_iterations: got {self.timing_iterations}, expected at least 1")
        if self.aux_streams is not None and self.aux_streams < 0:
            raise ValueError(f"aux_streams: got {self.aux_streams}, expected 0 or more, or None (TensorRT decides)")
        # JSON has lists where we have tuples, and a configuration that was read must equal the one that was written.
        object.__setattr__(self, "batch", tuple(self.batch))
        object.__setattr__(self, "shapes", {k: tuple(map(tuple, v)) for k, v in self.shapes.items()})


def _relevant(config: BuildConfig, backend: str) -> dict:
    """The part of a configuration that a backend looks at, so that no other part changes its plans' names."""
    fields = asdict(config)
    return {k: v for k, v in fields.items() if (k == "threads") == (backend == "ort")}


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


def check_feed(feed: dict[str, np.ndarray], inputs: dict[str, TensorSpec]) -> None:
    """What every runner checks first; which shapes fit is each backend's own.

    Raises:
        ValueError: wrong names, something else than an array, or a wrong dtype.
    """
    if feed.keys() != inputs.keys():
        raise ValueError(f"feed: got names {sorted(feed)}, expected {sorted(inputs)}")
    for name, spec in inputs.items():
        x = feed[name]
        if not isinstance(x, np.ndarray):
            raise ValueError(f"{name}: got {type(x).__name__}, expected a NumPy array {spec.dtype} {spec.shape}")
        if x.dtype != spec.dtype:
            raise ValueError(f"{name}: got {x.dtype}, expected {spec.dtype}; use x.astype(np.{spec.dtype})")


def available() -> dict[str, str]:
    """Backends by name: "" where this machine can run one, else why not and what to do."""
    why = dict.fromkeys(BACKENDS, "")
    if importlib.util.find_spec("onnxruntime") is None:
        why["ort"] = "onnxruntime is not installed; run make demo, or pip install onnxruntime"
    why["trt"] = _trt_problem()
    return why


def _trt_problem() -> str:
    if problem := nvidia.cuda_problem():            # first: TensorRT without a device ends the process
        return problem
    for package, fix in (("tensorrt", "pip install --editable '.[gpu]' (see README.md), or use environment.yml"),
                         ("pycuda", "pip install --editable '.[cuda]'; it needs the CUDA toolkit to build")):
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            return f"{package} is not installed; {fix}"
    try:
        importlib.import_module("trtkit.backend_trt")
    except (ImportError, OSError) as e:             # a library that TensorRT or PyCUDA needs
        return f"TensorRT or PyCUDA cannot be imported ({e}); trtkit doctor says which packages fit together"
    return ""


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
    return cache.folder()


def _backend(name: str):
    """Imported where it is used: each pulls in a library that another machine lacks."""
    if name == "trt":
        from trtkit import backend_trt

        return backend_trt
    from trtkit import backend_ort

    return backend_ort


def build(graph: Path, config: BuildConfig | None = None, *, backend: str = "auto") -> Path:
    """Turn a graph into a plan for this machine, or find the plan that an earlier call made.

    Args:
        graph: an ONNX file.
        config: see `BuildConfig`.
        backend: "ort", "trt", or "auto" for the fastest that is available.

    Returns:
        Path of the plan in `cache_dir()`; a JSON file beside it says what it was made from, see `cache.sidecar`.

    Raises:
        FileNotFoundError: no such graph.
        ValueError: unknown backend, or a configuration that does not fit the graph.
        BackendError: the backend is missing or refuses the graph, or its engine is wider than the graph asks.
        OSError: the cache cannot be written.
    """
    graph, config = Path(graph), config or BuildConfig()
    name = _choose(backend)
    if not graph.is_file():
        raise FileNotFoundError(f"graph: got {graph}, expected an existing ONNX file; write one with export_onnx")
    module = _backend(name)
    facts = {
        "backend": name,
        "graph_sha256": cache.graph_sha256(graph),
        "config": _relevant(config, name),
        "environment": module.environment(),
    }

    def make(plan: Path) -> dict:
        start = time.perf_counter()
        more = module.build(graph, plan, config) or {}
        return {**more, "graph": graph.name, "build_s": round(time.perf_counter() - start, 2)}

    return cache.find_or_make(graph.stem, SUFFIX[name], facts, make)


@contextmanager
def kept_builder() -> Iterator[None]:
    """For several builds in a row: those of the block share one process.

    TensorRT 8.6 loads its kernels anew in each process: on an H100, 18 of the 21 s that four convolutions take. The
    process holds about 1.5 GB of device memory until the block ends. ONNX Runtime builds as always.
    """
    if available()["trt"]:
        yield
        return
    from trtkit import trt_process

    with trt_process.kept():
        yield


def load(plan: Path, *, trust: bool = False) -> Runner:
    """Load a plan that `build` made.

    Args:
        plan: in the cache folder, with its .json beside it.
        trust: load it although it comes from elsewhere, from somebody else or from another machine. A plan is
            executable code: do so only for files that you made or that reached you signed.

    Raises:
        FileNotFoundError: no plan, or no sidecar beside it.
        BackendError: the plan may not be loaded (see `cache.problem`), or the backend refuses it.
    """
    plan = Path(plan)
    if not plan.is_file() or not cache.sidecar_path(plan).is_file():
        raise FileNotFoundError(f"plan: got {plan}, expected a plan with its .json beside it; make one with build()")
    name = cache.sidecar(plan).get("backend")
    if name not in BACKENDS:
        raise BackendError(f"plan: the .json beside {plan.name} is damaged (backend: got {name!r}); delete both, and "
                           "call build() again")
    if state := available()[name]:
        raise BackendError(f"backend {name!r}: {state}")
    module = _backend(name)
    if not trust:
        if plan.resolve().parent != cache_dir().resolve():
            raise BackendError(f"plan: got {plan}, which is not in the cache {cache_dir()}; plans are executable code: "
                               "build() the graph here, or pass trust=True if you made this file yourself")
        if problem := cache.problem(plan, module.environment()):
            raise BackendError(f"plan: {plan.name}: {problem}; call build() again")
    elif name == "trt":
        module.probe(plan)
    return module.load(plan, _config(plan))


def _config(plan: Path) -> BuildConfig:
    try:
        return BuildConfig(**cache.sidecar(plan)["config"])
    except (KeyError, TypeError, ValueError) as e:
        raise BackendError(f"plan: the .json beside {plan.name} is damaged ({e!r}); delete it and call build()") from e
