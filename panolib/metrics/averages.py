"""What all scores share: ratios and means that leave out classes with nothing to score."""

from __future__ import annotations

import numpy as np


def ratio(numerator, denominator) -> np.ndarray:
    """Element-wise numerator / denominator as float64; NaN where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def mean_of_defined(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
