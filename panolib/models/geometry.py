"""Where the cells of a network's map sit in its image, and the one way to bring such a map to pixels.

Strided convolutions and pools with symmetric padding centre cell i on pixel ``i * stride``, the *first* one
of the ``stride`` pixels that it stands for. Those with TensorFlow's "same" padding put the odd pixel of it
behind an even number of pixels, and so centre cell i on the *last* one, ``i * stride + stride - 1``, while
sizes are even (`first_cell`). Interpolation with ``align_corners=False`` takes it for the middle one,
``(stride - 1) / 2`` pixels off either way: 1.5 at stride 4, 3.5 at 8, 7.5 at 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Alignment = Literal["cell_centre", "receptive_field", "corners"]
Padding = Literal["symmetric", "same"]  # of strided layers: torch's, or TensorFlow's


@dataclass(frozen=True)
class Placement:
    """Where the cells of a map are taken to sit in the image.

    `alignment` "cell_centre": the map covers the image, each cell sits in the middle of its share.
    "receptive_field": cell i sits where strided layers centre it, on pixel `first_cell` + i * `stride`.
    "corners": the first and the last cell sit on the first and the last pixel (SAC; with its pool in ceil
    mode less than a pixel away from the receptive field when the size is a multiple of the stride).

    `stride` in pixels and `padding` are read by "receptive_field" alone; None for a padding: the strided
    layers do not all have the same. Raises ValueError for an unknown alignment, a stride below 1, and
    "receptive_field" without one padding.
    """

    alignment: Alignment = "cell_centre"
    stride: int = 1
    padding: Padding | None = "symmetric"

    def __post_init__(self):
        if self.alignment not in get_args(Alignment):
            raise ValueError(f"alignment is {self.alignment!r}, expected one of {list(get_args(Alignment))}")
        if self.stride < 1:
            raise ValueError(f"stride is {self.stride}, expected at least 1")
        if self.alignment == "receptive_field" and self.padding not in get_args(Padding):
            raise ValueError(
                "alignment is 'receptive_field', but the strided layers of this encoder centre cells in "
                "different ways; expected 'cell_centre' or 'corners'"
            )


CELL_CENTRES = Placement()


def placement_of(model: nn.Module) -> Placement:
    """What a network says about its output; cell centres for one that says nothing."""
    return getattr(getattr(model, "module", model), "placement", CELL_CENTRES)


def first_cell(n_pixels: int, stride: int, padding: Padding) -> int:
    """Pixel, of a row of `n_pixels`, that the first cell is centred on after layers of this padding.

    A strided layer with "same" padding centres cell i on 2 i + 1 where it sees an even number of cells, and
    on 2 i where it sees an odd one; `stride` is a power of two, halving after halving.
    """
    position, step = 0, 1
    while padding == "same" and step < stride:
        position += step * (n_pixels % 2 == 0)
        n_pixels, step = -(-n_pixels // 2), 2 * step
    return position


def upsample_to(
    maps: Tensor,
    size: Sequence[int],
    placement: Placement = CELL_CENTRES,
    *,
    image_size: Sequence[int] | None = None,
) -> Tensor:
    """Maps, float [B, C, h, w], at another size, bilinear, every cell where its placement says.

    `size` (height, width) is that of the result, whose pixels tile the image, as in `data.views`;
    `image_size` that of the image which the network saw, the same by default. Beyond the outermost cells the
    nearest one is repeated.
    """
    size, image_size = tuple(size), tuple(image_size or size)
    if placement.alignment == "cell_centre":
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    if size == image_size:
        return enlarge(maps, size, placement.alignment, placement.stride, placement.padding)
    for dim, n_pixels, n_image in zip((-2, -1), size, image_size):
        n_cells = maps.shape[dim]
        pixels = (torch.arange(n_pixels, device=maps.device) + 0.5) * (n_image / n_pixels) - 0.5
        cells = (pixels - first_cell(n_image, placement.stride, placement.padding)) / placement.stride
        if placement.alignment == "corners":
            cells = pixels * ((n_cells - 1) / max(n_image - 1, 1))
        maps = _interpolate(maps, cells, dim)
    return maps


def enlarge(
    maps: Tensor, size: Sequence[int], alignment: Alignment, ratio: int, padding: Padding = "symmetric"
) -> Tensor:
    """Maps [B, C, h, w] on the grid, `ratio` times as fine, that strided layers made them from; bilinear.

    `size` (H, W) of the finer grid; with "receptive_field" cell i of `maps` sits on its cell
    `first_cell` + i * `ratio`.
    """
    size = tuple(size)
    if alignment != "receptive_field":
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=alignment == "corners")
    if ratio == 1 and tuple(maps.shape[-2:]) == size:
        return maps
    # between aligned corners, h + 1 cells and h * ratio + 1 pixels are exactly `ratio` apart; where the first
    # cell does not sit on the first pixel, one more cell goes before it and pixels are cut off
    first = [first_cell(n, ratio, padding) for n in size]
    before = [int(position > 0) for position in first]
    after = [
        max(0, -(-(n - 1 - position) // ratio) + 1 - old)
        for n, position, old in zip(size, first, maps.shape[-2:])
    ]
    maps = F.pad(maps, (before[1], after[1], before[0], after[0]), mode="replicate")
    fine = [(n - 1) * ratio + 1 for n in maps.shape[-2:]]
    maps = F.interpolate(maps, size=fine, mode="bilinear", align_corners=True)
    top, left = (ratio * cells - position for cells, position in zip(before, first))
    return maps[..., top : top + size[0], left : left + size[1]]


def _interpolate(maps: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Values between the cells of one axis, at positions [n] counted in cells; the ends are repeated."""
    positions = positions.clamp(0, maps.shape[dim] - 1)
    low = positions.long()
    high = (low + 1).clamp(max=maps.shape[dim] - 1)
    share = (positions - low).to(maps.dtype).reshape([-1, 1] if dim == -2 else [-1])
    return torch.lerp(maps.index_select(dim, low), maps.index_select(dim, high), share)
