"""Two-way guidance: class masks tell where to look for instances, instances tell a mask its class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor

from panolib.clustering.algorithms import cluster, find_algorithm
from panolib.clustering.labels import drop_small_clusters, split_disconnected, stability_filter
from panolib.data.label_maps import as_ids, as_labels, consecutive
from panolib.labels import VOID

MAX_TABLE = 2**24  # rows of a table by instance id; COCO's ids end there


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
    teacher_embeddings: Tensor | None = None,
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
        Usually of the momentum network. Embedding units.
    semantic_labels : integer Tensor or array [h, w]
        Train ids on the grid of the embeddings.
    thing_ids : sequence of int
        Classes to look for.
    algorithm, bandwidth, delta_dist, **options
        As in `clustering.cluster`; "connected_components" is the control without embeddings.
    min_size : int
        Smallest mask and smallest instance, in pixels of this grid.
    teacher_embeddings : float Tensor [E, h, w], optional
        Embeddings of the other network, for the stability of each instance.
    min_stability : float, optional
        Instances whose median IoU is below this are dropped; needs `teacher_embeddings`.
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
        If the grids differ, for `min_stability` without `teacher_embeddings`, or as `clustering.cluster`.

    References
    ----------
    Thesis chapter 7, algorithm 2.
    """
    semantic_labels = as_labels(semantic_labels, "semantic_labels", device=embeddings.device)
    for name, other in {"embeddings": embeddings, "teacher_embeddings": teacher_embeddings}.items():
        if other is not None and other.shape[1:] != semantic_labels.shape:
            raise ValueError(
                f"{name} are {list(other.shape)} and semantic_labels {list(semantic_labels.shape)}; "
                "expected [E, h, w] and [h, w]"
            )
    if min_stability is not None and teacher_embeddings is None:
        raise ValueError(f"min_stability is {min_stability}; it needs teacher_embeddings")

    _, accepted = find_algorithm(algorithm, options)  # wrong names must not wait for an image with things
    if generator is not None and "generator" in accepted:
        options["generator"] = generator
    if ignore_below is not None:
        rows = torch.arange(len(semantic_labels), device=semantic_labels.device)
        visible = rows[:, None] < ignore_below
    else:
        visible = torch.ones_like(semantic_labels, dtype=torch.bool)
    options |= {"algorithm": algorithm, "bandwidth": bandwidth, "delta_dist": delta_dist}

    instance_labels = torch.zeros(semantic_labels.shape, dtype=torch.int64, device=semantic_labels.device)
    table: list[dict] = []
    for class_id in thing_ids:
        mask = (semantic_labels == class_id) & visible
        if mask.sum() < max(1, min_size):
            continue
        labels = cluster(embeddings, mask, min_size=min_size, **options)
        if teacher_embeddings is None:
            stability = [float("nan")] * int(labels.max())
        else:
            labels, medians = stability_filter(
                labels,
                teacher_embeddings,
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


def vote_categories(semantic_labels: Tensor, instance_labels: Tensor, thing_ids: Sequence[int]) -> Tensor:
    """Most frequent thing class inside each instance (thesis ch. 8, the "binning vote").

    Parameters
    ----------
    semantic_labels : integer Tensor [H, W]
        Train ids below 256.
    instance_labels : integer Tensor [H, W]
        0 or ids >= 1, below 2**24: `cluster_labels.relabel_consecutive` makes larger ones small.
    thing_ids : sequence of int
        Classes that may win; of two with equal counts the lower id does.

    Returns
    -------
    int64 Tensor [largest id + 1]
        Train id per instance id; -1 for id 0 and for instances without any thing pixel.

    Raises
    ------
    ValueError
        For an id outside of these ranges, or that is not an integer.
    """
    semantic_labels = as_labels(semantic_labels, "semantic_labels")
    instance_labels = as_ids(instance_labels, "instance_labels", highest=MAX_TABLE - 1)
    inside = instance_labels > 0
    instances, ids = consecutive(instance_labels[inside])
    pairs = instances * 256 + as_ids(semantic_labels[inside], "semantic_labels", highest=VOID)
    counts = torch.bincount(pairs, minlength=len(ids) * 256).view(len(ids), 256)
    table = torch.full((int(ids[-1]) + 1,), -1, device=counts.device)
    things = torch.tensor(sorted(thing_ids), dtype=torch.int64, device=counts.device)
    if len(things) == 0:
        return table
    most, winner = counts[:, things].max(dim=1)
    table[ids] = torch.where(most > 0, things[winner], -1)
    return table


def vote_semantic_class(semantic_labels: Tensor, instance_labels: Tensor, thing_ids: Sequence[int]) -> Tensor:
    """Give all pixels of an instance its most frequent thing class.

    Repairs objects that the semantic map splits into several classes (buses and trains, thesis ch. 8).
    Pixels outside instances, and instances without any thing pixel, keep their label.

    Parameters
    ----------
    semantic_labels : integer Tensor [H, W]
        Train ids, 255 void.
    instance_labels : integer Tensor [H, W]
        0 or ids >= 1.
    thing_ids : sequence of int

    Returns
    -------
    Tensor [H, W]
        Of the dtype of `semantic_labels`, which stays unchanged; for an array that of `label_maps.as_labels`.
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
    """Write the class of every instance over all its pixels, void ones too.

    Parameters
    ----------
    pseudo_labels : integer Tensor [..., H, W]
        Train ids, 255 void.
    instance_labels : integer Tensor [..., H, W]
        0 or ids >= 1, none beyond the table.
    categories : int64 Tensor [largest id + 1]
        Train id per instance id; -1 for those that are not painted, and for id 0. From `vote_categories`.

    Returns
    -------
    painted : int64 Tensor [..., H, W]
        New tensor; as `pseudo_labels` outside the painted instances.
    inside : bool Tensor [..., H, W]
        The painted pixels.

    Raises
    ------
    ValueError
        For an instance that `categories` does not have.

    References
    ----------
    Thesis 8.5.
    """
    category = categories[as_ids(instance_labels, "instance_labels", highest=len(categories) - 1)]
    inside = category >= 0
    return torch.where(inside, category, as_labels(pseudo_labels, "pseudo_labels")), inside


def corrected(semantic: np.ndarray, truth: np.ndarray, share: float, *, seed: int = 0) -> np.ndarray:
    """A predicted class map with about a share of its wrong pixels set right, region by region.

    A wrong region is an 8-connected group of pixels of one true class that are predicted as any other class.
    Regions are corrected whole, in a random order that does not look at their size, up to the region after
    which the number of corrected pixels is nearest to `share` of all wrong ones. A larger share corrects the
    same regions and more. Void pixels keep the prediction.

    Parameters
    ----------
    semantic : integer array [H, W]
        Predicted train ids.
    truth : integer array [H, W]
        True train ids, 255 void.
    share : float
        0: the prediction; 1: the truth wherever it is not void.
    seed : int
        Decides the order; give every image another one.

    Returns
    -------
    array [H, W]
        Of the dtype of `semantic`, which stays unchanged.

    Raises
    ------
    ValueError
        For different sizes, or a share outside [0, 1].
    """
    semantic, truth = np.asarray(semantic), np.asarray(truth)
    if semantic.shape != truth.shape:
        raise ValueError(f"semantic is {semantic.shape} and truth {truth.shape}; expected one grid")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; expected 0 to 1")
    wrong = (semantic != truth) & (truth != VOID)
    regions, n_regions = np.zeros(truth.shape, np.int64), 0
    for class_id in np.unique(truth[wrong]):
        found, n_found = scipy.ndimage.label(wrong & (truth == class_id), np.ones((3, 3)))
        regions[found > 0] = found[found > 0] + n_regions
        n_regions += n_found

    order = np.random.default_rng(seed).permutation(n_regions)
    areas = np.bincount(regions[wrong], minlength=n_regions + 1)[1:]
    done = np.concatenate([[0], areas[order].cumsum()])  # wrong pixels corrected after each region
    n_corrected = np.abs(done - share * done[-1]).argmin()
    chosen = np.isin(regions, order[:n_corrected] + 1)
    return np.where(chosen, truth, semantic).astype(semantic.dtype)
