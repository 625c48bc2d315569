"""What the folders of a user hold and what is wrong with them, said before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from skimage.filters import threshold_otsu

from panolib.data.errors import DataError
from panolib.data.folders import FolderSet
from panolib.data.readers.folders import PagedSet
from panolib.data.readers.own import OwnSources, diameters

EDGES = (0, 4, 8, 16, 32, 64, 128, np.inf)  # of the histogram of diameters, pixels
SMALLEST = 3.0  # pixels of diameter that an object has where Otsu's threshold finds it
FAR = 2.0  # ratio of the median diameters from which on a network meets objects that it never saw


@dataclass(frozen=True)
class FolderCheck:
    """What `check_folders` found.

    `table` has a row a property, as text, and columns "source" and "target". `problems` keep a training from
    running, a line each that names the file; `warnings` will make it worse.
    """

    table: pd.DataFrame
    problems: list[str]
    warnings: list[str]

    def __str__(self) -> str:
        lines = [f"problem: {line}" for line in self.problems] + [f"note: {line}" for line in self.warnings]
        return "\n".join([self.table.to_string(), *lines])


def check_folders(sources: OwnSources) -> FolderCheck:
    """Read every image and label of a source and a target once.

    Objects of images without labels are what Otsu's threshold parts from the background, touching ones as
    one: enough to see that their scale is another one.
    """
    columns, problems, medians = {}, [], {}
    for kind in ("source", "target"):
        labelled = kind == "source" or sources.settings.target_labels
        images: list[_Image] = []
        for split in ("train", "val") if labelled else ("train",):
            try:
                images += _readable(sources.on_disk(kind, split, labelled), problems)
            except (DataError, OSError) as error:
                problems.append(str(error))
        columns[kind] = _described(images, labelled)
        if images:
            medians[kind] = float(np.median(np.concatenate([image.diameters for image in images])))
    warnings = [] if len(medians) < 2 or problems else _scale_warnings(sources, medians)
    return FolderCheck(pd.DataFrame(columns), list(dict.fromkeys(problems)), warnings)


class _Image(NamedTuple):
    """What counts of one image."""

    id: str
    size: str
    pixels: str
    diameters: np.ndarray
    largest_id: int


def _readable(data: FolderSet, problems: list[str]) -> Iterator[_Image]:
    """Every image that can be read; of the others a line is added to `problems`."""
    for index in range(len(data)):
        try:
            sample = data[index]
            raw = data.raw(index) if isinstance(data, PagedSet) else sample.image
        except (DataError, OSError) as error:
            problems.append(str(error))
            continue
        objects = otsu_objects(raw) if sample.instance is None else sample.instance
        pixels = f"{raw.dtype} {'grey' if raw.ndim == 2 else 'RGB'}"
        size = f"{raw.shape[0]} x {raw.shape[1]}"
        yield _Image(sample.id, size, pixels, diameters(objects), int(objects.max()))


def _described(images: Sequence[_Image], labelled: bool) -> dict[str, str]:
    """One column of the table."""
    sizes = np.concatenate([*(image.diameters for image in images), np.zeros(0)])
    counts = np.histogram(sizes, EDGES)[0]
    empty = [image.id for image in images if not len(image.diameters)]
    shown = ", ".join(empty[:3]) + (" ..." if len(empty) > 3 else "")
    return {
        "images": str(len(images)),
        "height x width": _most_common([image.size for image in images]),
        "pixels": _most_common([image.pixels for image in images]),
        "objects": f"{len(sizes)}" + ("" if labelled else " (Otsu)"),
        "largest id": str(max((i.largest_id for i in images), default=0)) if labelled else "no labels",
        "images without objects": f"{len(empty)}" + (f": {shown}" if shown else ""),
        "median diameter, pixels": f"{np.median(sizes):.1f}" if len(sizes) else "",
    } | {
        f"diameter {low:g} .. {high:g}": str(count)
        for low, high, count in zip(EDGES, EDGES[1:], counts.tolist())
    }


def otsu_objects(image: np.ndarray) -> np.ndarray:
    """int32 [H, W] regions on the smaller side of Otsu's threshold, without the tiniest; 0 is background."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    if grey.min() == grey.max():
        return np.zeros(grey.shape, np.int32)
    mask = grey > threshold_otsu(grey)
    regions = scipy.ndimage.label(~mask if mask.mean() > 0.5 else mask)[0]
    large = np.bincount(regions.ravel()) >= np.pi / 4 * SMALLEST**2
    large[0] = False
    return np.where(large[regions], regions, 0).astype(np.int32)


def _most_common(values: Sequence[str]) -> str:
    """ "256 x 256 (12), 512 x 512 (2)": at most three of them."""
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({n})" for value, n in counts[:3])
    return shown + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")


def _scale_warnings(sources: OwnSources, medians: dict[str, float]) -> list[str]:
    source, target = medians["source"] * sources.factor, medians["target"]
    if 1 / FAR < source / target < FAR:
        return []
    return [
        f"objects of the source are {source / target:.2g} times as large as those of the target (median "
        f"diameters {source:.1f} and {target:.1f} pixels), expected less than {FAR:g} times: set "
        "target.diameter, or pixel_size of both, and the source is rescaled"
    ]
