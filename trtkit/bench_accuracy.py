"""How much of the network is left in FP16 and INT8: error of the heads, and mAP. Lesson 11."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from trtkit import bench_graphs, data, engine, evaluate, models
from trtkit.bench_speed import relative_errors

IMAGES = 4                  # whose heads are compared, one at a time


def heads(plans: Mapping[str, Path], weights: Path) -> dict[str, dict]:
    """Largest relative error of the heads against PyTorch in FP32 on the CPU, which knows no TF32.

    Args:
        plans: for batch 1, by precision.
        weights: of the network.

    Returns:
        By precision: "max_rel_error" (max |a - b| / max |b| over the heads of all images), "per_head" (strides 32, 16,
        8), "label".
    """
    import torch

    model, x = models.load_weights(weights), bench_graphs.images(IMAGES)
    with torch.inference_mode():
        expected = [[head.numpy() for head in model(torch.from_numpy(x[i : i + 1]))] for i in range(IMAGES)]
    found = {}
    for precision, plan in plans.items():
        with engine.load(plan) as runner:
            errors = [relative_errors(runner.infer({"images": x[i : i + 1]}), expected[i]) for i in range(IMAGES)]
            per_head = [max(column) for column in zip(*errors, strict=True)]
            found[precision] = {"max_rel_error": max(per_head), "per_head": per_head, "label": runner.label}
    return found


def mean_average_precision(plans: Mapping[str, Path]) -> Iterator[tuple[str, dict]]:
    """Score engines of the trained detector on the whole test split.

    Args:
        plans: for batch 1, by precision.

    Yields:
        Precision, and "map50", "map50_95", "images", "label".
    """
    test = data.load_split("test", progress=False)
    for precision, plan in plans.items():
        with engine.load(plan) as runner:
            accuracy = evaluate.score(runner, test)
            yield precision, {"map50": round(accuracy.map50, 4), "map50_95": round(accuracy.map50_95, 4),
                              "images": len(test), "label": runner.label}
