"""Soft masks exp(-|p - c|^2 / width) of the pixels of one image around K centres, in blocks of pixels.

Losses need only sums of their rows. So masks are made in blocks that fit a CPU's cache, and made again for
the gradient, which is known in closed form: memory does not grow with K, and squared distances are one matrix
product. Where embeddings are told apart, the pixels of a block are near some of the centres only, and the
others, which no sum would notice, are left out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from panolib.clustering.distances import exact_products

BLOCK = 2**19  # elements of K x n that fit a CPU's cache
FLOOR = -43.0  # exponent: a mask stays at 2e-19 further out, as subnormal squares take CPUs ten times longer
NEGLIGIBLE = 16.0  # squared distance over the kernel's width: the product of two such masks is 1e-14


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

    Parameters
    ----------
    pixels, others : float Tensor [E, N]
    centres, other_centres : float Tensor [E, K]
    counted : bool Tensor [N]
        Pixels of the sums.
    width : float
        2 sigma^2 of the Gaussian kernel.

    Returns
    -------
    overlap, squares, other_squares : Tensor [K]
        Sums of mask * other mask, of mask^2 and of other mask^2. The first two are differentiable in `pixels`
        and `centres`; no gradient reaches the others.
    """
    return _SoftMaskOverlap.apply(pixels, centres, others, other_centres, counted, width)


class _SoftMaskOverlap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels, centres, others, other_centres, counted, width):
        ctx.save_for_backward(pixels, centres, others, other_centres, counted)
        ctx.width, ctx.rows = width, []
        overlap, squares, other_squares = pixels.new_zeros(3, centres.shape[1]).unbind()
        with exact_products(pixels.device):
            for block, other in zip(pixel_blocks(pixels, centres), pixel_blocks(others, other_centres)):
                if not pixels.is_cuda:
                    rows = rows_of(block.is_near(NEGLIGIBLE * width) | other.is_near(NEGLIGIBLE * width))
                    block.keep(rows)
                    other.keep(rows)
                ctx.rows.append(block.rows)
                mask = soft_mask(block.square_distances(), width)
                other_mask = soft_mask(other.square_distances(), width).mul_(counted[block.where])
                overlap[block.rows] += torch.linalg.vecdot(mask, other_mask)
                squares[block.rows] += mask.square_() @ counted[block.where].to(mask)
                other_squares[block.rows] += other_mask.square_().sum(1)
        ctx.mark_non_differentiable(other_squares)
        return overlap, squares, other_squares

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_overlap, grad_squares, _):
        pixels, centres, others, other_centres, counted = ctx.saved_tensors
        grad_pixels, grad_centres = torch.empty_like(pixels), torch.zeros_like(centres)
        if centres.shape[1] == 0:
            return grad_pixels.zero_(), grad_centres, None, None, None, None
        with exact_products(pixels.device):
            blocks = zip(pixel_blocks(pixels, centres), pixel_blocks(others, other_centres), ctx.rows)
            for block, other, rows in blocks:
                block.keep(rows)
                other.keep(rows)
                mask = soft_mask(block.square_distances(), ctx.width)
                slope = soft_mask(other.square_distances(), ctx.width).mul_(-grad_overlap[rows, None])
                slope.addcmul_(mask, grad_squares[rows, None], value=-2)
                slope.mul_(mask).mul_(counted[block.where]).div_(ctx.width)
                block.put_gradients(slope, grad_pixels, grad_centres)
        return grad_pixels, grad_centres, None, None, None, None


