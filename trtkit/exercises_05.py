"""Exercises of lesson 05, ONNX export: what a right answer is, and what to say to those who are stuck."""

import numpy as np

from trtkit.check import Exercise


def _fold(w: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray,
          eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a convolution that has taken the BatchNorm behind it into itself."""
    factor = gamma / np.sqrt(var + eps)
    return np.einsum("oikl,o->oikl", w, factor), beta - mean * factor


def _case(seed: int, c_out: int, c_in: int, eps: float) -> tuple:
    rng = np.random.default_rng(seed)
    gamma, beta, mean = (rng.normal(m, s, c_out) for m, s in ((1, 0.2), (0, 0.5), (0, 1)))
    return rng.normal(size=(c_out, c_in, 3, 3)), gamma, beta, mean, rng.uniform(0.1, 2, c_out), eps


def _expand(ops: list[str], reads: list[str], bodies: dict[str, list[str]]) -> list[str]:
    """Operators after inlining every function that the target does not read."""
    found = list(ops)
    while todo := [i for i, op in enumerate(found) if op not in reads and op in bodies]:
        found[todo[0]:todo[0] + 1] = bodies[found[todo[0]]]
    return found


_BODIES = {"Gelu": ["Div", "Erf", "Add", "Mul", "CastLike", "Mul"], "CastLike": ["Cast"],
           "Mish": ["Softplus", "Tanh", "Mul"], "Softplus": ["Exp", "Add", "Log"]}

EXERCISES = {
    "05_fold": Exercise(
        _fold,
        [_case(0, 4, 3, 1e-5), _case(1, 2, 5, 1e-3), _case(2, 3, 1, 0.5)],
        (
            "BatchNorm computes gamma * (y - mean) / sqrt(var + eps) + beta; put y = w * x into it, and sort",
            "one factor for each output channel: factor = gamma / np.sqrt(var + eps). It multiplies the weights of its "
            "channel, so give it the shape (C_out, 1, 1, 1)",
            "factor = gamma / np.sqrt(var + eps); return w * factor[:, None, None, None], beta - mean * factor",
        ),
    ),
    "05_expand": Exercise(
        _expand,
        [(["Conv", "Gelu", "Conv"], ["Conv", "Div", "Erf", "Add", "Mul", "Cast"], _BODIES),
         (["Conv", "Gelu"], ["Conv", "Gelu"], _BODIES),
         (["Mish", "Det", "Mish"], ["Tanh", "Mul", "Exp", "Add", "Log"], _BODIES),
         (["Mish"], ["Softplus", "Tanh", "Mul"], _BODIES),
         ([], ["Conv"], _BODIES)],
        (
            "go through the list; what is read, or has no body, is taken as it is",
            "a body may hold functions that the target does not read either, so expand the body in the same way",
            "done = []; for op in ops: done += expand(bodies[op], reads, bodies) if op not in reads and op in bodies "
            "else [op]; return done",
        ),
    ),
}
