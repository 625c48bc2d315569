"""Clustering: what holds for every input."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from panolib.clustering.algorithms import cluster
from panolib.clustering.distances import FEW, BallSums
from panolib.clustering.labels import drop_small_clusters, merge_close_clusters, relabel_consecutive
from panolib.clustering.mean_shift import mean_shift_plus

OURS = ("mean_shift_plus", "mean_shift_peel", "mean_shift_grid")
ALGORITHMS = (*OURS, "agglomerative", "connected_components")
seeds = st.integers(0, 2**16)
quick = settings(max_examples=25, deadline=None)


def blobs(seed: int, n: int = 300, k: int = 5, e: int = 4) -> torch.Tensor:
    """Points [N, E]: tight blobs at least 4 apart."""
    rng = np.random.default_rng(seed)
    means = 4.0 * np.stack(np.unravel_index(rng.permutation(3**e)[:k], (3,) * e), 1)
    return torch.tensor(means[rng.integers(k, size=n)] + rng.normal(0, 0.08, (n, e)), dtype=torch.float32)


@quick
@given(seeds, st.sampled_from(ALGORITHMS), st.integers(0, 9))
def test_zero_outside_the_mask_and_consecutive_inside(seed, algorithm, min_size):
    generator = torch.Generator().manual_seed(seed)
    embeddings = 2 * torch.randn(3, 12, 15, generator=generator)
    mask = torch.rand(12, 15, generator=generator) < torch.rand(1, generator=generator)
    labels = cluster(embeddings, mask, algorithm=algorithm, min_size=min_size, delta_dist=1.0)
    assert not labels[~mask].any()
    ids, sizes = labels[labels > 0].unique(return_counts=True)
    assert ids.tolist() == list(range(1, len(ids) + 1))
    assert (sizes >= min_size).all()
    if min_size == 0:
        assert (labels[mask] > 0).all()


@quick
@given(seeds)
def test_order_of_pixels_shift_and_rotation_do_not_matter(seed):
    points = blobs(seed)
    labels = mean_shift_plus(points)
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(points)))
    assert adjusted_rand_score(labels[order], mean_shift_plus(points[order])) == 1.0
    assert adjusted_rand_score(labels, mean_shift_plus(points + 3.21)) == 1.0
    rotation = torch.tensor(np.linalg.qr(rng.normal(size=(4, 4)))[0], dtype=torch.float32)
    assert adjusted_rand_score(labels, mean_shift_plus(points @ rotation)) == 1.0


@quick
@given(seeds, st.floats(0.01, 100))
def test_scaling_embeddings_with_their_margins_does_not_matter(seed, scale):
    points = blobs(seed)
    scaled = mean_shift_plus(points * scale, bandwidth=0.5 * scale, delta_dist=2.0 * scale)
    assert adjusted_rand_score(mean_shift_plus(points), scaled) == 1.0


@quick
@given(seeds, st.floats(0.1, 3))
def test_merging_only_joins(seed, delta_dist):
    rng = np.random.default_rng(seed)
    points = torch.tensor(rng.normal(0, 2, (200, 3)))
    labels = torch.tensor(rng.integers(0, 20, 200))
    merged = merge_close_clusters(points, labels, delta_dist)
    assert torch.equal(merged == 0, labels == 0)
    for k in labels.unique():
        assert len(merged[labels == k].unique()) == 1  # no cluster is torn
    assert torch.equal(merge_close_clusters(points, labels, 0.0) == 0, labels == 0)
    assert merge_close_clusters(points, labels, 0.0).max() == len(labels[labels > 0].unique())
    assert merge_close_clusters(points, labels, 1e9).max() == 1


@quick
@given(seeds, st.integers(0, 30))
def test_relabelling_and_dropping_repeat_to_the_same(seed, min_size):
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 12, (10, 10))) ** 2
    once = drop_small_clusters(labels, min_size)
    assert torch.equal(drop_small_clusters(once, min_size), once)
    assert torch.equal(relabel_consecutive(once), once)
    assert not once[labels == 0].any()


@quick
@given(seeds, st.floats(0.05, 2))
def test_ball_sums_count_neighbours(seed, radius):
    rng = np.random.default_rng(seed)
    points = torch.tensor(rng.normal(0, 1, (600, 3)))
    centres = torch.tensor(rng.normal(0, 1, (500, 3)))
    assert 50 * len(points) < FEW < len(points) * len(centres)  # in one product, and in blocks
    expected = (torch.cdist(centres, points) <= radius).double().sum(1)
    sums = BallSums(points, torch.ones(600, 1, dtype=torch.float64), radius)
    assert torch.equal(sums(centres)[:, 0], expected)
    assert torch.equal(sums(centres[:50])[:, 0], expected[:50])
