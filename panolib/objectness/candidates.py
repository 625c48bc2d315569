"""Clusters of images as candidates for objects: what they look like, and on labelled images what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from panolib.clustering.in_masks import cluster_in_class_masks
from panolib.clustering.labels import drop_small_clusters
from panolib.data import photometry
from panolib.data.images import resize_labels
from panolib.data.label_maps import consecutive
from panolib.data.loading import iteration_seed
from panolib.data.samples import Sample
from panolib.inference.predict import Prediction, embed_images, predict_image
from panolib.labels import VOID, LabelSet
from panolib.objectness.features import Described, describe, encoder_map
from panolib.objectness.perturbations import REAL, best_iou, perturbed

IGNORED = 0.5  # share of a cluster on void or on groups from which on nobody knows what it is
LEVELS = 255  # of a confidence, which is a label map where crops are made


@dataclass(frozen=True)
class View:
    """What networks say about one image, on the grid [h, w] of its embeddings."""

    prediction: Prediction  # at the size of the image
    semantic: Tensor  # train ids
    confidence: Tensor  # float, of the class of each pixel
    second: Tensor  # embeddings [E, h, w] of a noisy view
    feature_map: Tensor  # [C, H, W] of the encoder

    @property
    def embeddings(self) -> Tensor:
        return self.prediction.embeddings

    def describe(self, labels: Tensor, semantic: Tensor | None = None, *, bandwidth: float) -> Described:
        """Features of masks, found inside the predicted class map or another one."""
        semantic = self.semantic if semantic is None else semantic
        return describe(
            labels, semantic, self.embeddings, self.second, self.confidence, self.feature_map,
            bandwidth=bandwidth,
        )  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """Clusters of several images, one row each."""

    values: np.ndarray  # float64 [N, F]
    pooled: np.ndarray  # float32 [N, C]
    real: np.ndarray  # bool [N]
    image: np.ndarray  # int64 [N], which one
    spoilt: np.ndarray  # bool [N], a true mask that was perturbed, no cluster
    n_images: int = 0


def quantised(probabilities: Tensor) -> Tensor:
    """Confidence of class probabilities [C, H, W] as a label map uint8 [H, W], which crops like one."""
    return (LEVELS * probabilities.amax(0)).round().to(torch.uint8)


@torch.inference_mode()
def view(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    sample: Sample,
    *,
    blur: Sequence[float] | None,
    seed: int,
) -> View:
    """Everything that describes the clusters of an image. The noise is a function of `seed`."""
    with encoder_map(instance_model) as maps:
        prediction = predict_image(semantic_model, instance_model, sample)
        device, size = prediction.embeddings.device, prediction.embeddings.shape[1:]
        with torch.random.fork_rng():
            torch.manual_seed(iteration_seed(seed, 0, sample.id))
            clean = photometry.as_unit_float(photometry.to_image(sample))[None]
            noisy = photometry.photometric_noise(clean, blur=blur)
        second = embed_images(instance_model, photometry.normalise(noisy).to(device))[0]
    small = {
        "semantic": resize_labels(prediction.semantic, size),
        "confidence": resize_labels(quantised(prediction.probabilities), size).float() / LEVELS,
    }
    return View(prediction, **small, second=second, feature_map=maps[0][0].float())


def clusters(
    found: View, label_set: LabelSet, *, min_size: int, **clustering: float
) -> tuple[Tensor, list[dict]]:
    """`cluster_in_class_masks` of an image, on the grid of its embeddings."""
    return cluster_in_class_masks(
        found.embeddings, found.semantic, label_set.thing_ids, min_size=min_size,
        connected=label_set.connected_things, **clustering,
    )  # fmt: skip


def candidates(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    samples: Iterable[Sample],
    label_set: LabelSet,
    *,
    min_size: int,
    bandwidth: float,
    delta_dist: float,
    blur: Sequence[float] | None,
    seed: int,
    spoil: bool = False,
) -> Candidates:
    """The clusters of labelled images: real is one whose IoU with a true instance is `REAL` or more.

    Clusters that lie mostly on void, or on groups, are left out. `min_size`: of masks and clusters, pixels of
    the embedding grid; `blur`: of the noisy view that the stability compares with, pixels. `spoil` adds the
    true instances spoilt on purpose (`perturbations.perturbed`), as candidates that are not real.
    """
    parts, n_images = [], 0
    rng = np.random.default_rng(seed)
    for index, sample in enumerate(samples):
        n_images += 1
        found = view(semantic_model, instance_model, sample, blur=blur, seed=seed)
        labels, _ = clusters(found, label_set, min_size=min_size, bandwidth=bandwidth, delta_dist=delta_dist)
        truth, instances, ignored = truth_on_grid(sample, labels.shape)
        grid = labels.cpu().numpy()
        known = np.bincount(grid.ravel(), ignored.ravel(), int(grid.max(initial=0)) + 1)[1:]
        known = known < IGNORED * np.bincount(grid.ravel())[1:]
        described = found.describe(labels, bandwidth=bandwidth)
        parts.append(_rows(described, best_iou(grid, instances) >= REAL, index, False, keep=known))
        if spoil:
            truth = torch.from_numpy(truth).to(labels.device)
            for masks in perturbed(instances, min_size=min_size, rng=rng).values():
                spoilt = torch.from_numpy(masks).to(labels.device)
                described = found.describe(spoilt, truth, bandwidth=bandwidth)
                parts.append(_rows(described, np.zeros(len(described.values), bool), index, True))
    return Candidates(*map(np.concatenate, zip(*parts, strict=True)), n_images=n_images)


def _rows(found: Described, real: np.ndarray, image: int, spoilt: bool, keep=slice(None)) -> tuple:
    """The columns of `Candidates` for the clusters of one image that are kept."""
    real = real[keep]
    n = len(real)
    return found.values[keep], found.pooled[keep], real, np.full(n, image), np.full(n, spoilt)


def truth_on_grid(sample: Sample, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(train ids int64, instances int64 with ids 1 .. K, ignored bool) of an image at another size."""
    semantic, instance, crowd = (
        np.ascontiguousarray(resize_labels(labels, size))
        for labels in (sample.semantic, sample.instance, sample.crowd)
    )
    instances = np.where(crowd, 0, instance).astype(np.int64)
    numbered, _ = consecutive(torch.from_numpy(instances), "instances")
    return semantic.astype(np.int64), numbered.numpy(), crowd | (semantic == VOID)


def only(labels: Tensor, keep: np.ndarray) -> Tensor:
    """Clusters [h, w] without those that are not kept (bool [K]), numbered 1 .. K again."""
    kept = torch.from_numpy(np.concatenate([[False], keep])).to(labels.device)
    return drop_small_clusters(torch.where(kept[labels], labels, 0), 1)
