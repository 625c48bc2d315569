"""The city: SYNTHIA, GTA5 and their mixture as sources, Cityscapes as target; real, or rendered."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from panolib.config import Count, Natural, NonNegative, Size, later, spec
from panolib.data import cache
from panolib.data.domains import Rendering, Sources, register
from panolib.data.errors import DataError
from panolib.data.folders import FolderSet
from panolib.data.mixing import Concatenation, class_presence
from panolib.data.readers.cityscapes import Cityscapes
from panolib.data.readers.gta5 import GTA5
from panolib.data.readers.synthia import Synthia
from panolib.data.render import city as renderer
from panolib.data.samples import ImageSet, InMemory
from panolib.labels import CITYSCAPES
from panolib.profiles import expand_path

STREETS = ("synthia", "gta5", "mix", "cityscapes")


@spec
class EmbeddedCity:
    """Sizes of the rendered street scenes (images, pixels).

    There may be a second val set, `n_val_rare` images rich in rare classes.
    """

    n_synthia: Count
    n_gta5: Count
    n_train: Count
    n_val: Count
    height: Count
    width: Count
    seed: Natural
    n_val_rare: Natural = later(0)


@spec
class CityData:
    """Folders of the three street data sets; with `embedded` the renderer writes them first.

    `n_val_synthia` images are held out of the source for choosing clustering settings. `train_size` resizes
    training images (None keeps them as they are); with `resize_sources` False only those of the target, so
    that sources keep their size and their aspect ratio (1024 x 512 makes SYNTHIA 19 % wider and GTA5 10 %).
    `mix_requires` are the classes that a GTA5 frame must show to enter the MIX source (thesis 8.1).
    `gta5_missing` is how many frames may lack their label; they are then left out. `memory_gb` bounds the
    decoded samples that one process keeps: every worker and every loader worker holds as much again.
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


@register("city")
class CitySources(Sources):
    """The street data sets: synthia, gta5, mix, cityscapes."""

    label_set = CITYSCAPES.name
    Settings = CityData
    own = (*(f"{kind}/{split}" for kind in STREETS for split in ("train", "val")), "cityscapes/val_rare")
    has_styles = True

    def __init__(self, settings: CityData, root: Path, source: Sources | None = None):
        super().__init__(settings, root, source)
        kinds = ("synthia", "gta5", "cityscapes")
        self.folders = {kind: root / expand_path(getattr(settings, kind)) for kind in kinds}
        self._n_missing = 0

    def renderings(self) -> list[Rendering]:
        embedded = self.settings.embedded
        if embedded is None:
            return []
        sizes = {"height": embedded.height, "width": embedded.width, "seed": embedded.seed}
        return [
            Rendering(
                f"{style}/{split if style == 'cityscapes' else ''}", self.folders[style], renderer.write_city,
                renderer.is_written, {"style": style, "split": split, "n_images": n_images, **sizes},
            )
            for style, split, n_images in (
                ("synthia", "all", embedded.n_synthia),
                ("gta5", "all", embedded.n_gta5),
                ("cityscapes", "train", embedded.n_train),
                ("cityscapes", "val", embedded.n_val),
                ("cityscapes", "val_rare", embedded.n_val_rare),
            )
            if n_images
        ]  # fmt: skip

    def parts(self, name: str) -> tuple[str, ...]:
        """MIX is read as its parts: choosing its frames takes minutes."""
        kind, _, split = name.partition("/")
        return tuple(f"{part}/{split}" for part in (("synthia", "gta5") if kind == "mix" else (kind,)))

    def _fingerprint(self, name: str) -> str:
        """Renderer, styles and sizes, or the real file list."""
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
        arguments = [part.arguments for part in self.renderings() if part.arguments["style"] in kinds]
        sets = [renderer.fingerprint(**found) for found in arguments]
        return hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest()[:16]

    def available(self) -> bool:
        return self.settings.embedded is not None or all(folder.is_dir() for folder in self.folders.values())

    def _open(self, kind: str, split: str, with_labels: bool) -> ImageSet:
        resized = split == "train" and (kind == "cityscapes" or self.settings.resize_sources)
        size = self.settings.train_size if resized else None
        if kind != "mix":
            return InMemory(self._reader(kind, split, with_labels), size=size, memory=self._memory)
        if not with_labels:
            raise KeyError(f"{kind}/{split}: MIX is chosen by its labels, expected it without ':unlabelled'")
        frames = self._reader("gta5", split)
        frames = frames.subset(self._choose(frames, split))  # the others are never decoded
        return Concatenation(
            [self.open(f"synthia/{split}"), InMemory(frames, size=size, memory=self._memory)]
        )

    def _reader(self, kind: str, split: str, with_labels: bool = True) -> FolderSet:
        """A data set on disk; ValueError if it is not what the keys of runs say. Nothing is decoded."""
        folder, s = self.folders[kind], self.settings
        if s.embedded is None:
            self._check_unchanged(folder)
        for part in self.renderings():
            if part.folder == folder and part.arguments["split"] in (split, "all"):
                part.is_there()  # raises for another data set
        if kind == "cityscapes":
            return Cityscapes(folder, split, with_labels=with_labels)
        if kind == "synthia":
            return Synthia(folder, split, n_val=s.n_val_synthia, with_labels=with_labels)
        frames = GTA5(
            folder, split, n_val=s.n_val_gta5, allow_missing=s.gta5_missing, with_labels=with_labels
        )
        if len(frames.missing) > self._n_missing:
            self._n_missing = len(frames.missing)  # said once
            said = f"{self._n_missing} frames left out that lack their image or label"
            print(f"{folder}: {said}", file=sys.stderr)
        return frames

    def _choose(self, frames: FolderSet, split: str) -> list[int]:
        """Positions of the frames that enter MIX. Raises DataError if there is none."""
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

    def _presence(self, frames: FolderSet) -> np.ndarray:
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
