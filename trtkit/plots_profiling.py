"""Pictures of lessons 01 and 09: times of runs, times of layers, and what a device could do at best."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from trtkit.devices import Device
from trtkit.plots import FP32_COLOR, INT8_COLOR

GREEN, PINK, GREY = "#009E73", "#CC79A7", "#999999"
# What one inference on a GPU consists of, in its order.
PART_COLORS = {"stage": "#E69F00", "h2d": "#56B4E9", "compute": "#0072B2", "d2h": "#009E73", "fetch": "#CC79A7",
               "rest": "#dddddd"}

FEW = 20                    # runs; below it every one can be seen, and a median says little


def finish(figure: plt.Figure) -> None:
    """Show a figure without the frame's upper and right edge, and forget it."""
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def runs(series: Mapping[str, Sequence[float]]) -> None:
    """Time of run 1, 2, 3, ..., one panel per title, on a logarithmic axis; the median of many as a line.

    Args:
        series: milliseconds by title.
    """
    figure, axes = plt.subplots(1, len(series), figsize=(4.6 * len(series), 3), layout="constrained", squeeze=False)
    for ax, (title, ms) in zip(axes.flat, series.items(), strict=True):
        ax.plot(np.arange(1, len(ms) + 1), ms, ".", color=INT8_COLOR, ms=5)
        if len(ms) >= FEW:
            ax.axhline(np.median(ms), color="k", ls="--", lw=1)
            ax.text(1, np.median(ms), f"median {np.median(ms):.3g} ms", transform=ax.get_yaxis_transform(), ha="right",
                    va="bottom", fontsize=9)
        ax.set(title=title, xlabel="run", yscale="log")
        few_decimals(ax.yaxis)
    axes[0, 0].set_ylabel("ms")
    finish(figure)


def few_decimals(axis) -> None:
    """Plain numbers also where less than a decade is shown."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def distribution(ms: Sequence[float], marks: Mapping[str, float], title: str = "") -> None:
    """A histogram of times, with named ones as vertical lines.

    Args:
        ms: milliseconds.
        marks: milliseconds by name, for example of percentiles.
        title: above the plot.
    """
    figure, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
    ax.hist(ms, bins=60, color="#bbbbbb")
    for (name, x), color in zip(marks.items(), (FP32_COLOR, "k", GREEN, INT8_COLOR, PINK), strict=False):
        ax.axvline(x, color=color, lw=2, label=f"{name} {x:.1f} ms")
    ax.set(xlabel="ms", ylabel="runs", title=title)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    finish(figure)


def lanes(timelines: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    """Launches on the host and kernels on the GPU, one pair of lanes per title.

    Args:
        timelines: per kernel (the launch's end, the kernel's start, its end), milliseconds, by title. A launch begins
            where the one before ended.
    """
    figure, axes = plt.subplots(len(timelines), 1, figsize=(9, 1.25 * len(timelines) + 0.4), layout="constrained",
                                sharex=True, squeeze=False)
    for ax, (title, spans) in zip(axes.flat, timelines.items(), strict=True):
        launched = [0.0, *(span[0] for span in spans)]
        for i, (end, start, done) in enumerate(spans):
            shade = 1.0 if i % 2 else 0.6
            ax.barh(1, end - launched[i], left=launched[i], color=FP32_COLOR, alpha=shade, height=0.7)
            ax.barh(0, done - start, left=start, color=INT8_COLOR, alpha=shade, height=0.7)
        ax.axvline(launched[-1], color=FP32_COLOR, lw=1.5)
        ax.annotate("launch() returns", (launched[-1], 1.45), fontsize=8, color=FP32_COLOR, ha="left", va="bottom",
                    xytext=(3, -4), textcoords="offset points", annotation_clip=False)
        ax.set_yticks([0, 1], ["GPU", "host"])
        ax.set_ylim(-0.5, 1.9)
        ax.set_title(title, fontsize=10, loc="left")
    axes[-1, 0].set_xlabel("ms")
    finish(figure)


def part_bars(engines: Mapping[str, Mapping[str, float]]) -> None:
    """Where the time between arrays in and arrays out goes: stacked bars, one per engine.

    Args:
        engines: median milliseconds of each part by name, of those that are known; what they leave over of
            "end_to_end" is drawn as "rest".
    """
    figure, ax = plt.subplots(figsize=(9, 1.1 + 0.55 * len(engines)), layout="constrained")
    for row, medians in enumerate(engines.values()):
        left = 0.0
        rest = medians["end_to_end"] - sum(medians.get(p, 0.0) for p in PART_COLORS)
        for part, color in PART_COLORS.items():
            ms = max(rest, 0.0) if part == "rest" else medians.get(part, 0.0)
            ax.barh(row, ms, left=left, color=color, label=part if row == 0 and ms > 0 else None)
            left += ms
        ax.text(left, row, f" {medians['end_to_end']:.2f} ms", va="center")
    ax.set_yticks(range(len(engines)), list(engines))
    ax.invert_yaxis()
    ax.set(xlabel="median ms, end to end")
    ax.margins(x=0.1)
    figure.legend(ncols=len(PART_COLORS), frameon=False, loc="outside lower center")
    finish(figure)


def host_and_gpu(batches: Sequence[Mapping]) -> None:
    """Enqueue and compute against the batch, without and with a CUDA graph.

    Args:
        batches: rows with "batch", "graph", "enqueue_ms", "compute_ms".
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for ax, graph in zip(axes, (False, True), strict=True):
        rows = [row for row in batches if row["graph"] == graph]
        for key, color, label in (("enqueue_ms", FP32_COLOR, "host: enqueue"),
                                  ("compute_ms", INT8_COLOR, "GPU: compute")):
            ax.plot([r["batch"] for r in rows], [r[key] for r in rows], "o-", color=color, label=label)
        ax.set(title="with a CUDA graph" if graph else "kernel by kernel", xlabel="batch", ylim=(0, None))
        ax.set_xticks(sorted({r["batch"] for r in batches}))
    axes[0].set_ylabel("median ms")
    axes[0].legend(frameon=False)
    finish(figure)


