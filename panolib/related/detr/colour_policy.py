"""Colour-only augmentation: labels stay valid, since no pixel moves (methods section 10)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from panolib.config import NonNegativePair, Share, spec

CHANGES = ("brightness", "contrast", "saturation", "quality")


@spec
class ColourPolicy:
    """Which share of the images is changed, and how much. The slides give no numbers."""

    probability: Share
    factors: NonNegativePair  # of brightness, contrast and saturation; 1 changes nothing
    quality: tuple[int, int]  # of JPEG compression, 1 .. 100; both ends may be drawn

    def __post_init__(self):
        low, high = self.quality
        if not 1 <= low <= high <= 100:
            raise ValueError(f"quality is {self.quality}, expected 1 <= low <= high <= 100")


def change_colours(image: Tensor, policy: ColourPolicy) -> Tensor:
    """Change one of `CHANGES` of a uint8 image [3, H, W], drawn at random with its strength; or nothing.

    Draws from torch's global generator, as many numbers whatever is chosen. The same tensor where nothing is
    changed.
    """
    applied, choice, strength = torch.rand(3).tolist()
    if applied >= policy.probability:
        return image
    change = CHANGES[min(int(choice * len(CHANGES)), len(CHANGES) - 1)]
    if change == "quality":
        low, high = policy.quality
        return adjust(image, change, low + min(int(strength * (high - low + 1)), high - low))
    low, high = policy.factors
    return adjust(image, change, low + strength * (high - low))


def adjust(image: Tensor, change: str, strength: float) -> Tensor:
    """A uint8 image [3, H, W] with its brightness, contrast or saturation times a factor.

    With the `change` "quality": after JPEG compression with a quality of 1 .. 100.
    """
    if change != "quality":
        from torchvision.transforms.v2 import functional  # slow to import, and only for those who train

        return getattr(functional, f"adjust_{change}")(image, strength)
    pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)[..., ::-1])  # OpenCV has blue first
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, strength])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(decoded))
