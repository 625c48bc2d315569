"""Domains: the data sets that belong together, by name, opened once and served from memory.

A domain is a class below `Sources` that a module of `readers` registers under the name of its section in a
profile. The name of a data set says what is read: "synthia/train", "mix/train", "cityscapes/val". The suffix
":unlabelled" opens the same images without ever touching a label file; self-training uses only those.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from panolib.config import NonNegative, Size, from_mapping, spec, to_plain
from panolib.data.describe import diameters
from panolib.data.errors import DataError, MissingData
from panolib.data.fingerprints import remembered
from panolib.data.intensity import STRETCHED
from panolib.data.samples import ImageSet, InMemory, Memory, Sample
from panolib.profiles import expand_path

DOMAINS: dict[str, type[Sources]] = {}  # import `readers` to have it filled


def register(name: str) -> Callable[[type[Sources]], type[Sources]]:
    """Class decorator: a domain by the name of its section in a profile."""

    def add(cls: type[Sources]) -> type[Sources]:
        cls.domain, DOMAINS[name] = name, cls
        return cls

    return add


def open_domains(
    sections: Mapping[str, tuple[str, Mapping]], root: Path, other: type[Sources] | None = None
) -> dict[str, Sources]:
    """The data sets of domains; no image is read.

    `sections` gives for each domain where in which file its settings stand (for messages), and these as plain
    values. The variable PANOLIB_<DOMAIN>_ROOT of the environment takes the place of the setting `root`.
    Relative paths start from `root`, which holds `cache`. `other` is the class of a domain that nobody
    registered. Raises ProfileError for settings that the domain does not have, DataError if the domain from
    which networks come is not among them.
    """
    found: dict[str, Sources] = {}
    classes = {domain: DOMAINS.get(domain, other) for domain in sections}
    for domain in sorted(sections, key=lambda domain: classes[domain].source_domain is not None):
        cls, (where, section) = classes[domain], sections[domain]
        variable = f"PANOLIB_{domain.upper()}_ROOT"
        if variable in os.environ and "root" in {field.name for field in fields(cls.Settings)}:
            section = {**section, "root": os.environ[variable]}
        if cls.source_domain is not None and cls.source_domain not in found:
            raise DataError(f"{where}: expected section {cls.source_domain!r} beside it, found none")
        source = found.get(cls.source_domain)
        found[domain] = cls(from_mapping(cls.Settings, section, where=where), root, source)
    return found


@dataclass(frozen=True)
class Rendering:
    """A data set that is drawn, written and then read like any other.

    `name` is how the names of its data sets begin, `arguments` are sizes, seed and split. `write` and
    `is_written` are functions (folder, **arguments) of the renderer; the first also takes `n_workers` and
    `progress`.
    """

    name: str
    folder: Path
    write: Callable
    is_written: Callable[..., bool]
    arguments: Mapping[str, Any]

    def is_there(self) -> bool:
        """Whether it is on disk. Raises ValueError where another data set lies in its place."""
        return self.is_written(self.folder, **self.arguments)


class Sources(ABC):
    """The data sets of one domain, and those of `source`, the domain that networks come from."""

    domain: str
    label_set: str  # name of the one of `own` data sets
    Settings: type  # what the section of a profile says; `memory_gb` bounds the decoded samples of a process
    own: tuple[str, ...]  # names of its data sets, without those of `source`
    source_domain: str | None = None
    suffixes: tuple[str, ...] = (".png",)  # of the files that enter fingerprints
    stretched = False  # whether intensities of each image are stretched to percentiles (`stretch_intensity`)
    own_scale = False  # whether a pixel has a size of its own, as under a microscope; else the image has it
    has_styles = False  # whether scenes are rendered in styles whose parts can be swapped (`GapSpec`)

    def __init__(self, settings: Any, root: Path, source: Sources | None = None):
        self.settings, self._source = settings, source
        self._cache, self._memory = root / "cache", Memory(settings.memory_gb * 1e9)
        self._opened: dict[str, Sequence[Sample]] = {}
        self._fingerprints: dict[Path, str] = {}
        self._objects: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.folders: dict[str, Path] = {}  # where the data lies, by what lies there

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all data sets that can be opened."""
        return (*self.own, *(self._source.names if self._source is not None else ()))

    def check(self, name: str) -> None:
        """Raise ValueError unless `name` is a data set of this domain. Opens no file."""
        path, colon, mode = name.partition(":")
        if path not in self.names or (colon and mode != "unlabelled"):
            raise DataError(
                f"expected one of {', '.join(self.names)}, or one of these with ':unlabelled', found {name!r}"
            )

    def open(self, name: str) -> Sequence[Sample]:
        """The data set called `name`. ValueError for an unknown one, MissingData without its files."""
        self.check(name)
        path, colon, _ = name.partition(":")
        if path not in self.own:
            return self._source.open(name)
        if name not in self._opened:
            self._opened[name] = self._open(*path.split("/"), with_labels=not colon)
        return self._opened[name]

    def fingerprint(self, name: str) -> str:
        """What a run's key says about a data set: settings and files, or what will be rendered."""
        if name.partition(":")[0] not in self.own and self._source is not None:
            return self._source.fingerprint(name)
        return self._fingerprint(name)

    def object_sizes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Of a labelled data set: diameters of all its objects, pixels, and the share of every image that has
        a class of things. Rendered and measured once. Errors as of `open`."""
        if name not in self._objects:
            if self.is_rendered(name) and self.to_render():
                self.prepare()
            data = self.open(name)
            things = data.label_set.thing_ids
            found = [(diameters(each.instance), np.isin(each.semantic, things).mean()) for each in data]
            sizes = np.concatenate([np.zeros(0), *(of_image for of_image, _ in found)])
            self._objects[name] = sizes, np.array([share for _, share in found])
        return self._objects[name]

    def preprocessing(self) -> dict[str, Any]:
        """How images are changed before a network sees them, as plain values to be kept with its weights.

        "intensity": percentiles and whether `over` image or set, or None; "limits": intensities of the set
        that become 0 and 255, or None; "diameter", "pixel_size": scale of the target, or None.
        """
        intensity = to_plain(STRETCHED) if self.stretched else None
        return {"intensity": intensity, "limits": None, "diameter": None, "pixel_size": None}

    def parts(self, name: str) -> tuple[str, ...]:
        """The data sets that one is made of."""
        return (name,) if self._source is None else self._source.parts(name)

    @abstractmethod
    def available(self) -> bool:
        """Whether all data is on this machine, or can be rendered."""

    def renderings(self) -> list[Rendering]:
        """The data sets that are rendered; none for real data."""
        return []

    def is_rendered(self, name: str) -> bool:
        """Whether all images of the data set called `name` are drawn ones, whether or not they are there."""
        path = name.partition(":")[0]
        if path not in self.own and self._source is not None:
            return self._source.is_rendered(path)
        drawn = tuple(part.name for part in self.renderings())
        return all(part.startswith(drawn) for part in self.parts(path))

    def prepare(self, *, n_workers: int = 1, progress: bool = True) -> None:
        """Render what is not on disk yet, also of the domain that networks come from."""
        if self._source is not None:
            self._source.prepare(n_workers=n_workers, progress=progress)
        for part in self.renderings():
            part.write(part.folder, **part.arguments, n_workers=n_workers, progress=progress)

    def to_render(self) -> dict[str, tuple[int, int]]:
        """{how names begin that `prepare` would write: (images, pixels)}. DataError for other data there."""
        found = {} if self._source is None else self._source.to_render()
        for part in self.renderings():
            if not part.is_there():
                n_images = part.arguments["n_images"]
                found[part.name] = n_images, n_images * part.arguments["height"] * part.arguments["width"]
        return found

    @abstractmethod
    def _open(self, kind: str, split: str, with_labels: bool) -> ImageSet:
        """One data set of this domain."""

    @abstractmethod
    def _fingerprint(self, name: str) -> str:
        """What a run's key says about a data set of this domain."""

    def _folder_fingerprint(self, folder: Path) -> str:
        """`folder_fingerprint`, asked once; again for a folder that was not there."""
        known = self._fingerprints.get(folder)
        if known is None or (known == "missing" and folder.is_dir()):
            known = self._fingerprints[folder] = self._fingerprint_now(folder)
        return known

    def _fingerprint_now(self, folder: Path) -> str:
        return remembered(folder, self._cache / "fingerprints", self.suffixes)

    def _check_unchanged(self, folder: Path) -> None:
        """Raise ValueError if a folder is not what it was when it entered the keys of runs."""
        known, found = self._folder_fingerprint(folder), self._fingerprint_now(folder)
        if found != known:
            raise DataError(
                f"{folder}: fingerprint {found}, but {known} when the profile was loaded; expected files "
                "that stay as they are: load the profile again"
            )


