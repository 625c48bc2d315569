"""The labelled instances of a batch, as the terms of the instance loss need them."""

from __future__ import annotations

import torch
from torch import Tensor

from panolib.data.label_maps import as_labels, consecutive
from panolib.losses.instance_sums import InstanceSums, instance_sums


class Instances:
    """The labelled instances of a batch; those of all images one after the other.

    Attributes
    ----------
    embeddings : float Tensor [B, E, N]
        All pixels, float32 or wider.
    ids : int64 Tensor [B, N]
        1 .. K_b in the order of the labels of image b; 0 = unlabelled or ignored.
    counted : bool Tensor [B, N] or None
        Not ignored; None if all count.
    n : tuple of int
        K_b; K is their sum.
    sizes : float Tensor [K]
        Number of pixels of each instance.
    image : int64 Tensor [K]
        Which image each instance is of.
    n_of_image : float Tensor [K]
        K_b of that image.
    share : float Tensor [K]
        1 / (B K_b): a sum weighted with it is the mean over images of the means over instances. With
        `confident` pixels, times the share of the instance that is confident.
    n_unlabelled : float Tensor [B]
        Number of counted pixels of no instance.
    """

    def __init__(
        self,
        embeddings: Tensor,
        instance_labels: Tensor,
        ignore: Tensor | None = None,
        confident: Tensor | None = None,
    ):
        check_same_grid(embeddings, instance_labels=instance_labels, ignore=ignore, confident=confident)
        if len(embeddings) == 0:
            raise ValueError("a batch of no image has no mean, expected at least one")
        labels = as_labels(instance_labels, "instance_labels").flatten(1).long()
        self.embeddings = at_least_float32(embeddings).flatten(2)
        self.counted = None if ignore is None else ~ignore.bool().flatten(1)
        if self.counted is not None:
            labels = labels * self.counted
        self.ids = torch.stack([consecutive(image, "instance_labels")[0] for image in labels])
        counts = [torch.bincount(image, minlength=1) for image in self.ids]
        self.n = tuple(len(image) - 1 for image in counts)
        real = {"dtype": self.embeddings.dtype, "device": self.embeddings.device}
        self.sizes = torch.cat([image[1:] for image in counts]).to(**real)
        self.n_unlabelled = torch.stack([image[0] for image in counts]).to(**real)
        if self.counted is not None:
            self.n_unlabelled -= (~self.counted).sum(1)
        n = torch.tensor(self.n, device=labels.device)
        self.image = torch.arange(len(n), device=n.device).repeat_interleave(n)
        self.n_of_image = n.to(**real)[self.image]
        self.share = 1.0 / (len(n) * self.n_of_image)
        if confident is not None:
            pixels = confident.flatten(1).to(**real)
            images = zip(self.ids, pixels, counts)
            sure = [torch.bincount(ids, own, minlength=len(image)) for ids, own, image in images]
            self.share *= torch.cat([image[1:] for image in sure]).to(**real) / self.sizes

    def sums(
        self, width: float | None = None, delta_var: float = 0.0, delta_dist: float | None = None
    ) -> InstanceSums:
        """`instance_sums` of the batch."""
        # a push of margin 0 is 0 everywhere; its slope at distance 0 would be 0 / 0
        margins = {"width": width, "delta_var": delta_var, "delta_dist": delta_dist or None}
        return instance_sums(self.embeddings, self.ids, self.counted, self.sizes, self.n, **margins)

    def means_of(self, field: Tensor) -> Tensor:
        """[C, K]: mean over each instance of a field [C, H, W] that all images share."""
        field = field.to(self.embeddings).flatten(1).expand(len(self.ids), -1, -1)
        no_sums = {"width": None, "delta_var": 0.0, "delta_dist": None}
        return instance_sums(field, self.ids, self.counted, self.sizes, self.n, **no_sums).means


def check_same_grid(output: Tensor, **maps: Tensor | None) -> None:
    """Raise ValueError unless each map is [B, H, W] of a network's output [B, C, H, W]; None passes."""
    if output.ndim != 4:
        raise ValueError(f"the output has shape {tuple(output.shape)}, expected [B, C, H, W]")
    expected = (len(output), *output.shape[-2:])
    for name, value in maps.items():
        if value is not None and value.shape != expected:
            found = f"{name} has shape {tuple(value.shape)}, expected {expected}"
            raise ValueError(f"{found} for an output {tuple(output.shape)}")


def at_least_float32(embeddings: Tensor) -> Tensor:
    """Half precision widened to float32; the differences of nearby embeddings need it."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
