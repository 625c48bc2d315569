"""Panoptic quality: PQ, SQ, RQ and PQ+, streaming over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from panolib.labels import LabelSet
from panolib.metrics.averages import as_class_ids, mean_of_defined, ratio
from panolib.metrics.segments import (
    check_categories,
    compare_segments,
    match_segments,
    same_class_pairs,
    sum_by,
)

IOU_UNIT = 1e-6  # of counts: a sum over 500 images is off by less than 0.0003 matched segments


@dataclass(frozen=True)
class PanopticResult:
    """Scores of the classes `class_ids`, as fractions. NaN where a class has nothing to score.

    Per class, float64 or int64 [n]: `pq`, `sq`, `rq`, `pq_plus`, `tp`, `fp`, `fn`. A class with segments but
    without a match has sq = 0.
    Means: `mean_pq`, `mean_sq`, `mean_rq` over the classes with tp + fp + fn > 0; `mean_sq_matched` only over
    classes with a match (the convention the thesis seems to use); `mean_pq_plus` over the
    classes where PQ+ is defined.
    """

    class_ids: tuple[int, ...]
    pq: np.ndarray
    sq: np.ndarray
    rq: np.ndarray
    pq_plus: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    mean_pq: float
    mean_sq: float
    mean_sq_matched: float
    mean_rq: float
    mean_pq_plus: float


@dataclass
class PanopticStats:
    """Counts behind PQ and PQ+, per class of `label_set`. Update image by image.

    Attributes
    ----------
    iou_sum : float64 [n_classes]
        Summed IoU of the matched pairs.
    tp, fp, fn : int64 [n_classes]
    overlap_iou_sum : float64 [n_classes]
        Summed IoU of *all* pairs of the class that share a pixel (for PQ+ of stuff).
    n_truth : int64 [n_classes]
        True segments, crowd left out.
    images : list of float64 [n_classes, 5]
        What every image added to `tp`, `fp`, `fn`, `iou_sum` and `overlap_iou_sum`.

    References
    ----------
    Kirillov et al. 2019, arXiv:1801.00868; Porzi et al. 2019, arXiv:1905.01220; thesis ch. 12 eq. 2.
    """

    label_set: LabelSet
    iou_sum: np.ndarray | None = None
    tp: np.ndarray | None = None
    fp: np.ndarray | None = None
    fn: np.ndarray | None = None
    overlap_iou_sum: np.ndarray | None = None
    n_truth: np.ndarray | None = None
    images: list[np.ndarray] = field(default_factory=list)

    _COUNTS = ("iou_sum", "tp", "fp", "fn", "overlap_iou_sum", "n_truth")

    def __post_init__(self):
        for name in self._COUNTS:
            if getattr(self, name) is None:
                dtype = np.float64 if name.endswith("sum") else np.int64
                setattr(self, name, np.zeros(self.label_set.n_classes, dtype))

    def update(
        self, truth_map, truth_segments: Sequence[dict], prediction_map, prediction_segments: Sequence[dict]
    ) -> None:
        """Add one image.

        Parameters
        ----------
        truth_map, prediction_map : integer array or Tensor [H, W]
            Segment ids, 0 = void.
        truth_segments, prediction_segments : list of dict
            `id`, `category_id` (train id) and, optional, `iscrowd` of every segment.

        Raises
        ------
        ValueError
            As `compare_segments`, and for a category that `label_set` does not have.
        """
        overlaps = compare_segments(truth_map, truth_segments, prediction_map, prediction_segments)
        check_categories(overlaps, self.label_set)
        truth, prediction = overlaps.truth, overlaps.prediction
        n = self.label_set.n_classes

        matches = match_segments(overlaps)
        matched_class = truth.category[matches.truth_row]
        iou_sum = sum_by(matched_class, matches.iou, n)
        tp = np.bincount(matched_class, minlength=n)
        fn = np.bincount(truth.category[matches.missed], minlength=n)
        fp = np.bincount(prediction.category[matches.false], minlength=n)
        truth_row, _, _, iou = same_class_pairs(overlaps, ignore_void=True)
        overlap_iou_sum = sum_by(truth.category[truth_row], iou * ~truth.crowd[truth_row], n)

        self.images.append(np.stack([tp, fp, fn, iou_sum, overlap_iou_sum], axis=1))
        self.tp += tp
        self.fp += fp
        self.fn += fn
        self.iou_sum += iou_sum
        self.overlap_iou_sum += overlap_iou_sum
        self.n_truth += np.bincount(truth.category[1:][~truth.crowd[1:]], minlength=n)

    def counts(self) -> np.ndarray:
        """int64 [n_images, n_classes, 5]: TP, FP, FN, and in units of `IOU_UNIT` both sums of IoU.

        That of all overlaps is 0 for things: PQ+ takes it for stuff only.
        """
        counts = np.array(self.images).reshape(-1, self.label_set.n_classes, 5)
        counts[..., 3:] /= IOU_UNIT
        counts[:, list(self.label_set.thing_ids), 4] = 0
        return np.rint(counts).astype(np.int64)

    def result(self, class_ids: Sequence[int] | None = None) -> PanopticResult:
        """Scores of some classes and their means.

        Parameters
        ----------
        class_ids : sequence of int, optional
            Classes to score and to average over. Default: all.
        """
        n_classes = self.label_set.n_classes
        ids = as_class_ids(range(n_classes) if class_ids is None else class_ids, n_classes)
        tp, fp, fn, iou_sum = self.tp[ids], self.fp[ids], self.fn[ids], self.iou_sum[ids]
        weight = tp + 0.5 * fp + 0.5 * fn
        pq, rq = ratio(iou_sum, weight), ratio(tp, weight)
        sq_matched = ratio(iou_sum, tp)
        sq = np.where((weight > 0) & (tp == 0), 0.0, sq_matched)
        is_thing = np.isin(ids, self.label_set.thing_ids)
        pq_plus = np.where(is_thing, pq, ratio(self.overlap_iou_sum[ids], self.n_truth[ids]))
        return PanopticResult(
            class_ids=tuple(int(i) for i in ids),
            pq=pq, sq=sq, rq=rq, pq_plus=pq_plus, tp=tp, fp=fp, fn=fn,
            mean_pq=mean_of_defined(pq),
            mean_sq=mean_of_defined(sq),
            mean_sq_matched=mean_of_defined(sq_matched),
            mean_rq=mean_of_defined(rq),
            mean_pq_plus=mean_of_defined(pq_plus),
        )  # fmt: skip
