"""Lesson 07's measurements on a GPU, to be shown where there is none. Lesson 07.

    python -c "from trtkit import record_07; record_07.record('datasets/results/h100_lesson07.json')"

Builds take half a minute each, so the file is written after each step, and a step that fails leaves the others alone;
`record(out, ["calibrators"])` does one of them again.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from trtkit import (
    cache,
    calib,
    calib_cache,
    data,
    engine,
    eras,
    export,
    half,
    inspector,
    qdq,
    record_steps,
    recorded,
    small_net,
    weights,
    yolo,
)
from trtkit.engine import BackendError, BuildConfig
from trtkit.files import replacing
from trtkit.profiling import measure

COMMAND = "python -c \"from trtkit import record_07; record_07.record('datasets/results/h100_lesson07.json')\""
FILE = "h100_lesson07.json"
WEIGHTS = "weights/yolov3_w025.safetensors"
IMAGES = 32                 # for the ranges, ours and TensorRT's
CALIB_BATCH = 8
CHARACTERS = 100            # of a layer's or tactic's name
NOT_RECORDED = f"not recorded yet; on a machine with TensorRT: {COMMAND}"
LEVEL_1 = BuildConfig(optimization_level=1)


def write_graphs(folder: Path, table: Mapping[str, calib.Range]) -> dict[str, Path]:
    """The trained detector, width 0.25, three times: path by "FP32", "FP16", "INT8".

    Args:
        folder: where to write them.
        table: ranges of its tensors, from `calib.ranges(histograms(...))`.
    """
    folder = Path(folder)
    graphs = {"FP32": weights.to_graph(data.dataset_file(WEIGHTS), folder / "yolov3_w025_fp32.onnx")}
    model = onnx.load(graphs["FP32"])
    skip = [*qdq.head_convs(model), qdq.conv_names(model)[0]]           # stay FP16, see lesson 06
    quantized = qdq.insert_qdq(model, table, target="trt", skip=skip, rest="fp16")
    for name, typed in {"FP16": half.to_fp16(model), "INT8": quantized}.items():
        graphs[name] = folder / f"yolov3_w025_{name.lower()}.onnx"
        with replacing(graphs[name]) as temporary:
            onnx.save(typed, temporary)
    return graphs


def batches(images: int, size: int = 1) -> list[np.ndarray]:
    """Calibration images as inputs (size, 3, 416, 416) float32; `images` is a multiple of `size`."""
    inputs = [yolo.letterbox(s.img_hwc_u8)[0] for s in data.load_split("calib", images, progress=False)]
    return [np.concatenate(inputs[i : i + size]) for i in range(0, images, size)]


def histograms(folder: Path, images: int) -> calib.Calibration:
    """Our own calibration of the FP32 detector, on ONNX Runtime: see `calib.collect`."""
    model = onnx.load(weights.to_graph(data.dataset_file(WEIGHTS), Path(folder) / "yolov3_w025_fp32.onnx"))
    names = qdq.activation_names(model)
    exposed = Path(folder) / "yolov3_w025_exposed.onnx"
    onnx.save(export.expose_tensors(model, names[1:]), exposed)
    with engine.load(engine.build(exposed, backend="ort")) as runner:
        return calib.collect(lambda x: {"images": x, **runner.infer({"images": x})}, batches(images), progress=False)


def rows(layers: Sequence[Mapping]) -> list[dict]:
    """The inspector's layers, shortened: "name", "type", "precision", "reads", "writes" and "tactic", all text."""
    return [{"name": r["name"][:CHARACTERS], "type": r["type"], "precision": r["precision"],
             "reads": "+".join(r["in_dtypes"]), "writes": "+".join(r["out_dtypes"]), "tactic": r["tactic"][:CHARACTERS]}
            for r in inspector.frame(layers).to_dict("records")]


