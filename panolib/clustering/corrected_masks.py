"""Class masks between prediction and truth: what better masks would be worth to the instances inside them."""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used

from panolib.labels import VOID


def corrected(semantic: np.ndarray, truth: np.ndarray, share: float, *, seed: int = 0) -> np.ndarray:
    """A predicted class map with about a share of its wrong pixels set right, region by region.

    A wrong region is an 8-connected group of pixels of one true class that are predicted as any other class.
    Regions are corrected whole, in a random order that does not look at their size, up to the region after
    which the number of corrected pixels is nearest to `share` of all wrong ones. A larger share corrects the
    same regions and more. Void pixels keep the prediction.

    `semantic` and `truth` are integer [H, W], train ids, 255 void. Share 0 gives the prediction, 1 the truth
    wherever it is not void. `seed` decides the order; give every image another one. Returns a new array of
    the dtype of `semantic`. Raises ValueError for different sizes, or a share outside [0, 1].
    """
    semantic, truth = np.asarray(semantic), np.asarray(truth)
    if semantic.shape != truth.shape:
        raise ValueError(f"semantic is {semantic.shape} and truth {truth.shape}; expected one grid")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; expected 0 to 1")
    wrong = (semantic != truth) & (truth != VOID)
    regions, n_regions = np.zeros(truth.shape, np.int64), 0
    for class_id in np.unique(truth[wrong]):
        found, n_found = scipy.ndimage.label(wrong & (truth == class_id), np.ones((3, 3)))
        regions[found > 0] = found[found > 0] + n_regions
        n_regions += n_found

    order = np.random.default_rng(seed).permutation(n_regions)
    areas = np.bincount(regions[wrong], minlength=n_regions + 1)[1:]
    done = np.concatenate([[0], areas[order].cumsum()])  # wrong pixels corrected after each region
    n_corrected = np.abs(done - share * done[-1]).argmin()
    chosen = np.isin(regions, order[:n_corrected] + 1)
    return np.where(chosen, truth, semantic).astype(semantic.dtype)
