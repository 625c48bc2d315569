"""What is known of a cluster before anyone says if it is an object: shape, embeddings, pixels.

The same function describes pseudo-labels while a network trains itself, detections of a trained one, and
masks that were spoilt on purpose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from skimage.measure import regionprops_table
from torch import Tensor, nn

from panolib.clustering.distances import segment_mean
from panolib.clustering.labels import relabel_consecutive, stability_filter
from panolib.clustering.votes import vote_categories
from panolib.labels import VOID

NAMES = ("log_area", "solidity", "extent", "border", "spread", "margin", "stability", "confidence")
N_ANCHORS = 30  # of the stability of a cluster
FAR = 10.0  # bandwidths; margins end here, and a cluster that is alone has this one


@dataclass(frozen=True)
class Described:
    """Features of the clusters of one image; row k - 1 is that of cluster k.

    Attributes
    ----------
    values : float64 array [K, len(NAMES)]
        log_area: natural logarithm of the pixels. solidity: share of the convex hull that is filled. extent:
        the same of the bounding box. border: pixels on the edge of the image over the root of the area.
        spread: root mean square distance of the embeddings to their mean, in bandwidths. margin: distance of
        that mean to the nearest other one of the image, in bandwidths, `FAR` at most. stability: median IoU
        of the clusters that second embeddings cut out (`clustering.labels.stability_filter`). confidence:
        mean confidence of the class mask.
    pooled : float32 array [K, C]
        Mean over the mask of the encoder's last map.
    """

    values: np.ndarray
    pooled: np.ndarray


@contextlib.contextmanager
def encoder_map(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block the list takes the encoder's last map [B, C, h, w] of every pass of a network."""
    seen: list[Tensor] = []
    hook = network.encoder.register_forward_hook(lambda module, inputs, maps: seen.append(maps[-1]))
    try:
        yield seen
    finally:
        hook.remove()


@torch.no_grad()
def describe(
    labels: Tensor,
    semantic: Tensor,
    embeddings: Tensor,
    second_embeddings: Tensor,
    confidence: Tensor,
    feature_map: Tensor,
    *,
    bandwidth: float,
) -> Described:
    """Features of every cluster of an image; none of them draws from a global generator.

    Parameters
    ----------
    labels : integer Tensor [h, w]
        0 or ids >= 1, on the grid of the embeddings; rows are those of the ids in their order.
    semantic : integer Tensor [h, w]
        Train ids: the class masks inside which the clusters lie.
    embeddings, second_embeddings : float Tensor [E, h, w]
        Those that were clustered, and those of a disturbed view or of another network.
    confidence : float Tensor [h, w]
        In [0, 1], of the class mask.
    feature_map : float Tensor [C, H, W]
        Of the encoder, at any resolution; it shows what the embeddings show.
    bandwidth : float
        Of the clustering, embedding units.
    """
    labels = relabel_consecutive(labels)
    n = int(labels.max()) if labels.numel() else 0
    if n == 0:
        return Described(np.zeros((0, len(NAMES))), np.zeros((0, len(feature_map)), np.float32))
    inside = labels > 0
    ids = labels[inside]
    points = embeddings.movedim(0, -1)[inside].double()
    means = segment_mean(points, ids, n + 1)
    squared = (points - means[ids]).square().sum(1, keepdim=True)
    spread = segment_mean(squared, ids, n + 1)[1:, 0].sqrt() / bandwidth
    between = torch.cdist(means[1:], means[1:]).fill_diagonal_(torch.inf)
    margin = (between.amin(1) / bandwidth).clamp(max=FAR)
    sure = segment_mean(confidence[inside][:, None].double(), ids, n + 1)[1:, 0]
    stability = _stability(labels, semantic, second_embeddings, bandwidth).double()
    of_pixels = torch.stack([spread, margin, stability, sure], 1).cpu().numpy()
    values = np.concatenate([_shapes(labels.cpu().numpy()), of_pixels], 1)
    return Described(values, pool(labels, feature_map).float().cpu().numpy())


def pool(labels: Tensor, feature_map: Tensor) -> Tensor:
    """Mean feature [K, C] over every cluster 1 .. K of `labels` [h, w]; a pixel has that of its cell."""
    n, (height, width) = int(labels.max()), feature_map.shape[1:]
    rows, columns = (
        torch.arange(size, device=labels.device) * cells // size
        for size, cells in zip(labels.shape, (height, width))
    )
    cell = rows[:, None] * width + columns
    inside = labels > 0
    pairs = (labels[inside] - 1) * (height * width) + cell[inside]
    weights = torch.bincount(pairs, minlength=n * height * width).view(n, -1).to(feature_map)
    return weights / weights.sum(1, keepdim=True) @ feature_map.flatten(1).T


def _shapes(labels: np.ndarray) -> np.ndarray:
    """float64 [K, 4]: log area, solidity, extent, contact with the border."""
    found = regionprops_table(labels, properties=("area", "solidity", "extent"))
    edge = np.ones(labels.shape, bool)
    edge[1:-1, 1:-1] = False
    touching = np.bincount(labels[edge], minlength=labels.max() + 1)[1:]
    area = found["area"].astype(np.float64)
    return np.stack([np.log(area), found["solidity"], found["extent"], touching / np.sqrt(area)], 1)


def _stability(labels: Tensor, semantic: Tensor, second: Tensor, bandwidth: float) -> Tensor:
    """Median IoU [K] of every cluster with what the second embeddings cut out of its class mask."""
    category = vote_categories(semantic, labels, range(VOID))
    found = torch.zeros(len(category) - 1, device=labels.device)
    for class_id in category[1:].unique():
        own = torch.where(category[labels] == class_id, labels, 0)
        generator = torch.Generator(labels.device).manual_seed(0)
        _, medians = stability_filter(
            own, second, semantic == class_id, bandwidth=bandwidth, n_anchors=N_ANCHORS, min_median_iou=0.0,
            generator=generator,
        )  # fmt: skip
        ids = own.unique()
        found[ids[ids > 0] - 1] = medians.to(found)
    return found
