"""How is a video written so that it always plays? Lesson 12.

Left out on purpose: sound, hardware encoders, codecs other than H.264.
"""

import errno
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

REALTIME = {"preset": "superfast", "crf": "23", "tune": "zerolatency"}      # FFmpeg's names and values
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")
_TICKS_PER_S = 90_000                           # time base of the files written: exact for 24, 25, 29.97, 30, 60 fps


class VideoWriter:
    """Writes an H.264 video that plays in a browser: a context manager around the encoder and its file.

    The frames go to a hidden file in the same folder, which takes the name `path` at the end, so `path` is never half
    a video. When the block ends with an exception, Ctrl-C included, the frames so far become `path` all the same, and
    the exception goes on. Without any frame nothing is left behind, and a file that was there stays.

    Encoder: libx264, one thread: all work happens inside `write`, where it can be timed, and none beside it on the
    engine's cores.
    """

    def __init__(
        self, path: str | os.PathLike, fps: float, size: tuple[int, int], *, encoder: Mapping[str, str] = REALTIME
    ):
        """Create the file.

        Args:
            path: where the video goes, ending in .mp4, .mov or .mkv; its folder exists.
            fps: nominal frame rate, frames per second, above 0 and at most 1000.
            size: width and height of the frames, pixels, at least 2. The encoder needs even numbers, so of an odd
                size the last column or row is cut off.
            encoder: options of libx264.

        Raises:
            ValueError: another suffix, or fps or size out of range.
            OSError: the folder is missing, read-only or full, or `path` is a folder.
        """
        self.path, self.fps, self.size = Path(path), float(fps), (int(size[0]), int(size[1]))
        self.frames = 0                                         # written so far
        self._encoder = dict(encoder)
        self._container = None
        self._last_tick = -1
        if self.path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"path: got {str(path)!r}, expected a name that ends in {', '.join(VIDEO_SUFFIXES)}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps: got {fps}, expected above 0 and at most 1000; pass 25 if unknown")
        if min(self.size) < 2:
            raise ValueError(f"size: got {self.size}, expected width and height of at least 2 pixels")
        self._part = self.path.with_name(f".{secrets.token_hex(6)}.part{self.path.suffix}")
        try:
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._part.touch(exist_ok=False)
            self._container, self._stream = self._start()
        except BaseException as exc:
            with suppress(OSError):
                self._part.unlink()
            if isinstance(exc, OSError):
                raise self._cannot_write(exc) from exc
            raise

    def _start(self):
        faststart = {} if self.path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}   # plays while loading
        container = av.open(os.path.abspath(self._part), "w", options=faststart)
        rate = Fraction(self.fps).limit_denominator(1001)       # 29.97 is 30000/1001
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = self.size[0] // 2 * 2, self.size[1] // 2 * 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.options = self._encoder
        context.thread_count = 1
        context.time_base = Fraction(1, _TICKS_PER_S)
        context.gop_size = max(1, round(2 * self.fps))          # a player can jump to any two seconds
        return container, stream

    def write(self, img_hwc_u8: np.ndarray, *, time_s: float | None = None) -> None:
        """Encode one frame.

        Args:
            img_hwc_u8: (H, W, 3) uint8, RGB, of the size given at the start.
            time_s: when to show it, since the start, in seconds, rising. None: number of the frame / fps.

        Raises:
            ValueError: another size or dtype, or the writer is closed.
            OSError: the disk is full; the unfinished file is removed.
        """
        if self._container is None:
            raise ValueError(f"{self.path}: got a frame after close, expected an open file; stay inside the with block")
        width, height = self.size
        if img_hwc_u8.shape != (height, width, 3) or img_hwc_u8.dtype != np.uint8:
            raise ValueError(
                f"img_hwc_u8: got shape {img_hwc_u8.shape} {img_hwc_u8.dtype}, expected ({height}, {width}, 3) uint8, "
                "the size given to VideoWriter; resize it"
            )
        even = img_hwc_u8[: height // 2 * 2, : width // 2 * 2]
        # OpenCV converts ten times faster than PyAV's default; both use BT.601.
        yuv = cv2.cvtColor(np.ascontiguousarray(even), cv2.COLOR_RGB2YUV_I420)
        picture = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
        tick = round((self.frames / self.fps if time_s is None else time_s) * _TICKS_PER_S)
        self._last_tick = picture.pts = max(tick, self._last_tick + 1)      # players refuse equal or falling times
        picture.time_base = Fraction(1, _TICKS_PER_S)
        self._mux(self._stream.encode(picture))
        self.frames += 1

    def _mux(self, packets) -> None:
        try:
            for packet in packets:
                self._container.mux(packet)
        except OSError as exc:
            self.frames = 0                                     # not worth a name: its end is missing
            with suppress(OSError):
                self.close()
            raise self._cannot_write(exc) from exc

    def close(self) -> None:
        """Finish the file and give it its name; a second call does nothing.

        Raises:
            OSError: the disk is full; the unfinished file is removed.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            if self.frames:
                for packet in self._stream.encode():
                    container.mux(packet)
            container.close()
            if self.frames:
                os.replace(self._part, self.path)
        except OSError as exc:
            raise self._cannot_write(exc) from exc
        finally:
            self._part.unlink(missing_ok=True)

    def _cannot_write(self, exc: OSError) -> OSError:
        """The same error number, hence the same subclass, with what to do."""
        fix = {
            errno.EPERM: "choose a folder that you may write to",
            errno.EACCES: "choose a folder that you may write to",
            errno.EROFS: "the disk is read-only, choose another folder",
            errno.ENOENT: "create the folder first",
            errno.ENOTDIR: "part of the path is a file, choose a folder",
            errno.EISDIR: "add a file name",
            errno.ENOSPC: "the disk is full, free some space or choose another one",
            errno.EDQUOT: "your quota is used up, free some space",
        }.get(exc.errno, "choose another folder or disk")
        return OSError(exc.errno, f"{self.path}: got {exc.strerror!r} when writing, expected a writable place; {fix}")

    def __enter__(self) -> "VideoWriter":
        """Return the writer."""
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        """Close; an exception of the block goes on, with a note if the file could not be finished either."""
        try:
            self.close()
        except OSError as failed:
            if exc is None:
                raise
            exc.add_note(str(failed))
