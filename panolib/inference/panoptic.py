"""One panoptic map from classes and instances: of the networks' predictions, and of the truth.

Functions take arrays or tensors. A panoptic result is an id map (0 = void) and a list of segments
``{id, category_id (train id), isthing, area, iscrowd}``, whatever the label set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor, nn

from panolib.clustering.votes import most_frequent
from panolib.data.images import empty, look_up, row_strips
from panolib.data.label_maps import as_labels, numbered
from panolib.data.samples import Sample
from panolib.inference.instances import found_instances
from panolib.inference.predict import Prediction, predict_image
from panolib.labels import VOID, LabelSet

MERGE_RULES = ("void", "nearest")
NEAR = 128  # pixels: objects that are left over in part are seldom farther away


@dataclass(frozen=True)
class PanopticPrediction:
    """All that two networks say about one image."""

    outputs: Prediction
    instances: tuple[Tensor, list[dict]]  # of `found_instances`
    panoptic: tuple[np.ndarray, list[dict]]  # of `merge_panoptic`


@torch.inference_mode()
def predict_panoptic(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    sample: Sample,
    label_set: LabelSet,
    *,
    rule: str = "void",
    opening: int = 0,
    **clustering,
) -> PanopticPrediction:
    """From an image to its panoptic map: networks, clustering inside the class masks, merge.

    The networks are in evaluation mode from here on; labels of the sample are not looked at. `opening` is the
    kernel of the clean-up of instances (pixels, 0 for none), `clustering` goes to `predict_instances`.
    """
    outputs = predict_image(semantic_model, instance_model, sample)
    instances = found_instances(outputs, outputs.semantic, label_set, opening=opening, **clustering)
    return PanopticPrediction(
        outputs, instances, merge_panoptic(outputs.semantic, instances[0], label_set, rule=rule)
    )


def merge_panoptic(
    semantic_labels: Tensor | np.ndarray,
    instance_labels: Tensor | np.ndarray,
    label_set: LabelSet,
    *,
    rule: str = "void",
) -> tuple[np.ndarray, list[dict]]:
    """One panoptic map from a semantic and an instance map.

    Stuff gives one segment per class. An instance is a segment of the most frequent thing class inside it,
    also where the semantic map says stuff; an instance without any thing pixel does not count. Thing pixels
    outside all instances become void, or with ``rule="nearest"`` join the nearest instance of their class.

    Takes train ids, 255 void, and 0 or ids >= 1, integer [H, W]. Returns an int32 array [H, W], 0 = void,
    else the id of a segment, 1 .. S, and a list of these: `id`, `category_id` (train id), `isthing`, `area`
    (pixels), `iscrowd` (0). Raises ValueError for an unknown rule, different sizes, an unknown train id and a
    negative instance id. Kirillov et al. 2019; the thesis (chapter 12) does not state its rule.
    """
    if rule not in MERGE_RULES:
        raise ValueError(f"rule is {rule!r}; expected one of {list(MERGE_RULES)}")
    semantic, instances, categories = _named_instances(semantic_labels, instance_labels, label_set)
    if rule == "nearest":
        instances = _join_nearest(semantic, instances, categories, label_set.thing_ids)
    return _number_segments(semantic, instances, categories, label_set, leftover=False)


def panoptic_truth(sample: Sample, label_set: LabelSet) -> tuple[np.ndarray, list[dict]]:
    """The panoptic map of a labelled sample, in the form of `merge_panoptic`.

    Thing pixels without an instance form one segment per class with ``iscrowd = 1``: groups, which can
    neither be matched nor missed. Raises ValueError for a sample without labels, or with an unknown train id.
    """
    if sample.semantic is None or sample.instance is None:
        raise ValueError(f"sample {sample.id} lacks semantic or instance labels; expected both")
    is_thing = np.isin(sample.semantic, label_set.thing_ids)
    single = is_thing if sample.crowd is None else is_thing & ~sample.crowd
    semantic, instances, categories = _named_instances(
        sample.semantic, np.where(single, sample.instance, 0), label_set
    )
    return _number_segments(semantic, instances, categories, label_set, leftover=True)


def _named_instances(
    semantic_labels, instance_labels, label_set: LabelSet
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Semantic map, int32 instances 1 .. K, and train id per instance (row 0 unused), as arrays."""
    semantic = as_labels(semantic_labels, "semantic map").cpu().numpy()
    instances = as_labels(instance_labels, "instance map").cpu()
    if semantic.shape != tuple(instances.shape):
        found = f"semantic map is {list(semantic.shape)}, instance map {list(instances.shape)}"
        raise ValueError(f"{found}; expected one size")
    instances, n_instances = numbered(instances, "instance map")
    n_columns = label_set.n_classes + 1  # the last one is void
    counts = np.zeros((n_instances + 1) * n_columns, np.int64)
    for rows in row_strips(semantic.shape):
        part = semantic[rows].astype(np.int64)
        known = (part < label_set.n_classes) & (part >= 0) | (part == VOID)
        if not known.all():
            raise ValueError(
                f"semantic map holds train id {part[~known][0]}; {label_set.name} has "
                f"0 .. {label_set.n_classes - 1} and void {VOID}"
            )
        pairs = instances[rows] * np.int64(n_columns) + np.minimum(part, n_columns - 1)
        counts += np.bincount(pairs.ravel(), minlength=len(counts))
    votes = torch.from_numpy(counts.reshape(-1, n_columns)[1:])
    categories = np.append(-1, most_frequent(votes, label_set.thing_ids).numpy())
    named = categories >= 0
    number = (named.cumsum() * named).astype(np.int32)
    return semantic, look_up(number, instances), np.append(-1, categories[named])


