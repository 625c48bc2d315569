"""A segmentation drawn on its image, so that what differs from the other one is seen at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.segmentation import find_boundaries

from panolib.inference.tiles import Window
from panolib.objectness.perturbations import best_iou

ALIKE = 0.8  # IoU from which on two masks look the same
SAME = (60, 140, 255)  # blue, colour of outlines
# yellow, magenta, orange, red: two objects that are one in the other segmentation need not touch
DIFFERENT = np.array([(255, 215, 0), (255, 0, 220), (255, 140, 0), (255, 60, 60)], np.uint8)
LEAST_WIDTH = 480  # pixels; smaller images are enlarged, so that outlines are thin
PART = 256  # pixels a side, at most, of the part of a large image in which two segmentations differ most
LEAST_PART, MARGIN = 128, 32  # pixels: its sides at least, and what is shown around all that differs in it
WHOLE = 384  # pixels a side up to which all that differs is in the part

ALL: Window = (slice(None), slice(None))


def overlay(image: np.ndarray, labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The image, uint8 [H, W, 3], with outlines of its instances [H, W]: blue ones are alike in `other`.

    Those that differ take four warm colours in turn: parts of different colours are two instances.
    """
    return outlined(image, labels, outline_colours(labels, other), ALL)


def outlined(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, window: Window) -> np.ndarray:
    """`overlay` of a window, with the colours of instances 0 .. K, uint8 [K + 1, 3]."""
    picture, labels = enlarged(image, window), enlarged(labels, window)
    outline = find_boundaries(labels, mode="thick") & (labels > 0)
    picture[outline] = colours[labels[outline]]
    return picture


def enlarged(values: np.ndarray, window: Window) -> np.ndarray:
    """A window of an image or label map [H, W, ...], by a whole factor to `LEAST_WIDTH` pixels or more."""
    part = values[window]
    factor = -(-LEAST_WIDTH // part.shape[1])
    return part.repeat(factor, axis=0).repeat(factor, axis=1)


def where_they_differ(labels: Sequence[np.ndarray], colours: Sequence[np.ndarray]) -> Window:
    """The part of two instance maps [H, W] with most pixels of objects that differ; in a small image, all.

    It is as small as what differs in it allows, so that this is seen at its largest.

    `colours`: `outline_colours` of each.
    """
    shape = labels[0].shape
    differs = np.zeros(shape, np.float32)
    for own, its_colours in zip(labels, colours, strict=True):
        alike = (its_colours == SAME).all(1)
        differs += (own > 0) & ~alike[own]
    sides = shape if max(shape) <= WHOLE else [min(PART, length) for length in shape]
    shares = ndimage.uniform_filter(differs, sides, mode="constant")
    best = np.argwhere(shares >= 0.999 * shares.max())  # many windows may show the same
    centre = best[((best - best.mean(0)) ** 2).sum(1).argmin()]
    part = _around(centre, sides, shape)
    found = np.argwhere(differs[part]) + [side.start for side in part]
    if not len(found):
        return part
    first, last = found.min(0), found.max(0)
    side = int(np.clip((last - first).max() + 1 + 2 * MARGIN, LEAST_PART, max(sides)))
    return _around((first + last + 1) // 2, [min(side, length) for length in shape], shape)


def _around(centre: Sequence[int], sides: Sequence[int], shape: Sequence[int]) -> Window:
    """The window with these sides that has its middle at `centre`, or near where it would leave the image."""
    starts = [min(max(at - side // 2, 0), n - side) for at, side, n in zip(centre, sides, shape)]
    return tuple(slice(int(start), int(start) + side) for start, side in zip(starts, sides))


def outline_colours(labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """uint8 [K + 1, 3]: the colours of the outlines of instances 0 .. K; see `overlay`."""
    alike = np.append(False, best_iou(labels, other) >= ALIKE)
    own = DIFFERENT[np.cumsum(~alike) % len(DIFFERENT)]  # the next colour for the next one that differs
    return np.where(alike[:, None], SAME, own).astype(np.uint8)
