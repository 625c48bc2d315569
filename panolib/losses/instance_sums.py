"""All that instance losses need of the distances from all means to all pixels, in one pass over blocks.

Pull looks at the distance of a pixel to its own mean, object Dice at a Gaussian of the distances to all
means, the unlabelled push at a hinge of those of unlabelled pixels. See `soft_masks` for the blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from panolib.distances import exact_products
from panolib.losses.soft_masks import PixelBlock, pixel_blocks, soft_mask


class InstanceSums(NamedTuple):
    """Per instance, all [K] and differentiable in pixels and means.

    overlap: sum of the soft mask over the instance. squares: sum of its square over all counted pixels.
    pull: sum over the instance of max(0, distance - delta_var)^2. push: sum over unlabelled pixels of
    max(0, delta_dist - distance)^2; 0 without delta_dist. At distance 0 the gradients of both are 0.
    """

    overlap: Tensor
    squares: Tensor
    pull: Tensor
    push: Tensor


def instance_sums(
    pixels: Tensor,
    means: Tensor,
    ids: Tensor,
    counted: Tensor | None,
    *,
    width: float,
    delta_var: float,
    delta_dist: float | None,
) -> InstanceSums:
    """Sums of one image.

    Parameters
    ----------
    pixels : float Tensor [E, N]
    means : float Tensor [E, K]
    ids : int64 Tensor [N]
        1 .. K; 0 for a pixel of no instance.
    counted : bool Tensor [N] or None
        False for pixels of no sum at all; their id is 0. None: all count.
    width : float
        2 sigma^2 of the Gaussian kernel.
    delta_var, delta_dist : float
        Margins. None leaves the push out.
    """
    return InstanceSums(*_InstanceSums.apply(pixels, means, ids, counted, width, delta_var, delta_dist))


class _InstanceSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels, means, ids, counted, width, delta_var, delta_dist):
        ctx.save_for_backward(pixels, means, ids, counted)
        ctx.constants = width, delta_var, delta_dist
        overlap, squares, pull, push = pixels.new_zeros(4, means.shape[1]).unbind()
        with exact_products(pixels.device):
            for block in pixel_blocks(pixels, means):
                own, inside, unlabelled = _rows(ids, counted, block)
                square = block.square_distances()
                hinge = (block.distances(_of_own(square, own)) - delta_var).clamp_(min=0).square_()
                pull.index_add_(0, own, hinge * inside)
                if delta_dist is not None:
                    hinge = block.distances(square).neg_().add_(delta_dist).clamp_(min=0).square_()
                    push += hinge @ unlabelled
                mask = soft_mask(square, width)
                overlap.index_add_(0, own, _of_own(mask, own) * inside)
                mask.square_()
                squares += mask.sum(1) if counted is None else mask @ counted[block.where].to(mask)
        return overlap, squares, pull, push

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_overlap, grad_squares, grad_pull, grad_push):
        pixels, means, ids, counted = ctx.saved_tensors
        width, delta_var, delta_dist = ctx.constants
        grad_pixels, grad_means = torch.zeros_like(pixels), torch.zeros_like(means)
        with exact_products(pixels.device):
            for block in pixel_blocks(pixels, means):
                own, inside, unlabelled = _rows(ids, counted, block)
                square = block.square_distances()
                # gradients with respect to squared distances: to the own mean [n], then to all means [K, n]
                distance = block.distances(_of_own(square, own))
                to_own = (distance - delta_var).clamp_(min=0).div_(distance).nan_to_num_(0.0)
                to_own *= grad_pull[own]
                push = None
                if delta_dist is not None:
                    distance = block.distances(square)
                    push = (delta_dist - distance).clamp_(min=0).div_(distance).nan_to_num_(posinf=0.0)
                    push.mul_(unlabelled).mul_(grad_push[:, None])
                mask = soft_mask(square, width)
                to_own -= _of_own(mask, own) * (grad_overlap / width)[own]
                slope = mask.square_().mul_((-2 / width) * grad_squares[:, None])
                if counted is not None:
                    slope *= counted[block.where]
                if push is not None:
                    slope -= push
                slope.scatter_add_(0, own[None], (to_own * inside)[None])
                block.add_gradients(slope, grad_pixels, grad_means)
        return grad_pixels, grad_means, None, None, None, None, None


def _rows(ids: Tensor, counted: Tensor | None, block: PixelBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Of the pixels of a block: row of the own mean, 1.0 if there is one, 1.0 if unlabelled; all [n]."""
    ids = ids[block.where]
    inside = (ids > 0).to(block.pixels.dtype)
    unlabelled = 1 - inside if counted is None else counted[block.where].to(inside.dtype) - inside
    return (ids - 1).clamp_(min=0), inside, unlabelled


def _of_own(values: Tensor, own: Tensor) -> Tensor:
    """[n]: of every column of [K, n] the value in its own row."""
    n = values.shape[1]
    return values.view(-1).index_select(0, own * n + torch.arange(n, device=own.device))
