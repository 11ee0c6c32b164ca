"""Exercises of lesson 12, real-time detection: what a right answer is, and what to say to those who are stuck."""

import math

from trtkit.check import Exercise


def _frames_dropped(source_fps: float, frame_ms: list[float]) -> int:
    """Of the frames that arrive while one is processed the newest waits and is next; the others are lost."""
    return sum(max(0, math.floor(ms * source_fps / 1000) - 1) for ms in frame_ms)


def _amdahl(infer_ms: float, other_ms: float, infer_speedup: float) -> float:
    return (infer_ms + other_ms) / (infer_ms / infer_speedup + other_ms)


EXERCISES = {
    "12_frames_dropped": Exercise(
        _frames_dropped,
        [(25.0, [30.0, 39.0]), (25.0, [41.0, 90.0, 10.0]), (30.0, [100.0] * 5)],
        (
            "count, for each processing time by itself, the frames that arrive meanwhile",
            "during t ms floor(t * fps / 1000) frames arrive; if there are any, the newest of them is not lost",
            "return sum(max(0, int(ms * source_fps / 1000) - 1) for ms in frame_ms)",
        ),
    ),
    "12_amdahl": Exercise(
        _amdahl,
        [(20.0, 10.0, 2.0), (25.0, 5.0, 4.0), (10.0, 10.0, 1e9)],
        (
            "old total over new total; only one part of the total changes",
            "the old total is infer_ms + other_ms; in the new one inference takes infer_ms / infer_speedup",
            "return (infer_ms + other_ms) / (infer_ms / infer_speedup + other_ms)",
        ),
    ),
}
