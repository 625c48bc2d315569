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
from panolib.models.geometry import Placement, first_cell, placement_of, upsample_to
from panolib.models.unet import EmbeddingUNet

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
            view = _reflected(resized(image, scale), exchanged, turned)
            size = (width, height) if exchanged else (height, width)
            logits = upsample_to(self.network(view).float(), size, placement, image_size=view.shape[-2:])
            mean = mean + _reflected_back(logits, exchanged, turned).softmax(1) / self.views.number
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()


class EmbeddedInViews(nn.Module):
    """A semi-convolutional network that says the mean of its embeddings over the reflections of an image.

    It stands wherever the network does: an image float [B, 3, H, W] gives embeddings float32 [B, E, h, w] on
    the same grid; scales are left out. The first two channels hold x and y (`models.coordinates`) and are
    reflected as the pixels are. ValueError for a network without them: its embeddings of a mirrored image may
    lie anywhere.
    """

    def __init__(self, network: EmbeddingUNet, views: Views) -> None:
        super().__init__()
        if network.coordinate_length is None:
            raise ValueError("expected a network that adds coordinates to its embeddings")
        self.network, self.views, self.input_width = network, views, network.input_width

    def forward(self, image: Tensor) -> Tensor:
        network, size = self.network, image.shape[-2:]
        stride, padding = network.output_stride, network.encoder.padding
        placement = Placement(network.alignment, stride, padding)
        reflections = REFLECTIONS[self.views.mirrored]
        mean = torch.zeros((), device=image.device)
        for exchanged, turned in reflections:
            view = _reflected(image, exchanged, turned)
            found = _reflected_back(upsample_to(network(view), view.shape[-2:], placement), exchanged, turned)
            places = found[:, [1, 0] if exchanged else [0, 1]]
            signs = [-1.0 if axis in turned else 1.0 for axis in (-1, -2)]
            places = places * places.new_tensor(signs)[:, None, None]
            mean = mean + torch.cat([places, found[:, 2:]], 1) / len(reflections)
        if network.alignment != "receptive_field":  # a cell covers its pixels
            return F.interpolate(mean, size=[-(-n // stride) for n in size], mode="area")
        top, left = (first_cell(n, stride, padding) for n in size)
        return mean[..., top::stride, left::stride]


def seen_in(network: nn.Module, views: Views | None) -> nn.Module:
    """The semantic network itself, or seeing several views."""
    return network if views is None or views.number == 1 else SeenInViews(network, views)


def embedded_in(network: nn.Module, views: Views | None) -> nn.Module:
    """The embedding network itself, or seeing the reflections of an image where it has coordinates."""
    plain = views is None or views.mirrored == "none" or network.coordinate_length is None
    return network if plain else EmbeddedInViews(network, views)


def _reflected(image: Tensor, exchanged: bool, turned: list[int]) -> Tensor:
    """A reflection of images [B, C, H, W]."""
    image = image.flip(turned)
    return image.mT.contiguous() if exchanged else image


def _reflected_back(maps: Tensor, exchanged: bool, turned: list[int]) -> Tensor:
    """Maps [B, C, h, w] of a reflection as those of the image."""
    return (maps.mT if exchanged else maps).flip(turned)


def resized(image: Tensor, scale: float) -> Tensor:
    """Images float [B, C, H, W] with height and width times `scale`, at least a pixel; bilinear, smoothed."""
    if scale == 1:
        return image
    size = [max(1, round(n * scale)) for n in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
