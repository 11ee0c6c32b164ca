"""Inputs of `trtkit.small_net`, and how the tests build it."""

import numpy as np

from trtkit import engine
from trtkit.small_net import SIDE

BATCH = (1, 2, 4)
CONFIG = engine.BuildConfig(batch=BATCH, optimization_level=1)


def batch(n: int, seed: int = 0) -> np.ndarray:
    """(n, 3, 32, 32) float32 in [0, 1]."""
    return np.random.default_rng(seed).random((n, 3, SIDE, SIDE), np.float32)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())
