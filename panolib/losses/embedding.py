"""The instance loss of a batch: pull, push, regulariser, object Dice, unlabelled push and consistency.

`plain` has the same terms as formulas for one image. Here instances are rows of matrices, never a Python
loop, and nothing as large as instances x pixels is ever allocated: hinges and soft masks of pixels are summed
in `instance_sums`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from panolib.config import NonNegative, later, spec
from panolib.losses.consistency import consistency_term
from panolib.losses.instance_sums import InstanceSums
from panolib.losses.instances import Instances, at_least_float32, check_same_grid
from panolib.losses.soft_masks import dice, kernel_width

SMALLEST_MARGIN, LARGEST_MARGIN = 1e-15, 1e15  # or 0; float32 holds their squares and products of those


@spec
class EmbeddingLossWeights:
    """Weight of each term of `embedding_loss`, each >= 0; 0 leaves the term out.

    Thesis eq. 11 with SPOCO's values; 0.1 for the consistency is the thesis's choice (chapter 11, table 1).
    `consistency_reduction` says how the consistency terms of the images of a batch become one: "mean", as in
    all other terms, or "sum", as in the code of Wolny et al. 2022 (SPOCO), where its share of the loss grows
    with the batch: with 16 images a weight of 0.1 there is one of 1.6 here.
    """

    pull: NonNegative = 1.0
    push: NonNegative = 1.0
    regulariser: NonNegative = 0.001
    object_dice: NonNegative = 1.0
    unlabelled_push: NonNegative = 1.0
    consistency: NonNegative = 0.1
    consistency_reduction: Literal["mean", "sum"] = later("mean")


def embedding_loss(
    embeddings: Tensor,
    instance_labels: Tensor,
    *,
    weights: EmbeddingLossWeights,
    delta_var: float = 0.5,
    delta_dist: float = 2.0,
    kernel_threshold: float = 0.5,
    ignore: Tensor | None = None,
    teacher_embeddings: Tensor | None = None,
    valid: Tensor | None = None,
    coordinates: Tensor | None = None,
    confident: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of the instance loss, each a mean over the images of a batch; their sum is the loss.

    Parameters
    ----------
    embeddings : float Tensor [B, E, H, W]
    instance_labels : integer Tensor [B, H, W]
        Ids >= 1, in any numbering; 0 means unlabelled.
    weights : EmbeddingLossWeights
        A term of weight 0 is neither computed nor returned.
    delta_var, delta_dist : float
        Margins in embedding units, >= 0. A kernel, of object Dice and consistency, needs a `delta_var` > 0.
    kernel_threshold : float
        In (0, 1): what the soft mask around a mean falls to at distance `delta_var`.
    ignore : bool Tensor [B, H, W], optional
        Pixels of no term at all (crowds, void).
    teacher_embeddings : float Tensor [B, E, H, W], optional
        On the same grid: the teacher's view has been rotated back. Without them there is no consistency term.
        No gradient reaches them.
    valid : bool Tensor [B, H, W], optional
        False where the teacher's view left the canvas: no part in the consistency. All valid by default.
    coordinates : float Tensor [C, H, W], optional
        What was added to the first C <= E channels (`models.coordinates`). The regulariser looks at the
        offsets without it: it would pull all objects to the middle of the image. All other terms look at
        differences of embeddings.
    confident : bool Tensor [B, H, W], optional
        An instance weighs as the share of its pixels that are confident, in all terms but the consistency; a
        pair of instances as the mean of both. All weigh 1 by default. Weights are not normalised: an image of
        doubtful instances teaches less.

    Returns {"pull", "push", "regulariser", "object_dice", "unlabelled_push", "consistency": Tensor []},
    already weighted. An image without instances adds 0, with zero gradient, to the first five and counts in
    the mean. The consistency is random: it reads torch's global generator.

    Raises ValueError if shapes differ, an id is negative or not an integer, or a margin does not fit the
    weights.

    Thesis eq. 5 to 11; De Brabandere et al. 2017, arXiv:1708.02551; Wolny et al. 2022, arXiv:2103.14572.
    `confident`: Martinovic et al. 2024, arXiv:2407.14110 (MC-PanDA, mask-wide loss scaling).
    """
    _check_margin("delta_var", delta_var)
    _check_margin("delta_dist", delta_dist)
    check_same_grid(embeddings, valid=valid)
    if coordinates is not None:
        check_same_grid(embeddings[:1], coordinates=coordinates[:1])
    if teacher_embeddings is not None and teacher_embeddings.shape != embeddings.shape:
        raise ValueError(
            f"teacher_embeddings has shape {tuple(teacher_embeddings.shape)}, "
            f"expected the student's {tuple(embeddings.shape)}"
        )
    has_teacher = teacher_embeddings is not None
    has_kernel = weights.object_dice > 0 or (has_teacher and weights.consistency > 0)
    # without a margin and a kernel no term looks at the width
    width = kernel_width(delta_var, kernel_threshold) if delta_var > 0 or has_kernel else 1.0
    instances = Instances(embeddings, instance_labels, ignore, confident)
    looks_at_distances = weights.pull > 0 or weights.object_dice > 0 or weights.unlabelled_push > 0
    sums = instances.sums(
        width if looks_at_distances else None, delta_var, delta_dist if weights.unlabelled_push > 0 else None
    )

    def consistency() -> Tensor:
        counted = torch.ones_like(instances.ids, dtype=torch.bool)
        for kept in (instances.counted, None if valid is None else valid.bool().flatten(1)):
            counted = counted if kept is None else counted & kept
        teacher = at_least_float32(teacher_embeddings.detach()).flatten(2)
        images = zip(instances.embeddings.unbind(), teacher, counted & (instances.ids == 0), counted)
        terms = torch.stack([consistency_term(*image, delta_var=delta_var, width=width) for image in images])
        return terms.mean() if weights.consistency_reduction == "mean" else terms.sum()

    terms = {
        "pull": lambda: pull_term(instances, sums),
        "push": lambda: push_term(instances, sums, delta_dist),
        "regulariser": lambda: regulariser_term(instances, sums, coordinates),
        "object_dice": lambda: object_dice_term(instances, sums),
        "unlabelled_push": lambda: unlabelled_push_term(instances, sums),
    }
    if has_teacher:
        terms["consistency"] = consistency
    return {
        name: getattr(weights, name) * term() for name, term in terms.items() if getattr(weights, name) > 0
    }


