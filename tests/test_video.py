"""Sources, writer, drawing and the timed loop. Tiny videos, no absolute times."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from trtkit import draw, sources, video
from trtkit.engine import TensorSpec
from trtkit.yolo import Detection

CLASSES = ["cat", "dog", "horse"]
WIDTH, HEIGHT, COUNT = 96, 64, 12


class FakeRunner:
    """Three heads with one confident box, of class 1, in the middle cell of the coarsest grid."""

    label = "fake · 1 thread"
    outputs = None          # the pipeline does not read it

    def __init__(self, size=64, *, shape=None, dtype=np.float32, act=None):
        self.inputs = {"images": TensorSpec(shape or (1, 3, size, size), np.dtype(dtype))}
        self.size, self.act, self.calls = size, act, 0

    def infer(self, feed):
        x_nchw = feed["images"]
        assert x_nchw.shape == (1, 3, self.size, self.size) and x_nchw.dtype == self.inputs["images"].dtype
        if self.act:
            self.act(self.calls)
        self.calls += 1
        heads = {f"head{s}": np.full((1, 24, self.size // s, self.size // s), -12, np.float32) for s in (32, 16, 8)}
        heads["head32"][0, [4, 6], 1, 1] = 6        # objectness, class 1 of anchor 0
        heads["head32"][0, [0, 1, 2, 3], 1, 1] = 0, 0, -1.5, -1.5
        return heads


def picture(index, width=WIDTH, height=HEIGHT):
    """A frame that says its index: grey, 16 levels a step."""
    return np.full((height, width, 3), 16 + 16 * index % 224, np.uint8)


def index_of(img_hwc_u8):
    return round((float(img_hwc_u8.mean()) - 16) / 16)


def make_video(path, count=COUNT, *, width=WIDTH, height=HEIGHT, rate=25, noise=False, bframes=0, **open_options):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", **open_options) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        options = {"preset": "ultrafast", "g": "60" if bframes else "6", "bf": str(bframes), "b_strategy": "0"}
        stream.codec_context.options = options
        container.start_encoding()          # or no frames would mean no file
        for i in range(count):
            img = rng.integers(0, 255, (height, width, 3), dtype=np.uint8) if noise else picture(i, width, height)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(img, format="rgb24")))
        container.mux(stream.encode())
    return Path(path)


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4")


def count_frames(path):
    """With PyAV alone, so a fault of `frames` cannot hide one of the writer."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def read_until_error(source, error=ValueError, **kwargs):
    """Frames before the error, and its message, which must say got, expected, and what to do."""
    got = []
    with pytest.raises(error) as caught:
        for frame in video.frames(source, **kwargs):
            got.append(frame)
    message = str(caught.value)
    assert "got" in message and "expected" in message and ";" in message
    return got, message


# ---------------------------------------------------------------------------------------------------------- sources


def test_file_frames_have_their_index_time_and_picture(clip):
    got = list(video.frames(clip))
    assert [f.index for f in got] == list(range(COUNT))
    np.testing.assert_allclose([f.time_s for f in got], np.arange(COUNT) / 25, atol=1e-9)
    assert [index_of(f.img_hwc_u8) for f in got] == list(range(COUNT))
    assert all(f.img_hwc_u8.shape == (HEIGHT, WIDTH, 3) and f.img_hwc_u8.dtype == np.uint8 for f in got)
    again = list(video.frames(str(clip)))
    assert [f.time_s for f in again] == [f.time_s for f in got]
    assert all(np.array_equal(a.img_hwc_u8, b.img_hwc_u8) for a, b in zip(got, again, strict=True))


def test_frames_are_rgb(tmp_path):
    with video.VideoWriter(tmp_path / "red.mp4", 25, (64, 48)) as out:
        out.write(np.full((48, 64, 3), (200, 40, 20), np.uint8))
    img = next(video.frames(tmp_path / "red.mp4")).img_hwc_u8
    assert np.abs(img.reshape(-1, 3).mean(0) - (200, 40, 20)).max() < 4


def test_source_info(clip, tmp_path):
    assert video.source_info(clip) == video.SourceInfo(WIDTH, HEIGHT, 25.0, COUNT)
    stream = make_video(tmp_path / "clip.ts")
    assert video.source_info(stream) == video.SourceInfo(WIDTH, HEIGHT, 25.0, None)     # no index: no count
    assert next(video.frames(stream)).time_s == 0                       # MPEG-TS clocks start at 1.4 s


def test_times_follow_the_timestamps_of_a_variable_rate(tmp_path):
    times_s = [0, 0.04, 0.5, 0.51, 2]
    with video.VideoWriter(tmp_path / "vfr.mp4", 25, (WIDTH, HEIGHT)) as out:
        for i, time_s in enumerate(times_s):
            out.write(picture(i), time_s=time_s)
    np.testing.assert_allclose([f.time_s for f in video.frames(tmp_path / "vfr.mp4")], times_s, atol=1e-4)


