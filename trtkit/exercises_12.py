"""Exercises of lesson 12, real-time detection: what a right answer is, and what to say to those who are stuck."""

import math

from trtkit.check import Exercise


def _frames_dropped(source_fps: float, frame_ms: list[float]) -> int:
    """The newest frame that has arrived when one is done is next; those between the two are lost."""
    now = lost = current = 0
    for ms in frame_ms:
        now = max(now, current * 1000 / source_fps) + ms
        newest = max(math.floor(now * source_fps / 1000), current + 1)
        lost, current = lost + newest - current - 1, newest
    return lost


def _amdahl(infer_ms: float, other_ms: float, infer_speedup: float) -> float:
    return (infer_ms + other_ms) / (infer_ms / infer_speedup + other_ms)


EXERCISES = {
    "12_frames_dropped": Exercise(
        _frames_dropped,
        [(25.0, [30.0, 39.0]), (25.0, [41.0, 90.0, 10.0]), (30.0, [101.0] * 5),
         (25.0, [41.0] * 100), (25.0, [79.0] * 100), (20.0, [10.0, 120.0, 10.0, 10.0])],
        (
            "keep a clock: when is this frame done, and which is the newest that has arrived by then?",
            "a frame starts at the later of two times: the one before it is done, or it has arrived, at k * 1000 / fps",
            "now = lost = current = 0; for ms in frame_ms: now = max(now, current * 1000 / source_fps) + ms; newest = "
            "max(int(now * source_fps / 1000), current + 1); lost += newest - current - 1; current = newest; at the "
            "end: return lost",
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
