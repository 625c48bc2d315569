"""Panoptic quality: PQ, SQ, RQ and PQ+, streaming over images.

A panoptic image is an id map (0 = void) and a list of segments. Two of them are compared once, into a short
table of overlapping pairs; everything after that works on that table, not on pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from panolib.data.label_maps import as_labels
from panolib.labels import LabelSet
from panolib.metrics.semantic import as_class_ids, mean_of_defined, ratio, score_rows


class Segments(NamedTuple):
    """Segments of one image in id order; row 0 stands for void (category -1)."""

    ids: np.ndarray  # int64 [S]
    category: np.ndarray  # int64 [S], train ids
    crowd: np.ndarray  # bool [S]
    area: np.ndarray  # int64 [S], pixels


class Overlaps(NamedTuple):
    """Pairs of a true and a predicted segment that share pixels, void included."""

    truth: Segments
    prediction: Segments
    truth_row: np.ndarray  # int64 [P], row in truth; 0 is void
    prediction_row: np.ndarray  # int64 [P], row in prediction; 0 is void
    pixels: np.ndarray  # int64 [P]


class Matches(NamedTuple):
    """What became of the segments of one image, as rows of `Overlaps.truth` and `Overlaps.prediction`."""

    truth_row: np.ndarray  # int64 [M], matched pairs
    prediction_row: np.ndarray  # int64 [M]
    iou: np.ndarray  # float64 [M]
    missed: np.ndarray  # int64 [FN], rows of truth
    false: np.ndarray  # int64 [FP], rows of prediction


def compare_segments(
    truth_map, truth_segments: Sequence[dict], prediction_map, prediction_segments: Sequence[dict]
) -> Overlaps:
    """Table of the overlaps between the true and the predicted segments of one image.

    The maps are cut into runs of constant ids, so the cost is a few passes over the pixels.

    Parameters
    ----------
    truth_map, prediction_map : integer array or Tensor [H, W]
        Segment ids, 0 = void, at most 2**63 - 1.
    truth_segments, prediction_segments : list of dict
        One per segment, with `id` and `category_id` (train id); `iscrowd` is optional. A listed `area` is not
        used: areas are counted in the maps.

    Raises
    ------
    ValueError
        If the shapes differ, an id of a map is negative or not listed, or a listed id is absent, 0 or listed
        twice.
    """
    truth_map, prediction_map = as_id_map(truth_map, "truth"), as_id_map(prediction_map, "prediction")
    if truth_map.shape != prediction_map.shape:
        raise ValueError(f"truth map is {truth_map.shape} but prediction map is {prediction_map.shape}")
    t, p = truth_map.ravel(), prediction_map.ravel()
    starts = np.flatnonzero((t[1:] != t[:-1]) | (p[1:] != p[:-1])) + 1
    starts = np.concatenate([np.zeros(min(t.size, 1), np.int64), starts])
    lengths = np.diff(starts, append=t.size)
    t, p = t[starts].astype(np.int64), p[starts].astype(np.int64)
    names = [None, None]
    for i, (name, ids) in enumerate((("truth", t), ("prediction", p))):
        if ids.size and ids.min() < 0:
            raise ValueError(f"{name} map holds the id {ids.min()}, expected ids >= 0")
        if ids.size and ids.max() >= 2**31:  # two of them would not fit into 64 bits
            ids[:], names[i] = pd.factorize(ids)

    pair, pairs = pd.factorize((t << 31) | p)  # hashed: three times as fast as np.unique, which sorts
    pixels = _sum_by(pair, lengths, pairs.size).astype(np.int64)
    t, p = pairs >> 31, pairs & (2**31 - 1)
    t, p = (ids if table is None else table[ids] for ids, table in zip((t, p), names))
    truth, truth_row = _segments(t, pixels, truth_segments, "truth")
    prediction, prediction_row = _segments(p, pixels, prediction_segments, "prediction")
    return Overlaps(truth, prediction, truth_row, prediction_row, pixels)


def match_segments(
    overlaps: Overlaps, *, iou_threshold: float = 0.5, ignore_void: bool = True, min_truth_area: int = 0
) -> Matches:
    """Match segments of the same class and sort the rest into missed, false and ignored.

    A pair matches if its IoU exceeds the threshold; as that is at least one half, a segment has at most one
    partner. An unmatched prediction is ignored, not false, if more than half of it lies on void or on regions
    of its own class that are no targets.

    Parameters
    ----------
    overlaps : Overlaps
    iou_threshold : float
        At least 0.5.
    ignore_void : bool
        True is the panoptic rule: pixels with void truth do not count in the union, and crowd segments are no
        targets. False counts void as background and a crowd as one object, as SPOCO does.
    min_truth_area : int
        Smaller true segments are no targets. Pixels.

    References
    ----------
    Kirillov et al. 2019, arXiv:1801.00868; panopticapi.
    """
    if not iou_threshold >= 0.5:  # nor nan
        raise ValueError(f"iou_threshold is {iou_threshold}, expected >= 0.5: matches are not unique below")
    truth, prediction = overlaps.truth, overlaps.prediction
    target = np.arange(truth.ids.size) > 0
    target &= truth.area >= min_truth_area
    if ignore_void:
        target &= ~truth.crowd
    t, p, pixels, iou = _same_class_pairs(overlaps, ignore_void=ignore_void)
    ignored_area = _sum_by(p, pixels * ~target[t], prediction.ids.size)
    if ignore_void:
        ignored_area += _void_area(overlaps)

    matched = target[t] & (iou > iou_threshold)
    missed, false = target, 2 * ignored_area <= prediction.area
    missed[t[matched]] = False
    false[p[matched]] = False
    false[0] = False
    return Matches(t[matched], p[matched], iou[matched], np.flatnonzero(missed), np.flatnonzero(false))


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
    """Counts behind PQ and PQ+, per class of `label_set`. Update image by image, or add two of them.

    Attributes
    ----------
    iou_sum : float64 [n_classes]
        Summed IoU of the matched pairs.
    tp, fp, fn : int64 [n_classes]
    overlap_iou_sum : float64 [n_classes]
        Summed IoU of *all* pairs of the class that share a pixel (for PQ+ of stuff).
    n_truth : int64 [n_classes]
        True segments, crowd left out.

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
        self.iou_sum += _sum_by(matched_class, matches.iou, n)
        self.tp += np.bincount(matched_class, minlength=n)
        self.fn += np.bincount(truth.category[matches.missed], minlength=n)
        self.fp += np.bincount(prediction.category[matches.false], minlength=n)

        truth_row, _, _, iou = _same_class_pairs(overlaps, ignore_void=True)
        self.overlap_iou_sum += _sum_by(truth.category[truth_row], iou * ~truth.crowd[truth_row], n)
        self.n_truth += np.bincount(truth.category[1:][~truth.crowd[1:]], minlength=n)

    def __add__(self, other: PanopticStats) -> PanopticStats:
        if self.label_set.classes != other.label_set.classes:
            raise ValueError(f"cannot add stats of {self.label_set.name} and {other.label_set.name}")
        sums = {name: getattr(self, name) + getattr(other, name) for name in self._COUNTS}
        return PanopticStats(self.label_set, **sums)

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

    def as_rows(self, *, subset: str, method: str, seed: int, setting: str = "") -> list[dict]:
        """Table rows: means over a named subset (``PQ_16``, ..., ``SQ_matched_16``), then each class.

        Returns
        -------
        list of dict
            Keys method, setting, class_or_metric, value (percent), unit, seed.
        """
        result = self.result(self.label_set.subset_ids(subset))
        scores = {
            f"SQ_{subset}": result.mean_sq,
            f"SQ_matched_{subset}": result.mean_sq_matched,
            f"RQ_{subset}": result.mean_rq,
            f"PQ_{subset}": result.mean_pq,
            f"PQ+_{subset}": result.mean_pq_plus,
        }
        for row, class_id in enumerate(result.class_ids):
            name = self.label_set.classes[class_id]
            scores[f"SQ {name}"] = result.sq[row]
            scores[f"RQ {name}"] = result.rq[row]
            scores[f"PQ {name}"] = result.pq[row]
            scores[f"PQ+ {name}"] = result.pq_plus[row]
        return score_rows(scores, method=method, setting=setting, seed=seed)