@pytest.mark.parametrize("rate", [None, Fraction(0), Fraction(90_000)])
def test_a_missing_rate_is_said_to_be_missing(clip, tmp_path, monkeypatch, rate):
    assert sources._rate(SimpleNamespace(average_rate=rate, guessed_rate=None)) is None
    monkeypatch.setattr(sources, "_rate", lambda stream: None)
    assert video.source_info(clip).fps is None
    report = video.run(clip, FakeRunner(), class_names=CLASSES, output=tmp_path / "out.mp4", progress=False)
    assert report.keeps_up is None and report.summary()["source_fps"] is None
    assert count_frames(tmp_path / "out.mp4") == COUNT


def test_missing_timestamps_continue_at_the_rate():
    stamps = [None, None, 10, 11, None]

    class Picture(SimpleNamespace):
        def to_ndarray(self, format):
            return picture(0)

    pictures = [Picture(pts=pts, rotation=0, is_corrupt=False) for pts in stamps]
    packet = SimpleNamespace(decode=lambda: pictures)
    container = SimpleNamespace(demux=lambda stream: [packet])
    stream = SimpleNamespace(time_base=Fraction(1, 10), index_entries=())
    got = sources._decode(container, stream, Path(__file__), fps=10)
    np.testing.assert_allclose([f.time_s for f in got], [0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("limit", [1, 5, COUNT, 1000])
def test_limit(clip, limit):
    assert len(list(video.frames(clip, limit=limit))) == min(limit, COUNT)


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_refused_at_once(clip, limit):
    with pytest.raises(ValueError, match="limit: got"):
        video.frames(clip, limit=limit)


def test_rotated_phone_video_is_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    with video.VideoWriter(path, 25, (64, 32)) as out:
        img = np.zeros((32, 64, 3), np.uint8)
        img[:16, :32] = 255                                             # bright: upper left
        out.write(img)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40
    # ISO 14496-12, 8.3.2: x' = a x + c y, y' = b x + d y, here a quarter turn clockwise, as phones store it.
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in matrix)
    path.write_bytes(data)
    img = next(video.frames(path)).img_hwc_u8
    assert img.shape == (64, 32, 3) and img.flags.c_contiguous
    assert img[:32, 16:].mean() > 240 and img[32:].mean() < 10          # upper right
    info = video.source_info(path)
    assert (info.width, info.height) == (32, 64)


def test_name_with_a_colon_is_no_protocol(clip, tmp_path, monkeypatch):
    clip.rename(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(list(video.frames("12:30.mp4"))) == COUNT


def test_missing_file_and_wrong_types_are_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4.*expected.*check"):
        video.frames(tmp_path / "nothing.mp4")
    for source in (True, 1.5, None, -1):
        with pytest.raises(ValueError, match="source: got"):
            video.frames(source)


def test_empty_file_is_refused_at_once(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="0 bytes"):
        video.frames(tmp_path / "empty.mp4")


@pytest.mark.parametrize("name", ["text.mp4", "text.txt"])          # FFmpeg would render the second as pictures
def test_text_is_no_video(tmp_path, name):
    (tmp_path / name).write_text("hello\n" * 500)
    got, message = read_until_error(tmp_path / name)
    assert not got and name in message


def test_sound_without_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate, sound.pts = 44100, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    got, message = read_until_error(tmp_path / "sound.mp4")
    assert not got and "with audio" in message


def test_video_without_frames(tmp_path):
    header_only = make_video(tmp_path / "none.mp4", 0, options={"movflags": "empty_moov"})
    got, message = read_until_error(header_only)
    assert not got and "none.mp4: got no frames" in message
    with pytest.raises(ValueError, match="no frames"):
        video.source_info(header_only)
    with pytest.raises(ValueError, match="no frames"):
        video.run(header_only, FakeRunner(), class_names=CLASSES, output=tmp_path / "out.mp4", progress=False)
    assert os.listdir(tmp_path) == ["none.mp4"]


def test_mp4_cut_before_its_index(clip, tmp_path):
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: data.find(b"moov")])
    got, message = read_until_error(tmp_path / "cut.mp4")
    assert not got and "copy it again" in message


def cut_clip(tmp_path, keep_bytes, **options):
    """An MP4 whose index comes first, cut where `keep_bytes` of the sorted (offset, size) entries says."""
    whole = make_video(tmp_path / "whole.mp4", noise=True, options={"movflags": "faststart"}, **options)
    with av.open(str(whole)) as container:
        entries = sorted((e.pos, e.size) for e in container.streams.video[0].index_entries)
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: keep_bytes(entries)])
    return path


