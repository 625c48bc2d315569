"""Embeddings with a width of their own for each instance, and seeds that find them (`clustering.seeds`)."""

from __future__ import annotations

import torch
from torch import Tensor

from panolib.clustering.seeds import split_channels, width_kernel
from panolib.losses.instances import at_least_float32, check_same_grid
from panolib.losses.soft_masks import dice

SMOOTHNESS = 0.4  # Neven's 10, for a width exp(-5 s) of their channel s


def learned_bandwidth_loss(
    output: Tensor, instance_labels: Tensor, *, ignore: Tensor | None = None
) -> dict[str, Tensor]:
    """The terms of the loss, each a mean over the images of a batch; their sum is the loss.

    The kernel of an instance is a Gaussian of the distance to its mean embedding, with its mean log width.
    `output` float [B, E + 2, H, W] has embedding, log width and seed logit of every pixel; `instance_labels`
    int64 [B, H, W] ids >= 1 in any numbering, 0 for no instance; `ignore` bool [B, H, W] pixels of no term.
    Raises ValueError if shapes differ.

    Returns, by name: "mask", one minus the Dice overlap of kernel and instance, mean over instances (Neven et
    al. take Lovász' hinge); "smoothness", variance of the log width inside an instance, mean over instances;
    "seed", squared difference of the seed, in [0, 1], to the kernel of the own instance, or to 0 outside of
    all, mean over pixels. An image without instances adds 0 to the first two.

    Neven et al. 2019, arXiv:1906.11109; Lalit et al. 2021, arXiv:2101.10033 (EmbedSeg).
    """
    check_same_grid(output, instance_labels=instance_labels, ignore=ignore)
    counted = torch.ones_like(instance_labels, dtype=torch.bool) if ignore is None else ~ignore.bool()
    images = [
        _of_image(pixels[:, kept.flatten()], labels[kept])
        for pixels, labels, kept in zip(at_least_float32(output).flatten(2), instance_labels, counted)
    ]
    return {name: torch.stack([terms[name] for terms in images]).mean() for name in images[0]}


def _of_image(pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Terms of the pixels [E + 2, N] of one image and their labels [N]."""
    embeddings, log_width, seed = split_channels(pixels)
    own = (labels == labels[labels > 0].unique()[:, None]).to(pixels)                    # [K, N]
    sizes = own.sum(1)
    centres, widths = own @ embeddings.T / sizes[:, None], own @ log_width / sizes       # [K, E], [K]
    distance = torch.cdist(centres, embeddings.T, compute_mode="donot_use_mm_for_euclid_dist")
    kernel = width_kernel(distance.square(), widths[:, None])                            # [K, N]
    overlap = dice((kernel * own).sum(1), kernel.square().sum(1) + sizes)
    variance = (own * (log_width - widths[:, None]).square()).sum(1) / sizes
    target = (own * kernel).sum(0).detach()                                              # 0 in no instance
    n_instances, n_pixels = max(len(own), 1), max(len(labels), 1)
    return {
        "mask": (1 - overlap).sum() / n_instances,
        "smoothness": SMOOTHNESS * variance.sum() / n_instances,
        "seed": (seed.sigmoid() - target).square().sum() / n_pixels,
    }
