"""The semantic branch: supervised baseline, batch-norm adaptation, and SAC self-training.

References: thesis 6.1 and ch. 7 algorithm 1; Araslanov & Roth 2021, arXiv:2105.00097 (SAC).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from panolib.config import (
    Count,
    NonNegative,
    NonNegativePair,
    Positive,
    PositivePair,
    Seed,
    Share,
    later,
    spec,
)
from panolib.data import photometry, views
from panolib.data.loading import batches, iteration_seed
from panolib.data.samples import Sample
from panolib.labels import LABEL_SETS, VOID
from panolib.losses.semantic import cross_entropy, self_training_loss
from panolib.models.geometry import CELL_CENTRES, Placement, placement_of, upsample_to
from panolib.training.job import Job, Watch, unwatched
from panolib.training.painting import crop_maps, paint_pseudo_labels
from panolib.training.pseudo_labels import (
    draw_rare_class,
    fuse_views,
    rare_class_weights,
    semantic_pseudo_labels,
    update_class_prior,
)
from panolib.training.setup import (
    Compute,
    Monitor,
    Optimiser,
    SemanticNetwork,
    batch_norm_momentum,
    build_optimizer,
    build_semantic,
    freeze_batch_norm,
    launch,
    lay_out,
    set_learning_rate,
    stream_loaders,
)
from panolib.training.teacher import make_teacher, update_teacher


@spec
class Augmentation:
    """Joint image and label augmentation of a training crop (pixels, shares, radii in pixels)."""

    height: Count
    width: Count
    scale: PositivePair
    scale_of: Literal["window", "image"]  # share of the image; factor by which the image is resized
    hflip: Share
    jitter: NonNegative
    jitter_probability: Share
    blur: NonNegativePair | None


@spec
class ChannelStatistics:
    """Mean and standard deviation of a data set's red, green and blue, in [0, 1]."""

    mean: tuple[Share, Share, Share]
    std: tuple[Positive, Positive, Positive]


