"""Semantic pseudo labels of SAC: class prior, fusion of views, adaptive thresholds.

Pure functions on tensors; nothing here waits for the device.
Source: Araslanov & Roth 2021, arXiv:2105.00097; thesis ch. 7 algorithm 1 and eq. 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from panolib.data.label_maps import as_labels
from panolib.data.warping import warp
from panolib.labels import VOID
from panolib.training import ranks

SEEN = 0.1          # share of the probability mass of a pixel below which it counts as unseen
NEVER_SEEN = 1e-8   # mean probability below which a class counts as absent


@record_function("pseudo-labels")
def update_class_prior(
    prior: Tensor, probabilities: Tensor, *, momentum: float = 0.99, prior_scale: float = 1e-3
) -> Tensor:
    """Moving class prior [C] after one batch of teacher probabilities, a new tensor.

    A class that is still exactly at its initial value `prior_scale` and now has a mean probability above
    1e-8 takes that mean before the update. ValueError without a pixel, whose mean would be nan for ever.

    Parameters
    ----------
    prior : float Tensor [C]
        Moving mean chi; starts at `prior_scale`, beta, in every class.
    probabilities : float Tensor [N, C, H, W]
        Softmax output of the teacher on the clean crops, before fusion.

    References
    ----------
    Thesis eq. 2; Araslanov & Roth 2021, arXiv:2105.00097.
    """
    if probabilities.numel() == 0:
        raise ValueError(f"probabilities are {list(probabilities.shape)}, expected at least one pixel")
    mean = ranks.mean(probabilities.mean((0, 2, 3), dtype=prior.dtype))  # of all processes
    first_time = (mean > NEVER_SEEN) & (prior == torch.full_like(prior, prior_scale))
    return momentum * torch.where(first_time, mean, prior) + (1 - momentum) * mean


@record_function("fusion")
def fuse_views(
    probabilities: Tensor, affine: Tensor, inverse: Tensor, padding: Tensor, n_views: int
) -> tuple[Tensor, Tensor]:
    """Mean of the predictions for all crops of an image, given back in the frame of each crop.

    Predictions are warped to the canvas, averaged where a crop shows it, and warped back. Both times the sum
    is divided by its mass, so that the probabilities of a valid pixel sum to 1 also where bilinear sampling
    reaches over an edge (the reference code leaves those pixels darker).

    Parameters
    ----------
    probabilities : float Tensor [B * L, C, h, w]
        Teacher probabilities of the crops, at any resolution.
    affine, inverse : float Tensor [B * L, 2, 3]
        Canvas to crop and crop to canvas, see `panolib.data.views.Views`.
    padding : bool Tensor [B * L, H, W]
        Padded pixels, at any resolution: a pixel that touches padding counts as padded.
    n_views : int
        L.

    Returns
    -------
    fused : float Tensor [B * L, C, h, w]
        Sums to 1 where valid, 0 elsewhere.
    valid : bool Tensor [B * L, h, w]
        Not padded, and seen by at least one crop.

    References
    ----------
    Araslanov & Roth 2021, arXiv:2105.00097.
    """
    n = len(probabilities)
    if n_views < 1 or n % n_views:
        raise ValueError(f"{n} crops cannot be {n_views} views of each image")
    kept = ~_resize_padding(padding, probabilities.shape[-2:])                              # [B * L, h, w]
    # one crop of every image at a time: beside the result, memory holds a canvas and not copies of all crops
    crops = [slice(view, None, n_views) for view in range(n_views)]
    canvas = sum(warp(probabilities[some] * kept[some, None], affine[some]) for some in crops)  # [B, C, h, w]
    _divide_by_mass(canvas)
    fused = canvas.new_empty(probabilities.shape)
    for some in crops:
        fused[some] = warp(canvas, inverse[some])
    return fused, _divide_by_mass(fused, kept)


def adaptive_thresholds(
    confidence: Tensor,
    classes: Tensor,
    prior: Tensor,
    *,
    threshold_scale: float = 0.75,
    prior_scale: float = 1e-3,
    minimum: float = 0.2,
) -> Tensor:
    """Confidence that a pixel must exceed, for each crop and class, [N, C].

    theta[n, c] = max(minimum, threshold_scale * (1 - exp(-prior[c] / prior_scale)) * M[n, c]), where M is the
    best confidence among the pixels of crop n whose best class is c (0 if there is none).

    Parameters
    ----------
    confidence : float Tensor [N, h, w]
        Largest fused probability of a pixel; 0 where not valid.
    classes : int64 Tensor [N, h, w]
        Whose it is.
    prior : float Tensor [C]
        Moving class prior chi.
    threshold_scale, prior_scale, minimum : float
        zeta, beta and the lower clamp.

    References
    ----------
    Thesis ch. 7 algorithm 1; Araslanov & Roth 2021, arXiv:2105.00097.
    """
    n, height, _ = classes.shape
    # first along rows: on a GPU all pixels of a crop would queue for the same C numbers
    best = confidence.new_zeros(n, height, len(prior)).scatter_reduce(2, classes, confidence, "amax").amax(1)
    discount = -torch.expm1(-prior / prior_scale)
    return (threshold_scale * discount.to(best) * best).clamp(min=minimum)


@record_function("pseudo-labels")
def semantic_pseudo_labels(
    fused: Tensor, valid: Tensor, prior: Tensor, **options: float
) -> tuple[Tensor, Tensor]:
    """Class and confidence of the pixels that pass their adaptive threshold.

    Parameters
    ----------
    fused : float Tensor [N, C, h, w]
    valid : bool Tensor [N, h, w]
    prior : float Tensor [C]
    **options
        As in `adaptive_thresholds`; `minimum` not negative.

    Returns
    -------
    pseudo_labels : int64 Tensor [N, h, w]
        Train ids; `VOID` where not valid or not above the threshold.
    confidence : float Tensor [N, h, w]
        Largest fused probability, 0 where not valid. Not thresholded.

    References
    ----------
    Thesis ch. 7 algorithm 1.
    """
    confidence, classes = fused.max(1)
    confidence = confidence * valid
    thresholds = adaptive_thresholds(confidence, classes, prior, **options)
    threshold = thresholds.gather(1, classes.flatten(1)).view_as(confidence)
    return torch.where(confidence > threshold, classes, VOID), confidence                  # never where 0


def pseudo_label_quality(pseudo_labels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and accuracy of pseudo labels, float Tensors [], for logging only.

    Coverage is the share of pixels with a pseudo-label, accuracy the share of these that is right; NaN where
    there is none. `pseudo_labels`, `truth`: integer Tensors [..., H, W], train ids or `VOID`; pixels without
    truth do not count. ValueError for different shapes, or labels that are not integers.
    """
    pseudo_labels, truth = as_labels(pseudo_labels, "pseudo_labels"), as_labels(truth, "truth")
    if pseudo_labels.shape != truth.shape:
        raise ValueError(
            f"pseudo_labels are {list(pseudo_labels.shape)}, truth {list(truth.shape)}; expected one shape"
        )
    known = truth != VOID
    labelled = known & (pseudo_labels != VOID)
    correct = labelled & (pseudo_labels == truth)
    return labelled.sum() / known.sum(), correct.sum() / labelled.sum()


def _divide_by_mass(total: Tensor, kept: Tensor | bool = True) -> Tensor:
    """Scale [N, C, h, w] in place to sum 1 over classes where kept and seen, 0 elsewhere; [N, h, w] where."""
    mass = total.sum(1)
    valid = (mass > SEEN) & kept
    total *= (valid / mass.clamp(min=SEEN))[:, None]
    return valid


def _resize_padding(padding: Tensor, size: torch.Size) -> Tensor:
    """bool [N, h, w]: pixels of the smaller map that touch padding."""
    if padding.shape[-2:] == size:
        return padding
    return F.adaptive_max_pool2d(padding[:, None].float(), tuple(size))[:, 0] > 0
