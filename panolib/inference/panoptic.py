"""From network outputs to panoptic maps; `exports` writes them to the files that official tools score.

Functions take arrays or tensors. A panoptic result is an id map (0 = void) and a list of segments
``{id, category_id (train id), isthing, area, iscrowd}``, whatever the label set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2
import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panolib.clustering.in_masks import cluster_in_class_masks, cluster_unguided
from panolib.clustering.labels import relabel_consecutive
from panolib.clustering.votes import vote_categories
from panolib.data.label_maps import as_labels, consecutive
from panolib.inference.exports import (
    to_numpy,
    write_cityscapes_instances,
    write_cityscapes_semantic,
    write_coco_panoptic,
    write_coco_panoptic_json,
)
from panolib.labels import VOID, LabelSet
from panolib.models.geometry import CELL_CENTRES, Placement, placement_of, upsample_to

if TYPE_CHECKING:
    from panolib.data.samples import Sample

__all__ = [
    "clean_instances", "evaluating", "merge_panoptic", "panoptic_truth", "predict_instances",
    "predict_semantic", "resize_nearest", "semantic_from_logits", "write_cityscapes_instances",
    "write_cityscapes_semantic", "write_coco_panoptic", "write_coco_panoptic_json",
]  # fmt: skip

MERGE_RULES = ("void", "nearest")


# ---- predictions ------------------------------------------------------------------------------------------


def semantic_from_logits(
    logits: Tensor,
    size: tuple[int, int],
    placement: Placement = CELL_CENTRES,
    *,
    image_size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Class map at full size from logits at the head's stride.

    Parameters
    ----------
    logits : float Tensor [B, C, h, w]
    size : (int, int)
        Height and width of the result; logits are resized bilinearly, then decided.
    placement : Placement
        Where the cells of the logits sit: `geometry.placement_of` the network.
    image_size : (int, int), optional
        Height and width of the image that the network saw; `size` by default.

    Returns
    -------
    semantic_labels : uint8 Tensor [B, H, W]
    probabilities : float32 Tensor [B, C, H, W]

    Raises
    ------
    ValueError
        For more than 255 classes.
    """
    if logits.shape[1] > VOID:
        raise ValueError(f"logits have {logits.shape[1]} classes, expected at most {VOID}: labels are uint8")
    logits = upsample_to(logits.float(), size, placement, image_size=image_size)
    return logits.argmax(1).to(torch.uint8), logits.softmax(1)


