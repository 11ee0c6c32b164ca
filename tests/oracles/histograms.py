"""Seeded histograms of |x|, 2,048 bins up to the maximum, on which the calibrators are compared."""

import numpy as np

SAMPLES = 200_000


def _draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
    n = SAMPLES
    return {
        "gauss": rng.normal(size=n),
        "laplace": rng.laplace(size=n),
        "uniform": rng.uniform(-1, 1, n),
        "relu": np.maximum(rng.normal(size=n), 0),
        "leaky_relu": np.where((z := rng.normal(size=n)) > 0, z, 0.1 * z),
        "student_t3": rng.standard_t(3, n),
        "one_outlier": np.append(rng.normal(size=n - 1), 50.0),
        "lognormal": rng.lognormal(0, 1, n),
        "exponential": rng.exponential(size=n),
        "bimodal": rng.normal(np.where(rng.random(n) < 0.02, 12, 0), 1),
        "far_from_zero": rng.normal(3, 0.5, n),
        "sparse": np.where(rng.random(n) < 0.001, rng.normal(0, 5, n), 0),
        "sigmoid": 1 / (1 + np.exp(-rng.normal(0, 3, n))),
        "silu": (s := rng.normal(0, 2, n)) / (1 + np.exp(-s)),
    }


def histograms(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(counts int64 (2048,), edges float32 (2049,)) by name of the distribution."""
    found = {}
    for name, x in _draw(np.random.default_rng(seed)).items():
        magnitude = np.abs(x.astype(np.float32))
        found[name] = np.histogram(magnitude, 2048, (0, magnitude.max()))
    return found
