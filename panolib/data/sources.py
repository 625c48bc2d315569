"""The data sets of the study by name, opened once and served from memory.

A name says what is read: "synthia/train", "mix/train", "cityscapes/val", "nuclei/train". The suffix
":unlabelled" opens the same images without ever touching a label file; self-training uses only those.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from panolib.config import Count, Natural, NonNegative, Size, expand_path, later
from panolib.data import cache, fingerprints, readers
from panolib.data.errors import DataError
from panolib.data.fingerprints import folder_fingerprint
from panolib.data.mixing import Concatenation, class_presence
from panolib.data.readers import InMemory, Sample
from panolib.data.render import city, nuclei_scenes
from panolib.data.samples import Memory
from panolib.labels import CAMVID, CITYSCAPES, NUCLEI

STREETS = ("synthia", "gta5", "mix", "cityscapes")


@dataclass(frozen=True)
class EmbeddedCity:
    """Sizes of the rendered street scenes (images, pixels)."""

    n_synthia: Count
    n_gta5: Count
    n_train: Count
    n_val: Count
    height: Count
    width: Count
    seed: Natural


@dataclass(frozen=True)
class CamVidData:
    """Folder of the real street images, the size (pixels) to which they are resized, and the expected files.

    `fingerprint` names the images the runs were recorded with, so that they can be replayed without them;
    None computes it from the folder. `contents` is what `folder_fingerprint` says of these images, where that
    is another word than their name. `memory_gb` bounds the decoded samples that one process keeps.
    """

    root: str
    size: Size | None
    fingerprint: str | None
    contents: str | None = None
    memory_gb: NonNegative = 8.0


@dataclass(frozen=True)
class CityData:
    """Folders of the three street data sets; with `embedded` the renderer writes them first.

    `n_val_synthia` images are held out of the source for choosing clustering settings. `train_size`
    resizes training images (None keeps them as they are); with `resize_sources` False only those of the
    target, so that sources keep their size and their aspect ratio (1024 x 512 makes SYNTHIA 19 % wider and
    GTA5 10 %). `mix_requires` are the classes that a GTA5
    frame must show to enter the MIX source (thesis 8.1). `gta5_missing` is how many frames may lack
    their label; they are then left out. `memory_gb` bounds the decoded samples that one process keeps:
    every worker and every loader worker holds as much again.
    """

    synthia: str
    gta5: str
    cityscapes: str
    embedded: EmbeddedCity | None
    n_val_synthia: Natural
    n_val_gta5: Natural
    train_size: Size | None
    mix_requires: tuple[Literal[CITYSCAPES.classes], ...]
    resize_sources: bool = later(True)
    gta5_missing: Natural = 0
    memory_gb: NonNegative = 8.0

    def __post_init__(self):
        for kind in ("synthia", "gta5") if self.embedded else ():
            held_out, images = getattr(self, f"n_val_{kind}"), getattr(self.embedded, f"n_{kind}")
            if held_out >= images:
                raise DataError(f"n_val_{kind}: expected less than the {images} images, found {held_out}")


@dataclass(frozen=True)
class EmbeddedNuclei:
    """Sizes of the rendered nuclei images (images, pixels)."""

    n_train: Count
    n_val: Count
    height: Count
    width: Count
    seed: Natural


@dataclass(frozen=True)
class NucleiData:
    """Folder of the rendered source, and of the real microscope images with the expected file list.

    `fingerprint` names the real data the runs were recorded with, so that they can be replayed
    without the images; None computes it from the folder. `contents` and `memory_gb`: see `CamVidData`.
    """

    scenes: str
    embedded: EmbeddedNuclei
    root: str
    modality: str | None
    n_train: Count | None  # only the first images in name order; None takes all
    n_val: Count | None
    fingerprint: str | None
    contents: str | None = None
    memory_gb: NonNegative = 8.0


class MissingData(FileNotFoundError):
    """A data set that a run needs is not on this machine."""


class _Sources:
    """Data sets of one domain by name, decoded into memory on first use.

    Parameters
    ----------
    cache_folder : Path
        Where small files remember what was found in large folders.
    memory_gb : float
        Of the decoded samples kept.
    """

    label_set: str  # name of the classes of the labelled ones
    names: tuple[str, ...]

    def __init__(self, cache_folder: Path, memory_gb: float):
        self._cache, self._memory = cache_folder, Memory(memory_gb * 1e9)
        self._opened: dict[str, Sequence[Sample]] = {}
        self._fingerprints: dict[Path, str] = {}

    def check(self, name: str) -> None:
        """Raise ValueError unless `name` is a data set of this domain. Opens no file."""
        path, colon, mode = name.partition(":")
        if path not in self.names or (colon and mode != "unlabelled"):
            raise DataError(
                f"expected one of {', '.join(self.names)}, or one of these with ':unlabelled', found {name!r}"
            )

    def open(self, name: str) -> Sequence[Sample]:
        """The data set called `name`. KeyError for an unknown one, MissingData without its files."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _folder_fingerprint(self, folder: Path) -> str:
        """`folder_fingerprint`, asked once; again for a folder that was not there."""
        known = self._fingerprints.get(folder)
        if known is None or (known == "missing" and folder.is_dir()):
            known = fingerprints.remembered(folder, self._cache / "fingerprints", folder_fingerprint)
            self._fingerprints[folder] = known
        return known

    def _check_unchanged(self, folder: Path) -> None:
        """Raise ValueError if a folder is not what it was when it entered the keys of runs."""
        known = self._folder_fingerprint(folder)
        found = fingerprints.remembered(folder, self._cache / "fingerprints", folder_fingerprint)
        if found != known:
            raise DataError(
                f"{folder}: fingerprint {found}, but {known} when the profile was loaded; expected files "
                "that stay as they are: load the profile again"
            )

    def _real_fingerprint(self, folder: Path, settings: CamVidData | NucleiData) -> str:
        """The name of the recorded images if the folder holds them or is not here; else what it holds."""
        if not settings.fingerprint:
            return self._folder_fingerprint(folder)
        expected = settings.contents or settings.fingerprint
        found = self._folder_fingerprint(folder)
        return settings.fingerprint if found in (expected, "missing") else found

    def _check_real(
        self, folder: Path, settings: CamVidData | NucleiData, what: str, variable: str, key: str
    ) -> None:
        """Raise MissingData without the folder, ValueError if its files are not those of the record."""
        if not folder.is_dir():
            raise MissingData(
                f"{folder}: no real {what} here; README.md, 'Real data', says how to get them and where to "
                f"put the folder ({variable})"
            )
        self._check_unchanged(folder)
        found, expected = self._folder_fingerprint(folder), settings.contents or settings.fingerprint
        if settings.fingerprint and found != expected:
            raise DataError(
                f"{folder}: fingerprint {found}, but the profile expects {expected}; set {key} to null to "
                "use other images"
            )


