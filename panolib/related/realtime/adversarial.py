"""Output-space adversarial adaptation: the target's predictions are to look like the source's.

References: Tsai et al. 2018, arXiv:1802.10349.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panolib.config import Count, NonNegative, Positive, Share, spec
from panolib.data import photometry
from panolib.data.samples import Sample
from panolib.models.geometry import CELL_CENTRES, Placement, placement_of, upsample_to
from panolib.related.realtime.discriminator import Discriminator
from panolib.related.realtime.layered_pseudo_labels import RULES
from panolib.training.batch_norm import source_statistics
from panolib.training.crops import LabelledBatches, UnlabelledBatches, clean_view
from panolib.training.loop import Job, begin, iterate, restore
from panolib.training.run_specs import TrainingSpec
from panolib.training.semantic import head_logits, supervised_loss
from panolib.training.setup import build_optimizer, build_semantic, lay_out
from panolib.training.specs import SemanticNetwork

BETAS = (0.9, 0.99)  # of the discriminator's Adam


@spec
class AdversarySpec:
    """The discriminator, and how much the network is pulled by it."""

    kind: Literal["fcd", "light"]
    width: Count  # channels after its first convolution
    lr: Positive
    weight: NonNegative  # lambda
    source_label: Literal[0, 1]  # only consistency matters


@spec
class PseudoLabelSpec:
    """Pseudo-labels made once from the parent "labels" (`layered_pseudo_labels`)."""

    n_layers: Literal[1, 2, 3]  # heads that vote
    rule: Literal[RULES]
    threshold: Share


@spec(kw_only=True)
class AdaptationSpec(TrainingSpec):
    """What both ways to adapt from the weights of a parent share."""

    target: str
    validation: str
    network: SemanticNetwork
    n_target: Count  # target images an iteration, beside `batch_size` source crops
    batch_norm: Literal["both", "target"]  # which domains running statistics follow; the reference: both
    adversary: AdversarySpec


@spec(kw_only=True)
class AdversarialSpec(AdaptationSpec):
    """Adversarial adaptation, with pseudo-labels or without."""

    pseudo_labels: PseudoLabelSpec | None


def domain_loss(discriminator: nn.Module, probabilities: Tensor, label: int) -> Tensor:
    """Binary cross-entropy of probabilities [B, C, H, W] with the label of a domain.

    To fool the discriminator, those of the target are given the label of the *source*.
    """
    logits = discriminator(probabilities)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def discriminator_loss(discriminator: nn.Module, source: Tensor, target: Tensor, source_label: int) -> Tensor:
    """`domain_loss` of both domains with their own labels, halves averaged."""
    of_source = domain_loss(discriminator, source, source_label)
    return (of_source + domain_loss(discriminator, target, 1 - source_label)) / 2


def probabilities(logits: Tensor, size: tuple[int, int], placement: Placement = CELL_CENTRES) -> Tensor:
    """Softmax of logits at the size of the image: what a discriminator sees."""
    return upsample_to(logits, size, placement).softmax(1)


def build_adversary(fabric, spec: AdversarySpec, n_classes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A discriminator and its optimiser, set up."""
    discriminator = Discriminator(n_classes, kind=spec.kind, width=spec.width)
    parameters = [{"params": list(discriminator.parameters()), "base_lr": spec.lr}]
    return fabric.setup(discriminator, torch.optim.Adam(parameters, lr=spec.lr, betas=BETAS))


def adversarial_train(
    spec: AdversarialSpec,
    job: Job,
    start_state: Mapping[str, Tensor],
    source: Sequence[Sample],
    target: Sequence[Sample],
    n_classes: int,
    *,
    pseudo_labels: Sequence[np.ndarray] | None = None,
) -> nn.Module:
    """Adapt a network; returns it.

    One iteration: cross-entropy on the source, all heads; on the target, lambda times the loss of a frozen
    discriminator that should take it for the source, plus cross-entropy with pseudo-labels, all heads; then
    the discriminator on the detached probabilities of both; one step of each.

    `target` is read without labels; `pseudo_labels`, uint8 [H, W] for every target image, are `VOID` where
    there is none.
    """
    fabric, state = begin(spec, job)
    model = lay_out(build_semantic(spec.network, n_classes, pretrained=False), spec.compute)
    model.load_state_dict(start_state)
    placement, size = placement_of(model), (spec.augmentation.height, spec.augmentation.width)
    model, optimizer = fabric.setup(model, build_optimizer(spec.optimiser, model))
    adversary = spec.adversary
    discriminator, judge_optimizer = build_adversary(fabric, adversary, n_classes)
    parts = {"model": model, "optimizer": optimizer, "discriminator": discriminator}
    parts["judge_optimizer"] = judge_optimizer
    restore(parts, state)
    maps = None if pseudo_labels is None else [{"semantic": labels} for labels in pseudo_labels]
    streams = (
        LabelledBatches(source, spec.batch_size, spec.augmentation),
        UnlabelledBatches(target, spec.n_target, clean_view(spec.augmentation), maps=maps),
    )

    model.train()
    for iteration, source_batch, target_batch in iterate(spec, job, fabric, parts, *streams):
        discriminator.requires_grad_(False)
        with source_statistics(model, spec.batch_norm):
            outputs = head_logits(model, source_batch["image"])
        source_loss = supervised_loss(outputs, source_batch["semantic"], placement)
        fabric.backward(source_loss)
        source_seen = probabilities(outputs[0].detach(), size, placement)

        outputs = head_logits(model, photometry.normalise(target_batch["image"]))
        target_seen = probabilities(outputs[0], size, placement)
        fooling = domain_loss(discriminator, target_seen, adversary.source_label)
        target_loss = adversary.weight * fooling
        if maps is not None:
            target_loss = target_loss + supervised_loss(outputs, target_batch["semantic"], placement)
        fabric.backward(target_loss)

        discriminator.requires_grad_(True)
        judging = discriminator_loss(discriminator, source_seen, target_seen.detach(), adversary.source_label)
        fabric.backward(judging)
        optimizer.step()
        judge_optimizer.step()
        terms = {"source_loss": source_loss, "target_loss": target_loss, "fooling": fooling}
        job.log(iteration, loss=source_loss + target_loss, **terms, judging=judging)
    return model
