"""What instances tell a semantic map: the class that most of their pixels have, painted over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panolib.data.label_maps import as_ids, as_labels, consecutive
from panolib.labels import VOID

MAX_TABLE = 2**24  # rows of a table by instance id; COCO's ids end there


def vote_categories(semantic_labels: Tensor, instance_labels: Tensor, thing_ids: Sequence[int]) -> Tensor:
    """Most frequent thing class inside each instance (thesis ch. 8, the "binning vote").

    Takes `semantic_labels` integer [H, W], train ids below 256; `instance_labels` integer [H, W], 0 or ids
    below 2**24 (`labels.relabel_consecutive` makes larger ones small), else a ValueError; and the classes
    that may win, of two with equal counts the lower id. Returns int64 [largest id + 1], the train id per
    instance id; -1 for id 0 and for instances without any thing pixel.
    """
    semantic_labels = as_labels(semantic_labels, "semantic_labels")
    instance_labels = as_ids(instance_labels, "instance_labels", highest=MAX_TABLE - 1)
    inside = instance_labels > 0
    instances, ids = consecutive(instance_labels[inside])
    pairs = instances * 256 + as_ids(semantic_labels[inside], "semantic_labels", highest=VOID)
    counts = torch.bincount(pairs, minlength=len(ids) * 256).view(len(ids), 256)
    table = torch.full((int(ids[-1]) + 1,), -1, device=counts.device)
    table[ids] = most_frequent(counts, thing_ids)
    return table


def most_frequent(counts: Tensor, thing_ids: Sequence[int]) -> Tensor:
    """int64 [K]: of these classes that with the highest count in each row of `counts` [K, C]; -1 for none."""
    things = torch.tensor(sorted(thing_ids), dtype=torch.int64, device=counts.device)
    if len(things) == 0:
        return torch.full((len(counts),), -1, device=counts.device)
    most, winner = counts[:, things].max(dim=1)
    return torch.where(most > 0, things[winner], -1)


def vote_semantic_class(semantic_labels: Tensor, instance_labels: Tensor, thing_ids: Sequence[int]) -> Tensor:
    """Give all pixels of an instance its most frequent thing class.

    Repairs objects that the semantic map splits into several classes (buses and trains, thesis ch. 8). Pixels
    outside instances, and instances without any thing pixel, keep their label. Arguments as of
    `vote_categories`, on one grid, else a ValueError, with 255 for void. Returns [H, W] of the dtype of
    `semantic_labels`, which stays unchanged; for an array that of `label_maps.as_labels`.
    """
    if semantic_labels.shape != instance_labels.shape:
        raise ValueError(
            f"semantic_labels are {list(semantic_labels.shape)} and "
            f"instance_labels {list(instance_labels.shape)}; expected one grid"
        )
    if not torch.is_tensor(semantic_labels):
        semantic_labels = as_labels(semantic_labels, "semantic_labels")
    instance_labels, _ = consecutive(instance_labels, "instance_labels")
    voted = vote_categories(semantic_labels, instance_labels, thing_ids)[instance_labels]
    return torch.where(voted >= 0, voted, semantic_labels.long()).to(semantic_labels.dtype)


def paint_instances(
    pseudo_labels: Tensor, instance_labels: Tensor, categories: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the class of every instance over all its pixels, void ones too (thesis 8.5).

    `pseudo_labels` (train ids, 255 void) and `instance_labels` are integer [..., H, W]; `categories` int64
    [largest id + 1], as from `vote_categories`, has the train id per instance id, -1 for those that are not
    painted. Returns the painted labels, a new int64 tensor, and bool [..., H, W], where they are painted.
    Raises ValueError for an instance that `categories` does not have.
    """
    category = categories[as_ids(instance_labels, "instance_labels", highest=len(categories) - 1)]
    inside = category >= 0
    return torch.where(inside, category, as_labels(pseudo_labels, "pseudo_labels")), inside
