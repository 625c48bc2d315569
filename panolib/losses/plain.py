"""Each loss as its formula, for the pixels of one image: what notebooks show and fast versions are tested by.

Training takes `embedding.embedding_loss` and `semantic`, which give the same for a batch in a fraction of the
time and the memory. Everywhere `points` [N, E] are the embeddings of pixels, `labels` int64 [N] their
instances, 0 = unlabelled; pixels that are to be ignored are left out by the caller. Every instance counts
once, whatever its area. A loss of nothing is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panolib.labels import VOID


def instance_means(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean embedding of every instance [K, E], by rising label, and its pixels, 0 or 1 [N, K]."""
    own = (labels[:, None] == labels[labels != 0].unique()).to(points)
    return own.T @ points / own.sum(0)[:, None], own


def pull_loss(points: Tensor, labels: Tensor, *, delta_var: float = 0.5) -> Tensor:
    """Draws pixels to the mean of their instance until they are within `delta_var` (thesis eq. 5)."""
    means, own = instance_means(points, labels)
    distance = torch.linalg.vector_norm(points - own @ means, dim=1)  # of every pixel to its own mean
    hinge = (distance - delta_var).clamp(min=0)
    return mean(hinge**2 @ own / own.sum(0))


def push_loss(points: Tensor, labels: Tensor, *, delta_dist: float = 2.0) -> Tensor:
    """Drives every two means apart until they are 2 * `delta_dist` from each other (thesis eq. 6)."""
    means, _ = instance_means(points, labels)
    hinge = (2 * delta_dist - distances(means, means)).clamp(min=0)
    two = ~torch.eye(len(means), dtype=torch.bool, device=means.device)
    return mean(hinge[two] ** 2)


def regulariser(points: Tensor, labels: Tensor) -> Tensor:
    """Keeps the means near the origin (De Brabandere et al. 2017, arXiv:1708.02551)."""
    means, _ = instance_means(points, labels)
    return mean(torch.linalg.vector_norm(means, dim=1))


def object_dice_loss(
    points: Tensor, labels: Tensor, *, delta_var: float = 0.5, kernel_threshold: float = 0.5
) -> Tensor:
    """Makes the soft mask around each mean the mask of its instance (thesis eq. 7 and 8)."""
    means, own = instance_means(points, labels)
    return mean(1 - dice(soft_masks(points, means, delta_var, kernel_threshold), own))


def unlabelled_push_loss(points: Tensor, labels: Tensor, *, delta_dist: float = 2.0) -> Tensor:
    """Keeps unlabelled pixels `delta_dist` away from every mean (thesis eq. 9)."""
    means, _ = instance_means(points, labels)
    hinge = (delta_dist - distances(points[labels == 0], means)).clamp(min=0)
    return mean(hinge**2)


def consistency_loss(
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    *,
    delta_var: float = 0.5,
    kernel_threshold: float = 0.5,
) -> Tensor:
    """Makes student and teacher [N, E] cut out the same around some pixels (thesis eq. 10).

    `anchors` int64 [A] are their numbers; in training `consistency.draw_anchors` draws them.
    """
    teacher = teacher.detach()
    ours = soft_masks(student, student[anchors], delta_var, kernel_threshold)
    theirs = soft_masks(teacher, teacher[anchors], delta_var, kernel_threshold)
    return mean(1 - dice(ours, theirs))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus log p of the true class; void pixels add nothing but count in the mean (thesis eq. 1).

    `logits` [N, C] are scores of pixels before the softmax, `labels` int64 [N] train ids or `VOID`.
    """
    known = labels != VOID
    log_p = logits.log_softmax(1)[known, labels[known]]
    return -log_p.sum() / max(len(labels), 1)


def self_training_loss(
    logits: Tensor, labels: Tensor, confidence: Tensor, class_prior: Tensor, *, focal_exponent: float = 3.0
) -> Tensor:
    """Cross-entropy with pseudo-labels, by confidence [N] and by the rarity of classes [C] (thesis eq. 3)."""
    known = labels != VOID
    log_p = logits.log_softmax(1)[known, labels[known]]
    weight = confidence[known] * (1 - class_prior[labels[known]]) ** focal_exponent
    return -(weight * log_p).sum() / max(len(labels), 1)


def distances(points: Tensor, means: Tensor) -> Tensor:
    """Distance of every point to every mean [N, K]."""
    return torch.cdist(points, means, compute_mode="donot_use_mm_for_euclid_dist")  # exact


def soft_masks(points: Tensor, means: Tensor, delta_var: float, kernel_threshold: float) -> Tensor:
    """exp(-distance² / 2 sigma²) [N, K], which falls to `kernel_threshold` at distance `delta_var`."""
    two_sigma_square = delta_var**2 / -math.log(kernel_threshold)
    return torch.exp(-(distances(points, means) ** 2) / two_sigma_square)


def dice(mask: Tensor, other: Tensor) -> Tensor:
    """Overlap of masks [N, K], 1 where they are equal: [K]."""
    return 2 * (mask * other).sum(0) / (mask**2 + other**2).sum(0)


def mean(values: Tensor) -> Tensor:
    """Mean; 0, still differentiable, of no values."""
    return values.sum() / max(values.numel(), 1)
