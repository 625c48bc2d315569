"""The instance branch: embeddings trained on labelled instances, and self-trained on clustered ones.

References: thesis 6.2 and ch. 7 algorithm 2; Wolny et al. 2022, arXiv:2103.14572 (SPOCO).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from panolib.data import photometry
from panolib.data.mixing import source_share_counts
from panolib.data.samples import Sample
from panolib.data.views import UNKNOWN
from panolib.labels import LabelSet
from panolib.losses.embedding import embedding_loss
from panolib.models.weights import load_start
from panolib.objectness.candidates import LEVELS
from panolib.objectness.classifier import Objectness
from panolib.objectness.features import encoder_map
from panolib.training import ranks
from panolib.training.batch_norm import source_statistics, train_mode
from panolib.training.crops import LabelledBatches, UnlabelledBatches, answered_weights, clean_view
from panolib.training.instance_targets import (
    added_coordinates,
    chosen_instead,
    clustered,
    objects_only,
    ring_margins,
    rotated_view,
    supervised_terms,
    to_embedding_grid,
    weights_of_part,
)
from panolib.training.loop import Job, Watch, begin, iterate, restore, unwatched
from panolib.training.pasting import paste_instances, sure_instances
from panolib.training.run_specs import InstanceBaselineSpec, InstanceSelfTrainingSpec
from panolib.training.setup import build_instance, build_optimizer, lay_out
from panolib.training.teacher import make_teacher, update_teacher

LABELS = ("semantic", "instance", "crowd")


def train_instance_baseline(
    spec: InstanceBaselineSpec, job: Job, source: Sequence[Sample], label_set: LabelSet
) -> nn.Module:
    """Train the embedding network on labelled instances; returns it (thesis eq. 11 without self-training)."""
    fabric, state = begin(spec, job, together=True)
    whole = state is not None or spec.start is not None
    model = lay_out(build_instance(spec.network, pretrained=not whole), spec.compute)
    if state is None and spec.start is not None:
        load_start(model, spec.start)
    model, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))
    parts = {"model": model, "optimizer": optimizer}
    restore(parts, state)
    stream = LabelledBatches(source, spec.batch_size, spec.augmentation, LABELS)

    model.train()
    for iteration, batch in iterate(spec, job, fabric, parts, stream):
        terms = supervised_terms(spec, model(batch["image"]), batch, label_set, iteration)
        loss = sum(terms.values())
        fabric.backward(loss)
        optimizer.step()
        job.log(iteration, loss=loss, **terms)
    return model


def instance_self_train(
    spec: InstanceSelfTrainingSpec,
    job: Job,
    start_state: dict[str, Tensor],
    source: Sequence[Sample],
    target: Sequence[Sample],
    masks: Sequence[np.ndarray],
    label_set: LabelSet,
    clustering: Mapping[str, float],
    watch: Watch = unwatched,
    objectness: Objectness | None = None,
    confidence: Sequence[np.ndarray] | None = None,
    chosen: Sequence[np.ndarray | None] | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Self-train the embeddings on target images, guided by predicted semantic maps; (student, teacher).

    Every iteration the momentum network embeds the clean target crops, its embeddings are clustered
    inside each thing-class mask (thesis ch. 7 algorithm 2), and the student learns those instances
    from noisy crops. The consistency term compares with the momentum network's view of the rotated
    crop, rotated back. With `noise_on` "teacher" the student sees clean crops, and the noise is on that view;
    pseudo-labels come from clean crops either way. A share of every batch is labelled source (thesis 8.4).

    `masks`: uint8 [H, W] predicted train ids of every target image. `watch` (iteration, student, teacher) is
    asked before every step and once at the end; with one the curves also say the seconds of every step, and
    those of its clusterings. `objectness`: with `spec.objectness` what judges pseudo-labels. `confidence`: of
    the masks, uint8 [H, W] of every image (`objectness.candidates.quantised`), where `spec.asks_confidence`.
    `chosen`: with `spec.answered_share` the instances [H, W] that stay the pseudo-labels of an image, None of
    one without an answer.

    With `spec.paste` the source crops come last, as they then show pseudo-labels of the same iteration.
    """
    fabric, state = begin(spec, job, together=True)
    model = lay_out(build_instance(spec.network, pretrained=False), spec.compute)
    model.load_state_dict(start_state)
    teacher = fabric.to_device(make_teacher(model))
    student, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))
    parts = {"model": student, "teacher": teacher, "optimizer": optimizer}
    restore(parts, state)
    n_source, n_target = source_share_counts(spec.batch_size, spec.source_share)
    maps = [{"semantic": mask} for mask in masks]
    if confidence is not None:
        maps = [own | {"confidence": levels} for own, levels in zip(maps, confidence, strict=True)]
    weights = None
    if chosen is not None:
        weights = answered_weights([labels is not None for labels in chosen], spec.answered_share)
        unknown = [np.broadcast_to(np.int8(UNKNOWN), mask.shape) for mask in masks]
        chosen = [none if labels is None else labels for labels, none in zip(chosen, unknown, strict=True)]
        maps = [own | {"chosen": labels} for own, labels in zip(maps, chosen, strict=True)]
    streams = (
        LabelledBatches(source, n_source or ranks.n_processes(), spec.augmentation, LABELS),
        # the control still shows the target to the running statistics
        UnlabelledBatches(
            target, n_target or ranks.n_processes(), clean_view(spec.augmentation), weights, maps
        ),
    )

    def learn_source(iteration: int, batch: Mapping[str, Tensor]) -> Tensor:
        with source_statistics(student, spec.batch_norm):
            embeddings = student(batch["image"])
        terms = supervised_terms(spec, embeddings, batch, label_set, iteration)
        loss = sum(terms.values()) * (n_source / spec.batch_size)
        fabric.backward(loss)
        return loss

    train_mode(student, spec.batch_norm)
    for iteration, source_batch, target_batch in iterate(spec, job, fabric, parts, *streams):
        scores = watch(iteration, student, teacher)
        logged: dict[str, Tensor] = {}
        began, clustering_s = time.perf_counter(), 0.0
        if n_source > 0 and spec.paste is None:
            logged["source_loss"] = learn_source(iteration, source_batch)

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
                update_teacher(teacher, student.module, decay=0.0)
            with torch.no_grad():
                with nullcontext() if objectness is None else encoder_map(teacher) as feature_maps:
                    teacher_embeddings = teacher(photometry.normalise(clean)).float()
                semantic = to_embedding_grid(target_batch["semantic"], embeddings)
                if confidence is not None:
                    levels = to_embedding_grid(target_batch["confidence"], embeddings)
                asked = time.perf_counter()
                pseudo_labels = clustered(
                    spec, label_set, clustering, iteration, semantic, teacher_embeddings, embeddings
                )
                if objectness is not None:
                    pseudo_labels = objects_only(
                        objectness, spec.objectness, pseudo_labels, semantic, levels, teacher_embeddings,
                        embeddings, feature_maps[0], clustering["bandwidth"],
                    )  # fmt: skip
                if chosen is not None:
                    kept = to_embedding_grid(target_batch["chosen"], embeddings)
                    pseudo_labels = chosen_instead(pseudo_labels, kept, spec.min_area)
                clustering_s = time.perf_counter() - asked
            rotated, valid, confident = None, None, None
            if spec.weights.consistency > 0:
                rotated, valid = rotated_view(teacher, compared, spec.rotation)
            if spec.confident_weight is not None:
                confident = levels > LEVELS * spec.confident_weight
            terms = embedding_loss(
                embeddings,
                pseudo_labels,
                weights=weights_of_part(spec.weights),
                teacher_embeddings=rotated,
                valid=valid,
                coordinates=added_coordinates(spec.network, embeddings),
                confident=confident,
                **ring_margins(spec.margins, iteration),
            )
            logged["target_loss"] = sum(terms.values()) * (n_target / spec.batch_size)
            fabric.backward(logged["target_loss"])
            logged["pseudo_instances"] = pseudo_labels.flatten(1).amax(1).float().mean()
            logged |= terms
            if spec.paste is not None:
                sure = sure_instances(pseudo_labels, levels / LEVELS, spec.paste)
                mixed = paste_instances(source_batch, photometry.normalise(clean), sure, semantic)
                logged["source_loss"] = learn_source(iteration, mixed)
        optimizer.step()
        if watch is not unwatched:
            scores |= {"clustering_s": clustering_s, "step_s": time.perf_counter() - began}
        job.log(iteration, **logged, **scores)
    if scores := watch(spec.iterations, student, teacher):
        job.log(spec.iterations, **scores)
    return student, teacher
