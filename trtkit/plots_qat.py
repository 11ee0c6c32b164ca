"""Pictures of lesson 06 about training with fake quantization."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from trtkit.plots import FP32_COLOR, INT8_COLOR

NAMES = {
    "fp32": "FP32",
    "ptq_good": "INT8, good table",
    "ptq_bad": "INT8, spoilt table",
    "finetuned_float_then_ptq_bad": "fine-tuned in float,\nthen spoilt table",
    "qat": "spoilt table,\nfine-tuned with it (QAT)",
}
SPREAD = 0.4                # height of a bar of a pair


def straight_through(limit: float) -> None:
    """Fake quantization with steps of 1 that clips at +-`limit`: what forward computes, and the slope of backward."""
    x = np.linspace(-limit - 2, limit + 2, 2001)
    figure, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
    ax.plot(x, np.clip(np.rint(x), -limit, limit), color=INT8_COLOR, label="forward: stairs")
    line = np.clip(x, -limit - 0.5, limit + 0.5)                # half a step beyond still rounds to the last code
    ax.plot(x, line, color=FP32_COLOR, ls="--", label="backward: the slope of this line")
    ax.set(xlabel="x in steps", ylabel="x' in steps", title="Rounding is passed straight through, clipping is not")
    ax.legend(frameon=False)
    plt.show()
    plt.close(figure)


def recovery(results: Mapping[str, Mapping[str, float]]) -> None:
    """mAP50 and mAP50-95 of each recorded graph, as bars.

    Args:
        results: by the names of `datasets/results/qat_*.json`, each with map50 and map50_95 in [0, 1].
    """
    y = np.arange(len(NAMES))
    figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for metric, label, color, side in (("map50", "mAP50", INT8_COLOR, -1), ("map50_95", "mAP50-95", FP32_COLOR, 1)):
        values = [results[name][metric] for name in NAMES]
        bars = ax.barh(y + side * SPREAD / 2, values, SPREAD, color=color, label=label)
        ax.bar_label(bars, [f"{v:.3f}" for v in values], padding=3, fontsize=9)
    ax.set(yticks=y, yticklabels=NAMES.values(), xlim=(0, 1.1), xlabel="mAP on 200 test images",
           title="What training with the pairs wins back")
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    plt.show()
    plt.close(figure)