@pytest.mark.parametrize("where", ["inside frame 7", "between frames 6 and 7"])
def test_cut_mid_stream_gives_the_good_frames_then_names_the_next(tmp_path, where):
    path = cut_clip(tmp_path, lambda entries: entries[7][0] + (entries[7][1] // 2 if "inside" in where else 0))
    got, message = read_until_error(path)
    assert [f.index for f in got] == list(range(7)) and "frame 7" in message
    np.testing.assert_allclose([f.time_s for f in got], np.arange(7) / 25, atol=1e-9)
    assert len(list(video.frames(path, limit=7))) == 7                      # what the message advises


def test_frames_that_the_decoder_still_holds_are_not_lost(tmp_path):
    path = cut_clip(tmp_path, lambda entries: entries[7][0] + entries[7][1] // 2, bframes=2)
    got, message = read_until_error(path)               # stored as I0 P3 B1 B2 P6 B4 B5, then half of P9
    assert [f.index for f in got] == list(range(7)) and "frame 7" in message
    np.testing.assert_allclose([f.time_s for f in got], np.arange(7) / 25, atol=1e-9)


def test_half_a_picture_is_not_delivered(tmp_path):
    data = make_video(tmp_path / "whole.ts", noise=True).read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[: len(data) * 6 // 10])
    got, message = read_until_error(tmp_path / "cut.ts")        # FFmpeg decodes the last one, and marks it corrupt
    whole = list(video.frames(tmp_path / "whole.ts"))
    assert 5 < len(got) < 9 and f"frame {len(got)}" in message
    assert all(np.array_equal(a.img_hwc_u8, b.img_hwc_u8) for a, b in zip(got, whole, strict=False))


def test_damaged_bytes_mid_stream(tmp_path):
    path = make_video(tmp_path / "bad.mp4", noise=True, options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        pos = sorted(e.pos for e in container.streams.video[0].index_entries)[6]
    data = bytearray(path.read_bytes())
    data[pos : pos + 400] = bytes(range(200)) * 2
    path.write_bytes(data)
    got, message = read_until_error(path)
    assert len(got) == 6 and "frame 6" in message


def test_size_change_mid_stream_names_both(tmp_path):
    first, second = make_video(tmp_path / "a.ts", 5), make_video(tmp_path / "b.ts", 5, width=48, height=32)
    (tmp_path / "ab.ts").write_bytes(first.read_bytes() + second.read_bytes())
    got, message = read_until_error(tmp_path / "ab.ts")
    assert len(got) == 5
    assert "frame 5" in message and "48x32" in message and f"{WIDTH}x{HEIGHT}" in message


# ----------------------------------------------------------------------------------------------------------- images


def write_images(folder, names, width=32, height=24):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((height, width, 3), (0, 0, 20 * i), np.uint8))     # BGR
    return folder


def test_folder_of_images_in_natural_order(tmp_path):
    folder = write_images(tmp_path / "images", ["f1.png", "f2.bmp", "f10.webp", "f11.JPG"])
    (folder / "notes.txt").write_text("not an image")
    (folder / "._f1.png").write_bytes(b"junk of a Mac")
    got = list(video.frames(folder))
    assert [f.index for f in got] == [0, 1, 2, 3]
    assert [round(float(f.img_hwc_u8[..., 0].mean()) / 20) for f in got] == [0, 1, 2, 3]        # red is first
    assert got[2].img_hwc_u8[..., 2].max() < 20
    assert got[3].time_s == pytest.approx(3 / 25)
    assert video.source_info(folder) == video.SourceInfo(32, 24, None, 4)
    assert len(list(video.frames(folder / "f1.png"))) == 1


def test_folder_without_images(tmp_path):
    got, message = read_until_error(tmp_path)
    assert not got and ".jpg" in message


def test_unreadable_image_is_named_without_noise(tmp_path, capfd):
    folder = write_images(tmp_path / "images", ["a.png", "b.png"])
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:40])
    got, message = read_until_error(folder)
    assert len(got) == 2 and "c.png" in message and "frame 2" in message
    assert capfd.readouterr().err == ""


def test_images_of_differing_size(tmp_path):
    folder = write_images(tmp_path / "images", ["a.png", "b.png"])
    write_images(folder, ["c.png"], 40, 24)
    got, message = read_until_error(folder)
    assert len(got) == 2 and "40x24" in message and "32x24" in message and "frame 2" in message


# ----------------------------------------------------------------------------------------------------------- camera


class FakeCapture:
    """A camera: `count` frames, one each `period_s`, then False, or silence when `hangs`."""

    def __init__(self, count, period_s=0.005, *, hangs=False):
        self.count, self.period_s, self.hangs, self.reads, self.released = count, period_s, hangs, 0, threading.Event()
        self.wake = threading.Event()

    def isOpened(self):
        return True

    def get(self, prop):
        return 0.0                                      # what many drivers answer for the frame rate

    def read(self):
        self.wake.wait(self.period_s)
        if self.reads >= self.count:
            if self.hangs:
                self.wake.wait(30)
            return False, None
        self.reads += 1
        return True, picture(self.reads - 1)

    def release(self):
        self.released.set()


@pytest.fixture
def plug_in(monkeypatch):
    captures = []

    def plug(capture):
        captures.append(capture)
        monkeypatch.setattr(sources.cv2, "VideoCapture", lambda index: capture)
        return capture

    yield plug
    for capture in captures:
        capture.wake.set()


def test_no_camera_is_an_error_without_noise(capfd):
    got, message = read_until_error(63, OSError)
    assert not got and "camera 63" in message
    assert capfd.readouterr().err == ""


def test_hanging_camera_is_an_error(plug_in, monkeypatch):
    monkeypatch.setattr(sources, "CAMERA_WAIT_S", 0.05)
    plug_in(FakeCapture(0, hangs=True))
    monkeypatch.setattr(sources._Camera, "close", lambda self: None)      # do not wait for the thread to die
    got, message = read_until_error(0, OSError)
    assert not got and "0.05 s" in message


@pytest.mark.parametrize("hangs", [False, True])
def test_camera_unplugged_mid_run(plug_in, monkeypatch, hangs):
    monkeypatch.setattr(sources, "CAMERA_WAIT_S", 0.2)
    capture = plug_in(FakeCapture(5, hangs=hangs))
    before = set(threading.enumerate())
    got, message = read_until_error(0, OSError)
    assert got and got[-1].index == 4 and "after frame 4" in message
    if not hangs:
        assert capture.released.is_set() and set(threading.enumerate()) <= before


def test_slow_reader_gets_new_frames_and_counts_the_dropped(plug_in):
    capture = plug_in(FakeCapture(10_000, 0.004))
    seen = []
    for frame in video.frames(0, limit=4):
        seen.append((frame.index, capture.reads))
        assert index_of(frame.img_hwc_u8) % 14 == frame.index % 14
        time.sleep(0.04)                                # ten times slower than the camera
    indices = [index for index, _ in seen]
    assert indices == sorted(set(indices)) and indices[-1] >= 6         # gaps: dropped, not queued
    assert all(reads - index <= 4 for index, reads in seen)             # fresh when handed over
    assert capture.released.wait(2)


def test_camera_without_a_rate(plug_in):
    capture = plug_in(FakeCapture(50, 0.05))
    assert video.source_info(0) == video.SourceInfo(WIDTH, HEIGHT, None, None)
    assert capture.released.is_set()                    # on return the camera is free for the next cell


# ----------------------------------------------------------------------------------------------------------- writer


def test_written_video_reads_back(tmp_path):
    path = tmp_path / "out.mp4"
    with video.VideoWriter(path, 25, (WIDTH, HEIGHT)) as out:
        for i in range(9):
            out.write(picture(i))
        assert not path.exists()                        # never half a video under its name
    got = list(video.frames(path))
    assert [index_of(f.img_hwc_u8) for f in got] == list(range(9))
    assert video.source_info(path) == video.SourceInfo(WIDTH, HEIGHT, 25.0, 9)
    assert os.listdir(tmp_path) == ["out.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(9 / 25)
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")      # a browser can start before it has everything


@pytest.mark.parametrize(("fps", "suffix"), [(24, ".mp4"), (30000 / 1001, ".mov"), (12.5, ".mkv"), (60, ".MP4")])
def test_frame_rates_and_containers(tmp_path, fps, suffix):
    path = tmp_path / f"out{suffix}"
    with video.VideoWriter(path, fps, (WIDTH, HEIGHT)) as out:
        for i in range(10):
            out.write(picture(i))
    assert video.source_info(path).fps == pytest.approx(fps, rel=2e-3)
    np.testing.assert_allclose([f.time_s for f in video.frames(path)], np.arange(10) / fps, atol=1e-3)


@pytest.mark.parametrize("size", [(97, 65), (97, 64), (2, 2), (3, 3), (16, 15)])
def test_odd_sizes_lose_the_last_row_or_column(tmp_path, size):
    img = np.full((size[1], size[0], 3), 200, np.uint8)
    img[size[1] // 2 * 2 :], img[:, size[0] // 2 * 2 :] = 0, 0
    with video.VideoWriter(tmp_path / "odd.mp4", 25, size) as out:
        out.write(img)
    back = next(video.frames(tmp_path / "odd.mp4")).img_hwc_u8
    assert back.shape == (size[1] // 2 * 2, size[0] // 2 * 2, 3) and back.min() > 180


def test_equal_and_falling_times_are_pushed_apart(tmp_path):
    with video.VideoWriter(tmp_path / "out.mp4", 25, (WIDTH, HEIGHT)) as out:
        for i, time_s in enumerate([0, 0.2, 0.2, 0.1]):
            out.write(picture(i), time_s=time_s)
    got = list(video.frames(tmp_path / "out.mp4"))
    assert [index_of(f.img_hwc_u8) for f in got] == [0, 1, 2, 3]
    assert np.all(np.diff([f.time_s for f in got]) > 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_exception_leaves_a_playable_file(tmp_path, error):
    with pytest.raises(error), video.VideoWriter(tmp_path / "out.mp4", 25, (WIDTH, HEIGHT)) as out:
        for i in range(7):
            out.write(picture(i))
        raise error
    assert count_frames(tmp_path / "out.mp4") == 7
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_without_frames_nothing_is_left_and_nothing_replaced(tmp_path):
    with video.VideoWriter(tmp_path / "out.mp4", 25, (WIDTH, HEIGHT)):
        pass
    assert os.listdir(tmp_path) == []
    (tmp_path / "out.mp4").write_text("older")
    with pytest.raises(KeyboardInterrupt), video.VideoWriter(tmp_path / "out.mp4", 25, (WIDTH, HEIGHT)):
        raise KeyboardInterrupt
    assert (tmp_path / "out.mp4").read_text() == "older" and os.listdir(tmp_path) == ["out.mp4"]


def test_close_twice_and_write_after_close(tmp_path):
    out = video.VideoWriter(tmp_path / "out.mp4", 25, (WIDTH, HEIGHT))
    out.write(picture(0))
    out.close()
    out.close()
    with pytest.raises(ValueError, match="after close"):
        out.write(picture(1))
    assert count_frames(tmp_path / "out.mp4") == 1


@pytest.mark.parametrize(
    ("name", "fps", "size", "match"),
    [
        ("out.txt", 25, (64, 64), r"path: got .*\.mp4"),
        ("out.mp4", 0, (64, 64), "fps: got 0"),
        ("out.mp4", float("nan"), (64, 64), "fps: got nan"),
        ("out.mp4", 25, (1, 64), "size: got"),
    ],
)
def test_writer_arguments(tmp_path, name, fps, size, match):
    with pytest.raises(ValueError, match=match):
        video.VideoWriter(tmp_path / name, fps, size)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("img", [np.zeros((10, 10, 3), np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.float32)])
def test_writer_refuses_another_size_or_dtype(tmp_path, img):
    with video.VideoWriter(tmp_path / "out.mp4", 25, (WIDTH, HEIGHT)) as out:
        out.write(picture(0))
        with pytest.raises(ValueError, match=r"img_hwc_u8: got .*expected"):
            out.write(img)
        out.write(picture(1))
    assert count_frames(tmp_path / "out.mp4") == 2


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for path, error, fix in [
        (tmp_path / "file" / "out.mp4", NotADirectoryError, "choose a folder"),
        (tmp_path / "missing" / "out.mp4", FileNotFoundError, "create the folder"),
        (tmp_path / "folder.mp4", IsADirectoryError, "add a file name"),
    ]:
        with pytest.raises(error, match=f"out.mp4|folder.mp4.*{fix}"):
            video.VideoWriter(path, 25, (WIDTH, HEIGHT))

    def read_only(self, *args, **kwargs):               # root ignores permission bits
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(OSError, match="read-only, choose another folder"):
        video.VideoWriter(tmp_path / "out.mp4", 25, (WIDTH, HEIGHT))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


class FullDisk:
    """A container whose disk is full from the n-th packet on, or at the end."""

    def __init__(self, container, packets=None):
        self.container, self.packets = container, packets

    def mux(self, packet):
        if self.packets == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.packets = self.packets and self.packets - 1
        self.container.mux(packet)

    def close(self):
        self.container.close()
        if self.packets is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("packets", [0, 3, None])
def test_full_disk_leaves_nothing(tmp_path, packets):
    path = tmp_path / "out.mp4"
    with pytest.raises(OSError, match="free some space") as caught, video.VideoWriter(path, 25, (WIDTH, HEIGHT)) as out:
        out._container = FullDisk(out._container, packets)
        for i in range(6):
            out.write(picture(i))
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_real_limit_on_the_file_size_leaves_nothing(tmp_path):
    code = f"""
import resource, sys
import numpy as np
from trtkit import video
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
rng = np.random.default_rng(0)
try:
    with video.VideoWriter({str(tmp_path / "out.mp4")!r}, 25, (160, 128)) as out:
        for _ in range(30):
            out.write(rng.integers(0, 255, (128, 160, 3), dtype=np.uint8))
except OSError as exc:
    sys.exit(f"refused: {{exc}}")
"""
    done = run_python(code)
    assert "refused" in done.stderr and "choose another" in done.stderr, done.stderr
    assert os.listdir(tmp_path) == []


def test_full_disk_after_an_exception_does_not_hide_it(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught, video.VideoWriter(tmp_path / "o.mp4", 25, (WIDTH, HEIGHT)) as out:
        out.write(picture(0))
        out._container = FullDisk(out._container)
        raise KeyboardInterrupt
    assert "free some space" in caught.value.__notes__[0]
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------- draw


def detection(*boxes, labels=None, scores=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes)) if labels is None else np.array(labels, np.int64)
    return Detection(boxes, np.full(len(boxes), 0.9, np.float32) if scores is None else np.float32(scores), labels)


def test_annotate_leaves_the_input_and_draws_only_near_the_box():
    img = np.full((480, 640, 3), 90, np.uint8)
    img.flags.writeable = False
    drawn = draw.annotate(img, detection((200, 150, 400, 300)), CLASSES)
    assert drawn is not img and img.min() == img.max() == 90
    changed = (drawn != img).any(2)
    rows, cols = np.nonzero(changed)
    assert rows.min() >= 120 and rows.max() <= 304 and cols.min() >= 196 and cols.max() <= 404
    assert not changed[160:290, 210:390].any()          # nothing inside
    assert tuple(drawn[225, 200]) == tuple(drawn[300, 300]) == draw.class_color(0)
    assert np.array_equal(drawn, draw.annotate(img, detection((200, 150, 400, 300)), CLASSES))


@pytest.mark.parametrize("box", [(0, 0, 60, 40), (620, 2, 640, 30), (600, 460, 640, 480), (-50, -50, 900, 900)])
def test_label_stays_whole_inside_the_image(box):
    img = np.full((480, 640, 3), 90, np.uint8)
    inside = draw.annotate(img, detection((200, 200, 260, 240)), ["horse"])
    drawn = draw.annotate(img, detection(box), ["horse"])
    black = (0, 0, 0)                                   # of the text, on the light colour of class 0

    def ink(a):
        return int((a == black).all(2).sum())

    assert ink(inside) > 20 and ink(drawn) == pytest.approx(ink(inside), rel=0.15)


def test_colours_are_fixed_distinct_and_never_run_out():
    assert len({draw.class_color(k) for k in range(len(draw.PALETTE))}) == len(draw.PALETTE) >= 20
    assert draw.class_color(0) == (230, 159, 0) and draw.class_color(80) == draw.class_color(80 % len(draw.PALETTE))
    gaps = [np.abs(np.int64(a) - np.int64(b)).max() for i, a in enumerate(draw.PALETTE) for b in draw.PALETTE[:i]]
    assert min(gaps) >= 20


def test_best_score_is_on_top():
    img = np.zeros((480, 640, 3), np.uint8)
    boxes = [(100, 100, 300, 300)] * 2
    for scores, top in [((0.9, 0.4), 0), ((0.4, 0.9), 1)]:
        drawn = draw.annotate(img, detection(*boxes, scores=scores), CLASSES)
        assert tuple(drawn[300, 200]) == draw.class_color(top)


def test_lines_and_text_grow_with_the_image():
    small = draw.annotate(np.zeros((480, 640, 3), np.uint8), detection((100, 100, 300, 300)), CLASSES)
    large = draw.annotate(np.zeros((1920, 2560, 3), np.uint8), detection((400, 400, 1200, 1200)), CLASSES)
    ratio = (large.any(2).mean()) / (small.any(2).mean())
    assert 0.5 < ratio < 1.5                            # about the same share of the picture, not a quarter of it


def test_caption_is_a_strip_above_and_labels_keep_off_it():
    img = np.full((480, 640, 3), 200, np.uint8)
    drawn = draw.annotate(img, detection(), CLASSES, caption="25.0 FPS")
    changed = (drawn != img).any(2)
    rows = np.flatnonzero(changed[:, -1])               # beside the text, which has grey pixels like the picture's
    assert rows[0] == 0 and len(rows) < 40 and not changed[len(rows):].any()
    assert (drawn[: len(rows)] == 255).all(2).any()     # white text
    with_box = draw.annotate(img, detection((2, 2, 300, 300)), CLASSES, caption="25.0 FPS")
    assert (with_box[len(rows), 4:40] == draw.class_color(0)).all()     # its label begins below the strip
    assert np.array_equal(drawn, draw.annotate(img, detection(), CLASSES, caption="25.0 FPS"))


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 300, 3), (300, 7, 3), (64, 64, 3)])
def test_tiny_images_do_not_break_it(shape):
    img = np.zeros(shape, np.uint8)
    drawn = draw.annotate(img, detection((0, 0, 5, 5), (1e9, -1e9, 3e9, 1e9)), CLASSES, caption="a long caption " * 5)
    assert drawn.shape == shape


def test_caption_leaves_half_of_a_low_image():
    img = np.full((20, 300, 3), 200, np.uint8)
    drawn = draw.annotate(img, detection(), CLASSES, caption="25.0 FPS")
    beside_text = drawn[:, -1]
    assert (beside_text[:10] < 100).all() and (beside_text[10:] == 200).all()


def test_without_detections_it_is_a_copy():
    img = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    drawn = draw.annotate(img, detection(), [])
    assert np.array_equal(drawn, img) and not np.shares_memory(drawn, img)
    flipped = img[:, ::-1]
    assert np.array_equal(draw.annotate(flipped, detection(), []), flipped)


@pytest.mark.parametrize(
    ("img", "found", "match"),
    [
        (np.zeros((8, 8, 3), np.float32), detection(), "img_hwc_u8: got"),
        (np.zeros((8, 8), np.uint8), detection(), "img_hwc_u8: got"),
        (np.zeros((8, 8, 3), np.uint8), detection((0, 0, 4, 4), labels=[3]), r"labels: got 3 .*expected 0 to 2"),
        (np.zeros((8, 8, 3), np.uint8), detection((0, 0, 4, 4), (0, np.nan, 4, 4)), r"boxes_xyxy\[1\]: got"),
    ],
)
def test_annotate_refuses(img, found, match):
    with pytest.raises(ValueError, match=match):
        draw.annotate(img, found, CLASSES)


# --------------------------------------------------------------------------------------------------------- pipeline


def test_report_is_consistent(clip, tmp_path):
    runner = FakeRunner()
    report = video.run(clip, runner, class_names=CLASSES, output=tmp_path / "out.mp4", keep=(0, 5, 99), progress=False)
    assert report.frames == runner.calls == len(report.detections) == COUNT
    assert list(report.stages_ms) == list(video.STAGES)
    assert all(ms.shape == (COUNT,) and ms.dtype == np.float64 and (ms > 0).all() for ms in report.stages_ms.values())
    assert sum(ms.sum() for ms in report.stages_ms.values()) <= report.wall_s * 1000
    np.testing.assert_allclose(report.loop_ms + report.stages_ms["encode"], sum(report.stages_ms.values()))
    assert report.fps_end_to_end == pytest.approx(COUNT / (report.loop_ms.sum() / 1000))
    assert report.source_fps == 25 and report.keeps_up == (report.fps_end_to_end >= 25)
    assert report.runner_label == FakeRunner.label
    for found in report.detections:
        assert found.labels.tolist() == [1] and found.boxes_xyxy.shape == (1, 4)
    assert sorted(report.kept) == [0, 5] and report.kept[5].shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.wall_s = 0


def test_stages_hold_what_they_say(clip, monkeypatch):
    """A sleep in one stage shows in that stage only, and in the loop."""
    report = video.run(clip, FakeRunner(act=lambda call: time.sleep(0.02)), class_names=CLASSES, progress=False)
    assert report.stages_ms["infer"].min() >= 20
    slowest = max(video.LOOP_STAGES, key=lambda name: np.median(report.stages_ms[name]))
    assert slowest == "infer" and np.median(report.loop_ms) >= 20
    assert (report.stages_ms["encode"] < 1).all()                       # no output: nothing to do
    pairs = [("letterbox", "preprocess"), ("postprocess", "postprocess"), ("annotate", "draw"), ("_decode", "decode")]
    for name, stage in pairs:
        module = sources if name == "_decode" else video
        real = getattr(module, name)

        def slow(*args, _real=real, _name=name, **kwargs):
            if _name != "_decode":
                time.sleep(0.02)
                return _real(*args, **kwargs)
            return (time.sleep(0.02) or frame for frame in _real(*args, **kwargs))

        with monkeypatch.context() as patch:
            patch.setattr(module, name, slow)
            report = video.run(clip, FakeRunner(), class_names=CLASSES, limit=3, progress=False)
        medians = {key: np.median(ms) for key, ms in report.stages_ms.items()}
        assert max(medians, key=medians.get) == stage and medians[stage] >= 20


def test_summary_and_rows(clip):
    times = {name: np.arange(1.0, 101) * (i + 1) for i, name in enumerate(video.STAGES)}
    found = [detection((0, 0, 4, 4))] * 100
    report = video.VideoReport("fake", times, found, 60.0, 25.0)
    summary = json.loads(json.dumps(report.summary()))
    assert summary["frames"] == summary["detections"] == 100 and summary["runner_label"] == "fake"
    assert summary["p50_ms"]["decode"] == 50.5 and summary["p99_ms"]["decode"] == pytest.approx(99.01)
    assert summary["p50_ms"]["loop"] == 50.5 * 15 and summary["p50_ms"]["encode"] == 50.5 * 6
    assert summary["fps_end_to_end"] == pytest.approx(1000 / (50.5 * 15)) and summary["keeps_up"] is False
    rows = report.to_rows()
    assert [row["stage"] for row in rows] == [*video.STAGES, "loop"]
    assert rows[0] == {"stage": "decode", "mean_ms": 50.5, "p50_ms": 50.5, "p99_ms": pytest.approx(99.01)}


def test_output_holds_the_annotated_frames(clip, tmp_path):
    report = video.run(clip, FakeRunner(), class_names=CLASSES, output=tmp_path / "out.mp4", keep=range(COUNT))
    back = [f.img_hwc_u8.astype(int) for f in video.frames(tmp_path / "out.mp4")]
    assert len(back) == COUNT and video.source_info(tmp_path / "out.mp4").fps == 25
    for i, img in enumerate(back):
        assert np.abs(img - report.kept[i]).mean() < 6
        x1, y1, x2, y2 = report.detections[i].boxes_xyxy[0].astype(int)
        assert np.abs(img - picture(i))[y1 : y2 + 1, x1 : x2 + 1].max() > 30            # a box was drawn


@pytest.mark.parametrize("limit", [1, 5])
def test_limit_of_a_run(clip, limit):
    runner = FakeRunner()
    assert video.run(clip, runner, class_names=CLASSES, limit=limit, progress=False).frames == limit == runner.calls


def test_half_precision_engine_and_dynamic_batch(clip):
    for runner in (FakeRunner(dtype=np.float16), FakeRunner(shape=("N", 3, 64, 64)), FakeRunner(shape=(-1, 3, 64, 64))):
        assert video.run(clip, runner, class_names=CLASSES, limit=2, progress=False).frames == 2


@pytest.mark.parametrize("shape", [(8, 3, 64, 64), (1, 3, "H", "W"), (1, 3, -1, -1), (1, 3, 64, 96), (1, 1, 64, 64)])
def test_engine_with_another_input(clip, shape):
    with pytest.raises(ValueError, match=r"fake.*got inputs .*expected one image input"):
        video.run(clip, FakeRunner(shape=shape), class_names=CLASSES)


def test_too_few_class_names(clip, tmp_path):
    with pytest.raises(ValueError, match="labels: got 1"):
        video.run(clip, FakeRunner(), class_names=["cat"], output=tmp_path / "out.mp4", progress=False)
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_output_is_not_the_source(clip):
    before = clip.read_bytes()
    with pytest.raises(ValueError, match="the source itself"):
        video.run(clip, FakeRunner(), class_names=CLASSES, output=clip.parent / "." / "clip.mp4")
    assert clip.read_bytes() == before


def test_bad_output_fails_before_the_first_inference(clip, tmp_path):
    runner = FakeRunner()
    with pytest.raises(FileNotFoundError, match="create the folder"):
        video.run(clip, runner, class_names=CLASSES, output=tmp_path / "missing" / "out.mp4", progress=False)
    assert runner.calls == 0


def test_progress_bar_can_be_silenced(clip, capfd, monkeypatch):
    monkeypatch.delenv("TRTKIT_HEADLESS", raising=False)
    video.run(clip, FakeRunner(), class_names=CLASSES)
    assert f"/{COUNT}" in capfd.readouterr().err
    video.run(clip, FakeRunner(), class_names=CLASSES, progress=False)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("TRTKIT_HEADLESS", "1")
    video.run(clip, FakeRunner(), class_names=CLASSES)
    assert capfd.readouterr() == ("", "")


def interrupt_at(frame):
    def act(call):
        if call == frame:
            raise KeyboardInterrupt

    return act


def test_ctrl_c_leaves_seven_playable_frames(clip, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        video.run(clip, FakeRunner(act=interrupt_at(7)), class_names=CLASSES, output=tmp_path / "o.mp4", progress=False)
    assert count_frames(tmp_path / "o.mp4") == 7
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "o.mp4"]


def test_cut_source_leaves_the_good_frames_in_the_output(tmp_path):
    path = cut_clip(tmp_path, lambda entries: entries[7][0] + entries[7][1] // 2)
    with pytest.raises(ValueError, match="frame 7"):
        video.run(path, FakeRunner(), class_names=CLASSES, output=tmp_path / "out.mp4", progress=False)
    assert count_frames(tmp_path / "out.mp4") == 7


def test_run_on_images_and_camera(tmp_path, plug_in):
    folder = write_images(tmp_path / "images", ["a.png", "b.png"])
    report = video.run(folder, FakeRunner(), class_names=CLASSES, output=tmp_path / "out.mp4", progress=False)
    assert report.frames == 2 and report.keeps_up is None and count_frames(tmp_path / "out.mp4") == 2
    capture = plug_in(FakeCapture(10_000))
    assert video.run(0, FakeRunner(), class_names=CLASSES, limit=3, progress=False).frames == 3
    assert capture.released.wait(2)


def run_python(code, **kwargs):
    folders = [Path(video.__file__).parents[1], Path(__file__).parent]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env, **kwargs)


def test_a_real_sigint_leaves_a_playable_file(clip, tmp_path):
    code = f"""
import os, signal, threading, time
import test_video
from trtkit import video

def act(call):                              # a long inference, and Ctrl-C from outside in the middle of it
    if call == 4:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(20)

video.run({str(clip)!r}, test_video.FakeRunner(act=act), class_names=test_video.CLASSES,
          output={str(tmp_path / "out.mp4")!r}, progress=False)
"""
    done = run_python(code)
    assert done.returncode in (-signal.SIGINT, 130) and "KeyboardInterrupt" in done.stderr, done.stderr
    assert count_frames(tmp_path / "out.mp4") == 4
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "out.mp4"]
