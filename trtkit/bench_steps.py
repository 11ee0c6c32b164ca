"""The steps of `trtkit bench`, part by part: which engines each needs, and what it measures. Lesson 11."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trtkit import bench_graphs, cache, engine
from trtkit.engine import BackendError, BuildConfig

PARTS = ("build", "speed", "layers", "compile", "accuracy", "overhead", "memory", "processes")
BATCHES = (1, 32, 8)                # in the order of interest, should the time not last
URGENT = ("fp16", "int8", "fp32")   # likewise


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
    jobs: int = 2
    rounds: int = 10
    turn_s: float = 0.2
    cycles: int = 50
    compile_python: str = "python3.12"
    command: str = "python -m trtkit bench --record"
    commit: str = ""


Step = Callable[[], Iterator[tuple[str, dict]]]


def steps(part: str, s: Settings, say: Callable[[str], None]) -> Iterator[tuple[str, Step]]:
    """The steps of a part, in the order of interest.

    Yields:
        What a step is called, and a function that does it and yields its results by name, JSON objects.
    """
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
            for dtype in (p for p in ("fp16", "fp32") if p in s.precisions):
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
    """All engines, few at once: a build keeps one core busy, and the more of them want the GPU now and then, the longer
    each waits (ten together took twice the time of ten in a row on an H100)."""
    for width in s.widths:
        for precision in s.precisions:
            say(f"graph {bench_graphs.graph(width, precision, s.work).name}")
    wanted = [(w, p, b) for b in s.batches for w in s.widths for p in sorted(s.precisions, key=URGENT.index)]
    problems = []
    with ExitStack() as stack:
        stack.enter_context(engine.kept_builder())
        pool = ThreadPoolExecutor(s.jobs)
        stack.callback(pool.shutdown, cancel_futures=True)      # after Ctrl-C no further build shall begin
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
    _report(problems)


def _speed(s: Settings, width: float, batch: int) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_speed

    plans, problems = _plans(s, width, batch)
    weights = bench_graphs.weights_file(width, s.work)
    contenders = bench_speed.contest(plans, weights, batch, rounds=s.rounds, turn_s=s.turn_s)
    yield f"w{width:g} b{batch}", {"level": s.level, "contenders": contenders}
    _report(problems)


def _layers(s: Settings, width: float, precision: str) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_speed

    batch = s.batches[0]
    rows = bench_speed.layers(_plan(s, width, precision, batch), batch=batch)
    total_ms = round(sum(r["ms"] for r in rows), 4)
    yield f"w{width:g} {precision} b{batch}", {"level": s.level, "sum_ms": total_ms, "layers": rows}


def _compile(s: Settings, width: float, dtype: str) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_speed, models

    classes = models.load_weights(bench_graphs.weights_file(width, s.work)).num_classes
    yield from bench_speed.compiled(s.compile_python, width, classes, dtype, batches=s.batches, rounds=s.rounds,
                                    turn_s=s.turn_s)


def _accuracy(s: Settings, width: float) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_accuracy

    plans, problems = _plans(s, width, 1)
    for precision, result in bench_accuracy.heads(plans, bench_graphs.weights_file(width, s.work)).items():
        yield f"heads w{width:g} {precision}", {"level": s.level, **result}
    if width == 0.25:                           # the trained one
        for precision, result in bench_accuracy.mean_average_precision(plans):
            yield f"mAP w{width:g} {precision}", {"level": s.level, **result}
    _report(problems)


def _overhead(s: Settings, width: float) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_runtime

    precision = "fp16" if "fp16" in s.precisions else s.precisions[0]
    result = bench_runtime.overhead(_plan(s, width, precision, 1), rounds=s.rounds, turn_s=s.turn_s)
    yield f"w{width:g} {precision} b1", {"level": s.level, **result}


def _memory(s: Settings) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_runtime

    yield "cycles", bench_runtime.memory(s.work, cycles=s.cycles, jobs=s.jobs)


def _processes(s: Settings) -> Iterator[tuple[str, dict]]:
    from trtkit import bench_runtime

    yield "one plan", bench_runtime.processes(s.work)
