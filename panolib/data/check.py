"""What the folders of a user hold and what is wrong with them, said before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from skimage.filters import threshold_otsu

from panolib.data.errors import DataError
from panolib.data.folders import FolderSet
from panolib.data.readers.folders import PagedSet
from panolib.data.readers.own import OwnSources, diameters
from panolib.data.samples import Sample

EDGES = (0, 4, 8, 16, 32, 64, 128, np.inf)  # of the histogram of diameters, pixels
SMALLEST = 3.0  # pixels of diameter that an object has where Otsu's threshold finds it
FAR = 2.0  # ratio of the median diameters from which on a network meets objects that it never saw


@dataclass(frozen=True)
class FolderCheck:
    """What `check_folders` found.

    Attributes
    ----------
    table : DataFrame
        A row a property, as text; columns "source" and "target".
    problems : list of str
        What keeps a training from running, a line each that names the file.
    warnings : list of str
        What will make it worse.
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
        found = _Found()
        for split in ("train", "val") if labelled else ("train",):
            try:
                data = sources.on_disk(kind, split, labelled)
            except (DataError, OSError) as error:
                problems.append(str(error))
                continue
            for sample, raw in _readable(data, problems):
                found.add(sample, raw)
        columns[kind] = found.rows(labelled)
        if found.diameters:
            medians[kind] = float(np.median(np.concatenate(found.diameters)))
    warnings = [] if len(medians) < 2 or problems else _scale_warnings(sources, medians)
    return FolderCheck(pd.DataFrame(columns), list(dict.fromkeys(problems)), warnings)


def _readable(data: FolderSet, problems: list[str]) -> Iterator[tuple[Sample, np.ndarray]]:
    """(sample, image as in its file) of every image; what cannot be read is added to `problems`."""
    for index in range(len(data)):
        try:
            sample = data[index]
            yield sample, data.raw(index) if isinstance(data, PagedSet) else sample.image
        except (DataError, OSError) as error:
            problems.append(str(error))


class _Found:
    """Counts over the images of one folder."""

    def __init__(self):
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.types: Counter[str] = Counter()
        self.diameters: list[np.ndarray] = []
        self.empty: list[str] = []
        self.largest_id = 0

    def add(self, sample: Sample, raw: np.ndarray) -> None:
        self.sizes[raw.shape[:2]] += 1
        self.types[f"{raw.dtype} {'grey' if raw.ndim == 2 else 'RGB'}"] += 1
        instance = sample.instance
        if instance is None:
            instance = otsu_objects(raw)
        else:
            self.largest_id = max(self.largest_id, int(instance.max()))
        sizes = diameters(instance)
        if not len(sizes):
            self.empty.append(sample.id)
        self.diameters.append(sizes)

    def rows(self, labelled: bool) -> dict[str, str]:
        sizes = np.concatenate([*self.diameters, np.zeros(0)])
        counts = np.histogram(sizes, EDGES)[0]
        shown = ", ".join(self.empty[:3]) + (" ..." if len(self.empty) > 3 else "")
        return {
            "images": str(sum(self.sizes.values())),
            "height x width": _most_common([f"{h} x {w}" for h, w in self.sizes.elements()]),
            "pixels": _most_common(list(self.types.elements())),
            "objects": f"{len(sizes)}" + ("" if labelled else " (Otsu)"),
            "largest id": str(self.largest_id) if labelled else "no labels",
            "images without objects": f"{len(self.empty)}" + (f": {shown}" if shown else ""),
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