def predict_semantic(model: nn.Module, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`semantic_from_logits` of a model in evaluation mode; leaves every weight, buffer and mode as it was.

    Parameters
    ----------
    model : Module
        Maps [B, 3, H, W] to logits [B, C, h, w].
    image : float Tensor [B, 3, H, W]
        Normalised, on the model's device.
    size : (int, int)
        Height and width of the result.
    """
    with evaluating(model), torch.inference_mode():
        return semantic_from_logits(model(image), size, placement_of(model), image_size=image.shape[-2:])


def to_input_width(image: Tensor, width: int | None) -> Tensor:
    """Images [B, C, H, W] at the width (pixels) that a network sees, aspect ratio kept; None: unchanged."""
    if width is None or image.shape[-1] == width:
        return image
    height = max(1, round(image.shape[-2] * width / image.shape[-1]))
    return F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def embed_images(model: nn.Module, image: Tensor) -> Tensor:
    """Embeddings float32 [B, E, h, w] of whole normalised images [B, 3, H, W] at the network's scale.

    A network with an `input_width` sees them resized to it: objects then have the size that it was trained
    on. `predict_instances` brings instances back to the size of the semantic map.
    """
    return model(to_input_width(image, getattr(model, "input_width", None))).float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is back in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def predict_instances(
    embeddings: Tensor,
    semantic_labels: Tensor | np.ndarray,
    label_set: LabelSet,
    *,
    probabilities: Tensor | np.ndarray | None = None,
    thing_ids: Sequence[int] | None = None,
    guided: bool = True,
    **options,
) -> tuple[Tensor, list[dict]]:
    """Instances inside the predicted class masks, at the size of the semantic map.

    The semantic map is brought to the embedding grid (nearest), clustered there, and the ids are brought
    back (nearest) and cut to the class mask, so that an instance never leaves its class.

    Parameters
    ----------
    embeddings : float Tensor [E, h, w]
    semantic_labels : integer Tensor or array [H, W]
        Train ids.
    label_set : LabelSet
    probabilities : float Tensor or array [C, H, W], optional
        Semantic probabilities, for the confidence of an instance: their mean over its mask.
    thing_ids : sequence of int, optional
        Look for these classes only, none if it is empty (default: all things of the label set).
    guided : bool
        False: the semantic map only names clusters of all pixels (`in_masks.cluster_unguided`), and does not
        cut them.
    **options
        As in `in_masks.cluster_in_class_masks`; sizes and rows are in pixels of the embedding grid.

    Returns
    -------
    instance_labels : int64 Tensor [H, W]
        0 or 1 .. K, on the device of the embeddings.
    table : list of dict
        `id`, `category_id`, `area` (pixels at full size), `stability`, `confidence` (1 without
        probabilities).
    """
    device = embeddings.device
    semantic = as_labels(semantic_labels, "semantic_labels", device=device).long()
    small = resize_nearest(semantic, embeddings.shape[1:])
    options = {"connected": label_set.connected_things} | options
    cluster = cluster_in_class_masks if guided else cluster_unguided
    class_ids = label_set.thing_ids if thing_ids is None else thing_ids
    labels, rows = cluster(embeddings, small, class_ids, **options)

    category = torch.tensor([-1] + [row["category_id"] for row in rows], device=device)
    labels = resize_nearest(labels, semantic.shape)
    if guided:
        labels = torch.where(category[labels] == semantic, labels, 0)
    area = torch.bincount(labels.flatten(), minlength=len(category))
    if probabilities is None:
        confidence = torch.ones(len(category))
    else:
        if not torch.is_tensor(probabilities):
            probabilities = torch.as_tensor(np.ascontiguousarray(probabilities))  # torch cannot flip
        probabilities = probabilities.to(device)
        if probabilities.shape[1:] != semantic.shape:
            raise ValueError(
                f"probabilities are {list(probabilities.shape)} and semantic_labels {list(semantic.shape)}; "
                "expected [C, H, W] and [H, W]"
            )
        y, x = torch.nonzero(labels, as_tuple=True)
        ids = labels[y, x]
        own = probabilities[category[ids], y, x].double()
        confidence = own.new_zeros(len(category)).index_add_(0, ids, own) / area.clamp(min=1)
    table = [
        row | {"area": n, "confidence": score}
        for row, n, score in zip(rows, area[1:].tolist(), confidence[1:].tolist())
        if n > 0
    ]
    return relabel_consecutive(labels), [row | {"id": k} for k, row in enumerate(table, start=1)]


def clean_instances(
    instance_labels: Tensor | np.ndarray, *, kernel: int = 3, fill_holes: bool = True
) -> Tensor | np.ndarray:
    """Morphological opening, then closing, of every instance; ids stay, some may vanish.

    Opening removes specks and thin bridges, closing fills gaps. What grows takes only pixels that belonged
    to no instance, so instances never overlap.

    Parameters
    ----------
    instance_labels : integer Tensor or array [H, W]
        0 or ids >= 1.
    kernel : int
        Side of the square structuring element in pixels, odd.
    fill_holes : bool
        Also fill enclosed holes.

    Returns
    -------
    Tensor or array [H, W]
        As the input, which stays unchanged.

    Raises
    ------
    ValueError
        For an even kernel, or an id that is negative or not an integer.

    References
    ----------
    Thesis chapter 11, table 3; kernel and order are choices of ours.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel}; expected an odd number of pixels")
    given = to_numpy(instance_labels)
    labels, ids = (part.cpu().numpy() for part in consecutive(instance_labels, "instance_labels"))
    element = np.ones((kernel, kernel), np.uint8)
    cleaned = np.zeros(given.shape, given.dtype)
    boxes = scipy.ndimage.find_objects(labels.astype(np.int32)) if labels.size else []
    height, width = labels.shape
    for k, box in enumerate(boxes, start=1):
        rows, columns = box
        window = (
            slice(max(rows.start - kernel, 0), min(rows.stop + kernel, height)),
            slice(max(columns.start - kernel, 0), min(columns.stop + kernel, width)),
        )
        before = labels[window]
        shape = (before == k).astype(np.uint8)
        shape = cv2.morphologyEx(shape, cv2.MORPH_OPEN, element)
        shape = np.pad(shape, kernel)  # room to grow and shrink back beyond the image border
        shape = cv2.morphologyEx(shape, cv2.MORPH_CLOSE, element)[kernel:-kernel, kernel:-kernel]
        if fill_holes:
            shape = scipy.ndimage.binary_fill_holes(shape)
        cleaned[window][(shape > 0) & ((before == k) | (before == 0))] = ids[k]
    if torch.is_tensor(instance_labels):
        return torch.as_tensor(cleaned, device=instance_labels.device)
    return cleaned


