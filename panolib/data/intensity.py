"""Images of any bit depth and contrast as 8-bit RGB: what becomes black and what white."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

from panolib.config import NonNegativePair, spec
from panolib.data.errors import DataError
from panolib.data.images import as_rgb, contiguous, look_up, row_strips, scale_intensity

Limits = tuple[float, float]


class TooDeep(DataError):
    """An image of 16 bits where no percentiles say what of it becomes 8."""


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


STRETCHED = Intensity()
_DARK = 0.1  # of the light of the brightest channel


def percentiles_of(images: Iterable[np.ndarray], percentiles: Limits) -> Limits:
    """Percentiles of the values of all uint8 or uint16 images together, as of `numpy.percentile`.

    In little memory: values are counted, not kept.
    """
    counts = np.zeros(1 << 16, np.int64)
    for image in images:
        counts += np.bincount(image.ravel(), minlength=len(counts))
    n_until = counts.cumsum()  # values up to each intensity
    place = np.array(percentiles) / 100 * (n_until[-1] - 1)
    below, above = (np.searchsorted(n_until, at, side="right") for at in (np.floor(place), np.ceil(place)))
    gap, part = above - below, place % 1
    low, high = np.where(part < 0.5, below + gap * part, above - gap * (1 - part))  # as NumPy rounds
    return float(low), float(high)


def check_depth(pixels: np.ndarray, where: object) -> np.ndarray:
    """The pixels of an image. Raises DataError unless they are of 8 or 16 bits."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{where}: image of {pixels.dtype}, expected uint8 or uint16; save it as 16 bit "
            "(ImageJ: Image > Type > 16-bit)"
        )
    return pixels


def grey_of_one_colour(pixels: np.ndarray) -> np.ndarray:
    """The channel [H, W] that holds nearly all light of an image [H, W, 3]; any other image as it is.

    Fluorescence is often stored as bright green on black, which no network has learned from. The light of a
    channel is its 99.5th percentile above its darkest value; the two others have less than a tenth of it.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        return pixels
    step = 1 + math.isqrt(pixels.shape[0] * pixels.shape[1]) // 1024  # a million pixels are enough
    darkest, bright = np.percentile(pixels[::step, ::step], (0, 99.5), axis=(0, 1))
    *others, most = np.sort(bright - darkest)
    if max(others) >= _DARK * most:
        return pixels
    return contiguous(pixels[..., np.argmax(bright - darkest)])


def as_colour(pixels: np.ndarray, where: object) -> np.ndarray:
    """uint8 or uint16 [H, W, 3] of an image [H, W] or [H, W, 1, 3 or 4]; alpha is dropped.

    An image of one colour becomes grey (`grey_of_one_colour`). The channels of a grey one share their memory.
    Raises DataError that begins with `where` for other shapes and types, and for an image without pixels.
    """
    pixels = check_depth(np.asarray(pixels), where)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise DataError(
            f"{where}: image of shape {list(pixels.shape)}, expected [H, W], or [H, W, 3 or 4]"
        )
    image = pixels[..., 0] if pixels.shape[2] == 1 else grey_of_one_colour(pixels[..., :3])
    return np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image


def to_eight_bits(image: np.ndarray) -> np.ndarray:
    """uint8 of uint8 or uint16; the whole range of 16 bits becomes that of 8."""
    if image.dtype == np.uint8:
        return image
    return look_up(np.rint(np.arange(1 << 16) / 257).astype(np.uint8), image)


def to_rgb(
    pixels: np.ndarray, where: object, intensity: Intensity | None, limits: Limits | None = None
) -> np.ndarray:
    """uint8 [H, W, 3] of an image [H, W] or [H, W, 3] of 8 or 16 bits.

    None for `intensity` leaves 8-bit images as they are, and takes no others. `limits` are intensities of a
    whole set that become 0 and 255; by default those of this image. Raises DataError, with the file `where`,
    for another type, and TooDeep for 16 bits without `intensity`.
    """
    check_depth(pixels, where)
    if intensity is None:
        if pixels.dtype != np.uint8:
            raise TooDeep(f"{where}: image of 16 bits, expected 8, or percentiles in the setting intensity")
        return as_rgb(pixels)
    if limits is None:
        limits = percentiles_of((pixels[rows] for rows in row_strips(pixels.shape)), intensity.percentiles)
    return scale_intensity(pixels, *limits)
