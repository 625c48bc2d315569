"""True instances spoilt on purpose: joined, cut, moved, shrunk. Negatives that clusterings seldom make.

Every mask that comes out overlaps each true instance with an IoU below `REAL`: none would count as found.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

REAL = 0.5  # IoU with a true instance from which on a mask is a real object
CUT = 0.4  # share of an instance that is cut off
LARGEST_GROUP = 4  # instances that are joined


def best_iou(labels: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """float64 [K]: IoU of every mask 1 .. K with the instance (any id) that it overlaps best; 0 if none."""
    return overlaps(labels, instances)[0][1:, 1:].max(1, initial=0.0)


def overlaps(labels: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(IoU, shared pixels) [K + 1, M + 1] of masks 1 .. K and M instances; row and column 0: of none."""
    if labels.shape != instances.shape:
        raise ValueError(f"segmentations are {labels.shape} and {instances.shape}; expected one size")
    ids = np.unique(instances[instances > 0])  # ids of data sets may be large
    n, m = int(labels.max(initial=0)), len(ids)
    number = np.where(instances > 0, np.searchsorted(ids, instances) + 1, 0)
    pairs = labels.astype(np.int64) * (m + 1) + number
    shared = np.bincount(pairs.ravel(), minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    return shared / np.maximum(union, 1), shared


def perturbed(instances: np.ndarray, *, min_size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """{"merged", "split", "shifted", "eroded": masks int64 [h, w], 0 or 1 .. K} of the true instances [h, w].

    Instances (0 or ids >= 1) and masks below `min_size` pixels are left out. `rng` draws which instances are
    joined, and where they are moved.
    """
    area = np.bincount(instances.ravel())
    ids = np.flatnonzero(area >= max(1, min_size))
    ids = ids[ids > 0]
    found = {
        "merged": _merged(instances, ids, rng),
        "split": _each(instances, ids, _cut),
        "shifted": _each(instances, ids, lambda mask: _shifted(mask, rng)),
        "eroded": _each(instances, ids, _eroded),
    }
    return {name: _false_ones(labels, instances, min_size) for name, labels in found.items()}


def _each(instances: np.ndarray, ids: np.ndarray, change) -> np.ndarray:
    """The masks of all instances, changed one by one; where two overlap the later one is on top."""
    out = np.zeros(instances.shape, np.int64)
    for number, k in enumerate(ids, start=1):
        out[change(instances == k)] = number
    return out


def _merged(instances: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Neighbours joined until none of them is half of the mask; every instance at most once."""
    out = np.zeros(instances.shape, np.int64)
    centres = {k: np.argwhere(instances == k).mean(0) for k in ids}
    area, free = np.bincount(instances.ravel()), set(ids.tolist())
    for k in rng.permutation(ids).tolist():
        if k not in free:
            continue
        others = sorted(free - {k}, key=lambda other: np.linalg.norm(centres[other] - centres[k]))
        for n in range(1, min(LARGEST_GROUP, len(others) + 1)):
            group = [k, *others[:n]]
            if area[group].max() < REAL * area[group].sum():
                out[np.isin(instances, group)] = out.max() + 1
                free -= set(group)
                break
    return out


def _cut(mask: np.ndarray) -> np.ndarray:
    """The part of a mask that a cut across its long axis takes off."""
    points = np.argwhere(mask).astype(np.float64)
    offsets = points - points.mean(0)
    along = offsets @ np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    part = np.zeros_like(mask)
    part[mask] = along < np.quantile(along, CUT)
    return part


def _shifted(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask moved in a random direction, as little as makes it another object; the image cuts it."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.nonzero(mask)
    for share in (0.25, 0.5, 0.75, 1.0):
        by = share * np.sqrt(mask.sum()) * np.array([np.sin(angle), np.cos(angle)])
        y, x = (np.round(axis + step).astype(int) for axis, step in zip((rows, columns), by))
        inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
        moved = np.zeros_like(mask)
        moved[y[inside], x[inside]] = True
        if (moved & mask).sum() < REAL * (moved | mask).sum():
            return moved
    return np.zeros_like(mask)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """A mask without its outer pixels, until less than half is left; nothing where all goes at once."""
    left = mask
    while left.sum() >= REAL * mask.sum():
        left = ndimage.binary_erosion(left)
    return left


def _false_ones(labels: np.ndarray, instances: np.ndarray, min_size: int) -> np.ndarray:
    """Masks that are large enough and no object, numbered 1 .. K."""
    area = np.bincount(labels.ravel(), minlength=int(labels.max(initial=0)) + 1)
    keep = area >= max(1, min_size)
    keep[1:] &= best_iou(labels, instances) < REAL
    keep[0] = False
    return (np.cumsum(keep) * keep)[labels]
