"""Where do the frames come from? Video files, folders of images, cameras. Lesson 12.

Every source gives `Frame`s of one size, and says in a sentence what is wrong with it.
Left out on purpose: sound, network streams, hardware decoding, colour spaces other than BT.601, pixels that are not
square.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

Source = str | os.PathLike | int
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DEFAULT_FPS = 25.0                              # for sources that name no frame rate: images, some cameras and files
CAMERA_WAIT_S = 5.0                             # longest silence of a camera, first frame included


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture: `img_hwc_u8` (H, W, 3) uint8 RGB, `index` from 0, `time_s` since the first frame.

    Of a camera, `index` counts what the camera delivered: a gap between two frames is the number of frames dropped.
    """

    img_hwc_u8: np.ndarray
    index: int
    time_s: float


@dataclass(frozen=True)
class SourceInfo:
    """What a source says about itself: pixels as shown (after rotation), frames per second, number of frames.

    `fps` and `frame_count` are None where the source does not say; `frame_count` is a claim of the file, not a count.
    """

    width: int
    height: int
    fps: float | None
    frame_count: int | None


def frames(source: Source, *, limit: int | None = None) -> Iterator[Frame]:
    """Read pictures one by one, all of the same size.

    Args:
        source: path of a video file; path of an image, or of a folder of images (natural order: 2 before 10);
            or the index of a camera. A camera gives its newest frame, frames that came in between are dropped.
        limit: stop after this many frames, at least 1. None: all.

    Returns:
        Iterator of frames. Times come from the file's timestamps; images come at 25 per second.

    Raises:
        FileNotFoundError: no such path, at once.
        ValueError: limit below 1 or an empty file, at once; when iterating: not a video, no video stream, no frames,
            a folder without images, an unreadable image, a frame of another size, or a damaged or cut file. The good
            frames before a bad one are delivered first. A cut Matroska file cannot be told from a short one.
        OSError: the camera cannot be opened, or is silent for `CAMERA_WAIT_S` seconds; the file cannot be read.
    """
    check(source, limit)
    return _frames(source, limit)


def _frames(source: Source, limit: int | None) -> Iterator[Frame]:
    with open_source(source) as opened:
        for count, frame in enumerate(opened.frames, 1):
            yield frame
            if count == limit:          # before the next one is decoded in vain
                return


def source_info(source: Source) -> SourceInfo:
    """Open a source, decode its first frame, and say what it holds.

    Args:
        source: as for `frames`.

    Returns:
        Size in pixels, frame rate, number of frames.

    Raises:
        FileNotFoundError, ValueError, OSError: as for `frames`.
    """
    check(source, None)
    with open_source(source) as opened:
        height, width = next(opened.frames).img_hwc_u8.shape[:2]
        return SourceInfo(width, height, opened.fps, opened.frame_count)


@dataclass(frozen=True)
class Opened:
    """An open source: an iterator that raises rather than being empty, and what the source says of itself."""

    frames: Iterator[Frame]
    fps: float | None
    frame_count: int | None


