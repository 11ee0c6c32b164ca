import itertools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit import yolo
from trtkit.anchors import kmeans, per_head, shape_iou

SHAPES = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=40)


@given(SHAPES, SHAPES)
def test_shape_iou_is_the_iou_of_boxes_with_a_common_corner(a, b):
    def at_zero(wh):
        return torch.tensor([(0.0, 0.0, *x) for x in wh])

    np.testing.assert_allclose(shape_iou(np.array(a), np.array(b)),
                               torchvision.ops.box_iou(at_zero(a), at_zero(b)).numpy(), rtol=1e-5)


@given(SHAPES, st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=40)
def test_the_mean_iou_never_falls_and_is_what_the_anchors_reach(wh, k, seed):
    wh = np.array(wh, np.float32)
    if len(np.unique(wh, axis=0)) < k:
        k = 1
    found = kmeans(wh, k, seed=seed, restarts=2)
    assert (np.diff(found.history) > 0).all() and found.mean_iou == found.history[-1]
    np.testing.assert_allclose(shape_iou(wh, found.wh).max(1).mean(), found.mean_iou, rtol=1e-5)
    assert found.wh.shape == (k, 2) and found.wh.dtype == np.float32
    assert (np.diff(found.wh.astype(float).prod(1)) >= 0).all()


@given(SHAPES)
def test_one_anchor_is_at_least_as_good_as_the_mean_and_the_median_of_all(wh):
    wh = np.array(wh, np.float32)
    simple = np.stack([wh.mean(0), np.median(wh, 0)])
    assert kmeans(wh, 1, restarts=1).mean_iou >= shape_iou(wh, simple).mean(0).max() - 1e-6


def _best_by_trying(wh, k):
    """Mean IoU of the best k centres: every way to share out the boxes, and each share's best centre on a fine grid."""
    steps = [np.linspace(wh[:, i].min(), wh[:, i].max(), 33) for i in (0, 1)]
    grid = np.stack(np.meshgrid(*steps), -1).reshape(-1, 2)
    overlap = shape_iou(wh, grid)                                   # (N, centres tried)
    best = 0.0
    for owner in itertools.product(range(k), repeat=len(wh)):
        shares = [overlap[np.array(owner) == j].sum(0).max() for j in range(k) if j in owner]
        best = max(best, sum(shares) / len(wh))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_tiny_sets_come_within_two_percent_of_the_best_there_is(seed, k):
    wh = np.exp(np.random.default_rng(seed).normal(4, 0.8, (7, 2)))
    found = kmeans(wh, k, restarts=20)
    assert found.mean_iou >= 0.98 * _best_by_trying(wh, k)


def test_clear_groups_are_found_whatever_the_seed():
    rng = np.random.default_rng(0)
    centres = np.array([(10, 30), (60, 60), (300, 100)])
    wh = np.concatenate([c * rng.uniform(0.95, 1.05, (50, 2)) for c in centres])
    for seed in range(5):
        np.testing.assert_allclose(kmeans(wh, 3, seed=seed).wh, centres, rtol=0.03)


def test_as_many_anchors_as_shapes_fit_perfectly_and_the_seed_decides_the_rest(rng):
    wh = rng.integers(5, 300, (12, 2)).astype(np.float32)
    assert kmeans(wh, 12).mean_iou == pytest.approx(1)
    assert kmeans(np.repeat(wh[:3], 4, 0), 3).mean_iou == pytest.approx(1)
    first, again = kmeans(wh, 4, seed=3), kmeans(wh, 4, seed=3)
    assert np.array_equal(first.wh, again.wh) and first.history == again.history


def test_more_restarts_and_more_anchors_never_fit_worse(rng):
    wh = np.exp(rng.normal(4, 0.7, (300, 2)))
    by_k = [kmeans(wh, k).mean_iou for k in (1, 3, 6, 9)]
    assert by_k == sorted(by_k)
    assert kmeans(wh, 6, restarts=5).mean_iou >= kmeans(wh, 6, restarts=1).mean_iou


def test_per_head_gives_the_coarsest_head_the_largest():
    shuffled = yolo.ANCHORS.reshape(9, 2)[np.random.default_rng(0).permutation(9)]
    areas = per_head(shuffled).prod(2)
    assert per_head(shuffled).shape == (3, 3, 2) and (areas[:-1].min(1) > areas[1:].max(1)).all()
    assert sorted(per_head(shuffled).reshape(9, 2).tolist()) == sorted(yolo.ANCHORS.reshape(9, 2).tolist())
    assert per_head(shuffled[:6], heads=2).shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("wh", "options", "match"),
    [
        (np.zeros((0, 2)), {}, "0 different shapes.*k = 9"),
        (np.ones((20, 2)), {"k": 2}, "1 different shapes.*k = 2"),
        (np.ones((3, 4)), {}, r"\(3, 4\)"),
        (np.array([[3, 4], [0, 5]]), {"k": 1}, r"wh\[1\].*above 0"),
        (np.array([[np.nan, 4]]), {"k": 1}, r"wh\[0\].*nan"),
        (np.array([[1, np.inf]]), {"k": 1}, "inf"),
        (np.ones((3, 2)), {"k": 0}, "k, restarts"),
        (np.ones((3, 2)), {"k": 1, "restarts": 0}, "restarts"),
        (np.ones((3, 2)), {"k": 1, "rounds": 0}, "rounds"),
    ],
)
def test_what_has_no_clusters_is_refused(wh, options, match):
    with pytest.raises(ValueError, match=match):
        kmeans(wh, **options)


@pytest.mark.parametrize("heads", [0, 2])
def test_per_head_refuses_what_cannot_be_shared_out(heads):
    with pytest.raises(ValueError, match=f"9 anchors for {heads}"):
        per_head(yolo.ANCHORS.reshape(9, 2), heads)
