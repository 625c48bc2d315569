"""Clustering guided by a semantic map: inside the mask of each thing class; as a control, without masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panolib.clustering.algorithms import cluster_masks, find_algorithm
from panolib.clustering.labels import drop_small_clusters, split_disconnected, stability_filter
from panolib.clustering.votes import vote_categories
from panolib.data.label_maps import as_labels
from panolib.labels import VOID


def cluster_in_class_masks(
    embeddings: Tensor,
    semantic_labels: Tensor,
    thing_ids: Sequence[int],
    *,
    second_embeddings: Tensor | None = None,
    **options,
) -> tuple[Tensor, list[dict]]:
    """`cluster_batch_in_class_masks` of one image."""
    others = None if second_embeddings is None else [second_embeddings]
    fields = [embeddings], [semantic_labels], thing_ids
    return cluster_batch_in_class_masks(*fields, second_embeddings=others, **options)[0]


@torch.no_grad()
def cluster_batch_in_class_masks(
    embeddings: Sequence[Tensor],
    semantic_labels: Sequence[Tensor],
    thing_ids: Sequence[int],
    *,
    algorithm: str = "mean_shift_plus",
    bandwidth: float = 0.5,
    delta_dist: float | None = 2.0,
    min_size: int = 0,
    second_embeddings: Sequence[Tensor] | None = None,
    min_stability: float | None = None,
    connected: bool = False,
    generator: torch.Generator | None = None,
    **options,
) -> list[tuple[Tensor, list[dict]]]:
    """Instances of every thing class, each found inside the predicted mask of its class only, image by image.

    Per class: skip a mask smaller than `min_size`, cluster it, merge close clusters, drop small ones, drop
    unstable ones. Pixels that belong to no instance keep 0, which means unlabelled. Thesis chapter 7,
    algorithm 2.

    Parameters
    ----------
    embeddings : float Tensor [E, h, w] of every image
        Those that are clustered, in self-training the momentum network's. Embedding units.
    semantic_labels : integer Tensor or array [h, w] of every image
        Train ids on the grid of the embeddings.
    thing_ids : sequence of int
        Classes to look for.
    algorithm, bandwidth, delta_dist, **options
        As in `algorithms.cluster_masks`; "connected_components" is the control without embeddings.
    min_size : int
        Smallest mask and smallest instance, in pixels of this grid.
    second_embeddings : float Tensor [E, h, w] of every image, optional
        The other network's embeddings of the same pixels, for the stability of each instance.
    min_stability : float, optional
        Instances whose median IoU is below this are dropped; needs `second_embeddings`.
    connected : bool
        Every object is one connected region: clusters of several regions are split, after the stability
        filter, and regions below `min_size` dropped.
    generator : torch.Generator, optional
        Draws random seeds, subsamples and the anchors of the stability filter.

    Returns
    -------
    instance_labels : int64 Tensor [h, w], of every image
        0 or 1 .. K, by class in the order of `thing_ids`.
    table : list of dict, of every image
        `id`, `category_id` (train id), `area` in pixels, `stability` (nan if not measured), one per instance.

    Raises ValueError if the grids differ, for `min_stability` without `second_embeddings`, or as
    `cluster_masks`.
    """
    if min_stability is not None and second_embeddings is None:
        raise ValueError(f"min_stability is {min_stability}; it needs second_embeddings")
    _, accepted = find_algorithm(algorithm, options)  # wrong names must not wait for an image with things
    if generator is not None and "generator" in accepted:
        options["generator"] = generator
    options |= {"algorithm": algorithm, "bandwidth": bandwidth, "delta_dist": delta_dist}
    others = [None] * len(embeddings) if second_embeddings is None else second_embeddings

    masks: list[list[tuple[int, Tensor]]] = []  # (class, mask) of every image
    maps = []
    for field, labels, other in zip(embeddings, semantic_labels, others, strict=True):
        maps.append(as_labels(labels, "semantic_labels", device=field.device))
        for name, some in {"embeddings": field, "second_embeddings": other}.items():
            if some is not None and some.shape[1:] != maps[-1].shape:
                raise ValueError(
                    f"{name} are {list(some.shape)} and semantic_labels {list(maps[-1].shape)}; "
                    "expected [E, h, w] and [h, w]"
                )
        own = [(int(class_id), maps[-1] == class_id) for class_id in thing_ids]
        masks.append([(class_id, mask) for class_id, mask in own if mask.sum() >= max(1, min_size)])

    fields = [(field, mask) for field, own in zip(embeddings, masks) for _, mask in own]
    clusters = cluster_masks(fields, min_size=min_size, **options)
    found = []
    for semantic, own, other in zip(maps, masks, others):
        instance_labels = torch.zeros(semantic.shape, dtype=torch.int64, device=semantic.device)
        table: list[dict] = []
        for class_id, mask in own:
            labels = next(clusters)
            if other is None:
                stability = [float("nan")] * int(labels.max())
            else:
                labels, medians = stability_filter(
                    labels, other, mask, bandwidth=bandwidth, min_median_iou=min_stability or 0.0,
                    generator=generator,
                )  # fmt: skip
                stability = medians.tolist()
            if connected:
                regions = drop_small_clusters(split_disconnected(labels), min_size)
                # the cluster that each region was cut from, in the order of the regions
                origin = labels.new_zeros(int(regions.max()) + 1)
                origin[regions.flatten()] = labels.flatten()
                labels, stability = regions, [stability[k - 1] for k in origin[1:].tolist()]
            areas = torch.bincount(labels.flatten(), minlength=1)[1:].tolist()
            first = len(table) + 1
            table += [
                {"id": first + k, "category_id": class_id, "area": area, "stability": stability[k]}
                for k, area in enumerate(areas)
            ]
            instance_labels = torch.where(labels > 0, labels + (first - 1), instance_labels)
        found.append((instance_labels, table))
    return found


def cluster_unguided(
    embeddings: Tensor,
    semantic_labels: Tensor,
    thing_ids: Sequence[int],
    *,
    second_embeddings: Tensor | None = None,
    **options,
) -> tuple[Tensor, list[dict]]:
    """`cluster_batch_unguided` of one image."""
    others = None if second_embeddings is None else [second_embeddings]
    fields = [embeddings], [semantic_labels], thing_ids
    return cluster_batch_unguided(*fields, second_embeddings=others, **options)[0]


def cluster_batch_unguided(
    embeddings: Sequence[Tensor], semantic_labels: Sequence[Tensor], thing_ids: Sequence[int], **options
) -> list[tuple[Tensor, list[dict]]]:
    """The control without masks: one clustering of all pixels, whose clusters the semantic map only names.

    The most frequent class of a cluster, thing or stuff, is its name; clusters of other classes than
    `thing_ids` are dropped. Parameters and result as in `cluster_batch_in_class_masks`.
    """
    maps = [as_labels(labels, "semantic_labels", device=field.device)
            for field, labels in zip(embeddings, semantic_labels, strict=True)]  # fmt: skip
    everything = [torch.zeros_like(semantic) for semantic in maps]
    found = []
    for semantic, (labels, table) in zip(
        maps, cluster_batch_in_class_masks(embeddings, everything, (0,), **options)
    ):
        winner = vote_categories(semantic, labels, range(VOID))
        kept = torch.isin(winner, torch.tensor(list(thing_ids), dtype=torch.int64, device=winner.device))
        kept[0] = False
        number = kept.long().cumsum(0) * kept
        rows = [
            row | {"id": int(number[row["id"]]), "category_id": int(winner[row["id"]])}
            for row in table
            if kept[row["id"]]
        ]
        found.append((number[labels], rows))
    return found
