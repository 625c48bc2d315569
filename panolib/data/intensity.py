"""Images of any bit depth and contrast as 8-bit RGB: what becomes black and what white."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from panolib.config import NonNegativePair, spec
from panolib.data.errors import DataError
from panolib.data.images import as_rgb, scale_intensity

Limits = tuple[float, float]


@spec
class Intensity:
    """The percentiles of intensity that become 0 and 255; values beyond are clipped.

    `over` "image": those of each image, for images whose exposure differs. "set": those of all training
    images together, so that a dark image stays dark; these two are then part of what a network expects.
    """

    percentiles: NonNegativePair = (1.0, 99.8)
    over: Literal["image", "set"] = "image"

    def __post_init__(self):
        low, high = self.percentiles
        if not low < high <= 100:
            raise DataError(f"percentiles: expected two of 0 .. 100, rising, found {low}, {high}")


def percentiles_of(images: Iterable[np.ndarray], percentiles: Limits) -> Limits:
    """Percentiles of the values of all images together, as of `numpy.percentile`, in little memory.

    Parameters
    ----------
    images : iterable of uint8 or uint16 arrays
    percentiles : (low, high)
    """
    counts = np.zeros(1 << 16, np.int64)
    for image in images:
        counts += np.bincount(image.ravel(), minlength=len(counts))
    n_until = counts.cumsum()  # values up to each intensity
    place = np.array(percentiles) / 100 * (n_until[-1] - 1)
    below, above = (np.searchsorted(n_until, at, side="right") for at in (np.floor(place), np.ceil(place)))
    low, high = below + (above - below) * (place % 1)
    return float(low), float(high)


def check_depth(pixels: np.ndarray, where: object) -> np.ndarray:
    """The pixels of an image. Raises DataError unless they are of 8 or 16 bits."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{where}: image of {pixels.dtype}, expected uint8 or uint16")
    return pixels


def to_rgb(
    pixels: np.ndarray, where: object, intensity: Intensity | None, limits: Limits | None = None
) -> np.ndarray:
    """uint8 [H, W, 3] of an image [H, W] or [H, W, 3] of 8 or 16 bits.

    Parameters
    ----------
    where : object
        File, for messages.
    intensity : Intensity or None
        None leaves 8-bit images as they are, and takes no others.
    limits : (floor, ceiling), optional
        Intensities of a whole set that become 0 and 255; by default those of this image.

    Raises
    ------
    DataError
        For another type, and 16 bits without `intensity`.
    """
    check_depth(pixels, where)
    if intensity is None:
        if pixels.dtype != np.uint8:
            raise DataError(f"{where}: image of 16 bits, expected 8, or percentiles in the setting intensity")
        return as_rgb(pixels)
    if limits is None:
        limits = tuple(np.percentile(pixels, intensity.percentiles))
    return scale_intensity(pixels, *limits)
