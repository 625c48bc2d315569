"""Soft masks exp(-|p - c|^2 / width) of the pixels of one image around K centres, in blocks of pixels.

Losses need only sums of their rows. So masks are made in blocks that fit a CPU's cache, and made again for
the gradient, which is known in closed form: memory does not grow with K. Squared distances, and which pixels
have no part in them, are one matrix product of lifted pixels with a table of centres. Where embeddings are
told apart, the pixels of a block are near some of the centres only, and the others, which no sum would
notice, are left out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from panolib.clustering.distances import exact_products

BLOCK = 2**19  # elements of K x n that fit a CPU's cache, twice
FLOOR = -24.0  # exponent: a mask stays at 4e-11 further out. Squared and weighted, a smaller one would
# be below 1e-38, where float32 is subnormal and matrix products take Intel's CPUs ten times longer
NEGLIGIBLE = 16.0  # squared distance over the kernel's width: the product of two such masks is 1e-14
FAR = 1e37  # squared distance of a pixel that has no part; float32 holds it, and some of them


def kernel_width(delta_var: float, kernel_threshold: float) -> float:
    """2 sigma^2 of the kernel that falls to `kernel_threshold` at distance `delta_var`.

    Raises ValueError for a kernel without a width.
    """
    if delta_var == 0 or not 0 < kernel_threshold < 1:
        raise ValueError(
            f"delta_var={delta_var}, kernel_threshold={kernel_threshold}: the kernel of object Dice and "
            "consistency needs a finite delta_var > 0 and 0 < kernel_threshold < 1"
        )
    return delta_var**2 / -math.log(kernel_threshold)


def dice(overlap: Tensor, squares: Tensor) -> Tensor:
    """Dice overlap [K] with squared sums below (V-Net form; Milletari et al. 2016, arXiv:1606.04797)."""
    return 2.0 * overlap / squares.clamp(min=1e-6)


def soft_mask_overlap(
    pixels: Tensor, centres: Tensor, others: Tensor, other_centres: Tensor, counted: Tensor, width: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap of the soft masks of two embeddings of the same pixels, and their squared sums.

    Takes `pixels` and `others`, float [E, N], with their centres, float [E, K]; `counted`, bool [N], the
    pixels of the sums; and the `width` of the kernel, 2 sigma^2. Returns three [K]: sums of mask * other
    mask, of mask^2 and of other mask^2. The first two are differentiable in `pixels` and `centres`; no
    gradient reaches the others.
    """
    return _SoftMaskOverlap.apply(pixels, centres, others, other_centres, counted, width)


class _SoftMaskOverlap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels, centres, others, other_centres, counted, width):
        views = pixels, centres, others, other_centres, counted
        ctx.save_for_backward(*views)
        ctx.width, ctx.rows = width, []
        overlap, squares, other_squares = pixels.new_zeros(3, centres.shape[1]).unbind()
        with exact_products(pixels.device):
            for _, ours, theirs in _pairs(*views):
                if not pixels.is_cuda:
                    nearest = torch.minimum(ours.nearest(), theirs.nearest())
                    rows = rows_of(~(nearest > NEGLIGIBLE * width))
                    ours.keep(rows)
                    theirs.keep(rows)
                ctx.rows.append(ours.rows)
                mask, other_mask = (soft_mask(term.values, width) for term in (ours, theirs))
                squares[ours.rows] += mask.square().sum(1)
                overlap[ours.rows] += mask.mul_(other_mask).sum(1)
                other_squares[ours.rows] += other_mask.square_().sum(1)
        ctx.mark_non_differentiable(other_squares)
        return overlap, squares, other_squares

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_overlap, grad_squares, _):
        pixels, centres, *_, counted = ctx.saved_tensors
        grad_pixels, grad_centres = torch.empty_like(pixels), torch.zeros_like(centres)
        if centres.shape[1] == 0:
            return grad_pixels.zero_(), grad_centres, None, None, None, None
        with exact_products(pixels.device):
            for (block, ours, theirs), rows in zip(_pairs(*ctx.saved_tensors), ctx.rows):
                ours.keep(rows)
                theirs.keep(rows)
                mask, slope = (soft_mask(term.values, ctx.width) for term in (ours, theirs))
                slope.mul_(-grad_overlap[rows, None] / ctx.width)
                mask.mul_(slope.addcmul_(mask, grad_squares[rows, None], value=-2 / ctx.width))
                block.put_gradients(grad_pixels, grad_centres)
        return grad_pixels.masked_fill_(~counted, 0.0), grad_centres, None, None, None, None


def _pairs(
    pixels: Tensor, centres: Tensor, others: Tensor, other_centres: Tensor, counted: Tensor
) -> Iterator[tuple[PixelBlock, Distances, Distances]]:
    """(block of pixels, their distances, those of the same pixels of the others)."""
    ignored = ~counted
    ours, theirs = (
        pixel_blocks(*view, ignored=ignored) for view in ((pixels, centres), (others, other_centres))
    )
    for block, other in zip(ours, theirs):
        yield block, block.distances[0], other.distances[0]


