"""Does it keep up? Frames in, detections drawn, video out, and the time of every stage. Lesson 12.

frame rate of the loop:  fps = frames / sum(decode + preprocess + infer + postprocess + draw)
It keeps up when fps is at least the rate of the source: the budget per frame is 1000 / source_fps milliseconds.
Encoding the result is timed too, but apart: who watches live on a screen does not pay for it.
One thread does everything in turn. On two cores a decoder or an encoder of its own would take its time from the
engine's threads, and the stages would no longer add up.
The parts: `sources` reads, `draw` draws, `writer` writes; their names are here too.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trtkit.draw import annotate
from trtkit.engine import Runner
from trtkit.progress import bar
from trtkit.sources import DEFAULT_FPS, Frame, Source, SourceInfo, check, frames, open_source, source_info
from trtkit.writer import VideoWriter
from trtkit.yolo import Detection, letterbox, postprocess

__all__ = [
    "LOOP_STAGES", "STAGES", "Frame", "SourceInfo", "VideoReport", "VideoWriter", "annotate", "frames", "run",
    "source_info",
]
LOOP_STAGES = ("decode", "preprocess", "infer", "postprocess", "draw")
STAGES = (*LOOP_STAGES, "encode")


@dataclass(frozen=True, eq=False)
class VideoReport:
    """What a run measured.

    `stages_ms`: for each of `STAGES`, (frames,) float64 milliseconds; encode is 0 where nothing was written.
    `detections`: one per frame. `kept`: the annotated frames that were asked for, index -> (H, W, 3) uint8 RGB.
    `wall_s`: from before opening the source until the output is closed. `source_fps`: None if the source names none.
    """

    runner_label: str
    stages_ms: dict[str, np.ndarray]
    detections: list[Detection]
    wall_s: float
    source_fps: float | None
    kept: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Number of frames processed."""
        return len(self.detections)

    @property
    def loop_ms(self) -> np.ndarray:
        """Decode to drawn frame, (frames,) float64 milliseconds: every stage but encode."""
        return np.sum([self.stages_ms[name] for name in LOOP_STAGES], axis=0)

    @property
    def fps_end_to_end(self) -> float:
        """Frames per second from decode to drawn frame, encode left out: frames / sum(loop_ms) * 1000."""
        return self.frames / float(self.loop_ms.sum()) * 1000

    @property
    def keeps_up(self) -> bool | None:
        """Is the loop at least as fast as the source, on average? None if the source names no rate."""
        return None if self.source_fps is None else self.fps_end_to_end >= self.source_fps

    def to_rows(self) -> list[dict[str, str | float]]:
        """A table: for each stage, and for "loop" (decode to draw), mean, p50 and p99 in milliseconds."""
        times = {**self.stages_ms, "loop": self.loop_ms}
        return [
            {
                "stage": name,
                "mean_ms": float(ms.mean()),
                "p50_ms": float(np.percentile(ms, 50)),
                "p99_ms": float(np.percentile(ms, 99)),
            }
            for name, ms in times.items()
        ]

    def summary(self) -> dict:
        """The report as plain numbers that `json.dumps` takes, without the frames and detections."""
        rows = self.to_rows()
        return {
            "runner_label": self.runner_label,
            "frames": self.frames,
            "wall_s": self.wall_s,
            "fps_end_to_end": self.fps_end_to_end,
            "source_fps": self.source_fps,
            "keeps_up": self.keeps_up,
            "detections": sum(len(d.scores) for d in self.detections),
            "p50_ms": {row["stage"]: row["p50_ms"] for row in rows},
            "p99_ms": {row["stage"]: row["p99_ms"] for row in rows},
        }


