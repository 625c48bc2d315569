"""Instances of a mask without any embedding: the watershed of its distance transform."""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor

from panolib.clustering.labels import relabel_consecutive


def watershed(mask: Tensor, *, min_distance: int = 5, sigma: float = 1.0) -> Tensor:
    """Cut a mask into regions, one around every peak of its (smoothed) distance to the background.

    The control that knows nothing but shape: round objects that touch are told apart, connected components
    would join them. A region without a peak of its own is one instance.

    Takes bool [H, W]; `min_distance` of two peaks, at least 1 pixel; `sigma` of the Gaussian that smooths the
    distances, pixels, 0 for none; else a ValueError. Returns int64 [H, W], 1 .. K inside the mask.
    scikit-image, `segmentation.watershed`; Vincent and Soille 1991, Watersheds in digital spaces.
    """
    from skimage.feature import peak_local_max  # half a second to import: only for those who use it
    from skimage.segmentation import watershed as flood

    if min_distance < 1 or not sigma >= 0:
        raise ValueError(
            f"min_distance is {min_distance}, sigma is {sigma}; expected at least 1 pixel, and at least 0"
        )
    inside = mask.cpu().numpy().astype(bool)
    regions, _ = scipy.ndimage.label(inside, np.ones((3, 3)))
    distance = scipy.ndimage.distance_transform_edt(inside)
    if sigma > 0:
        distance = scipy.ndimage.gaussian_filter(distance, sigma)
    peaks = peak_local_max(distance, min_distance=min_distance, labels=regions, exclude_border=False)
    markers = np.zeros(inside.shape, np.int64)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = flood(-distance, markers, mask=inside, connectivity=2)
    labels = np.where(inside & (labels == 0), len(peaks) + regions, labels)
    return relabel_consecutive(torch.as_tensor(labels, dtype=torch.int64, device=mask.device))
