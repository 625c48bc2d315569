"""What happens to clusters once they are found: join, split and drop them, number them anew."""

from __future__ import annotations

import numpy as np
import torch
from skimage import measure
from torch import Tensor

from panolib.clustering.distances import (
    BallSums,
    centred,
    check_bandwidth,
    check_delta_dist,
    check_finite,
    exact_products,
    segment_mean,
)
from panolib.data.label_maps import as_ids, as_labels, consecutive

CLUSTERS_AT_ONCE = 32  # whose pixels and anchors are compared at once: memory grows with pixels times this


@torch.no_grad()
def merge_close_clusters(points: Tensor, labels: Tensor, delta_dist: float | None) -> Tensor:
    """Join clusters whose means are close, larger clusters first.

    Every cluster, in order of size, joins the nearest anchor if that is nearer than `delta_dist`, or else
    becomes an anchor. Anchors do not move. Label 0, noise, takes no part, however many points it has.

    `points` float [N, E] and `delta_dist` are in embedding units; a distance of None or 0 joins none, one
    that is negative or not finite is a ValueError. Takes labels, integer [N]; returns int64 [N], 1 .. K in
    the order of the anchors. Wolny et al. 2022, evaluation code, without its assumption that the background
    is largest.
    """
    labels = relabel_consecutive(labels)
    if delta_dist is not None:
        check_delta_dist(delta_dist)
    n_clusters = int(labels.max()) if len(labels) else 0
    if n_clusters == 0 or delta_dist is None:
        return labels
    means = segment_mean(points.double(), labels, n_clusters + 1)[1:].cpu().numpy()
    sizes = torch.bincount(labels, minlength=n_clusters + 1)[1:].cpu().numpy()
    anchors = np.empty_like(means)
    n_anchors, new_label = 0, np.zeros(n_clusters + 1, np.int64)
    for k in np.argsort(-sizes, kind="stable"):
        distance = np.linalg.norm(anchors[:n_anchors] - means[k], axis=1)
        if n_anchors and distance.min() < delta_dist:
            new_label[k + 1] = distance.argmin() + 1
        else:
            anchors[n_anchors] = means[k]
            n_anchors += 1
            new_label[k + 1] = n_anchors
    return torch.as_tensor(new_label, device=labels.device)[labels]


def relabel_consecutive(labels: Tensor) -> Tensor:
    """int64 ids 1 .. K in the order of the old ones, any shape; 0 stays 0, by value (`consecutive`)."""
    return consecutive(labels)[0]


def drop_small_clusters(labels: Tensor, min_size: int) -> Tensor:
    """Set clusters of fewer than `min_size` pixels to 0; the others become 1 .. K. Any shape."""
    labels = relabel_consecutive(labels)
    keep = torch.bincount(labels.flatten(), minlength=1) >= min_size
    keep[0] = False
    number = keep.cumsum(0).mul_(keep)
    return number.index_select(0, labels.flatten()).view_as(labels)


def split_disconnected(labels: Tensor) -> Tensor:
    """Make every 8-connected region of a cluster a cluster of its own: 1 .. R, int64 [H, W], 0 where 0 was.

    Far apart, two objects may share one embedding: a convolution cannot count. Where the objects of a label
    set are connected (`LabelSet.connected_things`), this tells them apart.
    """
    labels = as_ids(labels, "labels")
    regions = measure.label(labels.cpu().numpy(), background=0, connectivity=2)
    return torch.as_tensor(regions, dtype=torch.int64, device=labels.device)


@torch.no_grad()
def stability_filter(
    labels: Tensor,
    second_embeddings: Tensor,
    mask: Tensor,
    *,
    bandwidth: float,
    n_anchors: int = 100,
    min_median_iou: float = 0.6,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Discard clusters that another embedding of the same pixels would cut out differently.

    Random pixels of a cluster serve as anchors; the pixels of `mask` whose second embedding is nearer than
    `bandwidth` to that of an anchor form its mask. The stability of a cluster is the median IoU of these
    masks with it. In self-training clusters come from the momentum network and the second embedding is the
    student's; Wolny et al. 2022 (consistency clustering; thesis ch. 7, "filtering step") have it the other
    way round.

    Parameters
    ----------
    labels : integer Tensor [H, W]
        Clusters, found in the first embedding; 0 outside.
    second_embeddings : float Tensor [E, H, W]
        In embedding units, as `bandwidth`.
    mask : bool Tensor [H, W]
        Pixels that were clustered.
    n_anchors : int
        Anchors per cluster, drawn with replacement by `generator` (on the device of `labels`) or globally.
    min_median_iou : float
        Clusters below this are discarded.

    Returns the surviving clusters, 1 .. K, int64 [H, W], and the stability of each, float [K]. Raises
    ValueError for a bandwidth that is not positive, no anchor, or embeddings in the mask that are not finite.
    """
    check_bandwidth(bandwidth)
    if n_anchors < 1:
        raise ValueError(f"n_anchors is {n_anchors}; expected at least 1")
    labels = as_labels(labels, "labels").long()
    mask = mask.bool() | (labels != 0)
    inside = relabel_consecutive(labels[mask])  # [N]
    n_clusters = int(inside.max()) if len(inside) else 0
    if n_clusters == 0:
        return torch.zeros_like(labels), second_embeddings.new_zeros(0)
    draw = torch.rand(n_clusters, n_anchors, generator=generator, device=labels.device)
    with exact_products(labels.device):
        points = second_embeddings.movedim(0, -1)[mask]  # [N, E]
        check_finite(points)
        points = centred(points, bandwidth)
        by_label = torch.argsort(inside, stable=True)
        sizes = torch.bincount(inside, minlength=n_clusters + 1)
        starts = sizes.cumsum(0) - sizes
        offset = (draw * sizes[1:, None]).long().minimum(sizes[1:, None] - 1)
        anchors = points[by_label[starts[1:, None] + offset]]  # [K, A, E]
        own, area = [], []  # of the mask of each anchor, [K, A] pixels: inside its cluster, and all
        for block in torch.arange(1, n_clusters + 1, device=labels.device).split(CLUSTERS_AT_ONCE):
            members = torch.cat([inside[:, None] == block, ~torch.isin(inside, block)[:, None]], 1).to(points)
            counts = BallSums(points, members, bandwidth)(anchors[block - 1].flatten(0, 1))
            counts = counts.view(len(block), n_anchors, len(block) + 1)
            own.append(counts[:, :, :-1].diagonal(dim1=0, dim2=2).T)
            area.append(counts.sum(2))
    own, area = torch.cat(own), torch.cat(area)
    iou = own / (area + sizes[1:, None] - own)
    stability = iou.quantile(0.5, dim=1)
    stable = stability >= min_median_iou
    filtered = labels.new_zeros(labels.shape)
    keep = torch.cat([stable.new_zeros(1), stable]).long()
    filtered[mask] = (keep * keep.cumsum(0))[inside]
    return filtered, stability[stable].float()
