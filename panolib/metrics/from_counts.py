"""Scores of counts that are summed over images, for many sums at once: what intervals over images resample.

Counts are those of `semantic.pixel_counts`, `ThreatScore.counts` and `PanopticStats.counts`:
[..., n_classes, n_counts] with TP, FP and FN first, then in units of `IOU_UNIT`, or of another `unit`, the
summed IoU of matches and that of all overlaps. A class with nothing to score is NaN.
"""

from __future__ import annotations

import numpy as np

from panolib.metrics.averages import ratio

IOU_UNIT = 1e-6  # a sum over 500 images is off by less than 0.0003 matched segments


def overlap_ratio(counts: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of every class [..., n_classes]: IoU of pixels, threat score of objects."""
    return ratio(counts[..., 0], counts[..., :3].sum(-1))


def pooled_ratio(counts: np.ndarray) -> np.ndarray:
    """The same over the objects of all classes together [...]."""
    return overlap_ratio(counts.sum(-2))


def false_share(counts: np.ndarray) -> np.ndarray:
    """FP / (TP + FP) over the objects of all classes together [...]: how many of those found are false."""
    total = counts.sum(-2)
    return ratio(total[..., 1], total[..., :2].sum(-1))


def pq(counts: np.ndarray, unit: float = IOU_UNIT) -> np.ndarray:
    """Panoptic quality of every class."""
    return ratio(unit * counts[..., 3], _weight(counts))


def rq(counts: np.ndarray) -> np.ndarray:
    """Recognition quality of every class."""
    return ratio(counts[..., 0], _weight(counts))


def sq_matched(counts: np.ndarray, unit: float = IOU_UNIT) -> np.ndarray:
    """Segmentation quality of every class; NaN where nothing matches."""
    return ratio(unit * counts[..., 3], counts[..., 0])


def sq(counts: np.ndarray, unit: float = IOU_UNIT) -> np.ndarray:
    """Segmentation quality of every class; 0 for one with segments and without a match."""
    return np.where((_weight(counts) > 0) & (counts[..., 0] == 0), 0.0, sq_matched(counts, unit))


def pq_plus(counts: np.ndarray, is_thing: np.ndarray, unit: float = IOU_UNIT) -> np.ndarray:
    """PQ+ of every class: of stuff the mean IoU of true segments. `is_thing`: bool [n_classes]."""
    stuff = ratio(unit * counts[..., 4], counts[..., 0] + counts[..., 2])
    return np.where(is_thing, pq(counts, unit), stuff)


def class_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the values [..., n_classes] that are not NaN; NaN, without a warning, if there is none."""
    shown = ~np.isnan(values)
    return ratio(np.where(shown, values, 0.0).sum(-1), shown.sum(-1))


def _weight(counts: np.ndarray) -> np.ndarray:
    return counts[..., 0] + 0.5 * counts[..., 1] + 0.5 * counts[..., 2]
