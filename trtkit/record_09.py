"""Lesson 09's measurements on a GPU, to be shown where there is none. Lesson 09.

`measured` is what the lesson itself calls on a machine with TensorRT; `record` writes the same to a file:
    python -c "from trtkit import record_09; record_09.record('datasets/results/h100_lesson09.json')"
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from trtkit import data, engine, half, inspector, launches, recorded, scenes, weights, yolo
from trtkit.files import replacing
from trtkit.layer_times import layer_times
from trtkit.profiling import Latency, measure

COMMAND = "python -c \"from trtkit import record_09; record_09.record('datasets/results/h100_lesson09.json')\""
WEIGHTS = "weights/yolov3_w025.safetensors"
SAMPLES = 300               # at most, of each series that is kept
NOT_RECORDED = ("not recorded yet: on a machine with TensorRT this cell measures live; to record it for others: "
                f"{COMMAND}")
INSPECTED = ["name", "type", "precision", "in_dtypes", "out_dtypes", "tactic", "nodes"]


def record(out: Path) -> None:
    """Measure on this machine's GPU and write the file that lesson 09 shows elsewhere.

    Args:
        out: of the JSON file.

    Raises:
        BackendError: no TensorRT, or no GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        body = measured(write_graphs(Path(folder)))
    recorded.write(Path(out), {"provenance": recorded.provenance(COMMAND), **body})


def find(
    graphs: dict[str, Path], results: str = "h100_lesson09.json", *, optimization_level: int = 1
) -> tuple[dict | None, str]:
    """What lesson 09 shows of a GPU, and where it is from.

    Args:
        graphs: of `write_graphs`.
        results: of a file in `datasets/results`, for machines without TensorRT.
        optimization_level: of the builds on machines with it.

    Returns:
        `measured` on this machine's GPU and "live: ...", or what was recorded and its caption; None and what to do
        about it, where there is neither.
    """
    if engine.available()["trt"] == "":
        body = measured(graphs, optimization_level=optimization_level, duration_s=1.0)
        return body, f"live: {body['engines']['fp16']['label']}"
    if not (recorded.RESULTS / results).is_file():
        return None, NOT_RECORDED
    body = recorded.load(results)
    return body, recorded.caption(body)


def write_graphs(folder: Path) -> dict[str, Path]:
    """The trained detector, width 0.25, as an FP32 and as an FP16 graph: path by "fp32", "fp16"."""
    fp32 = weights.to_graph(data.dataset_file(WEIGHTS), Path(folder) / "yolov3_w025_fp32.onnx")
    fp16 = fp32.with_name("yolov3_w025_fp16.onnx")
    with replacing(fp16) as temporary:
        onnx.save(half.to_fp16(onnx.load(fp32)), temporary)
    return {"fp32": fp32, "fp16": fp16}


def feed_of(batch: int) -> dict[str, np.ndarray]:
    """One street scene, `batch` times: (N, 3, 416, 416) float32."""
    return {"images": np.repeat(yolo.letterbox(scenes.render(0).img_hwc_u8)[0], batch, axis=0)}


def measured(
    graphs: dict[str, Path],
    *,
    optimization_level: int = 1,
    duration_s: float = 3.0,
    batches: Sequence[int] = (1, 2, 4, 8),
    layer_runs: int = 50,
) -> dict:
    """Everything that lesson 09 shows of a GPU.

    Args:
        graphs: of `write_graphs`.
        optimization_level: of the builds; at 1 each takes one to two minutes on an H100, once.
        duration_s: of each measurement.
        batches: at most 8, the largest that the engines take. The first and the last are profiled layer by layer.
        layer_runs: of each profile.

    Returns:
        JSON object. "warm_up": first times of a fresh FP16 engine. "engines": by "fp32", "fp16" the runner's "label",
        "graph" and "no_graph" (see `summary`, batch 1), "layer_ms" (by batch, by layer) and "inspector" (rows).
        "batches": rows of medians, FP16, with and without the graph. "launch": see `launches.launch_cost`, by batch.
    """
    config = engine.BuildConfig(optimization_level=optimization_level, batch=(1, 1, 8))
    body: dict = {"engines": {}, "optimization_level": optimization_level}
    with engine.kept_builder():
        plans = {name: engine.build(graph, config, backend="trt") for name, graph in graphs.items()}
    for name, plan in plans.items():
        with engine.load(plan) as runner:
            if name == "fp16":
                fresh = measure(runner, feed_of(1), warmup_ms=0, runs=100)
                body["warm_up"] = {"end_to_end": fresh.ms["end_to_end"], "compute": fresh.ms["compute"],
                                   "before": asdict(fresh.before), "after": asdict(fresh.after)}
            body["engines"][name] = _of_engine(runner, duration_s, (batches[0], batches[-1]), layer_runs)
            if name == "fp16":
                body["batches"] = [_of_batch(runner, batch, use_graph, duration_s / 2)
                                   for batch in batches for use_graph in (False, True)]
                body["launch"] = {f"batch_{b}": _launch(runner, b) for b in (batches[0], batches[-1])}
    return _plain(body)


def _of_engine(runner, duration_s: float, batches: Sequence[int], layer_runs: int) -> dict:
    found: dict = {"label": runner.label}
    for key, use_graph in (("no_graph", False), ("graph", True)):
        runner.use_graph = use_graph
        found[key] = summary(measure(runner, feed_of(1), duration_s=duration_s))
    found["layer_ms"] = {}
    for batch in batches:
        times = layer_times(runner, feed_of(batch), layer_runs)
        found["layer_ms"][str(batch)] = dict(zip(times["layer"], times["ms"], strict=True))
    found["inspector"] = inspector.frame(runner.layers())[INSPECTED].to_dict("records")
    return found


def _launch(runner, batch: int) -> dict:
    runner.infer(feed_of(batch))
    return launches.launch_cost(runner)


def _of_batch(runner, batch: int, use_graph: bool, duration_s: float) -> dict:
    runner.use_graph = use_graph
    latency = measure(runner, feed_of(batch), duration_s=duration_s)
    medians = {f"{part}_ms": latency.stats(part).p50_ms for part in latency.ms}
    return {"batch": batch, "graph": use_graph, **medians, "images_per_s": latency.images_per_s(batch),
            "bound": latency.bound, "compute_cv_percent": latency.stats("compute").cv_percent}


def summary(latency: Latency) -> dict:
    """A measurement as a JSON object: "label", "stats" and "samples" (thinned) by part, "verdict", "bound", "warnings",
    "before" and "after" (clocks)."""
    return _plain({
        "label": latency.label,
        "stats": {part: asdict(latency.stats(part)) for part in latency.ms},
        "samples": {part: thinned(latency.ms[part]) for part in ("end_to_end", "compute") if part in latency.ms},
        "verdict": latency.verdict,
        "bound": latency.bound,
        "warnings": latency.warnings,
        "before": asdict(latency.before),
        "after": asdict(latency.after),
    })


def thinned(ms: np.ndarray) -> np.ndarray:
    """At most `SAMPLES` of the times, evenly spaced, in their order."""
    return ms[np.linspace(0, len(ms) - 1, min(len(ms), SAMPLES)).astype(int)]


def _plain(value):
    """Arrays as lists and numbers rounded to 10 ns: what JSON can hold, and no more digits than were measured."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 5)
    return value
