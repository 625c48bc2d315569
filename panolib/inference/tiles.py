"""Images that are too large to be predicted at once: overlapping tiles, and their maps stitched to one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from panolib.data.images import empty, look_up
from panolib.data.label_maps import numbered
from panolib.labels import VOID

GRID = 32  # tiles begin at multiples of the coarsest stride, so that networks sample the same pixels in each
SMALLEST_OVERLAP = 64  # pixels

Window = tuple[slice, slice]  # rows, columns


class Maps(NamedTuple):
    """What is predicted for the pixels of an image or of a tile, each [H, W]."""

    semantic: np.ndarray  # uint8, train ids
    instances: np.ndarray  # int32, 0 = none
    confidence: np.ndarray  # float32, probability of the semantic label


def tile_windows(size: tuple[int, int], tile: int) -> list[Window]:
    """Windows of about `tile` pixels a side that cover an image of `size` (height, width), row by row.

    Neighbours share an eighth of a tile, at least `SMALLEST_OVERLAP` pixels, and more where no tile more is
    needed for it: networks judge an object by what is around it. An image that fits into one tile
    has one window. The side is rounded down to a multiple of `GRID`, the last of a row may be `GRID` longer.
    Raises ValueError for a tile of no more than twice the overlap.
    """
    tile = tile // GRID * GRID
    overlap = max(tile // 8 // GRID * GRID, SMALLEST_OVERLAP)
    if tile <= 2 * overlap:
        raise ValueError(f"tile is {tile} pixels; expected more than {2 * overlap}, twice the overlap")
    rows, columns = (_spans(length, tile, overlap) for length in size)
    return [(row, column) for row in rows for column in columns]


def _spans(length: int, tile: int, overlap: int) -> list[slice]:
    """Slices that cover a row of pixels, as few as the overlap allows, and then as far into each other."""
    n = max(1, math.ceil((length - overlap) / (tile - overlap)))
    last = max(length - tile, 0) // GRID * GRID
    starts = [last * k // max(n - 1, 1) // GRID * GRID for k in range(n)]
    return [slice(start, min(start + tile, length)) for start in starts[:-1]] + [slice(starts[-1], length)]


def stitch(size: tuple[int, int], tiles: Iterable[tuple[Window, Maps]]) -> Maps:
    """One map from those of overlapping tiles.

    Two instances of neighbours are one object if their IoU in the pixels that both tiles see is above 0.5.
    What is written is of the tile whose border is farther: each has half of an overlap.

    `size` is (height, width) of the whole; `tiles` come in the order of `tile_windows`, one at a time held in
    memory. The result has instances 1 .. K.
    """
    whole, seen = Maps(*(empty(size, dtype) for dtype in (np.uint8, np.int32, np.float32))), empty(size, bool)
    for part, value in zip((*whole, seen), (VOID, 0, 0, False)):
        part.fill(value)
    objects = np.zeros(1, np.int32)  # object of each id of a tile
    for window, maps in tiles:
        labels = np.where(maps.instances > 0, maps.instances + len(objects) - 1, 0)
        objects = np.append(objects, np.arange(len(objects), labels.max() + 1, dtype=np.int32))
        # neighbours to the left do not reach the last column, those above not the last row
        n_rows, n_columns = seen[window][:, -1].sum(), seen[window][-1].sum()
        for strip in (np.s_[:n_rows], np.s_[:, :n_columns]):
            there = objects[whole.instances[window][strip]]  # one id, also where two tiles have parts of it
            for old, new in same_objects(there, objects[labels[strip]]):
                objects[objects == new] = old
        own = np.s_[n_rows // 2 :, n_columns // 2 :]
        for target, part in zip(whole, maps._replace(instances=labels)):
            target[window][own] = part[own]
        seen[window] = True
    whole = whole._replace(instances=look_up(objects, whole.instances))
    return whole._replace(instances=numbered(whole.instances)[0])


def same_objects(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int [n, 2]: pairs of ids in two instance maps of the same pixels with an IoU above 0.5, 0 left out.

    Each id is in one pair at most (Kirillov et al. 2019).
    """
    from sklearn.metrics.cluster import contingency_matrix  # a second to import: only where there are tiles

    if not first.any() or not second.any():
        return np.zeros((0, 2), int)
    ids = [np.unique(labels, return_counts=True) for labels in (first, second)]    # in the order of the table
    shared = contingency_matrix(first.ravel(), second.ravel(), sparse=True).tocoo()
    areas = ids[0][1][shared.row] + ids[1][1][shared.col]
    pairs = np.stack([ids[0][0][shared.row], ids[1][0][shared.col]], 1)
    return pairs[(3 * shared.data > areas) & pairs.all(1)]                        # IoU > 1 / 2
