"""The labelled instances of one image, as the terms of the instance loss need them."""

from __future__ import annotations

import torch
from torch import Tensor

from panolib.cluster_labels import relabel_consecutive
from panolib.losses.soft_masks import soft_mask_sums


class Segments:
    """The labelled instances of one image, as all terms need them.

    Attributes
    ----------
    pixels : float Tensor [E, N]
        All pixels, float32 or wider.
    ids : int64 Tensor [N]
        1 .. K in the order of the labels; 0 = unlabelled or ignored.
    counted : bool Tensor [N]
        Not ignored.
    means : float Tensor [E, K + 1]
        Mean embedding per id; column 0 is of no use.
    """

    def __init__(self, embeddings: Tensor, instance_labels: Tensor, ignore: Tensor | None = None):
        check_same_grid(embeddings, instance_labels=instance_labels, ignore=ignore)
        if instance_labels.is_floating_point():
            raise ValueError(f"instance_labels has dtype {instance_labels.dtype}, expected an integer type")
        labels = instance_labels.flatten()
        self.pixels = at_least_float32(embeddings).flatten(1)
        self.counted = torch.ones_like(labels, dtype=torch.bool) if ignore is None else ~ignore.flatten()
        labels = labels.long() * self.counted
        if len(labels) and (lowest := int(labels.min())) < 0:
            raise ValueError(f"instance_labels has the id {lowest}, expected ids >= 0")
        self.ids = relabel_consecutive(labels)
        self.n = int(self.ids.max()) if len(labels) else 0
        self.means = segment_mean(self.pixels, self.ids, self.n + 1)

    @property
    def unlabelled(self) -> Tensor:
        """bool [N]: counted pixels of no instance."""
        return self.counted & (self.ids == 0)

    def soft_mask_sums(self, width: float = 1.0, margin: float | None = None) -> tuple[Tensor, ...]:
        """`soft_masks.soft_mask_sums` of the masks around the means; the hinge is over unlabelled pixels."""
        return soft_mask_sums(
            self.pixels,
            self.means[:, 1:],
            width,
            self.hard_masks,
            self.counted,
            margin=margin,
            outside=None if margin is None else self.unlabelled,
        )

    def hard_masks(self, where: slice) -> Tensor:
        """0 or 1 of every instance at some pixels: float [K, n]."""
        numbers = torch.arange(1, self.n + 1, device=self.ids.device)
        return (self.ids[where] == numbers[:, None]).to(self.pixels.dtype)


def segment_mean(values: Tensor, ids: Tensor, n_segments: int) -> Tensor:
    """Mean of the values [..., N] per id [N], 0 <= id < n_segments: [..., n_segments]; 0 for an unused id."""
    sums = values.new_zeros(*values.shape[:-1], n_segments).scatter_add(-1, ids.expand_as(values), values)
    sizes = values.new_zeros(n_segments).scatter_add(0, ids, torch.ones_like(ids, dtype=values.dtype))
    return sums / sizes.clamp(min=1)


def check_same_grid(embeddings: Tensor, **maps: Tensor | None) -> None:
    """Raise ValueError unless each map is [H, W] of the embeddings [E, H, W]; None passes."""
    if embeddings.ndim != 3:
        raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}, expected [E, H, W]")
    for name, value in maps.items():
        if value is not None and value.shape != embeddings.shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected {tuple(embeddings.shape[1:])} "
                f"for embeddings {tuple(embeddings.shape)}"
            )


def length(vectors: Tensor) -> Tensor:
    """Euclidean length of the columns of `vectors` [E, N]: [N]. A zero vector gives 1e-19 with gradient 0.

    Twenty times faster on CPU than `torch.linalg.vector_norm` over the first dimension.
    """
    return vectors.square().sum(dim=0).clamp(min=torch.finfo(vectors.dtype).tiny).sqrt()


def at_least_float32(embeddings: Tensor) -> Tensor:
    """Half precision widened to float32; the differences of nearby embeddings need it."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
