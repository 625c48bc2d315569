"""The consistency term: what student and teacher cut out around the same random pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from panolib.clustering.distances import exact_products
from panolib.losses.soft_masks import dice, soft_mask_overlap


def consistency_term(
    student: Tensor, teacher: Tensor, candidates: Tensor, counted: Tensor, *, delta_var: float, width: float
) -> Tensor:
    """One minus the Dice overlap of student and teacher soft masks around random anchors, for one image.

    Parameters
    ----------
    student, teacher : float Tensor [E, N]
        Embeddings of the same pixels. No gradient reaches the teacher's.
    candidates : bool Tensor [N]
        Where anchors may lie.
    counted : bool Tensor [N]
        Pixels of the sums.
    delta_var : float
        As in `draw_anchors`.
    width : float
        `kernel_width` of the soft masks.

    Returns
    -------
    Tensor []
        In [0, 1], the mean over anchors; one Dice per anchor. Exactly 0, with zero gradient, without anchors.

    References
    ----------
    Thesis eq. 10; Wolny et al. 2022, arXiv:2103.14572.
    """
    anchors = draw_anchors(student.detach(), teacher, candidates, delta_var=delta_var)
    student_anchors, teacher_anchors = (pixels.index_select(1, anchors) for pixels in (student, teacher))
    overlap, squares, teacher_squares = soft_mask_overlap(
        student, student_anchors, teacher, teacher_anchors, counted, width
    )
    return (1.0 - dice(overlap, squares + teacher_squares)).sum() / max(len(anchors), 1)


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