def check_categories(overlaps: Overlaps, label_set: LabelSet) -> None:
    """Raise ValueError if a segment has a category that is no train id of `label_set`."""
    for name, segments in (("truth", overlaps.truth), ("prediction", overlaps.prediction)):
        bad = (segments.category < 0) | (segments.category >= label_set.n_classes)
        bad[0] = False
        if bad.any():
            row = np.flatnonzero(bad)[0]
            raise ValueError(
                f"{name} segment {segments.ids[row]} has category_id {segments.category[row]}, "
                f"expected a train id 0 .. {label_set.n_classes - 1} of {label_set.name}"
            )


def as_id_map(labels, name: str) -> np.ndarray:
    """An id map (array or Tensor on any device) as numpy array; raises ValueError if it is not integer."""
    labels = labels.detach().cpu().numpy() if hasattr(labels, "detach") else np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise ValueError(f"{name} map is {labels.dtype}, expected integer segment ids")
    return as_labels(labels, f"{name} map").numpy() if labels.dtype.name == "uint64" else labels


def _sum_by(group: np.ndarray, values: np.ndarray, n_groups: int) -> np.ndarray:
    """float64 [n_groups]: sum of the values of each group (exact for integers below 2**53)."""
    sums = np.bincount(group, weights=values, minlength=n_groups)
    return sums.astype(np.float64, copy=False)  # bincount of nothing is integer, whatever the weights


