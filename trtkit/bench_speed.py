"""How fast is each contender: TensorRT's engines beside PyTorch in one process, torch.compile in another. Lesson 11."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from trtkit import bench_graphs, bench_rounds, engine, export, inspector, models, profiling
from trtkit.engine import BackendError

REPOSITORY = Path(__file__).resolve().parent.parent
GRAPHED = "torch eager fp16 channels_last + CUDA graph"
MODES = ("reduce-overhead", "default")          # of torch.compile; the first uses CUDA graphs
FOREIGN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "CPATH")        # set for this Python, and wrong for another one


def contest(
    plans: Mapping[str, Path], weights: Path, batch: int, *, rounds: int = 10, turn_s: float = 0.2,
    duration_s: float = 3.0,
) -> dict[str, dict]:
    """Measure engines and PyTorch in turn, in this process.

    Args:
        plans: of the same network, by precision.
        weights: of the network, for PyTorch.
        batch: images per run, which all engines take.
        rounds, turn_s: see `bench_rounds.interleave`.
        duration_s: of `profiling.measure`, which times each engine once more by itself, with its copies.

    Returns:
        By contender, such as "tensorrt fp16" and "torch eager fp32": see `bench_rounds.summary`, device time. Engines
        and PyTorch's FP16 have "max_rel_error" of the heads against PyTorch's FP32 of this run; engines also "label",
        "parts" (`Stats` of each part of an inference with its copies), "bound" and clocks.
    """
    import torch

    from trtkit import bench_torch, cuda

    x = bench_graphs.images(batch)
    model, images = models.load_weights(weights), torch.from_numpy(x)
    runners = {}
    with cuda.primary_context():
        try:
            for precision, plan in plans.items():
                runners[f"tensorrt {precision}"] = engine.load(plan)
            # TensorRT has taken its memory; PyTorch, which keeps what it had, comes last.
            eager = bench_torch.eager_fp32(model, images)
            reference = bench_torch.heads_of(eager)
            graphed = bench_torch.graphed_fp16(model, images)
            launches = {"torch eager fp32": eager, GRAPHED: graphed,
                        "torch eager fp32, TF32 off": bench_torch.eager_fp32(model, images, tf32=False)}
            found = {name: {"label": r.label, "max_rel_error": _errors(r, x, reference)} for name, r in runners.items()}
            # What FP16 alone costs in this network; an engine's error says something only beside it.
            found[GRAPHED] = {"max_rel_error": relative_errors(_named(bench_torch.heads_of(graphed)), reference)}
            contenders = {name: _timed(runner, cuda) for name, runner in runners.items()}
            contenders |= {name: bench_torch.timed(launch) for name, launch in launches.items()}
            times = bench_rounds.interleave(contenders, rounds=rounds, turn_s=turn_s)
            for name, rounds_ms in times.items():
                found[name] = {**bench_rounds.summary(rounds_ms, batch=batch), **found.get(name, {})}
            for name, runner in runners.items():
                found[name] |= latency(runner, x, duration_s)
            return found
        finally:
            for runner in runners.values():
                runner.close()
            eager = graphed = launches = contenders = model = None
            bench_torch.release()


def engines(plans: Mapping[str, Path], batch: int, *, rounds: int = 10, turn_s: float = 0.2) -> dict[str, dict]:
    """Measure engines in turn, without their copies.

    Args:
        plans: of detectors, by any name.
        batch: images per run, which all take.
        rounds, turn_s: see `bench_rounds.interleave`.

    Returns:
        By name: `bench_rounds.summary` of the device's time, and "label".
    """
    from trtkit import cuda

    runners, x = {}, bench_graphs.images(batch)
    with cuda.primary_context():
        try:
            for name, plan in plans.items():
                runners[name] = engine.load(plan)
            for runner in runners.values():
                for _ in range(3):          # the first enqueues, the second captures, the third replays
                    runner.infer(_feed(runner, x))
            contenders = {name: _timed(runner, cuda) for name, runner in runners.items()}
            times = bench_rounds.interleave(contenders, rounds=rounds, turn_s=turn_s)
            return {name: {**bench_rounds.summary(ms, batch=batch), "label": runners[name].label}
                    for name, ms in times.items()}
        finally:
            for runner in runners.values():
                runner.close()


def _feed(runner, x_nchw: np.ndarray) -> dict[str, np.ndarray]:
    """Images in the type that the engine takes: an FP16 interface is another than an FP16 network."""
    return {"images": x_nchw.astype(runner.inputs["images"].dtype, copy=False)}


def _named(heads: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(export.OUTPUT_NAMES, heads, strict=True))


def _errors(runner, x_nchw: np.ndarray, reference: list[np.ndarray]) -> list[float]:
    for _ in range(3):                  # the first enqueues, the second captures, the third replays what is measured
        heads = runner.infer(_feed(runner, x_nchw))
    return relative_errors(heads, reference)


def relative_errors(heads: Mapping[str, np.ndarray], reference: Sequence[np.ndarray]) -> list[float]:
    """max |a - b| / max |b| of each head, in units of its largest value.

    Args:
        heads: of a runner, by name.
        reference: of the network, in the order of `export.OUTPUT_NAMES`.

    Raises:
        BackendError: NaN or infinity among the heads.
    """
    errors = [np.abs(heads[name] - b).max() / np.abs(b).max()
              for name, b in zip(export.OUTPUT_NAMES, reference, strict=True)]
    if not np.isfinite(errors).all():
        raise BackendError(f"heads: got NaN or infinity, relative errors {errors}, expected finite numbers; an FP16 "
                           "overflow, or a replay of a graph that computed nothing")
    return [round(float(e), 6) for e in errors]


def _timed(runner, cuda):
    return lambda n: bench_rounds.queued_ms(runner.launch, cuda.Event, runner.stream, n)


def latency(runner, x_nchw: np.ndarray, duration_s: float) -> dict:
    """`profiling.measure` of one input as a JSON object: "parts", "bound", "clocks"."""
    seen = profiling.measure(runner, _feed(runner, x_nchw), duration_s=duration_s)
    parts = {part: {k: round(v, 4) for k, v in asdict(seen.stats(part)).items()} for part in seen.ms}
    return {"parts": parts, "bound": seen.bound, "latency_verdict": seen.verdict, "clocks": asdict(seen.after)}


def layers(plan: Path, *, batch: int, runs: int = 50) -> list[dict]:
    """Each layer of an engine: "name", "type", "precision", "tactic", and "ms", the median of its times."""
    with engine.load(plan) as runner:
        runner.infer(_feed(runner, bench_graphs.images(batch)))
        per_run = [[ms for _, ms in run] for run in runner.layer_times(runs)]
        names = [name for name, _ in runner.layer_times(1)[0]]
        table = inspector.frame(runner.layers()).drop_duplicates("name").set_index("name")
    medians = np.median(per_run, axis=0)
    return [{"name": name, "ms": round(float(ms), 5), **_of_layer(table, name)}
            for name, ms in zip(names, medians, strict=True)]


def _of_layer(table, name: str) -> dict:
    if name not in table.index:
        return {}
    row = table.loc[name]
    return {key: row[key] for key in ("type", "precision", "tactic") if key in row}


def compiled(python: str, width: float, classes: int, dtype: str, *, batches, rounds: int, turn_s: float,
             modes: Sequence[str] = MODES) -> Iterator[tuple[str, dict]]:
    """Measure torch.compile in a process of its own.

    Args:
        python: a Python with torch and Triton, a name on the path or a file.
        width, classes, dtype: of the network; "fp16" or "fp32".
        batches: images per run.
        rounds, turn_s: see `bench_rounds.interleave`; there is one contender.
        modes: of torch.compile.

    Yields:
        "w1 b1 fp16 reduce-overhead" and the like, and its `bench_rounds.summary` with "compile_s", "torch", "python".

    Raises:
        BackendError: no such Python, or its process failed; with the end of what it said.
    """
    found = shutil.which(python)
    if found is None:
        raise BackendError(f"compile: got Python {python!r}, expected one with torch and Triton; name it with "
                           "--compile-python")
    request = {"width": width, "classes": classes, "dtype": dtype, "size": 416, "batches": list(batches),
               "modes": list(modes), "rounds": rounds, "turn_s": turn_s}
    command = [found, "-m", "trtkit.bench_compile", json.dumps(request)]
    with tempfile.TemporaryFile("w+", errors="replace") as stderr, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=plain_environment(os.environ), cwd=REPOSITORY
    ) as process:
        for line in process.stdout:
            case = json.loads(line)
            rounds_ms = case.pop("rounds_ms")
            key = f"w{width:g} b{case['batch']} {dtype} {case['mode']}"
            yield key, {**bench_rounds.summary(rounds_ms, batch=case["batch"]), **case}
        if process.wait():
            stderr.seek(0)
            raise BackendError(f"compile: {python} ended with exit code {process.returncode}: "
                               f"{stderr.read()[-1500:].strip()}")


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for another Python: this package's source on its path, and no library that belongs to TensorRT's."""
    plain = {k: v for k, v in environment.items() if k not in FOREIGN_VARIABLES}
    folders = filter(None, plain.pop("LD_LIBRARY_PATH", "").split(os.pathsep))
    if kept := [folder for folder in folders if not any(Path(folder).glob("libnvinfer*"))]:
        plain["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    return {**plain, "PYTHONPATH": str(REPOSITORY)}
