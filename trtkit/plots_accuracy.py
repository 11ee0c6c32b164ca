"""Pictures of lesson 11: what an engine finds, misses and mistakes, and where its speed comes from."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from trtkit.evaluate import RECALLS, SIZES, Accuracy
from trtkit.plots_pareto import COLORS


def precision_recall(accuracies: Mapping[str, Accuracy], classes: Sequence[str], *, iou_thr: float = 0.5) -> None:
    """Precision over recall of some classes side by side, one line per engine.

    Args:
        accuracies: by engine.
        classes: names; one panel each.
        iou_thr: from which a detection is right, one of `evaluate.IOU_THRS`.
    """
    figure, axes = plt.subplots(1, len(classes), figsize=(3.6 * len(classes), 3.3), layout="constrained", sharey=True,
                                squeeze=False)
    for ax, name in zip(axes.flat, classes, strict=True):
        for (engine, accuracy), color in zip(accuracies.items(), COLORS, strict=False):
            ax.plot(RECALLS, accuracy.curve(name, iou_thr=iou_thr), color=color, lw=1.5,
                    label=f"{engine}: AP {accuracy.ap(name, iou_thr=iou_thr):.3f}")
        ax.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        ax.legend(frameon=False, loc="lower left", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_ylabel("precision")
    plt.show()
    plt.close(figure)


def confusion(matrices: Mapping[str, np.ndarray], class_names: Sequence[str]) -> None:
    """Which object was found as what, for several engines: `evaluate_errors.confusion` by name."""
    most = max(1, *(_worst(matrix) for matrix in matrices.values()))
    figure, axes = plt.subplots(1, len(matrices), figsize=(5.2 * len(matrices), 4.6), layout="constrained",
                                squeeze=False, sharey=True)
    for ax, (engine, matrix) in zip(axes.flat, matrices.items(), strict=True):
        # mistakes in colour: the diagonal would drown them, and the last corner can hold nothing
        mistakes = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
        ax.imshow(mistakes, cmap="Oranges", vmin=0, vmax=most)
        for i, j in np.ndindex(*matrix.shape):
            if matrix[i, j]:
                ink = "#777777" if i == j else "w" if matrix[i, j] > 0.6 * most else "k"
                ax.text(j, i, matrix[i, j], ha="center", va="center", fontsize=9, color=ink)
        ax.set_xticks(range(len(matrix)), [*class_names, "missed"], rotation=40, ha="right")
        ax.set_yticks(range(len(matrix)), [*class_names, "no object"])
        ax.set(title=engine, xlabel="found as")
    axes.flat[0].set_ylabel("is a")
    plt.show()
    plt.close(figure)


def _worst(matrix: np.ndarray) -> int:
    return int((matrix - np.diag(np.diag(matrix))).max())


def misses(counted: Mapping[str, tuple[np.ndarray, np.ndarray]], class_names: Sequence[str]) -> None:
    """Share of missed objects by class and by size, one bar per engine.

    Args:
        counted: what `evaluate_errors.misses` returned, by engine; the same objects for all.
        class_names: one per row.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.3), layout="constrained", sharey=True,
                                width_ratios=[len(class_names), len(SIZES)])
    bar = 0.8 / len(counted)
    for ax, names, axis in ((axes[0], class_names, 1), (axes[1], SIZES, 0)):
        total = next(iter(counted.values()))[1].sum(axis)
        for i, ((engine, (missed, _)), color) in enumerate(zip(counted.items(), COLORS, strict=False)):
            share = 100 * missed.sum(axis) / np.maximum(total, 1)
            ax.bar(np.arange(len(names)) + (i - (len(counted) - 1) / 2) * bar, share, 0.94 * bar, color=color,
                   label=engine)
        ax.set_xticks(range(len(names)), [f"{name}\n{n} objects" for name, n in zip(names, total, strict=True)],
                      fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("missed, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(counted), frameon=False)
    plt.show()
    plt.close(figure)


def ladder(ms: Mapping[str, float], *, xlabel: str) -> None:
    """Time of an inference after each step of an optimization, with the factor that each step brought.

    Args:
        ms: by step, in their order.
        xlabel: of the time.
    """
    figure, ax = plt.subplots(figsize=(9, 0.55 * len(ms) + 1.0), layout="constrained")
    previous, first = None, next(iter(ms.values()))
    for row, ((_, time), color) in enumerate(zip(ms.items(), COLORS * len(ms), strict=False)):
        ax.barh(row, time, 0.65, color=color)
        said = f"{time:.1f} ms" if time >= 1 else f"{time:.3f} ms"
        if previous:
            said += f"   × {previous / time:.2f}, in all × {first / time:.1f}"
        ax.text(time + 0.01 * first, row, said, va="center", fontsize=9)
        previous = time
    ax.set_yticks(range(len(ms)), list(ms))
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, xlim=(0, 1.25 * max(ms.values())))
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