class CitySources(_Sources):
    """Opens the street data sets: synthia, gta5, mix, cityscapes."""

    label_set = CITYSCAPES.name
    names = tuple(f"{kind}/{split}" for kind in STREETS for split in ("train", "val"))

    def __init__(self, settings: CityData, root: Path):
        self.settings = settings
        kinds = ("synthia", "gta5", "cityscapes")
        self.folders = {kind: root / expand_path(getattr(settings, kind)) for kind in kinds}
        self._n_missing = 0
        super().__init__(root / "cache", settings.memory_gb)

    def prepare(self, *, n_workers: int = 1, progress: bool = True) -> None:
        """Render what is not on disk yet; a no-op for real data."""
        for style, arguments in self._embedded_sets():
            city.write_city(self.folders[style], style, n_workers=n_workers, progress=progress, **arguments)

    def to_render(self) -> dict[str, tuple[int, int]]:
        """{how the names of data sets begin that `prepare` would write: (images, pixels)}.

        Raises ValueError where another data set lies in its place.
        """
        found = {}
        for style, arguments in self._embedded_sets():
            if not city.is_written(self.folders[style], style, **arguments):
                name = f"{style}/{arguments['split'] if style == 'cityscapes' else ''}"
                n_images = arguments["n_images"]
                found[name] = n_images, n_images * arguments["height"] * arguments["width"]
        return found

    def _embedded_sets(self) -> list[tuple[str, dict]]:
        """(style, arguments of the renderer) of every data set to render; none for real data."""
        embedded = self.settings.embedded
        if embedded is None:
            return []
        return [
            (style, {"split": split, "n_images": n_images, "height": embedded.height, "width": embedded.width,
                     "seed": embedded.seed})
            for style, split, n_images in (
                ("synthia", "all", embedded.n_synthia),
                ("gta5", "all", embedded.n_gta5),
                ("cityscapes", "train", embedded.n_train),
                ("cityscapes", "val", embedded.n_val),
            )
        ]  # fmt: skip

    def fingerprint(self, name: str) -> str:
        """What a run's key says about its data: renderer, styles and sizes, or the real file list."""
        kind = name.split("/")[0]
        content = self._content(("synthia", "gta5") if kind == "mix" else (kind,))
        s = self.settings
        left_out = f"{s.gta5_missing}:" if kind in ("gta5", "mix") and s.gta5_missing else ""
        size = s.train_size if s.resize_sources else f"{s.train_size} target only"
        return f"{content}:{s.n_val_synthia}:{s.n_val_gta5}:{size}:{s.mix_requires}:{left_out}{name}"

    def _content(self, kinds: Sequence[str]) -> str:
        """What the folders of these data sets hold, or will hold once rendered."""
        if self.settings.embedded is None:
            return "+".join(self._folder_fingerprint(self.folders[kind]) for kind in kinds)
        sets = [city.fingerprint(style, **rest) for style, rest in self._embedded_sets() if style in kinds]
        return hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest()[:16]

    def available(self) -> bool:
        return self.settings.embedded is not None or all(folder.is_dir() for folder in self.folders.values())

    def _open(self, name: str) -> Sequence[Sample]:
        path, _, mode = name.partition(":")
        kind, split = path.split("/")
        resized = split == "train" and (kind == "cityscapes" or self.settings.resize_sources)
        size = self.settings.train_size if resized else None
        if kind != "mix":
            return InMemory(self._reader(name), size=size, memory=self._memory)
        if mode:
            raise KeyError(f"{name!r}: MIX is chosen by its labels, expected {path!r}")
        frames = self._reader(f"gta5/{split}")
        frames = frames.subset(self._choose(frames, split))  # the others are never decoded
        return Concatenation(
            [self.open(f"synthia/{split}"), InMemory(frames, size=size, memory=self._memory)]
        )

    def _reader(self, name: str) -> readers.FolderSet:
        """A data set on disk; nothing is decoded."""
        path, _, mode = name.partition(":")
        kind, split = path.split("/")
        s, labels = self.settings, mode != "unlabelled"
        if kind in self.folders:
            self._check_folder(kind, split)
        if kind == "synthia":
            return readers.Synthia(self.folders[kind], split, n_val=s.n_val_synthia, with_labels=labels)
        if kind == "gta5":
            frames = readers.GTA5(
                self.folders[kind],
                split,
                n_val=s.n_val_gta5,
                allow_missing=s.gta5_missing,
                with_labels=labels,
            )
            if len(frames.missing) > self._n_missing:
                self._n_missing = len(frames.missing)  # said once
                said = f"{self._n_missing} frames left out that lack their image or label"
                print(f"{self.folders[kind]}: {said}", file=sys.stderr)
            return frames
        if kind == "cityscapes":
            return readers.Cityscapes(self.folders[kind], split, with_labels=labels)
        raise KeyError(f"unknown data set {name!r}; expected synthia, gta5, cityscapes or mix")

    def _check_folder(self, kind: str, split: str) -> None:
        """Raise ValueError if a folder does not hold what the keys of runs say of it."""
        if self.settings.embedded is None:
            self._check_unchanged(self.folders[kind])
        for style, arguments in self._embedded_sets():
            if style == kind and arguments["split"] in (split, "all"):
                city.is_written(self.folders[style], style, **arguments)  # raises for another data set

    def mix_indices(self, split: str = "train") -> list[int]:
        """Positions of the GTA5 frames that enter MIX. Raises ValueError if there is none."""
        return self._choose(self._reader(f"gta5/{split}"), split)

    def _choose(self, frames: readers.FolderSet, split: str) -> list[int]:
        required = self.settings.mix_requires
        presence = self._presence(frames)[:, list(frames.label_set.ids_of(required))]
        chosen = np.flatnonzero(presence.all(axis=1)).tolist()
        if not chosen:
            shown = ", ".join(f"{name} in {n}" for name, n in zip(required, presence.sum(axis=0)))
            raise DataError(
                f"{self.folders['gta5']}: none of {len(frames)} frames of {split!r} shows all classes that "
                f"mix_requires names ({shown}), expected at least one"
            )
        return chosen

    def _presence(self, frames: readers.FolderSet) -> np.ndarray:
        """`class_presence` of GTA5 frames, read once and remembered as long as the folder is unchanged."""
        identity = json.dumps([self._content(["gta5"]), frames.ids])
        path = self._cache / "classes" / f"gta5-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):
            presence = np.load(path)
            if presence.shape == (len(frames), frames.label_set.n_classes):
                return presence
        n_workers = min(8, os.cpu_count() or 1)
        presence = class_presence(frames, n_workers=n_workers, progress=len(frames) > 1000)
        content = io.BytesIO()
        np.save(content, presence)
        cache.remember(path, content.getvalue())
        return presence


