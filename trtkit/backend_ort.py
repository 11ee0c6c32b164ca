"""ONNX Runtime on the CPU: the backend that every machine has. Lesson 00."""

import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from trtkit.engine import BackendError, BuildConfig, TensorSpec, check_feed
from trtkit.files import sha256

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
CODE = sha256(Path(__file__))[:8]         # of what runs here; the file may change meanwhile


def environment() -> str:
    """What a plan depends on: ORT's version, the CPU, since its layouts follow the instruction set, and this module.

    What it leaves out of the optimizer has changed before, and plans of other rules are slower or have other numbers.
    """
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return f"onnxruntime {ort.__version__} {platform.machine()} {flags}, built by {CODE}"


def _session(
    path: Path, config: BuildConfig, *, optimized_path: Path | None = None, without: Sequence[str] = (),
    profile_prefix: str = ""
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if profile_prefix:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    options.intra_op_num_threads = config.threads
    options.log_severity_level = 3                      # errors only; they come as exceptions too
    # ORT's threads keep spinning for a while after a run; two runners in one process then take each other's cores and
    # both seem twice as slow, and so does whatever the caller does between two runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimized_path:
        options.optimized_model_filepath = str(optimized_path)
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL     # done at build time
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"],
                                    disabled_optimizers=list(without))
    except Exception as e:                              # ORT raises bare RuntimeErrors of many kinds
        raise BackendError(f"onnxruntime {ort.__version__} refused {path.name}: {e}") from e


def build(graph: Path, plan: Path, config: BuildConfig) -> None:
    """Let ORT optimize a graph for this CPU and write the result.

    Raises:
        BackendError: with ORT's message.
    """
    _session(graph, config, optimized_path=plan, without=_unwanted_optimizers(graph))
    model = onnx.load(plan, load_external_data=False)
    if any(uses_external_data(tensor) for tensor in model.graph.initializer):
        # ORT names the graph's data files, which lie beside the graph and not beside the plan; its hash covers itself.
        load_external_data_for_model(model, str(graph.parent))
        onnx.save(model, plan)


def _unwanted_optimizers(graph: Path) -> list[str]:
    """Blocks of channels make float convolutions faster, and must be undone before each that computes in INT8.

    So they are left out where most convolutions are INT8: YOLOv3's float stem alone costs a fifth of its time so.
    """
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception:           # of any kind: ONNX Runtime, which reads the graph next, says what is wrong with it
        return []
    writers = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    int8 = sum(all(writers.get(name) == "DequantizeLinear" for name in node.input[:2]) for node in convolutions)
    return ["NchwcTransformer"] if 2 * int8 > len(convolutions) else []


def load(plan: Path, config: BuildConfig) -> "OrtRunner":
    """A runner of a plan that `build` made."""
    return OrtRunner(plan, config)


class OrtRunner:
    """A plan in an ORT session; see `engine.Runner`."""

    def __init__(self, plan: Path, config: BuildConfig):
        self._session: ort.InferenceSession | None = _session(plan, config)
        self._plan, self._config = plan, config
        self.inputs = {i.name: _spec(i) for i in self._session.get_inputs()}
        self.outputs = {o.name: _spec(o) for o in self._session.get_outputs()}
        self.label = f"onnxruntime {ort.__version__} · CPU {config.threads} threads"

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; see `engine.Runner.infer`."""
        if self._session is None:
            raise BackendError("runner: got a closed one, expected an open one; call engine.load again")
        check_feed(feed, self.inputs)
        _check_shapes(feed, self.inputs)
        try:
            return dict(zip(self.outputs, self._session.run(None, feed), strict=True))
        except Exception as e:
            raise BackendError(f"{self.label}: {e}") from e

    def layer_times(self, feed: dict[str, np.ndarray], runs: int) -> list[list[tuple[str, float]]]:
        """Milliseconds of each node that ran, by ORT's own profiler, in a session of its own.

        Args:
            feed: of `infer`.
            runs: how often; one more comes first and is left out.

        Returns:
            One list per run: (name, ms) in the order in which the nodes ran; ORT counts whole microseconds.
        """
        self.infer(feed)                                # says what is wrong with the feed, or that this is closed
        with tempfile.TemporaryDirectory() as folder:
            session = _session(self._plan, self._config, profile_prefix=f"{folder}/run")
            for _ in range(runs + 1):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        starts = sorted(e["ts"] for e in events if e["name"] == "model_run")[1:]
        nodes = sorted((e for e in events if e["cat"] == "Node"), key=lambda e: e["ts"])
        return [[(e["name"].removesuffix("_kernel_time"), e["dur"] / 1000) for e in nodes if start <= e["ts"] < end]
                for start, end in zip(starts, [*starts[1:], float("inf")], strict=True)]

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def _spec(arg: ort.NodeArg) -> TensorSpec:
    shape = tuple(d if d is not None else "?" for d in arg.shape)
    if arg.type not in DTYPES:
        raise BackendError(f"tensor {arg.name!r}: got type {arg.type}, expected one of {sorted(DTYPES)}")
    return TensorSpec(shape, np.dtype(DTYPES[arg.type]))


def _check_shapes(feed: dict[str, np.ndarray], inputs: dict[str, TensorSpec]) -> None:
    for name, spec in inputs.items():
        x = feed[name]
        fits = x.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(spec.shape, x.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{name}: got shape {x.shape}, expected {spec.shape}; see yolo.letterbox")
