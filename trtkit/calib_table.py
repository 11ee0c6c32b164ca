"""The calibration table: each tensor's range, as JSON that a person can read. Lesson 03.

Both hashes are in it. A retrained or pruned network has other ranges, and so have other images: a table that is used
for the wrong graph gives an engine that is fast and wrong.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trtkit.files import replacing


@dataclass(frozen=True)
class Range:
    """What one tensor is clipped to: low <= 0 <= high, and amax = max(-low, high) where symmetric."""

    low: float
    high: float

    @property
    def amax(self) -> float:
        """Threshold of the symmetric range."""
        return max(-self.low, self.high)


def add_to_hash(digest: "hashlib._Hash", batch: np.ndarray) -> None:
    """Add a batch to a running SHA-256: its dtype and shape, then its bytes, so that [2, 3] is not [3, 2]."""
    digest.update(f"{batch.dtype.str}{batch.shape}".encode())
    digest.update(np.ascontiguousarray(batch))


def images_sha256(batches: Iterable[np.ndarray]) -> str:
    """Hash of a calibration set: what `calib.collect` finds for the same batches in the same order, hexadecimal."""
    digest = hashlib.sha256()
    for batch in batches:
        add_to_hash(digest, batch)
    return digest.hexdigest()


def save_table(
    path: Path, table: dict[str, Range], *, graph_sha256: str, calib_sha256: str, method: str, images: int
) -> None:
    """Write a calibration table.

    Args:
        path: of the JSON file.
        table: from `calib.ranges`.
        graph_sha256: `files.sha256` of the graph whose tensors these are.
        calib_sha256: of the calibration set, `calib.collect(...).sha256` or `images_sha256`.
        method: the estimator's name.
        images: how many there were, at least 1.

    Raises:
        ValueError: no images, no hash, or a range that `load_table` would refuse.
    """
    if images < 1 or not graph_sha256 or not calib_sha256:
        raise ValueError(f"table: got {images} images, graph {graph_sha256!r} and calibration set {calib_sha256!r}, "
                         "expected at least one image and both hashes; see files.sha256 and calib.collect")
    _require_ranges(table)
    body = {
        "graph_sha256": graph_sha256,
        "calib_sha256": calib_sha256,
        "method": method,
        "images": images,
        "tensors": {name: asdict(r) for name, r in table.items()},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(body, indent=1) + "\n")


def load_table(path: Path, *, graph_sha256: str, calib_sha256: str | None = None) -> dict[str, Range]:
    """Read a calibration table back.

    Args:
        path: of the JSON file.
        graph_sha256: of the graph that is to be quantized.
        calib_sha256: of the calibration set; None takes whichever it was.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, or made for another graph or from another calibration set.
    """
    try:
        body = json.loads(Path(path).read_text())
        table = {name: Range(float(r["low"]), float(r["high"])) for name, r in body["tensors"].items()}
        made_for, made_from = str(body["graph_sha256"]), str(body["calib_sha256"])
        _require_ranges(table)
    except (ValueError, KeyError, TypeError, AttributeError) as e:      # ValueError: no JSON, no text, no number
        raise ValueError(f"table: {path} is no calibration table ({e!r}); write one with calib.save_table") from e
    if made_for != graph_sha256:
        raise ValueError(f"table: {path} was made for graph {made_for[:12]}, expected graph {graph_sha256[:12]}; "
                         "calibrate again, since a retrained or pruned network has other ranges")
    if calib_sha256 not in (None, made_from):
        raise ValueError(f"table: {path} was made from calibration set {made_from[:12]}, expected calibration set "
                         f"{calib_sha256[:12]}; calibrate again, since other images have other ranges")
    return table


def _require_ranges(table: dict[str, Range]) -> None:
    limit = float(np.finfo(np.float32).max)
    if wrong := [name for name, r in table.items() if not -limit <= r.low <= 0 <= r.high <= limit]:     # NaN too
        raise ValueError(f"tensor {wrong[0]!r}: got {table[wrong[0]]}, expected finite low <= 0 <= high")
