"""A calibration that goes on after an interruption: its histograms in a file, and what they are of. Lesson 03.

The file says which graph and which images, as far as they were seen, so it never goes on with others.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtkit.files import replacing
from trtkit.histogram import BINS, Histogram


@dataclass(frozen=True)
class State:
    """Histograms by tensor after some batches: how many `batches` and `images`, and their hash so far."""

    histograms: dict[str, Histogram]
    batches: int
    images: int
    sha256: str


def save_state(path: Path, state: State, *, graph_sha256: str) -> None:
    """Write a state as .npz, 32 kB a tensor; the older file stays until the new one is whole."""
    histograms = list(state.histograms.values())
    with replacing(path) as temporary, open(temporary, "wb") as file:       # a name would get .npz appended
        np.savez(
            file,
            graph_sha256=graph_sha256,
            calib_sha256=state.sha256,
            progress=np.array([state.batches, state.images], np.int64),
            names=np.array(list(state.histograms)),
            counts=np.array([h.counts for h in histograms]),
            zeros=np.array([h.zeros for h in histograms], np.int64),
            scalars=np.array([(h.width, h.low, h.high) for h in histograms]),
        )


def load_state(path: Path, *, graph_sha256: str) -> State | None:
    """Read a state back.

    Returns:
        None where there is no such file.

    Raises:
        ValueError: not a state, or one of another graph.
    """
    if not Path(path).exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            body = {key: file[key] for key in file}
        collected_on = str(body["graph_sha256"])
        batches, images = (int(n) for n in body["progress"])
        histograms = dict(zip(body["names"].tolist(), map(_histogram, body["counts"], body["zeros"], body["scalars"]),
                              strict=True))
        state = State(histograms, batches, images, str(body["calib_sha256"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as e:
        raise ValueError(f"state: {path} is no calibration state ({e!r}); delete it and start again") from e
    if collected_on != graph_sha256:
        raise ValueError(f"state: {path} was collected on graph {collected_on[:12]}, expected graph "
                         f"{graph_sha256[:12]}; delete it and start again, or name another file")
    return state


def _histogram(counts: np.ndarray, zeros: np.ndarray, scalars: np.ndarray) -> Histogram:
    if counts.shape != (BINS,) or counts.dtype != np.int64:
        raise ValueError(f"counts: got {counts.dtype} {counts.shape}, expected int64 ({BINS},)")
    h = Histogram()
    h.counts, h.zeros = counts.copy(), int(zeros)
    h.width, h.low, h.high = (float(v) for v in scalars)
    return h