def check(source: Source, limit: int | None) -> None:
    """Refuse at once what needs no decoder to be refused."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}, expected at least 1, or None for all frames")
    if isinstance(source, bool) or not isinstance(source, str | os.PathLike | int | np.integer):
        raise ValueError(f"source: got {source!r}, expected a path or the index of a camera, such as 0")
    if isinstance(source, int | np.integer):
        if source < 0:
            raise ValueError(f"source: got camera {source}, expected an index of at least 0; the first camera is 0")
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"source: got {str(source)!r}, expected an existing video, image or folder of images; "
            f"check the spelling, the current folder is {Path.cwd()}"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: got an empty file (0 bytes), expected a video or an image; copy or record it again")


@contextmanager
def open_source(source: Source) -> Iterator[Opened]:
    """Open a source that `check` has passed; on leaving the block its file or camera is free again."""
    if isinstance(source, int | np.integer):
        opener = _open_camera(int(source))
    elif Path(source).is_dir() or Path(source).suffix.lower() in IMAGE_SUFFIXES:
        opener = _open_images(Path(source))
    else:
        opener = _open_file(Path(source))
    with opener as opened:
        yield Opened(_same_size(opened.frames, source), opened.fps, opened.frame_count)


def _same_size(pictures: Iterator[Frame], source: Source) -> Iterator[Frame]:
    expected = None
    for frame in pictures:
        got = frame.img_hwc_u8.shape[:2]
        expected = expected or got
        if got != expected:
            raise ValueError(
                f"{source}, frame {frame.index}: got {got[1]}x{got[0]} pixels, expected {expected[1]}x{expected[0]} as "
                "in the first frame; resize the images, or split the video where its size changes"
            )
        yield frame
    if expected is None:
        raise ValueError(f"{source}: got no frames, expected at least one; play it once, and record or export it again")


@contextmanager
def _open_file(path: Path) -> Iterator[Opened]:
    try:
        # An absolute path, or FFmpeg takes "12:30.mp4" for a protocol. The whitelist keeps a playlist from reaching
        # into the network.
        container = av.open(os.path.abspath(path), options={"protocol_whitelist": "file"})
    except av.FFmpegError as exc:
        if isinstance(exc, OSError):
            raise OSError(exc.errno, f"{path}: got {exc.strerror!r} when opening it, expected a readable file") from exc
        raise ValueError(
            f"{path}: got {path.stat().st_size:,} bytes that are no video ({exc.strerror}), expected a video file; "
            "if it should be one it was cut while copying or recording (an MP4's index comes last): copy it again"
        ) from exc
    with container:
        # FFmpeg renders any .txt as 25 pictures of text; nobody wants that here.
        if not container.streams.video or container.format.name == "tty":
            kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
            raise ValueError(
                f"{path}: got a {container.format.name} file with {', '.join(kinds)}, expected a video stream; "
                "pass a video, not a sound or text file"
            )
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"                # frame threads would hold several frames back, and two cores
        fps = _rate(stream)
        yield Opened(_decode(container, stream, path, fps or DEFAULT_FPS), fps, stream.frames or None)


def _rate(stream) -> float | None:
    """Frames per second that a stream names, or None: containers also say 0, nothing, or the rate of their clock."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= 1000:
            return float(rate)
    return None


def _decode(container, stream, path: Path, fps: float) -> Iterator[Frame]:
    start_s, time_s = None, -1 / fps
    index = -1
    for index, picture in enumerate(_pictures(container, stream, path)):
        stamp_s = None if picture.pts is None else float(picture.pts * stream.time_base)
        if start_s is None and stamp_s is not None:
            start_s = stamp_s - index / fps         # files start at any time; ours start at 0
        time_s = time_s + 1 / fps if stamp_s is None else stamp_s - start_s
        img = picture.to_ndarray(format="rgb24")    # (H, W, 3)
        quarter_turns = round(picture.rotation / 90) % 4
        if quarter_turns:                           # phones store upright videos lying on their side
            img = np.ascontiguousarray(np.rot90(img, quarter_turns))
        yield Frame(img, index, time_s)


def _pictures(container, stream, path: Path) -> Iterator[av.VideoFrame]:
    """Decoded pictures up to the first damaged one, then a ValueError."""
    count, why = 0, None
    try:
        for packet in container.demux(stream):
            for picture in packet.decode():
                if picture.is_corrupt:
                    raise _damaged(path, count, "incomplete data")
                yield picture
                count += 1
    except av.FFmpegError as exc:
        why = exc
        with suppress(av.FFmpegError):
            for picture in stream.codec_context.decode(None):       # good ones that the decoder still holds
                yield picture
                count += 1
    if why is not None:
        raise _damaged(path, count, why.strerror) from why
    # The demuxer ends without a word where a file was cut between two frames; the index of MP4 and AVI knows better.
    entries = getattr(stream, "index_entries", ())
    needed, size = max((entry.pos + entry.size for entry in entries), default=0), path.stat().st_size
    if needed > size:
        raise _damaged(path, count, f"the file has {size:,} of at least {needed:,} bytes")


