"""`trtkit bench`: what TensorRT reaches on this GPU, recorded with everything that the numbers depend on. Lesson 11.

A GPU is lent for minutes, and builds take longer than measurements. So every step writes its result into the file as
soon as it has it; a run that was cut off keeps what it has, and the next one, asked for other parts, adds to the file.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trtkit import bench_graphs, cache, engine, recorded
from trtkit.engine import BackendError, BuildConfig

PARTS = ("build", "speed", "layers", "compile", "accuracy", "overhead", "memory", "processes")
BATCHES = (1, 32, 8)                # in the order of interest, should the time not last
URGENT = ("fp16", "int8", "fp32")   # likewise
WHAT = ("YOLOv3-416, width 1.0 (80 classes, random weights) and 0.25 (6 classes, trained), as TensorRT engines and in "
        "PyTorch; times are of the device, milliseconds, unless a name says otherwise")
SAME = ("gpu", "driver", "versions")        # without these in common, results do not belong into one file


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        out: the results' folder.
        work: a folder for graphs.
        parts: of `PARTS`.
        widths, precisions, batches: of the networks.
        level: `BuildConfig.optimization_level` of their engines.
        jobs: builds at the same time.
        rounds, turn_s: see `bench_rounds.interleave`.
        cycles: of the part "memory".
        compile_python: a Python with torch and Triton.
        command, commit: see `recorded.provenance`.
    """

    out: Path
    work: Path
    parts: Sequence[str] = PARTS
    widths: Sequence[float] = bench_graphs.WIDTHS
    precisions: Sequence[str] = bench_graphs.PRECISIONS
    batches: Sequence[int] = BATCHES
    level: int = 3
    jobs: int = 4
    rounds: int = 10
    turn_s: float = 0.2
    cycles: int = 50
    compile_python: str = "python3.12"
    command: str = "python -m trtkit bench --record"
    commit: str = ""


def run(settings: Settings, say: Callable[[str], None]) -> Path:
    """Measure, and write each result as soon as it is there.

    Args:
        settings: see there.
        say: gets a line per step.

    Returns:
        Path of the results' file.

    Raises:
        ValueError: unknown parts, or the file there is of another GPU, driver or of other versions.
        BackendError: no TensorRT or no GPU; or steps failed: all others were done, and their results written.
    """
    if unknown := set(settings.parts) - set(PARTS):
        raise ValueError(f"only: got {sorted(unknown)}, expected some of {PARTS}")
    if problem := engine.available()["trt"]:
        raise BackendError(f"bench: {problem}; it measures TensorRT and needs a GPU, see README.md")
    made_from = recorded.provenance(settings.command, commit=settings.commit)
    path = Path(settings.out) / recorded.file_name(made_from)
    merged(path, made_from)                     # refuses before the device's time is spent
    failed = []
    for part in [p for p in PARTS if p in settings.parts]:
        for key, step in _steps(part, settings, say):
            try:
                for name, result in step():
                    recorded.write(path, add(merged(path, made_from), part, name, result, made_from))
                    say(f"{part} {name}: {brief(result)}")
            except Exception as e:              # one step that fails must not cost the others, nor what they measured
                failed.append(f"{part} {key}")
                say(f"{part} {key} FAILED: {type(e).__name__}: {e}\n{traceback.format_exc()}")
    if failed:
        raise BackendError(f"bench: {len(failed)} steps failed: {', '.join(failed)}; the others are in {path}")
    return path


def merged(path: Path, made_from: dict) -> dict:
    """The results so far; a new file's where there is none.

    Raises:
        ValueError: they are of another GPU, driver or of other versions.
    """
    if not path.is_file():
        return {"what": WHAT, "provenance": made_from}
    body = json.loads(path.read_text())
    for fact in SAME:
        if body["provenance"][fact] != made_from[fact]:
            raise ValueError(f"results: {path} was measured with {fact} {body['provenance'][fact]}, expected "
                             f"{made_from[fact]}; write to another folder with --out, or delete the file")
    return body


def add(body: dict, part: str, name: str, result: dict, made_from: dict) -> dict:
    """Results with one more, which says by which command and commit it came, since a file may be of several."""
    stamp = {key: made_from[key] for key in ("command", "commit", "date")}
    return {**body, part: {**body.get(part, {}), name: {**result, "measured": stamp}}}


def brief(result: dict) -> str:
    """A result on one line, for whoever waits."""
    flat = {k: v["median_ms"] if isinstance(v, dict) and "median_ms" in v else v
            for k, v in result.get("contenders", result).items()}
    return ", ".join(f"{k} {v}" for k, v in flat.items() if isinstance(v, int | float | str))[:400]


Step = Callable[[], Iterator[tuple[str, dict]]]


