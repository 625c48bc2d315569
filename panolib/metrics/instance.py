"""Instance scores. Two different quantities that literature both calls AP:

`ThreatScore`   TP / (TP + FP + FN) at one IoU threshold, needs no confidence (the thesis's "AP").
`CityscapesAP`  official area under the precision-recall curve, needs a confidence per instance.

Truth is a panoptic image (id map with 0 = void, list of segments; crowd segments are groups of objects).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from panolib.labels import LabelSet
from panolib.metrics.panoptic import (
    Segments,
    as_id_map,
    check_categories,
    compare_segments,
    match_segments,
)
from panolib.metrics.semantic import as_class_ids, mean_of_defined, ratio, score_rows

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # written as in cityscapesScripts: its rounding decides ties


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
    """Threat score TP / (TP + FP + FN) per class. Update image by image, or add two of them.

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
            As `panoptic.compare_segments`, and for a category that `label_set` does not have.
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
        has_class = tp + fn > 0
        self.tp += tp
        self.fp += fp
        self.fn += fn
        self.score_sum += np.where(has_class, tp / np.maximum(tp + fp + fn, 1), 0.0)
        self.n_images += has_class

    def __add__(self, other: ThreatScore) -> ThreatScore:
        _check_addable(self, other, ("iou_threshold", "ignore_void", "min_truth_area"))
        sums = {name: getattr(self, name) + getattr(other, name) for name in self._COUNTS}
        return ThreatScore(
            self.label_set, self.iou_threshold, self.ignore_void, self.min_truth_area, **sums
        )

    def result(self, class_ids: Sequence[int] | None = None) -> ThreatResult:
        """Scores of some classes (default: the things of the label set) and their means."""
        ids = _class_ids(self.label_set, class_ids)
        tp, fp, fn = self.tp[ids], self.fp[ids], self.fn[ids]
        image_mean = ratio(self.score_sum[ids], self.n_images[ids])
        pooled = ratio(tp, tp + fp + fn)
        return ThreatResult(
            class_ids=tuple(ids.tolist()),
            image_mean=image_mean, pooled=pooled, tp=tp, fp=fp, fn=fn,
            mean_image_mean=mean_of_defined(image_mean),
            mean_pooled=mean_of_defined(pooled),
        )  # fmt: skip

    def as_rows(
        self, *, method: str, seed: int, setting: str = "", class_ids: Sequence[int] | None = None
    ) -> list[dict]:
        """Table rows: image mean, pooled score and counts of every class, and the means over the n classes.

        Returns
        -------
        list of dict
            Keys method, setting, class_or_metric, value (percent, or a count), unit, seed.
        """
        result = self.result(class_ids)
        n = len(result.class_ids)
        scores = {
            f"threat_score_{n}": result.mean_image_mean,
            f"threat_score_pooled_{n}": result.mean_pooled,
        }
        for row, class_id in enumerate(result.class_ids):
            name = self.label_set.classes[class_id]
            scores[f"threat_score {name}"] = result.image_mean[row]
            scores[f"threat_score_pooled {name}"] = result.pooled[row]
            for count in ("tp", "fp", "fn"):
                scores[f"{count} {name}"] = getattr(result, count)[row]
        return score_rows(scores, method=method, setting=setting, seed=seed)