# ---- panoptic maps ----------------------------------------------------------------------------------------


def merge_panoptic(
    semantic_labels: Tensor | np.ndarray,
    instance_labels: Tensor | np.ndarray,
    label_set: LabelSet,
    *,
    rule: str = "void",
    min_stuff_area: int = 0,
) -> tuple[np.ndarray, list[dict]]:
    """One panoptic map from a semantic and an instance map.

    Stuff gives one segment per class. An instance is a segment of the most frequent thing class inside it,
    also where the semantic map says stuff; an instance without any thing pixel does not count. Thing pixels
    outside all instances become void, or with ``rule="nearest"`` join the nearest instance of their class.

    Parameters
    ----------
    semantic_labels : integer Tensor or array [H, W]
        Train ids, 255 void.
    instance_labels : integer Tensor or array [H, W]
        0 or ids >= 1.
    label_set : LabelSet
    rule : {"void", "nearest"}
    min_stuff_area : int
        Stuff segments with fewer pixels become void.

    Returns
    -------
    panoptic_map : int32 array [H, W]
        0 = void, else the id of a segment, 1 .. S.
    segments_info : list of dict
        `id`, `category_id` (train id), `isthing`, `area` (pixels), `iscrowd` (0).

    Raises
    ------
    ValueError
        For an unknown rule, different sizes, a train id that the label set does not have, or an instance id
        that is negative or not an integer.

    References
    ----------
    Kirillov et al. 2019; the thesis (chapter 12) does not state its rule.
    """
    if rule not in MERGE_RULES:
        raise ValueError(f"rule is {rule!r}; expected one of {list(MERGE_RULES)}")
    semantic, instances, categories = _named_instances(semantic_labels, instance_labels, label_set)
    if rule == "nearest":
        instances = _join_nearest(semantic, instances, categories, label_set.thing_ids)
    keys = _segment_keys(semantic, instances, label_set)
    dropped = np.bincount(keys.ravel(), minlength=label_set.n_classes + 1)[: label_set.n_classes + 1]
    dropped = dropped < min_stuff_area
    dropped[np.array(label_set.thing_ids, int) + 1] = True
    table = np.arange(label_set.n_classes + len(categories))
    table[: len(dropped)][dropped] = 0
    return _number_segments(table[keys], categories, label_set)


def panoptic_truth(sample: Sample, label_set: LabelSet) -> tuple[np.ndarray, list[dict]]:
    """The panoptic map of a labelled sample, in the form of `merge_panoptic`.

    Thing pixels without an instance form one segment per class with ``iscrowd = 1``: groups, which can
    neither be matched nor missed.

    Parameters
    ----------
    sample : Sample
        With semantic and instance labels.
    label_set : LabelSet

    Raises
    ------
    ValueError
        If the sample has no labels, or a train id that the label set does not have.
    """
    if sample.semantic is None or sample.instance is None:
        raise ValueError(f"sample {sample.id} lacks semantic or instance labels; expected both")
    is_thing = np.isin(sample.semantic, label_set.thing_ids)
    single = is_thing if sample.crowd is None else is_thing & ~sample.crowd
    semantic, instances, categories = _named_instances(
        sample.semantic, np.where(single, sample.instance, 0), label_set
    )
    return _number_segments(_segment_keys(semantic, instances, label_set), categories, label_set)


