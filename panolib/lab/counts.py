"""counts.npz of a record: what every validation image counted, from which scores and intervals are made.

An array a score, int [n_images, n_classes, n_counts], the images in the order of the data set. Its name says
the score, and after a dot its part of the run. Whoever scores says what is counted (`scoring`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np


def packed(counts: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file of counts, of the smallest unsigned type each. Equal counts give equal bytes.

    Raises ValueError naming the score, for anything but whole numbers >= 0 [n_images, n_classes, n_counts].
    """
    smallest = {}
    for name, values in counts.items():
        if values.dtype.kind not in "iu" or values.ndim != 3 or values.min(initial=0) < 0:
            raise ValueError(
                f"counts {name!r}: expected whole numbers >= 0 [n_images, n_classes, n_counts], found "
                f"{values.dtype} {list(values.shape)}, lowest {values.min(initial=0)}"
            )
        smallest[name] = values.astype(np.min_scalar_type(values.max(initial=0)))
    np.savez_compressed(buffer := io.BytesIO(), **smallest)
    return buffer.getvalue()


def unpacked(content: bytes, expected: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """The counts of a file, int64; a ValueError unless it holds these arrays of these shapes."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            counts = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib and numpy have a dozen of them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"expected counts as .npz, found an unreadable file ({reason})") from None
    found = {name: list(values.shape) for name, values in counts.items()}
    if found != dict(expected):
        raise ValueError(f"expected the counts {dict(expected)}, found {found}")
    for name, values in counts.items():
        if values.dtype.kind != "u":
            raise ValueError(f"{name}: expected whole numbers >= 0, found {values.dtype}")
    return {name: values.astype(np.int64) for name, values in counts.items()}
