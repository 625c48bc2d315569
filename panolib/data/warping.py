"""Affine maps of a canvas, and resampling by them.

Coordinates are those of ``torch.nn.functional.grid_sample`` with ``align_corners=False``: the centre of
the canvas is 0, its outer edges are -1 and 1. An *affine* is a [N, 2, 3] matrix that says, for every
output position, where to sample in the input; it holds at every resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from panolib.data.label_maps import as_labels
from panolib.labels import VOID


def sampling_grid(affine: Tensor, size: tuple[int, int]) -> Tensor:
    """Sampling positions [N, h, w, 2] of the pixel centres of a canvas of `size` (h, w), for ``grid_sample``.

    Written element by element: ``affine_grid`` is a matrix product, which autocast rounds to bfloat16.
    """
    y, x = ((2 * torch.arange(n, dtype=affine.dtype, device=affine.device) + 1) / n - 1 for n in size)
    a = affine[..., None, None]                                                           # [N, 2, 3, 1, 1]
    return (a[:, :, 0] * x + a[:, :, 1] * y[:, None] + a[:, :, 2]).movedim(1, -1)


def compose_affines(outer: Tensor, inner: Tensor) -> Tensor:
    """Affine [N, 2, 3] that maps p to outer(inner(p))."""
    linear = (outer[:, :, :2, None] * inner[:, None, :, :]).sum(2)
    return torch.cat([linear[..., :2], linear[..., 2:] + outer[..., 2:]], dim=-1)


def warp(x: Tensor, affine: Tensor, mode: str = "bilinear", *, padding_mode: str = "zeros") -> Tensor:
    """Resample maps, float [N, C, H, W], at the positions of an affine [N, 2, 3] from output to input.

    `mode` and `padding_mode` are those of ``grid_sample``. Half precision becomes float32.
    """
    x = x if x.dtype == torch.float64 else x.float()
    grid = sampling_grid(affine.to(x), tuple(x.shape[-2:]))
    return F.grid_sample(x, grid, mode=mode, padding_mode=padding_mode, align_corners=False)


def warp_labels(labels: Tensor, affine: Tensor, *, fill: int | bool = VOID, size=None) -> Tensor:
    """Resample label maps, integer or bool [N, H, W], with the nearest rule; exact for every integer type.

    `affine` float [N, 2, 3] leads from the result, of `size` (height, width; by default that of the maps), to
    them. `fill`, outside of the map, must be representable in the type of `labels`, else a ValueError.
    """
    labels = labels if torch.is_tensor(labels) else as_labels(labels, "labels")
    dtype, labels = labels.dtype, as_labels(labels, "labels")
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if not low <= fill <= high:
        raise ValueError(f"fill is {fill}, expected {low} .. {high} for labels of {dtype}")
    n, height, width = labels.shape
    grid = sampling_grid(affine, tuple(size or (height, width)))
    column = ((grid[..., 0] + 1) * (width / 2)).floor().long()
    row = ((grid[..., 1] + 1) * (height / 2)).floor().long()
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    values = labels.reshape(n, -1).gather(1, index.flatten(1)).view(index.shape)
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    return values.masked_fill(outside, fill).to(dtype)


def rotation_affine(shape: tuple[int, int], degrees: Tensor) -> Tensor:
    """Sampling affines [B, 2, 3] that turn a canvas of shape (H, W) counter-clockwise about its centre."""
    height, width = shape
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    zero = torch.zeros_like(cos)
    # the y axis points down; the aspect ratio keeps angles true in normalised coordinates
    entries = [cos, -sin * (height / width), zero, sin * (width / height), cos, zero]
    return torch.stack(entries, -1).view(-1, 2, 3)


def rotate(image: Tensor, degrees: Tensor | float) -> Tensor:
    """Turn maps [B, C, H, W] counter-clockwise about their centre; bilinear, 0 outside, size unchanged.

    `degrees` is a float, or float [B].
    """
    return warp(image, rotation_affine(image.shape[-2:], _angles(degrees, image)))


def unrotate(field: Tensor, degrees: Tensor | float) -> Tensor:
    """Turn maps [B, C, H, W] back: the inverse of `rotate` where `rotation_validity` is True."""
    return rotate(field, -_angles(degrees, field))


def rotation_validity(shape: tuple[int, int], degrees: Tensor | float) -> Tensor:
    """bool [B, *shape]: pixels whose value survives `rotate` and `unrotate`.

    True where no sample of either turn lay outside of the canvas.
    """
    degrees = torch.as_tensor(degrees, dtype=torch.float32).reshape(-1)
    ones = torch.ones(len(degrees), 1, *shape, device=degrees.device)
    return unrotate(rotate(ones, degrees), degrees)[:, 0] > 0.999                       # 1 up to rounding


def _angles(degrees: Tensor | float, image: Tensor) -> Tensor:
    """float32 [B] angles on the device of the image."""
    degrees = torch.as_tensor(degrees, dtype=torch.float32).to(image.device, non_blocking=True)
    return degrees.expand(len(image))
