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
    FLOOR,
    NEGLIGIBLE,
    Distances,
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
    """Means and sums of a batch of embeddings, float [B, E, N].

    `ids` int64 [B, N] are 1 .. K_b in image b, 0 for a pixel of no instance; `n_instances` are the K_b,
    `sizes` float [K] the pixels of each of the K instances of all images. `counted` bool [B, N] is False for
    pixels of no sum at all, whose id is 0; None: all count. `width` is 2 sigma^2 of the Gaussian kernel, None
    for the means only; of the margins a `delta_dist` None leaves the push out.
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
                for block in _blocks(pixels, means[:, of_image], ids, counted, image, delta_dist):
                    own, inside = _members(ids[image], block)
                    to_all, *to_unlabelled = block.distances
                    if not own.is_cuda:
                        nearest = to_all.nearest()
                        to_all.keep(rows_of((~(nearest > NEGLIGIBLE * width)).index_fill_(0, own, True)))
                        for found in to_unlabelled:
                            found.keep(rows_of(~(nearest > delta_dist**2)))
                            found.keep(rows_of(~(found.nearest() > delta_dist**2)))
                    ctx.rows.append([found.rows for found in block.distances])
                    square = to_all.values.view(-1).index_select(0, _position(to_all, own, inside))
                    hinge = _root(square.clone(), block).sub_(delta_var).relu_()
                    pull.index_add_(0, own, hinge.square_())
                    overlap.index_add_(0, own, soft_mask(square, width))
                    squares[to_all.rows] += _squared_mask(to_all.values, width).sum(1)
                    for found in to_unlabelled:
                        # first what rounding hides, which may be more than the margin
                        hinge = torch.threshold_(found.values, block.rounding, 0.0).clamp_(max=delta_dist**2)
                        push[found.rows] += hinge.sqrt_().sub_(delta_dist).square_().sum(1)
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
                blocks = ()
                if width is not None:
                    view = embeddings[image], means[:, of_image]
                    blocks = _blocks(*view, ids, counted, image, delta_dist)
                for block in blocks:
                    for found, rows in zip(block.distances, next(rows_of_blocks)):
                        found.keep(rows)
                    own, inside = _members(ids[image], block)
                    to_all, *to_unlabelled = block.distances
                    # gradients with respect to squared distances: to the own mean, then to all
                    position = _position(to_all, own, inside)
                    square = to_all.values.view(-1).index_select(0, position)
                    distance = _root(square.clone(), block)
                    pulled = (distance - delta_var).relu_().div_(distance.clamp_(min=tiny))
                    to_own = pulled.mul_(grad_pull[of_image].index_select(0, own))
                    weight = (-grad_overlap[of_image] / width).index_select(0, own)
                    to_own.addcmul_(soft_mask(square, width), weight)
                    weight = -2 / width * grad_squares[of_image][to_all.rows, None]
                    _squared_mask(to_all.values, width).mul_(weight)
                    to_all.values.view(-1).index_add_(0, position, to_own)
                    for found in to_unlabelled:
                        weight = grad_push[of_image][found.rows, None]
                        _push_slope(found.values, weight, delta_dist, block)
                    block.put_gradients(to_pixels, to_means)
                if counted is not None:
                    to_pixels.masked_fill_(~counted[image], 0.0)
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
    """[E, n]: sums of the columns of `pixels` [E, N] by id 1 .. n, added up from parts, which rounds less."""
    sums = pixels.new_zeros(n + 1, len(pixels))
    size = 2**24 // (n + 1) if pixels.is_cuda else 2**12
    for some, own in zip(pixels.split(size, 1), ids.split(size)):
        if pixels.is_cuda:  # where scattered sums would wait for each other
            sums += some.new_zeros(n + 1, len(own)).scatter_(0, own[None], 1.0) @ some.T
        else:
            sums += torch.zeros_like(sums).index_add_(0, own, some.T.contiguous())
    return sums.T[:, 1:]


def _add_by_id(pixels: Tensor, values: Tensor, ids: Tensor) -> None:
    """Add to the columns of `pixels` [E, N] those of `values` [E, n] by id 1 .. n; nothing for id 0."""
    for inside in ids.nonzero().squeeze(1).split(2**24 if pixels.is_cuda else 2**14):
        pixels.index_add_(1, inside, values.index_select(1, ids.index_select(0, inside) - 1))


def _blocks(
    pixels: Tensor, means: Tensor, ids: Tensor, counted: Tensor | None, image: int, delta_dist: float | None
) -> Iterator[PixelBlock]:
    """Blocks of an image, with distances of unlabelled pixels as well if means push them."""
    ignored = None if counted is None else ~counted[image]
    labelled = None if delta_dist is None else ids[image] > 0
    return pixel_blocks(pixels, means, ignored=ignored, labelled=labelled)


def _members(ids: Tensor, block: PixelBlock) -> tuple[Tensor, Tensor]:
    """Of the pixels of a block that are in an instance: which one, from 0, and where in the block."""
    ids = ids[block.where]
    inside = ids.nonzero().squeeze(1)
    return ids.index_select(0, inside) - 1, inside


def _position(found: Distances, own: Tensor, inside: Tensor) -> Tensor:
    """Where the distances of pixels to their own means are among all of a block."""
    row = own if isinstance(found.rows, slice) else torch.searchsorted(found.rows, own)
    return row * found.values.shape[1] + inside


def _root(square: Tensor, block: PixelBlock) -> Tensor:
    """Distances in the place of their squares; exactly 0 for what is below their rounding."""
    return torch.threshold_(square, block.rounding, 0.0).sqrt_()


def _push_slope(square: Tensor, weight: Tensor, delta_dist: float, block: PixelBlock) -> None:
    """Weight times the gradient of the squared hinge, 1 - delta_dist / distance, in the place of squares.

    Exactly 0 from delta_dist on, and at distance 0. Weights [R, 1].
    """
    limit = delta_dist**2
    torch.threshold_(square, block.rounding, limit).clamp_(max=limit).rsqrt_()
    square.sub_(torch.full_like(weight[:1], limit).rsqrt_()).mul_(-delta_dist * weight)


def _squared_mask(square: Tensor, width: float) -> Tensor:
    """Square of the kernel of the squared distances, in their place."""
    return soft_mask(square, 0.5 * width, 2 * FLOOR)
