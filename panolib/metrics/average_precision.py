"""The official Cityscapes AP: area under the precision-recall curve, which needs a confidence per instance.

The thesis's "AP" is another quantity: `threat_score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from panolib.labels import LabelSet
from panolib.metrics.averages import as_class_ids, mean_of_defined
from panolib.metrics.segments import as_id_map, check_categories, compare_segments

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # written as in cityscapesScripts: its rounding decides ties


@dataclass(frozen=True)
class CityscapesAPResult:
    """Official AP of the classes `class_ids`, as fractions.

    `ap` [n] averages over the thresholds 0.50, 0.55 ... 0.95, `ap50` [n] is the first of them,
    `per_threshold` [n, 10] holds all. NaN for a class without true instances, 0 for one without predictions.
    The means run over the classes that are not NaN.
    """

    class_ids: tuple[int, ...]
    ap: np.ndarray
    ap50: np.ndarray
    per_threshold: np.ndarray
    mean_ap: float
    mean_ap50: float


@dataclass
class CityscapesAP:
    """Official Cityscapes average precision. Update image by image.

    Five numbers per predicted instance are enough for all thresholds: true masks do not overlap, so above one
    half at most one of them can match.

    Attributes
    ----------
    label_set : LabelSet
        Its things are scored.
    min_region : int
        Smaller true instances are no targets. Pixels (100 for images of 1024 x 2048).
    n_truth : int64 [n_classes]
        True instances that are targets.
    records : list of float64 arrays [K, 5]
        Per prediction: class, confidence, best IoU with a true region of its class, whether that is a target
        (0 for a group or one that is too small) and share of its pixels on ignored regions.

    References
    ----------
    cityscapesScripts, evalInstanceLevelSemanticLabeling.
    """

    label_set: LabelSet
    min_region: int = 100
    n_truth: np.ndarray | None = None
    records: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self):
        if self.n_truth is None:
            self.n_truth = np.zeros(self.label_set.n_classes, np.int64)

    def update(
        self, truth_map, truth_segments: Sequence[dict], instance_map, instances: Sequence[dict], *, void=None
    ) -> None:
        """Add one image whose predicted instances do not overlap.

        Parameters
        ----------
        truth_map : integer array or Tensor [H, W]
            Segment ids, 0 = void.
        truth_segments : list of dict
            `id`, `category_id` (train id) and, optional, `iscrowd` (a group) of every segment.
        instance_map : integer array or Tensor [H, W]
            Predicted ids, 0 = nothing.
        instances : list of dict
            `id`, `category_id` and, for things, `confidence` of every id. Stuff is not scored.
        void : bool array [H, W], optional
            Void pixels of the truth if not those of id 0. The official tool reads void from raw pixel values,
            so single caravans and trailers (ids 29xxx, 30xxx) are *not* void to it.

        Raises
        ------
        ValueError
            As `segments.compare_segments`; for a category that `label_set` does not have; for a thing without
            a finite confidence; for `void` of another shape.
        """
        overlaps = compare_segments(truth_map, truth_segments, instance_map, instances)
        check_categories(overlaps, self.label_set)
        confidence_of = {int(instance["id"]): instance.get("confidence") for instance in instances}
        is_thing = np.isin(overlaps.prediction.category, self.label_set.thing_ids)
        ids = overlaps.prediction.ids[is_thing].tolist()
        confidence = _confidences([confidence_of[i] for i in ids], ids)

        shared = np.zeros((overlaps.prediction.ids.size, overlaps.truth.ids.size))
        shared[overlaps.prediction_row, overlaps.truth_row] = overlaps.pixels
        on_void = shared[:, 0]
        if void is not None:
            instance_ids = as_id_map(instance_map, "prediction")
            instance_ids = instance_ids[_void_map(void, instance_ids.shape)]
            on_void = np.bincount(
                np.searchsorted(overlaps.prediction.ids, instance_ids), minlength=len(shared)
            )
        shared, on_void = shared[is_thing], on_void[is_thing]
        category = overlaps.prediction.category[is_thing]
        truth, area = overlaps.truth, shared.sum(1)
        small = truth.area < self.min_region
        is_target = np.isin(truth.category, self.label_set.thing_ids) & ~truth.crowd & ~small
        self.n_truth += np.bincount(truth.category[is_target], minlength=self.label_set.n_classes)
        if not len(shared):
            return
        same_class = truth.category == category[:, None]
        shared_same = np.where(same_class, shared, 0.0)
        iou = shared_same / (truth.area + area[:, None] - shared_same)
        best = iou.argmax(1)
        # a small group counts twice: the official tool adds groups and small regions one after the other
        on_ignored = on_void + shared_same @ truth.crowd + shared_same @ small
        best_iou = iou[np.arange(len(iou)), best]
        self.records.append(
            np.stack([category, confidence, best_iou, is_target[best], on_ignored / area], axis=1)
        )

    def result(self, class_ids: Sequence[int] | None = None) -> CityscapesAPResult:
        """AP of some classes (default: the things of the label set) and their means."""
        ids = self.label_set.thing_ids if class_ids is None else class_ids
        ids = as_class_ids(ids, self.label_set.n_classes)
        records = np.concatenate([np.zeros((0, 5)), *self.records])
        per_threshold = np.zeros((len(ids), len(IOU_THRESHOLDS)))
        for row, class_id in enumerate(ids):
            of_class = records[records[:, 0] == class_id]
            for column, threshold in enumerate(IOU_THRESHOLDS):
                per_threshold[row, column] = _average_precision(of_class, self.n_truth[class_id], threshold)
        ap, ap50 = per_threshold.mean(1), per_threshold[:, 0]
        return CityscapesAPResult(
            tuple(ids.tolist()), ap, ap50, per_threshold, mean_of_defined(ap), mean_of_defined(ap50)
        )


def _average_precision(records: np.ndarray, n_truth: int, threshold: float) -> float:
    """Area under the precision-recall curve of one class at one IoU threshold."""
    if n_truth == 0:
        return float("nan")
    _, confidence, iou, is_target, ignored = records.T
    hit = (iou > threshold) & (is_target > 0)
    counted = hit | (iou <= threshold) & (ignored <= threshold)
    score, is_true = confidence[counted], hit[counted]

    levels, level = np.unique(score, return_inverse=True)
    true_at_least = np.bincount(level, weights=is_true, minlength=levels.size)[::-1].cumsum()[::-1]
    all_at_least = np.bincount(level, minlength=levels.size)[::-1].cumsum()[::-1]
    # by rising confidence, closed by the artificial point (precision 1, recall 0)
    precision = np.append(true_at_least / all_at_least, 1.0)
    recall = np.append(true_at_least / n_truth, 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (padded[:-2] - padded[2:]) / 2)


def _void_map(void, shape: tuple[int, ...]) -> np.ndarray:
    """bool [H, W]; raises ValueError for another shape, which numpy might broadcast."""
    void = np.asarray(void.cpu() if hasattr(void, "cpu") else void, bool)
    if void.shape != shape:
        raise ValueError(f"void is {void.shape}, expected {shape} as the maps")
    return void


def _confidences(confidences, ids) -> np.ndarray:
    """float64 [K]; raises ValueError naming the instance without a finite confidence."""
    values = np.array([np.nan if value is None else float(value) for value in confidences], np.float64)
    for i, value in zip(ids, values):
        if not np.isfinite(value):
            raise ValueError(f"instance {i} has confidence {value}, expected a finite number")
    return values
