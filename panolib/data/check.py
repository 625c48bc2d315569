"""What the folders of a user hold and what is wrong with them, said before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from skimage.filters import threshold_otsu

from panolib.data.describe import diameters
from panolib.data.errors import DataError
from panolib.data.folders import FolderSet
from panolib.data.intensity import TooDeep
from panolib.data.readers.folders import PagedSet
from panolib.data.readers.own import OwnSources

EDGES = (0, 4, 8, 16, 32, 64, 128, np.inf)  # of the histogram of diameters, pixels
SMALLEST = 3.0  # pixels of diameter that an object has where Otsu's threshold finds it
NEARLY_ALL = 0.9  # share of the masks with one value each from which on a set is perhaps binary
MANY_PARTS = 3  # separate parts of what would be one object
FAR = 2.0  # ratio of the median diameters from which on a network meets objects that it never saw


@dataclass(frozen=True)
class FolderCheck:
    """What `check_folders` found.

    `table` has a row a property, as text, and columns "source" and "target", but for one of which no image
    could be read. `problems` keep a training from running, a line each that names the file, in order of
    names; `warnings` will make it worse. `object_share` is the share of the pixels of the source that its
    objects have, `otsu_count` the number of objects an image of the target by Otsu's threshold; None where
    these are not as large as those of the source, which means that the threshold parts something else.
    """

    table: pd.DataFrame
    problems: list[str]
    warnings: list[str]
    object_share: float
    otsu_count: float | None

    def __str__(self) -> str:
        table = [] if self.table.empty else [self.table.to_string()]
        return "\n".join(table + [f"note: {line}" for line in self.warnings])


def check_folders(
    sources: OwnSources, *, depth: str = "8 bits, or percentiles in the setting intensity"
) -> FolderCheck:
    """Read every image and label of a source and a target once.

    Objects of images without labels are what Otsu's threshold parts from the background, touching ones as
    one: enough to see that their scale is another one. `depth` says what is expected where images have 16
    bits and no percentiles are set.
    """
    columns, problems, medians = {}, [], {}
    deep: dict[Path, list[str]] = {}  # ids of images of 16 bits that are expected to have 8
    object_share, otsu_count = 0.0, None
    for kind in ("source", "target"):
        labelled = kind == "source" or sources.settings.target_labels
        folder, by_split = sources.folders[kind], {}
        for split in ("train", "val") if labelled else ("train",):
            by_split[split] = []
            try:
                data = sources.on_disk(kind, split, labelled)
                by_split[split] += _readable(data, problems, deep.setdefault(folder, []))
            except (DataError, OSError) as error:
                problems.append(str(error))
        images = [image for of_split in by_split.values() for image in of_split]
        if images:
            seen = images if labelled else _without_specks(images)
            columns[kind] = _described(images, seen, labelled)
            sizes = _diameters(seen)
            if len(sizes):
                medians[kind] = float(np.median(sizes))
            if kind == "source":
                if not problems:  # what cannot be read may hold some
                    problems += _empty_problems(folder, by_split)
                object_share = float(np.mean([image.object_share for image in images]))
                if sources.layout(kind) == "folders":  # the others list their objects
                    problems += _binary_problems(folder, images)
            elif not labelled:
                otsu_count = len(sizes) / len(images)
    problems += _deep_problems(deep, depth)
    warnings = [] if problems else _scale_warnings(sources, medians)
    problems = sorted(set(problems))
    return FolderCheck(
        pd.DataFrame(columns), problems, warnings, object_share, None if warnings else otsu_count
    )


class _Image(NamedTuple):
    """What counts of one image."""

    id: str
    size: str
    pixels: str
    diameters: np.ndarray
    largest_id: int
    object_share: float
    n_regions: int  # separate parts of all objects together, without the tiniest


def _without_specks(images: Sequence[_Image]) -> list[_Image]:
    """Images but for those in which Otsu's threshold parts mere noise: specks, far below what others hold.

    Only specks of a few pixels are: images of few or small objects beside others are no noise.
    """
    medians = {image.id: np.median(image.diameters) for image in images if len(image.diameters)}
    typical = np.median(list(medians.values())) if medians else 0.0
    least = min(2 * SMALLEST, typical / FAR)
    return [image for image in images if not medians.get(image.id, np.inf) < least]


def _readable(data: FolderSet, problems: list[str], deep: list[str]) -> Iterator[_Image]:
    """Every image that can be read; of the others a line is added to `problems`, or an id to `deep`."""
    for index in range(len(data)):
        try:
            sample = data[index]
            raw = data.raw(index) if isinstance(data, PagedSet) else sample.image
        except TooDeep:
            deep.append(data.ids[index])
            continue
        except (DataError, OSError) as error:
            problems.append(f"{error}; remove or repair it")
            continue
        objects = otsu_objects(raw) if sample.instance is None else sample.instance
        pixels = f"{raw.dtype} {'grey' if raw.ndim == 2 else 'RGB'}"
        size = f"{raw.shape[0]} x {raw.shape[1]}"
        share, n_regions = float((objects > 0).mean()), int(_regions(objects > 0).max())
        yield _Image(sample.id, size, pixels, diameters(objects), int(objects.max()), share, n_regions)


def _deep_problems(deep: Mapping[Path, Sequence[str]], depth: str) -> list[str]:
    """One line about all images of both folders that have 16 bits: they have one cause."""
    ids = [image_id for of_folder in deep.values() for image_id in of_folder]
    if not ids:
        return []
    folders = ", ".join(str(folder) for folder, of_folder in deep.items() if of_folder)
    return [f"{folders}: {len(ids)} images of 16 bits, the first is {ids[0]}; expected {depth}"]


def _empty_problems(folder: Path, by_split: Mapping[str, Sequence[_Image]]) -> list[str]:
    """That there is nothing to learn from, or nothing to choose settings on."""
    empty = [split for split, images in by_split.items() if images and not len(_diameters(images))]
    if not empty:
        return []
    n_masks = sum(len(by_split[split]) for split in empty)
    which = "" if len(empty) == len(by_split) else f" of its part {empty[0]!r}"
    return [f"{folder}: no object in any of {n_masks} masks{which}, expected label images with objects"]


def _binary_problems(folder: Path, images: Sequence[_Image]) -> list[str]:
    """That masks say where objects are and not which, if it is so.

    One object an image is no sign of that. But in nearly every mask one value is, if it is the same one,
    above 1, or if most of these masks have parts that do not touch.
    """
    masks = [image for image in images if len(image.diameters)]
    single = [image for image in masks if len(image.diameters) == 1]
    if not single or len(single) < NEARLY_ALL * len(masks):
        return []
    values = {image.largest_id for image in single}
    value = values.pop() if len(values) == 1 else None
    if (value is None or value == 1) and np.median([image.n_regions for image in single]) < MANY_PARTS:
        return []
    said = "one value" if value is None else f"one value, {value}"
    return [
        f"{folder}: {len(single)} of {len(masks)} masks hold {said}: expected one number an object (label "
        "images), or 1 where each image has one object"
    ]


def _diameters(images: Sequence[_Image]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(image.diameters for image in images)])


def _described(images: Sequence[_Image], seen: Sequence[_Image], labelled: bool) -> dict[str, str]:
    """One column of the table; the objects are those of the images `seen`."""
    sizes = _diameters(seen)
    kept = {image.id for image in seen}
    specks = [image.id for image in images if image.id not in kept]
    counted = "Otsu" + (f", without the specks of {_first(specks)}" if specks else "")
    counts = np.histogram(sizes, EDGES)[0]
    empty = [image.id for image in images if not len(image.diameters)]
    return {
        "images": str(len(images)),
        "height x width": _most_common([image.size for image in images]),
        "pixels": _most_common([image.pixels for image in images]),
        "objects": f"{len(sizes)}" + ("" if labelled else f" ({counted})"),
        "largest id": str(max((i.largest_id for i in images), default=0)) if labelled else "no labels",
        "images without objects": f"{len(empty)}" + (f": {_first(empty)}" if empty else ""),
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
    return _regions(~mask if mask.mean() > 0.5 else mask)


def _regions(mask: np.ndarray) -> np.ndarray:
    """int32 [H, W] connected regions of a mask, numbered from 1 without the tiniest."""
    regions = scipy.ndimage.label(mask)[0]
    large = np.bincount(regions.ravel()) >= np.pi / 4 * SMALLEST**2
    large[0] = False
    return (np.cumsum(large) * large)[regions].astype(np.int32)


def _first(ids: Sequence[str]) -> str:
    """ "a, b, c ...": at most three of them."""
    return ", ".join(ids[:3]) + (" ..." if len(ids) > 3 else "")


def _most_common(values: Sequence[str]) -> str:
    """ "256 x 256 (12), 512 x 512 (2)": at most three of them."""
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({n})" for value, n in counts[:3])
    return shown + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")


def _scale_warnings(sources: OwnSources, medians: dict[str, float]) -> list[str]:
    if "target" not in medians:
        return ["no object is seen in any image of the target, expected some: are they all dark?"]
    source, target = medians["source"] * sources.factor, medians["target"]
    if 1 / FAR < source / target < FAR:
        return []
    ratio, larger, smaller = source / target, "source", "target"
    if ratio < 1:
        ratio, larger, smaller = 1 / ratio, smaller, larger
    return [
        f"objects of the {larger} are {ratio:.2g} times as large as those of the {smaller} (median diameters "
        f"of the source {source:.1f}, of the target {target:.1f} pixels), expected less than {FAR:g} times: "
        f"with --diameter {target:.0f} (in a profile target.diameter, or pixel_size of both) the source is "
        "rescaled"
    ]
