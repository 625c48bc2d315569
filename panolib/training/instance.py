"""The instance branch: embedding baseline on source instances, and self-training on clustered pseudo-labels.

References: thesis 6.2 and ch. 7 algorithm 2; Wolny et al. 2022, arXiv:2103.14572 (SPOCO).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from panolib.clustering.algorithms import Algorithm, find_algorithm
from panolib.clustering.in_masks import cluster_in_class_masks, cluster_unguided
from panolib.clustering.labels import drop_small_clusters
from panolib.config import Count, Natural, NonNegative, NonNegativePair, Positive, Seed, Share, later, spec
from panolib.data import photometry, warping
from panolib.data.images import resize_labels
from panolib.data.loading import batches, iteration_seed
from panolib.data.mixing import source_share_counts
from panolib.data.samples import Sample
from panolib.labels import VOID, LabelSet
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.training.job import Job
from panolib.training.semantic import (
    Augmentation,
    BatchNormSpec,
    LabelledBatches,
    augment,
    clean_view,
)
from panolib.training.setup import (
    Compute,
    InstanceNetwork,
    Monitor,
    Optimiser,
    batch_norm_momentum,
    build_instance,
    build_optimizer,
    freeze_batch_norm,
    launch,
    lay_out,
    set_learning_rate,
    stream_loaders,
)
from panolib.training.teacher import epsilon, hard_copy, make_teacher, update_teacher


@spec
class Margins:
    """Hinge margins in embedding units, and the epsilon rings that widen them early (thesis 8.2)."""

    delta_var: NonNegative  # 0 pulls every pixel; object Dice and consistency need more
    delta_dist: NonNegative  # 0 pushes nothing
    kernel_threshold: Annotated[float, Field(gt=0, lt=1)]
    epsilon_0: NonNegative  # 0 switches the rings off
    epsilon_tau: Positive  # iterations


@spec
class EmbeddingTrainingSpec:
    """What both ways to train embeddings share; smaller instances than `min_area` are ignored."""

    label_set: str
    source: str
    network: InstanceNetwork
    optimiser: Optimiser
    augmentation: Augmentation
    weights: EmbeddingLossWeights
    margins: Margins
    min_area: Natural  # pixels of the embedding grid
    iterations: Count
    batch_size: Count
    compute: Compute
    seed: Seed

    def __post_init__(self):
        kernels = [name for name in ("object_dice", "consistency") if getattr(self.weights, name) > 0]
        if self.margins.delta_var == 0 and kernels:
            raise ValueError(
                f"margins.delta_var is 0, which leaves the kernel of weights.{' and weights.'.join(kernels)} "
                "without a width; expected a margin > 0, or 0 for these weights as well"
            )

    def _check_batch_norm(self, n_images: int) -> None:
        """Raise ValueError if the last map of a batch has one value a channel: that has no variance."""
        stride = 32 if self.network.stem_pool else 16
        height, width = self.augmentation.height, self.augmentation.width
        if n_images == 1 and max(height, width) <= stride:
            raise ValueError(
                f"augmentation: crops of {height} x {width}, one at a time, have one value a channel in the "
                f"last map of stride {stride}, which batch norm cannot learn from; expected a larger height "
                "or width, or two crops of every domain by batch_size"
            )


@spec
class InstanceBaselineSpec(EmbeddingTrainingSpec):
    """Supervised embedding training, then the choice of clustering settings."""

    selection: str  # labelled data set of the *training* domain on which clustering settings are chosen
    n_selection: Count
    bandwidths: Annotated[tuple[Positive, ...], Field(min_length=1)]
    merge_distances: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    classes: tuple[str, ...] | None = later(None)  # things that it learns; None: all. Others are ignored

    def __post_init__(self):
        super().__post_init__()
        self._check_batch_norm(self.batch_size)


@spec(kw_only=True)
class InstanceBatchNormSpec(BatchNormSpec):
    """Batch-norm adaptation of an embedding network."""

    network: InstanceNetwork


@spec
class InstanceSelfTrainingSpec(EmbeddingTrainingSpec):
    """Self-training on pseudo-labels; `source_share` 1 is the control (source-only continuation)."""

    target: str
    source_share: Share
    algorithm: Algorithm
    min_stability: Share | None
    noise_blur: NonNegativePair | None  # pixels; None: the student sees sharp crops
    rotation: NonNegative  # largest rotation of the teacher's view, degrees
    momentum_mode: Literal["ema", "hard_copy"]  # every iteration, or every `copy_interval`
    ema_decay: Share
    copy_interval: Count
    batch_norm: Literal["frozen", "target"]
    classes: tuple[str, ...] | None = later(None)  # as in the baseline
    guided: bool = later(True)  # False: all pixels are clustered, the predicted map only names the clusters
    truth_share: Share = later(0.0)  # of the wrong regions of the masks, corrected with true labels
    monitor: Monitor | None = later(None)
    noise_on: Literal["student", "teacher"] = later("student")  # SPOCO: on what the teacher is compared with
    noise_jitter_probability: Share = later(0.5)  # SPOCO: 0.8

    def __post_init__(self):
        super().__post_init__()
        if self.batch_norm == "target":
            for n_images in source_share_counts(self.batch_size, self.source_share):
                self._check_batch_norm(n_images)


@dataclass
class MaskedBatches:
    """Callable: iteration -> unlabelled target crops with the predicted semantic map of the same crop."""

    dataset: Sequence[Sample]
    masks: Sequence[np.ndarray]  # uint8 [H, W] predicted train ids, one per image
    batch_size: int
    augmentation: Augmentation

    def __call__(self, iteration: int) -> dict[str, Tensor]:
        images, masks = [], []
        for index in torch.randint(len(self.dataset), (self.batch_size,)).tolist():
            maps = {"semantic": torch.from_numpy(self.masks[index])}
            image, maps = augment(photometry.to_image(self.dataset[index]), maps, self.augmentation)
            images.append(image)
            masks.append(maps["semantic"])
        return {"image": torch.stack(images), "semantic": torch.stack(masks).long()}


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


def ring_margins(margins: Margins, iteration: int) -> dict[str, float]:
    """Keyword arguments of `embedding_loss` at one iteration."""
    widening = epsilon(iteration, margins.epsilon_0, margins.epsilon_tau)
    return {
        "delta_var": margins.delta_var + widening,
        "delta_dist": margins.delta_dist + widening,
        "kernel_threshold": margins.kernel_threshold,
    }


def learned_ids(
    spec: InstanceBaselineSpec | InstanceSelfTrainingSpec, label_set: LabelSet
) -> tuple[int, ...]:
    """Train ids of the things that a network learns."""
    return label_set.thing_ids if spec.classes is None else label_set.ids_of(spec.classes)


def clustering_options(
    spec: InstanceSelfTrainingSpec, label_set: LabelSet, clustering: dict[str, float], iteration: int
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
    widening = epsilon(iteration, spec.margins.epsilon_0, spec.margins.epsilon_tau)
    _, accepted = find_algorithm(spec.algorithm, {})
    ring = "delta_dist" if "bandwidth" not in accepted and "delta_dist" in accepted else "bandwidth"
    options[ring] += widening
    if "min_cluster_size" in accepted:
        options["min_cluster_size"] = max(2, spec.min_area)
    return options


def train_instance_baseline(
    spec: InstanceBaselineSpec, job: Job, source: Sequence[Sample], label_set: LabelSet
) -> nn.Module:
    """Train the embedding network on labelled instances; returns it (thesis eq. 11 without self-training)."""
    class_ids = None if spec.classes is None else learned_ids(spec, label_set)
    fabric = launch(spec.compute)
    torch.manual_seed(spec.seed)
    state = job.resume()
    model = lay_out(build_instance(spec.network, pretrained=state is None), spec.compute)
    model, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))

    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    stream = LabelledBatches(source, spec.batch_size, spec.augmentation, ("semantic", "instance", "crowd"))
    loader = batches(
        stream, seed=spec.seed, start=job.start, stop=spec.iterations, workers=spec.compute.loader_workers
    )
    model.train()
    for iteration, batch in zip(job.progress(job.start, spec.iterations), fabric.setup_dataloaders(loader)):
        torch.manual_seed(iteration_seed(spec.seed, iteration, "step"))
        set_learning_rate(optimizer, spec.optimiser, iteration, spec.iterations)
        embeddings = model(batch["image"])
        labels, ignore = source_targets(batch, embeddings, spec.min_area, class_ids)
        terms = embedding_loss(
            embeddings.float(),
            labels,
            weights=spec.weights,
            ignore=ignore,
            **ring_margins(spec.margins, iteration),
        )
        loss = sum(terms.values())
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()

        job.log(iteration, loss=loss, **terms)
        job.checkpoint(
            lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, iteration + 1
        )
    return model


def instance_self_train(
    spec: InstanceSelfTrainingSpec,
    job: Job,
    start_state: dict[str, Tensor],
    source: Sequence[Sample],
    target: Sequence[Sample],
    masks: Sequence[np.ndarray],
    label_set: LabelSet,
    clustering: dict[str, float],
    monitor: Callable[[int, nn.Module, nn.Module], dict[str, float]] | None = None,
) -> nn.Module:
    """Self-train the embeddings on target images, guided by predicted semantic maps; returns the student.

    Every iteration the momentum network embeds the clean target crops, its embeddings are clustered
    inside each thing-class mask (thesis ch. 7 algorithm 2), and the student learns those instances
    from noisy crops. The consistency term compares with the momentum network's view of the rotated
    crop, rotated back. With `noise_on` "teacher" the student sees clean crops, and the noise is on that view;
    pseudo-labels come from clean crops either way. A share of every batch is labelled source (thesis 8.4).

    `monitor` (iteration, student, teacher) -> columns of the curves is asked before every step and once at
    the end; with it the curves also say the seconds of every step, and those of its clusterings.
    """
    if spec.batch_norm not in ("frozen", "target"):
        raise ValueError(f"batch_norm is {spec.batch_norm!r}; expected 'frozen' or 'target'")
    if spec.momentum_mode not in ("ema", "hard_copy"):
        raise ValueError(f"momentum_mode is {spec.momentum_mode!r}; expected 'ema' or 'hard_copy'")
    fabric = launch(spec.compute)
    torch.manual_seed(spec.seed)
    model = lay_out(build_instance(spec.network, pretrained=False), spec.compute)
    model.load_state_dict(start_state)
    teacher = fabric.to_device(make_teacher(model))
    student, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))

    if (state := job.resume()) is not None:
        student.load_state_dict(state["model"])
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])

    n_source, n_target = source_share_counts(spec.batch_size, spec.source_share)
    target_batch_size = max(n_target, 1)  # the control still shows the target to the running statistics
    streams = (
        LabelledBatches(source, max(n_source, 1), spec.augmentation, ("semantic", "instance", "crowd")),
        MaskedBatches(target, masks, target_batch_size, clean_view(spec.augmentation)),
    )
    class_ids = learned_ids(spec, label_set)
    ignored_beside = None if spec.classes is None else class_ids
    cluster = cluster_in_class_masks if spec.guided else cluster_unguided
    loaders = stream_loaders(
        fabric, streams, seed=spec.seed, start=job.start, stop=spec.iterations, compute=spec.compute
    )
    source_momentum = 0.0 if spec.batch_norm == "target" else 0.1

    student.train()
    if spec.batch_norm == "frozen":
        freeze_batch_norm(student)
    for iteration, source_batch, target_batch in zip(job.progress(job.start, spec.iterations), *loaders):
        torch.manual_seed(iteration_seed(spec.seed, iteration, "step"))
        set_learning_rate(optimizer, spec.optimiser, iteration, spec.iterations)
        margins = ring_margins(spec.margins, iteration)
        optimizer.zero_grad(set_to_none=True)
        logged: dict[str, Tensor | float] = {}
        monitored = {} if monitor is None else monitor(iteration, student, teacher)
        began, clustering_s = time.perf_counter(), 0.0

        if n_source > 0:
            with batch_norm_momentum(student, source_momentum):
                embeddings = student(source_batch["image"])
            labels, ignore = source_targets(source_batch, embeddings, spec.min_area, ignored_beside)
            weights = replace(spec.weights, consistency=0.0)
            terms = embedding_loss(embeddings.float(), labels, weights=weights, ignore=ignore, **margins)
            loss = sum(terms.values()) * (n_source / spec.batch_size)
            fabric.backward(loss)
            logged["source_loss"] = loss.detach()

        clean = target_batch["image"]
        noisy = photometry.photometric_noise(
            clean, blur=spec.noise_blur, jitter_probability=spec.noise_jitter_probability
        )
        seen, compared = (noisy, clean) if spec.noise_on == "student" else (clean, noisy)
        if n_target == 0:
            with torch.no_grad():
                student(photometry.normalise(seen))
        else:
            embeddings = student(photometry.normalise(seen)).float()
            if spec.momentum_mode == "ema":
                update_teacher(teacher, student.module, decay=spec.ema_decay)
            elif iteration % spec.copy_interval == 0:
                hard_copy(teacher, student.module)
            with torch.no_grad():
                teacher_embeddings = teacher(photometry.normalise(clean)).float()
                semantic = to_embedding_grid(target_batch["semantic"], embeddings)
                options = clustering_options(spec, label_set, clustering, iteration)
                asked = time.perf_counter()
                pseudo_labels = torch.stack(
                    [
                        cluster(
                            teacher_embeddings[i],
                            semantic[i],
                            class_ids,
                            second_embeddings=embeddings[i].detach(),
                            **options,
                        )[0]
                        for i in range(len(clean))
                    ]
                )
                clustering_s = time.perf_counter() - asked
                rotated_embeddings, valid = None, None
                if spec.weights.consistency > 0:
                    rotated_embeddings, valid = rotated_view(teacher, compared, spec.rotation)
            terms = embedding_loss(
                embeddings,
                pseudo_labels,
                weights=spec.weights,
                teacher_embeddings=rotated_embeddings,
                valid=valid,
                **margins,
            )
            loss = sum(terms.values()) * (n_target / spec.batch_size)
            fabric.backward(loss)
            logged["target_loss"] = loss.detach()
            logged["pseudo_instances"] = pseudo_labels.flatten(1).amax(1).float().mean()
            logged |= {name: value.detach() for name, value in terms.items()}
        optimizer.step()

        if monitor is not None:
            monitored |= {"clustering_s": clustering_s, "step_s": time.perf_counter() - began}
        job.log(iteration, **logged, **monitored)
        job.checkpoint(
            lambda: {
                "model": student.state_dict(),
                "teacher": teacher.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
            iteration + 1,
        )
    if monitor is not None:
        job.log(spec.iterations, **monitor(spec.iterations, student, teacher))
    return student


def rotated_view(teacher: nn.Module, crops: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Teacher embeddings of randomly rotated crops, rotated back, and where they are valid."""
    degrees = torch.rand(len(crops), device=crops.device) * largest
    turned = warping.rotate(photometry.normalise(crops), degrees)  # corners are 0, the mean colour
    rotated = teacher(turned).float()
    embeddings = warping.unrotate(rotated, degrees)
    return embeddings, warping.rotation_validity(embeddings.shape[-2:], degrees)