def run(
    source: Source,
    runner: Runner,
    *,
    class_names: Sequence[str],
    output: str | os.PathLike | None = None,
    conf_thr: float = 0.25,
    iou_thr: float = 0.45,
    limit: int | None = None,
    keep: Sequence[int] = (),
    progress: bool = True,
) -> VideoReport:
    """Detect in every frame of a source and time it: decode, letterbox, infer, decode + NMS, draw, encode.

    The first frame pays for whatever the engine does on its first call; run `runner.infer` once before to keep that
    out of the mean and p99. Times are wall-clock time of this one thread, so they hold what other programs took.

    Args:
        source: as for `frames`.
        runner: one image input (1, 3, S, S) and three YOLOv3 heads, strides 32, 16, 8.
        class_names: the name of every label, index = label.
        output: video to write, see `VideoWriter`. After an exception or Ctrl-C it holds the frames so far. None: none.
        conf_thr: lowest score kept, in (0, 1).
        iou_thr: see `yolo.nms`, in [0, 1].
        limit: stop after this many frames, at least 1. None: all; a camera then runs until Ctrl-C.
        keep: positions of frames (0 is the first one processed) whose annotated pictures the report returns.
        progress: show a progress bar. It also stays away where TRTKIT_HEADLESS is set.

    Returns:
        Times per stage and frame, detections, kept pictures.

    Raises:
        FileNotFoundError, ValueError, OSError: as for `frames` and `VideoWriter`; ValueError also for an engine with
            other inputs, and for an output that is the source.
    """
    check(source, limit)
    input_name, spec = _image_input(runner)
    is_camera = isinstance(source, int | np.integer)
    if output is not None and not is_camera and Path(output).resolve() == Path(source).resolve():
        raise ValueError(f"output: got {str(output)!r}, the source itself, which it would replace; choose another name")
    times: dict[str, list[float]] = {name: [] for name in STAGES}
    detections: list[Detection] = []
    kept: dict[int, np.ndarray] = {}
    begun_s = time.perf_counter()
    with ExitStack() as stack:
        opened = stack.enter_context(open_source(source))
        total = min((n for n in (limit, opened.frame_count) if n), default=None)
        counter = stack.enter_context(bar(None, "watch", total=total, unit="frame", show=progress, leave=False))
        writer = None
        while limit is None or len(detections) < limit:
            decode_s = -time.perf_counter()
            frame = next(opened.frames, None)
            decode_s += time.perf_counter()
            if frame is None:
                break
            if output is not None and writer is None:           # before the first inference: a bad path fails early
                height, width = frame.img_hwc_u8.shape[:2]
                writer = stack.enter_context(VideoWriter(output, opened.fps or DEFAULT_FPS, (width, height)))
            marks_s = [time.perf_counter()]
            x_nchw, placement = letterbox(frame.img_hwc_u8, spec.shape[-1])
            x_nchw = x_nchw.astype(spec.dtype, copy=False)
            marks_s.append(time.perf_counter())
            heads = list(runner.infer({input_name: x_nchw}).values())
            marks_s.append(time.perf_counter())
            detection = postprocess(heads, placement, conf_thr=conf_thr, iou_thr=iou_thr)
            marks_s.append(time.perf_counter())
            drawn = annotate(frame.img_hwc_u8, detection, class_names, caption=_caption(runner.label, times))
            marks_s.append(time.perf_counter())
            if writer is not None:
                writer.write(drawn, time_s=frame.time_s)
            marks_s.append(time.perf_counter())
            for name, stage_s in zip(STAGES, (decode_s, *np.diff(marks_s)), strict=True):
                times[name].append(1000 * float(stage_s))
            if len(detections) in keep:
                kept[len(detections)] = drawn
            detections.append(detection)
            counter.update()
    wall_s = time.perf_counter() - begun_s
    stages_ms = {name: np.array(ms) for name, ms in times.items()}
    return VideoReport(runner.label, stages_ms, detections, wall_s, opened.fps, kept)


def _image_input(runner: Runner):
    """Name and spec of the one input (1, 3, S, S); a batch that is dynamic will do."""
    shapes = {name: tuple(spec.shape) for name, spec in runner.inputs.items()}
    if len(shapes) == 1:
        (name, spec), = runner.inputs.items()
        shape = shapes[name]
        square = len(shape) == 4 and isinstance(shape[3], int) and shape[2] == shape[3] > 0 and shape[1] == 3
        if square and (shape[0] == 1 or not isinstance(shape[0], int) or shape[0] < 0):
            return name, spec
    raise ValueError(
        f"runner {runner.label!r}: got inputs {shapes}, expected one image input (1, 3, S, S); "
        "build the engine from a graph with a fixed size and a batch of 1"
    )


def _caption(label: str, times: dict[str, list[float]]) -> str:
    """Who computed it, and how fast the last 30 frames were; the first frame has no past."""
    label = label.replace("·", "-")                             # OpenCV 4 draws ASCII only
    recent_ms = sum(sum(times[name][-30:]) for name in LOOP_STAGES)
    count = len(times["decode"][-30:])
    return f"{label}   {1000 * count / recent_ms:.1f} FPS" if count else label
