"""The official Cityscapes AP: area under the precision-recall curve, which needs a confidence per instance.

The thesis's "AP" is another quantity: `threat_score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from panolib.data.label_maps import as_labels
from panolib.labels import LabelSet
from panolib.metrics.averages import mean_of_defined
from panolib.metrics.segments import compare_segments

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # written as in cityscapesScripts: its rounding decides ties


@dataclass(frozen=True)
class CityscapesAPResult:
    """Official AP of some classes, as fractions.

    `per_threshold` [n, 10] holds the thresholds 0.50, 0.55 ... 0.95, `ap` [n] is their mean, `ap50` [n] the
    first of them. NaN for a class without true instances, 0 for one without predictions. The means run over
    the classes that are not NaN.
    """

    per_threshold: np.ndarray

    ap = property(lambda self: self.per_threshold.mean(1))
    ap50 = property(lambda self: self.per_threshold[:, 0])
    mean_ap = property(lambda self: mean_of_defined(self.ap))
    mean_ap50 = property(lambda self: mean_of_defined(self.ap50))


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
    n_truth : list of int64 [n_classes]
        True instances of every image that are targets.
    records : list of float64 arrays [K, 5]
        Per prediction: class, confidence, best IoU with a true region of its class, whether that is a target
        (0 for a group or one that is too small) and share of its pixels on ignored regions.

    References
    ----------
    cityscapesScripts, evalInstanceLevelSemanticLabeling.
    """

    label_set: LabelSet
    min_region: int = 100
    n_truth: list[np.ndarray] = field(default_factory=list)
    records: list[np.ndarray] = field(default_factory=list)

    def update(
        self, truth_map, truth_segments: Sequence[dict], instance_map, instances: Sequence[dict], *, void=None
    ) -> None:
        """Add one image whose predicted instances do not overlap.

        Parameters
        ----------
        truth_map, truth_segments, instance_map, instances
            As of `compare_segments`. Instances of things have a `confidence`; stuff is not scored.
        void : bool array [H, W], optional
            Void pixels of the truth if not those of id 0. The official tool reads void from raw pixel values,
            so single caravans and trailers (ids 29xxx, 30xxx) are *not* void to it.

        Raises
        ------
        ValueError
            As `compare_segments`; for a thing without a finite confidence; for `void` of another shape.
        """
        overlaps = compare_segments(truth_map, truth_segments, instance_map, instances, self.label_set)
        truth, prediction = overlaps.truth, overlaps.prediction
        is_thing = np.isin(prediction.category, self.label_set.thing_ids)
        confidence = _confidences(instances, prediction.ids[is_thing])

        shared = np.zeros((prediction.ids.size, truth.ids.size))
        shared[overlaps.prediction_row, overlaps.truth_row] = overlaps.pixels
        on_void = shared[:, 0]
        if void is not None:
            instance_map = as_labels(instance_map, "prediction map").cpu().numpy()
            if void.shape != instance_map.shape:  # numpy might broadcast it
                raise ValueError(f"void is {void.shape}, expected {instance_map.shape} as the maps")
            row = np.searchsorted(prediction.ids, instance_map[np.asarray(void, bool)])
            on_void = np.bincount(row, minlength=len(shared))
        shared, on_void, category = shared[is_thing], on_void[is_thing], prediction.category[is_thing]
        area = shared.sum(1)
        small = truth.area < self.min_region
        is_target = np.isin(truth.category, self.label_set.thing_ids) & ~truth.crowd & ~small
        self.n_truth.append(np.bincount(truth.category[is_target], minlength=self.label_set.n_classes))
        if not len(shared):
            return
        shared_same = np.where(truth.category == category[:, None], shared, 0.0)
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
        records = np.concatenate([np.zeros((0, 5)), *self.records])
        n_truth = sum(self.n_truth, np.zeros(self.label_set.n_classes, np.int64))
        per_threshold = [
            [_average_precision(records[records[:, 0] == i], n_truth[i], at) for at in IOU_THRESHOLDS]
            for i in ids
        ]
        return CityscapesAPResult(np.array(per_threshold).reshape(-1, len(IOU_THRESHOLDS)))


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


def _confidences(instances: Sequence[dict], ids: np.ndarray) -> np.ndarray:
    """float64 [K] of the instances `ids`; raises ValueError naming the one without a finite confidence."""
    by_id = {int(instance["id"]): instance.get("confidence") for instance in instances}
    values = np.array([by_id[i] for i in ids.tolist()], np.float64)  # None becomes nan
    for i, value in zip(ids, values):
        if not np.isfinite(value):
            raise ValueError(f"instance {i} has confidence {value}, expected a finite number")
    return values