def pseudo_label_counts(
    pseudo_instances,
    classes: Sequence[dict],
    truth_map,
    truth_segments: Sequence[dict],
    *,
    group_ids: Collection[int],
    iou_threshold: float = 0.5,
) -> tuple[int, int]:
    """True and false positive pseudo-labels of one image, for logging.

    A pseudo-instance is true if its IoU with some object of the class group, whichever class of it, exceeds
    the threshold. Crowds count as one object, void as background.

    Parameters
    ----------
    pseudo_instances : integer array or Tensor [H, W]
        Ids, 0 = unlabelled.
    classes : list of dict
        `id` and `category_id` of every pseudo-instance. Those outside the group are not counted.
    truth_map, truth_segments
        Panoptic truth of the image.
    group_ids : collection of int
        Train ids of the class group.
    iou_threshold : float
        At least 0.5.

    Returns
    -------
    (int, int)
        True and false positives; add them up over the images of an interval.

    References
    ----------
    Thesis 8.2 to 8.4 (figures).
    """
    overlaps = compare_segments(
        truth_map, _as_group(truth_segments, group_ids), pseudo_instances, _as_group(classes, group_ids)
    )
    matches = match_segments(overlaps, iou_threshold=iou_threshold, ignore_void=False)
    in_group = overlaps.prediction.category == 0
    return int(in_group[matches.prediction_row].sum()), int(in_group[matches.false].sum())


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
    """Official Cityscapes average precision. Update image by image, or add two of them.

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
    n_targets : int
        Their number in all classes; numbers the targets across images.
    records : list of float64 arrays [K, 5]
        Per prediction: class, confidence, best IoU with a true region of its class, number of that target (-1
        if it is a group or too small) and share of its pixels on ignored regions.

    References
    ----------
    cityscapesScripts, evalInstanceLevelSemanticLabeling.
    """

    label_set: LabelSet
    min_region: int = 100
    n_truth: np.ndarray | None = None
    n_targets: int = 0
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
            As `panoptic.compare_segments`; for a category that `label_set` does not have; for a thing without
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
        category = overlaps.prediction.category[is_thing]
        self._add(overlaps.truth, shared[is_thing], category, confidence, on_void[is_thing])

    def update_masks(
        self, truth_map, truth_segments: Sequence[dict], masks, class_ids, confidences, *, void=None
    ) -> None:
        """Add one image whose predicted instances are masks that may overlap.

        Parameters
        ----------
        truth_map, truth_segments, void
            As in `update`.
        masks : bool array [K, H, W]
            Empty masks are skipped.
        class_ids : integer array [K]
            Train ids. Stuff is not scored.
        confidences : float array [K]

        Raises
        ------
        ValueError
            As `update`, and if the number of masks, classes and confidences differ.
        """
        truth_map = as_id_map(truth_map, "truth")
        masks = np.asarray(masks, bool) if len(masks) else np.zeros((0, *truth_map.shape), bool)
        class_ids = np.asarray(class_ids)
        if not len(masks) == len(class_ids) == len(confidences):
            raise ValueError(
                f"{len(masks)} masks but {len(class_ids)} class ids and {len(confidences)} confidences"
            )
        if masks.shape[1:] != truth_map.shape:
            raise ValueError(f"truth map is {truth_map.shape} but masks are {masks.shape[1:]}")
        overlaps = compare_segments(truth_map, truth_segments, np.zeros_like(truth_map), [])
        check_categories(overlaps, self.label_set)
        class_ids = as_class_ids(class_ids, self.label_set.n_classes)

        keep = np.isin(class_ids, self.label_set.thing_ids) & masks.any(axis=(1, 2))
        confidence = _confidences(confidences, range(len(masks)))[keep]
        masks = masks[keep]
        n_rows = overlaps.truth.ids.size
        truth_row = np.searchsorted(overlaps.truth.ids, truth_map)
        shared = np.array([np.bincount(truth_row[mask], minlength=n_rows) for mask in masks], np.float64)
        shared = shared.reshape(len(masks), n_rows)
        on_void = shared[:, 0] if void is None else (masks & _void_map(void, truth_map.shape)).sum((1, 2))
        self._add(overlaps.truth, shared, class_ids[keep], confidence, on_void)

    def _add(
        self, truth: Segments, shared: np.ndarray, category: np.ndarray, confidence: np.ndarray, on_void
    ) -> None:
        """Record K predictions; `shared` [K, S] counts pixels shared with void and each true segment."""
        area = shared.sum(1)
        small = truth.area < self.min_region
        is_target = np.isin(truth.category, self.label_set.thing_ids) & ~truth.crowd & ~small
        number = np.where(is_target, self.n_targets + np.cumsum(is_target) - 1, -1)
        self.n_truth += np.bincount(truth.category[is_target], minlength=self.label_set.n_classes)
        self.n_targets += int(is_target.sum())
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
            np.stack([category, confidence, best_iou, number[best], on_ignored / area], axis=1)
        )

    def __add__(self, other: CityscapesAP) -> CityscapesAP:
        _check_addable(self, other, ("min_region",))
        shifted = [record.copy() for record in other.records]
        for record in shifted:
            record[record[:, 3] >= 0, 3] += self.n_targets
        return CityscapesAP(
            self.label_set,
            self.min_region,
            self.n_truth + other.n_truth,
            self.n_targets + other.n_targets,
            [*self.records, *shifted],
        )

    def result(self, class_ids: Sequence[int] | None = None) -> CityscapesAPResult:
        """AP of some classes (default: the things of the label set) and their means."""
        ids = _class_ids(self.label_set, class_ids)
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

    def as_rows(
        self, *, method: str, seed: int, setting: str = "", class_ids: Sequence[int] | None = None
    ) -> list[dict]:
        """Table rows: ``AP_<n>`` and ``AP50_<n>`` over the n classes, then ``AP <class>``, ``AP50 <class>``.

        Returns
        -------
        list of dict
            Keys method, setting, class_or_metric, value (percent), unit, seed.
        """
        result = self.result(class_ids)
        n = len(result.class_ids)
        scores = {f"AP_{n}": result.mean_ap, f"AP50_{n}": result.mean_ap50}
        for row, class_id in enumerate(result.class_ids):
            name = self.label_set.classes[class_id]
            scores[f"AP {name}"] = result.ap[row]
            scores[f"AP50 {name}"] = result.ap50[row]
        return score_rows(scores, method=method, setting=setting, seed=seed)