class CamVidSources(_Sources):
    """Opens CamVid, and beside it the street data sets that networks come from."""

    label_set = CAMVID.name
    names = ("camvid/train", "camvid/val", "camvid/test", *CitySources.names)

    def __init__(self, settings: CamVidData, city: CitySources, root: Path):
        self.settings, self.city, self.root = settings, city, root / expand_path(settings.root)
        super().__init__(root / "cache", settings.memory_gb)

    def prepare(self, *, n_workers: int = 1, progress: bool = True) -> None:
        """What the city renders; nothing of its own."""
        self.city.prepare(n_workers=n_workers, progress=progress)

    def to_render(self) -> dict[str, tuple[int, int]]:
        return self.city.to_render()

    def fingerprint(self, name: str) -> str:
        if not name.startswith("camvid/"):
            return self.city.fingerprint(name)
        return f"{self._real_fingerprint(self.root, self.settings)}:{self.settings.size}:{name}"

    def available(self) -> bool:
        return self.root.is_dir() and self.city.available()

    def _open(self, name: str) -> Sequence[Sample]:
        if not name.startswith("camvid/"):
            return self.city.open(name)
        variable, key = "PANOLIB_CAMVID_ROOT", "camvid.fingerprint"
        self._check_real(self.root, self.settings, "CamVid images", variable, key)
        path, _, mode = name.partition(":")
        data = readers.CamVid(self.root, path.partition("/")[2], with_labels=mode != "unlabelled")
        return InMemory(data, size=self.settings.size, memory=self._memory)


