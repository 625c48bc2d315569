"""One network for mask and embedding: both losses on labelled images, both pseudo-labels on target crops.

References: thesis ch. 7; Araslanov & Roth 2021, arXiv:2105.00097 (SAC); Wolny et al. 2022, arXiv:2103.14572
(SPOCO); Saha et al. 2023, arXiv:2304.14291 (EDAPS: one encoder).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from panolib.data import photometry, views
from panolib.data.samples import Sample
from panolib.labels import VOID, LabelSet
from panolib.losses.embedding import embedding_loss
from panolib.losses.semantic import self_training_loss
from panolib.models.geometry import placement_of, upsample_to
from panolib.training.batch_norm import source_statistics, train_mode
from panolib.training.crops import (
    LabelledBatches,
    UnlabelledBatches,
    clean_view,
    predicted_class_ratios,
    rare_class_weights,
)
from panolib.training.instance import LABELS
from panolib.training.instance_targets import (
    added_coordinates,
    clustered,
    ring_margins,
    rotated_view,
    supervised_terms,
    to_embedding_grid,
    weights_of_part,
)
from panolib.training.loop import Job, begin, iterate, restore
from panolib.training.run_specs import SharedBaselineSpec, SharedSelfTrainingSpec
from panolib.training.semantic import fusion_grid, labels_of_views, supervised_loss
from panolib.training.setup import build_optimizer, build_shared, lay_out
from panolib.training.teacher import make_teacher, update_teacher

ENCODER = "semantic.encoder."  # how the names of the encoder's parameters begin


def train_shared_baseline(
    spec: SharedBaselineSpec, job: Job, source: Sequence[Sample], label_set: LabelSet
) -> nn.Module:
    """Train both heads on labelled images; returns the network."""
    fabric, state = begin(spec, job, together=True)
    model = lay_out(
        build_shared(spec.network, label_set.n_classes, pretrained=state is None), spec.compute
    )
    model, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model, encoder=ENCODER))
    parts = {"model": model, "optimizer": optimizer}
    restore(parts, state)
    stream = LabelledBatches(source, spec.batch_size, spec.augmentation, LABELS)

    model.train()
    for iteration, batch in iterate(spec, job, fabric, parts, stream):
        terms = labelled_terms(spec, model, batch, label_set, iteration)
        loss = sum(terms.values())
        fabric.backward(loss)
        optimizer.step()
        job.log(iteration, loss=loss, **terms)
    return model


def labelled_terms(
    spec: SharedBaselineSpec | SharedSelfTrainingSpec,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    label_set: LabelSet,
    iteration: int,
) -> dict[str, Tensor]:
    """The loss of both heads on a labelled batch, as weighted terms."""
    logits, embeddings = model(batch["image"])
    placement = placement_of(getattr(model, "module", model).semantic)
    terms = supervised_terms(spec, embeddings, batch, label_set, iteration)
    return {
        "cross_entropy": supervised_loss((logits.float(),), batch["semantic"], placement),
        **{name: spec.embedding_weight * term for name, term in terms.items()},
    }


def shared_self_train(
    spec: SharedSelfTrainingSpec,
    job: Job,
    start_state: dict[str, Tensor],
    source: Sequence[Sample],
    target: Sequence[Sample],
    label_set: LabelSet,
    clustering: Mapping[str, float],
) -> tuple[nn.Module, nn.Module]:
    """Self-train both heads on target images without labels; returns (student, teacher).

    One iteration is that of SAC (`semantic.self_train`), and the same two passes, the student's over noisy
    views and the teacher's over clean ones, serve the embeddings: the teacher's are clustered inside the
    thing classes of the pseudo-labels. Pixels of no sure class are in no instance term: they may be objects.
    """
    fabric, state = begin(spec, job, together=True)
    model = lay_out(build_shared(spec.network, label_set.n_classes, pretrained=False), spec.compute)
    model.load_state_dict(start_state)
    teacher = fabric.to_device(make_teacher(model))
    class_weights = None
    if spec.rare_class_sampling and spec.target_weight > 0:
        ratios = predicted_class_ratios(teacher.semantic, target, label_set.n_classes)
        class_weights = rare_class_weights(ratios)
    student, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model, encoder=ENCODER))
    prior = torch.full((label_set.n_classes,), spec.prior_scale, device=fabric.device)  # changed in place
    parts = {"model": student, "teacher": teacher, "optimizer": optimizer, "class_prior": prior}
    restore(parts, state)
    streams = (
        LabelledBatches(source, spec.batch_size, spec.augmentation, LABELS),
        UnlabelledBatches(target, spec.n_target, clean_view(spec.augmentation), class_weights),
    )
    size = (spec.augmentation.height, spec.augmentation.width)
    grid, placement = fusion_grid(size, spec.fusion_stride), placement_of(teacher.semantic)

    train_mode(student, spec.batch_norm)
    for iteration, source_batch, target_batch in iterate(spec, job, fabric, parts, *streams):
        with source_statistics(student, spec.batch_norm):
            source_loss = sum(labelled_terms(spec, student, source_batch, label_set, iteration).values())
        fabric.backward(source_loss)

        crops = views.multi_view_crops(target_batch["image"], n_views=spec.n_views, zoom=spec.zoom)
        noisy = photometry.normalise(photometry.photometric_noise(crops.clean, blur=spec.noise_blur))
        if spec.target_weight == 0:  # control: the target only moves the running statistics
            with torch.no_grad():
                student(noisy)
            optimizer.step()
            job.log(iteration, loss=source_loss, source_loss=source_loss)
            continue
        logits, embeddings = student(noisy)
        logits = upsample_to(logits.float(), grid, placement, image_size=size)
        if iteration % spec.ema_interval == 0:
            update_teacher(teacher, student.module, decay=spec.ema_decay)
        with torch.no_grad():
            teacher_logits, teacher_embeddings = teacher(photometry.normalise(crops.clean))
            labels, confidence = labels_of_views(spec, teacher_logits.float(), placement, prior, crops, {})
            semantic = to_embedding_grid(labels, embeddings)
            instances = clustered(
                spec, label_set, clustering, iteration, semantic, teacher_embeddings.float(), embeddings
            )
        rotated, valid = None, None
        if spec.weights.consistency > 0:
            rotated, valid = rotated_view(teacher.instance, crops.clean, spec.rotation)
        terms = embedding_loss(
            embeddings.float(),
            instances,
            weights=weights_of_part(spec.weights),
            ignore=semantic == VOID,
            teacher_embeddings=rotated,
            valid=valid,
            coordinates=added_coordinates(spec.network, embeddings),
            **ring_margins(spec.margins, iteration),
        )
        terms = {name: spec.embedding_weight * term for name, term in terms.items()}
        terms["self_training"] = spec.target_weight * self_training_loss(
            logits, labels, confidence, prior, focal_exponent=spec.focal_exponent
        )
        target_loss = sum(terms.values())
        fabric.backward(target_loss)
        optimizer.step()
        job.log(
            iteration,
            loss=source_loss + target_loss,
            source_loss=source_loss,
            target_loss=target_loss,
            coverage=(labels != VOID).float().mean(),
            pseudo_instances=instances.flatten(1).amax(1).float().mean(),
            **terms,
        )
    return student, teacher
