"""Pictures of lesson 02: grids, codes, errors. Each function shows its figure and returns None."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from trtkit import floats, quant

# Okabe-Ito, readable without colour vision.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"
COLORS = (BLUE, ORANGE, GREEN, PINK)


def _finish(figure: plt.Figure, *axes: plt.Axes) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def number_line(x: np.ndarray, grids: Mapping[str, quant.QParams]) -> None:
    """Real numbers above each grid, an arrow to the mark that each becomes, and the code below the mark.

    Args:
        x: (n,) the numbers, a handful.
        grids: parameters per tensor, by name, of few bits; one row each. Saturated numbers are drawn in another colour.
    """
    figure, axes = plt.subplots(len(grids), figsize=(11, 1.9 * len(grids)), sharex=True, squeeze=False,
                                layout="constrained")
    for ax, (name, q) in zip(axes.flat, grids.items(), strict=True):
        codes = np.arange(q.qmin, q.qmax + 1)
        marks = quant.dequantize(codes, q)
        ax.hlines(0, marks[0], marks[-1], color="k", lw=1.5)
        ax.plot(marks, np.zeros(len(marks)), "|", color="k", ms=16, mew=1.5)
        for code, mark in zip(codes, marks, strict=True):
            ax.text(mark, -0.32, f"{code}", ha="center", va="top", fontsize=9)
        rounded = quant.fake_quantize(x, q)
        for value, target in zip(x, rounded, strict=True):
            color = ORANGE if abs(value - target) > 0.5001 * q.scale else BLUE
            ax.annotate("", (target, 0.08), (value, 0.8), arrowprops={"arrowstyle": "->", "color": color, "lw": 1.2})
            ax.plot(value, 0.8, "o", color=color, ms=6)
        ax.set(ylim=(-0.8, 1.1), yticks=[])
        ax.set_title(name, loc="left", fontsize=10)
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.tick_params(bottom=False)
    axes.flat[-1].set_xlabel("real number (the integers under the marks are its codes)")
    _finish(figure, *axes.flat)


def code_counts(codes: Mapping[str, np.ndarray]) -> None:
    """How often each of the 256 codes of a tensor is used, one row per name, on a logarithmic axis."""
    figure, axes = plt.subplots(len(codes), figsize=(9, 1.7 * len(codes)), squeeze=False, layout="constrained")
    for ax, (name, values), color in zip(axes.flat, codes.items(), COLORS, strict=False):
        low = int(np.iinfo(values.dtype).min)
        counts = np.bincount(values.ravel().astype(int) - low, minlength=256)
        ax.bar(np.arange(256) + low, counts, 1.0, color=color)
        ax.set_yscale("log")
        ax.set(xlim=(low - 1, low + 256), ylabel="values")
        ax.set_title(f"{name}: {np.count_nonzero(counts)} of 256 codes used", loc="left", fontsize=10)
    axes.flat[-1].set_xlabel("code")
    _finish(figure, *axes.flat)


def error_maps(maps: Mapping[str, np.ndarray]) -> None:
    """Relative errors of a layer's weights side by side: a row per channel, a column per weight, one colour scale.

    Args:
        maps: (channels, weights) errors in per cent of the channel's own root mean square, by name.
    """
    figure, axes = plt.subplots(1, len(maps), figsize=(10, 3.6), sharey=True, squeeze=False, layout="constrained")
    for ax, (name, errors) in zip(axes.flat, maps.items(), strict=True):
        image = ax.imshow(np.maximum(errors, 0.01), aspect="auto", cmap="magma", norm="log", vmin=0.01, vmax=100,
                          interpolation="nearest")
        ax.set(title=name, xlabel="weight")
    axes.flat[0].set_ylabel("channel")
    figure.colorbar(image, ax=axes, label="error, % of the channel's rms", shrink=0.9)
    plt.show()
    plt.close(figure)


def sqnr_against_bits(
    bits: Sequence[int], predicted: Mapping[str, Sequence[float]], measured: Mapping[str, Sequence[float]]
) -> None:
    """SQNR in dB by number of bits: lines for what formulas say, dots for measurements, and the 6.02 dB a bit line.

    Args:
        bits: (n,) the x axis.
        predicted: (n,) dB by name.
        measured: (n,) dB by the same names.
    """
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    ax.plot(bits, 6.02 * np.asarray(bits), color="k", ls="--", lw=1, label="6.02 b")
    for (name, db), color in zip(predicted.items(), (*COLORS, "#E69F00"), strict=False):
        ax.plot(bits, db, color=color, lw=1.5, label=f"{name}, predicted")
        ax.plot(bits, measured[name], "o", color=color, ms=6)
    ax.plot([], [], "o", color=GREY, ms=6, label="measured")
    ax.set(xlabel="bits", ylabel="SQNR, dB", xticks=list(bits))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _finish(figure, ax)


def clipping(amax: np.ndarray, mse: Mapping[str, np.ndarray], best: Mapping[str, float],
             measured: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Mean squared error against the clipping threshold, on a logarithmic axis, the optimum of each curve marked.

    Args:
        amax: (n,) thresholds in standard deviations.
        mse: (n,) closed form, as a share of the variance, by name.
        best: optimal threshold by the same names.
        measured: thresholds and errors of samples, by the same names.
    """
    figure, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
    for (name, errors), color in zip(mse.items(), COLORS, strict=False):
        ax.plot(amax, errors, color=color, lw=1.5, label=name)
        bottom = float(np.interp(best[name], amax, errors))
        ax.plot(best[name], bottom, "*", color=color, ms=14, zorder=3)
        ax.annotate(f"{best[name]:.2f}", (best[name], bottom), (0, -18), textcoords="offset points", ha="center",
                    color=color, bbox={"fc": "white", "ec": "none", "pad": 0.5})
        if name in measured:
            ax.plot(*measured[name], "o", color=color, ms=4, mfc="none")
    ax.set_yscale("log")
    ax.set(xlabel="amax, standard deviations", ylabel="mean squared error / variance")
    ax.set_ylim(bottom=0.4 * min(float(e.min()) for e in mse.values()))
    ax.plot([], [], "o", color=GREY, ms=4, mfc="none", label="measured on a sample")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _finish(figure, ax)


