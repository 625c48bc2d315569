"""Discriminators of output-space adversarial adaptation: fully convolutional, and its light version."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("fcd", "light")
STRIDE = 32  # five convolutions of stride 2


class Discriminator(nn.Module):
    """Says for every pixel of a map of class probabilities which domain it comes from, as one logit.

    Five 4x4 convolutions of stride 2 with LeakyReLU 0.2 between them, then bilinear upsampling. In the light
    version every convolution is a depthwise one and a pointwise one, without bias. The first has `width`
    channels, 64 in the sources, which each of the next three doubles.

    References
    ----------
    Tsai et al. 2018, arXiv:1802.10349.
    """

    def __init__(self, n_classes: int, *, kind: str = "fcd", width: int = 64):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"discriminator is {kind!r}, expected one of {KINDS}")
        channels = [n_classes, width, 2 * width, 4 * width, 8 * width, 1]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            if kind == "fcd":
                layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            else:
                layers.append(nn.Conv2d(before, before, 4, stride=2, padding=1, groups=before, bias=False))
                layers.append(nn.Conv2d(before, after, 1, bias=False))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers[-1] = nn.Upsample(scale_factor=STRIDE, mode="bilinear", align_corners=False)
        self.layers = nn.Sequential(*layers)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Logits [B, 1, H, W] of `probabilities` [B, n_classes, H, W].

        Sides that are no multiples of 32 are padded with zeros, as the convolutions do, and cut off again.
        """
        height, width = probabilities.shape[-2:]
        missing = (0, -width % STRIDE, 0, -height % STRIDE)
        if any(missing):
            probabilities = F.pad(probabilities, missing)
        return self.layers(probabilities)[..., :height, :width]
