"""Instances of networks that say how wide each is: grown from the surest seeds, with no bandwidth to choose.

Such a network has two more channels after the embedding of a pixel: the logarithm of the width of its
instance, and a logit of how well the pixel stands for the instance (`losses.learned_bandwidth` teaches both).
"""

from __future__ import annotations

import torch
from torch import Tensor

N_EXTRA = 2  # channels after the embedding
SURE = 0.5  # a pixel that stands less for its instance starts none
INSIDE = 0.5  # of the kernel: an instance ends where it falls below
LARGEST_LOG = 5.0  # of a width, in either direction: e^5 units are an image, e^-5 less than a pixel


def split_channels(output: Tensor, dim: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(embedding of E channels, log width, seed logit) of E + 2 channels along `dim`."""
    embeddings, extra = output.split([output.shape[dim] - N_EXTRA, N_EXTRA], dim)
    log_width, seed = extra.unbind(dim)
    return embeddings, log_width, seed


def width_kernel(square: Tensor, log_width: Tensor) -> Tensor:
    """exp(-square / 2 width^2) of squared distances, where `log_width` is the logarithm of the width."""
    return torch.exp(-0.5 * square * torch.exp(-2 * log_width.clamp(-LARGEST_LOG, LARGEST_LOG)))


@torch.no_grad()
def seeds(points: Tensor) -> Tensor:
    """One instance after the other, each around the surest pixel that is left, as wide as that pixel says.

    Pixels at which the kernel is above `INSIDE` belong to it. A proposal that lies for half or more in
    earlier ones is none. Takes what the network says of each pixel, float [N, E + 2]; returns int64 [N], 1 ..
    K, 0 for pixels of no instance. Neven et al. 2019, arXiv:1906.11109; Lalit et al. 2021, arXiv:2101.10033
    (EmbedSeg).
    """
    embeddings, log_width, seed = split_channels(points, 1)
    left, labels, n_found = seed.sigmoid(), torch.zeros_like(seed, dtype=torch.int64), 0
    while len(left) and left.max() >= SURE:
        best = left.argmax()
        inside = width_kernel((embeddings - embeddings[best]).square().sum(1), log_width[best]) > INSIDE
        free = inside & (labels == 0)
        if 2 * free.sum() > inside.sum():
            n_found += 1
            labels[free] = n_found
        left[inside] = -1.0
    return labels
