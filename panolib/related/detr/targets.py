"""From panoptic labels to what queries learn from, and from queries to a panoptic map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from panolib.inference.panoptic import merge_panoptic
from panolib.labels import LabelSet


def detr_target(panoptic_map: np.ndarray, segments_info: Sequence[dict]) -> dict[str, Tensor]:
    """Segments of one image as matcher and loss want them: "class_labels" int64 [T], "masks" float [T, H, W].

    Stuff and things alike are one mask in {0, 1}. Crowds are no targets; their pixels, like void, belong to
    no mask. A segment without a pixel is left out; T may be 0.
    """
    panoptic_map = torch.from_numpy(np.ascontiguousarray(panoptic_map, dtype=np.int64))
    objects = [segment for segment in segments_info if not segment.get("iscrowd", 0)]
    ids, classes = (
        torch.tensor([segment[key] for segment in objects], dtype=torch.int64)
        for key in ("id", "category_id")
    )
    masks = panoptic_map == ids[:, None, None]  # [T, H, W]
    present = masks.flatten(1).any(1)
    return {"class_labels": classes[present], "masks": masks[present].float()}


def panoptic_from_queries(
    logits: Tensor, masks: Tensor, label_set: LabelSet, *, threshold: float = 0.85, min_area: int = 4
) -> tuple[np.ndarray, list[dict]]:
    """Panoptic map of one image: every pixel goes to the surest mask among the queries that are kept.

    Kept are queries whose best class is an object with a score above the threshold. Queries of the same stuff
    class are one segment. A segment with at most `min_area` pixels is dropped, and its pixels go to the
    other queries, until there is no such segment. Without a kept query everything is void.

    Parameters
    ----------
    logits : float Tensor [Q, C + 1]
        Class scores; the last one is "no object".
    masks : float Tensor [Q, H, W]
        Mask logits at the size of the map.
    threshold : float
        In [0, 1).
    min_area : int
        Pixels.

    Returns
    -------
    panoptic_map, segments_info
        As of `inference.panoptic.merge_panoptic`.

    Raises
    ------
    ValueError
        If logits and masks are not of as many queries, or the classes not those of the label set.

    References
    ----------
    Carion et al. 2020, section 4.4 and PostProcessPanoptic of the reference code. There, queries that were
    merged into another one of their class leave the competition for pixels; here they do not.
    """
    if len(logits) != len(masks) or logits.shape[1] != label_set.n_classes + 1:
        raise ValueError(
            f"logits {list(logits.shape)} and masks {list(masks.shape)}; expected as many queries in both, "
            f"and {label_set.n_classes} classes and 'no object'"
        )
    scores, classes = logits.softmax(-1).max(-1)
    kept = torch.nonzero((classes < label_set.n_classes) & (scores > threshold))[:, 0]
    flat, classes = masks[kept].flatten(1), classes[kept].cpu().numpy()  # [K, H * W], [K]
    single, number = ~np.isin(classes, label_set.stuff_ids), np.arange(len(kept))
    segment_of = np.where(single, label_set.n_classes + number, classes)  # of a query: one of a stuff class
    alive = number
    while len(alive):
        winner = alive[flat[torch.from_numpy(alive).to(flat.device)].argmax(0).cpu().numpy()]  # [H * W]
        area = np.bincount(segment_of[winner], minlength=label_set.n_classes + len(kept))
        if not ((area > 0) & (area <= min_area)).any():
            break
        alive = alive[area[segment_of[alive]] > min_area]
    if not len(alive):
        return np.zeros(masks.shape[-2:], np.int32), []
    winner = winner.reshape(masks.shape[-2:])
    return merge_panoptic(classes[winner], np.where(single, number + 1, 0)[winner], label_set)
