"""Which images to ask about: how far two segmentations differ, and what an answer would change."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from skimage.metrics import contingency_table

STRATEGIES = ("disagreement", "expected_change", "random")
SAME_OBJECT = 0.5  # IoU above which two masks are one object; above it no mask has two partners


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """How alike two segmentations are: mean over the objects of both of the best IoU with one of the other.

    Parameters
    ----------
    first, second : integer array [H, W]
        0 or ids 1 .. K.

    Returns
    -------
    float
        In [0, 1]; 1 where neither has an object. The same in both directions.

    Raises
    ------
    ValueError
        For different sizes.
    """
    best = np.concatenate([best_overlaps(first, second), best_overlaps(second, first)])
    return float(best.mean()) if len(best) else 1.0


def best_overlaps(labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float64 [K]: IoU of every object 1 .. K with the one of the other segmentation that it fits best."""
    iou, _ = _overlaps(labels, other)
    return iou[1:, 1:].max(1, initial=0.0)


def changed_share(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the pixels, in [0, 1], that are of another object, or of none, in the other segmentation."""
    iou, shared = _overlaps(first, second)
    same = shared[1:, 1:][iou[1:, 1:] > SAME_OBJECT].sum() + shared[0, 0]
    return float(1 - same / first.size) if first.size else 0.0


def expected_change(
    current: np.ndarray, other: np.ndarray, current_stability: float, other_stability: float
) -> float:
    """Share of the pixels whose pseudo-label an answer is expected to change.

    Training goes on with `current` unless the other one is chosen; the chance of that is taken to be its
    share of both stabilities, one half where both are 0.

    Parameters
    ----------
    current, other : integer array [H, W]
        0 or ids 1 .. K.
    current_stability, other_stability : float
        Mean stability of their instances (`clustering.labels.stability_filter`), in [0, 1].
    """
    both = current_stability + other_stability
    chance = other_stability / both if both > 0 else 0.5
    return chance * changed_share(current, other)


def ranked(strategy: str, scores: Mapping[str, np.ndarray], n_images: int, *, seed: int) -> np.ndarray:
    """int64 [n_images]: numbers of the images in the order in which they are asked about.

    Parameters
    ----------
    strategy : str
        A name of `scores` (float [n_images], highest first, ties in the order of the images), or "random",
        the control, drawn from `seed`.

    Raises
    ------
    ValueError
        For a strategy without scores.
    """
    if strategy == "random":
        return np.random.default_rng(seed).permutation(n_images)
    if strategy not in scores:
        raise ValueError(f"strategy is {strategy!r}; expected random or one of {', '.join(scores)}")
    return np.argsort(-np.asarray(scores[strategy]), kind="stable")


def _overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(IoU, shared pixels) of all pairs, [K + 1, L + 1]; row and column 0 stand for no object."""
    if first.shape != second.shape:
        raise ValueError(f"segmentations are {first.shape} and {second.shape}; expected one size")
    if first.size == 0:
        return np.zeros((1, 1)), np.zeros((1, 1))
    shared = contingency_table(first, second, sparse_type="array").toarray()
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    return shared / np.maximum(union, 1), shared
