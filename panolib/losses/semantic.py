"""Losses of the semantic branch: cross-entropy, and SAC's confidence-weighted focal self-training loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from panolib.data.label_maps import as_labels
from panolib.labels import VOID
from panolib.losses.instances import at_least_float32, check_same_grid


@record_function("losses")
def cross_entropy(semantic_logits: Tensor, semantic_labels: Tensor) -> Tensor:
    """Cross-entropy summed over labelled pixels, divided by the number of all pixels.

    Void pixels add nothing but count in the denominator, as in SAC: an image with few labels pulls less.
    Takes scores before softmax, float [B, C, H, W], and train ids or `VOID`, integer [B, H, W]. Returns a
    Tensor [], float32 or wider; exactly 0, with zero gradient, when every pixel is void or there is none.
    Raises ValueError if the shapes do not fit, or a label is neither a class nor void (on a GPU: CUDA's
    assertion).

    Thesis eq. 1; Araslanov & Roth 2021, arXiv:2105.00097.
    """
    semantic_labels = as_labels(semantic_labels, "semantic_labels").long()
    check_same_grid(semantic_logits, semantic_labels=semantic_labels)
    total = _pixel_losses(semantic_logits, semantic_labels, "semantic_labels", reduction="sum")
    return total / max(semantic_labels.numel(), 1)


@record_function("losses")
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
    pseudo_labels : integer Tensor [B, H, W]
        Train ids, or `VOID` where the teacher is not sure.
    confidence : float Tensor [B, H, W]
        Teacher probability of the pseudo-label, in [0, 1].
    class_prior : float Tensor [C]
        Moving share of each class, in [0, 1]; a class weighs (1 - prior) ** focal_exponent.

    Returns the mean over all pixels, void ones included; 0 without any. No gradient reaches `confidence` and
    `class_prior`. Errors as of `cross_entropy`; a confidence [B, 1, H, W] would mix the images of the batch.

    Thesis eq. 3; Araslanov & Roth 2021, arXiv:2105.00097.
    """
    check_same_grid(semantic_logits, pseudo_labels=pseudo_labels, confidence=confidence)
    n_classes = semantic_logits.shape[1]
    if class_prior.shape != (n_classes,):
        raise ValueError(f"class_prior has shape {tuple(class_prior.shape)}, expected ({n_classes},)")
    pseudo_labels = as_labels(pseudo_labels, "pseudo_labels").long()
    per_pixel = _pixel_losses(semantic_logits, pseudo_labels, "pseudo_labels", reduction="none")
    # a mean of probabilities may be above 1 by rounding, and has no power of a fraction then
    class_weight = (1.0 - class_prior.detach()).clamp(min=0).pow(focal_exponent)
    known = pseudo_labels.masked_fill(pseudo_labels == VOID, 0)         # void has loss 0: any class will do
    weighted = confidence.detach() * class_weight[known] * per_pixel
    return weighted.mean() if weighted.numel() else weighted.sum()


def _pixel_losses(semantic_logits: Tensor, labels: Tensor, name: str, *, reduction: str) -> Tensor:
    """Cross-entropy without void."""
    semantic_logits = at_least_float32(semantic_logits)  # half precision ends at 65,504, below most sums
    try:
        return F.cross_entropy(semantic_logits, labels, ignore_index=VOID, reduction=reduction)
    except IndexError as error:  # torch looks at every label anyway
        n_classes = semantic_logits.shape[1]
        raise ValueError(
            f"{name} hold {labels.min()} .. {labels.max()}, expected 0 .. {n_classes - 1} or {VOID}"
        ) from error