def _steps(part: str, s: Settings, say: Callable[[str], None]) -> Iterator[tuple[str, Step]]:
    """The steps of a part: what each is called, and a function that yields its results by name."""
    if part == "build":
        yield "engines", partial(_build, s, say)
    for width in s.widths:
        if part == "speed":
            for batch in s.batches:
                yield f"w{width:g} b{batch}", partial(_speed, s, width, batch)
        elif part == "layers":
            for precision in s.precisions:
                yield f"w{width:g} {precision}", partial(_layers, s, width, precision)
        elif part == "compile":
            for dtype in ("fp16", "fp32"):
                yield f"w{width:g} {dtype}", partial(_compile, s, width, dtype)
        elif part == "accuracy":
            yield f"w{width:g}", partial(_accuracy, s, width)
        elif part == "overhead":
            yield f"w{width:g}", partial(_overhead, s, width)
    if part == "memory":
        yield part, partial(_memory, s)
    elif part == "processes":
        yield part, partial(_processes, s)


def _plan(s: Settings, width: float, precision: str, batch: int) -> Path:
    """An engine for one batch size; built, unless the cache has it."""
    graph = s.work / f"w{width:g}_{precision}.onnx"
    if not graph.is_file():
        bench_graphs.graph(width, precision, s.work)
    config = BuildConfig(batch=(batch,) * 3, optimization_level=s.level)
    return engine.build(graph, config, backend="trt")


def _plans(s: Settings, width: float, batch: int) -> tuple[dict[str, Path], list[str]]:
    """Engines by precision; those that cannot be built are named in the list, and leave the others to be measured."""
    plans, problems = {}, []
    for precision in s.precisions:
        try:
            plans[precision] = _plan(s, width, precision, batch)
        except BackendError as e:
            problems.append(f"{precision}: {e}")
    return plans, problems


def _report(problems: Sequence[str]) -> None:
    if problems:
        raise BackendError("; ".join(problems))


def _build(s: Settings, say: Callable[[str], None]) -> Iterator[tuple[str, dict]]:
    """All engines, several at once: each build is a process of its own, which uses one core most of the time."""
    for width in s.widths:
        for precision in s.precisions:
            say(f"graph {bench_graphs.graph(width, precision, s.work).name}")
    wanted = [(w, p, b) for b in s.batches for w in s.widths for p in sorted(s.precisions, key=URGENT.index)]
    problems = []
    pool = ThreadPoolExecutor(s.jobs)
    try:
        building = {pool.submit(_plan, s, *key): "w{:g} {} b{}".format(*key) for key in wanted}
        for future in as_completed(building):
            try:
                plan = future.result()
            except BackendError as e:
                problems.append(f"{building[future]}: {e}")
                continue
            facts = cache.sidecar(plan)
            yield building[future], {"build_s": facts["build_s"], "level": s.level, "layers": len(facts["layers"]),
                                     "plan_mib": round(plan.stat().st_size / 2**20, 1)}
    finally:
        pool.shutdown(cancel_futures=True)      # after Ctrl-C no further build shall begin
    _report(problems)


def _speed(s: Settings, width: float, batch: int) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_speed

    plans, problems = _plans(s, width, batch)
    weights = bench_graphs.weights_file(width, s.work)
    contenders = bench_speed.contest(plans, weights, batch, rounds=s.rounds, turn_s=s.turn_s)
    yield f"w{width:g} b{batch}", {"contenders": contenders}
    _report(problems)


def _layers(s: Settings, width: float, precision: str) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_speed

    batch = s.batches[0]
    rows = bench_speed.layers(_plan(s, width, precision, batch), batch=batch)
    yield f"w{width:g} {precision} b{batch}", {"sum_ms": round(sum(r["ms"] for r in rows), 4), "layers": rows}


def _compile(s: Settings, width: float, dtype: str) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_speed, models

    classes = models.load_weights(bench_graphs.weights_file(width, s.work)).num_classes
    yield from bench_speed.compiled(s.compile_python, width, classes, dtype, batches=s.batches, rounds=s.rounds,
                                    turn_s=s.turn_s)


def _accuracy(s: Settings, width: float) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_accuracy

    plans, problems = _plans(s, width, 1)
    for precision, result in bench_accuracy.heads(plans, bench_graphs.weights_file(width, s.work)).items():
        yield f"heads w{width:g} {precision}", result
    if width == 0.25:                           # the trained one
        for precision, result in bench_accuracy.mean_average_precision(plans):
            yield f"mAP w{width:g} {precision}", result
    _report(problems)


def _overhead(s: Settings, width: float) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_runtime

    precision = "fp16" if "fp16" in s.precisions else s.precisions[0]
    yield f"w{width:g} {precision} b1", bench_runtime.overhead(_plan(s, width, precision, 1), rounds=s.rounds,
                                                               turn_s=s.turn_s)


def _memory(s: Settings) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_runtime

    yield "cycles", bench_runtime.memory(s.work, cycles=s.cycles, jobs=s.jobs)


def _processes(s: Settings) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_runtime

    yield "one plan", bench_runtime.processes(s.work)
