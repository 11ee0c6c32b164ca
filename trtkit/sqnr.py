"""How much is lost, and where to clip, in closed form. Lesson 02.

Symmetric codes -q .. q with step = amax / q, and an input with density p, variance 1 and mean 0. The decision between
codes k-1 and k lies at t_k = (k - 1/2) * step; past t_k, one more step is added to the output. That gives

    MSE(step) = 1 - 4 * step * sum_{k=1..q} G(t_k),        G(t) = integral over x > t of (x - t) p(x) dx

exactly: rounding inside the range and clipping outside are both in it. SQNR = -10 log10(MSE).
For many bits it tends to the textbook form step^2 / 12 * P(|x| < amax) + 2 * integral over x > amax of
(x - amax)^2 p(x) dx, whose first part is 6.02 dB a bit.
Source: Widrow and Kollar 2008, chapter 15, for the textbook form; Max 1960, table II, for its optima with few levels.
"""

import math
from collections.abc import Callable

import numpy as np

from trtkit.quant import require_bits

SCAN = np.geomspace(0.05, 20, 120)      # standard deviations; the best threshold of 2 to 8 bits lies well inside
GOLDEN = (math.sqrt(5) - 1) / 2


def _gaussian_excess(t: np.ndarray) -> np.ndarray:
    tail = 0.5 * np.array([math.erfc(v) for v in (t / math.sqrt(2)).flat]).reshape(t.shape)
    return np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) - t * tail


def _laplace_excess(t: np.ndarray) -> np.ndarray:
    return np.exp(-math.sqrt(2) * t) / math.sqrt(8)


def _uniform_excess(t: np.ndarray) -> np.ndarray:
    half_width = math.sqrt(3)                           # of the uniform density with variance 1
    return np.maximum(half_width - t, 0) ** 2 / (4 * half_width)


# G(t) for t > 0 of each density, scaled to variance 1.
EXCESS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gaussian": _gaussian_excess,
    "laplace": _laplace_excess,
    "uniform": _uniform_excess,
}


def expected_mse(distribution: str, bits: int, amax: np.ndarray | float) -> np.ndarray:
    """Mean squared error of symmetric quantization, as a share of the variance.

    Args:
        distribution: "gaussian", "laplace" or "uniform", mean 0.
        bits: 2 to 8; 8 gives codes -127 to 127.
        amax: clipping threshold in standard deviations, > 0, any shape.

    Returns:
        Same shape, float64, in [0, 1] for any sensible threshold.

    Raises:
        ValueError: another distribution, bits out of range, or a threshold that is not positive and finite.
    """
    if distribution not in EXCESS:
        raise ValueError(f"distribution: got {distribution!r}, expected one of {sorted(EXCESS)}")
    amax = np.asarray(amax, np.float64)
    if not (np.isfinite(amax) & (amax > 0)).all():
        raise ValueError(f"amax: got {amax}, expected standard deviations > 0")
    qmax = 2 ** (require_bits(bits) - 1) - 1
    step = amax / qmax
    decisions = np.multiply.outer(step, np.arange(1, qmax + 1) - 0.5)       # (..., qmax)
    return 1 - 4 * step * EXCESS[distribution](decisions).sum(-1)


def expected_sqnr_db(distribution: str, bits: int, amax: float | None = None) -> float:
    """SQNR that a large sample of a distribution will show.

    Args:
        distribution: "gaussian", "laplace" or "uniform", mean 0.
        bits: 2 to 8.
        amax: clipping threshold in standard deviations; None for the best one.

    Returns:
        Decibels.

    Raises:
        ValueError: see `expected_mse`.
    """
    amax = optimal_amax(distribution, bits) if amax is None else amax
    return float(-10 * np.log10(expected_mse(distribution, bits, amax)))


def optimal_amax(distribution: str, bits: int) -> float:
    """The clipping threshold with the least mean squared error, in standard deviations.

    Below it clipping costs more than the finer steps gain, above it the other way round. 3.92 for a Gaussian in 8 bits.

    Args:
        distribution: "gaussian", "laplace" or "uniform", mean 0.
        bits: 2 to 8.

    Returns:
        Correct to 1e-6 (a scan, then golden-section search of the closed form).

    Raises:
        ValueError: see `expected_mse`.
    """
    best = int(np.argmin(expected_mse(distribution, bits, SCAN)))
    low, high = float(SCAN[max(best - 1, 0)]), float(SCAN[min(best + 1, len(SCAN) - 1)])
    while high - low > 1e-6:
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if expected_mse(distribution, bits, left) < expected_mse(distribution, bits, right):
            high = right
        else:
            low = left
    return (low + high) / 2
