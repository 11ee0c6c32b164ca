"""Which box shapes does a data set ask for? Anchors by k-means. Lesson 10.

Shapes (w, h) are compared as boxes with a common centre, so that large boxes do not count more than small ones:
    d(box, centre) = 1 - IoU(box, centre),      IoU = min(w, w') min(h, h') / (w h + w' h' - min(w, w') min(h, h'))
Each round gives every box to its best centre, then moves each centre to the mean or the median of its boxes, if that
fits them better than where it stands. So neither step lowers the mean IoU, and the rounds come to an end.
Source: Redmon and Farhadi 2016, "YOLO9000: Better, Faster, Stronger", section 2, "Dimension Clusters".
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clusters:
    """What k-means found.

    Attributes:
        wh: (k, 2) float32, width and height of the centres, smallest area first.
        mean_iou: of each box with its best centre, in (0, 1].
        history: mean IoU of the start and after each round, rising; the last is `mean_iou`.
    """

    wh: np.ndarray
    mean_iou: float
    history: tuple[float, ...]


def shape_iou(a_wh: np.ndarray, b_wh: np.ndarray) -> np.ndarray:
    """IoU of every shape of `a` with every shape of `b`, laid on a common centre.

    Args:
        a_wh: (N, 2) float, above 0.
        b_wh: (M, 2) float, above 0.

    Returns:
        (N, M) float in (0, 1].

    Raises:
        ValueError: another shape, or a side that is not above 0 and finite.
    """
    a, b = _check_wh("a_wh", a_wh), _check_wh("b_wh", b_wh)
    overlap = np.minimum(a[:, None, 0], b[None, :, 0]) * np.minimum(a[:, None, 1], b[None, :, 1])
    return overlap / (a.prod(1)[:, None] + b.prod(1)[None, :] - overlap)


def kmeans(wh: np.ndarray, k: int = 9, *, seed: int = 0, restarts: int = 10, rounds: int = 200) -> Clusters:
    """k shapes that fit a data set's boxes best.

    Args:
        wh: (N, 2) float, widths and heights, above 0, in pixels of the network input; at least k different ones.
        k: how many.
        seed: of the starts; the same seed gives the same anchors on every machine.
        restarts: how many random starts; the best result counts.
        rounds: at most this many per start.

    Returns:
        The anchors.

    Raises:
        ValueError: k or an option below 1, fewer different shapes than k, or a side that is not above 0 and finite.
    """
    wh = _check_wh("wh", wh).astype(np.float32).astype(np.float64)      # what differs less than that is the same shape
    if min(k, restarts, rounds) < 1:
        raise ValueError(f"k, restarts, rounds: got {k}, {restarts}, {rounds}, expected at least 1 of each")
    if (different := len(np.unique(wh, axis=0))) < k:
        raise ValueError(f"wh: got {different} different shapes, expected at least k = {k}; use a smaller k")
    rng = np.random.default_rng(seed)
    found = [_climb(wh, _spread(wh, k, rng), rounds) for _ in range(restarts)]
    centres, history = max(found, key=lambda result: result[1][-1])         # the first of equals
    return Clusters(centres[np.argsort(centres.prod(1), kind="stable")].astype(np.float32), history[-1], history)


def per_head(wh: np.ndarray, heads: int = 3) -> np.ndarray:
    """Anchors (k, 2) as `yolo.decode` takes them: (heads, k / heads, 2), the largest areas at the coarsest head."""
    wh = _check_wh("wh", wh)
    if heads < 1 or len(wh) % heads:
        raise ValueError(f"wh: got {len(wh)} anchors for {heads} heads, expected the same number for each")
    order = np.argsort(wh.prod(1), kind="stable").reshape(heads, -1)
    return wh[order[::-1]].astype(np.float32)


def _spread(wh: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k boxes as a start, each drawn with a chance that grows with its distance to those before (k-means++)."""
    centres = wh[[rng.integers(len(wh))]]
    for _ in range(k - 1):
        distance = (1 - shape_iou(wh, centres).max(1)) ** 2
        centres = np.concatenate([centres, wh[[rng.choice(len(wh), p=distance / distance.sum())]]])
    return centres


def _climb(wh: np.ndarray, centres: np.ndarray, rounds: int) -> tuple[np.ndarray, tuple[float, ...]]:
    history = [float(shape_iou(wh, centres).max(1).mean())]
    for _ in range(rounds):
        owner, moved = shape_iou(wh, centres).argmax(1), centres.copy()
        for j in range(len(centres)):
            if (mine := wh[owner == j]).size:
                # The mean alone, as in the paper, can lower the IoU: it minimizes squares, which is another distance.
                options = np.stack([centres[j], mine.mean(0), np.median(mine, 0)])
                moved[j] = options[shape_iou(mine, options).mean(0).argmax()]
        fits = float(shape_iou(wh, moved).max(1).mean())
        if fits <= history[-1]:
            break
        centres = moved
        history.append(fits)
    return centres, tuple(history)


def _check_wh(name: str, wh: np.ndarray) -> np.ndarray:
    wh = np.asarray(wh)
    if wh.ndim != 2 or wh.shape[1] != 2:
        raise ValueError(f"{name}: got shape {wh.shape}, expected (N, 2), widths and heights")
    if not (good := np.isfinite(wh) & (wh > 0)).all():
        bad = int(np.flatnonzero(~good.all(1))[0])
        raise ValueError(f"{name}[{bad}]: got {wh[bad].tolist()}, expected finite sides above 0; drop empty boxes")
    return wh.astype(np.result_type(wh, np.float32), copy=False)
