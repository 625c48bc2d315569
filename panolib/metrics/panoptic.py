"""Panoptic quality: PQ, SQ, RQ and PQ+, streaming over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from panolib.labels import LabelSet
from panolib.metrics import from_counts
from panolib.metrics.averages import mean_of_defined
from panolib.metrics.segments import class_counts, compare_segments, match_segments, same_class_pairs, sum_by


@dataclass(frozen=True)
class PanopticResult:
    """Scores of some classes, float64 [n] as fractions, and their counts, int64 [n].

    NaN where a class has nothing to score; a class with segments but without a match has sq = 0. Means run
    over the classes that are not NaN: those with a segment, for `mean_sq_matched` those with a match (the
    convention the thesis seems to use), for `mean_pq_plus` those where PQ+ is defined.
    """

    pq: np.ndarray
    sq: np.ndarray
    sq_matched: np.ndarray
    rq: np.ndarray
    pq_plus: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    mean_pq = property(lambda self: mean_of_defined(self.pq))
    mean_sq = property(lambda self: mean_of_defined(self.sq))
    mean_sq_matched = property(lambda self: mean_of_defined(self.sq_matched))
    mean_rq = property(lambda self: mean_of_defined(self.rq))
    mean_pq_plus = property(lambda self: mean_of_defined(self.pq_plus))


@dataclass
class PanopticStats:
    """What every image counts for PQ and PQ+, per class of `label_set`. Update image by image.

    `images`: float64 [n_classes, 5] of each image: TP, FP, FN, summed IoU of the matched pairs, and that of
    *all* pairs of the class that share a pixel (for PQ+ of stuff).

    References
    ----------
    Kirillov et al. 2019, arXiv:1801.00868; Porzi et al. 2019, arXiv:1905.01220; thesis ch. 12 eq. 2.
    """

    label_set: LabelSet
    images: list[np.ndarray] = field(default_factory=list)

    def update(
        self, truth_map, truth_segments: Sequence[dict], prediction_map, prediction_segments: Sequence[dict]
    ) -> None:
        """Add one image; parameters and errors as of `compare_segments`."""
        overlaps = compare_segments(
            truth_map, truth_segments, prediction_map, prediction_segments, self.label_set
        )
        truth, n = overlaps.truth, self.label_set.n_classes
        matches = match_segments(overlaps)
        iou_sum = sum_by(truth.category[matches.truth_row], matches.iou, n)
        truth_row, _, _, iou = same_class_pairs(overlaps)
        overlap_iou_sum = sum_by(truth.category[truth_row], iou * ~truth.crowd[truth_row], n)
        self.images.append(np.column_stack([class_counts(overlaps, matches, n), iou_sum, overlap_iou_sum]))

    def counts(self) -> np.ndarray:
        """int64 [n_images, n_classes, 5]: TP, FP, FN, and in units of `IOU_UNIT` both sums of IoU.

        That of all overlaps is 0 for things: PQ+ takes it for stuff only.
        """
        counts = np.array(self.images).reshape(-1, self.label_set.n_classes, 5)
        counts[..., 3:] /= from_counts.IOU_UNIT
        counts[:, list(self.label_set.thing_ids), 4] = 0
        return np.rint(counts).astype(np.int64)

    def result(self, class_ids: Sequence[int] | None = None) -> PanopticResult:
        """Scores of some classes (default: all)."""
        ids = np.arange(self.label_set.n_classes) if class_ids is None else list(class_ids)
        sums = sum(self.images, np.zeros((self.label_set.n_classes, 5)))[ids]
        return PanopticResult(
            from_counts.pq(sums, 1.0),
            from_counts.sq(sums, 1.0),
            from_counts.sq_matched(sums, 1.0),
            from_counts.rq(sums),
            from_counts.pq_plus(sums, np.isin(ids, self.label_set.thing_ids), 1.0),
            *sums[:, :3].T.astype(np.int64),
        )
