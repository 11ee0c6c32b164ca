"""How fast, and how sure? Percentiles, noise, and where the time of one inference goes. Lesson 09.

The definitions are trtexec's, so that numbers can be compared; those of percentiles are in `percentiles`.
    compute         between two events on the GPU, around the enqueue; h2d and d2h between events around the copies
    enqueue         host clock around the enqueue
Unlike trtexec, which queues one inference ahead, `measure` runs one after the other, as a caller of `infer` does.
Source: TensorRT, samples/common/sampleReporting.cpp.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trtkit import clocks
from trtkit.engine import Runner
from trtkit.percentiles import Stats, percentile, stats

NOISY_CV_PERCENT = 2.5
ENQUEUE_BOUND = 0.8         # trtexec warns when the median enqueue takes more than this share of the median compute


@dataclass(frozen=True)
class Latency:
    """What `measure` saw.

    Attributes:
        label: the runner's.
        ms: (runs,) milliseconds by part. "end_to_end" is there always: host clock, from the arrays that go in to the
            arrays that come out. A GPU runner has also "stage" and "fetch" (host copies into and out of pinned
            memory), "h2d", "compute", "d2h" (GPU events) and "enqueue" (host clock around launching the compute).
        before, after: the GPU's clock, after the warm-up and right after the last run.
    """

    label: str
    ms: Mapping[str, np.ndarray]
    before: clocks.Clocks
    after: clocks.Clocks

    def stats(self, part: str = "end_to_end") -> Stats:
        """Figures of one part.

        Raises:
            ValueError: the runner has no such part.
        """
        if part not in self.ms:
            raise ValueError(f"part: got {part!r}, expected one of {list(self.ms)} of {self.label}")
        return stats(self.ms[part])

    @property
    def judged(self) -> str:
        """The part whose noise counts: the compute where a GPU did it, else everything."""
        return "compute" if "compute" in self.ms else "end_to_end"

    @property
    def verdict(self) -> Literal["steady", "noisy"]:
        """Whether the CV of the judged part is at most 2.5 %."""
        return "noisy" if self.stats(self.judged).cv_percent > NOISY_CV_PERCENT else "steady"

    @property
    def bound(self) -> Literal["host", "copy", "gpu"] | None:
        """What a faster one of would help: the host that enqueues, the copies, or the GPU; None without a GPU."""
        if "compute" not in self.ms:
            return None
        median = {part: self.stats(part).p50_ms for part in ("enqueue", "h2d", "compute", "d2h")}
        if median["enqueue"] > ENQUEUE_BOUND * median["compute"]:
            return "host"
        return "copy" if max(median["h2d"], median["d2h"]) >= median["compute"] else "gpu"

    @property
    def warnings(self) -> list[str]:
        """What trtexec would warn of, one sentence each."""
        found = []
        if self.verdict == "noisy":
            found.append(f"{self.judged} is noisy: CV {self.stats(self.judged).cv_percent:.1f} %, expected at most "
                         f"{NOISY_CV_PERCENT} %; lock the clocks, stop other work, or measure longer")
        if "compute" not in self.ms:
            return found
        median = {part: self.stats(part).p50_ms for part in ("enqueue", "h2d", "compute", "d2h")}
        if self.bound == "host":
            found.append(f"enqueue takes {median['enqueue']:.3f} ms, compute {median['compute']:.3f} ms: the GPU waits "
                         "for the host; use a CUDA graph, or a larger batch")
        found += [f"{part} takes {median[part]:.3f} ms, compute {median['compute']:.3f} ms: the copies cost more than "
                  "the network; send fewer bytes, or overlap the copies with the compute"
                  for part in ("h2d", "d2h") if median[part] >= median["compute"]]
        return found

    def images_per_s(self, batch: int) -> float:
        """Throughput of one inference after the other; overlapping copies with compute would give more."""
        return 1000 * batch / self.stats().mean_ms


def measure(
    runner: Runner,
    feed: dict[str, np.ndarray],
    *,
    warmup_ms: float = 200,
    duration_s: float = 3.0,
    min_runs: int = 10,
    runs: int | None = None,
    nvml: object | None = None,
) -> Latency:
    """Time a runner on one feed.

    Args:
        runner: see `engine.Runner`; one with `launch` is a GPU's, and is timed in parts.
        feed: of `runner.infer`.
        warmup_ms: run for this long first, untimed; 0 to see the warm-up itself.
        duration_s: then for at least this long,
        min_runs: and at least so often,
        runs: or exactly so often.
        nvml: NVML's Python module; by default the one that is installed, if any.

    Raises:
        ValueError: a negative time, or no run at all; and whatever `runner.infer` says about the feed.
    """
    if warmup_ms < 0 or duration_s < 0 or min_runs < 1 or (runs is not None and runs < 1):
        raise ValueError(f"measure: got warmup_ms={warmup_ms}, duration_s={duration_s}, min_runs={min_runs}, "
                         f"runs={runs}, expected times of at least 0 and at least 1 run")
    if not hasattr(runner, "launch"):
        return _measure(runner.label, lambda: _timed_infer(runner, feed), warmup_ms, duration_s, min_runs, runs, nvml)
    from trtkit import cuda  # needs PyCUDA

    with cuda.primary_context(), cuda.Event() as a, cuda.Event() as b, cuda.Event() as c, cuda.Event() as d:
        return _measure(runner.label, lambda: _timed_parts(runner, feed, (a, b, c, d)),
                        warmup_ms, duration_s, min_runs, runs, nvml)


def _measure(label: str, run: Callable[[], dict[str, float]], warmup_ms: float, duration_s: float, min_runs: int,
             runs: int | None, nvml: object | None) -> Latency:
    stop = time.perf_counter() + warmup_ms / 1000
    while time.perf_counter() < stop:
        run()
    before = clocks.read(nvml)
    if warmup_ms:
        run()                                           # NVML took a while, and the caches are cold again
    samples: list[dict[str, float]] = []
    stop = time.perf_counter() + duration_s
    while len(samples) < (runs or min_runs) or (runs is None and time.perf_counter() < stop):
        samples.append(run())
    after = clocks.read(nvml)
    return Latency(label, {part: np.array([s[part] for s in samples]) for part in samples[0]}, before, after)


def _timed_infer(runner: Runner, feed: dict[str, np.ndarray]) -> dict[str, float]:
    start = time.perf_counter()
    runner.infer(feed)
    return {"end_to_end": 1000 * (time.perf_counter() - start)}


def _timed_parts(runner, feed: dict[str, np.ndarray], events: Sequence) -> dict[str, float]:
    """The steps of `TrtRunner.infer`, which overlaps some of them, one after the other with a mark between any two."""
    uploading, launching, downloading, done = events
    start = time.perf_counter()
    runner.stage(feed)
    staged = time.perf_counter()
    uploading.record(runner.stream)
    runner.upload()
    launching.record(runner.stream)
    enqueuing = time.perf_counter()
    runner.launch()
    enqueued = time.perf_counter()
    downloading.record(runner.stream)
    runner.download()
    done.record(runner.stream)
    runner.stream.synchronize()
    waited = time.perf_counter()
    runner.fetch()
    end = time.perf_counter()
    return {
        "end_to_end": 1000 * (end - start),
        "stage": 1000 * (staged - start),
        "h2d": launching.elapsed_ms(uploading),
        "compute": downloading.elapsed_ms(launching),
        "d2h": done.elapsed_ms(downloading),
        "fetch": 1000 * (end - waited),
        "enqueue": 1000 * (enqueued - enqueuing),
    }


@dataclass(frozen=True)
class Comparison:
    """Contenders of one run: `ms` holds the median of each round, (rounds,) milliseconds by name."""

    ms: Mapping[str, np.ndarray]

    @property
    def median_ms(self) -> dict[str, float]:
        """Median over the rounds, by name."""
        return {name: percentile(ms, 50) for name, ms in self.ms.items()}

    def ratio(self, name: str, to: str) -> float:
        """Median over the rounds of time of `name` / time of `to`: what slows a whole round cancels."""
        return percentile(self.ms[name] / self.ms[to], 50)


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 10, *, runs: int = 1, warmup: int = 1
) -> Comparison:
    """Time functions in turn, in one order and then in the other, so that a busy machine hurts all alike.

    Args:
        contenders: functions without arguments, by name.
        rounds: in each, every contender has one turn.
        runs: calls in a turn; their median is the round's time.
        warmup: untimed calls of each beforehand.

    Raises:
        ValueError: no contender, round or run.
    """
    if not contenders or rounds < 1 or runs < 1 or warmup < 0:
        raise ValueError(f"interleaved: got {len(contenders)} contenders, rounds={rounds}, runs={runs}, "
                         f"warmup={warmup}, expected at least 1 of each, and a warm-up of at least 0")
    for call in contenders.values():
        for _ in range(warmup):
            call()
    ms: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                contenders[name]()
                times.append(1000 * (time.perf_counter() - start))
            ms[name].append(percentile(times, 50))
    return Comparison({name: np.array(values) for name, values in ms.items()})
