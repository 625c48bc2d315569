"""The semantic branch: training on labelled images, and SAC self-training on pseudo-labels.

References: thesis 6.1 and ch. 7 algorithm 1; Araslanov & Roth 2021, arXiv:2105.00097 (SAC).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from panolib.data import photometry, views
from panolib.data.samples import Sample
from panolib.labels import LABEL_SETS, VOID
from panolib.losses.semantic import cross_entropy, self_training_loss
from panolib.models.geometry import CELL_CENTRES, Placement, placement_of, upsample_to
from panolib.models.weights import load_start
from panolib.training.batch_norm import source_statistics, train_mode
from panolib.training.crops import (
    LabelledBatches,
    UnlabelledBatches,
    class_pixels,
    clean_view,
    ego_rows,
    predicted_class_ratios,
    rare_class_weights,
    rare_source_weights,
)
from panolib.training.loop import Job, Watch, begin, iterate, restore, unwatched
from panolib.training.painting import crop_maps, paint_pseudo_labels
from panolib.training.pasting import paste_classes, paste_labels
from panolib.training.pseudo_labels import fuse_views, semantic_pseudo_labels, update_class_prior
from panolib.training.run_specs import BaselineSpec, SelfTrainingSpec
from panolib.training.setup import build_optimizer, build_semantic, lay_out
from panolib.training.teacher import make_teacher, update_teacher


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
    fabric, state = begin(spec, job, together=True)
    whole = state is not None or spec.start is not None
    model = lay_out(build_semantic(spec.network, n_classes, pretrained=not whole), spec.compute)
    if state is None and spec.start is not None:
        load_start(model, spec.start)
    model, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))
    parts = {"model": model, "optimizer": optimizer}
    restore(parts, state)
    stream = LabelledBatches(source, spec.batch_size, spec.augmentation, renormalise=spec.renormalise)

    model.train()
    for iteration, batch in iterate(spec, job, fabric, parts, stream):
        scores = watch(iteration, model)
        loss = supervised_loss(head_logits(model, batch["image"]), batch["semantic"], placement_of(model))
        fabric.backward(loss)
        optimizer.step()
        job.log(iteration, loss=loss, **scores)
    if scores := watch(spec.iterations, model):
        job.log(spec.iterations, **scores)
    return model


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
    fabric, state = begin(spec, job, together=True)
    model = lay_out(build_semantic(spec.network, n_classes, pretrained=False), spec.compute)
    model.load_state_dict(start_state)
    teacher = fabric.to_device(make_teacher(model))
    class_weights = None
    if spec.rare_class_sampling and spec.target_weight > 0:
        class_weights = rare_class_weights(predicted_class_ratios(teacher, target, n_classes))
    student, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))
    prior = torch.full((n_classes,), spec.prior_scale, device=fabric.device)  # changed in place
    parts = {"model": student, "teacher": teacher, "optimizer": optimizer, "class_prior": prior}
    restore(parts, state)
    source_weights = None
    if spec.rare_source is not None:
        source_weights = rare_source_weights(class_pixels(source, n_classes), temperature=spec.rare_source)
    maps = painted
    if spec.ego_share > 0:
        ego = ego_rows(target, spec.ego_share)
        maps = ego if painted is None else [own | rows for own, rows in zip(painted, ego, strict=True)]
    streams = (
        LabelledBatches(
            source, spec.batch_size, spec.augmentation, renormalise=spec.renormalise, weights=source_weights
        ),
        UnlabelledBatches(target, spec.n_target, clean_view(spec.augmentation), class_weights, maps),
    )
    placement, size = placement_of(teacher), (spec.augmentation.height, spec.augmentation.width)
    look = functools.partial(whole_image_labels, spec, teacher, prior)

    train_mode(student, spec.batch_norm)
    for iteration, source_batch, target_batch in iterate(spec, job, fabric, parts, *streams):
        scores = watch(iteration, student, look)
        with source_statistics(student, spec.batch_norm):
            outputs = head_logits(student, source_batch["image"])
        source_loss = supervised_loss(outputs, source_batch["semantic"], placement)
        fabric.backward(source_loss)

        crops = views.multi_view_crops(target_batch.pop("image"), n_views=spec.n_views, zoom=spec.zoom)
        noisy = photometry.normalise(photometry.photometric_noise(crops.clean, blur=spec.noise_blur))
        if spec.target_weight == 0:  # control: the target only moves the running statistics
            with torch.no_grad():
                student(noisy)
            target_loss = coverage = source_loss.new_zeros(())
        else:
            grid, pasted = fusion_grid(size, spec.fusion_stride), None
            if spec.class_mix:  # the teacher sees the views without
                noisy, pasted = paste_classes(noisy, source_batch, n_classes)
            student_logits = upsample_to(student(noisy), grid, placement, image_size=size)
            if iteration % spec.ema_interval == 0:
                update_teacher(teacher, student.module, decay=spec.ema_decay)
            pseudo_labels, confidence = taught(spec, teacher, prior, crops, target_batch)
            coverage = (pseudo_labels != VOID).float().mean()
            if pasted is not None:
                pseudo_labels, confidence = paste_labels(pasted, pseudo_labels, confidence)
            target_loss = spec.target_weight * self_training_loss(
                student_logits, pseudo_labels, confidence, prior, focal_exponent=spec.focal_exponent
            )
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
    if scores := watch(spec.iterations, student, look):
        job.log(spec.iterations, **scores)
    return student, teacher


@torch.no_grad()
def taught(
    spec: SelfTrainingSpec,
    teacher: nn.Module,
    prior: Tensor,
    crops: views.Views,
    maps: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Pseudo-labels of the crops and their confidence, int64 and float [B * L, h, w] of `fusion_grid`.

    Brings the class prior [C] up to date, in place. `maps` [B, H, W] of the images: those to paint, and
    "ego", where no pseudo-label is to be; {} for none.
    """
    logits = teacher(photometry.normalise(crops.clean)).float()
    return labels_of_views(spec, logits, placement_of(teacher), prior, crops, maps)


def labels_of_views(
    spec: SelfTrainingSpec,
    logits: Tensor,
    placement: Placement,
    prior: Tensor,
    crops: views.Views,
    maps: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """The same from logits [B * L, C, h, w] of the clean crops, which a network of this placement gave."""
    image_size = crops.clean.shape[-2:]
    size = fusion_grid(image_size, spec.fusion_stride)
    probabilities = upsample_to(logits, size, placement, image_size=image_size).softmax(1)
    moved = update_class_prior(
        prior, probabilities, momentum=spec.prior_momentum, prior_scale=spec.prior_scale
    )
    prior.copy_(moved)
    fused, valid = fuse_views(probabilities, crops.affine, crops.inverse, crops.padding, crops.n_views)
    labels, confidence = semantic_pseudo_labels(fused, valid, prior, **thresholds(spec))
    painted = crop_maps(maps, crops, size)
    ego = painted.pop("ego", None)
    if painted:
        labels, confidence = paint_pseudo_labels(
            labels,
            confidence,
            fused,
            valid,
            painted,
            n_views=spec.n_views,
            thing_ids=LABEL_SETS[spec.label_set].thing_ids,
            share=spec.painted_share,
        )
    return labels if ego is None else labels.masked_fill(ego > 0, VOID), confidence


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
