"""Pictures of lesson 07: what a builder made of a graph."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter

PRECISION_COLORS = {"FP32": "#D55E00", "FP16": "#E69F00", "INT8": "#0072B2", "": "#dddddd"}
BAR_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#999999", "#D55E00", "#F0E442")
OTHERS = "#dddddd"


def fusion(counts: Mapping[str, Mapping[str, int]], *, named: int = 8) -> None:
    """Operators of a graph and of what builders made of it, one stacked bar each.

    Args:
        counts: by title, number of nodes or layers by type.
        named: how many types get a color of their own, the commonest, at most 8; the rest is "others".
    """
    totals: dict[str, int] = {}
    for bar in counts.values():
        for kind, n in bar.items():
            totals[kind] = totals.get(kind, 0) + n
    kinds = sorted(totals, key=lambda k: -totals[k])[: min(named, len(BAR_COLORS))]
    colors = dict(zip(kinds, BAR_COLORS, strict=False))
    if len(totals) > len(kinds):
        colors["others"] = OTHERS
    figure, ax = plt.subplots(figsize=(9, 1.5 + 0.55 * len(counts)), layout="constrained")
    for row, bar in enumerate(counts.values()):
        left = 0
        others = sum(n for kind, n in bar.items() if kind not in kinds)
        for kind, color in colors.items():
            n = bar.get(kind, others if kind == "others" else 0)
            ax.barh(row, n, left=left, color=color, height=0.7, label=kind if row == 0 else None)
            if n >= 0.035 * max(sum(c.values()) for c in counts.values()):
                ax.text(left + n / 2, row, str(n), ha="center", va="center", fontsize=9)
            left += n
        ax.text(left, row, f"  {left}", va="center", fontweight="bold")
    ax.set_yticks(range(len(counts)), list(counts))
    ax.invert_yaxis()
    ax.set(xlabel="operators")
    figure.legend(ncols=5, frameon=False, loc="outside lower center")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.08)
    plt.show()
    plt.close(figure)


def layer_strips(engines: Mapping[str, Sequence[Mapping]], title: str) -> None:
    """Every layer of some engines as a cell, from left to right as they run, coloured by its precision.

    Args:
        engines: by title, layers as `record_07.rows` makes them: "type", "precision".
        title: where the engines come from.
    """
    longest = max(map(len, engines.values()))
    figure, axes = plt.subplots(len(engines), 1, figsize=(9, 0.5 + 0.62 * len(engines)), layout="constrained",
                                squeeze=False, sharex=True)
    for ax, (name, layers) in zip(axes.flat, engines.items(), strict=True):
        for i, layer in enumerate(layers):
            copy = is_copy(layer)
            ax.bar(i, 0.45 if copy else 1, 0.9, color=PRECISION_COLORS.get(layer["precision"], OTHERS))
        ax.set(xlim=(-1, longest), ylim=(0, 1), yticks=[])
        ax.set_ylabel(f"{name}\n{len(layers)} layers", rotation=0, ha="right", va="center")
        ax.spines[["top", "right", "left"]].set_visible(False)
    for kind, color in PRECISION_COLORS.items():
        axes.flat[0].bar(0, 0, color=color, label=kind or "the inspector does not say")
    axes.flat[-1].set_xlabel("layer, in the order they run; low cells only copy or change the format")
    figure.suptitle(title, fontsize=10)
    figure.legend(ncols=4, frameon=False, loc="outside lower center")
    plt.show()
    plt.close(figure)


def is_copy(layer: Mapping) -> bool:
    """Whether a layer computes nothing: a reformat, a copy, or no operation at all."""
    return layer["type"] in ("NoOp", "Constant") or "Reformat" in layer["type"]


def tactic_times(ms: Mapping[str, Mapping[str, float]]) -> None:
    """Time of each tactic on each layer, over the fastest one's; the winner is filled.

    Args:
        ms: by layer, milliseconds by tactic.
    """
    names = list(next(iter(ms.values())))
    figure, ax = plt.subplots(figsize=(9, 3.2), layout="constrained")
    width = 0.8 / len(names)
    for j, name in enumerate(names):
        for i, times in enumerate(ms.values()):
            best = min(times.values())
            won = times[name] == best
            ax.bar(i + (j - (len(names) - 1) / 2) * width, times[name] / best, width * 0.9, color=BAR_COLORS[j],
                   alpha=1 if won else 0.4, label=name if i == 0 else None)
    ax.set_xticks(range(len(ms)), list(ms))
    ax.set(yscale="log", ylabel="time / fastest", xlabel="layer: channels × rows × columns")
    ax.set_ylim(bottom=0.5)                             # so that the winner, at 1, is a bar too
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))
    legend = figure.legend(ncols=len(names), frameon=False, loc="outside upper center")
    for patch in legend.get_patches():
        patch.set_alpha(1)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def era_matrix(names: Mapping[str, Mapping[str, tuple]], eras: Sequence[str]) -> None:
    """Which name exists in which era, one panel per topic; a number is the value of an enum's member.

    Args:
        names: `eras.NAMES`.
        eras: their titles.
    """
    sides, rows = {}, [0, 0]
    for topic in sorted(names, key=lambda t: -len(names[t])):       # into two columns of about equal height
        sides[topic] = int(rows[1] < rows[0])
        rows[sides[topic]] += len(names[topic]) + 2
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.23 * max(rows)), layout="constrained")
    for side, ax in enumerate(axes):
        y = 0
        for topic, entries in ((t, e) for t, e in names.items() if sides[t] == side):
            ax.text(-0.6, y, topic, ha="right", va="center", fontweight="bold", fontsize=9)
            for x, era in enumerate(eras):
                ax.text(x, y, era, ha="center", va="center", fontsize=8)
            for name, values in entries.items():
                y += 1
                ax.text(-0.6, y, name, ha="right", va="center", fontsize=7.5)
                for x, value in enumerate(values):
                    color = OTHERS if value is None else BAR_COLORS[2]
                    ax.add_patch(plt.Rectangle((x - 0.45, y - 0.4), 0.9, 0.8, color=color))
                    if value is not None and value is not True:
                        ax.text(x, y, value, ha="center", va="center", fontsize=8, color="w")
            y += 2
        ax.set(xlim=(-7, len(eras) - 0.4), ylim=(max(rows) - 1, -1))
        ax.axis("off")
    plt.show()
    plt.close(figure)


def break_even(first: tuple[float, float], other: tuple[float, float], names: tuple[str, str], title: str) -> None:
    """Time until the n-th inference is done, the build included: one engine's over the first one's.

    Args:
        first, other: build_s and latency_ms of two engines.
        names: theirs.
        title: where the numbers come from.
    """
    runs = np.logspace(2, 9, 300)
    totals_s = [build_s + runs * latency_ms / 1000 for build_s, latency_ms in (first, other)]
    ratio = totals_s[1] / totals_s[0]
    figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    ax.plot(runs, ratio, color="k", lw=1.5)
    ax.fill_between(runs, ratio, 1, where=ratio > 1, color=BAR_COLORS[6], alpha=0.25, label=f"{names[0]} is ahead")
    ax.fill_between(runs, ratio, 1, where=ratio < 1, color=BAR_COLORS[2], alpha=0.25, label=f"{names[1]} is ahead")
    ax.axhline(1, color="k", lw=0.8, ls="--")
    ax.set(xscale="log", xlabel="inferences n", ylabel=f"total time,\n{names[1]} / {names[0]}", title=title)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def threshold_ratios(ratios: Mapping[str, np.ndarray], title: str) -> None:
    """TensorRT's thresholds over the largest value that each tensor takes, smallest first.

    Args:
        ratios: by calibrator, one number per tensor.
        title: where they come from.
    """
    figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    for i, (name, ratio) in enumerate(ratios.items()):
        color, style = BAR_COLORS[3 * i % len(BAR_COLORS)], ("-", "--")[i % 2]
        ax.plot(np.sort(ratio), style, color=color, lw=2, label=f"{name}, {len(ratio)} tensors")
    ax.axhline(1, color="k", lw=0.8, ls="--")
    ax.set(xlabel="tensor, sorted", ylabel="threshold / max |x|", ylim=(0, None), title=title)
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
