"""Mean shift by peeling: find the densest place, climb to its mode, take its ball away, repeat.

There are as many climbs as modes, not as many as occupied grid cells. Modes of few points, which mixed
embeddings at object borders make in numbers, are never climbed: their points go to the nearest mode. So the
result is *not* that of scikit-learn's mean shift; it has fewer false small clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from panolib.cluster_labels import merge_close_clusters, relabel_consecutive
from panolib.distances import centred, exact_products, grid_cells, nearest, segment_sum

CONVERGED = 1e-2  # a climb ends when it moves by less than this share of the bandwidth


@torch.no_grad()
def mean_shift_peel(
    points: Tensor, *, bandwidth: float = 0.5, delta_dist: float | None = 2.0, min_points: int = 16
) -> Tensor:
    """Modes by peeling, each point to the nearest one, then a merge of close clusters.

    Parameters
    ----------
    points, bandwidth, delta_dist
        As in `mean_shift.mean_shift_plus`.
    min_points : int
        A mode has at least so many points within the bandwidth (unless none has).

    Returns
    -------
    int64 Tensor [N]
        1 .. K.

    Raises
    ------
    ValueError
        If the bandwidth is not positive.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}; expected a positive number")
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    with exact_products(points.device):
        points = centred(points, bandwidth)
        labels = relabel_consecutive(nearest(points, peel_modes(points, bandwidth, min_points)) + 1)
        return labels if delta_dist is None else merge_close_clusters(points, labels, delta_dist)


@torch.no_grad()
def mean_shift_grid(
    embeddings: Tensor,
    mask: Tensor,
    *,
    bandwidth: float = 0.5,
    delta_dist: float | None = 2.0,
    min_points: int = 16,
) -> Tensor:
    """Peeling on means of 2 x 2 pixels; every pixel goes to the nearest mode; then a merge of close clusters.

    A cell of four pixels that do not agree lies on a border and takes no part in finding modes.

    Parameters
    ----------
    embeddings : float Tensor [E, H, W]
    mask : bool Tensor [H, W]
    bandwidth, delta_dist, min_points
        As in `mean_shift_peel`; `min_points` counts pixels.

    Returns
    -------
    int64 Tensor [H, W]
        0 outside the mask, 1 .. K inside.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}; expected a positive number")
    labels = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
    if not mask.any():
        return labels
    with exact_products(embeddings.device):
        points = embeddings.detach().float().flatten(1)[:, mask.flatten()].T
        origin = points.mean(0)
        points, field = points - origin, embeddings.detach().float() - origin[:, None, None]
        cells = F.avg_pool2d(field[None], 2)[0]
        square = F.avg_pool2d(field.square().sum(0)[None], 2)[0]
        spread = square - cells.square().sum(0)  # mean square distance to the mean of the cell
        whole = ~F.max_pool2d((~mask).float()[None], 2)[0].bool()
        inside = cells.movedim(0, -1)[whole & (spread <= (0.5 * bandwidth) ** 2)]
        modes = peel_modes(inside, bandwidth, max(1, min_points // 4))
        if len(modes) == 0:  # nothing as large as a cell
            modes = peel_modes(points, bandwidth, min_points)
        found = relabel_consecutive(nearest(points, modes) + 1)
        labels[mask] = found if delta_dist is None else merge_close_clusters(points, found, delta_dist)
    return labels


def peel_modes(points: Tensor, bandwidth: float, min_points: int, max_iterations: int = 50) -> Tensor:
    """[K, E]: modes of the flat kernel, densest seed first, further than the bandwidth from each other.

    Points [N, E] should be centred. Without any dense place there is one mode, at the densest cell.
    """
    if len(points) == 0:
        return points
    half_square = 0.5 * points.square().sum(1)
    lifted = torch.cat([points, torch.ones_like(points[:, :1])], 1)  # sums and counts in one product
    _, cell, count = torch.unique(grid_cells(points, bandwidth), return_inverse=True, return_counts=True)
    means = segment_sum(points, cell, len(count)) / count[:, None]
    left = torch.ones_like(half_square)
    modes: list[Tensor] = []

    def ball(centre: Tensor) -> Tensor:
        return (points @ centre - half_square >= 0.5 * (centre.dot(centre) - bandwidth**2)).to(points.dtype)

    while True:
        densest = count.argmax()
        if modes and count[densest] < min_points:
            return torch.stack(modes)
        centre = means[densest]
        for _ in range(max_iterations):
            near = ball(centre)
            sums = near @ lifted
            moved = sums[:-1] / sums[-1].clamp(min=1)
            if sums[-1] == 0 or torch.dist(moved, centre) <= CONVERGED * bandwidth:
                break
            centre = moved
        if not modes or (
            sums[-1] >= min_points and torch.cdist(centre[None], torch.stack(modes)).min() > bandwidth
        ):
            modes.append(centre)
        left *= 1 - near
        left[cell == densest] = 0  # its mode may lie further away than the bandwidth
        count = torch.zeros_like(count).index_add_(0, cell, left.to(count.dtype))
