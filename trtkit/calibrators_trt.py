"""What INT8 was before Q/DQ: TensorRT's own calibrators. Lesson 07, history; TensorRT 8 and 10 only.

*Implicit* quantization: the graph stays float, a flag allows INT8, a calibrator hands batches to the builder, and the
builder keeps a scale per tensor, in a cache beside the engine. Where it uses them, it does not say; a tensor without a
scale runs in float without a word (a graph without any is refused). Deprecated in TensorRT 10.1 and removed in 11,
where Q/DQ in the graph is all there is: what to do instead is in `qdq`. Here only to compare TensorRT's scales with our
table, and to see that silence.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import tensorrt as trt

from trtkit import calib_cache, cuda
from trtkit.backend_trt import MIB, tactic_sources
from trtkit.engine import BackendError, BuildConfig
from trtkit.trt_plan import LOGGER, Log, inspect

CALIBRATORS = {"minmax": "IInt8MinMaxCalibrator", "entropy2": "IInt8EntropyCalibrator2"}
GONE = (f"TensorRT {trt.__version__} has no calibrators and no INT8 flag; calibrate with trtkit.calib and put the "
        "scales into the graph with trtkit.qdq.insert_qdq")
SHORT = BuildConfig(optimization_level=0)       # scales do not depend on the kernels, so take the first that works


def calibration_cache(
    graph: Path, batches: Iterable[np.ndarray], algorithm: str = "minmax", config: BuildConfig = SHORT
) -> dict[str, float]:
    """Scales that TensorRT finds for the tensors of a float graph.

    Args:
        graph: an ONNX file with one float32 input, no Q/DQ.
        batches: inputs (N, ...), float32, all of one shape.
        algorithm: "minmax", scale = max|x| / 127; or "entropy2", TensorRT's own cut of the histogram.
        config: its workspace and optimization level count.

    Returns:
        Scale by tensor, only those that are left after the builder fused the rest away.

    Raises:
        ValueError: an unknown algorithm, no batches, or one of another shape or type.
        BackendError: this TensorRT has no calibrators, or it failed; with all that it said.
    """
    if algorithm not in CALIBRATORS:
        raise ValueError(f"algorithm: got {algorithm!r}, expected one of {sorted(CALIBRATORS)}")
    if not hasattr(trt, "IInt8MinMaxCalibrator"):
        raise BackendError(GONE)
    feeds = _checked(batches)
    first = next(feeds)
    log = Log()
    with cuda.primary_context(), cuda.DeviceBuffer(first.nbytes) as buffer:
        calibrator = _calibrator(getattr(trt, CALIBRATORS[algorithm]), chain([first], feeds), len(first), buffer)
        _build(Path(graph), first.shape, config, log, calibrator)
    if calibrator.problem is not None:
        raise calibrator.problem
    if not calibrator.text:
        raise BackendError(f"{Path(graph).name}: TensorRT {trt.__version__} wrote no calibration cache: {log.said()}")
    return dict(calib_cache.parse(calibrator.text.decode()).scales)


def flag_alone(
    graph: Path, shape: tuple[int, ...], flag: str, config: BuildConfig = SHORT
) -> tuple[list[dict], list[str]]:
    """Build a float graph with a precision's flag and nothing else: what does the builder make of a permission?

    Args:
        graph: an ONNX file with one float32 input, no Q/DQ.
        shape: of the input.
        flag: "FP16" or "INT8".
        config: its workspace and optimization level count.

    Returns:
        What the inspector tells about each layer, and TensorRT's warnings.

    Raises:
        BackendError: this TensorRT has no such flag, or builds no engine; with all that it said.
    """
    if not hasattr(trt, "IInt8MinMaxCalibrator"):
        raise BackendError(GONE)
    log = Log()
    with cuda.primary_context():
        blob = _build(Path(graph), shape, config, log, flag=flag)
        runtime = trt.Runtime(LOGGER)
        engine = runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise BackendError(f"{Path(graph).name}: TensorRT {trt.__version__} refused its own engine: {log.said()}")
        layers = inspect(engine, engine.create_execution_context())
        del engine, runtime             # before the context goes
    return layers, log.messages


def _checked(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for i, batch in enumerate(batches):
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32 or batch.shape != (shape or batch.shape):
            got = f"{batch.dtype} {batch.shape}" if isinstance(batch, np.ndarray) else type(batch).__name__
            raise ValueError(f"batches[{i}]: got {got}, expected float32 {shape or '(N, ...)'}")
        shape = batch.shape
        yield np.ascontiguousarray(batch)
    if shape is None:
        raise ValueError("batches: got none, expected at least one of calibration images; see data.load_split('calib')")


def _calibrator(base: type, feeds: Iterator[np.ndarray], batch_size: int, buffer: cuda.DeviceBuffer):
    class Calibrator(base):
        """What the builder calls. TensorRT swallows what it raises and goes on with fewer images: see `problem`."""

        def __init__(self):
            base.__init__(self)                 # pybind11 wants it by name
            self.text, self.problem = b"", None

        def get_batch_size(self):
            return batch_size

        def get_batch(self, names):
            try:
                batch = next(feeds, None)
                if batch is None:
                    return None
                cuda.copy_to_device(buffer, batch)
            except Exception as e:              # whatever the caller's iterator may raise
                self.problem = e
                return None
            return [buffer.ptr]

        def read_calibration_cache(self):
            return None                         # calibrate anew

        def write_calibration_cache(self, cache):
            self.text = bytes(cache)            # a view of memory that is freed after the call

    return Calibrator()


def _build(graph: Path, shape: tuple[int, ...], config: BuildConfig, log: Log, calibrator=None, flag: str = "INT8"):
    """A plan of a weakly typed network, as everybody built it before TensorRT 10; the type allowed, not asked for."""
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse_from_file(str(graph.resolve())):
        raise BackendError(f"{graph.name}: TensorRT {trt.__version__} cannot read it: {log.said()}")
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib * MIB)
    settings.builder_optimization_level = config.optimization_level
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    settings.set_tactic_sources(tactic_sources())
    settings.set_flag(trt.BuilderFlag.INT8 if flag == "INT8" else trt.BuilderFlag.FP16)
    settings.clear_flag(trt.BuilderFlag.TF32)           # calibrate with all 24 bits, to compare with FP32 elsewhere
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, shape, shape, shape)
    settings.add_optimization_profile(profile)
    if calibrator is not None:
        settings.set_calibration_profile(profile)
        settings.int8_calibrator = calibrator
    blob = builder.build_serialized_network(network, settings)
    if blob is None:
        raise BackendError(f"{graph.name}: TensorRT {trt.__version__} built no engine: {log.said()}")
    return blob
