"""Exercises of lesson 08, the runtime: what a right answer is, and what to say to those who are stuck."""

import numpy as np

from trtkit.check import Exercise
from trtkit.engine import BackendError


class Buffer:
    """Memory of a `Pool`, to be closed by whoever took it; also a `with` block does that."""

    def __init__(self, pool: "Pool", address: int):
        self._pool, self._address, self._values = pool, address, None

    def write(self, frame: np.ndarray) -> None:
        """Copy a frame in; raises ValueError where it holds a NaN, as a broken camera's does."""
        if np.isnan(frame).any():
            raise ValueError("frame: got NaN, expected finite values")
        self._values = np.array(frame)

    def mean(self) -> float:
        """Mean of what was written."""
        return float(self._values.mean())

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._pool.pop(self._address, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


class Pool(dict):
    """A small device memory that knows who has not given back: bytes of each open buffer, by address."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self._next = capacity, 0

    def copy(self) -> "Pool":
        """A fresh one of the same size."""
        return Pool(self.capacity)

    def take(self, nbytes: int) -> Buffer:
        """A buffer; raises BackendError where too little is free, as a GPU does."""
        if self.open_bytes + nbytes > self.capacity:
            raise BackendError(f"memory: got a request for {nbytes} bytes, expected at most the "
                               f"{self.capacity - self.open_bytes} that are free; {len(self)} buffers are still open")
        self._next += 1
        self[self._next] = nbytes
        return Buffer(self, self._next)

    @property
    def open_bytes(self) -> int:
        """Bytes in buffers that nobody has closed."""
        return sum(self.values())

    def __repr__(self) -> str:
        return f"Pool({self.capacity})"


def _brightness(frames: np.ndarray, pool: Pool) -> tuple[list[float], int]:
    """The mean of each frame through one buffer at a time, NaN for a broken one, and what is left open: nothing."""
    means = []
    for frame in frames:
        with pool.take(frame.nbytes) as buffer:
            try:
                buffer.write(frame)
                means.append(buffer.mean())
            except ValueError:
                means.append(float("nan"))
    return means, pool.open_bytes


def _makespan(chunks: int, upload: float, compute: float, download: float, streams: int) -> float:
    """Every operation starts as soon as its stream and its engine are free; it is put on the stream chunk by chunk."""
    stream_free, engine_free = [0.0] * streams, [0.0] * 3
    for chunk in range(chunks):
        for i, ms in enumerate((upload, compute, download)):
            end = max(stream_free[chunk % streams], engine_free[i]) + ms
            stream_free[chunk % streams] = engine_free[i] = end
    return max(stream_free)


_GOOD = np.arange(12.0).reshape(4, 3)
_BROKEN = np.where(_GOOD == 4, np.nan, _GOOD)           # the second frame
_LAST_BROKEN = np.where(_GOOD == 11, np.nan, _GOOD)

EXERCISES = {
    "08_makespan": Exercise(
        _makespan,
        [(4, 1.0, 2.0, 1.0, 1), (4, 1.0, 2.0, 1.0, 2), (5, 3.0, 1.0, 1.0, 2), (6, 1.0, 1.0, 1.0, 3),
         (3, 0.5, 4.0, 0.25, 2), (1, 1.0, 2.0, 3.0, 2), (5, 1.0, 1.0, 4.0, 2)],
        (
            "an operation may start when two things are free: its stream, and its engine (one for uploads, one for "
            "compute, one for downloads)",
            "keep two lists of times, when each stream and when each of the three engines is free again; go through "
            "the chunks in order, and in each through upload, compute, download",
            "for chunk in range(chunks): for i, ms in enumerate((upload, compute, download)): end = "
            "max(stream_free[chunk % streams], engine_free[i]) + ms; stream_free[chunk % streams] = engine_free[i] = "
            "end; after the loops return max(stream_free)",
        ),
    ),
    "08_brightness": Exercise(
        _brightness,
        [(_GOOD, Pool(24)), (_BROKEN, Pool(24)), (_BROKEN, Pool(48)), (_LAST_BROKEN, Pool(1000)),
         (_GOOD * 2, Pool(1000))],
        (
            "look for a way out of the loop's body that does not pass close(): an exception skips every line up to "
            "its except",
            "with pool.take(frame.nbytes) as buffer: closes it in any case; the try belongs inside that block",
            "for frame in frames: with pool.take(frame.nbytes) as buffer: try: buffer.write(frame); "
            "means.append(buffer.mean()) except ValueError: means.append(float('nan')); after the loop return means, "
            "pool.open_bytes",
        ),
    ),
}