class PixelBlock:
    """Some pixels and centres around a common origin, so that a matrix product resolves the distances.

    Attributes
    ----------
    where : slice
        The pixels of the block.
    rows : slice or int64 Tensor [R]
        Its centres, ascending: first all K, then those to keep.
    rounding : float
        Squared distances below it may be 0.
    """

    def __init__(self, where: slice, lifted: Tensor, lifted_centres: Tensor, out: Tensor, rounding: float):
        self.where, self.rounding, self.rows = where, rounding, slice(None)
        self._lifted, self._centres, self._out = lifted, lifted_centres, out  # p, 1, |p|^2 and -2c, |c|^2, 1
        self._is_filled = False

    def is_near(self, square_distance: float) -> Tensor:
        """bool [K]: centres so near to a pixel of the block, or to one that is not a number."""
        near = ~(self.square_distances().amin(1) > square_distance)
        self._is_filled = True
        return near

    def keep(self, rows: slice | Tensor) -> None:
        """Leave out all centres but those of `rows_of`."""
        if not isinstance(rows, slice):
            self.rows, self._centres, self._is_filled = rows, self._centres[rows], False
            self._out = self._out[: len(rows)]

    def square_distances(self) -> Tensor:
        """[R, n], in memory that the next block takes again. Rounding may leave a 0 slightly negative."""
        if not self._is_filled:
            torch.mm(self._centres, self._lifted, out=self._out)
        self._is_filled = False  # callers write into it
        return self._out

    def put_gradients(self, slope: Tensor, grad_pixels: Tensor, grad_centres: Tensor) -> None:
        """From the gradient [R, n] with respect to squared distances to those of pixels and centres.

        The block's columns of `grad_pixels` [E, N] are set; the rows' columns of `grad_centres` [E, K] are
        added to.
        """
        n_dims = len(grad_pixels)
        pixels = self._lifted[:n_dims]
        weights = self._centres[:, : n_dims + 1].clone()
        weights[:, n_dims] = 2.0
        pulls = weights.T @ slope  # rows -2 c·slope, and 2 slope summed over the centres
        torch.addcmul(pulls[:n_dims], pixels, pulls[n_dims], out=grad_pixels[:, self.where])
        sums = self._lifted[: n_dims + 1] @ slope.T  # rows p·slope, and slope summed over the pixels
        grad_centres[:, self.rows] -= self._centres[:, :n_dims].T * sums[n_dims] + 2 * sums[:n_dims]


def rows_of(near: Tensor) -> slice | Tensor:
    """Which rows are True: all, or their numbers, ascending. A GPU would have to be waited for."""
    return slice(None) if near.all() else near.nonzero().squeeze(1)


def pixel_blocks(pixels: Tensor, centres: Tensor) -> Iterator[PixelBlock]:
    """All pixels, in blocks of K * n elements that fit a CPU's cache. None without centres."""
    n_dims, n_centres = centres.shape
    n_pixels = pixels.shape[1]
    if n_centres == 0:
        return
    origin = centres.mean(1, keepdim=True)
    centres = centres - origin
    squares = centres.square().sum(0)
    lifted_centres = torch.cat([-2 * centres, squares[None], torch.ones_like(squares)[None]]).T.contiguous()
    # a pixel near a centre is as long as the centre: then, and only then, does rounding matter
    rounding = 8 * torch.finfo(centres.dtype).eps * float(squares.max())
    size = min(n_pixels, max(1, (2**24 if pixels.is_cuda else BLOCK) // n_centres))
    lifted, out = pixels.new_ones(n_dims + 2, size), pixels.new_empty(n_centres, size)
    for start in range(0, n_pixels, size):
        where = slice(start, min(start + size, n_pixels))
        if where.stop - start < size:
            lifted, out = lifted[:, : where.stop - start], out[:, : where.stop - start]
        moved = torch.sub(pixels[:, where], origin, out=lifted[:n_dims])
        torch.sum(moved.square(), 0, out=lifted[n_dims + 1])
        yield PixelBlock(where, lifted, lifted_centres, out, rounding)


def soft_mask(square_distances: Tensor, width: float) -> Tensor:
    """Kernel of the squared distances, in their place."""
    return square_distances.mul_(-1.0 / width).clamp_(min=FLOOR, max=0.0).exp_()
