"""A user's own data as a domain: a labelled source and a target, each a folder in a layout known here.

A section of a profile whose `data` names a `source` and a `target` is such a domain, under any name:

    my_cells:
      like: nuclei                       # all settings of trainings that this section does not say
      data:
        source: {root: ~/cells/labelled}
        target: {root: ~/cells/new, diameter: 24}
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from panolib.config import NonNegative, Positive, spec, to_plain
from panolib.data.any_image import IMAGES
from panolib.data.describe import diameters
from panolib.data.domains import Sources
from panolib.data.errors import DataError, MissingData
from panolib.data.folders import FolderSet
from panolib.data.intensity import Intensity
from panolib.data.label_sets import find_label_set
from panolib.data.readers.cityscapes import Cityscapes
from panolib.data.readers.coco import CocoPanoptic
from panolib.data.readers.folders import Folders
from panolib.data.samples import ImageSet, InMemory, Sample, resize_sample
from panolib.labels import OBJECTS, register_label_set
from panolib.profiles import expand_path

FACTORS = 0.1, 10.0  # of a rescaling that is no mistake


def _cityscapes(root: Path, split: str, *, with_labels: bool, **others) -> Cityscapes:
    """In the label set and the 8 bits that the layout implies."""
    return Cityscapes(root, split, with_labels=with_labels)


# name -> function (root, split, *, label_set, with_labels, intensity, limits); a new layout is an entry here
READERS: dict[str, Callable[..., FolderSet]] = {
    "folders": Folders, "coco_panoptic": CocoPanoptic, "cityscapes": _cityscapes,
}  # fmt: skip


@spec
class OwnFolder:
    """A folder, its layout (a name of `READERS`), and the scale of its images.

    Scale: `pixel_size` (any unit, the same in source and target), or the median `diameter` of its objects in
    pixels. That of a source may be left to its labels.
    """

    root: str
    reader: str | None = None  # as `layout_of` finds it
    pixel_size: Positive | None = None
    diameter: Positive | None = None


@spec
class OwnData:
    """Source and target; images of the source are rescaled to the scale of the target, if both are known.

    `label_set` is the name of a known one or a YAML file (`data.label_sets`); by default that of the layout:
    of COCO's categories, Cityscapes, or background and object. With `target_labels` a part of the target,
    "val", is scored and an oracle learns from the others; without, no label of it is looked for.
    """

    source: OwnFolder
    target: OwnFolder
    label_set: str | None = None
    target_labels: bool = False
    intensity: Intensity | None = Intensity()
    memory_gb: NonNegative = 8.0

    def __post_init__(self):
        source, target = self.source, self.target
        if (source.pixel_size is None) != (target.pixel_size is None):
            raise DataError("pixel_size: expected one of source and of target, or neither, found one")
        if target.pixel_size is not None and target.diameter is not None:
            raise DataError("diameter: expected null beside pixel_size, found both")
        if source.diameter is not None and target.diameter is None:
            raise DataError("source.diameter: expected target.diameter beside it, found none")
        for key, folder in (("source", source), ("target", target)):
            if folder.reader not in (None, *READERS):
                expected = ", ".join(READERS)
                raise DataError(f"{key}.reader: expected one of {expected}, found {folder.reader!r}")


class OwnSources(Sources):
    """Data sets "source" and "target" of a user."""

    Settings = OwnData
    own = ("source/train", "source/val", "target/train", "target/val")
    own_scale = True  # no image is resized but those of the source
    suffixes = (*IMAGES, ".json")

    def __init__(self, settings: OwnData, root: Path, source: Sources | None = None):
        super().__init__(settings, root, source)
        self.folders = {k: root / expand_path(getattr(settings, k).root) for k in ("source", "target")}
        self._known_limits: dict[str, tuple[float, float] | None] = {}
        if settings.label_set is not None:
            self._labels = find_label_set(settings.label_set, root)
        else:
            self._labels = OBJECTS
            if self.layout("source") != "folders":
                self._labels = self.on_disk("source", "train", False).label_set
        self.label_set = self._labels.name

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        register_label_set(self._labels)  # in a worker process, where runs name it

    def available(self) -> bool:
        return all(folder.is_dir() for folder in self.folders.values())

    def preprocessing(self) -> dict[str, Any]:
        """As that of every domain; of images of the target."""
        settings = self.settings
        scale = {key: getattr(settings.target, key) for key in ("diameter", "pixel_size")}
        limits = self._limits("target")
        return {"intensity": to_plain(settings.intensity), "limits": limits and list(limits), **scale}

    def on_disk(self, kind: str, split: str, with_labels: bool, limits=None) -> FolderSet:
        """A data set as it is in its folder; nothing is decoded but for the intensity over a set."""
        folder, settings = self.folders[kind], self.settings
        if not folder.is_dir():
            raise MissingData(f"{folder}: no such folder, expected the images of data.{kind}")
        layout = self.layout(kind)
        if kind == "target" and not settings.target_labels and layout != "cityscapes":
            split = "train" if (folder / "train").is_dir() else "all"  # nothing is held out
        options = {"with_labels": with_labels, "limits": limits, "intensity": settings.intensity}
        if layout != "coco_panoptic" or settings.label_set is not None:
            options["label_set"] = self._labels
        return READERS[layout](folder, split, **options)

    def labelled(self, folder: Path) -> FolderSet:
        """Every image of a further folder with its labels, as the target is seen."""
        if not folder.is_dir():
            raise MissingData(f"{folder}: no such folder, expected images of the target with labels")
        layout, limits = layout_of(folder), self._limits("target")
        options = {"with_labels": True, "intensity": self.settings.intensity, "limits": limits}
        split = "val" if layout == "cityscapes" else "all"
        return self._of_source(folder, READERS[layout](folder, split, label_set=self._labels, **options))

    def _of_source(self, folder: Path, data: FolderSet) -> FolderSet:
        """The data set itself. Raises DataError where its classes are not those of the source."""
        if data.label_set != self._labels:
            found, expected = list(data.label_set.classes), list(self._labels.classes)
            raise DataError(f"{folder}: classes {found}, expected those of the source {expected}")
        return data

    def layout(self, kind: str) -> str:
        """The name in `READERS` of the layout of "source" or "target"."""
        return getattr(self.settings, kind).reader or layout_of(self.folders[kind])

    def _open(self, kind: str, split: str, with_labels: bool) -> ImageSet:
        self._check_unchanged(self.folders[kind])
        data = self.on_disk(kind, split, with_labels, self._limits(kind))
        data = self._of_source(self.folders[kind], data)
        if kind == "source" and self.factor != 1:
            data = Rescaled(data, self.factor)
        return InMemory(data, memory=self._memory)

    def _limits(self, kind: str) -> tuple[float, float] | None:
        """Intensities that become 0 and 255 in all images of the source or of the target; None: in each."""
        intensity = self.settings.intensity
        if intensity is None or intensity.over == "image":
            return None
        if kind not in self._known_limits:
            self._known_limits[kind] = getattr(self.on_disk(kind, "train", False), "limits", None)
        return self._known_limits[kind]

    @functools.cached_property
    def factor(self) -> float:
        """By how much images of the source grow to the scale of the target."""
        source, target = self.settings.source, self.settings.target
        if target.pixel_size is not None:
            factor = source.pixel_size / target.pixel_size
        elif target.diameter is not None:
            factor = target.diameter / (source.diameter or self._measured_diameter())
        else:
            return 1.0
        if not FACTORS[0] <= factor <= FACTORS[1]:
            raise DataError(
                f"{self.folders['source']}: images would grow {factor:.3g} times to the scale of the target, "
                f"expected {FACTORS[0]} .. {FACTORS[1]}"
            )
        return factor

    def _measured_diameter(self) -> float:
        data = self.on_disk("source", "train", True, self._limits("source"))
        found = np.concatenate([diameters(data[i].instance) for i in range(len(data))])
        if not len(found):
            raise DataError(f"{self.folders['source']}: no object, expected some to rescale them to diameter")
        return float(np.median(found))

    def _fingerprint(self, name: str) -> str:
        kind, settings = name.split("/")[0], self.settings
        labels = hashlib.sha256(repr(self._labels).encode()).hexdigest()[:8]
        folder = getattr(settings, kind)
        said = [self._folder_fingerprint(self.folders[kind]), folder.reader, labels, settings.intensity]
        if kind == "source":
            scales = ((part.pixel_size, part.diameter) for part in (settings.source, settings.target))
            said += [*scales]
        else:
            said.append(settings.target_labels)
        return ":".join(map(str, [*said, name]))


class Rescaled(ImageSet):
    """A data set whose images and labels are `factor` times as large, rounded to whole pixels."""

    def __init__(self, dataset: ImageSet, factor: float):
        self.name, self.label_set, self.ids = dataset.name, dataset.label_set, list(dataset.ids)
        self.has_instances = dataset.has_instances
        self._dataset, self._factor = dataset, factor

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return resize_sample(sample, tuple(max(1, round(n * self._factor)) for n in sample.image.shape[:2]))


def layout_of(folder: Path) -> str:
    """The name in `READERS` of the layout of a folder."""
    if (folder / "leftImg8bit").is_dir():
        return "cityscapes"
    if any(folder.glob("*.json")) or any(folder.glob("annotations/*.json")):
        return "coco_panoptic"
    return "folders"


def own_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a ladder on own data, with what follows from the names of its data sets."""
    labelled = section["data"].get("target_labels", False)
    names = {"semantic_source": "source/train", "instance_source": "source/train"}
    names |= {"instance_selection": "source/val", "target": "target"}
    scored = {"validation": None if labelled else "source/val", "oracle": labelled}
    return {**names, **scored, "label_set": None, "gap": None, **section}