def pull_term(instances: Instances, sums: InstanceSums) -> Tensor:
    """Squared hinge on the distance of pixels to their own mean, above delta_var."""
    return (instances.share * sums.pull / instances.sizes).sum()


def push_term(instances: Instances, sums: InstanceSums, delta_dist: float) -> Tensor:
    """Squared hinge on the distance of every two means of an image, below 2 * delta_dist.

    Two identical means give no gradient: no direction is better than another.
    """
    means = sums.means.T                                                                # [K, E]
    distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")   # [K, K]
    hinge = (2.0 * delta_dist - distance).clamp(min=0).square()
    others = (instances.n_of_image - 1).clamp(min=1)  # of an instance; pairs are ordered
    same_image = instances.image[:, None] == instances.image
    return (hinge * same_image).fill_diagonal_(0).mul(instances.share / others).sum()


def regulariser_term(instances: Instances, sums: InstanceSums, coordinates: Tensor | None) -> Tensor:
    """Distance (not squared) of the mean offsets to the origin; a distance of zero has no gradient."""
    means = sums.means
    if coordinates is not None:  # of the first channels
        origins = instances.means_of(coordinates)
        means = means - F.pad(origins, (0, 0, 0, len(means) - len(origins)))
    # twenty times faster on CPU than `torch.linalg.vector_norm` over the first dimension
    length = means.square().sum(dim=0).clamp(min=torch.finfo(means.dtype).tiny).sqrt()
    return (instances.share * length).sum()


def object_dice_term(instances: Instances, sums: InstanceSums) -> Tensor:
    """One minus the Dice overlap of each instance with the soft mask around its mean."""
    return (instances.share * (1.0 - dice(sums.overlap, sums.squares + instances.sizes))).sum()


def unlabelled_push_term(instances: Instances, sums: InstanceSums) -> Tensor:
    """Squared hinge on the distance of unlabelled pixels to every mean, below delta_dist."""
    return (instances.share * sums.push / instances.n_unlabelled.clamp(min=1)[instances.image]).sum()


def _check_margin(name: str, value: float) -> None:
    """Raise ValueError for a margin that is negative, not finite, or whose square float32 cannot hold."""
    if value != 0 and not SMALLEST_MARGIN <= value <= LARGEST_MARGIN:
        raise ValueError(
            f"{name} is {value}, expected a finite margin >= 0: 0, or "
            f"{SMALLEST_MARGIN:.0e} to {LARGEST_MARGIN:.0e}"
        )
