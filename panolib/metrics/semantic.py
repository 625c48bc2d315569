"""Semantic scores: a confusion matrix that adds up over images, IoU per class and mIoU.

Protocol of the Cityscapes pixel-level tool: predicting void (or a class that is not evaluated) is a miss of
the true class; a pixel whose truth is void (or not evaluated) never makes a false positive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from panolib.data.label_maps import as_labels
from panolib.labels import VOID, LabelSet

MAX_EXACT = 2**24  # pixels at a time: OpenCV counts in float32


def confusion_matrix(truth, prediction, n_classes: int) -> np.ndarray:
    """Count pixels by true and predicted class. Matrices of several images add up.

    Parameters
    ----------
    truth, prediction : integer array or Tensor [...]
        Train ids 0 .. n_classes - 1, or ``VOID``. Any shape, the same for both. Tensors are counted on the
        device of `prediction`.
    n_classes : int
        Number of classes, at most 255.

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
    """Intersection over union of each evaluated class.

    Parameters
    ----------
    confusion : int64 array [n_classes + 1, n_classes + 1]
        From `confusion_matrix`, summed over the images.
    class_ids : sequence of int, length n
        The evaluated classes. False positives of a class are counted on pixels whose truth is one of these,
        so the IoU of a class can differ between subsets.

    Returns
    -------
    float64 array [n]
        Fractions; NaN for a class without any true or falsely predicted pixel.

    Raises
    ------
    ValueError
        For an id that is no class.

    References
    ----------
    cityscapesScripts, evalPixelLevelSemanticLabeling.
    """
    ids = as_class_ids(class_ids, len(confusion) - 1)
    hit = confusion[ids, ids].astype(np.float64)
    missed = confusion[ids].sum(1) - hit
    false = confusion[np.ix_(ids, ids)].sum(0) - hit
    return ratio(hit, hit + missed + false)


def mean_iou(confusion: np.ndarray, class_ids: Sequence[int]) -> float:
    """Unweighted mean IoU over the evaluated classes that occur. NaN if none does.

    Parameters and references as in `iou_per_class`.
    """
    return mean_of_defined(iou_per_class(confusion, class_ids))


def iou_rows(
    confusion: np.ndarray, label_set: LabelSet, *, subset: str, method: str, seed: int, setting: str = ""
) -> list[dict]:
    """Table rows of one confusion matrix: IoU of every class of a named subset, and ``mIoU_<subset>``.

    Returns
    -------
    list of dict
        Keys method, setting, class_or_metric, value (percent), unit, seed.
    """
    class_ids = label_set.subset_ids(subset)
    scores = dict(zip([label_set.classes[i] for i in class_ids], iou_per_class(confusion, class_ids)))
    scores[f"mIoU_{subset}"] = mean_iou(confusion, class_ids)
    return score_rows(scores, method=method, setting=setting, seed=seed)


def score_rows(scores: Mapping[str, float], *, method: str, setting: str, seed: int) -> list[dict]:
    """Rows with the columns of the published tables plus `seed`, one per named score.

    Parameters
    ----------
    scores : mapping of str to float or int
        Fractions become percent. Integers are counts and stay as they are.
    method, setting : str
    seed : int

    Returns
    -------
    list of dict
        Keys method, setting, class_or_metric, value, unit ("%" or "count"), seed.
    """
    rows = []
    for name, score in scores.items():
        is_count = isinstance(score, (int, np.integer))
        value, unit = (int(score), "count") if is_count else (100.0 * float(score), "%")
        rows.append(
            {
                "method": method,
                "setting": setting,
                "class_or_metric": name,
                "value": value,
                "unit": unit,
                "seed": seed,
            }
        )
    return rows


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
