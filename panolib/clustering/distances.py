"""Arithmetic on points that clustering needs: sums in balls, nearest centres, means by label."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

FEW = 2**18  # elements that a CPU computes with in less time than it takes to call for a part of them


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in the precision of their factors: neither autocast nor TF32 rounds them."""
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def check_bandwidth(bandwidth: float) -> None:
    """Raise ValueError for a bandwidth that is not a finite positive number."""
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth is {bandwidth}; expected a positive number below infinity")


def check_delta_dist(delta_dist: float) -> None:
    """Raise ValueError for a distance that is negative or not finite."""
    if not 0 <= delta_dist < math.inf:
        raise ValueError(f"delta_dist is {delta_dist}; expected a finite number >= 0")


def check_finite(points: Tensor) -> None:
    """Raise ValueError if embeddings that are to be clustered hold nan or infinity."""
    if not torch.isfinite(points.sum()) and not torch.isfinite(points).all():  # a sum may just be too large
        raise ValueError("embeddings hold nan or infinity inside the mask; expected finite values")


def centred(points: Tensor, bandwidth: float) -> Tensor:
    """Points around their mean, in a precision in which |a|² - 2ab + |b|² resolves the bandwidth.

    Raises ValueError where float64 does not either.
    """
    points = points.detach()
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    total = sum(block.sum(0, dtype=torch.float64) for block in points.split(2**14))
    points = points - (total / len(points)).to(points.dtype)  # its rounding is common to all
    rounding = torch.finfo(torch.float32).eps * torch.linalg.vector_norm(points, dim=1).max() ** 2
    if not rounding > 1e-3 * bandwidth**2:
        return points.float()
    points = points.double()
    furthest = torch.linalg.vector_norm(points, dim=1).max().item()
    smallest = furthest * torch.finfo(torch.float64).eps ** 0.5
    if bandwidth < smallest:
        raise ValueError(
            f"bandwidth is {bandwidth}; expected at least {smallest:.2g} for embeddings that lie up to "
            f"{furthest:.2g} from their mean: rounding hides smaller distances"
        )
    return points


def grid_cells(points: Tensor, width: float) -> Tensor:
    """int64 [N]: a hash of the grid cell of each point. A collision only merges two seeds."""
    factors = _hash_factors(points.shape[1], points.device)
    if points.numel() <= FEW:
        return (torch.round(points / width).long() * factors).sum(1)
    cells = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for factor, values in zip(factors, points.T):  # integers are twice as large as points
        cells += torch.round(values / width).long() * factor
    return cells


@functools.cache
def _hash_factors(n_dims: int, device: torch.device) -> Tensor:
    return torch.tensor([pow(6364136223846793005, d + 1, 2**63) for d in range(n_dims)], device=device)


class BallSums:
    """Callable: maps centres [S, E] to the sums [S, W] of `values` [N, W] within `radius` of each.

    Without values: the sums of the points and their number, W = E + 1.

    A point p is in the ball of c if c·p - |p|²/2 >= (|c|² - radius²)/2: one matrix product, one comparison
    and a second product per block. Points and centres are sorted along the main axis of the points, so that
    a block of centres meets only the slice of points that can be near. Points should be centred.
    """

    def __init__(self, points: Tensor, values: Tensor | None, radius: float):
        n, dim = points.shape
        self.radius, self.axis = radius, torch.linalg.eigh(points.T @ points).eigenvectors[:, -1]
        self.position, order = (points @ self.axis).sort()
        self.lifted = points.new_ones(n, dim + 2)  # p, 1, -|p|²/2: everything that both products need
        for start in range(0, n, 2**14):
            some = slice(start, start + 2**14)
            self.lifted[some, :dim] = points[order[some]]
            self.lifted[some, dim + 1] = -0.5 * self.lifted[some, :dim].square().sum(1)
        self.values = self.lifted[:, : dim + 1] if values is None else values[order]

    def __call__(self, centres: Tensor) -> Tensor:
        return self.of_lifted(*lifted_centres(centres, self.radius))

    def of_lifted(self, centres: Tensor, threshold: Tensor) -> Tensor:
        """Of `lifted_centres`."""
        n, values = len(self.lifted), self.values
        if n * len(centres) <= FEW:
            return (centres @ self.lifted.T).ge_(threshold) @ values
        n_centres, n_points = (4096, 16384) if values.is_cuda else (128, 2048)  # a block fits the CPU's cache
        reach = self.radius * (1 + 1e-3)
        out = values.new_zeros(values.shape[1], len(centres))
        along, order = (centres[:, :-2] @ self.axis).sort()
        centres, threshold = centres[order], threshold[order].T
        memory = values.new_empty(min(n, n_points), min(len(centres), n_centres))
        blocks = range(0, len(centres), n_centres)
        last = [min(start + n_centres, len(centres)) - 1 for start in blocks]
        low = torch.searchsorted(self.position, along[::n_centres] - reach).tolist()
        high = torch.searchsorted(self.position, along[last] + reach, right=True).tolist()
        for start, first, stop in zip(blocks, low, high):
            some = slice(start, start + n_centres)
            columns = centres[some].T.contiguous()
            for begin in range(first, stop, n_points):
                these = slice(begin, min(begin + n_points, stop))
                near = memory[: these.stop - begin, : columns.shape[1]]
                torch.mm(self.lifted[these], columns, out=near)
                near.ge_(threshold[:, some])  # in place: 1.0 inside, 0.0 outside
                out[:, some] += values[these].T @ near
        unsorted = torch.empty_like(out)
        unsorted[:, order] = out
        return unsorted.T


def lifted_centres(centres: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Rows c, 0, 1 [S, E + 2], and what their products with lifted points are at least in balls [S, 1]."""
    threshold = 0.5 * (centres.square().sum(1, keepdim=True) - radius**2)
    zero = torch.zeros_like(threshold)
    return torch.cat([centres, zero, zero + 1], 1), threshold


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """int64 [N]: index of the nearest centre of every point, in blocks."""
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    minus_half_square = -0.5 * centres.square().sum(1, keepdim=True)
    block = max(1, (2**24 if points.is_cuda else 2**17) // len(centres))
    for start in range(0, len(points), block):
        some = slice(start, start + block)
        nearest[some] = torch.addmm(minus_half_square, centres, points[some].T).max(0).indices
    return nearest


def suppress_near(near: np.ndarray) -> np.ndarray:
    """bool [M]: True for each point that is near no earlier one that is True; `near` is bool [M, M]."""
    kept = np.ones(len(near), bool)
    for i in range(len(near)):
        if kept[i]:
            kept[i + 1 :] &= ~near[i, i + 1 :]
    return kept


def segment_sum(values: Tensor, ids: Tensor, n_segments: int) -> Tensor:
    """[n_segments, W]: sums of the rows of `values` [N, W] by id."""
    return values.new_zeros(n_segments, values.shape[1]).index_add_(0, ids, values)


def segment_mean(values: Tensor, ids: Tensor, n_segments: int) -> Tensor:
    """[n_segments, W]: means of the rows of `values` [N, W] by id; 0 for an id without rows."""
    count = torch.bincount(ids, minlength=n_segments).clamp(min=1)
    return segment_sum(values, ids, n_segments) / count[:, None]
