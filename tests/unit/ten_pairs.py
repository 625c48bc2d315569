"""Ten pairs to be asked about: bright discs, and the same with two of them taken for one."""

from __future__ import annotations

import numpy as np

from panolib.active.session import Pair, Session


def scene(seed, size=(96, 128)):
    """(image, instances, the same with two of them joined) of bright discs."""
    rng = np.random.default_rng(seed)
    labels, (y, x) = np.zeros(size, np.int64), np.indices(size)
    for k in range(1, 9):
        row, column = (rng.integers(10, length - 10) for length in size)
        radius = rng.integers(5, 11)
        labels[((y - row) ** 2 + (x - column) ** 2 < radius**2) & (labels == 0)] = k
    labels = np.unique(labels, return_inverse=True)[1].reshape(size)
    image = np.clip(40 + 120 * (labels > 0) + rng.normal(0, 12, size), 0, 255).astype(np.uint8)
    joined = np.unique(np.where(labels == 2, 1, labels), return_inverse=True)[1].reshape(size)
    return np.repeat(image[..., None], 3, 2), labels, joined


def ten_pairs(file):
    """A session of ten pairs; the better one is on the left in every other."""
    names = [f"image {i}" for i in range(10)]
    pairs = []
    for i, name in enumerate(names):
        image, right, joined = scene(i)
        order = 1 if i % 2 == 0 else -1
        pairs.append(Pair(name, image, (right, joined)[::order], ("teacher", "student")[::order]))
    return Session(pairs, names, file)
