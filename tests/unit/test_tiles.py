"""Maps of overlapping tiles are stitched to the map of the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from panolib.inference.tiles import Maps, same_objects, stitch, tile_windows
from panolib.labels import VOID

SIZES = [(1, 1), (40, 500), (160, 160), (161, 160), (333, 290)]


def discs(size: tuple[int, int], seed: int = 0, n: int = 30) -> np.ndarray:
    """int32 [H, W]: discs that lie over each other, and a bar over all. Ids are far apart."""
    random = np.random.default_rng(seed)
    y, x = np.indices(size)
    labels = np.zeros(size, np.int32)
    for k in range(1, n + 1):
        centre, radius = random.uniform((0, 0), size), random.uniform(3, 25)
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = 11 * k
    labels[size[0] // 2 :][:9] = 7000
    return labels


def spots(size: tuple[int, int], cell: int = 44) -> np.ndarray:
    """int32 [H, W]: discs that do not touch, one in each square of `cell` pixels; none is larger than it."""
    random = np.random.default_rng(0)
    y, x = np.indices(size)
    corners = [(top, left) for top in range(0, size[0], cell) for left in range(0, size[1], cell)]
    labels = np.zeros(size, np.int32)
    for k, corner in enumerate(corners, start=1):
        radius = random.uniform(cell / 5, cell / 2 - 1)
        centre = random.uniform(radius, cell - 1 - radius, 2) + corner
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = k
    return labels


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two instance maps differ in their numbers only; 0 stays 0."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    one_to_one = all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
    return one_to_one and not (pairs.any(0) & ~pairs.all(0)).any()


def cut(labels: np.ndarray, windows, seed: int = 1):
    """Tiles of an instance map, numbered anew in each; the confidence says which tile it is."""
    random = np.random.default_rng(seed)
    for k, window in enumerate(windows):
        ids, index = np.unique(labels[window], return_inverse=True)
        numbers = random.permutation(len(ids)) + 1
        numbers[ids == 0] = 0
        tile = numbers[index.reshape(labels[window].shape)].astype(np.int32)
        yield window, Maps((tile > 0).astype(np.uint8), tile, np.full(tile.shape, k, np.float32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [160, 224])
def test_a_map_that_is_cut_to_tiles_comes_back(size, tile):
    labels = discs(size)
    windows = tile_windows(size, tile)
    found = stitch(size, cut(labels, windows))
    assert same_partition(found.instances, labels)
    assert np.array_equal(found.semantic, labels > 0)
    assert found.instances.max() == len(np.unique(labels[labels > 0])) and found.instances.dtype == np.int32
    assert len(np.unique(found.confidence)) == len(windows)  # each owns pixels


@pytest.mark.parametrize("size", SIZES)
def test_windows_cover_the_image_and_are_no_larger_than_asked_for(size):
    windows = tile_windows(size, 170)
    seen = np.zeros(size, int)
    for rows, columns in windows:
        seen[rows, columns] += 1
        for part, length in zip((rows, columns), size):
            assert part.start % 32 == 0 and part.stop - part.start <= 160 + 31 and part.stop <= length
    assert seen.min() == 1 and (len(windows) == 1) == (max(size) <= 160)


@pytest.mark.parametrize("tile", [160, 256, 512, 1024])
def test_neighbours_share_what_the_number_of_tiles_allows(tile):
    least = max(tile // 8, 64)
    for length in (300, 480, 872, 1744, 2000):
        rows = [rows for rows, _ in tile_windows((length, 100), tile)]
        shared = [first.stop - second.start for first, second in itertools.pairwise(rows)]
        assert all(n >= least for n in shared) and max(shared, default=0) - min(shared, default=0) <= 32
        assert len(rows) == 1 or (len(rows) - 1) * (tile - least) + least < length  # one less would not do


@pytest.mark.parametrize("tile", [-1, 0, 31, 128, 159])
def test_a_tile_is_larger_than_its_overlaps(tile):
    with pytest.raises(ValueError, match="expected more than 128"):
        tile_windows((500, 500), tile)


def test_objects_that_overlap_by_less_than_half_stay_two():
    windows = [(slice(0, 10), slice(0, 20)), (slice(0, 10), slice(10, 30))]
    first, second = np.zeros((2, 10, 20), np.int32)
    first[:6, 5:] = 1            # 6 x 10 pixels of the strip that both see
    for n_rows, n_objects in ((4, 1), (3, 2)):
        second[:] = 0
        second[:n_rows, :14] = 5  # of which it shares 4 or 3 x 10: IoU 2 / 3 and 1 / 2
        maps = [Maps(tile.astype(np.uint8), tile, tile.astype(np.float32)) for tile in (first, second)]
        assert stitch((10, 30), zip(windows, maps)).instances.max() == n_objects


def test_without_objects():
    empty = Maps(np.full((4, 5), VOID, np.uint8), np.zeros((4, 5), np.int32), np.zeros((4, 5), np.float32))
    assert not stitch((4, 5), [(tile_windows((4, 5), 160)[0], empty)]).instances.any()
    full = empty._replace(instances=np.full((4, 5), 3, np.int32))
    assert (stitch((4, 5), [(tile_windows((4, 5), 160)[0], full)]).instances == 1).all()
    assert len(same_objects(empty.instances, full.instances)) == 0
