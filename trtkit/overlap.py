"""What hides a copy? Chunks of copy, compute, copy in one queue or in two, as a timeline. Lesson 08.

One stream runs everything in order: n chunks of upload u, compute c and download d take n (u + c + d). A GPU has one
engine for copies each way beside those that compute, so with two streams chunk 2 is uploaded while chunk 1 computes;
at best the busiest engine never rests: n max(u, c, d), plus the first upload and the last download.
Source: CUDA C++ Best Practices Guide, "Asynchronous and Overlapping Transfers with Computation".
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

STEPS = ("upload", "launch", "download")


class Lane(Protocol):
    """What `device_timeline` sends chunks through: a `runner_trt.TrtRunner` whose input has been staged."""

    stream: Any             # trtkit.cuda.Stream

    def upload(self) -> None:
        """Put the copy of all inputs to the device on the stream."""
        ...

    def launch(self) -> None:
        """Put the computation on the stream."""
        ...

    def download(self) -> None:
        """Put the copy of all outputs to the host on the stream."""
        ...


@dataclass(frozen=True)
class Span:
    """One operation of one chunk; times count from the start of the whole."""

    operation: str          # of STEPS; on a CPU "prepare" and "infer"
    lane: int               # number of the stream or thread
    chunk: int
    start_ms: float
    end_ms: float


def total_ms(spans: Sequence[Span]) -> float:
    """From the start until the last operation has ended."""
    return max(s.end_ms for s in spans)


def busy_ms(spans: Sequence[Span]) -> dict[str, float]:
    """Sum of the times of each operation: what it takes however well it is hidden."""
    busy: dict[str, float] = {}
    for s in spans:
        busy[s.operation] = busy.get(s.operation, 0.0) + s.end_ms - s.start_ms
    return busy


def hidden_share(spans: Sequence[Span], hidden: str, behind: str) -> float:
    """Share of the time of one operation during which the other one ran too, in whichever lane.

    Args:
        spans: a timeline in which no two spans of `behind` run at once.
        hidden: operation, for example "upload".
        behind: operation, for example "launch".

    Returns:
        0 (they took turns) to 1 (it cost nothing).

    Raises:
        ValueError: no span of `hidden`.
    """
    asked, cover = ([s for s in spans if s.operation == name] for name in (hidden, behind))
    if not asked:
        raise ValueError(f"spans: got operations {sorted({s.operation for s in spans})}, expected {hidden!r} in them")
    both = sum(max(0.0, min(a.end_ms, b.end_ms) - max(a.start_ms, b.start_ms)) for a in asked for b in cover)
    return both / sum(a.end_ms - a.start_ms for a in asked)


def device_timeline(lanes: Sequence[Lane], chunks: int, *, rounds: int = 7) -> list[Span]:
    """Send chunks through streams in turn, and ask events when each operation began and ended.

    Args:
        lanes: one for each stream, with staged inputs; every chunk is the same data.
        chunks: at least 1; chunk i goes through lane i modulo the number of lanes.
        rounds: at least 1, after one that does not count.

    Returns:
        The spans of the round whose total was the median, in the order in which they were put on the streams.

    Raises:
        ValueError: no lane, or a number below 1.
    """
    if not lanes or chunks < 1 or rounds < 1:
        raise ValueError(f"timeline: got {len(lanes)} lanes, {chunks} chunks, {rounds} rounds, expected 1 or more each")
    from trtkit import cuda

    marks = [[cuda.Event() for _ in range(len(STEPS) + 1)] for _ in range(chunks)]
    try:
        with cuda.primary_context(), cuda.Event() as begun:
            found = [_device_round(lanes, marks, begun) for _ in range(rounds + 1)][1:]
    finally:
        for event in (e for row in marks for e in row):
            event.close()
    return sorted(found, key=total_ms)[len(found) // 2]


def _device_round(lanes: Sequence[Lane], marks: list[list], begun: Any) -> list[Span]:
    for lane in lanes:
        lane.stream.synchronize()
    begun.record(lanes[0].stream)
    for lane in lanes[1:]:
        lane.stream.wait(begun)         # no stream may be ahead of the zero that all times count from
    for chunk, row in enumerate(marks):
        lane = lanes[chunk % len(lanes)]
        row[0].record(lane.stream)
        for step, mark in zip(STEPS, row[1:], strict=True):
            getattr(lane, step)()
            mark.record(lane.stream)
    for lane in lanes:
        lane.stream.synchronize()
    return [
        Span(step, chunk % len(lanes), chunk, row[i].elapsed_ms(begun), row[i + 1].elapsed_ms(begun))
        for chunk, row in enumerate(marks) for i, step in enumerate(STEPS)
    ]


def host_timeline(
    prepare: Callable[[np.ndarray], object], infer: Callable[[np.ndarray], object], buffers: Sequence[np.ndarray],
    chunks: int,
) -> list[Span]:
    """The same with threads: one fills buffers, another computes from them. With one buffer they must take turns.

    NumPy's copies and ONNX Runtime release Python's lock (GIL) while they work, so both threads really run.

    Args:
        prepare: fills the buffer that it is given.
        infer: reads the buffer that it is given.
        buffers: of the input's shape; one for a queue where everything waits for the one before, two to overlap.
        chunks: at least 1.

    Returns:
        Two spans for each chunk; lane 0 prepares, lane 1 infers.

    Raises:
        ValueError: no buffer or no chunk.
        Exception: what `prepare` or `infer` raised.
    """
    if not buffers or chunks < 1:
        raise ValueError(f"timeline: got {len(buffers)} buffers and {chunks} chunks, expected 1 or more each")
    free, full = queue.SimpleQueue(), queue.SimpleQueue()
    for buffer in buffers:
        free.put(buffer)
    spans, begun = [], time.perf_counter()

    def timed(operation: str, lane: int, chunk: int, call: Callable, buffer: np.ndarray) -> None:
        start = time.perf_counter()
        call(buffer)
        spans.append(Span(operation, lane, chunk, (start - begun) * 1e3, (time.perf_counter() - begun) * 1e3))

    def produce() -> None:
        try:
            for chunk in range(chunks):
                if (buffer := free.get()) is None:              # the other thread has given up
                    return
                timed("prepare", 0, chunk, prepare, buffer)
                full.put(buffer)
        except BaseException as e:              # raised again below, in the thread that waits for this one
            full.put(e)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for chunk in range(chunks):
            if isinstance(buffer := full.get(), BaseException):
                raise buffer
            timed("infer", 1, chunk, infer, buffer)
            free.put(buffer)
    finally:
        free.put(None)
        producer.join()
    return sorted(spans, key=lambda s: (s.chunk, s.lane))