def _named_instances(semantic_labels, instance_labels, label_set):
    """Semantic map, instance map with ids 1 .. K, and train id per instance (row 0 unused), as arrays."""
    semantic = as_labels(semantic_labels, "semantic map").cpu().long().numpy()
    instances = as_labels(instance_labels, "instance map").cpu()
    if semantic.shape != tuple(instances.shape):
        raise ValueError(
            f"semantic map is {list(semantic.shape)}, instance map {list(instances.shape)}; "
            "expected one size"
        )
    known = (semantic < label_set.n_classes) & (semantic >= 0) | (semantic == VOID)
    if not known.all():
        raise ValueError(
            f"semantic map holds train id {semantic[~known][0]}; {label_set.name} has "
            f"0 .. {label_set.n_classes - 1} and void {VOID}"
        )
    instances, _ = consecutive(instances, "instance map")
    categories = vote_categories(torch.from_numpy(semantic), instances, label_set.thing_ids)
    named = categories >= 0
    instances = torch.where(named[instances], instances, 0)
    instances = relabel_consecutive(instances)
    return semantic, instances.numpy(), np.concatenate([[-1], categories[named].numpy()])


def _segment_keys(semantic: np.ndarray, instances: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """int64 [H, W]: 0 void, 1 + train id for a pixel without instance, n_classes + k for instance k."""
    by_class = np.where(semantic == VOID, 0, semantic + 1)
    return np.where(instances > 0, label_set.n_classes + instances, by_class)


def _number_segments(
    keys: np.ndarray, categories: np.ndarray, label_set: LabelSet
) -> tuple[np.ndarray, list[dict]]:
    """Panoptic map with consecutive ids and its segments from a map of segment keys."""
    n_classes = label_set.n_classes
    area = np.bincount(keys.ravel(), minlength=n_classes + len(categories))
    present = np.flatnonzero(area[1:]) + 1
    table = np.zeros(len(area), np.int32)
    table[present] = np.arange(1, len(present) + 1)
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
    return table[keys], segments


def _join_nearest(
    semantic: np.ndarray, instances: np.ndarray, categories: np.ndarray, thing_ids: Sequence[int]
) -> np.ndarray:
    """Instance map in which leftover pixels of a class belong to its nearest instance, if it has one."""
    joined = instances.copy()
    for class_id in thing_ids:
        left = (semantic == class_id) & (instances == 0)
        seeds = (categories == class_id)[instances]
        if not left.any() or not seeds.any():
            continue
        rows, columns = (np.flatnonzero((left | seeds).any(axis)) for axis in (1, 0))
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        nearest = scipy.ndimage.distance_transform_edt(
            ~seeds[window], return_distances=False, return_indices=True
        )
        part = left[window]
        joined[window][part] = instances[window][tuple(nearest[:, part])]
    return joined


# ---- label maps ------------------------------------------------------------------------------------------


def resize_nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """[..., H, W] labels at another size; every pixel takes the label under its centre."""
    if labels.shape[-2:] == torch.Size(size):
        return labels
    (height, width), (new_height, new_width) = labels.shape[-2:], size
    if height * width == 0 and new_height * new_width:
        raise ValueError(f"labels are {height} x {width}, expected a pixel to resize to {tuple(size)}")
    rows = (2 * torch.arange(new_height, device=labels.device) + 1) * height // (2 * new_height)
    columns = (2 * torch.arange(new_width, device=labels.device) + 1) * width // (2 * new_width)
    return labels[..., rows[:, None], columns]
