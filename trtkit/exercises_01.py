"""Exercises of lesson 01, the cost of inference: what a right answer is, and what to say to those who are stuck."""

from trtkit.check import Exercise


def _separable_saves(c_in: int, c_out: int, k: int) -> float:
    """Per pixel: k * k per channel and then a 1x1, against all channels with all."""
    return c_in * c_out * k * k / (c_in * k * k + c_in * c_out)


def _smallest_batch(k: int, m: int, peak_tflops: float, gb_per_s: float) -> int:
    """From here on the weights are read for enough images; 0 where inputs and outputs alone are too many bytes."""
    for batch in range(1, 100_001):
        if 2 * batch * k * m / (peak_tflops * 1e12) >= 4 * (k * m + batch * (k + m)) / (gb_per_s * 1e9):
            return batch
    return 0


def _frames_per_s(layers: list[tuple[float, float]], peak_tflops: float, gb_per_s: float) -> float:
    return 1000 / sum(max(2 * macs / (peak_tflops * 1e9), moved / (gb_per_s * 1e6)) for macs, moved in layers)


EXERCISES = {
    "01_separable_saves": Exercise(
        _separable_saves,
        [(256, 512, 3), (32, 64, 3), (64, 64, 5), (1024, 1024, 1)],
        (
            "count the multiply-adds of one output pixel in both: width and height cancel",
            "depthwise: each of the c_in channels has its own k x k window and nothing is added up over channels; then "
            "the 1 x 1 convolution from c_in to c_out",
            "return c_in * c_out * k**2 / (c_in * k**2 + c_in * c_out)",
        ),
    ),
    "01_smallest_batch": Exercise(
        _smallest_batch,
        [(4096, 4096, 1.0, 100.0), (4096, 4096, 0.2, 30.0), (25088, 4096, 8.1, 320.0), (1000, 10, 0.1, 100.0),
         (64, 64, 67.0, 3350.0)],
        (
            "write both times of the roofline for a batch of N, and ask when the first reaches the second",
            "2 N k m / P >= 4 (k m + N k + N m) / W; the weights k m are read once, whatever N is. For large N both "
            "sides grow alike, so there may be no such N",
            "gain = 2 * k * m / (peak_tflops * 1e12) - 4 * (k + m) / (gb_per_s * 1e9) is what one more image brings; "
            "if gain <= 0 return 0, else return max(1, math.ceil(4 * k * m / (gb_per_s * 1e9) / gain))",
        ),
    ),
    "01_frames_per_s": Exercise(
        _frames_per_s,
        [([(1e9, 1e6), (1e6, 5e7)], 1.0, 100.0), ([(5e9, 1e7)] * 3, 11.3, 136.5),
         ([(0.0, 8e6), (2e9, 4e6)], 8.1, 320.0)],
        (
            "a frame takes the sum of the layers' least times",
            "each layer takes the longer of its two times; adding up first and taking the maximum then is too "
            "optimistic, since a layer's memory cannot be waited for while another computes",
            "return 1000 / sum(max(2 * m / (peak_tflops * 1e9), b / (gb_per_s * 1e6)) for m, b in layers)",
        ),
    ),
}
