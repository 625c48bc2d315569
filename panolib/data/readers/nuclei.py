"""Cell nuclei: the 2018 Data Science Bowl in its two layouts, and rendered scenes as source."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from panolib.config import Count, Natural, NonNegative, spec
from panolib.data.domains import RealImages, Rendering, Sources, register
from panolib.data.errors import DataError
from panolib.data.folders import FolderSet, list_images, png_files, split_by_hash
from panolib.data.images import decode, read_channel16, read_image, stretch_intensity
from panolib.data.lists import read_column, read_ids
from panolib.data.mixing import Concatenation
from panolib.data.render import nuclei_scenes
from panolib.data.samples import ImageSet, InMemory
from panolib.labels import NUCLEI
from panolib.profiles import expand_path

MODALITIES = ("fluorescence_grey", "brightfield_grey", "histology_colour")


class Nuclei(FolderSet):
    """Cell nuclei of the 2018 Data Science Bowl, in either of two layouts.

    "Shared": images/{id}.png, labels/{id}.png (16 bit, 0 background, 1 .. n nuclei), perhaps
    splits/{split}.txt (one id a line) and index.csv. "Stage 1": {id}/images/{id}.png and one 8-bit mask file
    per nucleus in {id}/masks; masks are written in sorted order, so a pixel of two masks goes to the later
    one. A masks folder without files is an image without nuclei. `root` is the data set's folder;
    stage1_train may also be given by its parent.

    `split` is a file of splits/, or "all". There is no official split: without splits/ the fifth of the ids
    with the lowest hash is "val" and the rest "train". With a `modality`, for example "fluorescence_grey",
    only images that have it in index.csv; without index.csv those of this `modality_of` their pixels, for
    which every image of the split is opened once.

    Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7; BBBC038v1.
    """

    def __init__(self, root: Path, split: str, *, modality: str | None = None, with_labels: bool = True):
        root = Path(root)
        root = root / "stage1_train" if (root / "stage1_train").is_dir() else root
        labels = None
        if (root / "images").is_dir():
            images = list_images(root / "images", "*.png", "nuclei images/*.png")
            if with_labels:
                labels = list_images(root / "labels", "*.png", "nuclei labels/*.png")
                labels = {i: (path,) for i, path in labels.items()}
        else:
            what = "nuclei as images/*.png or as {id}/images/{id}.png"
            images = list_images(root, "*/images/*.png", what)
            if with_labels:
                labels = _mask_files(images)

        ids = self._split_ids(root, split, images)
        listed = root / "splits" / f"{split}.txt"
        self._check_files(listed if listed.is_file() else root, split, ids, images, "image")
        if modality is not None:
            ids = self._of_modality(root, ids, images, modality)
        if labels is not None:
            self._check_files(root, split, ids, labels, "label")
        super().__init__("nuclei", NUCLEI, ids, images, labels, has_instances=True)

    @staticmethod
    def _check_files(where: Path, split: str, ids: list[str], files: Collection[str], what: str) -> None:
        """Raise FileNotFoundError unless each id has its file."""
        absent = [i for i in ids if i not in files]
        if absent:
            raise FileNotFoundError(
                f"{where}: {len(absent)} of {len(ids)} ids of split {split!r} have no {what}, "
                f"the first is {absent[0]}; expected one for each, an id being a file's name without .png"
            )

    @staticmethod
    def _split_ids(root: Path, split: str, images: Mapping[str, Path]) -> list[str]:
        """Ids of a split, in file order where there is a split file."""
        if split == "all":
            return list(images)
        where = root
        if os.path.lexists(root / "splits"):
            where = path = root / "splits" / f"{split}.txt"
            if not path.is_file():
                known = sorted(p.stem for p in path.parent.glob("*.txt") if p.is_file())
                raise FileNotFoundError(f"{path}: no such split, expected one of {[*known, 'all']}")
            ids = read_ids(path)
        else:
            ids = split_by_hash(images, split, root)
        if not ids:
            raise DataError(f"{where}: empty split {split!r}, expected at least one id")
        return ids

    @staticmethod
    def _of_modality(root: Path, ids: list[str], images: Mapping[str, Path], modality: str) -> list[str]:
        """The ids of one modality, by index.csv or without it by the pixels."""
        path = root / "index.csv"
        if os.path.lexists(path):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no file, expected a table or none")
            found = read_column(path, "id", "modality")
            known = sorted(set(found.values()))
        else:
            found = {i: _modality_in(images[i], images[i].stat().st_mtime_ns) for i in ids}
            known, path = list(MODALITIES), root
        if modality not in known:
            raise DataError(f"{path}: no modality {modality!r}, expected one of {known}")
        absent = [i for i in ids if i not in found]
        if absent:
            raise DataError(f"{path}: no row for {absent[0]} and {len(absent) - 1} more, expected all")
        chosen = [i for i in ids if found[i] == modality]
        if not chosen:
            raise DataError(f"{path}: empty split, found 0 of {len(ids)} images of modality {modality!r}")
        return chosen

    def _read_labels(self, paths):
        if paths[0].name == "masks":
            instance = _paint_masks(paths[1], paths[2:])
        else:
            instance = read_channel16(paths[0]).astype(np.int32)
        return (instance > 0).astype(np.uint8), instance, np.zeros(instance.shape, bool)


def modality_of(image: np.ndarray) -> str:
    """The kind of microscopy that an image, uint8 [H, W, 3], comes from, by colour alone: a guess.

    "histology_colour" where the channels differ anywhere; else "brightfield_grey" where the median is at
    least 128 and "fluorescence_grey" below. In stage 1 the groups are well apart: the median of its grey
    images is at most 44 or at least 226.
    """
    if (image != image[..., :1]).any():
        return "histology_colour"
    return "brightfield_grey" if np.median(image[..., 0]) >= 128 else "fluorescence_grey"


@functools.cache
def _modality_in(path: Path, mtime_ns: int) -> str:
    """`modality_of` an image file, opened once as long as it is unchanged."""
    return modality_of(read_image(path))


def _mask_files(images: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Id -> (masks folder, image, mask files ...) of the images in stage-1 layout that have such a folder."""
    labels, seen = {}, {}
    for i, image in images.items():
        folder = image.parent.parent / "masks"
        if seen.setdefault(folder, image) != image:
            found = f"{seen[folder].name} and {image.name}"
            raise DataError(f"{image.parent}: holds {found}, expected one image")
        if folder.is_dir():
            labels[i] = (folder, image, *png_files(folder, ".png", "nuclei masks {id}/masks/*.png"))
    return labels


