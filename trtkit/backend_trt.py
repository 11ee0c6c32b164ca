"""TensorRT: from a graph to an engine that is typed as the graph says. Lesson 07.

The graph decides the precision. Where the API has strongly typed networks (TensorRT 10 and 11) the builder takes its
types as they are. In the era of 8.5 and 8.6 the builder chooses, so the flags that let it are derived from the graph
(Q/DQ: INT8, FP16 tensors: FP16), and the engine is checked afterwards: one whose layers are wider than the graph asks
is refused. Which era it is, is asked name by name with `hasattr`, never by version.

A build takes seconds to minutes and may run out of memory, be interrupted, or crash. So it runs in a process of its
own, see `trt_process`. Source: TensorRT developer guide, "Working with Quantized Types", "Advanced: Timing Cache".
"""

import platform
from collections.abc import Callable
from pathlib import Path

import onnx
import tensorrt as trt

from trtkit import cache, cuda, nvidia, precision, trt_process, weak_types
from trtkit.engine import BackendError, BuildConfig
from trtkit.files import replacing, sha256
from trtkit.trt_plan import LOGGER, Log, deserialize, inspect

MIB = 1 << 20
# cuDNN and cuBLAS are large, often missing, and gone from TensorRT 11: their kernels are not asked for.
TACTIC_SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")


def environment() -> str:
    """What a plan depends on besides graph and configuration: the machine, and the code that chooses types and flags.

    The code is read at each call, unlike ONNX Runtime's: a build runs in a process that reads these files then.
    """
    code = "".join(sha256(Path(module))[:8] for module in (__file__, precision.__file__, weak_types.__file__))
    return f"{_machine()}, built by {code}"


def _machine() -> str:
    with cuda.primary_context():
        name, capability = cuda.device_name(), cuda.compute_capability()
    driver = nvidia.read().driver or "unknown"
    return (f"tensorrt {trt.__version__}, {name}, sm_{capability}, driver {driver}, "
            f"{platform.system()} {platform.machine()}")


def build(graph: Path, plan: Path, config: BuildConfig) -> dict:
    """Build in a process of its own; see `build_here`."""
    return trt_process.run("build", graph=str(graph), plan=str(plan), config=config)


def keep_kernels() -> trt.Builder:
    """As long as what this returns lives, builds of this process find TensorRT's kernels loaded."""
    return trt.Builder(LOGGER)


def probe(plan: Path) -> None:
    """Load a plan in a process of its own, since TensorRT ends the process that meets a malformed one.

    Raises:
        BackendError: the plan is refused, or loading it crashed.
    """
    trt_process.run("probe", plan=str(plan))


def load(plan: Path, config: BuildConfig):
    """A runner of a plan; see `runner_trt.TrtRunner`. All it needs of the configuration is in the plan."""
    from trtkit.runner_trt import TrtRunner

    return TrtRunner(plan, cache.sidecar(plan).get("outputs", []))


def build_here(graph: Path, plan: Path, config: BuildConfig, tell: Callable[..., None]) -> dict:
    """Build an engine in this process and check its types.

    Args:
        graph: an ONNX file.
        plan: where to write the engine.
        config: see `BuildConfig`.
        tell: called with `phase=` text, and with `step=` and `of=` numbers where the builder reports them.

    Returns:
        "layers": what the inspector tells about each, "outputs": their names in the graph's order, which TensorRT does
        not keep, and "messages": its warnings.

    Raises:
        BackendError: the graph is refused, no engine could be built, or it is wider than the graph asks; with all that
            TensorRT said.
        ValueError: an open dimension without a range.
    """
    with cuda.primary_context():
        free_mib, total_mib = cuda.memory_mib()
        if config.workspace_mib > free_mib:
            raise BackendError(f"workspace_mib: got {config.workspace_mib}, expected at most the {free_mib} MiB of "
                               f"{total_mib} that are free on the GPU; take a smaller workspace, or close runners and "
                               "other notebooks' kernels")
        log = Log()
        model = _read(graph)
        # Only a builder that chooses types itself needs to be asked for FP16.
        lowered, in_half = (model, set()) if _strongly_typed() else weak_types.lower(model)
        asks = weak_types.asks(model, in_half) if config.detailed else [in_half]
        for names in asks:
            builder = trt.Builder(LOGGER)
            network, parser = parse(graph, builder, log, tell, None if lowered is model else lowered)
            settings = _settings(builder, network, model, config, tell)
            if not _strongly_typed():
                _ask_for_half(network, settings, names)
            timing = _timing_cache(settings, config)
            tell(phase=f"build {network.num_layers} layers")
            blob = builder.build_serialized_network(network, settings)
            if blob is None:
                raise BackendError(f"{graph.name}: TensorRT {trt.__version__} built no engine: {log.said()}")
            Path(plan).write_bytes(blob)
            _keep_timing(timing, _timing_path(config))
            del parser, network, settings, builder, blob    # before the runtime: they hold memory
            tell(phase="check")
            runtime, engine = deserialize(plan, log)
            layers = inspect(engine, engine.create_execution_context())
            del engine, runtime
            wrong = precision.problems(model, layers) if config.detailed else []
            if not wrong:
                break
        if wrong:
            raise BackendError(f"{graph.name}: the engine is wider than its graph at {len(wrong)} places: "
                               f"{'; '.join(wrong[:5])}; check the Q/DQ placement with trtkit.lint. TensorRT: "
                               f"{log.said()}")
        return {"layers": layers, "outputs": [o.name for o in model.graph.output], "messages": log.messages[-50:]}


