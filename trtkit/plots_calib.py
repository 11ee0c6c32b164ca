"""Pictures of lesson 03, calibration. Each function shows its figure and returns None."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from trtkit.calib import ESTIMATORS, Histogram

# Okabe-Ito; one colour per estimator in the whole lesson.
COLORS = {"max": "#D55E00", "percentile": "#0072B2", "entropy": "#009E73", "mse": "#CC79A7"}


def thresholds(histograms: Mapping[str, Histogram]) -> None:
    """Histograms of |x| on a logarithmic axis, one panel each, with the thresholds of the four estimators."""
    figure, axes = plt.subplots(1, len(histograms), figsize=(5 * len(histograms), 3.8), layout="constrained",
                                squeeze=False)
    for ax, (title, hist) in zip(axes.flat, histograms.items(), strict=True):
        used = int(np.flatnonzero(hist.counts)[-1]) + 1
        group = max(1, used // 200)                     # more bars than pixels would only alias
        used = -(-used // group) * group
        bars = np.append(hist.counts, np.zeros(group, np.int64))[:used].reshape(-1, group).sum(1)
        ax.bar((np.arange(len(bars)) + 0.5) * hist.width * group, bars, hist.width * group, color="#bbbbbb")
        for name, estimate in ESTIMATORS.items():
            amax = estimate(hist)
            ax.axvline(amax, color=COLORS[name], lw=2, label=f"{name} {amax:.3g}")
        ax.set(yscale="log", xlabel="|x|", ylabel="values per bar", title=f"{title}: {hist.counts.sum():,} values")
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def grey(pictures: Mapping[str, np.ndarray], *, top: float) -> None:
    """Show (H, W) pictures in a row, white at 0 and black at `top`."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.1 * len(pictures), 2.5), layout="constrained")
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=top)
        ax.set_title(title, fontsize=10)
        ax.set(xticks=[], yticks=[])
    plt.show()
    plt.close(figure)


def divergence(amax: np.ndarray, kl: np.ndarray, best: float) -> None:
    """KL divergence over the threshold, with its least one."""
    figure, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
    ax.plot(amax, kl, color="#999999", lw=1)
    ax.axvline(best, color=COLORS["entropy"], lw=2, label=f"least at {best:.2f}")
    ax.set(xlabel="threshold", ylabel="KL(P || Q)", yscale="log")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def losses(loss_points: Mapping[str, Mapping[str, float]]) -> None:
    """What each estimator loses, grouped bars.

    Args:
        loss_points: by estimator, then by measure, points of mAP; the same measures for each.
    """
    measures = list(next(iter(loss_points.values())))
    figure, axes = plt.subplots(1, len(measures), figsize=(5 * len(measures), 2.6), layout="constrained", sharey=True)
    for ax, measure in zip(axes, measures, strict=True):
        values = [loss[measure] for loss in loss_points.values()]
        bars = ax.barh(list(loss_points), values, color=[COLORS[name] for name in loss_points])
        ax.bar_label(bars, fmt=lambda v: f" {round(v, 1) + 0.0:.1f}", padding=2)      # -0.0 becomes 0.0
        ax.axvline(0, color="k", lw=0.8)
        ax.set(xlabel=f"points of {measure} lost", xlim=(min(0, *values) * 1.3, max(1, *values) * 1.2))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    plt.show()
    plt.close(figure)


def clipped_at(img_hwc_u8: np.ndarray, clipped: Mapping[str, np.ndarray]) -> None:
    """Where values clip, in red over the picture that the network saw.

    Args:
        img_hwc_u8: (S, S, 3).
        clipped: by title, (h, w) bool or counts, h and w dividing S.
    """
    figure, axes = plt.subplots(1, 1 + len(clipped), figsize=(4.2 * (1 + len(clipped)), 3.6), layout="constrained")
    axes[0].imshow(img_hwc_u8)
    axes[0].set_title("what the network sees", fontsize=10)
    for ax, (title, hits) in zip(axes[1:], clipped.items(), strict=True):
        ax.imshow(img_hwc_u8 // 3 + 170)
        scale = len(img_hwc_u8) // len(hits)
        mask = np.kron(hits > 0, np.ones((scale, scale))).astype(bool)
        overlay = np.zeros((*mask.shape, 4))
        overlay[mask] = (0.84, 0.15, 0.0, 1.0)
        ax.imshow(overlay)
        ax.set_title(title, fontsize=10)
    for ax in axes:
        ax.set(xlim=(0, len(img_hwc_u8)), ylim=(len(img_hwc_u8) * 0.875, len(img_hwc_u8) * 0.125))  # no letterbox bars
        ax.axis("off")
    plt.show()
    plt.close(figure)


def enough(images: Sequence[int], ratios: Mapping[str, np.ndarray]) -> None:
    """How ranges grow with the number of images: median over the tensors, and the band from 10 % to 90 % of them.

    Args:
        images: numbers of images.
        ratios: by estimator, (len(images), tensors): range relative to the one of all images.
    """
    figure, axes = plt.subplots(1, len(ratios), figsize=(3.2 * len(ratios), 2.8), layout="constrained", sharey=True)
    for ax, (name, ratio) in zip(axes, ratios.items(), strict=True):
        low, middle, high = np.percentile(ratio, (10, 50, 90), axis=1)
        ax.fill_between(images, low, high, color=COLORS[name], alpha=0.25, lw=0)
        ax.plot(images, middle, "o-", color=COLORS[name], ms=4)
        ax.axhline(1, color="k", lw=0.8, ls="--")
        ax.set(xscale="log", title=name, xlabel="calibration images")
        ax.set_xticks(images, [str(n) for n in images])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("range / range of all")
    plt.show()
    plt.close(figure)


def sorted_ratios(ratios: Mapping[str, np.ndarray], xlabel: str) -> None:
    """Ranges from wrong images over those from right ones, every tensor, smallest first; one line per set of images."""
    figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    for (name, ratio), color in zip(ratios.items(), ("#0072B2", "#E69F00", "#009E73"), strict=False):
        ax.plot(np.sort(ratio), color=color, lw=2, label=f"{name}: {np.mean(ratio < 0.9):.0%} of tensors below 0.9")
    ax.axhline(1, color="k", lw=0.8, ls="--")
    ax.set(xlabel=xlabel, ylabel="range / right range", ylim=(0, None))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
