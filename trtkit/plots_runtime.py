"""Pictures of lesson 08: bandwidth by size, who works when, calls one after the other, memory that grows."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from trtkit.overlap import Span, total_ms
from trtkit.plots import FP32_COLOR, INT8_COLOR
from trtkit.transfers import Copy

STEP_COLORS = {"upload": "#56B4E9", "launch": "#0072B2", "download": "#E69F00", "prepare": "#56B4E9",
               "infer": "#0072B2"}
SHOWN = {"launch": "compute"}                   # the name of the call is not what the device does
CURVE_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def bandwidth(panels: Mapping[str, Sequence[Copy]], limits: Mapping[str, tuple[float, str]] | None = None) -> None:
    """Bandwidth against the size of a copy, one panel beside the other, a line for each kind of copy.

    Args:
        panels: by title.
        limits: by title, what the panel cannot exceed in GB/s, and what that is.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.6), squeeze=False, layout="constrained")
    for ax, (title, copies) in zip(axes.flat, panels.items(), strict=True):
        for memory, color in zip(dict.fromkeys(c.memory for c in copies), (FP32_COLOR, INT8_COLOR), strict=False):
            for direction, style in (("h2d", "-"), ("d2h", "--"), ("host", "-")):
                line = [c for c in copies if (c.memory, c.direction) == (memory, direction)]
                name = {"h2d": ", to the device", "d2h": ", to the host"}.get(direction, "")
                if line:
                    ax.plot([c.nbytes for c in line], [c.gb_per_s for c in line], style, color=color, marker=".",
                            label=memory + name)
        top = max(c.gb_per_s for c in copies)
        if limits and title in limits:
            limit, name = limits[title]
            ax.axhline(limit, color="k", ls=":", lw=1)
            ax.text(4096, limit, name, fontsize=8, va="bottom")
            top = max(top, limit)
        ax.set_xscale("log", base=2)
        ticks = [2**i for i in range(12, 27, 4)]
        ax.set_xticks(ticks, ["4 kB", "64 kB", "1 MB", "16 MB"])
        ax.set(title=title, xlabel="size of a copy", ylabel="GB/s", ylim=(0, top * 1.12))
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def gantt(timelines: Mapping[str, Sequence[Span]], lanes: str = "stream") -> None:
    """Who works when: a row for each stream or thread, a bar for each operation, all timelines on one time axis.

    Args:
        timelines: by title.
        lanes: what a row is.
    """
    rows = [1 + max(s.lane for s in spans) for spans in timelines.values()]
    figure, axes = plt.subplots(len(timelines), 1, figsize=(10, 0.9 * len(timelines) + 0.42 * sum(rows)), sharex=True,
                                squeeze=False, layout="constrained", height_ratios=[r + 0.7 for r in rows])
    for ax, (title, spans), count in zip(axes.flat, timelines.items(), rows, strict=True):
        for s in spans:
            ax.barh(s.lane, s.end_ms - s.start_ms, left=s.start_ms, height=0.72, color=STEP_COLORS[s.operation],
                    edgecolor="white", lw=0.6)
            if s.operation in ("launch", "infer"):
                ax.text((s.start_ms + s.end_ms) / 2, s.lane, s.chunk, color="white", fontsize=7, ha="center",
                        va="center")
        ax.axvline(total_ms(spans), color="k", ls="--", lw=1)
        ax.set_yticks(range(count), [f"{lanes} {i}" for i in range(count)])
        ax.set(ylim=(count - 0.4, -0.6))
        ax.set_title(f"{title}: {total_ms(spans):.2f} ms", fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set(xlabel="ms", xlim=(0, None))
    used = dict.fromkeys(s.operation for spans in timelines.values() for s in spans)
    handles = [plt.Rectangle((0, 0), 1, 1, color=STEP_COLORS[step]) for step in used]
    figure.legend(handles, [SHOWN.get(step, step) for step in used], loc="outside lower center", ncols=len(used),
                  frameon=False)
    plt.show()
    plt.close(figure)


def calls(ms: Sequence[float], groups: Sequence[object], title: str) -> None:
    """Time of each call, one bar after the other, coloured by what was new about it.

    Args:
        ms: of each call.
        groups: what each call was given, for example its batch; a bar whose group differs from the one before it
            stands out, and so does the one behind it.
        title: above the plot.
    """
    new = [i == 0 or groups[i] != groups[i - 1] for i in range(len(groups))]
    colors = ["#D55E00" if new[i] else "#E69F00" if new[i - 1] else "#0072B2" for i in range(len(groups))]
    figure, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
    ax.bar(range(len(ms)), ms, color=colors)
    ax.set_xticks(range(len(ms)), [str(g) for g in groups])
    for color, label in (("#D55E00", "first of a shape"), ("#E69F00", "second: captures"), ("#0072B2", "replays")):
        ax.bar(0, 0, color=color, label=label)
    ax.set(xlabel="batch of the call", ylabel="ms", title=title)
    ax.legend(frameon=False, ncols=3, loc="upper right")
    ax.set_ylim(0, max(ms) * 1.25)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def growth(panels: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str = "growth, MiB") -> None:
    """Memory against steps, a panel for each who counted, a line for each program.

    Args:
        panels: by title, curves of `leaks.curve` by name.
        ylabel: of the axis.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.2), squeeze=False, layout="constrained")
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=True):
        for i, ((name, values), color) in enumerate(zip(curves.items(), CURVE_COLORS, strict=False)):
            # Lines that stay at zero lie on each other; markers of different size keep all of them visible.
            ax.plot(np.arange(len(values)), values, color=color, marker="o", ms=8 - 2 * i, label=name)
        ax.set(title=title, xlabel="step", ylabel=ylabel)
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
