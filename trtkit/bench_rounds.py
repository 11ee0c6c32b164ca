"""Contenders that take turns, and what their times say. Lesson 09.

A GPU's clock drifts with its temperature and its neighbours. Measured one after the other, the last contender meets
another device than the first; so each gets a short turn in every round, and every second round runs backwards.
As trtexec does it, one run is queued ahead: the device never waits for the host, unless the host is slower.
This module needs the standard library alone: the Python that runs torch.compile may have nothing but torch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

WARM_UP = 3                 # runs of every turn that do not count: the other contenders had caches and clocks last
FEWEST = 5                  # runs of a turn that count, however slow they are


def queued_ms(launch: Callable[[], None], make_event: Callable, stream, runs: int) -> list[float]:
    """Device time of each of `runs` runs in a row, one queued ahead, milliseconds.

    Args:
        launch: puts one run on the stream and returns at once.
        make_event: makes what `cuda.Event` is: `record(stream)`, `synchronize()`, `elapsed_ms(since)`, `close()`.
        stream: what `record` takes.
        runs: at least 1.
    """
    pairs = [(make_event(), make_event()) for _ in range(min(runs, 2))]
    times: list[float] = []

    def collect(i: int) -> None:
        start, end = pairs[i % 2]
        end.synchronize()
        times.append(end.elapsed_ms(start))

    for i in range(runs):
        if i >= 2:
            collect(i - 2)
        start, end = pairs[i % 2]
        start.record(stream)
        launch()
        end.record(stream)
    for i in range(max(runs - 2, 0), runs):
        collect(i)
    for event in (event for pair in pairs for event in pair):
        event.close()
    return times


def host_timed(call: Callable[[], object]) -> Callable[[int], list[float]]:
    """A contender for `interleave`: n calls in a row, each timed by the host's clock, milliseconds."""
    def run(n: int) -> list[float]:
        times = []
        for _ in range(n):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        return times

    return run


def interleave(
    contenders: Mapping[str, Callable[[int], Sequence[float]]], *, rounds: int = 10, turn_s: float = 0.2
) -> dict[str, list[list[float]]]:
    """Let contenders take turns.

    Args:
        contenders: each runs n times in a row and returns the n times, milliseconds.
        rounds: how often each has a turn.
        turn_s: length of a turn; sets how many runs it has, at least 5 that count.

    Returns:
        By contender: its times, milliseconds, one list per round.

    Raises:
        ValueError: no rounds or no contenders.
    """
    if rounds < 1 or not contenders:
        raise ValueError(f"interleave: got {rounds} rounds of {len(contenders)} contenders, expected 1 or more")
    runs = {}
    for name, run in contenders.items():
        run(WARM_UP)
        start = time.perf_counter()     # not the times that it returns: a turn may do more than what is timed
        run(FEWEST)
        seconds = (time.perf_counter() - start) / FEWEST
        runs[name] = WARM_UP + max(FEWEST, round(turn_s / max(seconds, 1e-6)))
    times: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for i in range(rounds):
        for name in list(contenders)[:: -1 if i % 2 else 1]:
            times[name].append([float(ms) for ms in contenders[name](runs[name])][WARM_UP:])
    return times


def summary(rounds_ms: Sequence[Sequence[float]], *, batch: int = 1) -> dict:
    """What the times of one contender say.

    Args:
        rounds_ms: one list per round, milliseconds.
        batch: images per run.

    Returns:
        JSON object: "median_ms" of the rounds' medians, "spread_percent" (largest less smallest of them, by the
        median), "images_per_s", "rounds", "verdict" ("noisy" where the coefficient of variation exceeds 2.5 %, else
        "steady"), and all of `percentiles.Stats` over all runs.
    """
    from dataclasses import asdict

    from trtkit.percentiles import stats
    from trtkit.profiling import NOISY_CV_PERCENT

    medians = [median(r) for r in rounds_ms]
    typical = median(medians)
    every = {k: round(v, 4) for k, v in asdict(stats([ms for r in rounds_ms for ms in r])).items()}
    return {
        "median_ms": round(typical, 4),
        "spread_percent": round(100 * (max(medians) - min(medians)) / typical, 2),
        "images_per_s": round(1000 * batch / typical, 1),
        "rounds": len(medians),
        "verdict": "noisy" if every["cv_percent"] > NOISY_CV_PERCENT else "steady",
        **every,
    }
