"""Mean shift by peeling: find the densest place, climb to its mode, take its ball away, repeat.

There are as many climbs as modes, not as many as occupied grid cells. Modes of few points, which mixed
embeddings at object borders make in numbers, are never climbed: their points go to the nearest mode. So the
result is *not* that of scikit-learn's mean shift; it has fewer false small clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panolib.clustering.distances import (
    centred,
    check_bandwidth,
    check_finite,
    exact_products,
    grid_cells,
    lifted_centres,
    nearest,
    segment_sum,
    suppress_near,
)
from panolib.clustering.labels import merge_close_clusters

MAX_ITERATIONS = 50  # of a climb
MAX_SEEDS = 64  # of one round
CONVERGED = 1e-2  # a climb ends when it moves by less than this share of the bandwidth


@torch.no_grad()
def mean_shift_peel(
    points: Tensor, *, bandwidth: float = 0.5, delta_dist: float | None = 2.0, min_points: int = 16
) -> Tensor:
    """int64 [N], 1 .. K: modes by peeling, each point to the nearest one, then a merge of close clusters.

    Parameters as in `mean_shift.mean_shift_plus`; a mode has at least `min_points` points within the
    bandwidth (unless none has). Raises ValueError if the bandwidth is not positive or `min_points` below 1.
    """
    _check(bandwidth, min_points)
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    with exact_products(points.device):
        points = centred(points, bandwidth)
        modes = peel_modes(points.T, bandwidth, min_points)
        return merge_close_clusters(points, nearest(points, modes) + 1, delta_dist)


@torch.no_grad()
def mean_shift_grid(
    embeddings: Tensor, mask: Tensor, *, bandwidth: float = 0.5, delta_dist: float | None = 2.0,
    min_points: int = 16,
) -> Tensor:  # fmt: skip
    """Peeling on means of 2 x 2 pixels; every pixel goes to the nearest mode; then a merge of close clusters.

    A cell of four pixels that do not agree lies on a border and takes no part in finding modes. Takes
    embeddings, float [E, H, W], and a mask, bool [H, W]; otherwise as `mean_shift_peel`. Returns int64 [H,
    W], 0 outside the mask. Raises ValueError also for embeddings in the mask that are not finite.
    """
    _check(bandwidth, min_points)
    mask = mask.bool()
    labels = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
    where = mask.flatten().nonzero().squeeze(1)
    if len(where) == 0:
        return labels
    with exact_products(embeddings.device):
        field = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)).flatten(1)
        points = field.index_select(1, where)  # [E, N]
        check_finite(points)
        origin = points.mean(1, keepdim=True)
        points.sub_(origin)
        cells = _inner_cells(field, mask, bandwidth).sub_(origin)
        modes = peel_modes(cells, bandwidth, max(1, min_points // 4))
        if len(modes) == 0:  # nothing as large as a cell
            modes = peel_modes(points, bandwidth, min_points)
        points = points.T  # [N, E]
        found = merge_close_clusters(points, nearest(points, modes) + 1, delta_dist)
        return labels.flatten().index_copy(0, where, found).view_as(labels)


def _inner_cells(field: Tensor, mask: Tensor, tolerance: float) -> Tensor:
    """[E, M]: means of the 2 x 2 cells that lie in the mask and whose pixels agree across both diagonals.

    `field` [E, H * W], `mask` [H, W].
    """
    height, width = (side // 2 * 2 for side in mask.shape)
    even, odd = mask[0:height:2, :width], mask[1:height:2, :width]
    both = even & odd
    row, column = (both[:, 0::2] & both[:, 1::2]).nonzero().unbind(1)
    first = 2 * row * mask.shape[1] + 2 * column  # pixel numbers of the upper left corners
    corners = (first + i * mask.shape[1] + j for i in (0, 1) for j in (0, 1))
    a, b, c, d = (field.index_select(1, corner) for corner in corners)
    apart = torch.maximum((a - d).square_().sum(0), (b - c).square_().sum(0))
    inner = (apart <= tolerance**2).nonzero().squeeze(1)
    return a.add_(d).add_(b).add_(c).mul_(0.25).index_select(1, inner)


def peel_modes(points: Tensor, bandwidth: float, min_points: int) -> Tensor:
    """[K, E]: modes of the flat kernel, further than the bandwidth from each other.

    Points [E, N] should be centred. Without any dense place there is one mode, near the densest cell.
    Seeds of one round are further apart than twice the bandwidth, so all of them climb at once.
    """
    n_dims, n_points = points.shape
    if n_points == 0:
        return points.T
    lifted = points.new_ones(n_dims + 2, n_points)  # p, 1, -|p|²/2: everything that products need
    lifted[:n_dims] = points
    torch.sum(lifted[:n_dims].square(), 0, out=lifted[n_dims + 1]).mul_(-0.5)
    _, cell, count = torch.unique(grid_cells(points.T, bandwidth), return_inverse=True, return_counts=True)
    means = segment_sum(points.T, cell, len(count)) / count[:, None]
    left, climbed = torch.ones_like(cell, dtype=torch.bool), torch.zeros_like(count, dtype=torch.bool)
    modes = means[:0]
    # seeds at once: their balls take no more memory than the points, or what a cache holds
    block = max(n_dims, (2**24 if points.is_cuda else 2**18) // n_points)

    def balls(centres: Tensor) -> Tensor:
        """float [M, N]: 1 within the bandwidth of a centre: c·p - |p|²/2 >= (|c|² - h²)/2."""
        rows, threshold = lifted_centres(centres, bandwidth)
        return (rows @ lifted).ge_(threshold)

    while True:
        dense = torch.sort(count, descending=True, stable=True).indices[:MAX_SEEDS]
        dense = dense[count[dense] >= min_points]
        if len(dense) == 0:
            if len(modes):
                return modes
            dense = count.argmax()[None]
        seeds = dense[_apart(means[dense], 2 * bandwidth)]
        centres, strength = means[seeds], count[seeds].to(points)
        climbing = torch.arange(len(seeds), device=points.device)
        for _ in range(MAX_ITERATIONS):
            still = []
            for some in climbing.split(block):
                sums = balls(centres[some]) @ lifted[: n_dims + 1].T
                strength[some] = sums[:, n_dims]
                # the mean of a cell may be further than the bandwidth from all points: it stays where it is
                there = sums[:, n_dims:] > 0
                moved = torch.where(there, sums[:, :n_dims] / sums[:, n_dims:], centres[some])
                step = torch.linalg.vector_norm(moved - centres[some], dim=1)
                centres[some] = moved
                still.append(some[step > CONVERGED * bandwidth])
            climbing = torch.cat(still)
            if len(climbing) == 0:
                break
        by_strength = torch.sort(strength, descending=True, stable=True).indices
        found = by_strength[strength[by_strength] >= min_points]
        if len(found) == 0 and len(modes) == 0:
            found = by_strength[:1]
        found = torch.cat([modes, centres[found]])
        modes = found[_apart(found, bandwidth)]
        for some in centres.split(block):
            left &= balls(some).amax(0) == 0
        climbed[seeds] = True  # whose modes may lie further away than the bandwidth
        count = torch.bincount(cell[left], minlength=len(count)).masked_fill_(climbed, 0)


def _apart(points: Tensor, distance: float) -> Tensor:
    """bool [M]: True for each point further than `distance` from all earlier ones that are True."""
    near = (torch.cdist(points, points) <= distance).cpu().numpy()
    return torch.from_numpy(suppress_near(near)).to(points.device)


def _check(bandwidth: float, min_points: int) -> None:
    check_bandwidth(bandwidth)
    if min_points < 1:
        raise ValueError(f"min_points is {min_points}; expected at least 1")
