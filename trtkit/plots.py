"""Pictures of the lessons. Each function shows its figure and returns None, so that a cell leaves no text behind."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

# Okabe-Ito, readable without colour vision; one colour per stage in every lesson.
STAGE_COLORS = {
    "decode": "#999999",
    "preprocess": "#56B4E9",
    "infer": "#0072B2",
    "postprocess": "#009E73",
    "draw": "#E69F00",
    "encode": "#CC79A7",
}
FP32_COLOR, INT8_COLOR = "#D55E00", "#0072B2"


def images(pictures: Sequence[np.ndarray], titles: Sequence[str] = (), *, columns: int = 3, width: float = 12) -> None:
    """Show (H, W, 3) uint8 RGB pictures in a grid, `width` inches wide; ValueError if there are none."""
    if not len(pictures):
        raise ValueError("pictures: got none, expected at least one")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, picture_width = pictures[0].shape[:2]
    size = (width, width / columns * rows * height / picture_width + 0.3 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for i, picture in enumerate(pictures):
        axes.flat[i].imshow(picture)
        if i < len(titles):
            axes.flat[i].set_title(titles[i], fontsize=10)
    plt.show()
    plt.close(figure)


def thresholds(
    counts: np.ndarray, width: float, marks: Mapping[str, float], title: str = "", *, xlabel: str = "|x|"
) -> None:
    """A histogram of |x| on a logarithmic axis, with vertical lines at named thresholds.

    Args:
        counts: (B,) int64.
        width: of a bin, in the unit of x.
        marks: position by name.
        title: above the plot.
        xlabel: below it.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1
    group = max(1, used // 256)                         # more bars than pixels would only alias
    used = -(-used // group) * group
    bars = counts[:used].reshape(-1, group).sum(1)
    figure, ax = plt.subplots(figsize=(9, 3.2), layout="constrained")
    ax.bar((np.arange(len(bars)) + 0.5) * width * group, bars, width * group, color="#bbbbbb")
    ax.set_yscale("log")
    for (name, x), color in zip(marks.items(), ("#D55E00", "#0072B2", "#009E73", "#CC79A7"), strict=False):
        ax.axvline(x, color=color, lw=2, label=f"{name} {x:.2f}")
    ax.set(xlabel=xlabel, ylabel="values per bin", title=title)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def stage_bars(reports: Mapping[str, Mapping[str, np.ndarray]], budget_ms: float) -> None:
    """Median time of each stage, stacked, one bar per engine, against the time that a frame may take.

    Args:
        reports: `VideoReport.stages_ms` by name.
        budget_ms: between two frames of the source.
    """
    figure, ax = plt.subplots(figsize=(9, 1.2 + 0.7 * len(reports)), layout="constrained")
    for row, stages_ms in enumerate(reports.values()):
        left = 0.0
        for stage, times_ms in stages_ms.items():
            if stage == "encode":                       # not part of the loop
                continue
            ms = float(np.median(times_ms))
            ax.barh(row, ms, left=left, color=STAGE_COLORS[stage], label=stage if row == 0 else None)
            left += ms
        ax.text(left + 0.4, row, f"{left:.1f} ms", va="center")
    ax.axvline(budget_ms, color="k", ls="--", lw=1)
    ax.text(budget_ms, 1.02, f"a frame every {budget_ms:.0f} ms", transform=ax.get_xaxis_transform(), ha="center",
            fontsize=9)
    ax.set_yticks(range(len(reports)), list(reports))
    ax.invert_yaxis()
    ax.set(xlabel="median ms per frame", xlim=(0, None))
    figure.legend(ncols=5, frameon=False, loc="outside lower center")
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def frame_times(loops_ms: Mapping[str, np.ndarray], budget_ms: float) -> None:
    """Time of every frame, one line per engine, against the time that a frame may take.

    Args:
        loops_ms: (frames,) milliseconds by name.
        budget_ms: between two frames of the source.
    """
    figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    for (name, ms), color in zip(loops_ms.items(), (FP32_COLOR, INT8_COLOR, "#009E73"), strict=False):
        ax.plot(ms, color=color, lw=1, label=f"{name}: p50 {np.median(ms):.1f}, p99 {np.percentile(ms, 99):.1f} ms")
    ax.axhline(budget_ms, color="k", ls="--", lw=1)
    ax.text(1, budget_ms, f"{1000 / budget_ms:.0f} frames/s", transform=ax.get_yaxis_transform(), ha="right",
            va="bottom", fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 1})
    # Hiccups of a shared machine must not flatten the rest of the plot.
    top = max(max(np.percentile(ms, 98) for ms in loops_ms.values()), budget_ms) * 1.25
    ax.set(xlabel="frame", ylabel="ms", ylim=(0, top))
    ax.legend(frameon=False, loc="upper right", ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def class_ap(per_class: Mapping[str, Mapping[str, float]]) -> None:
    """AP of every class as grouped bars, one colour per engine: `evaluate.Accuracy.per_class` by name."""
    names = list(next(iter(per_class.values())))
    figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    bar = 0.8 / len(per_class)
    colors = (FP32_COLOR, INT8_COLOR, "#009E73")
    for i, ((engine, ap), color) in enumerate(zip(per_class.items(), colors, strict=False)):
        ax.bar(np.arange(len(names)) + (i - (len(per_class) - 1) / 2) * bar, [ap[n] for n in names], bar * 0.95,
               color=color, label=engine)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="AP50-95", ylim=(0, 1))
    ax.legend(frameon=False, ncols=3)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
