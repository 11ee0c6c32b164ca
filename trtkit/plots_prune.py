"""Pictures of lesson 04: which weights are gone, what goes together, and what it buys."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from trtkit.plots import FP32_COLOR
from trtkit.plots_pareto import COLORS

KEPT_COLOR, GONE_COLOR = "#cfe3f3", FP32_COLOR
GAP = 14                    # between two weights, channels


def masks(kept: Mapping[str, np.ndarray]) -> None:
    """Masks of one convolution side by side: a dark dot for each weight that stays.

    Args:
        kept: by title, (C_out, C_in, k, k) bool.
    """
    figure, axes = plt.subplots(1, len(kept), figsize=(3.2 * len(kept), 3.7), layout="constrained", squeeze=False)
    for ax, (title, mask) in zip(axes.flat, ((t, np.asarray(m)) for t, m in kept.items()), strict=True):
        c_out, c_in, height, width = mask.shape
        ax.imshow(mask.transpose(0, 2, 1, 3).reshape(c_out * height, c_in * width), cmap="Blues", vmin=0, vmax=1.2,
                  interpolation="nearest")
        ax.set_xticks(np.arange(0, c_in + 1, 4) * width - 0.5, np.arange(0, c_in + 1, 4), fontsize=7)
        ax.set_yticks(np.arange(0, c_out + 1, 4) * height - 0.5, np.arange(0, c_out + 1, 4), fontsize=7)
        ax.set_title(f"{title}\n{1 - mask.mean():.0%} zeros", fontsize=10)
        ax.set_xlabel("input channel", fontsize=9)
    axes.flat[0].set_ylabel("output channel", fontsize=9)
    plt.show()
    plt.close(figure)


def coupling(model, group, choices: Sequence[int]) -> None:
    """What must go together: the weight of each layer of a group, with the rows and columns that go.

    Args:
        model: that the group is of.
        group: a `coupling.Group`.
        choices: which of its channels go.
    """
    parameters = dict(model.named_parameters())
    shapes = {m.layer: tuple(parameters[f"{m.layer}.weight"].shape[:2]) for m in group.members}
    widths = [shape[1] if len(shape) == 2 else 3 for shape in shapes.values()]
    figure, axes = plt.subplots(1, len(shapes), figsize=(11, 3.6), layout="constrained", squeeze=False,
                                width_ratios=[w + GAP for w in widths])
    panels = dict(zip(shapes, axes.flat, strict=True))
    tallest = max(shape[0] for shape in shapes.values())
    for (layer, ax), width in zip(panels.items(), widths, strict=True):
        ax.add_patch(Rectangle((0, 0), width, shapes[layer][0], fc=KEPT_COLOR, ec="#666666", lw=0.8))
        ax.set_title(f"{layer}\n{' × '.join(map(str, shapes[layer]))}", fontsize=9)
        ax.set(xlim=(-GAP / 2, width + GAP / 2), ylim=(tallest + 1, -1), aspect="equal")
        ax.axis("off")
    for m in group.members:
        height, width = shapes[m.layer][0], widths[list(shapes).index(m.layer)]
        for position in (p for choice in choices for p in m.index[choice]):
            corner, size = ((0, position), (width, 1)) if m.side == "out" else ((position, 0), (1, height))
            panels[m.layer].add_patch(Rectangle(corner, *size, fc=GONE_COLOR, lw=0))
    figure.supxlabel("rows are output channels, columns input channels; orange goes", fontsize=9)
    plt.show()
    plt.close(figure)


def curves(
    lines: Mapping[str, Mapping[float, float]],
    *,
    xlabel: str,
    ylabel: str,
    dashed: Sequence[str] = (),
    level: float | None = None,
) -> None:
    """Shares against shares, in percent, one line per name.

    Args:
        lines: y by x, both in [0, 1], by name.
        dashed: names of predictions, drawn without points.
        level: a horizontal line, for example the accuracy before pruning.
    """
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    measured = [name for name in lines if name not in dashed]
    for name, line in lines.items():
        x, y = 100 * np.array(list(line)), 100 * np.array(list(line.values()))
        if name in dashed:
            ax.plot(x, y, color="#999999", ls="--", lw=1.5, label=name)
        else:
            ax.plot(x, y, color=COLORS[measured.index(name) % len(COLORS)], marker="o", ms=4, lw=1.5, label=name)
    if level is not None:
        ax.axhline(100 * level, color="k", ls=":", lw=1)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def widths(channels: Mapping[str, Mapping[str, int]]) -> None:
    """Channels of each group in several networks, as bars.

    Args:
        channels: by network, number of channels by the group's name; the first network is drawn in grey behind.
    """
    names = list(next(iter(channels.values())))
    figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
    place = np.arange(len(names))
    (whole, before), *others = channels.items()
    ax.bar(place, [before[n] for n in names], 0.9, color="#e8e8e8", label=whole)
    bar = 0.8 / len(others)
    for i, ((network, kept), color) in enumerate(zip(others, COLORS, strict=False)):
        bars = ax.bar(place + (i - (len(others) - 1) / 2) * bar, [kept[n] for n in names], 0.92 * bar, color=color,
                      label=network)
        ax.bar_label(bars, fontsize=8)
    ax.set_xticks(place, names, fontsize=9)
    ax.set(ylabel="channels")
    figure.legend(loc="outside lower center", ncols=len(channels), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def recovery(accuracy: Mapping[str, Mapping[str, float]], *, level: float, half_width: float) -> None:
    """Accuracy of each network at each stage: all of it, and what is near the dense network's, larger.

    Args:
        accuracy: in [0, 1], by network ("-20 %"), by stage ("pruned", "fine-tuned").
        level: of the dense network.
        half_width: of the band around it, in which a difference may be chance.
    """
    stages = list(next(iter(accuracy.values())))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax in axes:
        ax.axhspan(100 * (level - half_width), 100 * (level + half_width), color="#e8e8e8",
                   label=f"dense, trained on: {100 * level:.1f} ± {100 * half_width:.1f}")
        for i, by_stage in enumerate(accuracy.values()):
            for j, stage in enumerate(stages):
                ax.plot(i + 0.2 * (j - (len(stages) - 1) / 2), 100 * by_stage[stage], "o", color=COLORS[j], ms=7,
                        label=stage if i == 0 else None)
        ax.set_xticks(range(len(accuracy)), list(accuracy))
        ax.set(xlabel="parameters", xlim=(-0.5, len(accuracy) - 0.5))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="right of 900 test digits, %", ylim=(0, 103))
    axes[1].set(title="the upper end", ylim=(100 * (level - 5 * half_width), 100.1))
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    plt.show()
    plt.close(figure)


def staircase(ms: Mapping[str, Mapping[int, float]], step: int, *, ylabel: str = "ms") -> None:
    """Time of a convolution against its channels, with a line where the padded channels grow.

    Args:
        ms: by name, time by number of channels; "smooth" names a prediction, drawn dashed.
        step: channels per block of the kernel; 0 for no lines.
        ylabel: of the time.
    """
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    measured = [name for name in ms if name != "smooth"]
    for name, line in ms.items():
        if name == "smooth":
            ax.plot(list(line), list(line.values()), color="#999999", ls="--", lw=1.5, label="proportional to the work")
        else:
            ax.plot(list(line), list(line.values()), "o-", color=COLORS[measured.index(name)], ms=4, lw=1.2, label=name)
    channels = next(iter(ms.values()))
    for x in range(step, max(channels) + 1, step) if step else ():
        ax.axvline(x + 0.5, color="#bbbbbb", lw=0.8, ls=":")
    ticks = [c for c in channels if c % 4 == 0] or list(channels)       # 32 and 33 would overlap
    ax.set_xticks(ticks, [str(c) for c in ticks], fontsize=8)
    ax.set(xlabel="channels in and out", ylabel=ylabel, ylim=(0, None))
    ax.legend(frameon=False, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
