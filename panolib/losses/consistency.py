"""The consistency term: what student and teacher cut out around the same random pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from panolib.clustering.distances import exact_products, suppress_near
from panolib.losses.soft_masks import BLOCK, dice, soft_mask_overlap

MIN_UNCOVERED = 0.05  # share of the pixels that need no anchor


def consistency_term(
    student: Tensor, teacher: Tensor, candidates: Tensor, counted: Tensor, *, delta_var: float, width: float
) -> Tensor:
    """One minus the Dice overlap of student and teacher soft masks around random anchors, for one image.

    Takes embeddings of the same pixels, float [E, N], where no gradient reaches the teacher's; bool [N],
    where anchors may lie (`candidates`) and which pixels are `counted` in the sums; `delta_var` of
    `draw_anchors`, and the `kernel_width` of the soft masks. Returns a Tensor in [0, 1], the mean over
    anchors, one Dice each; exactly 0, with zero gradient, without anchors. Thesis eq. 10; Wolny et al. 2022,
    arXiv:2103.14572.
    """
    anchors = draw_anchors(student.detach(), teacher, candidates, delta_var=delta_var)
    student_anchors, teacher_anchors = (pixels.index_select(1, anchors) for pixels in (student, teacher))
    overlap, squares, teacher_squares = soft_mask_overlap(
        student, student_anchors, teacher, teacher_anchors, counted, width
    )
    return (1.0 - dice(overlap, squares + teacher_squares)).sum() / max(len(anchors), 1)


@torch.no_grad()
def draw_anchors(
    student: Tensor, teacher: Tensor, candidates: Tensor, *, delta_var: float, max_anchors: int = 20
) -> Tensor:
    """Random pixels that cover the candidates of one image, each at least `delta_var` from all earlier ones.

    An anchor covers the pixels nearer than `delta_var` (embedding units) to it in either view, float [E, N].
    It is drawn among the `candidates`, bool [N], that are not covered, until there are `max_anchors` or fewer
    than the share `MIN_UNCOVERED` of all N pixels is left. Returns int64 [A], pixel numbers in the order
    drawn. Random: one draw per pixel from torch's global generator.
    """
    # The highest of independent uniform priorities is a uniform draw from whatever pixels are left, so one
    # call to the generator serves all steps.
    priority = torch.rand(candidates.shape, device=candidates.device)
    uncovered = candidates.clone()
    enough = max(MIN_UNCOVERED * candidates.numel(), 1)
    anchors: list[Tensor] = []
    views = [_lifted(pixels) for pixels in (student, teacher)]
    with exact_products(student.device):
        n_left = int(uncovered.sum())
        while len(anchors) < max_anchors and n_left >= enough:
            # the next ones are among the first of those that are left, but for what they cover of each other
            drawn = _highest(priority.where(uncovered, -1.0), min(max_anchors - len(anchors), n_left))
            near = ~_far(views, drawn, delta_var, drawn)
            drawn = drawn[torch.from_numpy(suppress_near(near.cpu().numpy())).to(drawn.device)]
            far = _far(views, drawn, delta_var).scatter_(1, drawn[:, None], False)  # also with delta_var = 0
            for anchor, spared in zip(drawn.unbind(), far.unbind()):
                anchors.append(anchor)
                n_left = int(torch.count_nonzero(uncovered.logical_and_(spared)))
                if n_left < enough:
                    break
    return torch.stack(anchors) if anchors else torch.zeros(0, dtype=torch.int64, device=candidates.device)


def _lifted(pixels: Tensor) -> Tensor:
    """[E + 1, N]: the pixels around their mean p, and |p|^2 / 2."""
    pixels = pixels - pixels.mean(dim=1, keepdim=True)
    return torch.cat([pixels, 0.5 * pixels.square().sum(dim=0, keepdim=True)])


def _highest(values: Tensor, n: int) -> Tensor:
    """Where the `n` highest values [N] are, descending; of equal ones the first comes first."""
    where = values.topk(n).indices.sort().values
    return where[values[where].sort(descending=True, stable=True).indices]


def _far(views: list[Tensor], anchors: Tensor, delta_var: float, among: Tensor | None = None) -> Tensor:
    """bool [A, N]: pixels, all or some, that are `delta_var` or more from an anchor in every view.

    |a - p| >= delta if |p|^2 / 2 - a·p >= (delta^2 - |a|^2) / 2.
    """
    n_pixels = views[0].shape[1] if among is None else len(among)
    far = torch.ones(len(anchors), n_pixels, dtype=torch.bool, device=anchors.device)
    size = max(1, (2**24 if far.is_cuda else BLOCK) // max(1, len(anchors)))
    for lifted in views:
        own = lifted.index_select(1, anchors)
        threshold = 0.5 * delta_var**2 - own[-1:].T
        rows = torch.cat([-own[:-1], torch.ones_like(own[-1:])]).T
        lifted = lifted if among is None else lifted.index_select(1, among)
        for some, part in zip(far.split(size, 1), lifted.split(size, 1)):
            some &= rows @ part >= threshold
    return far
