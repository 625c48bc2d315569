"""What embeddings are to learn: labelled instances, or instances clustered from the teacher's embeddings.

References: thesis 6.2, 8.2 and ch. 7 algorithm 2; Wolny et al. 2022, arXiv:2103.14572 (SPOCO).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from panolib.clustering.algorithms import find_algorithm
from panolib.clustering.in_masks import cluster_batch_in_class_masks, cluster_batch_unguided
from panolib.clustering.labels import drop_small_clusters
from panolib.data import photometry, warping
from panolib.data.images import resize_labels
from panolib.data.views import UNKNOWN
from panolib.labels import VOID, LabelSet
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.losses.learned_bandwidth import learned_bandwidth_loss
from panolib.models.coordinates import coordinate_grid
from panolib.objectness.candidates import LEVELS, only
from panolib.objectness.classifier import Objectness
from panolib.objectness.features import describe
from panolib.training import ranks
from panolib.training.run_specs import EmbeddingTrainingSpec, InstanceSelfTrainingSpec
from panolib.training.specs import InstanceNetwork, Margins


def to_embedding_grid(labels: Tensor, embeddings: Tensor) -> Tensor:
    """Label maps [B, H, W] sampled at the pixel centres of the embedding grid [B, E, h, w], of any size.

    The rule of `predict_instances`, so that a network is asked where it was taught.
    """
    return resize_labels(labels, embeddings.shape[-2:])


def source_targets(
    batch: dict[str, Tensor], embeddings: Tensor, min_area: int, class_ids: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """(instance labels, ignore) on the embedding grid [B, h, w] of a labelled batch.

    Crowds, void and tiny instances are ignored, and with `class_ids` instances of other classes: they are
    objects that somebody else learns, so they are not "unlabelled" either.
    """
    instances = to_embedding_grid(batch["instance"], embeddings)
    kept = torch.stack([drop_small_clusters(labels, min_area) for labels in instances])
    semantic = to_embedding_grid(batch["semantic"], embeddings)
    ignore = to_embedding_grid(batch["crowd"], embeddings).bool() | (semantic == VOID)
    ignore |= (kept == 0) & (instances != 0)
    if class_ids is not None:
        wanted = torch.isin(semantic, torch.tensor(list(class_ids), device=semantic.device))
        ignore |= (instances != 0) & ~wanted
    kept[ignore] = 0
    return kept, ignore


def supervised_terms(
    spec: EmbeddingTrainingSpec,
    embeddings: Tensor,
    batch: Mapping[str, Tensor],
    label_set: LabelSet,
    iteration: int,
) -> dict[str, Tensor]:
    """The terms of `embedding_loss` for embeddings [B, E, h, w] of a labelled batch.

    Of a network that learns its bandwidth [B, E + 2, h, w] those of `learned_bandwidth_loss`.
    """
    class_ids = None if spec.classes is None else learned_ids(spec, label_set)
    labels, ignore = source_targets(batch, embeddings, spec.min_area, class_ids)
    if isinstance(spec.network, InstanceNetwork) and spec.network.learns_bandwidth:
        return learned_bandwidth_loss(embeddings, labels, ignore=ignore)
    margins = ring_margins(spec.margins, iteration)
    added = added_coordinates(spec.network, embeddings)
    return embedding_loss(
        embeddings.float(), labels, weights=spec.weights, ignore=ignore, coordinates=added, **margins
    )


def added_coordinates(network: InstanceNetwork, embeddings: Tensor) -> Tensor | None:
    """What a network added to the first channels [2, h, w] of its embeddings [B, E, h, w]; None: nothing."""
    if network.coordinate_length is None:
        return None
    return coordinate_grid(embeddings.shape[-2:], network.coordinate_length, embeddings.device)


def weights_of_part(weights: EmbeddingLossWeights) -> EmbeddingLossWeights:
    """Weights for the part of a batch that a process has: the mean over processes of a sum is no sum."""
    if weights.consistency_reduction == "mean":
        return weights
    return replace(weights, consistency=weights.consistency * ranks.n_processes())


def ring_margins(margins: Margins, iteration: int) -> dict[str, float]:
    """Keyword arguments of `embedding_loss` at one iteration."""
    widening = epsilon(iteration, margins)
    return {
        "delta_var": margins.delta_var + widening,
        "delta_dist": margins.delta_dist + widening,
        "kernel_threshold": margins.kernel_threshold,
    }


def learned_ids(spec: EmbeddingTrainingSpec, label_set: LabelSet) -> tuple[int, ...]:
    """Train ids of the things that a network learns."""
    return label_set.thing_ids if spec.classes is None else label_set.ids_of(spec.classes)


def clustering_options(
    spec: InstanceSelfTrainingSpec, label_set: LabelSet, clustering: Mapping[str, float], iteration: int
) -> dict:
    """Keyword arguments of `cluster_in_class_masks` for the pseudo-labels of one iteration.

    The epsilon ring widens the bandwidth, or where an algorithm has none the distance at which it stops to
    merge. HDBSCAN's smallest cluster is the smallest instance of the run.
    """
    options = {
        "algorithm": spec.algorithm,
        "min_size": spec.min_area,
        "min_stability": spec.min_stability,
        "connected": label_set.connected_things,
        **clustering,
    }
    widening = epsilon(iteration, spec.margins)
    _, accepted = find_algorithm(spec.algorithm, {})
    ring = "delta_dist" if "bandwidth" not in accepted and "delta_dist" in accepted else "bandwidth"
    options[ring] += widening
    if "min_cluster_size" in accepted:
        options["min_cluster_size"] = max(2, spec.min_area)
    return options


def clustered(
    spec: InstanceSelfTrainingSpec,
    label_set: LabelSet,
    clustering: Mapping[str, float],
    iteration: int,
    semantic: Tensor,
    teacher_embeddings: Tensor,
    student_embeddings: Tensor,
) -> Tensor:
    """Pseudo-labels int64 [B, h, w] of an iteration: the teacher's embeddings, clustered inside the masks.

    `semantic`: train ids [B, h, w] on their grid. The student's embeddings say how stable an instance is.
    """
    cluster = cluster_batch_in_class_masks if spec.guided else cluster_batch_unguided
    options = clustering_options(spec, label_set, clustering, iteration)
    if spec.min_stability is not None:
        options["second_embeddings"] = student_embeddings.detach()
    found = cluster(teacher_embeddings, semantic, learned_ids(spec, label_set), **options)
    return torch.stack([labels for labels, _ in found])


@torch.no_grad()
def objects_only(
    objectness: Objectness,
    least: float,
    pseudo_labels: Tensor,
    semantic: Tensor,
    confidence: Tensor,
    teacher_embeddings: Tensor,
    student_embeddings: Tensor,
    feature_maps: Tensor,
    bandwidth: float,
) -> Tensor:
    """Pseudo-labels int64 [B, h, w] without clusters that are less probably an object than `least`.

    `confidence`: of the masks, uint8 levels [B, h, w]. The student's embeddings are the second ones of
    `objectness.features.describe`; `feature_maps` [B, C, H, W] are those of the teacher's encoder.
    """
    kept = []
    for labels, *parts in zip(
        pseudo_labels, semantic, teacher_embeddings, student_embeddings.detach(), confidence.float() / LEVELS,
        feature_maps.float(),
    ):  # fmt: skip
        found = describe(labels, *parts, bandwidth=bandwidth)
        kept.append(only(labels, objectness.probability(found.values, found.pooled) >= least))
    return torch.stack(kept)


def chosen_instead(pseudo_labels: Tensor, chosen: Tensor, min_area: int) -> Tensor:
    """Pseudo-labels int64 [B, h, w], of answered images those that a person chose.

    `chosen`: instances [B, h, w], `views.UNKNOWN` all over an image without an answer, and in the padding.
    """
    answered = (chosen != UNKNOWN).flatten(1).any(1)
    kept = torch.stack([drop_small_clusters(labels, min_area) for labels in chosen.clamp(min=0)])
    return torch.where(answered[:, None, None], kept, pseudo_labels)


@torch.no_grad()
def rotated_view(teacher: nn.Module, crops: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Teacher embeddings of randomly rotated crops, rotated back, and where they are valid.

    Pixels go back to their places, values stay. That is right with coordinates in them as well: the teacher
    says where in the *turned* crop the object of a pixel is, R c for one that the student is to see at c, and
    the consistency looks at distances inside one view, which R keeps. Offsets alone are R (c - p), not the
    c - p of the upright crop: to take the coordinates of the turned crop off and to add those of the upright
    one would tear objects apart.
    """
    degrees = torch.rand(len(crops), device=crops.device) * largest
    turned = warping.rotate(photometry.normalise(crops), degrees)  # corners are 0, the mean colour
    rotated = teacher(turned).float()
    embeddings = warping.unrotate(rotated, degrees)
    return embeddings, warping.rotation_validity(embeddings.shape[-2:], degrees)


def epsilon(iteration: int, margins: Margins) -> float:
    """Width added to both margins and to the clustering bandwidth, against early over-splitting.

    epsilon_0 * exp(-t / tau) after t iterations, in embedding units; epsilon_0 = 0 is the thesis's "zero".

    References
    ----------
    Thesis section 8.2; the formula is lost there, this one is a proposal of ours.
    """
    return margins.epsilon_0 * math.exp(-iteration / margins.epsilon_tau)
