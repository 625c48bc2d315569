"""Instances that guide the semantic branch: painted on the pseudo-labels of self-training (thesis 8.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from panolib.clustering.labels import relabel_consecutive
from panolib.clustering.votes import paint_instances, vote_categories
from panolib.data.views import PADDING_VALUES, Views
from panolib.data.warping import warp_labels
from panolib.labels import VOID


def crop_maps(maps: Mapping[str, Tensor], crops: Views, size: tuple[int, int]) -> dict[str, Tensor]:
    """Label maps [B, H, W] cropped, zoomed and flipped exactly like their images: int64 [B * L, h, w].

    `size` is that of the pseudo-labels (height, width); the nearest label at each pixel's centre is taken.
    """
    return {
        name: warp_labels(
            values.repeat_interleave(crops.n_views, 0), crops.sampling, fill=PADDING_VALUES[name], size=size
        )
        for name, values in maps.items()
    }


def paint_pseudo_labels(
    pseudo_labels: Tensor,
    confidence: Tensor,
    fused: Tensor,
    valid: Tensor,
    maps: Mapping[str, Tensor],
    *,
    n_views: int,
    thing_ids: Sequence[int],
    share: float,
) -> tuple[Tensor, Tensor]:
    """Paint instances on the pseudo-labels of all crops.

    An instance has one class in all crops of its image: with true labels its own, at confidence 1;
    otherwise the thing class that most of its pixels have in the fused prediction of the teacher, below the
    threshold or not, and the teacher's confidence stays. An instance without a thing pixel is not painted.

    Parameters
    ----------
    pseudo_labels, confidence : Tensor [B * L, h, w]
        Train ids or `VOID` (int64), and a float for each.
    fused, valid : Tensor [B * L, C, h, w] and [B * L, h, w]
        Probabilities of the teacher, as of `fuse_views`.
    maps : mapping of name to int64 Tensor [B * L, h, w]
        From `crop_maps`: "instance", and with true labels "semantic".
    n_views : int
        L.
    share : float
        Of the instances of every image; each is drawn by itself from torch's global generator.

    Returns
    -------
    pseudo_labels, confidence : Tensor [B * L, h, w]
        New tensors; unchanged outside the painted instances.

    References
    ----------
    Thesis 8.5: a random 30 % of the true instances (an upper bound), or all predicted ones.
    """
    true = "semantic" in maps
    semantic = maps["semantic"] if true else torch.where(valid, fused.argmax(1), VOID)
    labels, sure = [], []
    for start in range(0, len(pseudo_labels), n_views):
        views = slice(start, start + n_views)  # of one image
        instances = relabel_consecutive(maps["instance"][views])
        categories = vote_categories(semantic[views], instances, thing_ids)
        chosen = (torch.rand(len(categories)) < share).to(categories.device)
        painted, inside = paint_instances(
            pseudo_labels[views], instances, torch.where(chosen, categories, -1)
        )
        labels.append(painted)
        sure.append(torch.where(inside, 1.0, confidence[views]) if true else confidence[views])
    return torch.cat(labels), torch.cat(sure)