def roofline(layers: Mapping[str, pd.DataFrame], device: Device, precision: str = "fp32") -> None:
    """Speed of each layer that multiplies against its operations per byte, under the device's two roofs.

    Args:
        layers: of `layer_times.against_roofline`, by title.
        device: its limits.
        precision: of `device.peak_tflops`.
    """
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    every = pd.concat(list(layers.values()))
    every = every[every["macs"] > 0]["intensity"]
    x = np.geomspace(min(every.min(), device.ridge(precision)) / 4, max(every.max(), device.ridge(precision)) * 4, 200)
    peak = device.peak_tflops[precision]
    roof = np.minimum(peak, x * device.bandwidth_gb_per_s / 1000)
    ax.plot(x, roof, color="k", lw=2)
    ax.annotate(f"{precision}: {peak:.3g} TFLOP/s", (x[-1], peak), (0, 4), textcoords="offset points", ha="right",
                va="bottom", fontsize=9)
    ax.annotate(f"{device.bandwidth_gb_per_s:,.0f} GB/s", (x[15], roof[15]), (8, -4), textcoords="offset points",
                va="top", fontsize=9)
    for (title, table), color, marker in zip(layers.items(), (INT8_COLOR, FP32_COLOR, GREEN), "o^s", strict=False):
        shown = table[table["macs"] > 0]
        ax.plot(shown["intensity"], shown["tflops"], marker, color=color, ms=5, alpha=0.7, label=title, ls="")
    ax.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOP/s", title=device.name)
    if ax.get_ylim()[1] < 100 * ax.get_ylim()[0]:
        few_decimals(ax.yaxis)
    ax.legend(frameon=False, loc="lower right")
    finish(figure)


def layer_bars(measured_ms: Sequence[float], predicted_ms: Sequence[float], title: str = "") -> None:
    """Measured time of each layer as bars, in the network's order, and the least that the device needs as a line."""
    figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    x = np.arange(len(measured_ms))
    ax.bar(x, measured_ms, color="#bbbbbb", width=1, label="measured")
    ax.step(x, predicted_ms, where="mid", color=FP32_COLOR, lw=1.5, label="roofline: at least")
    ax.set(xlabel="layer, in the order of execution", ylabel="ms", title=title)
    ax.legend(frameon=False)
    finish(figure)