def _void_area(overlaps: Overlaps) -> np.ndarray:
    """float64 [S]: pixels of every predicted segment (and of row 0) whose truth is void."""
    on_void = overlaps.truth_row == 0
    n_rows = overlaps.prediction.ids.size
    return _sum_by(overlaps.prediction_row[on_void], overlaps.pixels[on_void], n_rows)


def _same_class_pairs(overlaps: Overlaps, *, ignore_void: bool):
    """(truth row, prediction row, shared pixels, IoU) of the overlapping pairs of one class."""
    truth, prediction, t, p, pixels = overlaps
    pair = (t > 0) & (truth.category[t] == prediction.category[p])
    t, p, pixels = t[pair], p[pair], pixels[pair]
    union = truth.area[t] + prediction.area[p] - pixels
    if ignore_void:
        union = union - _void_area(overlaps)[p]
    return t, p, pixels, pixels / union


def _segments(
    ids: np.ndarray, pixels: np.ndarray, listed: Sequence[dict], name: str
) -> tuple[Segments, np.ndarray]:
    """Segment table of one map, and for each entry of `ids` its row in it."""
    found = np.unique(np.append(ids, 0))
    by_id = {int(segment["id"]): segment for segment in listed}
    if len(by_id) != len(listed):
        raise ValueError(f"{name} segments list an id twice: {sorted(int(s['id']) for s in listed)}")
    present = set(found[1:].tolist())
    if present - by_id.keys():
        raise ValueError(f"{name} map holds id {sorted(present - by_id.keys())} without a listed segment")
    if by_id.keys() - present:
        raise ValueError(f"{name} segments list id {sorted(by_id.keys() - present)} that is not in the map")
    in_order = [by_id[i] for i in found[1:].tolist()]
    row = np.searchsorted(found, ids)
    return Segments(
        ids=found,
        category=np.array([-1, *(int(segment["category_id"]) for segment in in_order)], np.int64),
        crowd=np.array([False, *(bool(segment.get("iscrowd", 0)) for segment in in_order)]),
        area=_sum_by(row, pixels, found.size).astype(np.int64),
    ), row
