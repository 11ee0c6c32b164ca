"""Masks against torch's own pruning, N:M against brute force, and the share of work that channels take along."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn.utils import prune as torch_prune

from trtkit import masks


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(),
                         nn.Linear(16, 5))


def _weighted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_masks_of_layers_equal_torchs(sparsity):
    model = _network()
    got = masks.magnitude_mask(model, sparsity)
    layers = _weighted(model)
    assert list(got) == [f"{name}.weight" for name, _ in layers]
    for name, layer in layers:
        torch_prune.l1_unstructured(layer, "weight", amount=sparsity)
        assert torch.equal(got[f"{name}.weight"], layer.weight_mask.bool())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_global_masks_equal_torchs(sparsity):
    model = _network()
    got = masks.magnitude_mask(model, sparsity, "global")
    layers = _weighted(model)
    torch_prune.global_unstructured([(layer, "weight") for _, layer in layers], torch_prune.L1Unstructured,
                                    amount=sparsity)
    for name, layer in layers:
        assert torch.equal(got[f"{name}.weight"], layer.weight_mask.bool())


@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.sampled_from([-1, 0, 0.5, 1])),
       st.floats(0, 0.99))
def test_equal_magnitudes_do_not_change_how_many_stay(w, sparsity):
    model = nn.Linear(w.shape[1], w.shape[0])
    model.weight.data = torch.from_numpy(w)
    mask = masks.magnitude_mask(model, sparsity)["weight"].numpy()
    assert (~mask).sum() == round(sparsity * w.size)
    assert np.abs(w[~mask]).max(initial=0) <= np.abs(w[mask]).min(initial=np.inf)


PATTERNS = st.sampled_from([(2, 4), (1, 2), (1, 4), (3, 4), (2, 6)])


@st.composite
def weights(draw):
    n, m = draw(PATTERNS)
    shape = (draw(st.integers(1, 4)), m * draw(st.integers(1, 3)), *draw(st.sampled_from([(), (1, 1), (3, 2)])))
    return torch.from_numpy(draw(arrays(np.float32, shape, elements=st.integers(-9, 9)))), n, m


@given(weights())
def test_every_group_along_the_input_channels_keeps_exactly_its_n_largest(case):
    weight, n, m = case
    mask = masks.nm_mask(weight, n, m)
    assert mask.shape == weight.shape and mask.dtype == torch.bool
    for index in itertools.product(range(weight.shape[0]), *(range(k) for k in weight.shape[2:])):
        row, kept = (t[index[0], :, *index[1:]].numpy() for t in (weight, mask))
        for start in range(0, len(row), m):
            group, stays = np.abs(row[start : start + m]), kept[start : start + m]
            assert stays.sum() == n
            assert group[stays].sum() == np.sort(group)[-n:].sum()
    total = weight.abs().sum()
    assert (weight.abs() * mask).sum() >= n / m * total
    assert masks.keeps_nm(weight * mask, n, m)


def test_the_pattern_is_seen_where_it_is_and_missed_where_it_is_not():
    pattern = torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]])
    assert masks.keeps_nm(pattern) and masks.keeps_nm(torch.zeros(2, 4, 3, 3))
    assert not masks.keeps_nm(torch.tensor([[1.0, 2, 3, 0]]))
    assert not masks.keeps_nm(pattern.view(8, 1)), "groups along the output channels are no groups"
    assert not masks.keeps_nm(torch.zeros(4, 3, 3, 3)), "the first convolution, with its 3 colours"
    assert masks.keeps_nm(torch.eye(4), 1, 4) and not masks.keeps_nm(torch.ones(4, 4), 1, 4)


def _kept(weight: torch.Tensor, n: int, m: int) -> float:
    return float((weight.abs() * masks.nm_mask(weight, n, m)).double().sum())


@given(weights())
def test_a_permutation_never_keeps_less_than_the_order_as_it_is(case):
    weight, n, m = case
    order = masks.permute_channels(weight, n, m)
    assert order.sort().values.tolist() == list(range(weight.shape[1]))
    assert _kept(weight[:, order], n, m) >= _kept(weight, n, m)
    again = masks.permute_channels(weight[:, order], n, m)
    assert _kept(weight[:, order][:, again], n, m) == pytest.approx(_kept(weight[:, order], n, m))


def test_the_permutation_spreads_what_stands_side_by_side():
    large_first = torch.tensor([[9.0, 8, 7, 6, 0, 0, 0, 0]])
    assert _kept(large_first, 2, 4) == 17 and _kept(large_first[:, masks.permute_channels(large_first)], 2, 4) == 30


def test_no_single_swap_beats_the_order_that_was_found():
    """The end of the search, checked by brute force: the gains that it keeps up to date are the real ones."""
    weight = torch.randn(5, 12, 3, 3, generator=torch.Generator().manual_seed(1))
    found = weight[:, masks.permute_channels(weight)]
    assert _kept(found, 2, 4) > _kept(weight, 2, 4) + 1
    for a, b in itertools.combinations(range(12), 2):
        order = list(range(12))
        order[a], order[b] = order[b], order[a]
        assert _kept(found[:, order], 2, 4) <= _kept(found, 2, 4) + 1e-4


def test_the_best_order_of_eight_channels_is_nearly_found():
    """Against all 35 ways to put eight channels into two groups; a greedy search may miss a little."""
    gained = possible = 0.0
    for seed in range(20):
        weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
        best = max(_kept(weight[:, [0, *first, *(c for c in range(1, 8) if c not in first)]], 2, 4)
                   for first in itertools.combinations(range(1, 8), 3))
        plain, found = _kept(weight, 2, 4), _kept(weight[:, masks.permute_channels(weight)], 2, 4)
        assert plain <= found <= best + 1e-4
        gained, possible = gained + found - plain, possible + best - plain
    assert gained >= 0.8 * possible > 0


def test_masks_are_applied_to_a_copy():
    model = _network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    chosen = masks.magnitude_mask(model, 0.5, "global")
    masked = masks.apply_masks(model, chosen)
    for name, p in masked.named_parameters():
        expected = before[name] * chosen[name] if name in chosen else before[name]
        assert torch.equal(p, expected) and torch.equal(dict(model.named_parameters())[name], before[name])
    assert sum(int((p == 0).sum()) for n, p in masked.named_parameters() if n in chosen) == sum(
        int((~m).sum()) for m in chosen.values())


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_channels_removed_on_both_sides_take_the_predicted_share_of_the_weights(p):
    """1 - (1 - p)^2, with random channels of every layer, each one's outputs being the next one's inputs."""
    rng = np.random.default_rng(3)
    channels, layers = 40, 30
    kept = [rng.permutation(channels) >= p * channels for _ in range(layers + 1)]
    model = nn.Sequential(*(nn.Conv2d(channels, channels, 3) for _ in range(layers)))
    chosen = {f"{i}.weight": torch.from_numpy(np.outer(kept[i + 1], kept[i]))[:, :, None, None].repeat(1, 1, 3, 3)
              for i in range(layers)}
    masked = masks.apply_masks(model, chosen)
    zero = np.mean([(layer.weight == 0).float().mean().item() for layer in masked])
    assert zero == pytest.approx(1 - (1 - p) ** 2, abs=1e-6)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2, float("nan")])
def test_a_sparsity_out_of_range_says_so(sparsity):
    with pytest.raises(ValueError, match=r"sparsity: got .*, expected a fraction in \[0, 1\)"):
        masks.magnitude_mask(_network(), sparsity)


def test_bad_input_is_named():
    model = _network()
    with pytest.raises(ValueError, match="scope: got 'local'"):
        masks.magnitude_mask(model, 0.5, "local")
    with pytest.raises(ValueError, match="got ReLU without a convolution"):
        masks.magnitude_mask(nn.ReLU(), 0.5)
    model[3].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"3\.weight: got NaN"):
        masks.magnitude_mask(model, 0.5)
    for n, m in ((0, 4), (4, 4), (5, 4), (2, -4)):
        with pytest.raises(ValueError, match=f"n, m: got {n}:{m}"):
            masks.nm_mask(torch.ones(4, 4), n, m)
        with pytest.raises(ValueError, match=f"n, m: got {n}:{m}"):
            masks.keeps_nm(torch.ones(4, 4), n, m)
    for shape in ((8,), (8, 3, 3, 3), (8, 6), (0, 4)):
        with pytest.raises(ValueError, match="C_in a multiple of 4; leave other layers dense"):
            masks.nm_mask(torch.ones(shape))
    with pytest.raises(ValueError, match="C_in a multiple of 4"):
        masks.permute_channels(torch.ones(8, 3))
    with pytest.raises(ValueError, match=r"masks: got 'nowhere', expected a parameter's name, such as '0\.weight'"):
        masks.apply_masks(model, {"nowhere": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"0\.weight: got torch.bool \(2,\), expected torch.bool \(8, 3, 3, 3\)"):
        masks.apply_masks(model, {"0.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"0\.weight: got torch.float32"):
        masks.apply_masks(model, {"0.weight": torch.ones(8, 3, 3, 3)})
