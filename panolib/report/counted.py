"""From a row of the tidy table to what every image counts for it, and how sums of that become its value."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from panolib.lab.records import Record
from panolib.labels import LABEL_SETS, LabelSet
from panolib.metrics import from_counts
from panolib.metrics.from_counts import class_mean
from panolib.report.rows import NAMES

RECORDED = {shown: name for name, shown in NAMES.items()}
PIXELS = ("miou", "iou")
POOLED = {"threat_pooled": from_counts.pooled_ratio, "threat_false": from_counts.false_share}
OBJECTS = (*POOLED, "threat_class_mean", "threat_score")
SEGMENTS = ("sq_rq", "pq_plus", "pq", "sq_matched", "sq", "rq")
METRIC = re.compile(rf"({'|'.join((*PIXELS, *OBJECTS, *SEGMENTS))})(?:_(\w+))?")


@dataclass(frozen=True)
class Counted:
    """What every image counts for a value, and how the value comes of the sums."""

    counts: np.ndarray  # int64 [n_images, n_classes, n_counts]
    score: Callable[[np.ndarray], np.ndarray]  # sums over images [..., n_classes, n_counts] to values [...]

    def value(self, times: np.ndarray) -> np.ndarray:
        """The value [...] where every image counts so many times, float [..., n_images]."""
        sums = times @ self.counts.reshape(len(self.counts), -1).astype(np.float64)
        return self.score(sums.reshape(*times.shape[:-1], *self.counts.shape[1:]))


def counted(record: Record, at: Mapping[str, Any], metric: str, subset: str) -> Counted | None:
    """The counts of one row of `rows.rows`, in the record of its run; None where there are none.

    `at` has the columns that tell scores of one run apart. A metric says its classes after a "_", or `subset`
    is one class.
    """
    if metric == "precision_90":  # of clusters that a filter keeps, at this recall
        counts = record.counts.get(f"objectness.{at['data_set']}.{at['ranked_by']}")
        return None if counts is None else Counted(counts, lambda sums: 1 - from_counts.false_share(sums))
    found = METRIC.fullmatch(metric)
    if not record.counts or found is None:
        return None
    kind, classes = found.groups()
    if kind in PIXELS:
        return _pixels(record, at, classes, subset)
    label_set = LABEL_SETS[record.run.spec.label_set]
    if kind in OBJECTS:
        counts = record.counts.get(_name(record, at, "threat", "masks"))
        known, score = label_set.things, from_counts.overlap_ratio
        if kind in POOLED:
            return None if counts is None else Counted(counts, POOLED[kind])
        wanted = label_set.things if kind == "threat_class_mean" else (subset,)
    else:
        counts = record.counts.get(_name(record, at, "panoptic", "leftover"))
        known, wanted = label_set.classes, label_set.subsets.get(classes, ()) if classes else (subset,)
        score = _segment_score(kind, label_set, wanted)
    return _of_classes(counts, known, wanted, score)


def _pixels(record: Record, at: Mapping[str, Any], subset: str | None, name: str) -> Counted | None:
    """Mean IoU of a subset, or IoU of a class, which counts false pixels on all classes that are scored."""
    part, known_sets = _part(record, at), LABEL_SETS.values()
    pixels = {s: record.counts.get(f"{part}semantic_{s}") for known in known_sets for s in known.subsets}
    matching = [known for known in known_sets if all(pixels[s] is not None for s in known.subsets)]
    (labels,) = matching or [None]
    if labels is None:
        return None
    if subset is None:
        subset = next(s for s, classes in labels.subsets.items() if len(classes) == labels.n_classes)
        wanted = (name,)
    else:
        wanted = labels.subsets.get(subset, ())
    known = labels.subsets.get(subset, ())
    return _of_classes(pixels.get(subset), known, wanted, from_counts.overlap_ratio)


def _segment_score(kind: str, label_set: LabelSet, classes: tuple[str, ...]) -> Callable:
    """Counts of classes to their values; the product of means for "sq_rq"."""
    if kind == "pq_plus":
        return functools.partial(from_counts.pq_plus, is_thing=np.isin(classes, label_set.things))
    if kind == "sq_rq":
        factors = (from_counts.sq, from_counts.rq)
        return lambda counts: np.prod([class_mean(score(counts)) for score in factors], axis=0)[..., None]
    return getattr(from_counts, kind)


def _of_classes(
    counts: np.ndarray | None, known: tuple[str, ...], wanted: tuple[str, ...], score: Callable
) -> Counted | None:
    """The mean score of some classes; None where there are no counts or not these classes."""
    if counts is None or not wanted or not set(wanted) <= set(known):
        return None
    index = [known.index(name) for name in wanted]
    return Counted(counts[:, index], lambda sums: class_mean(score(sums)))


def _name(record: Record, at: Mapping[str, Any], family: str, last: str) -> str:
    """Name of the counts of segments or objects of a row."""
    parts = [family, *(at.get(column) for column in ("instances", last))]  # nan: no such column
    return _part(record, at) + ".".join(RECORDED.get(part, part) for part in parts if isinstance(part, str))


def _part(record: Record, at: Mapping[str, Any]) -> str:
    """What stands before the names of counts of one part of a run."""
    if record.run.kind == "gap":
        return f"{at['style']}."
    return f"{at['data_set']}.{at['threshold']:g}." if record.run.kind == "detr_scores" else ""
