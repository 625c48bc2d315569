"""The thesis's "AP": the threat score TP / (TP + FP + FN) at one IoU threshold, which needs no confidence.

The other quantity that literature calls AP is in `average_precision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from panolib.labels import LabelSet
from panolib.metrics.averages import as_class_ids, mean_of_defined, ratio
from panolib.metrics.segments import check_categories, compare_segments, match_segments


@dataclass(frozen=True)
class ThreatResult:
    """Threat scores of the classes `class_ids`, as fractions [n]; NaN where a class has nothing to score.

    `image_mean` averages over the images that hold a true instance of the class, `pooled` divides the summed
    counts `tp`, `fp`, `fn`. The two differ strongly. Their means run over the classes that are not NaN.
    """

    class_ids: tuple[int, ...]
    image_mean: np.ndarray
    pooled: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    mean_image_mean: float
    mean_pooled: float


@dataclass
class ThreatScore:
    """Threat score TP / (TP + FP + FN) per class. Update image by image.

    Attributes
    ----------
    label_set : LabelSet
    iou_threshold : float
        An instance is found if its IoU with a prediction of the class exceeds this. At least 0.5.
    ignore_void : bool
        True: void, crowd and small instances as in the PQ rule. False: void is background and a crowd is one
        object, as in SPOCO.
    min_truth_area : int
        Smaller true instances are no targets; a prediction mostly on one is ignored. Pixels.
    tp, fp, fn : int64 [n_classes]
    score_sum : float64 [n_classes]
        Sum of the scores of single images that hold the class.
    n_images : int64 [n_classes]
        How many images that are.
    images : list of int64 [n_classes, 3]
        TP, FP and FN of every image.

    References
    ----------
    Thesis ch. 11 eq. 1; Wolny et al. 2022, arXiv:2103.14572.
    """

    label_set: LabelSet
    iou_threshold: float = 0.5
    ignore_void: bool = True
    min_truth_area: int = 0
    tp: np.ndarray | None = None
    fp: np.ndarray | None = None
    fn: np.ndarray | None = None
    score_sum: np.ndarray | None = None
    n_images: np.ndarray | None = None
    images: list[np.ndarray] = field(default_factory=list)

    _COUNTS = ("tp", "fp", "fn", "score_sum", "n_images")

    def __post_init__(self):
        for name in self._COUNTS:
            if getattr(self, name) is None:
                dtype = np.float64 if name == "score_sum" else np.int64
                setattr(self, name, np.zeros(self.label_set.n_classes, dtype))

    def update(
        self, truth_map, truth_segments: Sequence[dict], instance_map, instances: Sequence[dict]
    ) -> None:
        """Add one image.

        Parameters
        ----------
        truth_map, instance_map : integer array or Tensor [H, W]
            Ids; 0 = void in the truth, no instance in the prediction.
        truth_segments, instances : list of dict
            `id` and `category_id` (train id) of every id; truth may say `iscrowd`. A whole panoptic
            prediction is fine: stuff is counted too, and `result` picks the classes.

        Raises
        ------
        ValueError
            As `segments.compare_segments`, and for a category that `label_set` does not have.
        """
        overlaps = compare_segments(truth_map, truth_segments, instance_map, instances)
        check_categories(overlaps, self.label_set)
        matches = match_segments(
            overlaps,
            iou_threshold=self.iou_threshold,
            ignore_void=self.ignore_void,
            min_truth_area=self.min_truth_area,
        )
        n = self.label_set.n_classes
        tp = np.bincount(overlaps.truth.category[matches.truth_row], minlength=n)
        fn = np.bincount(overlaps.truth.category[matches.missed], minlength=n)
        fp = np.bincount(overlaps.prediction.category[matches.false], minlength=n)
        self.images.append(np.stack([tp, fp, fn], axis=1))
        has_class = tp + fn > 0
        self.tp += tp
        self.fp += fp
        self.fn += fn
        self.score_sum += np.where(has_class, tp / np.maximum(tp + fp + fn, 1), 0.0)
        self.n_images += has_class

    def counts(self, class_ids: Sequence[int] | None = None) -> np.ndarray:
        """int64 [n_images, n, 3]: TP, FP and FN of every image for some classes (default: the things)."""
        ids = self.label_set.thing_ids if class_ids is None else class_ids
        images = np.array(self.images, np.int64).reshape(-1, self.label_set.n_classes, 3)
        return images[:, as_class_ids(ids, self.label_set.n_classes)]

    def result(self, class_ids: Sequence[int] | None = None) -> ThreatResult:
        """Scores of some classes (default: the things of the label set) and their means."""
        ids = self.label_set.thing_ids if class_ids is None else class_ids
        ids = as_class_ids(ids, self.label_set.n_classes)
        tp, fp, fn = self.tp[ids], self.fp[ids], self.fn[ids]
        image_mean = ratio(self.score_sum[ids], self.n_images[ids])
        pooled = ratio(tp, tp + fp + fn)
        return ThreatResult(
            class_ids=tuple(ids.tolist()),
            image_mean=image_mean, pooled=pooled, tp=tp, fp=fp, fn=fn,
            mean_image_mean=mean_of_defined(image_mean),
            mean_pooled=mean_of_defined(pooled),
        )  # fmt: skip
