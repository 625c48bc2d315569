"""What all scores share: ratios and means that leave out classes with nothing to score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def as_class_ids(class_ids: Sequence[int], n_classes: int) -> np.ndarray:
    """int64 [n] train ids to score; raises ValueError for one that is no class."""
    ids = np.asarray(class_ids)
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= n_classes):
        raise ValueError(f"class_ids are {ids.tolist()}, expected train ids 0 .. {n_classes - 1}")
    return ids.astype(np.int64)


def ratio(numerator, denominator) -> np.ndarray:
    """Element-wise numerator / denominator as float64; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def mean_of_defined(values) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, if there is none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
