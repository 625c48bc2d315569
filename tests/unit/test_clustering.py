"""Clustering: cases by hand, edges, options and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from panolib.clustering.algorithms import (
    ALGORITHMS,
    IMAGE_ALGORITHMS,
    agglomerative,
    cluster,
    connected_components,
    hdbscan,
    mean_shift,
)
from panolib.clustering.distances import BallSums
from panolib.clustering.labels import (
    drop_small_clusters,
    merge_close_clusters,
    relabel_consecutive,
    stability_filter,
)
from panolib.clustering.mean_shift import mean_shift_plus
from panolib.clustering.peeling import _apart, mean_shift_grid, mean_shift_peel, peel_modes

EMBEDDING = (*ALGORITHMS, *IMAGE_ALGORITHMS)


def line(*positions: float) -> torch.Tensor:
    """Points [N, 2] on the first axis."""
    return torch.stack([torch.tensor(positions), torch.zeros(len(positions))], 1)


def two_halves(height: int = 8, width: int = 40, gap: float = 5.0) -> torch.Tensor:
    """Embeddings [3, H, W] whose left and right halves differ, with a little noise."""
    noise = 0.05 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    noise[0, :, width // 2 :] += gap
    return noise


# one signature


@pytest.mark.parametrize("algorithm", EMBEDDING)
def test_finds_both_halves_inside_the_mask_only(algorithm):
    mask = torch.ones(8, 40, dtype=torch.bool)
    mask[:3] = False
    labels = cluster(two_halves(), mask, algorithm=algorithm)
    assert labels.dtype == torch.int64 and labels.shape == mask.shape
    assert not labels[:3].any()
    assert set(labels[3:, :20].unique().tolist()) | set(labels[3:, 20:].unique().tolist()) == {1, 2}
    assert len(labels[3:, :20].unique()) == len(labels[3:, 20:].unique()) == 1


@pytest.mark.parametrize("algorithm", (*EMBEDDING, "connected_components"))
def test_empty_mask_and_equal_embeddings(algorithm):
    nothing = cluster(two_halves(), torch.zeros(8, 40, dtype=torch.bool), algorithm=algorithm)
    assert nothing.shape == (8, 40) and not nothing.any()
    equal = cluster(torch.full((3, 8, 40), 7.0), torch.ones(8, 40, dtype=torch.bool), algorithm=algorithm)
    assert (equal == 1).all()


@pytest.mark.parametrize("algorithm", (*EMBEDDING, "connected_components"))
def test_one_pixel_is_one_cluster(algorithm):
    mask = torch.zeros(8, 40, dtype=torch.bool)
    mask[4, 5] = True
    labels = cluster(two_halves(), mask, algorithm=algorithm)
    assert labels.sum() == (0 if algorithm == "hdbscan" else 1)  # HDBSCAN calls one point noise
    assert not labels[~mask].any()


def test_min_size_drops_and_renumbers():
    embeddings = torch.zeros(2, 1, 10)
    embeddings[0, 0] = torch.tensor([0.0, 0, 0, 9, 9, 18, 18, 18, 18, 18])
    labels = cluster(embeddings, torch.ones(1, 10, dtype=torch.bool), min_size=3)
    assert labels[0].tolist() == [2, 2, 2, 0, 0, 1, 1, 1, 1, 1]


def test_merge_distance_reaches_every_mean_shift_and_agglomerative():
    embeddings = two_halves(gap=1.5)
    mask = torch.ones(8, 40, dtype=torch.bool)
    for algorithm in (*(name for name in EMBEDDING if "mean_shift" in name), "agglomerative"):
        counts = [int(cluster(embeddings, mask, algorithm=algorithm, delta_dist=d).max()) for d in (1.0, 2.0)]
        assert counts == [2, 1], algorithm
    assert cluster(embeddings, mask, delta_dist=None).max() == 2


def test_unknown_names_and_bad_values_are_errors():
    embeddings, mask = two_halves(), torch.ones(8, 40, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"'dbscan'.*mean_shift_plus.*connected_components"):
        cluster(embeddings, mask, algorithm="dbscan")
    with pytest.raises(TypeError, match=r"mean_shift has no option \['n_seed'\]"):
        cluster(embeddings, mask, algorithm="mean_shift", n_seed=5)
    with pytest.raises(TypeError, match="hdbscan has no option"):
        cluster(embeddings, torch.zeros_like(mask), algorithm="hdbscan", max_iterations=5)
    with pytest.raises(ValueError, match=r"expected \[E, H, W\]"):
        cluster(embeddings, mask[:, :-1])
    with pytest.raises(ValueError, match="bandwidth is 0"):
        cluster(embeddings, mask, bandwidth=0)
    with pytest.raises(ValueError, match="linkage threshold"):
        cluster(embeddings, mask, algorithm="agglomerative", delta_dist=None)
    with pytest.raises(ValueError, match="nan or infinity"):
        cluster(embeddings / torch.tensor(0.0), mask)


def test_nan_outside_the_mask_does_no_harm():
    embeddings = two_halves()
    embeddings[:, :3] = float("nan")
    mask = torch.ones(8, 40, dtype=torch.bool)
    mask[:3] = False
    assert cluster(embeddings, mask).max() == 2


# mean shift


def test_flat_kernel_by_hand():
    # h = 1: cell means 0, 1 and 3 (round half to even). From 0: ball {0, 0.4, 0.8, 1.0} -> 0.55, then all of
    # {0, ..., 1.2} -> 0.68, at rest. From 3: {3} alone. So the pair of clusters is {0 .. 1.2} and {3}.
    points = line(0.0, 0.4, 0.8, 1.0, 1.2, 3.0)
    assert mean_shift_plus(points, bandwidth=1.0, delta_dist=None).tolist() == [1, 1, 1, 1, 1, 2]


def test_a_cell_whose_mean_is_far_from_its_points_still_gives_clusters():
    # the 32 corners lie in one cell of width 0.95, and 1.006 from their mean
    corners = 0.45 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 5)
    labels = mean_shift_plus(torch.cat([corners, corners + 9.5]), bandwidth=0.95)
    assert len(labels[:32].unique()) == len(labels[32:].unique()) == 1
    assert labels[0] != labels[-1]


def blobs(n: int, k: int, e: int, sigma: float = 0.1, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """`n` points around `k` means on a wide grid."""
    rng = np.random.default_rng(seed)
    means = 4.0 * np.stack(np.unravel_index(rng.permutation(4**4)[:k], (4,) * 4), 1)
    means = np.concatenate([means, np.zeros((k, e - 4))], 1)
    truth = rng.integers(k, size=n)
    return torch.tensor(means[truth] + rng.normal(0, sigma, (n, e)), dtype=torch.float32), truth


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_common_offset_costs_no_precision(offset):
    points, truth = blobs(3000, 8, 6)
    labels = mean_shift_plus(points.double() + offset, delta_dist=None)
    assert labels.max() == 8
    assert adjusted_rand_score(truth, labels) == 1.0


def test_a_wide_spread_costs_no_precision():
    points, truth = blobs(3000, 8, 6)
    far = torch.zeros(100, 6)
    far[:, 5] = 3e4  # float32 products would be off by many bandwidths
    far[50:, 0] = 4.0
    labels = mean_shift_plus(torch.cat([points, far]), delta_dist=None)
    assert adjusted_rand_score(np.concatenate([truth, [8] * 50, [9] * 50]), labels) == 1.0


def test_half_precision_gradient_and_autocast_change_nothing():
    points, truth = blobs(2000, 6, 8)
    expected = mean_shift_plus(points, delta_dist=None)
    assert adjusted_rand_score(truth, mean_shift_plus(points.half(), delta_dist=None)) == 1.0
    assert torch.equal(mean_shift_plus(points.clone().requires_grad_(), delta_dist=None), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mean_shift_plus(points, delta_dist=None), expected)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_peeling_needs_a_bandwidth(bandwidth):
    with pytest.raises(ValueError, match="expected a positive number"):
        mean_shift_peel(line(0, 1), bandwidth=bandwidth)
    with pytest.raises(ValueError, match="expected a positive number"):
        mean_shift_grid(two_halves(), torch.ones(8, 40, dtype=torch.bool), bandwidth=bandwidth)


def test_peeling_needs_a_number_of_points():
    with pytest.raises(ValueError, match="min_points is 0; expected at least 1"):
        mean_shift_peel(line(0, 1), min_points=0)


def test_a_suppressed_mode_suppresses_no_other():
    assert _apart(line(0.0, 0.9, 1.8, 1.9), 1.0).tolist() == [True, False, True, False]


def test_peeling_ignores_modes_of_few_points():
    points = line(*[0.0] * 20, *[5.0] * 20, *[2.4] * 3)
    labels = mean_shift_peel(points, min_points=16, delta_dist=None)
    assert labels.max() == 2 and (labels[-3:] == labels[0]).all() and (labels[20:40] != labels[0]).all()
    assert mean_shift_peel(points, min_points=3, delta_dist=None).max() == 3
    assert mean_shift_peel(points, min_points=99, delta_dist=None).max() == 1  # at least one mode, always


def test_peeled_modes_are_those_of_the_flat_kernel():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(500, 3, generator=generator) * 0.1
    points[250:] += 4.0
    modes = peel_modes(points.T, 0.5, 16)
    assert len(modes) == 2
    for mode in modes:
        near = torch.linalg.vector_norm(points - mode, dim=1) <= 0.5
        assert torch.linalg.vector_norm(points[near].mean(0) - mode) <= 0.01 * 0.5


def test_grid_finds_modes_away_from_borders():
    """A border two pixels wide holds a mixture that points alone take for an object."""
    field = two_halves(gap=6.0)
    field[:, :, 19:21] = torch.tensor([3.0, 0.0, 0.0])[:, None, None]
    mask = torch.ones(8, 40, dtype=torch.bool)
    assert mean_shift_peel(field.flatten(1).T, min_points=10).max() == 3
    assert mean_shift_grid(field, mask, min_points=10).max() == 2
    odd = mean_shift_grid(field[:, :7, :39], mask[:7, :39], min_points=10)
    assert (odd > 0).all()


def test_grid_finds_what_is_smaller_than_a_cell():
    field = torch.zeros(2, 6, 6)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[2, 1:5] = True
    assert mean_shift_grid(field, mask)[mask].tolist() == [1] * 4


def test_ball_sums_over_several_blocks_equal_brute_force():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1300, 3, generator=generator, dtype=torch.float64)
    centres = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    values = torch.randn(1300, 2, generator=generator, dtype=torch.float64)
    expected = (torch.cdist(centres, points) <= 0.4).double() @ values
    torch.testing.assert_close(BallSums(points, values, 0.4)(centres), expected)


def test_max_iterations_stops_early_with_every_point_labelled(monkeypatch):
    monkeypatch.setattr("panolib.clustering.mean_shift.MAX_ITERATIONS", 1)
    points, _ = blobs(500, 3, 5)
    labels = mean_shift_plus(points)
    assert (labels >= 1).all()


# the other algorithms


def test_scikit_mean_shift_survives_points_no_grid_cell_is_near():
    # every point is farther than the bandwidth from its cell's corner, so bin seeding finds nothing
    points = torch.full((6, 8), 0.24)
    points[4:] += 10
    assert mean_shift(points).tolist() == [1, 1, 1, 1, 2, 2]


def test_agglomerative_subsample_labels_every_point():
    points, truth = blobs(3000, 5, 8)
    labels = agglomerative(points, max_points=200, generator=torch.Generator().manual_seed(0))
    assert adjusted_rand_score(truth, labels) == 1.0


def test_hdbscan_calls_scattered_points_noise():
    points, truth = blobs(600, 3, 8)
    lonely = torch.full((1, 8), 50.0)
    labels = hdbscan(torch.cat([points, lonely]))
    assert labels[-1] == 0 and adjusted_rand_score(truth, labels[:-1]) == 1.0


def test_components_count_corners():
    mask = torch.eye(3, dtype=torch.bool)
    assert connected_components(mask).max() == 1
    assert cluster(torch.zeros(2, 3, 3), mask, algorithm="connected_components").max() == 1


# steps after clustering


def test_merge_goes_to_the_nearest_anchor_and_anchors_stay():
    # sizes 4, 3, 2, 1 at 0, 2.5, 1.5, 4.4; distance 2: the third is nearer to the second (1.0) than to the
    # first (1.5); the fourth is 1.9 from the second, but 2.3 from the mean of the second and third
    points = line(0, 0, 0, 0, 2.5, 2.5, 2.5, 1.5, 1.5, 4.4)
    labels = torch.tensor([7, 7, 7, 7, 2, 2, 2, 3, 3, 9])
    assert merge_close_clusters(points, labels, 2.0).tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert merge_close_clusters(points, labels, 1.5).tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 3]


def test_merge_leaves_a_small_background_alone():
    # background is the smallest and lies exactly on a cluster; sorting by count would take it for an object
    points = line(*[0.0] * 6, *[1.0] * 5, 0.5)
    labels = torch.tensor([1] * 6 + [2] * 5 + [0])
    assert merge_close_clusters(points, labels, 2.0).tolist() == [1] * 11 + [0]
    assert merge_close_clusters(points, torch.zeros(12, dtype=torch.int64), 2.0).tolist() == [0] * 12


def test_relabel_and_drop_keep_zero_by_value():
    labels = torch.tensor([[5, 5, 9], [3, 3, 3]])
    assert relabel_consecutive(labels).tolist() == [[2, 2, 3], [1, 1, 1]]
    assert drop_small_clusters(labels, 2).tolist() == [[2, 2, 0], [1, 1, 1]]
    with_zero = torch.tensor([0, 4, 4, 2])
    assert drop_small_clusters(with_zero, 2).tolist() == [0, 1, 1, 0]
    assert relabel_consecutive(torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_stability_keeps_what_the_teacher_agrees_on():
    student = two_halves()
    mask = torch.ones(8, 40, dtype=torch.bool)
    labels = cluster(student, mask)
    kept, stability = stability_filter(labels, student, mask, bandwidth=0.5)
    assert torch.equal(kept, labels) and stability.tolist() == [1.0, 1.0]

    teacher = student.clone()  # the teacher sees the right half as 4 strips: IoU 1/4 there
    teacher[1, :, 20:] += torch.arange(4).repeat_interleave(5) * 3.0
    kept, stability = stability_filter(labels, teacher, mask, bandwidth=0.5)
    left, right = labels[0, 0], labels[0, -1]
    assert set(kept[labels == left].tolist()) == {1} and not kept[labels == right].any()
    assert stability.tolist() == [1.0]
    _, all_of_them = stability_filter(labels, teacher, mask, bandwidth=0.5, min_median_iou=0.0)
    assert all_of_them.sort().values.tolist() == [0.25, 1.0]


def test_stability_of_nothing():
    kept, stability = stability_filter(
        torch.zeros(8, 40).long(), two_halves(), torch.ones(8, 40, dtype=torch.bool), bandwidth=0.5
    )
    assert not kept.any() and stability.shape == (0,)


def test_hdbscan_joins_what_is_nearer_than_the_bandwidth():
    """Four tight groups, 0.3 apart in pairs and the pairs 4 apart: as close as the bandwidth says."""
    centres = torch.tensor([[0.0, 0.0], [0.3, 0.0], [4.0, 0.0], [4.3, 0.0]])
    noise = 0.02 * torch.randn(4, 40, 2, generator=torch.Generator().manual_seed(0))
    points = (centres[:, None] + noise).flatten(0, 1)
    groups = torch.arange(4).repeat_interleave(40)
    for bandwidth, truth in ((0.1, groups), (1.0, groups // 2)):
        labels = hdbscan(points, bandwidth=bandwidth, min_cluster_size=10)
        assert adjusted_rand_score(truth.numpy(), labels.numpy()) > 0.95, bandwidth
        assert labels.max() == truth.max() + 1