def _segment_keys(semantic: np.ndarray, instances: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """int64 [H, W]: 0 void, 1 + train id for a pixel without instance, n_classes + k for instance k."""
    by_class = np.where(semantic == VOID, 0, semantic.astype(np.int64) + 1)
    return np.where(instances > 0, label_set.n_classes + instances, by_class)


def _number_segments(
    semantic: np.ndarray,
    instances: np.ndarray,
    categories: np.ndarray,
    label_set: LabelSet,
    *,
    leftover: bool,
) -> tuple[np.ndarray, list[dict]]:
    """Panoptic map with consecutive ids, and its segments; `leftover`: also of things without an instance."""
    n_classes = label_set.n_classes
    area = np.zeros(n_classes + len(categories), np.int64)
    for rows in row_strips(semantic.shape):
        keys = _segment_keys(semantic[rows], instances[rows], label_set)
        area += np.bincount(keys.ravel(), minlength=len(area))
    if not leftover:
        area[np.array(label_set.thing_ids, int) + 1] = 0
    present = np.flatnonzero(area[1:]) + 1
    table = np.zeros(len(area), np.int32)
    table[present] = np.arange(1, len(present) + 1)
    panoptic = empty(semantic.shape, np.int32)
    for rows in row_strips(semantic.shape):
        panoptic[rows] = table[_segment_keys(semantic[rows], instances[rows], label_set)]
    category = np.concatenate([[-1], np.arange(n_classes), categories[1:]])
    things = set(label_set.thing_ids)
    segments = [
        {
            "id": k,
            "category_id": int(category[key]),
            "isthing": int(category[key]) in things,
            "area": int(area[key]),
            "iscrowd": int(key <= n_classes and int(category[key]) in things),
        }
        for k, key in enumerate(present.tolist(), start=1)
    ]
    return panoptic, segments


def _join_nearest(
    semantic: np.ndarray, instances: np.ndarray, categories: np.ndarray, thing_ids: Sequence[int]
) -> np.ndarray:
    """Instance map in which leftover pixels of a class belong to its nearest instance, if it has one."""
    joined, left = empty(instances.shape, instances.dtype), empty(instances.shape, bool)
    np.copyto(joined, instances)
    for class_id in thing_ids:
        seeds = look_up(categories == class_id, instances)
        for rows in row_strips(left.shape):
            left[rows] = (semantic[rows] == class_id) & (instances[rows] == 0)
        if not left.any() or not seeds.any():
            continue
        rows, columns = (np.flatnonzero(left.any(axis) | seeds.any(axis)) for axis in (1, 0))
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        here, seeds, found = left[window], seeds[window], joined[window]
        for rows in row_strips(here.shape):
            if here[rows].any():
                nearest = _nearest(seeds, here, rows)
                found[rows][here[rows]] = instances[window][nearest]
    return joined


def _nearest(seeds: np.ndarray, left: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the seed that is nearest to each pixel left over in some rows.

    Distances take 16 bytes a pixel, so they are looked for in as many rows around as it takes.
    """
    margin = NEAR
    while True:
        around = slice(max(rows.start - margin, 0), min(rows.stop + margin, len(seeds)))
        own = slice(rows.start - around.start, rows.stop - around.start)
        whole = around == slice(0, len(seeds))
        if whole or seeds[around].any():
            distance, place = scipy.ndimage.distance_transform_edt(~seeds[around], return_indices=True)
            if whole or distance[own][left[rows]].max() <= margin:
                row, column = place[:, own][:, left[rows]]
                return row + around.start, column
        margin *= 4
