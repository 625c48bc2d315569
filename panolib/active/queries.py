"""Which images to ask about: how far two segmentations differ, and what an answer would change."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from panolib.objectness.perturbations import best_iou, overlaps

STRATEGIES = ("disagreement", "expected_change", "random")
SAME_OBJECT = 0.5  # IoU above which two masks are one object; above it no mask has two partners


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """How alike two segmentations are: mean over the objects of both of the best IoU with one of the other.

    In [0, 1], the same in both directions; 1 where neither has an object. `first`, `second`: integer arrays
    [H, W] of 0 or ids 1 .. K.
    """
    best = np.concatenate([best_iou(first, second), best_iou(second, first)])
    return float(best.mean()) if len(best) else 1.0


def changed_share(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the pixels, in [0, 1], that are of another object, or of none, in the other segmentation."""
    iou, shared = overlaps(first, second)
    same = shared[1:, 1:][iou[1:, 1:] > SAME_OBJECT].sum() + shared[0, 0]
    return float(1 - same / first.size) if first.size else 0.0


def expected_change(
    current: np.ndarray, other: np.ndarray, current_stability: float, other_stability: float
) -> float:
    """Share of the pixels whose pseudo-label an answer is expected to change.

    Training goes on with `current` unless the other one is chosen; the chance of that is taken to be its
    share of both stabilities, one half where both are 0. A stability is the mean one of the instances
    (`clustering.labels.stability_filter`), in [0, 1].
    """
    both = current_stability + other_stability
    chance = other_stability / both if both > 0 else 0.5
    return chance * changed_share(current, other)


def ranked(strategy: str, scores: Mapping[str, np.ndarray], n_images: int, *, seed: int) -> np.ndarray:
    """int64 [n_images]: numbers of the images in the order in which they are asked about.

    `strategy` is a name of `scores` (float [n_images], highest first, ties in the order of the images), or
    "random", the control, drawn from `seed`.
    """
    if strategy == "random":
        return np.random.default_rng(seed).permutation(n_images)
    return np.argsort(-np.asarray(scores[strategy]), kind="stable")
