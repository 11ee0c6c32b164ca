"""Which layers does 8 bits hurt, and which must return to float? Lesson 06.

What is measured is the network's output against that of the float graph:
    SQNR = 10 log10(sum y^2 / sum (y - y')^2)       over all outputs and images
`layer_sensitivity` quantizes one layer alone and measures; its worst layers return to float first, see
`mixed_precision`. `tensor_sqnr` follows one quantized graph from tensor to tensor: where the SQNR falls off a cliff,
the fault is.
"""

import fnmatch
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trtkit import engine, qdq
from trtkit.calib import Range
from trtkit.engine import Runner
from trtkit.export import expose_tensors
from trtkit.progress import bar
from trtkit.quant import sqnr_db
from trtkit.wiring import Graph

FOLLOWED = ("Conv", "Gemm", "MatMul", "Add", "Concat")
Score = Callable[[Runner], float]


@contextmanager
def running(model: Graph, *, backend: str = "auto") -> Iterator[Runner]:
    """A runner of a graph that is wanted once: `with running(model) as runner`. Its plan does not stay in the cache."""
    with tempfile.TemporaryDirectory(prefix="trtkit-") as folder:
        path = Path(folder) / "once.onnx"
        path.write_bytes(model.SerializeToString())
        plan = engine.build(path, backend=backend)
        try:
            runner = engine.load(plan)
        finally:
            for file in (plan, plan.with_name(plan.name + ".json")):
                file.unlink(missing_ok=True)
    try:
        yield runner
    finally:
        runner.close()


def output_sqnr(model: Graph, batches: Sequence[np.ndarray], *, backend: str = "auto") -> Score:
    """A score: SQNR in dB of a runner's outputs, all together, against those of the float graph.

    Args:
        model: the float graph, with one input.
        batches: what it is run on, once.
        backend: see `engine.build`.

    Raises:
        ValueError: no batches.
    """
    if len(batches) == 0:
        raise ValueError("batches: got none, expected at least one image; see data.load_split('calib')")
    with running(model, backend=backend) as runner:
        expected = _outputs(runner, batches)
    return lambda runner: sqnr_db(expected, _outputs(runner, batches))


def _outputs(runner: Runner, batches: Sequence[np.ndarray]) -> np.ndarray:
    (name,) = runner.inputs
    return np.concatenate([y.ravel() for x in batches for y in runner.infer({name: x}).values()])


def layer_sensitivity(
    model: Graph,
    table: Mapping[str, Range],
    score: Score,
    *,
    layers: Iterable[str] | None = None,
    mode: str = "only",
    target: str = "cpu",
    skip: Iterable[str] = (),
    backend: str = "auto",
    progress: bool = True,
) -> dict[str, float]:
    """The score with each layer quantized alone, or with all but it.

    Args:
        model: the float graph; see `qdq.insert_qdq` for it, `table` and `target`.
        table: its ranges.
        score: of a runner, higher is better: `output_sqnr(model, batches)`, or the mAP that matters in the end,
            `lambda runner: evaluate.score(runner, test).map50`, which takes far longer.
        layers: names of Conv, Gemm and MatMul nodes, or patterns, each of which counts as one group, such as
            "/stages.3/*"; all layers one by one if None. A build and a run of the graph for each.
        mode: "only" quantizes just the layer: what does it lose? "all_but" quantizes everything else: what would its
            return to float gain?
        skip: layers that stay float in any case.
        backend: see `engine.build`.
        progress: show a bar.

    Returns:
        The score by layer or pattern, in the order of `layers`. Each layer takes the joins beside it along.

    Raises:
        ValueError: unknown mode, or a pattern that matches no layer or only skipped ones.
    """
    if mode not in ("only", "all_but"):
        raise ValueError(f"mode: got {mode!r}, expected 'only' or 'all_but'")
    names = qdq.weighted_names(model)
    skipped = {name for pattern in skip for name in matching(pattern, names)}
    groups = [name for name in names if name not in skipped] if layers is None else list(layers)
    members = {group: matching(group, names) - skipped for group in groups}
    if empty := [group for group, found in members.items() if not found]:
        raise ValueError(f"layers: got {empty[0]!r}, all of which skip leaves float, expected a quantized layer")
    scores = {}
    for group in bar(groups, "sensitivity", unit="layer", show=progress):
        float_layers = set(names) - members[group] if mode == "only" else skipped | members[group]
        scores[group] = score_of(model, table, score, float_layers, target, backend)
    return scores


def matching(pattern: str, names: list[str]) -> set[str]:
    """Names that a pattern matches. Raises ValueError where there is none."""
    found = set(fnmatch.filter(names, pattern))
    if not found:
        raise ValueError(f"layers: got {pattern!r}, expected the name of a Conv, Gemm or MatMul or a pattern, such as "
                         f"{names[0] if names else 'none in this graph'!r}; see qdq.weighted_names")
    return found


def score_of(
    model: Graph, table: Mapping[str, Range], score: Score, skip: Iterable[str], target: str, backend: str
) -> float:
    """The score of the graph that is quantized but for the layers in `skip`."""
    quantized = qdq.insert_qdq(model, table, target=target, skip=sorted(skip))
    with running(quantized, backend=backend) as runner:
        return float(score(runner))


def float_order(sensitivity: Mapping[str, float], mode: str = "only") -> list[str]:
    """The order in which layers should return to FP16 or FP32, most harmful first.

    Args:
        sensitivity: from `layer_sensitivity`.
        mode: that it was measured in. The worst layer has the lowest score alone, the highest when it is left out.
    """
    return sorted(sensitivity, key=sensitivity.__getitem__, reverse=mode == "all_but")


def tensor_sqnr(
    model: Graph,
    quantized: Graph,
    x: np.ndarray,
    names: Sequence[str] | None = None,
    *,
    backend: str = "auto",
) -> dict[str, float]:
    """SQNR in dB of inner tensors of a quantized graph against the float graph's, in the order they are computed.

    Noise adds up along the network, so the curve falls slowly; a cliff is a fault, at or before the tensor below it.

    Args:
        model: the float graph, with one input.
        quantized: made from it; a tensor has the same name in both.
        x: one batch.
        names: of tensors; all outputs of Conv, Gemm, MatMul and joins if None.
        backend: see `engine.build`.

    Raises:
        ValueError: a name that one of the graphs does not compute.
    """
    if names is None:
        known = qdq.activation_names(model)
        names = [node.output[0] for node in model.graph.node if node.op_type in FOLLOWED and node.output[0] in known]
    values = []
    for graph in (model, quantized):
        with running(expose_tensors(graph, list(names)), backend=backend) as runner:
            (input_name,) = runner.inputs
            outputs = runner.infer({input_name: x})
        values.append({name: outputs[name] for name in names})
    return {name: sqnr_db(values[0][name], values[1][name]) for name in names}
