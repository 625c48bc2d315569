"""The data sets of the study by name, opened once and served from memory.

A name says what is read: "synthia/train", "mix/train", "cityscapes/val", "nuclei/train". The suffix
":unlabelled" opens the same images without ever touching a label file; self-training uses only those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from panolib.data import city, nuclei_scenes, readers
from panolib.data.mixing import Concatenation, select_mix
from panolib.data.readers import InMemory, Sample
from panolib.labels import CAMVID, CITYSCAPES, NUCLEI
from panolib.profiles import Count, Natural, Size, expand_path, later

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
    None computes it from the folder.
    """

    root: str
    size: Size | None
    fingerprint: str | None


@dataclass(frozen=True)
class CityData:
    """Folders of the three street data sets; with `embedded` the renderer writes them first.

    `n_val_synthia` images are held out of the source for choosing clustering settings. `train_size`
    resizes training images (None keeps them as they are); with `resize_sources` False only those of the
    target, so that sources keep their size and their aspect ratio (1024 x 512 makes SYNTHIA 19 % wider and
    GTA5 10 %). `mix_requires` are the classes that a GTA5
    frame must show to enter the MIX source (thesis 8.1).
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

    def __post_init__(self):
        for kind in ("synthia", "gta5") if self.embedded else ():
            held_out, images = getattr(self, f"n_val_{kind}"), getattr(self.embedded, f"n_{kind}")
            if held_out >= images:
                raise ValueError(f"n_val_{kind}: expected less than the {images} images, found {held_out}")


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
    without the images; None computes it from the folder.
    """

    scenes: str
    embedded: EmbeddedNuclei
    root: str
    modality: str | None
    n_train: Count | None  # only the first images in name order; None takes all
    n_val: Count | None
    fingerprint: str | None


class MissingData(FileNotFoundError):
    """A data set that a run needs is not on this machine."""


def check_real_data(folder: Path, expected: str | None, what: str, variable: str, key: str) -> None:
    """Raise MissingData without the folder, ValueError if its files are not those of the record."""
    if not folder.is_dir():
        raise MissingData(
            f"{folder}: no real {what} here; README.md, 'Real data', says how to get them and where to put "
            f"the folder ({variable})"
        )
    if expected and (found := folder_fingerprint(folder)) != expected:
        raise ValueError(
            f"{folder}: fingerprint {found}, but the profile expects {expected}; set {key} to null to use "
            "other images"
        )


