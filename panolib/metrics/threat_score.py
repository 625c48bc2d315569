"""The thesis's "AP": the threat score TP / (TP + FP + FN) at IoU 0.5, which needs no confidence.

The other quantity that literature calls AP is in `average_precision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from panolib.labels import LabelSet
from panolib.metrics.averages import mean_of_defined, ratio
from panolib.metrics.segments import class_counts, compare_segments, match_segments


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

    mean_image_mean = property(lambda self: mean_of_defined(self.image_mean))
    mean_pooled = property(lambda self: mean_of_defined(self.pooled))


@dataclass
class ThreatScore:
    """Threat score TP / (TP + FP + FN) per class. Update image by image.

    An instance is found if its IoU with a prediction of the class exceeds one half; void and crowd are
    treated as by PQ. `images`: int64 [n_classes, 3], TP, FP and FN of each image.

    References
    ----------
    Thesis ch. 11 eq. 1; Wolny et al. 2022, arXiv:2103.14572.
    """

    label_set: LabelSet
    images: list[np.ndarray] = field(default_factory=list)

    def update(
        self, truth_map, truth_segments: Sequence[dict], instance_map, instances: Sequence[dict]
    ) -> None:
        """Add one image; parameters and errors as of `compare_segments`.

        A whole panoptic prediction is fine: stuff is counted too, and `result` picks the classes.
        """
        overlaps = compare_segments(truth_map, truth_segments, instance_map, instances, self.label_set)
        self.images.append(class_counts(overlaps, match_segments(overlaps), self.label_set.n_classes))

    def counts(self, class_ids: Sequence[int] | None = None) -> np.ndarray:
        """int64 [n_images, n, 3]: TP, FP and FN of every image for some classes (default: the things)."""
        ids = self.label_set.thing_ids if class_ids is None else class_ids
        return np.array(self.images, np.int64).reshape(-1, self.label_set.n_classes, 3)[:, list(ids)]

    def result(self, class_ids: Sequence[int] | None = None) -> ThreatResult:
        """Scores of some classes (default: the things of the label set) and their means."""
        ids = self.label_set.thing_ids if class_ids is None else class_ids
        counts = self.counts(ids)  # [n_images, n, 3]
        has_class = counts[..., 0] + counts[..., 2] > 0
        of_images = np.where(has_class, counts[..., 0] / np.maximum(counts.sum(-1), 1), 0.0)
        tp, fp, fn = counts.sum(0).T
        return ThreatResult(
            tuple(ids), ratio(of_images.sum(0), has_class.sum(0)), ratio(tp, tp + fp + fn), tp, fp, fn
        )
