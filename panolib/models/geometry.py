"""Where the cells of a network's map sit in its image, and the one way to bring such a map to pixels.

Strided convolutions and pools with symmetric padding centre cell i on pixel ``i * stride``, the *first* one
of the ``stride`` pixels that it stands for. Interpolation with ``align_corners=False`` takes it for the
middle one, ``(stride - 1) / 2`` pixels off: 1.5 at stride 4, 3.5 at 8, 7.5 at 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Alignment = Literal["cell_centre", "receptive_field", "corners"]


@dataclass(frozen=True)
class Placement:
    """Where the cells of a map are taken to sit in the image.

    Attributes
    ----------
    alignment : {"cell_centre", "receptive_field", "corners"}
        "cell_centre": the map covers the image, each cell sits in the middle of its share. "receptive_field":
        cell i sits on pixel i * `stride`, where strided layers centre it. "corners": the first and the last
        cell sit on the first and the last pixel (SAC; with its pool in ceil mode less than a pixel away from
        the receptive field when the size is a multiple of the stride).
    stride : int
        Pixels between two cells; read by "receptive_field" alone.

    Raises
    ------
    ValueError
        For an unknown alignment or a stride below 1.
    """

    alignment: Alignment = "cell_centre"
    stride: int = 1

    def __post_init__(self):
        if self.alignment not in get_args(Alignment):
            raise ValueError(f"alignment is {self.alignment!r}, expected one of {list(get_args(Alignment))}")
        if self.stride < 1:
            raise ValueError(f"stride is {self.stride}, expected at least 1")


CELL_CENTRES = Placement()


def placement_of(model: nn.Module) -> Placement:
    """What a network says about its output; cell centres for one that says nothing."""
    return getattr(getattr(model, "module", model), "placement", CELL_CENTRES)


def upsample_to(
    maps: Tensor,
    size: Sequence[int],
    placement: Placement = CELL_CENTRES,
    *,
    image_size: Sequence[int] | None = None,
) -> Tensor:
    """Maps at another size, bilinear, every cell where its placement says.

    Parameters
    ----------
    maps : float Tensor [B, C, h, w]
        Output of a network for images of `image_size`.
    size : (int, int)
        Height and width of the result, whose pixels tile the image, as in `data.views`.
    placement : Placement
    image_size : (int, int), optional
        Height and width of the image that the network saw; `size` by default.

    Returns
    -------
    float Tensor [B, C, H, W]
        Beyond the outermost cells the nearest one is repeated.
    """
    size, image_size = tuple(size), tuple(image_size or size)
    if placement.alignment == "cell_centre":
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    if size == image_size:
        return enlarge(maps, size, placement.alignment, placement.stride)
    for dim, n_pixels, n_image in zip((-2, -1), size, image_size):
        n_cells = maps.shape[dim]
        pixels = (torch.arange(n_pixels, device=maps.device) + 0.5) * (n_image / n_pixels) - 0.5
        cells_per_pixel = 1 / placement.stride
        if placement.alignment == "corners":
            cells_per_pixel = (n_cells - 1) / max(n_image - 1, 1)
        maps = _interpolate(maps, pixels * cells_per_pixel, dim)
    return maps


def enlarge(maps: Tensor, size: Sequence[int], alignment: Alignment, ratio: int) -> Tensor:
    """Maps [B, C, h, w] on a grid that is `ratio` times as fine and begins at the same place; bilinear.

    `size` (H, W) of the finer grid; with "receptive_field" its cell j sits on cell j / `ratio` of `maps`.
    """
    size = tuple(size)
    if alignment != "receptive_field":
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=alignment == "corners")
    if ratio == 1 and tuple(maps.shape[-2:]) == size:
        return maps
    # between aligned corners, h + 1 cells and h * ratio + 1 pixels are exactly `ratio` apart
    repeated = [max(0, -(-(n - 1) // ratio) + 1 - old) for n, old in zip(size, maps.shape[-2:])]
    maps = F.pad(maps, (0, repeated[1], 0, repeated[0]), mode="replicate")
    fine = [(n - 1) * ratio + 1 for n in maps.shape[-2:]]
    maps = F.interpolate(maps, size=fine, mode="bilinear", align_corners=True)
    return maps[..., : size[0], : size[1]]


def _interpolate(maps: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Values between the cells of one axis, at positions [n] counted in cells; the ends are repeated."""
    positions = positions.clamp(0, maps.shape[dim] - 1)
    low = positions.long()
    high = (low + 1).clamp(max=maps.shape[dim] - 1)
    share = (positions - low).to(maps.dtype).reshape([-1, 1] if dim == -2 else [-1])
    return torch.lerp(maps.index_select(dim, low), maps.index_select(dim, high), share)