def _paint_masks(image: Path, masks: Sequence[Path]) -> np.ndarray:
    """int32 instance map [H, W] of one-nucleus mask files."""
    if not masks:
        return np.zeros(decode(image).shape[:2], np.int32)
    instance = None
    for number, path in enumerate(masks, start=1):
        mask = decode(path)
        if mask.ndim != 2:
            raise DataError(f"{path}: mask of shape {mask.shape}, expected one channel")
        if instance is None:
            instance = np.zeros(mask.shape, np.int32)
        if mask.shape != instance.shape:
            raise DataError(f"{path}: mask of {mask.shape}, expected {instance.shape} as in {masks[0].name}")
        instance[mask > 0] = number
    return instance


@spec
class EmbeddedNuclei:
    """Sizes of the rendered nuclei images (images, pixels)."""

    n_train: Count
    n_val: Count
    height: Count
    width: Count
    seed: Natural


@spec
class NucleiData:
    """Folder of the rendered source, and of the real microscope images with the expected file list.

    `n_train` and `n_val` take the first images in name order, None all of them; the others are those of
    `domains.RealData`.
    """

    scenes: str
    embedded: EmbeddedNuclei
    root: str
    modality: str | None
    n_train: Count | None
    n_val: Count | None
    fingerprint: str | None
    contents: str | None = None
    memory_gb: NonNegative = 8.0


@register("nuclei")
class NucleiSources(RealImages):
    """The rendered source (nuclei_scenes) and the real target (nuclei)."""

    label_set = NUCLEI.name
    stretched = own_scale = True  # microscope images are often very dark
    Settings = NucleiData
    own = tuple(f"{kind}/{split}" for kind in ("nuclei_scenes", "nuclei") for split in ("train", "val"))

    def __init__(self, settings: NucleiData, root: Path, source: Sources | None = None):
        super().__init__(settings, root, source)
        self.scenes = self.folders["nuclei scenes"] = root / expand_path(settings.scenes)

    def renderings(self) -> list[Rendering]:
        embedded = self.settings.embedded
        sizes = {"height": embedded.height, "width": embedded.width, "seed": embedded.seed}
        return [
            Rendering(
                f"nuclei_scenes/{split}", self.scenes / split, nuclei_scenes.write_nuclei,
                nuclei_scenes.is_written, {"split": split, "n_images": n_images, **sizes},
            )
            for split, n_images in (("train", embedded.n_train), ("val", embedded.n_val))
        ]  # fmt: skip

    def _fingerprint(self, name: str) -> str:
        s = self.settings
        if name.startswith("nuclei_scenes/"):
            return f"nuclei_scenes-v{nuclei_scenes.RENDERER_VERSION}:{s.embedded}:{name}"
        return f"{self._real_fingerprint()}:{s.modality}:{s.n_train}:{s.n_val}:{name}"

    def read(self, split: str, with_labels: bool) -> ImageSet:
        data = Nuclei(self.root, split, modality=self.settings.modality, with_labels=with_labels)
        limit = {"train": self.settings.n_train, "val": self.settings.n_val}[split]
        return data if limit is None else Concatenation([data.subset(range(min(limit, len(data))))])

    def _open(self, kind: str, split: str, with_labels: bool) -> ImageSet:
        if kind == "nuclei_scenes":
            part = next(part for part in self.renderings() if part.arguments["split"] == split)
            if part.folder.is_dir() and not part.is_there():
                raise DataError(
                    f"{part.folder}: holds other files than the profile says, expected {part.arguments}"
                )
            data = Nuclei(part.folder, split, with_labels=with_labels)
        else:
            self._check_real()
            data = self.read(split, with_labels)
        return InMemory(data, transform=stretch_intensity, memory=self._memory)
