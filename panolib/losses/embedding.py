"""Losses of the instance branch: pull, push, regulariser, object Dice, unlabelled push, consistency.

Each public term is a pure function of the tensors of one image. Instances are rows of matrices, never a
Python loop; nothing as large as instances x pixels is ever allocated (`soft_masks`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from panolib.clustering.distances import exact_products
from panolib.config import later
from panolib.data.label_maps import as_labels
from panolib.losses.instance_sums import InstanceSums
from panolib.losses.segments import Segments, at_least_float32, check_same_grid, length
from panolib.losses.soft_masks import soft_mask_overlap

SMALLEST_MARGIN, LARGEST_MARGIN = 1e-15, 1e15  # or 0; float32 holds their squares and products of those


def pull_loss(
    embeddings: Tensor, instance_labels: Tensor, *, delta_var: float = 0.5, ignore: Tensor | None = None
) -> Tensor:
    """Squared hinge distance of pixels to the mean embedding of their instance, for one image.

    Every instance counts once, whatever its area. Pixels with label 0 do not count.

    Parameters
    ----------
    embeddings : float Tensor [E, H, W]
        Pixel embeddings, in embedding units.
    instance_labels : integer Tensor [H, W]
        Instance ids >= 1, in any numbering; 0 means unlabelled.
    delta_var : float
        Pixels nearer than this to their mean are not pulled; 0 pulls all. Embedding units.
    ignore : bool Tensor [H, W], optional
        True where a pixel belongs to no term at all (crowds, void).

    Returns
    -------
    Tensor []
        Non-negative. Exactly 0, with zero gradient, when there is no instance.

    Raises
    ------
    ValueError
        If height or width differ between the inputs, or an id is negative or not an integer.

    References
    ----------
    Thesis eq. 5; De Brabandere et al. 2017, arXiv:1708.02551, L_var.
    """
    _check_margin("delta_var", delta_var)
    segments = _of_one_image(embeddings, instance_labels, ignore)
    return _pull(segments, segments.sums(1.0, delta_var))


def push_loss(
    embeddings: Tensor, instance_labels: Tensor, *, delta_dist: float = 2.0, ignore: Tensor | None = None
) -> Tensor:
    """Squared hinge on the distance between every two instance means, for one image.

    Parameters
    ----------
    embeddings, instance_labels, ignore
        As in `pull_loss`.
    delta_dist : float
        Means further apart than 2 * delta_dist are not pushed; 0 pushes none. Embedding units.

    Returns
    -------
    Tensor []
        Mean over ordered pairs. Exactly 0, with zero gradient, with fewer than two instances. Two identical
        means give no gradient: no direction is better than another.

    References
    ----------
    Thesis eq. 6; De Brabandere et al. 2017, arXiv:1708.02551, L_dist.
    """
    _check_margin("delta_dist", delta_dist)
    segments = _of_one_image(embeddings, instance_labels, ignore)
    return _push(segments, segments.sums(), delta_dist)


def regulariser(embeddings: Tensor, instance_labels: Tensor, *, ignore: Tensor | None = None) -> Tensor:
    """Mean norm (not squared) of the instance means, for one image.

    Parameters
    ----------
    embeddings, instance_labels, ignore
        As in `pull_loss`.

    Returns
    -------
    Tensor []
        Non-negative. Exactly 0, with zero gradient, when there is no instance.

    References
    ----------
    De Brabandere et al. 2017, arXiv:1708.02551, L_reg, over labelled instances only.
    """
    segments = _of_one_image(embeddings, instance_labels, ignore)
    return _regulariser(segments, segments.sums())


def object_dice_loss(
    embeddings: Tensor,
    instance_labels: Tensor,
    *,
    delta_var: float = 0.5,
    kernel_threshold: float = 0.5,
    ignore: Tensor | None = None,
    pooled: bool = False,
) -> Tensor:
    """One minus the Dice overlap of each instance with the soft mask around its mean, for one image.

    The soft mask of instance k at pixel i is exp(-|e_i - mean_k|^2 / 2 sigma^2), with sigma such that it
    falls to `kernel_threshold` at distance `delta_var`.

    Parameters
    ----------
    embeddings, instance_labels, delta_var, ignore
        As in `pull_loss`.
    kernel_threshold : float
        In (0, 1).
    pooled : bool
        True: one Dice over all instances together, as in the SPOCO release; large objects dominate.

    Returns
    -------
    Tensor []
        In [0, 1], the mean over instances. Exactly 0, with zero gradient, when there is no instance.

    References
    ----------
    Thesis eq. 7 and 8; Wolny et al. 2022, arXiv:2103.14572; Dice as Milletari et al. 2016, arXiv:1606.04797.
    """
    segments = _of_one_image(embeddings, instance_labels, ignore)
    return _object_dice(segments, segments.sums(_kernel_width(delta_var, kernel_threshold)), pooled=pooled)


def unlabelled_push_loss(
    embeddings: Tensor, instance_labels: Tensor, *, delta_dist: float = 2.0, ignore: Tensor | None = None
) -> Tensor:
    """Squared hinge that keeps unlabelled pixels away from every instance mean, for one image.

    Parameters
    ----------
    embeddings, instance_labels, ignore
        As in `pull_loss`.
    delta_dist : float
        Pixels further than this from a mean are not pushed from it; 0 pushes none. Embedding units.

    Returns
    -------
    Tensor []
        Mean over instances and over pixels of label 0 that are not ignored. Exactly 0, with zero gradient,
        without instances or without such pixels.

    References
    ----------
    Thesis eq. 9; Wolny et al. 2022, arXiv:2103.14572. Label 0 is told by value, not by position.
    """
    _check_margin("delta_dist", delta_dist)
    segments = _of_one_image(embeddings, instance_labels, ignore)
    return _unlabelled_push(segments, segments.sums(1.0, delta_dist=delta_dist))


def consistency_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    instance_labels: Tensor,
    valid: Tensor | None = None,
    *,
    delta_var: float = 0.5,
    kernel_threshold: float = 0.5,
    ignore: Tensor | None = None,
    max_anchors: int = 20,
    min_uncovered: float = 0.05,
) -> Tensor:
    """One minus the Dice overlap of student and teacher soft masks around random anchors, for one image.

    Parameters
    ----------
    student_embeddings, teacher_embeddings : float Tensor [E, H, W]
        On the same grid: the teacher's view has been rotated back. No gradient reaches the teacher's.
    instance_labels : integer Tensor [H, W]
        Anchors are drawn where it is 0.
    valid : bool Tensor [H, W], optional
        False where a view left the canvas: no anchors there, and nothing is summed. All valid by default.
    delta_var, kernel_threshold, ignore
        As in `object_dice_loss`; ignored pixels count as not valid.
    max_anchors, min_uncovered
        As in `draw_anchors`.

    Returns
    -------
    Tensor []
        In [0, 1], the mean over anchors; one Dice per anchor. Exactly 0, with zero gradient, without anchors.
        Random: reads torch's global generator.

    References
    ----------
    Thesis eq. 10; Wolny et al. 2022, arXiv:2103.14572.
    """
    width = _kernel_width(delta_var, kernel_threshold)
    check_same_grid(student_embeddings, instance_labels=instance_labels, valid=valid, ignore=ignore)
    if teacher_embeddings.shape != student_embeddings.shape:
        raise ValueError(
            f"teacher_embeddings has shape {tuple(teacher_embeddings.shape)}, "
            f"expected the student's {tuple(student_embeddings.shape)}"
        )
    student = at_least_float32(student_embeddings).flatten(1)                  # [E, N]
    teacher = at_least_float32(teacher_embeddings.detach()).flatten(1)         # [E, N]
    instance_labels = as_labels(instance_labels, "instance_labels")
    counted = torch.ones_like(instance_labels, dtype=torch.bool) if valid is None else valid.bool()
    if ignore is not None:
        counted = counted & ~ignore.bool()
    counted = counted.flatten()                                                 # [N]
    anchors = draw_anchors(
        student.detach(), teacher, counted & (instance_labels.flatten() == 0),
        delta_var=delta_var, max_anchors=max_anchors, min_uncovered=min_uncovered,
    )
    student_anchors, teacher_anchors = (pixels.index_select(1, anchors) for pixels in (student, teacher))
    overlap, squares, teacher_squares = soft_mask_overlap(
        student, student_anchors, teacher, teacher_anchors, counted, width
    )
    return _mean(1.0 - _dice(overlap, squares + teacher_squares))


@torch.no_grad()
def draw_anchors(
    student: Tensor,
    teacher: Tensor,
    candidates: Tensor,
    *,
    delta_var: float,
    max_anchors: int = 20,
    min_uncovered: float = 0.05,
) -> Tensor:
    """Random pixels that cover the candidates of one image, each at least `delta_var` from all earlier ones.

    Parameters
    ----------
    student, teacher : float Tensor [E, N]
        Embeddings of the pixels of one image in both views.
    candidates : bool Tensor [N]
        Where anchors may lie.
    delta_var : float
        An anchor covers the pixels nearer than this to it in either view. Embedding units.
    max_anchors : int
        At most so many.
    min_uncovered : float
        Stop when fewer than this share of all N pixels is left uncovered.

    Returns
    -------
    int64 Tensor [A]
        Pixel numbers, in the order drawn. Random: one draw per pixel from torch's global generator.
    """
    # The highest of independent uniform priorities is a uniform draw from whatever pixels are left, so one
    # call to the generator serves all steps.
    priority = torch.rand(candidates.shape, device=candidates.device)
    uncovered = candidates.clone()
    enough = max(min_uncovered * candidates.numel(), 1)
    anchors = [uncovered.new_zeros(0, dtype=torch.int64)]
    views = [pixels - pixels.mean(dim=1, keepdim=True) for pixels in (student, teacher)]
    views = [(pixels, 0.5 * pixels.square().sum(dim=0)) for pixels in views]
    with exact_products(student.device):
        while len(anchors) <= max_anchors and uncovered.sum() >= enough:
            anchor = priority.where(uncovered, -1.0).argmax(dim=0, keepdim=True)        # [1]
            for pixels, half_square in views:  # |a - p| >= delta if |p|^2 / 2 - a·p >= (delta^2 - |a|^2) / 2
                own = pixels.index_select(1, anchor).squeeze(1)                         # [E]
                uncovered &= half_square - own @ pixels >= 0.5 * (delta_var**2 - own.dot(own))
            uncovered[anchor] = False                                           # also with delta_var = 0
            anchors.append(anchor)
    return torch.cat(anchors)


@dataclass(frozen=True)
class EmbeddingLossWeights:
    """Weight of each term of `embedding_loss`, each >= 0; 0 leaves the term out.

    Thesis eq. 11 with SPOCO's values; 0.1 for the consistency is the thesis's choice (chapter 11, table 1).

    `consistency_reduction` says how the consistency terms of the images of a batch become one: "mean", as in
    all other terms, or "sum", as in the code of Wolny et al. 2022 (SPOCO), where its share of the loss grows
    with the batch: with 16 images a weight of 0.1 there is one of 1.6 here.
    """

    pull: float = 1.0
    push: float = 1.0
    regulariser: float = 0.001
    object_dice: float = 1.0
    unlabelled_push: float = 1.0
    consistency: float = 0.1
    consistency_reduction: Literal["mean", "sum"] = later("mean")

    def __post_init__(self):
        if self.consistency_reduction not in ("mean", "sum"):
            raise ValueError(
                f"consistency_reduction is {self.consistency_reduction!r}, expected 'mean' or 'sum'"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "consistency_reduction" and not 0 <= value < math.inf:
                raise ValueError(f"loss weight {field.name} is {value!r}, expected a finite value >= 0")


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
) -> dict[str, Tensor]:
    """The weighted terms of the instance loss, each a mean over the images of a batch; their sum is the loss.

    The consistency alone may be a sum over images (`EmbeddingLossWeights.consistency_reduction`).

    Parameters
    ----------
    embeddings : float Tensor [B, E, H, W]
    instance_labels : integer Tensor [B, H, W]
        Ids >= 1, in any numbering; 0 means unlabelled.
    weights : EmbeddingLossWeights
        A term of weight 0 is neither computed nor returned.
    delta_var, delta_dist : float
        Margins in embedding units, `epsilon` of the rings included; >= 0. A kernel, hence object Dice and
        consistency, needs a `delta_var` above 0.
    kernel_threshold : float
        As in `object_dice_loss`.
    ignore : bool Tensor [B, H, W], optional
        Pixels of no term at all.
    teacher_embeddings : float Tensor [B, E, H, W], optional
        With them the consistency term is computed, without them it is left out.
    valid : bool Tensor [B, H, W], optional
        As in `consistency_loss`.

    Returns
    -------
    dict of str to Tensor []
        "pull", "push", "regulariser", "object_dice", "unlabelled_push", "consistency", already weighted. An
        image without instances adds 0 to the first five and counts in the mean.

    Raises
    ------
    ValueError
        If shapes differ, an id is negative or not an integer, or a margin does not fit the weights.

    References
    ----------
    Thesis eq. 11.
    """
    _check_margin("delta_var", delta_var)
    _check_margin("delta_dist", delta_dist)
    has_kernel = delta_var > 0 or weights.object_dice > 0  # if not, no term looks at its width
    width = _kernel_width(delta_var, kernel_threshold) if has_kernel else 1.0
    n_images = len(embeddings)
    others = {"ignore": ignore, "teacher_embeddings": teacher_embeddings, "valid": valid}
    for name, value in {"instance_labels": instance_labels, **others}.items():
        if value is not None and len(value) != n_images:
            raise ValueError(f"{name} has {len(value)} images, expected {n_images}")
    segments = Segments(embeddings, instance_labels, ignore)
    looks_at_distances = weights.pull > 0 or weights.object_dice > 0 or weights.unlabelled_push > 0
    sums = segments.sums(
        width if looks_at_distances else None, delta_var, delta_dist if weights.unlabelled_push > 0 else None
    )
    terms = {
        "pull": lambda: _pull(segments, sums),
        "push": lambda: _push(segments, sums, delta_dist),
        "regulariser": lambda: _regulariser(segments, sums),
        "object_dice": lambda: _object_dice(segments, sums),
        "unlabelled_push": lambda: _unlabelled_push(segments, sums),
    }
    if teacher_embeddings is not None:
        valid = [None] * n_images if valid is None else valid
        ignore = [None] * n_images if ignore is None else ignore
        reduce = torch.mean if weights.consistency_reduction == "mean" else torch.sum
        terms["consistency"] = lambda: reduce(torch.stack([
            consistency_loss(*image, delta_var=delta_var, kernel_threshold=kernel_threshold, ignore=ignored)
            for *image, ignored in zip(embeddings, teacher_embeddings, instance_labels, valid, ignore)
        ]))  # fmt: skip
    return {
        name: getattr(weights, name) * term() for name, term in terms.items() if getattr(weights, name) > 0
    }


def _of_one_image(embeddings: Tensor, instance_labels: Tensor, ignore: Tensor | None) -> Segments:
    """Segments of a batch of one."""
    check_same_grid(embeddings, instance_labels=instance_labels, ignore=ignore)
    return Segments(embeddings[None], instance_labels[None], None if ignore is None else ignore[None])


def _pull(segments: Segments, sums: InstanceSums) -> Tensor:
    """Body of `pull_loss`, a mean over images, as all that follow."""
    return (segments.share * sums.pull / segments.sizes).sum()


def _push(segments: Segments, sums: InstanceSums, delta_dist: float) -> Tensor:
    """Body of `push_loss`."""
    means = sums.means.T                                                                # [K, E]
    distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")   # [K, K]
    hinge = (2.0 * delta_dist - distance).clamp(min=0).square()
    others = (segments.n_of_image - 1).clamp(min=1)  # of an instance; pairs are ordered
    same_image = segments.image[:, None] == segments.image
    return (hinge * same_image).fill_diagonal_(0).mul(segments.share / others).sum()


def _regulariser(segments: Segments, sums: InstanceSums) -> Tensor:
    """Body of `regulariser`."""
    return (segments.share * length(sums.means)).sum()


def _object_dice(segments: Segments, sums: InstanceSums, *, pooled: bool = False) -> Tensor:
    """Body of `object_dice_loss`."""
    overlap, squares = sums.overlap, sums.squares + segments.sizes
    if pooled and len(overlap):  # of one image
        return 1.0 - _dice(overlap.sum(), squares.sum())
    return (segments.share * (1.0 - _dice(overlap, squares))).sum()


def _unlabelled_push(segments: Segments, sums: InstanceSums) -> Tensor:
    """Body of `unlabelled_push_loss`."""
    return (segments.share * sums.push / segments.n_unlabelled.clamp(min=1)[segments.image]).sum()


def _dice(overlap: Tensor, squares: Tensor) -> Tensor:
    """Dice overlap with squared sums below (V-Net form): [K]."""
    return 2.0 * overlap / squares.clamp(min=1e-6)


def _mean(values: Tensor) -> Tensor:
    """Mean; 0, still differentiable, of no values."""
    return values.sum() / max(values.numel(), 1)


def _check_margin(name: str, value: float) -> None:
    """Raise ValueError for a margin that is negative, not finite, or whose square float32 cannot hold."""
    if value != 0 and not SMALLEST_MARGIN <= value <= LARGEST_MARGIN:
        raise ValueError(
            f"{name} is {value}, expected a finite margin >= 0: 0, or "
            f"{SMALLEST_MARGIN:.0e} to {LARGEST_MARGIN:.0e}"
        )


def _kernel_width(delta_var: float, kernel_threshold: float) -> float:
    """2 sigma^2 of the kernel that falls to `kernel_threshold` at distance `delta_var`."""
    _check_margin("delta_var", delta_var)
    if delta_var == 0 or not 0 < kernel_threshold < 1:
        raise ValueError(
            f"delta_var={delta_var}, kernel_threshold={kernel_threshold}: the kernel of object Dice and "
            "consistency needs a finite delta_var > 0 and 0 < kernel_threshold < 1"
        )
    return delta_var**2 / -math.log(kernel_threshold)