def parse(graph: Path, builder, log: Log, tell: Callable[..., None] = lambda **_: None,
          lowered: onnx.ModelProto | None = None):
    """Read an ONNX file, or `lowered` in its place, into a network.

    Returns:
        Network and parser; the parser must live as long as the network.

    Raises:
        BackendError: with every message of the parser.
    """
    tell(phase="parse")
    network = builder.create_network(_network_flags())
    parser = trt.OnnxParser(network, LOGGER)
    if lowered is None:
        parsed = parser.parse_from_file(str(Path(graph).resolve()))
    else:
        parsed = parser.parse(lowered.SerializeToString())
    if not parsed:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        model = _read(graph) if lowered is None else lowered
        told = "; ".join(f"{_node(model.graph.node, e.node())}: {e.desc()}" for e in errors) or log.said()
        raise BackendError(f"{Path(graph).name}: TensorRT {trt.__version__} cannot read it{_opset(model)}: {told}")
    return network, parser


def _node(nodes, index: int) -> str:
    """The parser tells no more than the number of a node whose operator it does not know."""
    known = f" ({nodes[index].op_type} {nodes[index].name!r})" if 0 <= index < len(nodes) else ""
    return f"node {index}{known}"


def _read(graph: Path) -> onnx.ModelProto:
    try:
        return onnx.load(graph)
    except Exception as e:                  # protobuf's DecodeError, onnx's own, a missing file of external data
        raise BackendError(f"{Path(graph).name}: cannot be read as ONNX ({type(e).__name__}: {e}); export it "
                           "again") from e


def _opset(model: onnx.ModelProto) -> str:
    """The commonest reason, named: an opset newer than the parser."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return f" (opset {versions[0]}; TensorRT 8.6 knows 17 at most: export with opset_version=17)" if versions else ""


def _strongly_typed() -> bool:
    """Whether a network takes its types from the graph: TensorRT 10 if asked, 11 always."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _network_flags() -> int:
    flags = trt.NetworkDefinitionCreationFlag
    if hasattr(flags, "STRONGLY_TYPED"):
        return 1 << int(flags.STRONGLY_TYPED)
    return 1 << int(flags.EXPLICIT_BATCH)


def _ask_for_half(network, settings, names: set[str]) -> None:
    """Layer by layer, of a builder that chooses; see `weak_types`."""
    for layer in (network.get_layer(i) for i in range(network.num_layers) if names):
        if layer.name in names:
            layer.precision = trt.float16
    if names:
        settings.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)


def _settings(builder, network, model: onnx.ModelProto, config: BuildConfig, tell):
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib * MIB)
    settings.builder_optimization_level = config.optimization_level
    settings.avg_timing_iterations = config.timing_iterations
    if config.aux_streams is not None:
        settings.max_aux_streams = config.aux_streams
    if config.detailed:
        settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    settings.set_tactic_sources(tactic_sources())
    if config.sparse:
        settings.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if not _strongly_typed():
        if precision.has_quantized(model):
            settings.set_flag(trt.BuilderFlag.INT8)
        if precision.has_half(model):
            settings.set_flag(trt.BuilderFlag.FP16)
    if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        # Else a second context, which `TrtRunner.layer_times` makes, finds the only profile taken. 10 always shares.
        settings.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if hasattr(trt, "IProgressMonitor"):
        settings.progress_monitor = _monitor(tell)
    if profile := _profile(builder, network, config):
        settings.add_optimization_profile(profile)
    return settings


def tactic_sources() -> int:
    """The bits of `TACTIC_SOURCES`, as far as this TensorRT has them."""
    sources = [getattr(trt.TacticSource, name) for name in TACTIC_SOURCES if hasattr(trt.TacticSource, name)]
    return sum(1 << int(source) for source in sources)


def _profile(builder, network, config: BuildConfig):
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if unknown := set(config.shapes) - {x.name for x in inputs}:
        raise ValueError(f"shapes: got {sorted(unknown)}, expected names of inputs: {[x.name for x in inputs]}")
    profile = None
    for x in inputs:
        shape = tuple(x.shape)
        if -1 not in shape:
            continue
        three = config.shapes.get(x.name)
        if three is None:
            if -1 in shape[1:]:
                raise ValueError(f"shapes: {x.name}: got none, expected (min, opt, max) shapes, since more than the "
                                 f"first dimension of {shape} is open")
            three = [(n, *shape[1:]) for n in config.batch]
        profile = profile or builder.create_optimization_profile()
        profile.set_shape(x.name, *three)
    return profile


def _monitor(tell):
    class Monitor(trt.IProgressMonitor):
        """Hands the builder's own count of steps on; phases nest, and each has its own."""

        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.steps[phase_name] = num_steps
            tell(phase=phase_name)

        def step_complete(self, phase_name, step):
            tell(step=step + 1, of=self.steps[phase_name])
            return True

        def phase_finish(self, phase_name):
            self.steps.pop(phase_name, None)

    return Monitor()


def _timing_path(config: BuildConfig) -> Path:
    """A file for each machine, and for each care that was taken in timing."""
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in _machine())
    care = f"_{config.timing_iterations}_times" if config.timing_iterations > 1 else ""
    return cache.folder() / "timing" / f"{name}{care}.cache"


def _timing_cache(settings, config: BuildConfig):
    if not config.timing_cache:
        settings.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)
        return None
    path = _timing_path(config)
    timing = settings.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    settings.set_timing_cache(timing, False)            # False: refuse one of another GPU
    return timing


def _keep_timing(timing, path: Path) -> None:
    """Write what was measured; first take in what others wrote meanwhile, whose kernels may be others."""
    if timing is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with cache.locked(path.name):
        if path.is_file():
            settings = trt.Builder(LOGGER).create_builder_config()
            timing.combine(settings.create_timing_cache(path.read_bytes()), False)
        with replacing(path) as temporary:
            temporary.write_bytes(timing.serialize())
