"""Sums over the soft masks of one image, without the masks.

A soft mask is exp(-|e_i - c_k|^2 / width) over the N pixels, for each of K centres. Dice and hinge losses
need only sums of its rows, so it is made in blocks of pixels that fit a CPU's cache, and made again for
the gradient, which is known in closed form. Memory does not grow with K, and squared distances are one
matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from panolib.distances import exact_products

FLOOR = -43.0  # exponent: a mask stays at 2e-19 further out, as subnormal squares take CPUs ten times longer


def soft_mask_sums(
    pixels: Tensor,
    centres: Tensor,
    width: float,
    target: Callable[[slice], Tensor],
    counted: Tensor,
    *,
    margin: float | None = None,
    outside: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlap of soft masks with target masks, squared sums, and a hinge on the distance to the centres.

    Parameters
    ----------
    pixels : float Tensor [E, N]
    centres : float Tensor [E, K]
    width : float
        2 sigma^2 of the Gaussian kernel.
    target : callable
        From a slice of pixels to the target masks there, float [K, n], 0 where a pixel does not count.
        No gradient reaches it.
    counted : bool Tensor [N]
    margin : float, optional
        Distance below which the hinge is positive.
    outside : bool Tensor [N], optional
        Pixels of the hinge. Needed with a margin.

    Returns
    -------
    overlap : Tensor [K]
        Sum of mask * target. Differentiable in pixels and centres, as `squares` and `hinge`.
    squares : Tensor [K]
        Sum of mask^2 over counted pixels.
    target_squares : Tensor [K]
        Sum of target^2.
    hinge : Tensor [K]
        Sum of max(0, margin - distance)^2 outside; 0 without a margin. At distance 0 its gradient is 0.
    """
    return _SoftMaskSums.apply(pixels, centres, width, target, counted, margin, outside)


class SoftMasks:
    """Soft masks as a target: from a slice of pixels to float [K, n], 0 where a pixel does not count."""

    def __init__(self, pixels: Tensor, centres: Tensor, width: float, counted: Tensor):
        self.pixels, self.centres, self.width, self.counted = pixels, centres, width, counted

    def __call__(self, where: slice) -> Tensor:
        square = _Block(where, self.pixels, self.centres).square_distances()
        return _soft_mask(square, self.width).mul_(self.counted[where])


class _SoftMaskSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels, centres, width, target, counted, margin, outside):
        ctx.save_for_backward(pixels, centres)
        ctx.constants = width, target, counted, margin, outside
        sums = pixels.new_zeros(4, centres.shape[1])
        with exact_products(pixels.device):
            for block in _blocks(pixels, centres):
                square = block.square_distances()
                goal = target(block.where)
                if margin is not None:
                    hinge = block.distances(square).neg_().add_(margin).clamp_(min=0).square_()
                    sums[3] += hinge @ outside[block.where].to(hinge)
                mask = _soft_mask(square, width)
                sums[2] += torch.linalg.vecdot(goal, goal)
                sums[0] += torch.linalg.vecdot(goal, mask)
                sums[1] += mask.square_() @ counted[block.where].to(mask)
        overlap, squares, target_squares, hinges = sums
        ctx.mark_non_differentiable(target_squares)
        return overlap, squares, target_squares, hinges

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_overlap, grad_squares, _, grad_hinge):
        pixels, centres = ctx.saved_tensors
        width, target, counted, margin, outside = ctx.constants
        grad_pixels, grad_centres = torch.zeros_like(pixels), torch.zeros_like(centres)
        with exact_products(pixels.device):
            for block in _blocks(pixels, centres):
                square = block.square_distances()  # below: the gradient of the sums with respect to it
                if margin is not None:
                    distance = block.distances(square)
                    push = (margin - distance).clamp_(min=0).div_(distance).nan_to_num_(posinf=0.0)
                    push *= outside[block.where]
                    push *= grad_hinge[:, None]
                mask = _soft_mask(square, width)
                slope = (2 * grad_squares / width)[:, None] * mask
                slope *= counted[block.where]
                slope.addcmul_(target(block.where), (grad_overlap / width)[:, None])
                slope.mul_(mask).neg_()
                if margin is not None:
                    slope -= push
                near, means = block.pixels, block.centres
                grad_pixels[:, block.where] = 2 * (near * slope.sum(0) - means @ slope)
                grad_centres += 2 * (means * slope.sum(1) - near @ slope.T)
        return grad_pixels, grad_centres, None, None, None, None, None


class _Block:
    """Some pixels and all centres around a common origin, so that a matrix product resolves the distances."""

    def __init__(self, where: slice, pixels: Tensor, centres: Tensor):
        origin = centres.mean(1, keepdim=True)
        self.where, self.pixels, self.centres = where, pixels[:, where] - origin, centres - origin

    def square_distances(self) -> Tensor:
        """[K, n]: |c|^2 - 2 c·p + |p|^2, in which rounding may leave a 0 slightly negative."""
        p, c = self.pixels, self.centres
        self.p_square, self.c_square = p.square().sum(0), c.square().sum(0)
        lifted_c = torch.cat([-2 * c, torch.ones_like(c[:1]), self.c_square[None]])
        return lifted_c.T @ torch.cat([p, self.p_square[None], torch.ones_like(p[:1])])

    def distances(self, square: Tensor) -> Tensor:
        """[K, n]: roots; exactly 0 for what is below the rounding of the squares."""
        eps = 4 * torch.finfo(square.dtype).eps
        rounding = torch.add(eps * self.c_square[:, None], self.p_square, alpha=eps)
        return square.masked_fill(square < rounding, 0.0).sqrt_()


def _blocks(pixels: Tensor, centres: Tensor) -> Iterator[_Block]:
    """All pixels, in blocks of K * n elements that fit a CPU's cache. None without centres."""
    n_centres, n_pixels = centres.shape[1], pixels.shape[1]
    size = max(1, (2**24 if pixels.is_cuda else 2**17) // max(n_centres, 1))
    if n_centres:
        for start in range(0, n_pixels, size):
            yield _Block(slice(start, min(start + size, n_pixels)), pixels, centres)


def _soft_mask(square_distances: Tensor, width: float) -> Tensor:
    """Kernel of the squared distances, in their place."""
    return square_distances.mul_(-1.0 / width).clamp_(min=FLOOR, max=0.0).exp_()
