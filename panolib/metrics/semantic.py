"""Semantic scores: a confusion matrix that adds up over images, and IoU per class.

Protocol of the Cityscapes pixel-level tool: predicting void (or a class that is not evaluated) is a miss of
the true class; a pixel whose truth is void (or not evaluated) never makes a false positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from panolib.data.label_maps import as_labels
from panolib.labels import VOID
from panolib.metrics.averages import ratio

MAX_EXACT = 2**24  # pixels at a time: OpenCV counts in float32


def confusion_matrix(truth, prediction, n_classes: int) -> np.ndarray:
    """Count pixels by true and predicted class. Matrices of several images add up.

    Parameters
    ----------
    truth, prediction : integer array or Tensor [...]
        Train ids 0 .. n_classes - 1, or ``VOID``. Any shape, the same for both. Tensors are counted on the
        device of `prediction`.

    Returns
    -------
    int64 array [n_classes + 1, n_classes + 1]
        Rows are the truth, columns the prediction, in pixels. The last row and column are void.

    Raises
    ------
    ValueError
        If the shapes differ, or a value is neither a class nor void.

    References
    ----------
    cityscapesScripts, evalPixelLevelSemanticLabeling.
    """
    if not 1 <= n_classes <= VOID:
        raise ValueError(f"n_classes is {n_classes}, expected 1 .. {VOID}")
    prediction = as_labels(prediction, "prediction")
    truth = as_labels(truth, "truth", device=prediction.device)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {tuple(truth.shape)} but prediction is {tuple(prediction.shape)}")
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels.dtype not in (torch.uint8, torch.bool) and labels.numel():
            low, high = torch.stack(torch.aminmax(labels)).tolist()
            if low < 0 or high > VOID:
                raise ValueError(f"{name} holds {low} .. {high}, expected 0 .. {VOID}")

    counts = _count_pairs(truth.flatten().to(torch.uint8), prediction.flatten().to(torch.uint8))
    known = [*range(n_classes), VOID]
    for name, totals in (("truth", counts.sum(1)), ("prediction", counts.sum(0))):
        unknown = np.setdiff1d(np.flatnonzero(totals), known)
        if unknown.size:
            raise ValueError(
                f"{name} holds class {unknown.tolist()}, expected 0 .. {n_classes - 1} or {VOID} (void)"
            )
    return counts[np.ix_(known, known)]


def _count_pairs(a: Tensor, b: Tensor) -> np.ndarray:
    """int64 [256, 256]: how often each pair of values occurs in two uint8 tensors [N]."""
    if a.is_cuda:
        pairs = a.to(torch.int32) * 256 + b.to(torch.int32)
        return torch.bincount(pairs, minlength=256 * 256).reshape(256, 256).cpu().numpy()
    counts = np.zeros((256, 256), np.int64)
    for some in zip(a.split(MAX_EXACT), b.split(MAX_EXACT)):
        images = [part.numpy()[None] for part in some]
        counts += cv2.calcHist(images, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    return counts


def iou_per_class(confusion: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
    """Intersection over union of each evaluated class, float64 [n]; parameters as of `pixel_counts`.

    NaN for a class without any true or falsely predicted pixel.
    """
    counts = pixel_counts(confusion, class_ids)
    return ratio(counts[:, 0], counts.sum(1))


def pixel_counts(confusion: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
    """Pixels behind the IoU of each evaluated class; those of several images add up.

    Parameters
    ----------
    confusion : int64 array [n_classes + 1, n_classes + 1]
        From `confusion_matrix`, also summed over images.
    class_ids : sequence of int, length n
        The evaluated classes. False positives of a class are counted on pixels whose truth is one of these,
        so the IoU of a class can differ between subsets.

    Returns
    -------
    int64 array [n, 3]
        Right, false and missed pixels (TP, FP, FN).
    """
    ids = list(class_ids)
    hit = confusion[ids, ids]
    return np.stack([hit, confusion[np.ix_(ids, ids)].sum(0) - hit, confusion[ids].sum(1) - hit], axis=1)