def example(layers: Sequence[Mapping]) -> dict:
    """The inspector's own JSON of one convolution from the middle of the network."""
    convolutions = [layer for layer in layers if "Conv" in str(layer.get("LayerType"))]
    return dict(convolutions[len(convolutions) // 2]) if convolutions else {}


def facts(plan: Path, *, sizes: Iterable[int] = (1, 8), duration_s: float = 1.0) -> dict:
    """What is worth knowing of a plan of the detector, measured here.

    Args:
        plan: that `engine.build` made with backend="trt".
        sizes: batch sizes to time, inside its profile.
        duration_s: of each measurement.

    Returns:
        "build_s", "level", "plan_mib", "label", "messages" (TensorRT's warnings), "layers" (see `rows`), "example" (see
        there), and "compute_ms", by batch size as text: "p50", "p90", "cv_percent" of the GPU's time, with its graph.
    """
    sidecar, compute_ms = cache.sidecar(plan), {}
    with engine.load(plan) as runner:
        for size in sizes:
            latency = measure(runner, {"images": np.repeat(batches(1)[0], size, axis=0)}, duration_s=duration_s)
            found = latency.stats("compute")
            compute_ms[str(size)] = {"p50": round(found.p50_ms, 4), "p90": round(found.p90_ms, 4),
                                     "cv_percent": round(found.cv_percent, 2)}
        label = runner.label
    return {"build_s": sidecar["build_s"], "level": sidecar["config"]["optimization_level"],
            "plan_mib": round(plan.stat().st_size / 2**20, 2), "label": label,
            "messages": _shortened(sidecar["messages"]),
            "layers": rows(sidecar["layers"]), "example": example(sidecar["layers"]), "compute_ms": compute_ms}


def record(out: Path, steps: Sequence[str] = (), *, images: int = IMAGES) -> None:
    """Measure on this machine's GPU and write the file that lesson 07 shows elsewhere; about ten minutes.

    Args:
        out: of the JSON file; what it holds of other steps stays.
        steps: of `STEPS`; all of them if empty.
        images: for the ranges, a multiple of `CALIB_BATCH`.

    Raises:
        ValueError: an unknown step.
        BackendError: no TensorRT or no GPU; or a step failed, after the others were done.
    """
    record_steps.check(steps, STEPS)
    about = {"provenance": recorded.provenance(COMMAND), "images": images}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtkit-")))
        found = histograms(folder, images)
        graphs = write_graphs(folder, calib.ranges(found, "max"))
        builder = stack.enter_context(ExitStack())
        builder.enter_context(engine.kept_builder())

        def measure(step: str) -> dict:
            if step == "timing_cache":
                builder.close()             # where a build's time is the result, each begins with nothing loaded
            return STEPS[step](graphs, found)

        record_steps.run(out, [s for s in STEPS if s in steps or not steps], measure, lambda: about)


recorded_step = partial(recorded.step, FILE)        # (step of `STEPS`, folder)


def _engines(graphs: Mapping[str, Path], found: calib.Calibration) -> dict:
    """One engine per precision."""
    return {name: facts(engine.build(graphs[name], LEVEL_1, backend="trt")) for name in ("FP16", "INT8", "FP32")}


def _timing_cache(graphs: Mapping[str, Path], found: calib.Calibration) -> dict:
    """Seconds of a first build, and of the same one with the timings that the first one left; what TensorRT said."""
    again = BuildConfig(optimization_level=1, workspace_mib=LEVEL_1.workspace_mib - 1)      # else its plan is found
    with tempfile.TemporaryDirectory(prefix="trtkit-") as empty, _cache(Path(empty)):
        sidecars = {name: cache.sidecar(engine.build(graphs["FP16"], config, backend="trt"))
                    for name, config in {"first": LEVEL_1, "again": again}.items()}
    return {"first": sidecars["first"]["build_s"], "again": sidecars["again"]["build_s"],
            "messages": _shortened(sidecars["again"]["messages"])}


def _profile(graphs: Mapping[str, Path], found: calib.Calibration) -> dict:
    """The FP16 engine again, optimized for a batch of 8."""
    return facts(engine.build(graphs["FP16"], BuildConfig(optimization_level=1, batch=(1, 8, 8)), backend="trt"))


def _level_3(graphs: Mapping[str, Path], found: calib.Calibration) -> dict:
    return facts(engine.build(graphs["FP16"], BuildConfig(optimization_level=3), backend="trt"))


def _calibrators(graphs: Mapping[str, Path], found: calib.Calibration) -> dict:
    """TensorRT's scales, and its thresholds over ours."""
    from trtkit import calibrators_trt  # needs TensorRT and PyCUDA

    answer = {}
    for algorithm, ours in {"minmax": "max", "entropy2": "entropy"}.items():
        scales = calibrators_trt.calibration_cache(graphs["FP32"], batches(found.images, CALIB_BATCH), algorithm)
        ratios = calib_cache.ratios(scales, calib.ranges(found, ours))
        answer[algorithm] = {
            "ours": ours, "tensors": len(scales), "compared": len(ratios),
            "largest_deviation": max((abs(r - 1) for r in ratios.values()), default=None),
            "over_ours": {name: round(r, 6) for name, r in ratios.items()},
            "over_max": {name: round(r, 6) for name, r in calib_cache.ratios(
                scales, calib.ranges(found, "max")).items()},
            "others": [name for name in scales if name not in ratios],
        }
    return answer


def flags_alone(folder: Path) -> dict:
    """What TensorRT makes of a flag without anything that asks for its type, for four small convolutions.

    Args:
        folder: for their graph.

    Returns:
        By "FP16" and "INT8": "layers" (see `rows`, empty where there is no engine) and "messages".
    """
    from trtkit import calibrators_trt  # needs TensorRT and PyCUDA

    graph, answer = Path(folder) / "four_convolutions.onnx", {}
    onnx.save(small_net.four_convolutions(), graph)
    for flag in ("FP16", "INT8"):
        try:
            layers, messages = calibrators_trt.flag_alone(graph, (1, 3, small_net.SIDE, small_net.SIDE), flag)
        except BackendError as e:       # INT8 without ranges is refused; what it said is what the lesson shows
            layers, messages = [], [str(e)]
        answer[flag] = {"layers": rows(layers) if layers else [], "messages": _shortened(messages)}
    return answer


def _flags_alone(graphs: Mapping[str, Path], found: calib.Calibration) -> dict:
    with tempfile.TemporaryDirectory(prefix="trtkit-") as folder:
        return flags_alone(Path(folder))


def _era(graphs: Mapping[str, Path], found: calib.Calibration) -> dict:
    """Which names of `eras.NAMES` the installed TensorRT has."""
    from trtkit.backend_trt import trt  # needs TensorRT

    names = [name for topic in eras.NAMES.values() for name in topic]
    return {"version": trt.__version__, "era": eras.era_of(trt), "has": {name: eras.has(trt, name) for name in names}}


def _shortened(messages: Iterable[str]) -> list[str]:
    """The first of TensorRT's messages that differ."""
    return [m[:300] for m in dict.fromkeys(messages)][:8]


STEPS = {"era": _era, "engines": _engines, "calibrators": _calibrators, "flags_alone": _flags_alone,
         "profile": _profile, "level_3": _level_3, "timing_cache": _timing_cache}


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Plans and timings of the block go to a folder of their own."""
    before = os.environ.get("TRTKIT_CACHE")
    os.environ["TRTKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRTKIT_CACHE"]
        else:
            os.environ["TRTKIT_CACHE"] = before
