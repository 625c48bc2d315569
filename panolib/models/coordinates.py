"""Where a pixel is: coordinates as input channels, or added to its embedding ("semi-convolutional").

A convolution gives two identical objects identical embeddings, wherever they are. With coordinates added to
two channels a network has to say only where, seen from a pixel, its object is; and pixels that say so agree
with those of their object and with no others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def append_coordinates(image: Tensor) -> Tensor:
    """`image` [B, C, H, W] with two more channels: x and y, each running from -1 to 1 over the image."""
    batch, _, height, width = image.shape
    y = torch.linspace(-1, 1, height, dtype=image.dtype, device=image.device)
    x = torch.linspace(-1, 1, width, dtype=image.dtype, device=image.device)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))                 # [2, H, W]
    return torch.cat([image, grid.expand(batch, -1, -1, -1)], dim=1)


def coordinate_grid(size: Sequence[int], length: float, device: torch.device | None = None) -> Tensor:
    """x / length and y / length of every pixel of a grid (h, w), counted from its middle: float32 [2, h, w].

    From the middle, as half the numbers round half as much, and a rotation about it turns coordinates with
    the pixels. Clusterings and losses look at differences only, so the origin moves no result.
    """
    y, x = ((torch.arange(n, device=device) - (n - 1) / 2) / length for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def add_coordinates(offsets: Tensor, length: float) -> Tensor:
    """Embeddings of a network that says offsets: `coordinate_grid` is added to the first two channels.

    `offsets` float [B, E, h, w] are in embedding units, E >= 2; `length` is the pixels of this grid to one of
    them. Of half precision the sum is float32: bfloat16 has no number between 64 and 64.5, less than what
    tells two small objects apart. What is `length` apart differs by one before anything is learned, so a
    small length leaves less to push and more to pull: the offset that a network has to learn is as large as
    the radius of an object over the length. Novotny et al. 2018, arXiv:1807.10712.
    """
    grid = coordinate_grid(offsets.shape[-2:], length, offsets.device)
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    return offsets + F.pad(grid, (0, 0, 0, 0, 0, offsets.shape[1] - 2))
