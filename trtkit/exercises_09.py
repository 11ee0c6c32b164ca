"""Exercises of lesson 09, profiling: what a right answer is, and what to say to those who are stuck."""

from trtkit.check import Exercise


def _smallest_batch(kernel_us: list[float], launch_us: float) -> int:
    """Kernels take their time once per image, launches once per batch."""
    batch = 1
    while batch * sum(kernel_us) < len(kernel_us) * launch_us:
        batch += 1
    return batch


def _fusion_saves_ms(chain: list[tuple[float, float, float]], peak_tflops: float, gb_per_s: float) -> float:
    """Apart, each node keeps its own roofline; together, only the first input and the last output reach memory."""
    def least_ms(macs: float, moved: float) -> float:
        return max(2 * macs / (peak_tflops * 1e9), moved / (gb_per_s * 1e6))

    apart = sum(least_ms(macs, read + written) for macs, read, written in chain)
    return apart - least_ms(sum(node[0] for node in chain), chain[0][1] + chain[-1][2])


EXERCISES = {
    "09_smallest_batch": Exercise(
        _smallest_batch,
        [([1.0] * 100, 5.0), ([10.0, 10.0], 5.0), ([0.5, 1.5, 3.0], 4.0), ([2.0, 1.0, 1.0, 2.0], 1.5),
         ([0.3] * 75, 6.5)],
        (
            "launches are made once per batch, whatever its size; the kernels have that many images to work on",
            "the GPU needs batch * sum(kernel_us), the host len(kernel_us) * launch_us: find the first batch, from 1 "
            "on, at which the GPU's time is at least the host's",
            "return max(1, math.ceil(len(kernel_us) * launch_us / sum(kernel_us)))",
        ),
    ),
    "09_fusion_saves_ms": Exercise(
        _fusion_saves_ms,
        [([(1e9, 4e6, 4e6), (0.0, 4e6, 4e6)], 10.0, 1000.0),
         ([(1e9, 4e6, 4e6), (0.0, 4e6, 4e6), (0.0, 8e6, 4e6)], 100.0, 500.0),
         ([(5e10, 1e6, 1e6), (0.0, 1e6, 1e6)], 1.0, 100.0),
         ([(0.0, 2e6, 2e6)], 10.0, 1000.0)],
        (
            "compute the time apart and the time together, each by the roofline, and subtract",
            "apart: for each node max(2 * macs / peak, (read + written) / bandwidth), added up; together: one such "
            "maximum, with all the multiply-adds, what the first node reads and what the last one writes",
            "def least(macs, moved): return max(2 * macs / (peak_tflops * 1e9), moved / (gb_per_s * 1e6)); return "
            "sum(least(m, r + w) for m, r, w in chain) - least(sum(c[0] for c in chain), chain[0][1] + chain[-1][2])",
        ),
    ),
}
