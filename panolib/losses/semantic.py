"""Losses of the semantic branch: cross-entropy, and SAC's confidence-weighted focal self-training loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from panolib.labels import VOID


def cross_entropy(semantic_logits: Tensor, semantic_labels: Tensor) -> Tensor:
    """Cross-entropy summed over labelled pixels, divided by the number of all pixels.

    Void pixels add nothing but count in the denominator, as in SAC: an image with few labels pulls less.

    Parameters
    ----------
    semantic_logits : float Tensor [B, C, H, W]
        Scores before softmax, at the size of the labels.
    semantic_labels : int64 Tensor [B, H, W]
        Train ids, or `VOID`.

    Returns
    -------
    Tensor []
        Non-negative. Exactly 0, with zero gradient, when every pixel is void.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    Thesis eq. 1; Araslanov & Roth 2021, arXiv:2105.00097.
    """
    _check_shapes(semantic_logits, semantic_labels=semantic_labels)
    total = F.cross_entropy(semantic_logits, semantic_labels, ignore_index=VOID, reduction="sum")
    return total / semantic_labels.numel()


def self_training_loss(
    semantic_logits: Tensor,
    pseudo_labels: Tensor,
    confidence: Tensor,
    class_prior: Tensor,
    *,
    focal_exponent: float = 3.0,
) -> Tensor:
    """Cross-entropy with pseudo-labels, weighted per pixel by confidence and per class by rarity.

    Parameters
    ----------
    semantic_logits : float Tensor [B, C, H, W]
        Student scores before softmax, at the size of the labels.
    pseudo_labels : int64 Tensor [B, H, W]
        Train ids, or `VOID` where the teacher is not sure.
    confidence : float Tensor [B, H, W]
        Teacher probability of the pseudo-label, in [0, 1].
    class_prior : float Tensor [C]
        Moving share of each class, in [0, 1]; a class weighs (1 - prior) ** focal_exponent.
    focal_exponent : float
        0 switches the class weights off.

    Returns
    -------
    Tensor []
        Mean over all pixels, void ones included. No gradient reaches `confidence` and `class_prior`.

    Raises
    ------
    ValueError
        If the shapes do not fit; a confidence [B, 1, H, W] would otherwise mix the images of the batch.

    References
    ----------
    Thesis eq. 3; Araslanov & Roth 2021, arXiv:2105.00097; methods.md sections 1.2.7 and 1.2.12 (quirk 6).
    """
    _check_shapes(semantic_logits, pseudo_labels=pseudo_labels, confidence=confidence)
    n_classes = semantic_logits.shape[1]
    if class_prior.shape != (n_classes,):
        raise ValueError(f"class_prior has shape {tuple(class_prior.shape)}, expected ({n_classes},)")
    per_pixel = F.cross_entropy(semantic_logits, pseudo_labels, ignore_index=VOID, reduction="none")
    class_weight = (1.0 - class_prior.detach()).pow(focal_exponent)
    known = pseudo_labels.masked_fill(pseudo_labels == VOID, 0)         # void has loss 0: any class will do
    return (confidence.detach() * class_weight[known] * per_pixel).mean()


def _check_shapes(semantic_logits: Tensor, **maps: Tensor) -> None:
    """Every map must be [B, H, W] of the logits [B, C, H, W]."""
    batch, _, height, width = semantic_logits.shape
    for name, value in maps.items():
        if value.shape != (batch, height, width):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected {(batch, height, width)} "
                f"for logits {tuple(semantic_logits.shape)}"
            )