class NucleiSources(_Sources):
    """Opens the rendered source (nuclei_scenes) and the real target (nuclei)."""

    label_set = NUCLEI.name
    names = tuple(f"{kind}/{split}" for kind in ("nuclei_scenes", "nuclei") for split in ("train", "val"))

    def __init__(self, settings: NucleiData, root: Path):
        self.settings = settings
        self.scenes, self.root = (root / expand_path(p) for p in (settings.scenes, settings.root))
        super().__init__(root / "cache", settings.memory_gb)

    def prepare(self, *, n_workers: int = 1, progress: bool = True) -> None:
        for arguments in self._embedded_sets():
            folder = self.scenes / arguments["split"]
            nuclei_scenes.write_nuclei(folder, n_workers=n_workers, progress=progress, **arguments)

    def to_render(self) -> dict[str, tuple[int, int]]:
        """As `CitySources.to_render`."""
        return {
            f"nuclei_scenes/{a['split']}": (a["n_images"], a["n_images"] * a["height"] * a["width"])
            for a in self._embedded_sets()
            if not nuclei_scenes.is_written(self.scenes / a["split"], **a)
        }

    def _embedded_sets(self) -> list[dict]:
        """Arguments of the renderer for every split."""
        embedded = self.settings.embedded
        sizes = {"height": embedded.height, "width": embedded.width, "seed": embedded.seed}
        splits = (("train", embedded.n_train), ("val", embedded.n_val))
        return [{"split": split, "n_images": n_images, **sizes} for split, n_images in splits]

    def fingerprint(self, name: str) -> str:
        kind = name.split("/")[0]
        if kind == "nuclei":
            s = self.settings
            return f"{self._real_fingerprint(self.root, s)}:{s.modality}:{s.n_train}:{s.n_val}:{name}"
        return f"nuclei_scenes-v{nuclei_scenes.RENDERER_VERSION}:{self.settings.embedded}:{name}"

    def available(self) -> bool:
        return self.root.is_dir()

    def _open(self, name: str) -> Sequence[Sample]:
        path, _, mode = name.partition(":")
        kind, split = path.split("/")
        labels = mode != "unlabelled"
        if kind == "nuclei_scenes":
            arguments = next(a for a in self._embedded_sets() if a["split"] == split)
            folder = self.scenes / split
            if folder.is_dir() and not nuclei_scenes.is_written(folder, **arguments):
                raise DataError(f"{folder}: holds other files than the profile says, expected {arguments}")
            data = readers.Nuclei(folder, split, with_labels=labels)
        elif kind == "nuclei":
            variable, key = "PANOLIB_NUCLEI_ROOT", "nuclei.data.fingerprint"
            self._check_real(self.root, self.settings, "nuclei images", variable, key)
            data = readers.Nuclei(self.root, split, modality=self.settings.modality, with_labels=labels)
            limit = {"train": self.settings.n_train, "val": self.settings.n_val}[split]
            if limit is not None:
                data = Concatenation([data], [range(min(limit, len(data)))])
        else:
            raise KeyError(f"unknown data set {name!r}; expected nuclei_scenes or nuclei")
        # microscope images are often very dark: every image is stretched to its own percentiles
        return InMemory(data, transform=readers.stretch_intensity, memory=self._memory)
