"""From calibration images to a table of ranges. Lesson 03.

A range that is too wide wastes codes, one that is too narrow clips. The network runs over the calibration images once,
`collect` keeps a histogram of |x| of each tensor, and `ranges` reads every threshold off it:
    histogram    what values a tensor takes          calib_table  the ranges as JSON, with the hashes they belong to
    estimators   which threshold loses least         calib_state  going on after an interruption
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from trtkit.calib_state import State, load_state, save_state
from trtkit.calib_table import Range, add_to_hash, images_sha256, load_table, save_table
from trtkit.estimators import ESTIMATORS, amax_entropy, amax_max, amax_mse, amax_percentile
from trtkit.histogram import BINS, Histogram
from trtkit.progress import bar

__all__ = [
    "BINS", "ESTIMATORS", "Calibration", "Histogram", "Range", "amax_entropy", "amax_max", "amax_mse",
    "amax_percentile", "collect", "images_sha256", "load_table", "ranges", "save_table",
]  # fmt: skip


class Calibration(dict[str, Histogram]):
    """Histograms by tensor name, and what they are of: `images` how many, `sha256` of the calibration set."""

    def __init__(self, histograms: dict[str, Histogram], images: int, sha256: str):
        super().__init__(histograms)
        self.images = images
        self.sha256 = sha256


def collect(
    infer: Callable[[np.ndarray], dict[str, np.ndarray]],
    batches: Iterable[np.ndarray],
    *,
    state: Path | None = None,
    graph_sha256: str = "",
    save_every: int = 10,
    progress: bool = True,
) -> Calibration:
    """Histograms of every tensor that `infer` returns. One batch of activations is in memory at a time.

    Memory does not grow with the number of images if `batches` is a generator; a list holds them all.

    Args:
        infer: a batch to its activations by name, for example a runner of `export.expose_tensors`' graph.
        batches: inputs of `infer`, (N, ...) float each.
        state: a file to save to every `save_every` batches and at the end, and to go on from: batches that it has
            seen are read and hashed, but not inferred again. The result is that of a run without interruption.
        graph_sha256: `files.sha256` of the graph behind `infer`; needed with `state`.
        save_every: batches between two saves, at least 1.
        progress: show a bar.

    Returns:
        One histogram per name, with the number and the hash of the images.

    Raises:
        ValueError: no batches, no tensors, a tensor with NaN or infinity (named), or a state of another graph or of
            other images.
    """
    if (state is not None and not graph_sha256) or save_every < 1:
        raise ValueError(f"state: got graph_sha256 {graph_sha256!r} and save_every {save_every}, expected the graph's "
                         "hash and at least 1; see files.sha256")
    before = load_state(state, graph_sha256=graph_sha256) if state is not None else None
    histograms: dict[str, Histogram] = before.histograms if before else {}
    done, images = 0, 0
    digest = hashlib.sha256()
    for batch in bar(batches, "calibrate", unit="batch", show=progress):
        add_to_hash(digest, batch)
        done, images = done + 1, images + len(batch)
        if before and done <= before.batches:
            if done == before.batches:
                _require_same_images(digest.hexdigest(), before, state)
            continue
        _add(histograms, infer(batch))
        if not histograms:          # before a state says that these batches were seen
            raise ValueError("infer: returned no tensors, expected activations by name; see export.expose_tensors")
        if state is not None and done % save_every == 0:
            save_state(state, State(histograms, done, images, digest.hexdigest()), graph_sha256=graph_sha256)
    if before and done < before.batches:
        _require_same_images(digest.hexdigest(), before, state)
    if not histograms:
        raise ValueError("batches: got none, expected at least one calibration image; see data.load_split('calib')")
    if state is not None and not (before and done == before.batches):
        save_state(state, State(histograms, done, images, digest.hexdigest()), graph_sha256=graph_sha256)
    return Calibration(histograms, images, digest.hexdigest())


def _add(histograms: dict[str, Histogram], activations: dict[str, np.ndarray]) -> None:
    for name, x in activations.items():
        try:
            histograms.setdefault(name, Histogram()).collect(x)
        except ValueError as e:
            raise ValueError(f"tensor {name!r}: {e}") from e


def _require_same_images(sha256: str, before: State, path: Path | None) -> None:
    if sha256 != before.sha256:
        raise ValueError(f"state: {path} has seen {before.batches} batches of calibration set {before.sha256[:12]}, "
                         f"expected the same ones first, got calibration set {sha256[:12]}; delete it and start again, "
                         "or pass the images in the same order")


def ranges(histograms: dict[str, Histogram], method: str = "percentile") -> dict[str, Range]:
    """The calibration table: each tensor's range by one estimator, cut to the values that were seen.

    Args:
        histograms: from `collect`.
        method: "max", "percentile", "entropy" or "mse".

    Returns:
        One range per name.

    Raises:
        ValueError: unknown method or an empty histogram (named).
    """
    if method not in ESTIMATORS:
        raise ValueError(f"method: got {method!r}, expected one of {sorted(ESTIMATORS)}")
    table = {}
    for name, hist in histograms.items():
        try:
            amax = ESTIMATORS[method](hist)
        except ValueError as e:
            raise ValueError(f"tensor {name!r}: {e}") from e
        table[name] = Range(min(max(hist.low, -amax), 0.0), max(min(hist.high, amax), 0.0))
    return table
