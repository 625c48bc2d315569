"""Clustering guided by a semantic map: inside the mask of each thing class; as a control, without masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panolib.clustering.algorithms import cluster, find_algorithm
from panolib.clustering.labels import drop_small_clusters, split_disconnected, stability_filter
from panolib.clustering.votes import vote_categories
from panolib.data.label_maps import as_labels
from panolib.labels import VOID


@torch.no_grad()
def cluster_in_class_masks(
    embeddings: Tensor,
    semantic_labels: Tensor,
    thing_ids: Sequence[int],
    *,
    algorithm: str = "mean_shift_plus",
    bandwidth: float = 0.5,
    delta_dist: float | None = 2.0,
    min_size: int = 0,
    second_embeddings: Tensor | None = None,
    min_stability: float | None = None,
    connected: bool = False,
    ignore_below: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> tuple[Tensor, list[dict]]:
    """Instances of every thing class, each found inside the predicted mask of its class only.

    Per class: skip a mask smaller than `min_size`, cluster it, merge close clusters, drop small ones, drop
    unstable ones. Pixels that belong to no instance keep 0, which means unlabelled.

    Parameters
    ----------
    embeddings : float Tensor [E, h, w]
        Those that are clustered, in self-training the momentum network's. Embedding units.
    semantic_labels : integer Tensor or array [h, w]
        Train ids on the grid of the embeddings.
    thing_ids : sequence of int
        Classes to look for.
    algorithm, bandwidth, delta_dist, **options
        As in `clustering.cluster`; "connected_components" is the control without embeddings.
    min_size : int
        Smallest mask and smallest instance, in pixels of this grid.
    second_embeddings : float Tensor [E, h, w], optional
        The other network's embeddings of the same pixels, for the stability of each instance.
    min_stability : float, optional
        Instances whose median IoU is below this are dropped; needs `second_embeddings`.
    connected : bool
        Every object is one connected region: clusters of several regions are split, after the stability
        filter, and regions below `min_size` dropped.
    ignore_below : int, optional
        Rows from this one on hold no instance (reflections on the bonnet). In pixels of this grid.
    generator : torch.Generator, optional
        Draws random seeds, subsamples and the anchors of the stability filter.

    Returns
    -------
    instance_labels : int64 Tensor [h, w]
        0 or 1 .. K, by class in the order of `thing_ids`.
    table : list of dict
        `id`, `category_id` (train id), `area` in pixels, `stability` (nan if not measured), one per instance.

    Raises
    ------
    ValueError
        If the grids differ, for `min_stability` without `second_embeddings`, or as `clustering.cluster`.

    References
    ----------
    Thesis chapter 7, algorithm 2.
    """
    semantic_labels = as_labels(semantic_labels, "semantic_labels", device=embeddings.device)
    for name, other in {"embeddings": embeddings, "second_embeddings": second_embeddings}.items():
        if other is not None and other.shape[1:] != semantic_labels.shape:
            raise ValueError(
                f"{name} are {list(other.shape)} and semantic_labels {list(semantic_labels.shape)}; "
                "expected [E, h, w] and [h, w]"
            )
    if min_stability is not None and second_embeddings is None:
        raise ValueError(f"min_stability is {min_stability}; it needs second_embeddings")

    _, accepted = find_algorithm(algorithm, options)  # wrong names must not wait for an image with things
    if generator is not None and "generator" in accepted:
        options["generator"] = generator
    visible = torch.ones_like(semantic_labels, dtype=torch.bool)
    if ignore_below is not None:
        visible[ignore_below:] = False
    options |= {"algorithm": algorithm, "bandwidth": bandwidth, "delta_dist": delta_dist}

    instance_labels = torch.zeros(semantic_labels.shape, dtype=torch.int64, device=semantic_labels.device)
    table: list[dict] = []
    for class_id in thing_ids:
        mask = (semantic_labels == class_id) & visible
        if mask.sum() < max(1, min_size):
            continue
        labels = cluster(embeddings, mask, min_size=min_size, **options)
        if second_embeddings is None:
            stability = [float("nan")] * int(labels.max())
        else:
            labels, medians = stability_filter(
                labels,
                second_embeddings,
                mask,
                bandwidth=bandwidth,
                min_median_iou=min_stability or 0.0,
                generator=generator,
            )
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
            {"id": first + k, "category_id": int(class_id), "area": area, "stability": stability[k]}
            for k, area in enumerate(areas)
        ]
        instance_labels = torch.where(labels > 0, labels + (first - 1), instance_labels)
    return instance_labels, table


@torch.no_grad()
def cluster_unguided(
    embeddings: Tensor, semantic_labels: Tensor, thing_ids: Sequence[int], **options
) -> tuple[Tensor, list[dict]]:
    """The control without masks: one clustering of all pixels, whose clusters the semantic map only names.

    The most frequent class of a cluster, thing or stuff, is its name; clusters of other classes than
    `thing_ids` are dropped.

    Parameters
    ----------
    embeddings, semantic_labels, thing_ids, **options
        As in `cluster_in_class_masks`.

    Returns
    -------
    instance_labels : int64 Tensor [h, w]
        0 or 1 .. K.
    table : list of dict
        As `cluster_in_class_masks`.
    """
    semantic_labels = as_labels(semantic_labels, "semantic_labels", device=embeddings.device)
    everything = torch.zeros_like(semantic_labels)
    labels, table = cluster_in_class_masks(embeddings, everything, (0,), **options)
    winner = vote_categories(semantic_labels, labels, range(VOID))
    kept = torch.isin(winner, torch.tensor(list(thing_ids), dtype=torch.int64, device=winner.device))
    kept[0] = False
    number = kept.long().cumsum(0) * kept
    rows = [
        row | {"id": int(number[row["id"]]), "category_id": int(winner[row["id"]])}
        for row in table
        if kept[row["id"]]
    ]
    return number[labels], rows
