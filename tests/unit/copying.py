"""Images that say where their pixels are, and what layers that copy pixels make of them."""

from __future__ import annotations

import torch
from torch import nn


def ramp(size: tuple[int, int]) -> torch.Tensor:
    """[1, 2, H, W]: the row and the column of every pixel."""
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


@torch.no_grad()
def copied_by(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What a network of one channel makes of every channel."""
    return torch.cat([network(channel[:, None]) for channel in image.unbind(1)], 1)