class Distances:
    """Squared distances of the n pixels of a block to the centres that are kept, at first all.

    `rows`, a slice or int64 [R], are these centres, ascending.
    """

    def __init__(self, table: Tensor, lifted: Tensor, memory: Tensor):
        self.rows, self.table = slice(None), table
        self._lifted, self._memory, self._values = lifted, memory, None

    @property
    def values(self) -> Tensor:
        """[R, n], to be written into; the next block takes their memory. A 0 may have either sign."""
        if self._values is None:
            shape = len(self.table), self._lifted.shape[1]
            self._values = self._memory[: shape[0] * shape[1]].view(shape)
            torch.mm(self.table, self._lifted, out=self._values)
        return self._values

    def nearest(self) -> Tensor:
        """[R]: the distance of the nearest pixel; NaN if there is a pixel that is not a number."""
        return self.values.amin(1)

    def keep(self, rows: slice | Tensor) -> None:
        """Leave out all centres but those of `rows_of`, which counts the ones that are left."""
        if not isinstance(rows, slice):
            self.rows = rows if isinstance(self.rows, slice) else self.rows.index_select(0, rows)
            self.table, self._values = self.table.index_select(0, rows), None


class PixelBlock:
    """Some pixels and centres around a common origin, so that a matrix product resolves the distances.

    `where` is the slice of its pixels, `distances` are those to all pixels and, if asked for, to the
    unlabelled ones. Squared distances below `rounding` may be 0.
    """

    def __init__(
        self, where: slice, distances: list[Distances], lifted: Tensor, scratch: Tensor, rounding: float
    ):
        self.where, self.distances, self.rounding = where, distances, rounding
        self._lifted, self._scratch = lifted, scratch

    def put_gradients(self, grad_pixels: Tensor, grad_centres: Tensor) -> None:
        """From the gradients with respect to all distances, in their place, to those of pixels and centres.

        The block's columns of `grad_pixels` [E, N] are set; `grad_centres` [E, K] is added to.
        """
        n_dims, pulls = len(grad_pixels), self._scratch
        distances = self.distances
        if all(isinstance(found.rows, slice) for found in distances):  # to the same centres: one sum
            distances = distances[:1]
            for found in self.distances[1:]:
                distances[0].values.add_(found.values)
        for number, found in enumerate(distances):
            slope, sides = found.values, found.table[:, : n_dims + 1]  # 2 and -2 c
            torch.addmm(pulls, sides.T, slope, beta=float(number > 0), out=pulls)
            sums = self._lifted[1 : n_dims + 2] @ slope.T  # rows p·slope, and slope summed over the pixels
            grad_centres[:, found.rows] -= 2 * sums[:n_dims] + sides[:, 1:].T * sums[n_dims]
        torch.addcmul(pulls[1:], self._lifted[1 : n_dims + 1], pulls[0], out=grad_pixels[:, self.where])


def rows_of(near: Tensor) -> slice | Tensor:
    """Which rows are True: all, or their numbers, ascending. A GPU would have to be waited for."""
    return slice(None) if near.all() else near.nonzero().squeeze(1)


def pixel_blocks(
    pixels: Tensor, centres: Tensor, *, ignored: Tensor | None = None, labelled: Tensor | None = None
) -> Iterator[PixelBlock]:
    """All pixels, float [E, N], in blocks of K x n elements for a CPU's cache; none without centres [E, K].

    Pixels that are `ignored`, bool [N], are at the distance `FAR` from all centres. `labelled`, bool [N],
    asks for a second matrix of distances, in which these pixels are as far.
    """
    n_dims, n_centres = centres.shape
    n_pixels = pixels.shape[1]
    if n_centres == 0:
        return
    origin = centres.mean(1, keepdim=True)
    centres = centres - origin
    squares = centres.square().sum(0, keepdim=True)
    table = torch.cat([torch.full_like(squares, 2.0), -2 * centres, squares, 0 * squares]).T.contiguous()
    tables = [table]
    if labelled is not None:
        tables.append(table.clone())
        tables[1][:, -1] = FAR
    # a pixel near a centre is as long as the centre: then, and only then, does rounding matter
    rounding = 8 * torch.finfo(centres.dtype).eps * float(squares.max())
    most = max(1, (2**24 if pixels.is_cuda else BLOCK) // n_centres)
    size = math.ceil(n_pixels / math.ceil(n_pixels / most))  # of equal blocks: a small last one costs as much
    lifted, scratch = pixels.new_ones(n_dims + 3, size), pixels.new_empty(n_dims + 1, size)
    lifted[-1] = 0
    memory = pixels.new_empty(len(tables), n_centres * size)
    for start in range(0, n_pixels, size):
        where = slice(start, min(start + size, n_pixels))
        if where.stop - start < size:
            lifted, scratch = lifted[:, : where.stop - start], scratch[:, : where.stop - start]
        # rows |p|^2 / 2, p, 1, labelled
        moved = torch.sub(pixels[:, where], origin, out=lifted[1 : n_dims + 1])
        torch.sum(torch.mul(moved, moved, out=scratch[:n_dims]), 0, out=lifted[0]).mul_(0.5)
        if ignored is not None:
            lifted[0].masked_fill_(ignored[where], FAR)
        if labelled is not None:
            lifted[-1] = labelled[where]
        found = [Distances(own, lifted, some) for own, some in zip(tables, memory)]
        yield PixelBlock(where, found, lifted, scratch, rounding)


def soft_mask(square_distances: Tensor, width: float, floor: float = FLOOR) -> Tensor:
    """Kernel of the squared distances, in their place."""
    return square_distances.mul_(-1.0 / width).clamp_(min=floor, max=0.0).exp_()
