"""Meta Pseudo Labels: a teacher that labels the target, and hears how much its labels help a student.

References: Pham et al. 2021, arXiv:2003.10580; Montresori, Rosini, Vanderputten
("rt", whose feedback is a product of losses instead).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panolib.config import Count, NonNegative, Share, spec
from panolib.data import photometry
from panolib.data.samples import Sample
from panolib.labels import VOID
from panolib.losses.semantic import cross_entropy
from panolib.models.geometry import CELL_CENTRES, Placement, placement_of, upsample_to
from panolib.related.realtime.adversarial import (
    AdaptationSpec,
    build_adversary,
    discriminator_loss,
    domain_loss,
    probabilities,
)
from panolib.related.realtime.layered_pseudo_labels import select_labels
from panolib.training.batch_norm import batch_norm_momentum, source_statistics
from panolib.training.crops import LabelledBatches, UnlabelledBatches, clean_view
from panolib.training.loop import Job, begin, iterate, restore
from panolib.training.semantic import head_logits, supervised_loss
from panolib.training.setup import build_optimizer, build_semantic, lay_out

FEEDBACK = ("old_minus_new", "new_minus_old")
RAMP = (40, 25)  # of "rt": time constant and last epoch


@spec(kw_only=True)
class MetaSpec(AdaptationSpec):
    """Meta Pseudo Labels. Both networks have the `optimiser`; the `adversary` is that of "rt"."""

    mode: Literal["paper", "rt"]  # "rt" has an adversarial teacher
    feedback: Literal["old_minus_new", "new_minus_old"]  # of "paper": the Taylor argument's, or public code's
    student_pretrained: bool
    threshold: Share | None  # cap of the median thresholds of each image; None labels every pixel
    uda_weight: NonNegative
    epochs: Count  # that the iterations stand for in the ramp of "rt"


def paper_feedback(old_loss: Tensor, new_loss: Tensor, sign: str) -> Tensor:
    """Weight h of the teacher's own labels, from the student's source loss before and after its step.

    By Taylor's rule `old_minus_new` is the learning rate times the product of the gradients of the source
    loss and of the pseudo-label loss: positive if the step helped. Public code has the other sign.
    """
    return old_loss - new_loss if sign == "old_minus_new" else new_loss - old_loss


def rt_feedback(target_loss: Tensor, source_loss: Tensor, *, lr: float, epoch: int) -> Tensor:
    """Weight H of "rt": ramp times learning rate times both losses of the student; 1 in epoch 0."""
    if epoch == 0:
        return torch.ones_like(target_loss)
    constant, last = RAMP
    ramp = math.expm1(epoch / constant) if epoch <= last else 1.0
    return ramp * lr * target_loss * source_loss


def hard_labels(
    logits: Tensor, size: tuple[int, int], threshold: float | None, placement: Placement = CELL_CENTRES
) -> Tensor:
    """int64 [B, H, W]: best class of logits [B, C, h, w], void below the median of its class in the image."""
    confidence, labels = probabilities(logits.detach(), size, placement).max(1)
    if threshold is None:
        return labels
    arrays = [part.cpu().numpy() for part in (labels, confidence)]
    kept = select_labels(*arrays, logits.shape[1], rule="image", threshold=threshold)
    return torch.stack([torch.from_numpy(image) for image in kept]).long().to(logits.device)


def noise_rectangles(image: Tensor, *, probability: float = 0.5) -> Tensor:
    """Add N(0, 1) noise to a random rectangle of each image [B, C, H, W] with a probability."""
    batch, _, height, width = image.shape
    corners = torch.rand(batch, 2, 2).sort(2).values.flatten(1)  # top, bottom, left, right: shares of sides
    drawn = torch.rand(batch) < probability
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    down = (rows >= corners[:, :1]) & (rows < corners[:, 1:2])
    across = (columns >= corners[:, 2:3]) & (columns < corners[:, 3:])
    mask = (down[:, :, None] & across[:, None] & drawn[:, None, None]).to(image)
    return image + torch.randn(image.shape).to(image) * mask[:, None]


def uda_loss(clean: Tensor, noisy: Tensor) -> Tensor:
    """Cross-entropy of noisy logits [B, C, h, w] with the probabilities of the clean ones (UDA)."""
    return F.cross_entropy(noisy, clean.detach().softmax(1))


def meta_train(
    spec: MetaSpec,
    job: Job,
    start_state: Mapping[str, Tensor],
    source: Sequence[Sample],
    target: Sequence[Sample],
    n_classes: int,
) -> tuple[nn.Module, nn.Module]:
    """Train both networks; returns (student, teacher).

    One iteration: the teacher labels the target; the student takes a step with these labels ("rt": and with
    the source); the change of its source loss ("rt": the product of its losses) weighs the teacher's loss
    with its own labels, to which cross-entropy on the source, consistency under noise and in "rt" the
    adversarial loss are added.

    Bugs of the reference that are not repeated: its discriminator sees the student instead of the teacher,
    and its adversarial term has weight 1. `target` is read without labels.
    """
    fabric, state = begin(spec, job)
    networks, optimizers = {}, {}
    for name, started in (("teacher", True), ("student", spec.student_pretrained)):
        model = build_semantic(spec.network, n_classes, pretrained=state is None and not started)
        model = lay_out(model, spec.compute)
        if started:
            model.load_state_dict(start_state)
        networks[name], optimizers[name] = fabric.setup(model, build_optimizer(spec.optimiser, model))
    adversary = spec.adversary
    networks["discriminator"], optimizers["discriminator"] = build_adversary(fabric, adversary, n_classes)
    parts = {f"{name}.model": part for name, part in networks.items()}
    parts |= {f"{name}.optimizer": part for name, part in optimizers.items()}
    restore(parts, state)
    streams = (
        LabelledBatches(source, spec.batch_size, spec.augmentation),
        UnlabelledBatches(target, spec.n_target, clean_view(spec.augmentation)),
    )
    teacher, student, discriminator = networks.values()
    placement, size = placement_of(teacher), (spec.augmentation.height, spec.augmentation.width)

    teacher.train()
    student.train()
    for iteration, source_batch, target_batch in iterate(spec, job, fabric, parts, *streams):
        images = photometry.normalise(target_batch["image"])
        truth = source_batch["semantic"]

        with source_statistics(teacher, spec.batch_norm):
            source_outputs = head_logits(teacher, source_batch["image"])
        outputs = head_logits(teacher, images)
        labels = hard_labels(outputs[0], size, spec.threshold, placement)

        pseudo_loss = supervised_loss(head_logits(student, images), labels, placement)
        if spec.mode == "rt":
            with source_statistics(student, spec.batch_norm):
                student_outputs = head_logits(student, source_batch["image"])
            student_source = supervised_loss(student_outputs, truth, placement)
            fabric.backward(pseudo_loss + student_source)
            lr = optimizers["student"].param_groups[0]["lr"]
            epoch = iteration * spec.epochs // spec.iterations
            weight = rt_feedback(pseudo_loss.detach(), student_source.detach(), lr=lr, epoch=epoch)
            optimizers["student"].step()
        else:
            old = _source_loss(student, source_batch)
            fabric.backward(pseudo_loss)
            optimizers["student"].step()
            weight = paper_feedback(old, _source_loss(student, source_batch), spec.feedback)

        source_loss = supervised_loss(source_outputs, truth, placement)
        own_loss = cross_entropy(upsample_to(outputs[0], size, placement), labels)
        with batch_norm_momentum(teacher, 0.0):
            noisy = teacher(noise_rectangles(images))
        teacher_loss = source_loss + weight * own_loss
        teacher_loss = teacher_loss + spec.uda_weight * uda_loss(outputs[0], noisy)
        if spec.mode == "rt":
            discriminator.requires_grad_(False)
            seen = probabilities(outputs[0], size, placement)
            fooling = domain_loss(discriminator, seen, adversary.source_label)
            teacher_loss = teacher_loss + adversary.weight * fooling
        fabric.backward(teacher_loss)
        if spec.mode == "rt":
            discriminator.requires_grad_(True)
            source_seen = probabilities(source_outputs[0].detach(), size, placement)
            both = (source_seen, seen.detach())
            fabric.backward(discriminator_loss(discriminator, *both, adversary.source_label))
            optimizers["discriminator"].step()
        optimizers["teacher"].step()
        terms = {"teacher_loss": teacher_loss, "source_loss": source_loss, "feedback": weight}
        job.log(iteration, loss=pseudo_loss, **terms, coverage=(labels != VOID).float().mean())
    return student, teacher


def _source_loss(student: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Source loss of the main head with the statistics of the batch, without a gradient or a trace."""
    with torch.no_grad(), batch_norm_momentum(student, 0.0):
        logits = student(batch["image"])
    return supervised_loss((logits,), batch["semantic"], placement_of(student))
