"""Which channels does a network miss least? One group at a time. Lesson 04.

A scan prunes a fraction of one coupled group, everything else as it was, and asks for a score; no fine-tuning. Steep
curves belong to groups that a uniform ratio would hurt. Each score is written to a checkpoint as soon as it is there,
since with a real evaluation a scan of 40 groups takes hours.
Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.2.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from trtkit.coupling import groups
from trtkit.files import replacing
from trtkit.importance import l1
from trtkit.models import fingerprint
from trtkit.progress import bar
from trtkit.prune import prune_channels

Scores = dict[str, dict[float, float]]


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    example: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    ratios: Sequence[float],
    layers: Sequence[str] | None = None,
    importance: Callable = l1,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Scores:
    """The score with each group of coupled channels pruned alone.

    Args:
        model: unchanged.
        evaluate: the score of a pruned copy, finite, for example `digits.accuracy`.
        example: an input with which the model can be run once.
        ratios: fractions of the group's channels to remove, each in [0, 1).
        layers: one layer of each group to scan; the first of every group that may be pruned if None.
        importance: see `importance`.
        checkpoint: a JSON file that holds the scores so far; if it exists, only those that it lacks are measured.
        progress: show a bar.

    Returns:
        Score by layer and ratio, in the order that was asked for.

    Raises:
        ValueError: no ratio, a score that is not finite, a checkpoint of another model or importance, and whatever
            `prune_channels` says about a ratio or a layer.
    """
    if not ratios:
        raise ValueError("ratios: got none, expected fractions in [0, 1), such as (0.25, 0.5, 0.75)")
    if layers is None:
        layers = [group.name for group in groups(model, example) if not group.fixed]
    # Scores are of these very weights, and of this order of channels.
    made_for = f"{getattr(importance, '__name__', repr(importance))} {fingerprint(model)}"
    scores = _load(checkpoint, made_for) if checkpoint is not None else {}
    todo = [(layer, ratio) for layer in layers for ratio in ratios if ratio not in scores.get(layer, {})]
    for layer, ratio in bar(todo, "sensitivity", unit="network", show=progress):
        score = float(evaluate(prune_channels(model, example, ratio={layer: ratio}, importance=importance)))
        if not math.isfinite(score):
            raise ValueError(f"evaluate: got {score} with {ratio:.0%} of {layer} pruned, expected a finite number")
        scores.setdefault(layer, {})[ratio] = score
        if checkpoint is not None:
            _save(checkpoint, made_for, scores)
    return {layer: {ratio: scores[layer][ratio] for ratio in ratios} for layer in layers}


def _save(path: Path, made_for: str, scores: Scores) -> None:
    rows = [[layer, ratio, score] for layer, by_ratio in scores.items() for ratio, score in by_ratio.items()]
    with replacing(Path(path)) as temporary:        # rows, since JSON has no numbers as keys
        temporary.write_text(json.dumps({"model": made_for, "scores": rows}, indent=1, allow_nan=False))


def _load(path: Path, made_for: str) -> Scores:
    path = Path(path)
    if not path.exists():
        return {}
    try:
        body = json.loads(path.read_text())
        found, rows = body["model"], [(str(layer), float(r), float(s)) for layer, r, s in body["scores"]]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"checkpoint: {path} holds no scores ({e!r}); delete it and start again") from e
    if found != made_for:
        raise ValueError(f"checkpoint: {path} was made for other weights or another importance; delete it, or name "
                         "another file")
    scores: Scores = {}
    for layer, ratio, score in rows:
        scores.setdefault(layer, {})[ratio] = score
    return scores
