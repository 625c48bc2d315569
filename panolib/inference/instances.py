"""From embeddings and a class map to instances: clustering inside the masks, and a morphological clean-up."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor

from panolib.clustering.in_masks import cluster_in_class_masks, cluster_unguided
from panolib.clustering.labels import relabel_consecutive
from panolib.data.images import resize_labels
from panolib.data.label_maps import as_labels, consecutive
from panolib.inference.exports import to_numpy
from panolib.inference.predict import Prediction
from panolib.labels import LabelSet


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

    The semantic map is brought to the embedding grid (nearest), clustered there, and the ids are brought back
    (nearest) and cut to the class mask, so that an instance never leaves its class.

    Parameters
    ----------
    embeddings : float Tensor [E, h, w]
    semantic_labels : integer Tensor or array [H, W]
        Train ids.
    probabilities : float Tensor or array [C, H, W], optional
        Semantic probabilities, for the confidence of an instance: their mean over its mask.
    thing_ids : sequence of int, optional
        Look for these classes only, none if it is empty (default: all things of the label set).
    guided : bool
        False: the semantic map only names clusters of all pixels (`in_masks.cluster_unguided`), and does not
        cut them.
    **options
        As in `in_masks.cluster_batch_in_class_masks`; sizes and rows are in pixels of the embedding grid.

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
    small = resize_labels(semantic, embeddings.shape[1:])
    options = {"connected": label_set.connected_things} | options
    cluster = cluster_in_class_masks if guided else cluster_unguided
    class_ids = label_set.thing_ids if thing_ids is None else thing_ids
    labels, rows = cluster(embeddings, small, class_ids, **options)

    category = torch.tensor([-1] + [row["category_id"] for row in rows], device=device)
    labels = resize_labels(labels, semantic.shape)
    if guided:
        labels = torch.where(category[labels] == semantic, labels, 0)
    area = torch.bincount(labels.flatten(), minlength=len(category))
    confidence = torch.ones(len(category))
    if probabilities is not None:
        probabilities = torch.as_tensor(probabilities, device=device)
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


def clean_instances(instance_labels: Tensor | np.ndarray, *, kernel: int = 3) -> Tensor | np.ndarray:
    """Morphological opening, then closing, of every instance; ids stay, some may vanish.

    Opening removes specks and thin bridges, closing fills gaps, and enclosed holes are filled. What grows
    takes only pixels that belonged to no instance, so instances never overlap. The result is of the kind of
    the instance map, integer Tensor or array [H, W]; `kernel` is the side of the square structuring element
    in pixels, odd, else a ValueError. Thesis chapter 11, table 3; kernel and order are choices of ours.
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
        shape = scipy.ndimage.binary_fill_holes(shape)
        cleaned[window][(shape > 0) & ((before == k) | (before == 0))] = ids[k]
    if torch.is_tensor(instance_labels):
        return torch.as_tensor(cleaned, device=instance_labels.device)
    return cleaned


def found_instances(
    prediction: Prediction, semantic: Tensor, label_set: LabelSet, *, opening: int, **options
) -> tuple[Tensor, list[dict]]:
    """`predict_instances` of one image, with confidences, then `clean_instances` with the kernel `opening`.

    `semantic` [H, W] are the class masks in which instances are looked for, predicted or true. With `opening`
    0 nothing is cleaned; rows of instances that vanish are left out.
    """
    instances, table = predict_instances(
        prediction.embeddings, semantic, label_set, probabilities=prediction.probabilities, **options
    )
    return opened(instances, table, opening)


def opened(instances: Tensor, table: list[dict], kernel: int) -> tuple[Tensor, list[dict]]:
    """`clean_instances` (kernel 0: none), and the rows of the instances that are left."""
    if kernel == 0:
        return instances, table
    instances = clean_instances(instances, kernel=kernel)
    return instances, present_rows(instances, table)


def present_rows(instances: Tensor, table: Sequence[dict]) -> list[dict]:
    """Rows whose id is in the map."""
    ids = set(instances.unique().tolist())
    return [row for row in table if row["id"] in ids]
