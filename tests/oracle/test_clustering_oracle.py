"""Clustering against scikit-learn and against slow, obvious loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import MeanShift
from sklearn.metrics import adjusted_rand_score

from panolib.clustering.labels import merge_close_clusters, stability_filter
from panolib.clustering.mean_shift import mean_shift_plus


def blobs(n: int, k: int, e: int, sigma: float, seed: int):
    """Points [N, E] of uneven clusters whose means are at least 3 apart, and their truth."""
    rng = np.random.default_rng(seed)
    means = []
    while len(means) < k:
        mean = rng.uniform(-4, 4, e)
        if all(np.linalg.norm(mean - other) >= 3 for other in means):
            means.append(mean)
    truth = rng.choice(k, n, p=rng.dirichlet(np.full(k, 2.0)))
    return torch.tensor(np.array(means)[truth] + rng.normal(0, sigma, (n, e)), dtype=torch.float32), truth


@pytest.mark.parametrize(
    ("n", "k", "e", "sigma", "seed"),
    [
        (1000, 6, 8, 0.10, 0),
        (1500, 10, 4, 0.12, 1),
        (800, 1, 8, 0.10, 2),
        (1200, 5, 2, 0.10, 3),
        (600, 8, 16, 0.07, 4),
    ],
)
def test_same_clusters_as_scikit_learn(n, k, e, sigma, seed):
    points, truth = blobs(n, k, e, sigma, seed)
    reference = MeanShift(bandwidth=0.5, bin_seeding=True).fit(points.numpy())
    labels = mean_shift_plus(points, bandwidth=0.5, delta_dist=None)
    assert labels.max() == len(reference.cluster_centers_) == k
    assert adjusted_rand_score(reference.labels_, labels) >= 0.9995
    assert adjusted_rand_score(truth, labels) >= 0.9995


def test_on_spread_clusters_only_the_merge_makes_both_agree():
    """A deviation of one bandwidth: many weak modes, which depend on where the seeds start."""
    points, _ = blobs(1500, 4, 4, 0.5, seed=0)
    official = MeanShift(bandwidth=0.5, bin_seeding=True).fit(points.numpy()).labels_ + 1
    joined = merge_close_clusters(points, torch.from_numpy(official), 2.0)
    alone = mean_shift_plus(points, bandwidth=0.5, delta_dist=None)
    merged = mean_shift_plus(points, bandwidth=0.5, delta_dist=2.0)
    assert adjusted_rand_score(official, alone) < 0.8
    assert adjusted_rand_score(joined, merged) > 0.95


def test_where_clusters_touch_modes_are_those_of_a_float64_loop():
    rng = np.random.default_rng(0)
    array = np.concatenate([rng.normal(m, 0.3, (200, 2)) for m in ((0, 0), (1.2, 0), (0.6, 1.1))])
    h = 0.6
    cells = np.unique(np.round((array - array.mean(0)) / h), axis=0, return_inverse=True)[1].ravel()
    found = []
    for cell in range(cells.max() + 1):
        centre = array[cells == cell].mean(0)
        for _ in range(300):
            distance = np.linalg.norm(array - centre, axis=1)
            near = distance <= h
            moved = array[near].mean(0) if near.any() else array[distance.argmin()]
            shift, centre = np.linalg.norm(moved - centre), moved
            if shift <= 1e-3 * h:
                break
        found.append((near.sum(), centre))
    kept = []
    for _, centre in sorted(found, key=lambda pair: -pair[0]):
        if all(np.linalg.norm(centre - other) > h for other in kept):
            kept.append(centre)
    expected = np.linalg.norm(array[:, None] - np.array(kept), axis=2).argmin(1)
    labels = mean_shift_plus(torch.from_numpy(array), bandwidth=h, delta_dist=None)
    assert labels.max() == len(kept) >= 3
    assert adjusted_rand_score(expected, labels) >= 0.98  # trajectories that met went on as one


@pytest.mark.parametrize("seed", range(5))
def test_merge_equals_the_loop_of_the_reference(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 2, (400, 3))
    labels = rng.integers(0, 30, 400)
    expected, anchors = np.zeros(400, int), []
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    for k in ids[np.argsort(-counts, kind="stable")]:
        mean = points[labels == k].mean(0)
        distances = [np.linalg.norm(mean - anchor) for anchor in anchors]
        if distances and min(distances) < 1.0:
            expected[labels == k] = int(np.argmin(distances)) + 1
        else:
            anchors.append(mean)
            expected[labels == k] = len(anchors)
    merged = merge_close_clusters(torch.from_numpy(points), torch.from_numpy(labels), 1.0)
    np.testing.assert_array_equal(merged, expected)


def test_stability_equals_a_loop_over_all_pixels_as_anchors():
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 12), int)
    labels[2:6, 1:11] = 4
    labels[7:11, 1:6] = 1
    labels[7:11, 6:11] = 9
    mask = np.zeros((12, 12), bool)
    mask[1:11, 1:11] = True  # holds pixels of no cluster as well
    teacher = np.stack([labels, np.zeros_like(labels)]) + rng.normal(0, 0.35, (2, 12, 12))
    h = 1.0
    expected = {}
    for k in (1, 4, 9):
        ious = []
        for y, x in zip(*np.nonzero(labels == k)):
            near = mask & (np.linalg.norm(teacher - teacher[:, y, x, None, None], axis=0) <= h)
            ious.append((near & (labels == k)).sum() / (near | (labels == k)).sum())
        expected[k] = np.median(ious)
    assert 0.3 < min(expected.values()) < max(expected.values()) < 0.95  # not a trivial case
    arguments = (torch.from_numpy(labels), torch.from_numpy(teacher), torch.from_numpy(mask))
    generator = torch.Generator().manual_seed(0)
    kept, stability = stability_filter(
        *arguments, bandwidth=h, n_anchors=5000, min_median_iou=0.0, generator=generator
    )
    np.testing.assert_allclose(stability, [expected[k] for k in (1, 4, 9)], atol=0.02)
    threshold = (sorted(expected.values())[0] + sorted(expected.values())[1]) / 2
    kept, _ = stability_filter(
        *arguments, bandwidth=h, n_anchors=5000, min_median_iou=threshold, generator=generator
    )
    survivors = [k for k in (1, 4, 9) if expected[k] >= threshold]
    for new, old in enumerate(survivors, start=1):
        np.testing.assert_array_equal(kept == new, labels == old)
    assert kept.max() == len(survivors) == 2
