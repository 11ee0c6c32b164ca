"""Which channels go: ratios, targets, rounding, scores, and everything that must be refused."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_to_prune import network, outputs
from torch import nn

from trtkit.coupling import coupled_layers, groups
from trtkit.importance import bn_gamma, l1, l2, taylor
from trtkit.models import YOLOv3
from trtkit.prune import apply, kept_channels, prune_channels

X = torch.zeros(1, 3, 8, 8)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def chain(*channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip((3, *channels), (*channels, 2),
                                                                                     strict=True)))


@pytest.mark.parametrize("round_to", [1, 8, 16, 32])
@pytest.mark.parametrize("target", [0.2, 0.5])
def test_params_removed_is_met_within_one_percent(target, round_to):
    model, x = network("yolov3-0.25")
    pruned = prune_channels(model, x, params_removed=target, round_to=round_to)
    assert abs(1 - parameters(pruned) / parameters(model) - target) <= 0.01
    before = dict(model.named_modules())
    for name, layer in pruned.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels != before[name].out_channels:
            assert layer.out_channels % round_to == 0 and layer.out_channels >= round_to


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "classifier", "unet"])
def test_parameters_are_counted_before_anything_is_built(name):
    model, x = network(name)
    pruned = prune_channels(model, x, params_removed=0.3)
    assert abs(1 - parameters(pruned) / parameters(model) - 0.3) <= 0.002       # one channel of one group is not much


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_params_removed_with_one_ratio_for_all_layers(name):
    model, x = network(name)
    kept = kept_channels(model, x, params_removed=0.3, scope="layer")
    assert abs(1 - parameters(apply(model, x, kept)) / parameters(model) - 0.3) <= 0.01
    of_group = {g.name: g.channels for g in groups(model, x)}
    ratios = [1 - len(choices) / of_group[layer] for layer, choices in kept.items() if of_group[layer] >= 32]
    assert max(ratios) - min(ratios) <= 2 / 32                  # global ranking spreads them
    with pytest.raises(ValueError, match=r"with one ratio for all layers, expected 0\.3"):
        prune_channels(model, x, params_removed=0.3, scope="layer", round_to=512)


@settings(max_examples=40)
@given(st.lists(st.integers(2, 40), min_size=2, max_size=4), st.floats(0, 0.7), st.sampled_from([1, 4, 8]))
def test_uniform_ratio_is_the_nearest_that_rounding_allows(channels, ratio, round_to):
    model = chain(*channels)
    if any(int(n - n * ratio + 0.5) < 1 for n in channels):
        with pytest.raises(ValueError, match="would empty"):
            kept_channels(model, X, ratio=ratio, scope="layer", round_to=round_to)
        return
    kept = kept_channels(model, X, ratio=ratio, scope="layer", round_to=round_to)
    for n, choices in zip(channels, kept.values(), strict=True):
        allowed = {n, *range(round_to, n + 1, round_to)}
        assert len(choices) in allowed
        assert abs(len(choices) - n * (1 - ratio)) <= min(abs(a - n * (1 - ratio)) for a in allowed) + 1e-9
        assert choices == sorted(set(choices))


@given(st.lists(st.integers(4, 40), min_size=2, max_size=4), st.floats(0, 0.6))
@settings(max_examples=40)
def test_global_ratio_removes_the_lowest_of_all_channels(channels, ratio):
    model = chain(*channels)
    kept = kept_channels(model, X, ratio=ratio, importance=l2)
    removed = sum(channels) - sum(map(len, kept.values()))
    assert abs(removed - sum(channels) * ratio) <= 0.5 + 1e-9
    scores = {g.name: l2(g, model) for g in groups(model, X) if g.name in kept}
    gone = [float(s) for name, row in scores.items() for c, s in enumerate(row) if c not in kept[name]]
    stayed = [sorted(float(row[c]) for c in kept[name]) for name, row in scores.items()]
    # The lowest that stays in a layer of more than one channel is not below the highest that went.
    assert all(row[0] >= max(gone, default=0) for row in stayed if len(row) > 1)


def test_thirty_percent_of_the_channels_are_half_of_the_weights():
    pruned = prune_channels(chain(100, 100, 100), X, ratio=0.3, scope="layer")
    assert [m.weight.shape[:2] for m in pruned] == [(70, 3), (70, 70), (70, 70), (2, 70)]
    assert pruned[1].weight.numel() == pytest.approx((1 - 0.3) ** 2 * 100 * 100 * 9)


def test_the_lowest_channels_go_and_the_others_keep_their_weights():
    model = chain(4, 5)
    model[0].weight.data = torch.tensor([3.0, -1.0, 4.0, -2.0]).view(4, 1, 1, 1).expand(4, 3, 3, 3).clone()
    pruned = prune_channels(model, X, ratio={"0": 0.5})
    assert torch.equal(pruned[0].weight, model[0].weight[[0, 2]])
    assert torch.equal(pruned[1].weight, model[1].weight[:, [0, 2]])
    assert torch.equal(pruned[2].weight, model[2].weight)
    assert kept_channels(model, X, ratio={"0": 0.5}) == {"0": [0, 2], "1": [0, 1, 2, 3, 4]}


def test_a_layer_takes_its_coupled_layers_along():
    model, x = network("yolov3-0.25")
    pruned = prune_channels(model, x, ratio={"stages.1.2.expand.0": 0.25})
    assert [pruned.get_submodule(n).out_channels for n in ("stages.1.0.0", "stages.1.1.expand.0", "stages.1.2.expand.0")
            ] == [24, 24, 24]
    assert pruned.get_submodule("stages.1.1.reduce.0").in_channels == 24
    assert str(pruned.get_submodule("stages.1.0.1")) == str(nn.BatchNorm2d(24, momentum=0.03))


def test_the_copy_has_the_models_mode_and_the_model_stays():
    model, _ = network("yolov3-0.0625")
    model = copy.deepcopy(model).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruned = prune_channels(model, torch.zeros(1, 3, 64, 64), ratio=0.5, scope="layer")
    assert pruned.training and type(pruned) is YOLOv3 and pruned.num_classes == 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    pruned.stem[0].weight.data.zero_()
    assert torch.equal(model.stem[0].weight, before["stem.0.weight"])
    assert all(p.requires_grad for p in pruned.parameters())
    sum(y.sum() for y in pruned(torch.rand(2, 3, 64, 64, dtype=torch.float64))).backward()   # it trains


def test_a_ratio_of_zero_changes_nothing():
    model, x = network("classifier")
    pruned = prune_channels(model, x, ratio=0.0)
    assert all(torch.equal(a, b) for a, b in zip(outputs(pruned, x), outputs(model, x), strict=True))


def test_skipped_modules_keep_their_channels():
    model, x = network("yolov3-0.25")
    kept = kept_channels(model, x, ratio=0.5, scope="layer", skip=["stages.0", "head8.neck.1.0"])
    assert not any(name.startswith("stages.0") or name == "head8.neck.1.0" for name in kept)
    pruned = apply(model, x, kept)
    assert str(pruned.stages[0][1].reduce[0]) == str(model.stages[0][1].reduce[0])


def test_a_pruned_network_can_be_pruned_again():
    model, x = network("mobilenet_v2")
    twice = prune_channels(prune_channels(model, x, ratio=0.5, scope="layer"), x, ratio=0.5, scope="layer")
    assert parameters(twice) < 0.2 * parameters(model) and outputs(twice, x)[0].isfinite().all()


# -- scores --------------------------------------------------------------------------------------------------------

def residual() -> nn.Module:
    """a(x) + b(a(x)), each with a BatchNorm, then a head."""
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm_a = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
            self.b, self.norm_b = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.norm_a(self.a(x))
            return self.head(y + self.norm_b(self.b(y)))
    torch.manual_seed(1)
    model = Block()
    for norm in (model.norm_a, model.norm_b):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return model


def test_scores_add_up_over_the_layers_of_a_group():
    model = residual()
    group = coupled_layers(model, "a", X)
    by_hand = model.a.weight.abs().sum((1, 2, 3)) + model.b.weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(l1(group, model), (by_hand / by_hand.mean()).detach())
    by_hand = (model.a.weight.square().sum((1, 2, 3)) + model.b.weight.square().sum((1, 2, 3))).sqrt()
    torch.testing.assert_close(l2(group, model), (by_hand / by_hand.mean()).detach())
    torch.testing.assert_close(bn_gamma(group, model), (model.norm_a.weight.abs() + model.norm_b.weight.abs()).detach())


def test_scores_of_transposed_convolutions_and_flattened_channels_follow_their_axes():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, 2, 2), nn.Flatten(), nn.Linear(5 * 256, 3))
    group = coupled_layers(model, "1", X)
    by_hand = model[1].weight.abs().sum((0, 2, 3)).detach()
    torch.testing.assert_close(l1(group, model), by_hand / by_hand.mean())


def test_taylor_is_the_change_of_the_loss_to_first_order():
    """Scale one channel by (1 - t) at the only layer that writes it: the loss falls by t times the score."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(x).square().mean().backward()
    scores, loss = taylor(coupled_layers(model, "0", X), model), model(x).square().mean().item()
    for c in range(4):
        moved = copy.deepcopy(model)
        for p in moved[0].parameters():
            p.data[c] *= 1 - 1e-5
        assert abs(moved(x).square().mean().item() - loss) / 1e-5 == pytest.approx(float(scores[c]), rel=1e-3, abs=1e-9)


