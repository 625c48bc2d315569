"""Two panoptic maps of one image: which segments overlap, which of them match, which are missed or false.

A panoptic map is an id map (0 = void) and a list of segments. Two of them are compared once, into a short
table of overlapping pairs; everything after that works on that table, not on pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from panolib.data.label_maps import as_labels
from panolib.labels import LabelSet


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
    truth_map,
    truth_segments: Sequence[dict],
    prediction_map,
    prediction_segments: Sequence[dict],
    label_set: LabelSet,
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
        If the shapes differ, an id of a map is negative or not listed, a listed id is absent, 0 or listed
        twice, or a category is no train id of `label_set`.
    """
    maps = ((truth_map, "truth map"), (prediction_map, "prediction map"))
    truth_map, prediction_map = (as_labels(ids, name).cpu().numpy() for ids, name in maps)
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
    pixels = sum_by(pair, lengths, pairs.size).astype(np.int64)
    t, p = pairs >> 31, pairs & (2**31 - 1)
    t, p = (ids if table is None else table[ids] for ids, table in zip((t, p), names))
    truth, truth_row = _segments(t, pixels, truth_segments, label_set, "truth")
    prediction, prediction_row = _segments(p, pixels, prediction_segments, label_set, "prediction")
    return Overlaps(truth, prediction, truth_row, prediction_row, pixels)


def match_segments(overlaps: Overlaps) -> Matches:
    """Match segments of the same class and sort the rest into missed, false and ignored.

    A pair matches if its IoU exceeds one half, so a segment has at most one partner. Pixels with void truth
    do not count in the union, and crowd segments are no targets. An unmatched prediction is ignored, not
    false, if more than half of it lies on void or on crowds of its own class.

    References
    ----------
    Kirillov et al. 2019, arXiv:1801.00868; panopticapi.
    """
    truth, prediction = overlaps.truth, overlaps.prediction
    target = (np.arange(truth.ids.size) > 0) & ~truth.crowd
    t, p, pixels, iou = same_class_pairs(overlaps)
    ignored_area = sum_by(p, pixels * ~target[t], prediction.ids.size) + _void_area(overlaps)

    matched = target[t] & (iou > 0.5)
    missed, false = target, 2 * ignored_area <= prediction.area
    missed[t[matched]] = False
    false[p[matched]] = False
    false[0] = False
    return Matches(t[matched], p[matched], iou[matched], np.flatnonzero(missed), np.flatnonzero(false))


def class_counts(overlaps: Overlaps, matches: Matches, n_classes: int) -> np.ndarray:
    """int64 [n_classes, 3]: matched, false and missed segments (TP, FP, FN) of every class."""
    truth, prediction = overlaps.truth.category, overlaps.prediction.category
    found = (truth[matches.truth_row], prediction[matches.false], truth[matches.missed])
    return np.stack([np.bincount(category, minlength=n_classes) for category in found], axis=1)


def same_class_pairs(overlaps: Overlaps):
    """(truth row, prediction row, shared pixels, IoU) of the overlapping pairs of one class."""
    truth, prediction, t, p, pixels = overlaps
    pair = (t > 0) & (truth.category[t] == prediction.category[p])
    t, p, pixels = t[pair], p[pair], pixels[pair]
    union = truth.area[t] + prediction.area[p] - pixels - _void_area(overlaps)[p]
    return t, p, pixels, pixels / union


def sum_by(group: np.ndarray, values: np.ndarray, n_groups: int) -> np.ndarray:
    """float64 [n_groups]: sum of the values of each group (exact for integers below 2**53)."""
    sums = np.bincount(group, weights=values, minlength=n_groups)
    return sums.astype(np.float64, copy=False)  # bincount of nothing is integer, whatever the weights


def _void_area(overlaps: Overlaps) -> np.ndarray:
    """float64 [S]: pixels of every predicted segment (and of row 0) whose truth is void."""
    on_void = overlaps.truth_row == 0
    n_rows = overlaps.prediction.ids.size
    return sum_by(overlaps.prediction_row[on_void], overlaps.pixels[on_void], n_rows)


def _segments(
    ids: np.ndarray, pixels: np.ndarray, listed: Sequence[dict], label_set: LabelSet, name: str
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
    for segment in in_order:
        if not 0 <= segment["category_id"] < label_set.n_classes:
            raise ValueError(
                f"{name} segment {segment['id']} has category_id {segment['category_id']}, "
                f"expected a train id 0 .. {label_set.n_classes - 1} of {label_set.name}"
            )
    row = np.searchsorted(found, ids)
    return Segments(
        ids=found,
        category=np.array([-1, *(int(segment["category_id"]) for segment in in_order)], np.int64),
        crowd=np.array([False, *(bool(segment.get("iscrowd", 0)) for segment in in_order)]),
        area=sum_by(row, pixels, found.size).astype(np.int64),
    ), row
