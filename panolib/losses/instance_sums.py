"""All that instance losses need of a batch, in one pass over blocks of pixels: means, and sums of distances.

Pull looks at the distance of a pixel to its own mean, object Dice at a Gaussian of the distances to all
means, the unlabelled push at a hinge of those of unlabelled pixels. See `soft_masks` for the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from panolib.clustering.distances import exact_products
from panolib.losses.soft_masks import (
    BLOCK,
    FLOOR,
    NEGLIGIBLE,
    PixelBlock,
    pixel_blocks,
    rows_of,
    soft_mask,
)


class InstanceSums(NamedTuple):
    """Per instance, of all images one after the other; differentiable in the embeddings.

    means [E, K]: mean embedding. All others [K], without a kernel width 0. overlap: sum of the soft mask over
    the instance. squares: sum of its square over all counted pixels of the image. pull: sum over the instance
    of max(0, distance - delta_var)^2. push: sum over unlabelled pixels of max(0, delta_dist - distance)^2;
    0 without delta_dist. At distance 0 the gradients of both are 0.
    """

    means: Tensor
    overlap: Tensor
    squares: Tensor
    pull: Tensor
    push: Tensor


def instance_sums(
    embeddings: Tensor,
    ids: Tensor,
    counted: Tensor | None,
    sizes: Tensor,
    n_instances: tuple[int, ...],
    *,
    width: float | None,
    delta_var: float,
    delta_dist: float | None,
) -> InstanceSums:
    """Means and sums of a batch.

    Parameters
    ----------
    embeddings : float Tensor [B, E, N]
    ids : int64 Tensor [B, N]
        1 .. K_b in image b; 0 for a pixel of no instance.
    counted : bool Tensor [B, N] or None
        False for pixels of no sum at all; their id is 0. None: all count.
    sizes : float Tensor [K]
        Pixels of each instance.
    n_instances : tuple of int
        K_b; they sum to K.
    width : float or None
        2 sigma^2 of the Gaussian kernel. None: means only.
    delta_var, delta_dist : float
        Margins. None leaves the push out.
    """
    constants = n_instances, width, delta_var, delta_dist
    return InstanceSums(*_InstanceSums.apply(embeddings, ids, counted, sizes, constants))


class _InstanceSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, ids, counted, sizes, constants):
        n_instances, width, delta_var, delta_dist = constants
        means = embeddings.new_zeros(embeddings.shape[1], sum(n_instances))
        sums = embeddings.new_zeros(4, sum(n_instances))
        ctx.rows = []
        with exact_products(embeddings.device):
            for image, of_image in _images(n_instances):
                pixels = embeddings[image]
                means[:, of_image] = _segment_sums(pixels, ids[image], n_instances[image]) / sizes[of_image]
                if width is None:
                    continue
                overlap, squares, pull, push = sums[:, of_image].unbind()
                reach = max(NEGLIGIBLE * width, 0.0 if delta_dist is None else delta_dist**2)
                for block in pixel_blocks(pixels, means[:, of_image]):
                    own, inside, unlabelled = _rows(ids, counted, image, block, embeddings.dtype)
                    if not own.is_cuda:
                        near = torch.zeros_like(sizes[of_image], dtype=torch.bool).index_fill_(0, own, True)
                        block.keep(rows_of(near if near.all() else near | block.is_near(reach)))
                    ctx.rows.append(block.rows)
                    square = block.square_distances()
                    own_square = square.gather(0, _position(own, block.rows))[0]
                    overlap.index_add_(0, own, soft_mask(own_square.clone(), width) * inside)
                    hinge = _root(own_square, block).sub_(delta_var).clamp_(min=0).square_()
                    pull.index_add_(0, own, hinge.mul_(inside))
                    if delta_dist is not None:
                        # first what rounding hides, which may be more than the margin
                        hinge = torch.threshold(square, block.rounding, 0.0).clamp_(max=delta_dist**2)
                        hinge = hinge.sqrt_().sub_(delta_dist).square_()
                        push[block.rows] += hinge @ unlabelled
                    mask = _squared_mask(square, width)
                    squares[block.rows] += mask.sum(1) if counted is None else mask @ (inside + unlabelled)
        ctx.save_for_backward(embeddings, ids, counted, sizes, means)
        ctx.constants = constants
        return means, *sums.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_means, grad_overlap, grad_squares, grad_pull, grad_push):
        embeddings, ids, counted, sizes, means = ctx.saved_tensors
        n_instances, width, delta_var, delta_dist = ctx.constants
        tiny = torch.finfo(embeddings.dtype).tiny
        rows_of_blocks = iter(ctx.rows)
        filled = width is not None and all(n_instances)
        grad_embeddings = (torch.empty_like if filled else torch.zeros_like)(embeddings)
        grad_means = grad_means.clone()
        with exact_products(embeddings.device):
            for image, of_image in _images(n_instances):
                to_pixels, to_means = grad_embeddings[image], grad_means[:, of_image]
                blocks = () if width is None else pixel_blocks(embeddings[image], means[:, of_image])
                for block in blocks:
                    own, inside, unlabelled = _rows(ids, counted, image, block, embeddings.dtype)
                    block.keep(next(rows_of_blocks))
                    square, position = block.square_distances(), _position(own, block.rows)
                    # gradients with respect to squared distances: to the own mean [n], then to all [R, n]
                    own_square = square.gather(0, position)[0]
                    to_own = soft_mask(own_square.clone(), width)
                    to_own *= (-grad_overlap[of_image] / width).index_select(0, own)
                    distance = _root(own_square, block)
                    pulled = (distance - delta_var).clamp_(min=0).div_(distance.clamp_(min=tiny))
                    to_own += pulled.mul_(grad_pull[of_image].index_select(0, own))
                    push = None
                    if delta_dist is not None:
                        push = torch.threshold(square, block.rounding, delta_dist**2)
                        push.clamp_(max=delta_dist**2).rsqrt_()
                        weight = grad_push[of_image][block.rows, None]
                        push.mul_(delta_dist * weight).sub_(weight)
                    mask = _squared_mask(square, width)
                    slope = mask.mul_((-2 / width) * grad_squares[of_image][block.rows, None])
                    if counted is not None:
                        slope *= inside + unlabelled
                    if push is not None:
                        slope.addcmul_(push, unlabelled, value=-1)
                    slope.scatter_add_(0, position, to_own.mul_(inside)[None])
                    block.put_gradients(slope, to_pixels, to_means)
                _add_by_id(to_pixels, to_means / sizes[of_image], ids[image])
        return grad_embeddings, None, None, None, None


def _images(n_instances: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """(number, its instances) of every image that has instances."""
    first = 0
    for image, n in enumerate(n_instances):
        if n:
            yield image, slice(first, first + n)
        first += n


def _segment_sums(pixels: Tensor, ids: Tensor, n: int) -> Tensor:
    """[E, n]: sums of the columns of `pixels` [E, N] by id 1 .. n.

    Products with the masks of the instances, which on CPU take half as long as a scattered sum.
    """
    sums = pixels.new_zeros(len(pixels), n + 1)
    size = max(1, (2**24 if pixels.is_cuda else BLOCK) // (n + 1))
    for some, own in zip(pixels.split(size, 1), ids.split(size)):
        masks = pixels.new_zeros(n + 1, len(own)).scatter_(0, own[None], 1.0)
        sums += some @ masks.T
    return sums[:, 1:]


def _add_by_id(pixels: Tensor, values: Tensor, ids: Tensor) -> None:
    """Add to the columns of `pixels` [E, N] those of `values` [E, n] by id 1 .. n; nothing for id 0."""
    values = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
    size = 2**24 if pixels.is_cuda else 2**14
    for some, own in zip(pixels.split(size, 1), ids.split(size)):
        some += values.index_select(1, own)


def _rows(
    ids: Tensor, counted: Tensor | None, image: int, block: PixelBlock, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the pixels of a block: row of the own mean, 1.0 if there is one, 1.0 if unlabelled; all [n]."""
    ids = ids[image, block.where]
    inside = (ids > 0).to(dtype)
    unlabelled = 1 - inside if counted is None else counted[image, block.where].to(dtype) - inside
    return (ids - 1).clamp_(min=0), inside, unlabelled


def _position(own: Tensor, rows: slice | Tensor) -> Tensor:
    """int64 [1, n]: where in the rows of a block the own mean of each pixel is."""
    return (own if isinstance(rows, slice) else torch.searchsorted(rows, own))[None]


def _root(square: Tensor, block: PixelBlock) -> Tensor:
    """Distances in the place of their squares; exactly 0 for what is below their rounding."""
    return torch.threshold_(square, block.rounding, 0.0).sqrt_()


def _squared_mask(square: Tensor, width: float) -> Tensor:
    """Square of the kernel of the squared distances, in their place."""
    return square.mul_(-2.0 / width).clamp_(min=2 * FLOOR, max=0.0).exp_()