@spec
class Renormalisation:
    """Channel statistics by data set; images of a source get those of the target (SAC).

    SAC normalises a source image with mean' = mean_s - std_s / std_t (mean_t - mean_ImageNet) and
    std' = std_s std_ImageNet / std_t. That is the ImageNet normalisation of the image whose statistics were
    replaced, (value - mean_s) std_t / std_s + mean_t. A source without statistics is left alone.
    """

    target: ChannelStatistics
    synthia: ChannelStatistics | None
    gta5: ChannelStatistics | None

    def recolour(self, origin: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(gain, offset) of each channel for images of the data set `origin`; None for one left alone."""
        source = {"synthia": self.synthia, "gta5": self.gta5}.get(origin)
        if source is None:
            return None
        gain = tuple(t / s for t, s in zip(self.target.std, source.std))
        return gain, tuple(t - g * s for t, g, s in zip(self.target.mean, gain, source.mean))


@spec
class BaselineSpec:
    """Supervised training on labelled images of `source` (the oracle's source is the target itself)."""

    label_set: str
    source: str
    validation: str
    network: SemanticNetwork
    optimiser: Optimiser
    augmentation: Augmentation
    iterations: Count
    batch_size: Count
    compute: Compute
    seed: Seed
    monitor: Monitor | None = later(None)
    renormalise: Renormalisation | None = later(None)  # of source images


@spec
class BatchNormSpec:
    """Re-estimate running statistics with unlabelled target images; no weight moves.

    `source` None is strict AdaBN (target only). With a source, source and target batches alternate
    at `momentum`, which gives the mixed statistics of SAC's baseline ("ABN"): statistics never
    enter a train-mode forward pass, so ABN's weights *are* the source-only weights.
    """

    label_set: str
    source: str | None
    target: str
    augmentation: Augmentation
    batch_size: Count
    n_batches: Count
    momentum: Share
    compute: Compute
    seed: Seed
    target_batch_size: Count | None = later(None)  # where it is not that of the source
    renormalise: Renormalisation | None = later(None)  # of source images


@spec(kw_only=True)
class SemanticBatchNormSpec(BatchNormSpec):
    """Batch-norm adaptation of a semantic network."""

    validation: str
    network: SemanticNetwork


@spec
class SelfTrainingSpec:
    """SAC self-training. `target_weight` 0 is the control: source-only continuation."""

    label_set: str
    source: str
    target: str
    validation: str
    network: SemanticNetwork
    optimiser: Optimiser
    augmentation: Augmentation  # of source crops
    iterations: Count
    batch_size: Count  # source crops
    n_target: Count  # target images an iteration
    n_views: Count
    zoom: PositivePair
    noise_blur: NonNegativePair | None  # pixels; None: the student sees sharp crops
    fusion_stride: Count  # fusion and target loss at 1 / stride of the image size, rounded up
    target_weight: NonNegative
    focal_exponent: NonNegative
    threshold_scale: Share
    prior_scale: Positive
    prior_momentum: Share
    minimum_threshold: Share
    ema_decay: Share
    ema_interval: Count
    batch_norm: Literal["frozen", "target"]  # as in SAC, or running statistics follow the target
    rare_class_sampling: bool
    compute: Compute
    seed: Seed
    monitor: Monitor | None = later(None)
    painted: Literal["true", "predicted"] | None = later(None)  # instances on pseudo-labels
    painted_share: Share = later(1.0)  # of the instances of every image, drawn anew every iteration
    renormalise: Renormalisation | None = later(None)  # of source images


@dataclass
class LabelledBatches:
    """Callable: iteration -> {"image" float [B, 3, h, w] normalised, and int64 label maps [B, h, w]}."""

    dataset: Sequence[Sample]
    batch_size: int
    augmentation: Augmentation
    maps: tuple[str, ...] = ("semantic",)
    renormalise: Renormalisation | None = None

    @record_function("images and their augmentation")
    def __call__(self, iteration: int) -> dict[str, Tensor]:
        indices = torch.randint(len(self.dataset), (self.batch_size,)).tolist()
        images, labels = [], []
        for index in indices:
            sample = self.dataset[index]
            maps = {name: torch.from_numpy(np.ascontiguousarray(getattr(sample, name))) for name in self.maps}
            recolour = _recolour(self.renormalise, self.dataset, index)
            image, maps = augment(photometry.to_image(sample), maps, self.augmentation, recolour)
            images.append(image)
            labels.append(maps)
        stacked = {name: torch.stack([maps[name] for maps in labels]).long() for name in self.maps}
        return {"image": photometry.normalise(torch.stack(images)), **stacked}


@dataclass
class UnlabelledBatches:
    """Callable: iteration -> {"image" float [B, 3, h, w] in [0, 1]}; with weights, balanced over classes.

    `maps` are label maps of every image that ride along, int64 [B, h, w] each; they change no draw.
    """

    dataset: Sequence[Sample]
    batch_size: int
    augmentation: Augmentation
    class_weights: Tensor | None = None  # [C, n_images]
    maps: Sequence[Mapping[str, np.ndarray]] | None = None
    renormalise: Renormalisation | None = None

    @record_function("images and their augmentation")
    def __call__(self, iteration: int) -> dict[str, Tensor]:
        if self.class_weights is None:
            indices = torch.randint(len(self.dataset), (self.batch_size,)).tolist()
        else:
            first = iteration * self.batch_size
            indices = [draw_rare_class(self.class_weights, first + i) for i in range(self.batch_size)]
        crops = []
        for index in indices:
            maps = {} if self.maps is None else self.maps[index]
            maps = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in maps.items()}
            recolour = _recolour(self.renormalise, self.dataset, index)
            image, maps = augment(photometry.to_image(self.dataset[index]), maps, self.augmentation, recolour)
            crops.append({"image": image, **maps})
        return {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}


def clean_view(augmentation: Augmentation) -> Augmentation:
    """The same crop size without zoom or photometric change: how target images enter a batch."""
    return replace(augmentation, scale=(1.0, 1.0), jitter=0.0, jitter_probability=0.0, blur=None)


def _recolour(renormalise: Renormalisation | None, dataset: Sequence[Sample], index: int):
    """How an image of a data set is recoloured; None for not at all."""
    return None if renormalise is None else renormalise.recolour(dataset.origin(index))


def augment(
    image: Tensor,
    maps: dict[str, Tensor],
    augmentation: Augmentation,
    recolour: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One random training view (float image in [0, 1], label maps) of a sample."""
    return views.train_view(
        image,
        maps,
        size=(augmentation.height, augmentation.width),
        scale=augmentation.scale,
        scale_of=augmentation.scale_of,
        hflip=augmentation.hflip,
        jitter=augmentation.jitter,
        jitter_probability=augmentation.jitter_probability,
        blur=augmentation.blur,
        recolour=recolour,
    )


def head_logits(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    """Logits of every head of a network, the main one first: one for DeepLab, three for BiSeNet."""
    heads = getattr(getattr(model, "module", model), "n_heads", 1)
    return (model(image),) if heads == 1 else model(image, every_head=True)


def supervised_loss(
    outputs: Sequence[Tensor], labels: Tensor, placement: Placement = CELL_CENTRES
) -> Tensor:
    """Cross-entropy of labels int64 [B, H, W], summed over heads [B, C, h, w] of this placement."""
    size = labels.shape[-2:]
    first, *others = (cross_entropy(upsample_to(logits, size, placement), labels) for logits in outputs)
    return sum(others, first)


def train_baseline(
    spec: BaselineSpec,
    job: Job,
    source: Sequence[Sample],
    n_classes: int,
    watch: Watch = unwatched,
) -> nn.Module:
    """Cross-entropy training on labelled images; returns the trained network (thesis eq. 1).

    `watch`: scores the network while it trains (`scoring.semantic_monitor`).
    """
    fabric = launch(spec.compute)
    torch.manual_seed(spec.seed)
    state = job.resume()
    model = lay_out(build_semantic(spec.network, n_classes, pretrained=state is None), spec.compute)
    model, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))

    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    loader = batches(
        LabelledBatches(source, spec.batch_size, spec.augmentation, renormalise=spec.renormalise),
        seed=spec.seed,
        start=job.start,
        stop=spec.iterations,
        workers=spec.compute.loader_workers,
    )
    model.train()
    for iteration, batch in zip(job.progress(job.start, spec.iterations), fabric.setup_dataloaders(loader)):
        scores = watch(iteration, model)
        torch.manual_seed(iteration_seed(spec.seed, iteration, "step"))  # dropout
        set_learning_rate(optimizer, spec.optimiser, iteration, spec.iterations)
        loss = supervised_loss(head_logits(model, batch["image"]), batch["semantic"], placement_of(model))
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()

        job.log(iteration, loss=loss, **scores)
        job.checkpoint(
            lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, iteration + 1
        )
    if scores := watch(spec.iterations, model):
        job.log(spec.iterations, **scores)
    return model


def adapt_batch_norm(
    spec: BatchNormSpec, model: nn.Module, source: Sequence[Sample] | None, target: Sequence[Sample]
) -> nn.Module:
    """Refresh running statistics in place: ABN (with a source) or strict AdaBN (without).

    Only batch-norm layers are in train mode: dropout would add its noise to the statistics.
    """
    fabric = launch(spec.compute)
    model = fabric.setup(model.eval())
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    n_target = spec.target_batch_size or spec.batch_size
    streams = [UnlabelledBatches(target, n_target, clean_view(spec.augmentation))]
    if source is not None:
        renormalise = spec.renormalise
        streams.insert(
            0, UnlabelledBatches(source, spec.batch_size, spec.augmentation, renormalise=renormalise)
        )
    else:
        for layer in layers:
            layer.reset_running_stats()
    loaders = [batches(stream, seed=spec.seed, start=0, stop=spec.n_batches) for stream in streams]
    for layer in layers:
        layer.train()
    with torch.no_grad():
        for number, step in enumerate(zip(*map(fabric.setup_dataloaders, loaders))):
            # strict AdaBN: the plain average over all batches; ABN: the moving average of the reference
            momentum = 1.0 / (number + 1) if source is None else spec.momentum
            with batch_norm_momentum(model, momentum):
                for batch in step:
                    model(photometry.normalise(batch["image"]))
    return model


def predicted_class_ratios(
    model: nn.Module, target: Sequence[Sample], n_classes: int, device: torch.device
) -> Tensor:
    """float [n_images, C]: share of pixels that the network gives each class, per image."""
    model.eval()
    ratios = []
    with torch.inference_mode():
        for sample in target:
            labels = model(photometry.network_input(sample).to(device)).argmax(1)
            ratios.append(torch.bincount(labels.flatten(), minlength=n_classes).float() / labels.numel())
    return torch.stack(ratios).cpu()


def self_train(
    spec: SelfTrainingSpec,
    job: Job,
    start_state: dict[str, Tensor],
    source: Sequence[Sample],
    target: Sequence[Sample],
    n_classes: int,
    *,
    painted: Sequence[Mapping[str, np.ndarray]] | None = None,
    watch: Watch = unwatched,
) -> tuple[nn.Module, nn.Module]:
    """SAC self-training from a baseline's weights; returns (student, teacher).

    `target` samples are read without labels. One iteration is SAC's: cross-entropy on the
    source; student on noisy views; momentum update; teacher on clean views, fused over views;
    thresholded pseudo-labels; confidence-weighted focal loss.

    `painted`: "instance", and for true ones "semantic", maps of every target image, painted on its
    pseudo-labels (`painting`). `watch`: as in `train_baseline`.
    """
    if spec.batch_norm not in ("frozen", "target"):
        raise ValueError(f"batch_norm is {spec.batch_norm!r}; expected 'frozen' or 'target'")
    fabric = launch(spec.compute)
    torch.manual_seed(spec.seed)
    model = lay_out(build_semantic(spec.network, n_classes, pretrained=False), spec.compute)
    model.load_state_dict(start_state)
    teacher = fabric.to_device(make_teacher(model))
    class_weights = None
    if spec.rare_class_sampling and spec.target_weight > 0:
        class_weights = rare_class_weights(predicted_class_ratios(teacher, target, n_classes, fabric.device))
    student, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))
    prior = torch.full((n_classes,), spec.prior_scale, device=fabric.device)

    if (state := job.resume()) is not None:
        student.load_state_dict(state["model"])
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        prior = state["class_prior"].to(fabric.device)

    size = (spec.augmentation.height, spec.augmentation.width)
    streams = (
        LabelledBatches(source, spec.batch_size, spec.augmentation, renormalise=spec.renormalise),
        UnlabelledBatches(target, spec.n_target, clean_view(spec.augmentation), class_weights, painted),
    )
    loaders = stream_loaders(
        fabric, streams, seed=spec.seed, start=job.start, stop=spec.iterations, compute=spec.compute
    )
    fusion_size = fusion_grid(size, spec.fusion_stride)
    placement = placement_of(teacher)
    source_momentum = 0.0 if spec.batch_norm == "target" else 0.1
    label_set = LABEL_SETS[spec.label_set]

    student.train()
    if spec.batch_norm == "frozen":
        freeze_batch_norm(student)
    for iteration, source_batch, target_batch in zip(job.progress(job.start, spec.iterations), *loaders):
        scores = watch(iteration, student, functools.partial(whole_image_labels, spec, teacher, prior))
        torch.manual_seed(iteration_seed(spec.seed, iteration, "step"))
        set_learning_rate(optimizer, spec.optimiser, iteration, spec.iterations)
        optimizer.zero_grad(set_to_none=True)

        with batch_norm_momentum(student, source_momentum):
            outputs = head_logits(student, source_batch["image"])
        source_loss = supervised_loss(outputs, source_batch["semantic"], placement)
        fabric.backward(source_loss)

        crops = views.multi_view_crops(target_batch["image"], n_views=spec.n_views, zoom=spec.zoom)
        noisy = photometry.normalise(photometry.photometric_noise(crops.clean, blur=spec.noise_blur))
        if spec.target_weight == 0:  # control: the target only moves the running statistics
            with torch.no_grad():
                student(noisy)
            target_loss, coverage = source_loss.new_zeros(()), source_loss.new_zeros(())
        else:
            student_logits = upsample_to(student(noisy), fusion_size, placement, image_size=size)
            if iteration % spec.ema_interval == 0:
                update_teacher(teacher, student.module, decay=spec.ema_decay)
            with torch.no_grad():
                logits = teacher(photometry.normalise(crops.clean)).float()
                probabilities = upsample_to(logits, fusion_size, placement, image_size=size).softmax(1)
                prior = update_class_prior(
                    prior, probabilities, momentum=spec.prior_momentum, prior_scale=spec.prior_scale
                )
                fused, valid = fuse_views(
                    probabilities, crops.affine, crops.inverse, crops.padding, crops.n_views
                )
                pseudo_labels, confidence = semantic_pseudo_labels(fused, valid, prior, **thresholds(spec))
                if painted is not None:
                    maps = {name: values for name, values in target_batch.items() if name != "image"}
                    pseudo_labels, confidence = paint_pseudo_labels(
                        pseudo_labels,
                        confidence,
                        fused,
                        valid,
                        crop_maps(maps, crops, fusion_size),
                        n_views=spec.n_views,
                        thing_ids=label_set.thing_ids,
                        share=spec.painted_share,
                    )
            target_loss = spec.target_weight * self_training_loss(
                student_logits, pseudo_labels, confidence, prior, focal_exponent=spec.focal_exponent
            )
            coverage = (pseudo_labels != VOID).float().mean()
            fabric.backward(target_loss)
        optimizer.step()

        job.log(
            iteration,
            loss=source_loss + target_loss,
            source_loss=source_loss,
            target_loss=target_loss,
            coverage=coverage,
            **scores,
        )
        job.checkpoint(
            lambda chi=prior: {
                "model": student.state_dict(),
                "teacher": teacher.state_dict(),
                "optimizer": optimizer.state_dict(),
                "class_prior": chi,
            },
            iteration + 1,
        )
    labels = functools.partial(whole_image_labels, spec, teacher, prior)
    if scores := watch(spec.iterations, student, labels):
        job.log(spec.iterations, **scores)
    return student, teacher


def thresholds(spec: SelfTrainingSpec) -> dict[str, float]:
    """Keyword arguments of `semantic_pseudo_labels`."""
    return {
        "threshold_scale": spec.threshold_scale,
        "prior_scale": spec.prior_scale,
        "minimum": spec.minimum_threshold,
    }


def fusion_grid(size: tuple[int, int] | torch.Size, stride: int) -> tuple[int, int]:
    """Height and width of the maps that are fused, for images of `size`: never without a pixel."""
    height, width = (-(-side // stride) for side in size)
    return height, width


def whole_image_labels(spec: SelfTrainingSpec, teacher: nn.Module, prior: Tensor, image: Tensor) -> Tensor:
    """Pseudo-labels of whole images, to look at: one view without augmentation, hence nothing to fuse.

    Classes, class prior and thresholds are those of training; training itself fuses several crops and takes
    the thresholds of each crop. float [B, 3, H, W] in [0, 1] -> int64 [B, h, w] of `fusion_grid`.
    """
    image = image.to(prior.device)
    image_size = image.shape[-2:]
    size = fusion_grid(image_size, spec.fusion_stride)
    logits = teacher(photometry.normalise(image)).float()
    probabilities = upsample_to(logits, size, placement_of(teacher), image_size=image_size).softmax(1)
    everywhere = torch.ones_like(probabilities[:, 0], dtype=torch.bool)
    return semantic_pseudo_labels(probabilities, everywhere, prior, **thresholds(spec))[0]
