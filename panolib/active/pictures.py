"""A segmentation drawn on its image, so that what differs from the other one is seen at once."""

from __future__ import annotations

import numpy as np
from skimage.segmentation import find_boundaries

from panolib.objectness.perturbations import best_iou

ALIKE = 0.8  # IoU from which on two masks look the same
SAME = (60, 140, 255)  # blue, colour of outlines
# yellow, magenta, orange, red: two objects that are one in the other segmentation need not touch
DIFFERENT = np.array([(255, 215, 0), (255, 0, 220), (255, 140, 0), (255, 60, 60)], np.uint8)
LEAST_WIDTH = 480  # pixels; smaller images are enlarged, so that outlines are thin


def overlay(image: np.ndarray, labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The image, uint8 [H, W, 3], with outlines of its instances [H, W]: blue ones are alike in `other`.

    Each instance that differs has a warm colour of its own, so that two parts of one are seen to be one. The
    picture is enlarged by a whole factor to `LEAST_WIDTH` pixels or more.
    """
    colours, factor = outline_colours(labels, other), -(-LEAST_WIDTH // image.shape[1])
    picture, labels = (values.repeat(factor, axis=0).repeat(factor, axis=1) for values in (image, labels))
    outline = find_boundaries(labels, mode="thick") & (labels > 0)
    picture[outline] = colours[labels[outline]]
    return picture


def outline_colours(labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """uint8 [K + 1, 3]: the colours of the outlines of instances 0 .. K; see `overlay`."""
    alike = np.append(False, best_iou(labels, other) >= ALIKE)
    own = DIFFERENT[np.arange(len(alike)) % len(DIFFERENT)]
    return np.where(alike[:, None], SAME, own).astype(np.uint8)