def _average_precision(records: np.ndarray, n_truth: int, threshold: float) -> float:
    """Area under the precision-recall curve of one class at one IoU threshold."""
    if n_truth == 0:
        return float("nan")
    _, confidence, iou, target, ignored = records.T
    hits = np.flatnonzero((iou > threshold) & (target >= 0))
    hits = hits[np.lexsort((confidence[hits], target[hits]))]
    # of several predictions of one object the most confident is true, the others are false
    is_last = np.diff(target[hits], append=-1) != 0
    false = np.flatnonzero((iou <= threshold) & (ignored <= threshold))
    score = np.concatenate([confidence[hits], confidence[false]])
    is_true = np.concatenate([is_last, np.zeros(false.size, bool)])

    levels, level = np.unique(score, return_inverse=True)
    true_at_least = np.bincount(level, weights=is_true, minlength=levels.size)[::-1].cumsum()[::-1]
    all_at_least = np.bincount(level, minlength=levels.size)[::-1].cumsum()[::-1]
    # by rising confidence, closed by the artificial point (precision 1, recall 0)
    precision = np.append(true_at_least / all_at_least, 1.0)
    recall = np.append(true_at_least / n_truth, 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (padded[:-2] - padded[2:]) / 2)


def _class_ids(label_set: LabelSet, class_ids: Sequence[int] | None) -> np.ndarray:
    """int64 [n]; the things of the label set if not given."""
    return as_class_ids(label_set.thing_ids if class_ids is None else class_ids, label_set.n_classes)


def _check_addable(first, second, options: Sequence[str]) -> None:
    """Raise ValueError if two accumulators count different things."""
    if first.label_set.classes != second.label_set.classes:
        raise ValueError(f"cannot add scores of {first.label_set.name} and {second.label_set.name}")
    for option in options:
        if getattr(first, option) != getattr(second, option):
            raise ValueError(
                f"cannot add scores with {option} {getattr(first, option)} and {getattr(second, option)}"
            )


def _as_group(segments: Sequence[dict], group_ids: Collection[int]) -> list[dict]:
    """The same segments with category 0 inside the group and 1 outside."""
    return [{**segment, "category_id": int(segment["category_id"] not in group_ids)} for segment in segments]


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
