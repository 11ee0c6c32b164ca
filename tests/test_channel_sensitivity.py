"""A scan against networks that were cut by hand; interruptions; what must not be mixed up."""

import copy
import json

import pytest
import torch
from conftest import randomize_batchnorm
from torch import nn

from trtkit import channel_sensitivity, digits, importance

EXAMPLE = torch.zeros(1, 1, 8, 8)
GROUPS = ["stem.0", "block.first.0", "down.0", "block2.first.0", "hidden"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return randomize_batchnorm(digits.Digits(8))


def _score(model: nn.Module) -> float:
    """Any number that every channel changes."""
    x = torch.from_numpy(digits.load()[2][:16])
    with torch.inference_mode():
        return float(model(x).abs().sum())


def _scan(model, evaluate=_score, **options):
    return channel_sensitivity.sensitivity(model, evaluate, EXAMPLE, **{"ratios": (0.25, 0.5), "progress": False,
                                                                       **options})


def _cut_by_hand(model: digits.Digits, ratio: float) -> digits.Digits:
    """Without the smallest filters of the first convolution of a block."""
    cut = copy.deepcopy(model)
    first, norm, second = cut.block.first[0], cut.block.first[1], cut.block.second[0]
    magnitude = first.weight.detach().abs().sum((1, 2, 3))
    keep = magnitude.argsort()[round(ratio * len(magnitude)) :].sort().values
    first.weight.data, second.weight.data = first.weight.data[keep], second.weight.data[:, keep]
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data = getattr(norm, name).data[keep]
    return cut


def test_each_group_is_pruned_alone(model):
    got = _scan(model)
    assert list(got) == GROUPS and all(list(by_ratio) == [0.25, 0.5] for by_ratio in got.values())
    for ratio in (0.25, 0.5):
        assert got["block.first.0"][ratio] == pytest.approx(_score(_cut_by_hand(model, ratio)), rel=1e-5)
    everything = {score for by_ratio in got.values() for score in by_ratio.values()}
    assert len(everything) == 10 and _score(model) not in everything


def test_the_model_stays_as_it_was_and_nothing_removed_is_nothing_lost(model):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    got = _scan(model, ratios=(0.0,))
    assert all(by_ratio == {0.0: pytest.approx(_score(model), rel=1e-6)} for by_ratio in got.values())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_layers_are_scanned_in_the_order_asked_for_by_any_of_their_coupled_names(model):
    got = _scan(model, layers=["hidden", "block.second.0"], ratios=(0.5,))
    assert list(got) == ["hidden", "block.second.0"]
    assert got["block.second.0"] == _scan(model, layers=["stem.0"], ratios=(0.5,))["stem.0"]


def test_importance_decides_which_channels_go(model):
    assert _scan(model, layers=["stem.0"]) != _scan(model, layers=["stem.0"], importance=importance.bn_gamma)


def test_an_interrupted_scan_goes_on_where_it_was(model, tmp_path):
    checkpoint, calls = tmp_path / "scan.json", []

    def evaluate(pruned):
        calls.append(pruned)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return _score(pruned)

    with pytest.raises(KeyboardInterrupt):
        _scan(model, evaluate, checkpoint=checkpoint)
    assert len(json.loads(checkpoint.read_text())["scores"]) == 3
    assert _scan(model, evaluate, checkpoint=checkpoint) == _scan(model)
    assert len(calls) == 4 + 7, "three were done before"
    assert _scan(model, evaluate, checkpoint=checkpoint, ratios=(0.5, 0.25)) == _scan(model) and len(calls) == 11
    _scan(model, evaluate, checkpoint=checkpoint, ratios=(0.5, 0.75), layers=["hidden"])
    assert len(calls) == 12, "only what the file lacks is measured"


def test_a_checkpoint_of_something_else_is_refused(model, tmp_path):
    checkpoint = tmp_path / "scan.json"
    _scan(model, checkpoint=checkpoint, layers=["hidden"])
    other = copy.deepcopy(model)
    other.block.first[1].running_mean[0] += 1e-3
    for wrong in ({"model": other}, {"model": model, "importance": importance.l2}):
        with pytest.raises(ValueError, match="made for other weights or another importance"):
            _scan(**wrong, checkpoint=checkpoint, layers=["hidden"])
    for damaged in ("", "[]", "{}", '{"model": "x", "scores": [["a", 1]]}',
                    '{"model": "x", "scores": [["a", "b", 1]]}'):
        checkpoint.write_text(damaged)
        with pytest.raises(ValueError, match="holds no scores"):
            _scan(model, checkpoint=checkpoint)


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="ratios: got none"):
        _scan(model, ratios=())
    with pytest.raises(ValueError, match=r"evaluate: got nan with 25% of stem\.0 pruned"):
        _scan(model, lambda m: float("nan"))
    for ratio in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"ratio of stem\.0: got .*, expected a fraction in \[0, 1\)"):
            _scan(model, ratios=(ratio,))
    with pytest.raises(ValueError, match="nowhere"):
        _scan(model, layers=["nowhere"])
    with pytest.raises(ValueError, match=r"out must keep its 10 channels"):
        _scan(model, layers=["out"])
