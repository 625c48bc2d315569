"""Mean-shift+: flat-kernel mean shift of all seeds at once, on CPU and GPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panolib.clustering.distances import (
    ball_sums,
    centred,
    check_bandwidth,
    check_delta_dist,
    exact_products,
    grid_cells,
    nearest,
    segment_sum,
    suppress_near,
)
from panolib.clustering.labels import merge_close_clusters, relabel_consecutive

CONVERGED = 1e-3  # a trajectory stops when it moves by less than this share of the bandwidth (scikit-learn)
EQUAL = 0.1  # trajectories in one grid cell of this share of the bandwidth go on as one


@torch.no_grad()
def mean_shift_plus(
    points: Tensor,
    *,
    bandwidth: float = 0.5,
    delta_dist: float | None = 2.0,
    max_iterations: int = 300,
) -> Tensor:
    """Flat-kernel mean shift of all seeds at once, then a merge of close clusters.

    Clusters much narrower than the bandwidth are those of scikit-learn's ``MeanShift(bin_seeding=True)``, at
    a fraction of its time. Clusters as wide as the bandwidth have many weak modes; which of them are found
    depends on where the seeds start, and scikit-learn's start elsewhere. Then both agree only after the
    merge, which joins the modes of a cluster, and only if clusters are further apart than `delta_dist`:
    adjusted Rand index 0.6 without the merge and above 0.95 with it for a deviation of one bandwidth.

    Distances come from matrix products on blocks, blocks hold only points that can be within the bandwidth
    (exact: both are sorted along the main axis of the points), and trajectories that have met go on as one.
    Extra memory is a few copies of the points and some blocks, whatever the number of seeds.

    Parameters
    ----------
    points : float Tensor [N, E]
        Embeddings of the pixels, in embedding units.
    bandwidth : float
        Radius h of the kernel, width of the seed grid: one seed at the mean of the points of every cell.
    delta_dist : float or None
        Clusters with means nearer than this become one; None keeps all.
    max_iterations : int

    Returns
    -------
    int64 Tensor [N]
        1 .. K, larger clusters first if merged.

    Raises
    ------
    ValueError
        If the bandwidth or the number of iterations is not positive, the bandwidth is not finite or below
        what float64 resolves among these points, or `delta_dist` is negative or not finite.

    References
    ----------
    Thesis 8.2 eq. 2 ("mean-shift+"); Comaniciu & Meer 2002.
    """
    check_bandwidth(bandwidth)
    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations}; expected at least 1")
    if delta_dist is not None:
        check_delta_dist(delta_dist)
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    with exact_products(points.device):  # rounded products would move the modes
        points = centred(points, bandwidth)
        seeds = _grid_seeds(points, bandwidth)
        centres, n_neighbours = _converge(points, seeds, bandwidth, max_iterations)
        centres = _drop_duplicates(centres, n_neighbours, bandwidth)
        labels = relabel_consecutive(nearest(points, centres) + 1)
        return labels if delta_dist is None else merge_close_clusters(points, labels, delta_dist)


def _grid_seeds(points: Tensor, width: float) -> Tensor:
    """[S, E]: mean of the points of every occupied grid cell."""
    _, cell, count = torch.unique(grid_cells(points, width), return_inverse=True, return_counts=True)
    return segment_sum(points, cell, len(count)) / count[:, None]


def _converge(points: Tensor, seeds: Tensor, bandwidth: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Centres [M, E] where the seeds come to rest, and the number of points around each [M]."""
    sums_in_ball = ball_sums(points, None, bandwidth)
    centres, counts = [], []
    for iteration in range(max_iterations):
        sums = sums_in_ball(seeds)
        count = sums[:, -1]
        mean = sums[:, :-1] / count[:, None].clamp(min=1)
        lonely = count == 0  # the mean of a cell may be far from all its points: go on from the nearest point
        if lonely.any():
            mean[lonely] = points[nearest(seeds[lonely], points)]
        at_rest = torch.linalg.vector_norm(mean - seeds, dim=1) <= CONVERGED * bandwidth
        if iteration == max_iterations - 1:
            at_rest[:] = True
        centres.append(mean[at_rest])
        counts.append(count[at_rest])
        seeds = mean[~at_rest]
        if len(seeds) == 0:
            break
        cell, order = torch.sort(grid_cells(seeds, EQUAL * bandwidth), stable=True)
        first = torch.ones_like(cell, dtype=torch.bool)
        first[1:] = cell[1:] != cell[:-1]
        seeds = seeds[order[first]]
    return torch.cat(centres), torch.cat(counts)


def _drop_duplicates(centres: Tensor, n_neighbours: Tensor, bandwidth: float) -> Tensor:
    """Centres without those within the bandwidth of a stronger one; strongest first."""
    strongest_first = torch.sort(n_neighbours, descending=True, stable=True).indices
    left = centres[strongest_first].cpu().double().numpy()
    kept = []
    while len(left):  # a small block at a time: one after the other inside it, then all the rest at once
        block, left = left[:32], left[32:]
        kept.append(block[suppress_near(_square_distances(block, block) <= bandwidth**2)])
        left = left[(_square_distances(left, kept[-1]) > bandwidth**2).all(1)]
    return torch.as_tensor(np.concatenate(kept)).to(centres)


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [A, B] squared distances of the rows of two float64 arrays."""
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
