"""Pictures of lesson 07: what a builder made of a graph."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

PRECISION_COLORS = {"FP32": "#D55E00", "FP16": "#E69F00", "INT8": "#0072B2", "": "#dddddd"}
BAR_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#999999", "#D55E00", "#F0E442")
OTHERS = "#dddddd"


def fusion(counts: Mapping[str, Mapping[str, int]], *, named: int = 8) -> None:
    """Operators of a graph and of what builders made of it, one stacked bar each.

    Args:
        counts: by title, number of nodes or layers by type.
        named: how many types get a color of their own, the commonest; the rest is "others".
    """
    totals: dict[str, int] = {}
    for bar in counts.values():
        for kind, n in bar.items():
            totals[kind] = totals.get(kind, 0) + n
    kinds = sorted(totals, key=lambda k: -totals[k])[:named]
    figure, ax = plt.subplots(figsize=(9, 1.5 + 0.55 * len(counts)), layout="constrained")
    for row, bar in enumerate(counts.values()):
        left = 0
        others = sum(n for kind, n in bar.items() if kind not in kinds)
        parts = [*((k, bar.get(k, 0)) for k in kinds), ("others", others)]
        for (kind, n), color in zip(parts, (*BAR_COLORS[: len(kinds)], OTHERS), strict=True):
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
    """Every layer of some engines as a cell, from left to right as they run, coloured by what it reads.

    Args:
        engines: by title, layers as `record_07.rows` makes them: "type", "reads".
        title: where the engines come from.
    """
    longest = max(map(len, engines.values()))
    figure, axes = plt.subplots(len(engines), 1, figsize=(9, 0.5 + 0.62 * len(engines)), layout="constrained",
                                squeeze=False, sharex=True)
    for ax, (name, layers) in zip(axes.flat, engines.items(), strict=True):
        for i, layer in enumerate(layers):
            copy = is_copy(layer)
            ax.bar(i, 0.45 if copy else 1, 0.9, color=PRECISION_COLORS.get(narrowest(layer), OTHERS))
        ax.set(xlim=(-1, longest), ylim=(0, 1), yticks=[])
        ax.set_ylabel(f"{name}\n{len(layers)} layers", rotation=0, ha="right", va="center")
        ax.spines[["top", "right", "left"]].set_visible(False)
    for kind, color in PRECISION_COLORS.items():
        axes.flat[0].bar(0, 0, color=color, label=f"reads {kind}" if kind else "other types")
    axes.flat[-1].set_xlabel("layer, in the order they run; low cells only copy or change the format")
    figure.suptitle(title, fontsize=10)
    figure.legend(ncols=4, frameon=False, loc="outside lower center")
    plt.show()
    plt.close(figure)


def narrowest(layer: Mapping) -> str:
    """The narrowest type that a layer reads, "" if it is none of those with a color."""
    reads = layer["reads"].split("+")
    return next((kind for kind in ("INT8", "FP16", "FP32") if kind in reads), "")


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
    ax.axhline(1, color="k", lw=0.8, ls="--")
    ax.set_xticks(range(len(ms)), list(ms))
    ax.set(yscale="log", ylabel="time / fastest", xlabel="layer: channels × rows × columns")
    figure.legend(ncols=len(names), frameon=False, loc="outside upper center")
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def total_time(engines: Mapping[str, tuple[float, float]], title: str) -> None:
    """Seconds until the n-th inference is done, the build included: where do two engines break even?

    Args:
        engines: by title, (build_s, latency_ms).
        title: where the numbers come from.
    """
    runs = np.logspace(2, 8, 200)
    figure, ax = plt.subplots(figsize=(9, 3.2), layout="constrained")
    for (name, (build_s, latency_ms)), color in zip(engines.items(), BAR_COLORS, strict=False):
        ax.plot(runs, build_s + runs * latency_ms / 1000, color=color, lw=2,
                label=f"{name}: {build_s:.0f} s + n · {latency_ms:.3f} ms")
    ax.set(xscale="log", yscale="log", xlabel="inferences n", ylabel="s", title=title)
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
    for (name, ratio), color in zip(ratios.items(), BAR_COLORS, strict=False):
        ax.plot(np.sort(ratio), color=color, lw=2, label=f"{name}, {len(ratio)} tensors")
    ax.axhline(1, color="k", lw=0.8, ls="--")
    ax.set(xlabel="tensor, sorted", ylabel="threshold / max |x|", ylim=(0, None), title=title)
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
