"""Pictures of lesson 01: where the work, the weights and the activations are, and what devices could do with them.

The roofline with the layers on it is lesson 09's: `plots_profiling.roofline`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from trtkit.plots import FP32_COLOR, INT8_COLOR
from trtkit.plots_profiling import GREEN as FP16_COLOR
from trtkit.plots_profiling import few_decimals, finish

PRECISION_COLORS = {"fp32": FP32_COLOR, "fp16": FP16_COLOR, "int8": INT8_COLOR}
GREY = "#bbbbbb"
# From the image inwards and out again: the backbone from light to dark, the heads in other colours.
_SHADES = ("#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c", "#E69F00", "#CC79A7", "#009E73")


def where(panels: Mapping[str, Sequence[float]], stages: Sequence[str]) -> None:
    """One bar per layer, in the network's order, one panel below the other; the stages are shaded and named.

    Args:
        panels: a number for each layer, by title with its unit.
        stages: of each layer.
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, 1.8 * len(panels) + 0.3), sharex=True, squeeze=False,
                                layout="constrained")
    names = list(dict.fromkeys(stages))
    color = dict(zip(names, _SHADES, strict=False))
    for ax, (title, values) in zip(axes.flat, panels.items(), strict=True):
        ax.bar(np.arange(len(values)), values, width=1, color=[color.get(s, GREY) for s in stages], edgecolor="#666666",
               linewidth=0.4)
        ax.set_title(title, loc="left", fontsize=10)
        ax.margins(x=0.005)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color.get(name, GREY)) for name in names]
    axes[-1, 0].set_xlabel("convolution, in the order of execution")
    figure.legend(handles, names, ncols=len(names), frameon=False, loc="outside lower center", fontsize=9,
                  columnspacing=1, handlelength=1)
    finish(figure)


def predicted_and_measured(panels: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """The least time of each stage beside the measured one, one panel per title, each with its own axis.

    Args:
        panels: (predicted, measured) milliseconds by stage, by title.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.2), squeeze=False, layout="constrained")
    for ax, (title, stages) in zip(axes.flat, panels.items(), strict=True):
        x = np.arange(len(stages))
        predicted, measured = np.array(list(stages.values())).T
        ax.bar(x - 0.2, predicted, 0.4, color=FP32_COLOR, label="roofline: at least")
        ax.bar(x + 0.2, measured, 0.4, color=GREY, label="measured")
        for i, (low, high) in enumerate(zip(predicted, measured, strict=True)):
            ax.text(i + 0.2, high, f"{high / low:.1f}×", ha="center", va="bottom", fontsize=8)
        ax.set_xticks(x, list(stages), rotation=40, ha="right")
        ax.set(ylabel="ms", title=title)
        ax.title.set_fontsize(10)
        ax.legend(frameon=False, fontsize=9)
    finish(figure)


def against_batch(
    panels: Mapping[str, Mapping[str, Mapping[int, float]]], lines: Mapping[str, float], ylabels: Sequence[str]
) -> None:
    """Curves over the batch size, both axes logarithmic, one panel per title.

    Args:
        panels: a number by batch, by name of the curve, by title.
        lines: levels of the first panel, by name.
        ylabels: of each panel.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.6), squeeze=False, layout="constrained")
    for ax, (title, curves), ylabel in zip(axes.flat, panels.items(), ylabels, strict=True):
        for (name, curve), color, marker in zip(curves.items(), (FP32_COLOR, INT8_COLOR, FP16_COLOR), "o^s",
                                                strict=False):
            ax.plot(list(curve), list(curve.values()), f"{marker}-", color=color, label=name)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        every = sorted({batch for curve in curves.values() for batch in curve})
        ax.set_xticks(every, [str(batch) for batch in every])
        ax.set(title=title, xlabel="batch", ylabel=ylabel)
        if ax.get_ylim()[1] < 100 * ax.get_ylim()[0]:
            few_decimals(ax.yaxis)
        ax.legend(frameon=False, fontsize=9)
    for name, level in lines.items():
        axes[0, 0].axhline(level, color="k", ls=":", lw=1)
        axes[0, 0].text(0.01, level, name, transform=axes[0, 0].get_yaxis_transform(), va="top", fontsize=8)
    finish(figure)


def best_images_per_s(devices: Mapping[str, Mapping[str, float]], wanted: float, seen: Mapping[str, tuple]) -> None:
    """What devices could do at best, as bars on a logarithmic axis, with the rate that somebody promised as a line.

    Args:
        devices: images per second by precision (of `PRECISION_COLORS`), by device.
        wanted: images per second.
        seen: (precision, images per second) that somebody measured, by device; drawn as a dot on that bar.
    """
    figure, ax = plt.subplots(figsize=(10, 0.75 * len(devices) + 1), layout="constrained")
    for row, (name, rates) in enumerate(devices.items()):
        for i, (precision, color) in enumerate(PRECISION_COLORS.items()):
            if precision in rates:
                y = row + (i - 1) * 0.26
                ax.barh(y, rates[precision], 0.24, color=color)
                ax.text(rates[precision], y, f" {rates[precision]:,.0f}", va="center", fontsize=8)
                if name in seen and seen[name][0] == precision:
                    ax.plot(seen[name][1], y, "ko", ms=5)
    ax.axvline(wanted, color="k", ls="--", lw=1)
    ax.set(xscale="log", xlabel="images per second, at best (a dot: measured)")
    ax.set_yticks(range(len(devices)), list(devices))
    ax.invert_yaxis()
    ax.text(wanted, 1.01, f"{wanted:.0f} frames/s", transform=ax.get_xaxis_transform(), ha="center", fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in PRECISION_COLORS.values()]
    figure.legend(handles, [p.upper() for p in PRECISION_COLORS], ncols=3, frameon=False, loc="outside lower right")
    finish(figure)