@spec
class RealData:
    """Folder of real images, the size (pixels) to which they are resized, and the expected files.

    `fingerprint` names the images the runs were recorded with, so that they can be replayed without them;
    None computes it from the folder. `contents` is what `folder_fingerprint` says of these images, where that
    is another word than their name. `memory_gb` bounds the decoded samples that one process keeps.
    """

    root: str
    size: Size | None
    fingerprint: str | None
    contents: str | None = None
    memory_gb: NonNegative = 8.0


class RealImages(Sources):
    """A domain whose target is one folder of real images; `label_set` and `read` are all it needs."""

    Settings = RealData
    splits: Iterable[str] = ("train", "val")

    def __init__(self, settings: Any, root: Path, source: Sources | None = None):
        super().__init__(settings, root, source)
        self.root = self.folders[self.domain] = root / expand_path(settings.root)

    @abstractmethod
    def read(self, split: str, with_labels: bool) -> ImageSet:
        """The samples of one split below `root`, as they are on disk."""

    @property
    def own(self) -> tuple[str, ...]:
        return tuple(f"{self.domain}/{split}" for split in self.splits)

    def available(self) -> bool:
        return self.root.is_dir() and (self._source is None or self._source.available())

    def _open(self, kind: str, split: str, with_labels: bool) -> ImageSet:
        self._check_real()
        return InMemory(self.read(split, with_labels), size=self.settings.size, memory=self._memory)

    def _fingerprint(self, name: str) -> str:
        return f"{self._real_fingerprint()}:{self.settings.size}:{name}"

    def _real_fingerprint(self) -> str:
        """The name of the recorded images if the folder holds them or is not here; else what it holds."""
        settings, found = self.settings, self._folder_fingerprint(self.root)
        if not settings.fingerprint:
            return found
        expected = settings.contents or settings.fingerprint
        return settings.fingerprint if found in (expected, "missing") else found

    def _check_real(self) -> None:
        """Raise MissingData without the folder, ValueError if its files are not those of the record."""
        if not self.root.is_dir():
            raise MissingData(
                f"{self.root}: no real images of {self.domain} here; notebooks/README.md, 'Real data', says "
                f"how to get them and where to put the folder (PANOLIB_{self.domain.upper()}_ROOT)"
            )
        self._check_unchanged(self.root)
        found = self._folder_fingerprint(self.root)
        expected = self.settings.contents or self.settings.fingerprint
        if self.settings.fingerprint and found != expected:
            raise DataError(
                f"{self.root}: fingerprint {found}, but the profile expects {expected}; set fingerprint in "
                f"the data of {self.domain} to null to use other images"
            )
