"""Pictures of lesson 06: where codes flow in a graph, and what they cost."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from trtkit.plots import FP32_COLOR, INT8_COLOR
from trtkit.wiring import Graph, Wiring, wiring

BOX_COLORS = {"Conv": "#cfe3f3", "LeakyRelu": "#e8e8e8", "Add": "#d5efe3"}
SHORT = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}


def blocks(graphs: Mapping[str, Graph], first: str, last: str) -> None:
    """The same part of several graphs side by side, codes in blue and floats in orange.

    Args:
        graphs: by title; Q/DQ versions of one float graph.
        first: the tensor that enters the part.
        last: the tensor that leaves it; its pair is drawn too.
    """
    parts = {title: _between(wiring(graph), first, last) for title, graph in graphs.items()}
    rows = max(len(nodes) for nodes, _ in parts.values())
    figure, axes = plt.subplots(1, len(parts), figsize=(3.6 * len(parts), 0.5 * rows + 1), layout="constrained",
                                squeeze=False)
    for ax, (title, (nodes, weights)) in zip(axes.flat, parts.items(), strict=True):
        _draw(ax, nodes, weights, first)
        ax.set(title=title, xlim=(-1.6, 1.5), ylim=(-rows - 0.2, 0.6))
        ax.axis("off")
    for color, label in ((INT8_COLOR, "8-bit codes"), (FP32_COLOR, "floats")):
        axes.flat[0].plot([], [], color=color, lw=2, label=label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    plt.show()
    plt.close(figure)


def _between(wires: Wiring, first: str, last: str) -> tuple[list, dict[str, str]]:
    """Nodes from `first` to the pair behind `last`, in order; and the DQ of weights and biases, by what it writes."""
    wanted, reached = [last], set()
    while wanted:
        name = wanted.pop()
        node = wires.writer.get(name)
        if name != first and node is not None and node.output[0] not in reached:
            reached.add(node.output[0])
            wanted += node.input
    for q in (n for n in wires.readers.get(last, ()) if n.op_type == "QuantizeLinear"):
        reached |= {q.output[0], *(dq.output[0] for dq in wires.readers[q.output[0]])}
    chosen = [node for node in wires.nodes if node.output[0] in reached and node.output[0] not in wires.constants]
    stored = {n.output[0]: n.name.rpartition(".")[2].split("_")[0] for n in chosen if n.input[0] in wires.constants}
    return [n for n in chosen if n.output[0] not in stored], stored


def _draw(ax: plt.Axes, nodes: Sequence, weights: Mapping[str, str], first: str) -> None:
    y = {first: 0.0} | {node.output[0]: -i - 1.0 for i, node in enumerate(nodes)}
    codes = {node.output[0] for node in nodes if node.op_type == "QuantizeLinear"}
    ax.text(0, 0, "input", ha="center", va="center", fontsize=9)
    for node in nodes:
        below = y[node.output[0]]
        small = node.op_type in SHORT
        ax.text(0, below, SHORT.get(node.op_type, node.op_type), ha="center", va="center", fontsize=8 if small else 10,
                bbox={"boxstyle": "round,pad=0.3", "fc": BOX_COLORS.get(node.op_type, "white"), "ec": "#666666",
                      "lw": 0.8})
        for name in node.input:
            if name in weights:
                side = 0.17 if weights[name] == "weight" else -0.17
                ax.annotate(f"{weights[name]} DQ", (-0.33, below), (-1.55, below + side), fontsize=8, va="center",
                            color=INT8_COLOR, arrowprops={"arrowstyle": "-", "color": INT8_COLOR, "lw": 1})
            elif name in y:
                color = INT8_COLOR if name in codes else FP32_COLOR
                style = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 9, "shrinkB": 9}
                if y[name] - below > 1.5:               # the shortcut, around the nodes in between
                    ax.plot([0.25, 0.85, 0.85], [y[name], y[name], below], color=color, lw=2)
                    ax.annotate("", (0.25, below), (0.85, below), arrowprops=style | {"shrinkA": 0, "shrinkB": 0})
                else:
                    ax.annotate("", (0, below), (0, y[name]), arrowprops=style)


def sensitivity_bars(sqnr_db: Mapping[str, float], all_int8_db: float, *, worst: int = 5) -> None:
    """SQNR of the output with one part in 8 bits at a time, in the network's order; the `worst` stand out.

    Args:
        sqnr_db: by part, from `sensitivity.layer_sensitivity`.
        all_int8_db: with everything in 8 bits.
        worst: how many bars to colour.
    """
    values = np.array(list(sqnr_db.values()))
    limit = np.sort(values)[min(worst, len(values)) - 1]
    figure, ax = plt.subplots(figsize=(9, 0.19 * len(values) + 1), layout="constrained")
    ax.barh(range(len(values)), values, color=[FP32_COLOR if v <= limit else INT8_COLOR for v in values])
    ax.axvline(all_int8_db, color="k", ls="--", lw=1)
    ax.text(all_int8_db, -0.9, f" all in 8 bits: {all_int8_db:.1f} dB", fontsize=9, va="bottom", ha="center")
    ax.set_yticks(range(len(values)), [name.removesuffix("/*").strip("/") for name in sqnr_db], fontsize=7)
    ax.set(xlabel="SQNR of the output, dB: short bars hurt", ylim=(len(values) - 0.5, -0.7))
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def mixed_precision(
    measured: Mapping[int, float], predicted: Mapping[int, float], budget_db: float, *, chosen: int
) -> None:
    """SQNR of the output against the number of parts in float: measured, and predicted by adding up noise.

    Args:
        measured, predicted: dB by number of parts.
        budget_db: what shall be reached.
        chosen: number of parts that the search settled on.
    """
    figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
    ax.plot(list(predicted), list(predicted.values()), color="#999999", lw=1.5, label="predicted: noise powers add")
    ax.plot(list(measured), list(measured.values()), "o", color=INT8_COLOR, label="measured")
    ax.axhline(budget_db, color="k", ls="--", lw=1)
    ax.text(1, budget_db, f"budget {budget_db:g} dB ", transform=ax.get_yaxis_transform(), ha="right", va="bottom",
            fontsize=9)
    ax.axvline(chosen, color=FP32_COLOR, lw=1.5, label=f"{chosen} parts in float reach it")
    ax.set(xlabel="parts in float, most harmful first", ylabel="SQNR of the output, dB")
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)      # above: the line may be anywhere
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)


def cliff(curves: Mapping[str, Mapping[str, float]]) -> None:
    """SQNR of each inner tensor, in the order in which they are computed, one line per graph.

    Args:
        curves: by title, from `sensitivity.tensor_sqnr`; all of the same tensors.
    """
    figure, ax = plt.subplots(figsize=(9, 3.2), layout="constrained")
    for (title, curve), color in zip(curves.items(), (INT8_COLOR, FP32_COLOR, "#009E73"), strict=False):
        ax.plot(list(curve.values()), color=color, lw=1.2, marker=".", ms=4, label=title)
    ax.set(xlabel="tensor, in the order of computation", ylabel="SQNR, dB")
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(curves))
    ax.spines[["top", "right"]].set_visible(False)
    plt.show()
    plt.close(figure)