def test_taylor_sees_through_a_batchnorm_in_training():
    """The loss does not depend on the length of a filter behind a BatchNorm: gamma and beta have the whole value."""
    model = residual().double().train()
    model(torch.randn(8, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
    by_hand = sum((n.weight * n.weight.grad + n.bias * n.bias.grad).abs() for n in (model.norm_a, model.norm_b))
    scores = taylor(coupled_layers(model, "a", X), model)
    torch.testing.assert_close(scores, by_hand.detach().float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("importance", [l1, l2, bn_gamma, lambda group, model: torch.rand(group.channels)])
def test_any_score_prunes(importance):
    model, x = network("resnet18")
    pruned = prune_channels(model, x, ratio=0.3, importance=importance)
    assert 0.2 < parameters(pruned) / parameters(model) < 0.8


# -- what is refused -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "expected exactly one"),
    ({"ratio": 0.1, "params_removed": 0.1}, "expected exactly one"),
    ({"ratio": 1.0}, r"ratio: got 1\.0, expected a fraction in \[0, 1\)"),
    ({"ratio": -0.1}, r"ratio: got -0\.1"),
    ({"ratio": float("nan")}, "ratio: got nan"),
    ({"params_removed": 1.0}, r"params_removed: got 1\.0"),
    ({"ratio": {"stem.0": 1.5}}, r"ratio of stem\.0: got 1\.5"),
    ({"ratio": {"stem": 0.5}}, r"got 'stem', expected a layer that writes channels, such as .*stem\.0"),
    ({"ratio": {"head32.predict": 0.5}}, r"head32\.predict must keep its 24 channels: output of the network"),
    ({"ratio": {"stages.1.0.0": 0.5, "stages.1.2.expand.0": 0.25}}, "expand.0 is coupled with stages"),
    ({"ratio": {"stages.0.1.reduce.0": 0.9}}, r"0\.9 would empty stages\.0\.1\.reduce\.0, which has 4 channels"),
    ({"ratio": 0.9, "scope": "layer"}, r"0\.9 would empty stages\.0\.1\.reduce\.0"),
    ({"ratio": 0.99}, r"0\.99 would empty stem\.0"),
    ({"ratio": 0.5, "scope": "block"}, "scope: got 'block'"),
    ({"ratio": 0.5, "round_to": 0}, "round_to: got 0"),
    ({"ratio": 0.5, "skip": ["heads"]}, "skip: got 'heads'"),
    ({"params_removed": 0.9, "round_to": 32}, r"params_removed: got 0\.\d+, expected 0\.9 within"),
    ({"ratio": 0.5, "importance": taylor}, r"stem\.0\.weight has no gradient"),
    ({"ratio": 0.5, "importance": lambda g, m: torch.full((g.channels,), torch.nan)}, r"scores of stem\.0 hold NaN"),
    ({"ratio": 0.5, "importance": lambda g, m: torch.ones(3)}, r"scores of stem\.0.*shape \(3,\), expected \(8,\)"),
])
def test_bad_arguments_say_what_to_do(arguments, message):
    model, x = network("yolov3-0.0625")
    with pytest.raises(ValueError, match=message):
        prune_channels(model, x, **arguments)


@pytest.mark.parametrize(("kept", "message"), [
    ({"stem.1": [0]}, r"got 'stem\.1'"), ({"stem.0": []}, "at least one"), ({"stem.0": [8]}, "expected some of 0 to 7"),
    ({"stem.0": [1, 0]}, "ascending"), ({"head8.predict": [0]}, r"head8\.predict must keep all its 24 channels"),
])
def test_apply_refuses_what_is_no_choice(kept, message):
    model, x = network("yolov3-0.0625")
    with pytest.raises(ValueError, match=message):
        apply(model, x, kept)


def test_a_group_without_batchnorm_has_no_gamma():
    with pytest.raises(ValueError, match="group of 0 has no BatchNorm"):
        prune_channels(chain(4), X, ratio=0.5, importance=bn_gamma)


def test_a_size_written_into_the_forward_is_found_before_the_network_is_used():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2)

        def forward(self, x):
            return self.b(self.a(x).view(-1, 4 * 64))

    with pytest.raises(ValueError, match=r"size written into its code"):
        prune_channels(Fixed(), torch.zeros(4, 3, 8, 8), ratio=0.5)


def test_a_channel_number_written_into_the_forward_is_found():
    class Shuffle(nn.Module):
        """Two per part stays two per part, while the original had halves."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            y = self.a(x)
            return self.b(y.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2))

    model = Shuffle()
    with pytest.raises(ValueError, match=r"(channel number|size) written into its code"):
        apply(model, X, {"a": [0]} if coupled_layers(model, "a", X).channels == 2 else {"a": [0, 1]})