def float_grids(formats: Sequence[floats.FloatFormat], high: float, int8_scale: float) -> None:
    """The marks of each format between 0 and `high`, a row each, and INT8's even ones below for comparison."""
    figure, ax = plt.subplots(figsize=(11, 0.5 * len(formats) + 1.3), layout="constrained")
    rows = {f.name: floats.grid_values(f, 0, high) for f in formats}
    rows["INT8"] = np.arange(0, high + int8_scale / 2, int8_scale)
    for row, (marks, color) in enumerate(zip(rows.values(), COLORS, strict=False)):
        ax.plot(marks, np.full(len(marks), -row), "|", color=color, ms=18, mew=1.2)
    ax.set_yticks(-np.arange(len(rows)), [f"{name}: {len(marks)}" for name, marks in rows.items()])
    ax.set(xlabel="real number (beside each name: how many marks)", ylim=(-len(rows) + 0.4, 0.6))
    _finish(figure, ax)


def step_against_x(formats: Sequence[floats.FloatFormat], limit: float, unit: str, tolerance: float) -> None:
    """Largest rounding error of each format around x, both axes logarithmic, and the error that is tolerable."""
    x = np.geomspace(0.25, 0.999 * limit, 2000)         # at the limit itself the next step begins
    figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for fmt, color in zip(formats, COLORS, strict=False):
        inside = x <= fmt.max_value
        ax.plot(x[inside], floats.ulp(x, fmt)[inside] / 2, color=color, lw=1.5, label=fmt.name)
    ax.axhline(tolerance, color="k", ls="--", lw=1)
    ax.text(x[0], tolerance * 1.15, f"{tolerance:g} {unit}", fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set(xlabel=f"x, {unit}", ylabel=f"largest error, {unit}")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _finish(figure, ax)