class _Sources:
    """Data sets of one domain by name, decoded into memory on first use."""

    label_set: str  # name of the classes of the labelled ones
    names: tuple[str, ...]

    def __init__(self):
        self._opened: dict[str, Sequence[Sample]] = {}

    def check(self, name: str) -> None:
        """Raise ValueError unless `name` is a data set of this domain. Opens no file."""
        path, colon, mode = name.partition(":")
        if path not in self.names or (colon and mode != "unlabelled"):
            raise ValueError(
                f"expected one of {', '.join(self.names)}, or one of these with ':unlabelled', found {name!r}"
            )

    def open(self, name: str) -> Sequence[Sample]:
        """The data set called `name`. KeyError for an unknown one, MissingData without its files."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]


class CitySources(_Sources):
    """Opens the street data sets: synthia, gta5, mix, cityscapes."""

    label_set = CITYSCAPES.name
    names = tuple(f"{kind}/{split}" for kind in STREETS for split in ("train", "val"))

    def __init__(self, settings: CityData, root: Path):
        self.settings = settings
        kinds = ("synthia", "gta5", "cityscapes")
        self.folders = {kind: root / expand_path(getattr(settings, kind)) for kind in kinds}
        super().__init__()

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
        kinds = ("synthia", "gta5") if kind == "mix" else (kind,)
        if self.settings.embedded is None:
            content = "+".join(folder_fingerprint(self.folders[k]) for k in kinds)
        else:
            sets = [
                city.fingerprint(style, **rest) for style, rest in self._embedded_sets() if style in kinds
            ]
            content = hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest()[:16]
        s = self.settings
        size = s.train_size if s.resize_sources else f"{s.train_size} target only"
        return f"{content}:{s.n_val_synthia}:{s.n_val_gta5}:{size}:{s.mix_requires}:{name}"

    def available(self) -> bool:
        return self.settings.embedded is not None or all(folder.is_dir() for folder in self.folders.values())

    def _open(self, name: str) -> Sequence[Sample]:
        path, _, mode = name.partition(":")
        kind, split = path.split("/")
        labels = mode != "unlabelled"
        resized = split == "train" and (kind == "cityscapes" or self.settings.resize_sources)
        size = self.settings.train_size if resized else None
        if kind == "synthia":
            data = readers.Synthia(
                self.folders[kind], split, n_val=self.settings.n_val_synthia, with_labels=labels
            )
        elif kind == "gta5":
            data = readers.GTA5(self.folders[kind], split, n_val=self.settings.n_val_gta5, with_labels=labels)
        elif kind == "cityscapes":
            data = readers.Cityscapes(self.folders[kind], split, with_labels=labels)
        elif kind == "mix":
            frames = self.open(f"gta5/{split}")
            return Concatenation([self.open(f"synthia/{split}"), frames], [None, self.mix_indices(split)])
        else:
            raise KeyError(f"unknown data set {name!r}; expected synthia, gta5, cityscapes or mix")
        return InMemory(data, size=size)

    def mix_indices(self, split: str = "train") -> list[int]:
        """Positions of the GTA5 frames that enter MIX."""
        return select_mix(self.open(f"gta5/{split}"), self.settings.mix_requires)


class CamVidSources(_Sources):
    """Opens CamVid, and beside it the street data sets that networks come from."""

    label_set = CAMVID.name
    names = ("camvid/train", "camvid/val", "camvid/test", *CitySources.names)

    def __init__(self, settings: CamVidData, city: CitySources, root: Path):
        self.settings, self.city, self.root = settings, city, root / expand_path(settings.root)
        super().__init__()

    def prepare(self, *, n_workers: int = 1, progress: bool = True) -> None:
        """What the city renders; nothing of its own."""
        self.city.prepare(n_workers=n_workers, progress=progress)

    def to_render(self) -> dict[str, tuple[int, int]]:
        return self.city.to_render()

    def fingerprint(self, name: str) -> str:
        if not name.startswith("camvid/"):
            return self.city.fingerprint(name)
        return f"{self.settings.fingerprint or folder_fingerprint(self.root)}:{self.settings.size}:{name}"

    def available(self) -> bool:
        return self.root.is_dir() and self.city.available()

    def _open(self, name: str) -> Sequence[Sample]:
        if not name.startswith("camvid/"):
            return self.city.open(name)
        check_real_data(
            self.root, self.settings.fingerprint, "CamVid images", "PANOLIB_CAMVID_ROOT", "camvid.fingerprint"
        )
        path, _, mode = name.partition(":")
        data = readers.CamVid(self.root, path.partition("/")[2], with_labels=mode != "unlabelled")
        return InMemory(data, size=self.settings.size)


class NucleiSources(_Sources):
    """Opens the rendered source (nuclei_scenes) and the real target (nuclei)."""

    label_set = NUCLEI.name
    names = tuple(f"{kind}/{split}" for kind in ("nuclei_scenes", "nuclei") for split in ("train", "val"))

    def __init__(self, settings: NucleiData, root: Path):
        self.settings = settings
        self.scenes, self.root = (root / expand_path(p) for p in (settings.scenes, settings.root))
        super().__init__()

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
            return (
                f"{s.fingerprint or folder_fingerprint(self.root)}:{s.modality}:{s.n_train}:{s.n_val}:{name}"
            )
        return f"nuclei_scenes-v{nuclei_scenes.RENDERER_VERSION}:{self.settings.embedded}:{name}"

    def available(self) -> bool:
        return self.root.is_dir()

    def _open(self, name: str) -> Sequence[Sample]:
        path, _, mode = name.partition(":")
        kind, split = path.split("/")
        labels = mode != "unlabelled"
        if kind == "nuclei_scenes":
            data = readers.Nuclei(self.scenes / split, split, with_labels=labels)
        elif kind == "nuclei":
            variable, key = "PANOLIB_NUCLEI_ROOT", "nuclei.data.fingerprint"
            check_real_data(self.root, self.settings.fingerprint, "nuclei images", variable, key)
            data = readers.Nuclei(self.root, split, modality=self.settings.modality, with_labels=labels)
            limit = {"train": self.settings.n_train, "val": self.settings.n_val}[split]
            if limit is not None:
                data = Concatenation([data], [range(min(limit, len(data)))])
        else:
            raise KeyError(f"unknown data set {name!r}; expected nuclei_scenes or nuclei")
        # microscope images are often very dark: every image is stretched to its own percentiles
        return InMemory(data, transform=readers.stretch_intensity)


def folder_fingerprint(folder: Path) -> str:
    """Short hash of the relative names and sizes of all PNG files below a folder; "missing" without it.

    A run can then be declared, listed and asked for; opening the data is what fails.
    """
    if not folder.is_dir():
        return "missing"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
