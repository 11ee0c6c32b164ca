"""Exercises of lesson 00, setup: what a right answer is, and what to say to those who are stuck."""

from trtkit.check import Exercise


def _images_per_s(batch: int, latency_ms: float) -> float:
    return batch * 1000 / latency_ms


def _grid_boxes(size: int) -> int:
    return sum(3 * (size // stride) ** 2 for stride in (32, 16, 8))


EXERCISES = {
    "00_images_per_s": Exercise(
        _images_per_s,
        [(1, 20.0), (8, 40.0), (32, 4.29)],
        (
            "a second has 1000 ms; how many batches fit into it",
            "1000 / latency_ms batches a second, and each holds `batch` images",
            "return batch * 1000 / latency_ms",
        ),
    ),
    "00_grid_boxes": Exercise(
        _grid_boxes,
        [(416,), (320,), (608,)],
        (
            "a stride s makes a grid of size / s cells a side",
            "a grid has (size // s) ** 2 cells with three boxes each; add the strides 32, 16 and 8",
            "return sum(3 * (size // s) ** 2 for s in (32, 16, 8))",
        ),
    ),
}
