"""Several views of one image at test time: mirrored and resized, what a network says of each, averaged.

(Views of training, with their labels, are in `data.views`.)
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from panolib.config import Different, Positive, spec
from panolib.models.geometry import placement_of, upsample_to

REFLECTIONS = {  # name -> (whether x and y are exchanged, axes that are turned round before) of every view
    "none": [(False, [])],
    "left_right": [(False, []), (False, [-1])],
    "all": list(itertools.product([False, True], [[], [-1], [-2], [-2, -1]])),  # where nothing is up
}


@spec
class Views:
    """Which views of an image a network sees: every reflection at every scale."""

    scales: Annotated[tuple[Positive, ...], Field(min_length=1), Different] = (1.0,)  # of height and width
    mirrored: Literal[tuple(REFLECTIONS)] = "none"

    @property
    def number(self) -> int:
        return len(self.scales) * len(REFLECTIONS[self.mirrored])


SETS = {  # name -> what a profile, or a user, asks for by it
    "one": Views(),
    "left_right": Views(mirrored="left_right"),
    "all": Views(mirrored="all"),
    "scales": Views(scales=(0.75, 1.0, 1.25), mirrored="left_right"),
}


class SeenInViews(nn.Module):
    """A semantic network that says the mean of its class probabilities over several views of an image.

    It stands wherever the network does: an image float [B, 3, H, W] gives logits float32 [B, C, H, W], whose
    softmax is that mean. The logits of a view become probabilities at the pixels of the image.

    References
    ----------
    Chen et al. 2017, arXiv:1706.05587 (DeepLabv3), section 4.1: scales and mirrored images at inference.
    """

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        mean, placement = torch.zeros((), device=image.device), placement_of(self.network)
        for scale, (exchanged, turned) in itertools.product(
            self.views.scales, REFLECTIONS[self.views.mirrored]
        ):
            view = resized(image, scale).flip(turned)
            size = (width, height) if exchanged else (height, width)
            view = view.mT.contiguous() if exchanged else view
            logits = upsample_to(self.network(view).float(), size, placement, image_size=view.shape[-2:])
            logits = (logits.mT if exchanged else logits).flip(turned)
            mean = mean + logits.softmax(1) / self.views.number
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()


def seen_in(network: nn.Module, views: Views | None) -> nn.Module:
    """The network itself, or seeing several views."""
    return network if views is None or views.number == 1 else SeenInViews(network, views)


def resized(image: Tensor, scale: float) -> Tensor:
    """Images float [B, C, H, W] with height and width times `scale`, at least a pixel; bilinear, smoothed."""
    if scale == 1:
        return image
    size = [max(1, round(n * scale)) for n in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