def _damaged(path: Path, index: int, why: str) -> ValueError:
    return ValueError(
        f"{path}, frame {index}: got damaged data ({why}), expected a whole video; the {index} frames before it are "
        f"good: use limit={index}, or copy the file again" if index else
        f"{path}, frame 0: got damaged data ({why}), expected a whole video; copy the file again"
    )


@contextmanager
def _open_images(path: Path) -> Iterator[Opened]:
    paths = [path] if path.is_file() else [
        p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    ]
    if not paths:
        raise ValueError(
            f"{path}: got a folder with none of {', '.join(IMAGE_SUFFIXES)}, expected images; "
            "pass the folder that holds them directly"
        )
    # "frame_10" after "frame_2": numbers compare as numbers.
    paths.sort(key=lambda p: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", p.name)])
    yield Opened((Frame(_read_image(p, i), i, i / DEFAULT_FPS) for i, p in enumerate(paths)), None, len(paths))


def _read_image(path: Path, index: int) -> np.ndarray:
    with _quiet_opencv():
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(
            f"{path}, frame {index}: got {path.stat().st_size:,} bytes that are no readable image, "
            "expected a JPEG, PNG, BMP or WebP; copy it again or remove it"
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's warnings off stderr: our exception says the same, and where."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


@contextmanager
def _open_camera(index: int) -> Iterator[Opened]:
    camera = _Camera(index)
    try:
        yield Opened(camera.frames(), camera.fps, None)
    finally:
        camera.close()


class _Camera:
    """A camera and the thread that reads it: a slow reader gets the newest frame, not a queue of old ones.

    Both opening and reading can block for ever inside a driver, so nobody else waits on them without a limit.
    """

    def __init__(self, index: int):
        self.index, self.fps = index, None
        self._newest: Frame | None = None
        self._ended = self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._pump, name=f"camera {index}", daemon=True)
        with _quiet_opencv():
            self._thread.start()
            try:
                self._wait(after=-1)
            except BaseException:
                self.close()
                raise

    def _pump(self) -> None:
        capture = None
        try:
            capture = cv2.VideoCapture(self.index)
            rate = capture.get(cv2.CAP_PROP_FPS) if capture.isOpened() else 0
            self.fps = rate if 0 < rate <= 1000 else None       # many drivers say 0 or -1
            count, start_s = 0, None
            while not self._closing:
                good, bgr = capture.read()
                if not good:
                    return
                now_s = time.monotonic()
                start_s = now_s if start_s is None else start_s
                frame = Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), count, now_s - start_s)
                count += 1
                with self._changed:
                    self._newest = frame                        # the one nobody fetched is dropped
                    self._changed.notify_all()
        finally:
            if capture is not None:
                capture.release()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait(self, after: int) -> Frame:
        """The newest frame, once there is one younger than `after`."""
        def is_new() -> bool:
            return self._newest is not None and self._newest.index > after

        with self._changed:
            in_time = self._changed.wait_for(lambda: is_new() or self._ended, CAMERA_WAIT_S)
            if is_new():
                return self._newest
        happened = "it ended" if in_time else f"no picture for {CAMERA_WAIT_S:g} s"
        if after < 0:
            raise OSError(
                f"camera {self.index}: got no picture ({happened}), expected a camera that delivers; check that it is "
                "plugged in and not used by another program, try another index, or pass a video file"
            )
        raise OSError(
            f"camera {self.index}, after frame {after}: got no further picture ({happened}), expected an endless "
            "stream; check its cable, then start again"
        )

    def frames(self) -> Iterator[Frame]:
        last = -1
        while True:
            frame = self._wait(last)
            last = frame.index
            yield frame

    def close(self) -> None:
        self._closing = True
        self._thread.join(timeout=1)                            # a daemon: one stuck in a driver is left behind
