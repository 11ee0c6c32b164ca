"""Pictures of lesson 05: graphs as one reads them, and how far two of them are apart."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch

from trtkit.graph_layout import Box, layout
from trtkit.plots import FP32_COLOR, INT8_COLOR
from trtkit.wiring import Graph

# One colour a family of operators, Okabe-Ito lightened so that black letters stand on it.
FAMILIES = {
    "weights": (("Conv", "Gemm", "MatMul", "ConvTranspose"), "#9ecae1"),
    "activation": (("LeakyRelu", "Relu", "Gelu", "Erf", "Sigmoid", "Softmax", "Mish", "Tanh", "Softplus"), "#fdd0a2"),
    "norm or pooling": (("BatchNormalization", "LayerNormalization", "GroupNormalization", "ReduceMean", "MaxPool",
                         "AveragePool", "GlobalAveragePool"), "#e2c9dd"),
    "only moves numbers": (("Transpose", "Reshape", "Concat", "Slice", "Identity", "Cast", "CastLike", "Flatten",
                            "Unsqueeze", "Squeeze", "Shape", "Gather", "Resize", "Pad"), "#e0e0e0"),
    "arithmetic": (("Add", "Mul", "Sub", "Div", "Sum", "Sqrt"), "#c7e9c0"),
}
ROW, WIDTH = 0.62, 1.75         # inches of a row and of a column


def graphs(models: Mapping[str, Graph], *, marked: Sequence[str] = (), notes: bool = True) -> None:
    """Graphs side by side, from top to bottom, as netron draws them.

    Args:
        models: by title, each of some forty nodes at most.
        marked: operators with a red rim.
        notes: write the shape of each tensor beside its arrow.
    """
    boxes = {title: layout(model) for title, model in models.items()}
    spans = [max(abs(b.column) for b in part) + 0.75 for part in boxes.values()]
    depth = max(b.row for part in boxes.values() for b in part)
    figure, axes = plt.subplots(1, len(boxes), figsize=(max(WIDTH * sum(spans) * 1.35, 5), ROW * (depth + 1.6) + 0.5),
                                width_ratios=spans, squeeze=False, layout="constrained")
    for ax, (title, part), span in zip(axes.flat, boxes.items(), spans, strict=True):
        _draw(ax, part, marked, notes)
        ax.set_title(f"{title}: {sum(b.kind == 'node' for b in part)} nodes", fontsize=10)
        ax.set(xlim=(-span, span), ylim=(-depth - 0.5, 0.5))
        ax.axis("off")
    used = {_family(b.label) for part in boxes.values() for b in part if b.kind == "node"}
    for family, (_, color) in FAMILIES.items():
        if family in used:
            axes.flat[0].scatter([], [], marker="s", s=90, color=color, label=family)
    figure.legend(ncols=min(len(used), 5 if len(boxes) > 1 else 3), frameon=False, loc="outside lower center",
                  fontsize=9)
    plt.show()
    plt.close(figure)


def _bend(box: Box, reader: Box, boxes: Sequence[Box]) -> float:
    """How far the way between two boxes leaves the straight line, so that it runs through no box in between; 0 where
    the straight line meets none."""
    passed = [b for b in boxes if box.row < b.row < reader.row]
    slope = (reader.column - box.column) / (reader.row - box.row)
    if not any(abs(box.column + slope * (b.row - box.row) - b.column) < 0.5 for b in passed):
        return 0.0
    return (0.45 + 0.3 * max(abs(b.column - box.column) for b in passed)) * (1 if reader.column <= box.column else -1)


def _draw(ax: plt.Axes, boxes: Sequence[Box], marked: Sequence[str], notes: bool) -> None:
    for box in boxes:
        for i in box.readers:
            reader = boxes[i]
            bend = _bend(box, reader, boxes)
            ax.add_patch(FancyArrowPatch((box.column, -box.row), (reader.column, -reader.row), arrowstyle="-|>",
                                         mutation_scale=9, shrinkA=9, shrinkB=10, lw=1, color="#555555",
                                         connectionstyle=f"arc3,rad={bend}"))
        if notes and box.note and box.readers:
            ax.text(box.column + 0.06, -box.row - 0.5, box.note, fontsize=6.5, color="#666666", va="center")
    for box in boxes:
        rim = FP32_COLOR if box.label in marked else "#666666"
        face = "white" if box.kind != "node" else dict(FAMILIES.values())[_operators(box.label)]
        ax.text(box.column, -box.row, box.label, ha="center", va="center", fontsize=8.5,
                style="normal" if box.kind == "node" else "italic",
                bbox={"boxstyle": "round,pad=0.3", "fc": face, "ec": rim, "lw": 2 if box.label in marked else 0.7})


def _family(op: str) -> str:
    return next((f for f, (operators, _) in FAMILIES.items() if op in operators), "arithmetic")


def _operators(op: str) -> tuple[str, ...]:
    return FAMILIES[_family(op)][0]


def parity_lines(differences: Mapping[str, Mapping[int, float]], bound: float) -> None:
    """Largest difference to the module's outputs by batch, one line per graph, on a logarithmic axis.

    Args:
        differences: by title, `export.max_abs_diff` by batch.
        bound: what is still the same function.
    """
    figure, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
    colors = (INT8_COLOR, "#009E73", "#CC79A7", "#E69F00")
    for (title, by_batch), color, marker in zip(differences.items(), colors, "osD^", strict=False):
        ax.plot(list(by_batch), list(by_batch.values()), f"{marker}-", color=color, lw=1.2, label=title)
    ax.axhline(bound, color=FP32_COLOR, ls="--", lw=1)
    ax.text(1, bound, "claimed ", transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=9,
            color=FP32_COLOR)
    values = [d for by_batch in differences.values() for d in by_batch.values()]
    ax.set(yscale="log", xlabel="images in the batch", ylabel="largest difference",
           ylim=(min(*values, bound) / 3, max(*values, bound) * 3))
    ax.set_xticks(sorted({b for by_batch in differences.values() for b in by_batch}))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
