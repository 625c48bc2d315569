"""Data sets in folders: pairing files by name, class ids, and one sample from its files."""

from __future__ import annotations

import copy
import functools
import hashlib
import operator
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from panolib.data.errors import DataError
from panolib.data.images import read_image, read_indices
from panolib.data.samples import ImageSet, Sample
from panolib.labels import VOID, LabelSet

_UNKNOWN = 254  # marks file ids that no class has; never leaves this module
OTHER_IMAGES = (".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")  # no reader opens them


def is_thing(semantic: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """Bool [H, W]: pixels of thing classes."""
    table = np.zeros(256, bool)
    table[list(label_set.thing_ids)] = True
    return table[semantic]


def list_images(folder: Path, pattern: str, what: str) -> dict[str, Path]:
    """Id -> path of the PNG files below `folder`, in id order; an id is what "*" stands for.

    `pattern` is "*.png" for files in `folder`; "*/*_x.png" or "*/images/*.png" for files in folders below it.
    The end is met in upper case, too. Names that begin with a dot belong to the operating system.

    Raises FileNotFoundError if there is no such folder, and for a link that leads nowhere; DataError if there
    is no such file, two files have one id, a folder is named like an image, or an image is of another format.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected {what}")
    below, suffix = pattern.rpartition("/")[0], pattern.rpartition("*")[2]
    folders = _folders_below(folder, below.split("/")[1:], what) if below else [folder]
    files = (path for parent in folders for path in png_files(parent, suffix, what))
    images = by_name((path.name[: -len(suffix)], path) for path in files)
    if not images:
        raise DataError(f"{folder}: empty split, found 0 files {pattern}, expected {what}")
    return dict(sorted(images.items()))


def by_name(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """A mapping of names to files. Raises DataError where two files have one."""
    paths: dict[str, Path] = {}
    for name, path in found:
        if name in paths:
            raise DataError(f"{path}: has the name of {paths[name]}, expected one file for {name!r}")
        paths[name] = path
    return paths


def _folders_below(folder: Path, rest: Sequence[str], what: str) -> list[Path]:
    """The folders {any}/{rest} of a folder, sorted. Raises FileNotFoundError for links that lead nowhere."""
    below = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in (*below, *(path.joinpath(*rest) for path in below)):
        if path.is_symlink() and not path.exists():
            target = os.path.realpath(path)
            raise FileNotFoundError(f"{path}: leads to {target}, which is not there; expected {what}")
    return [path.joinpath(*rest) for path in below if path.joinpath(*rest).is_dir()]


def png_files(folder: Path, suffix: str, what: str) -> list[Path]:
    """The files of a folder whose names end in `suffix`, sorted; errors as of `list_images`."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path, name = folder / entry.name, entry.name.lower()
            if name.startswith("."):
                continue
            if name.endswith(OTHER_IMAGES):
                raise DataError(f"{path}: an image of another format, expected PNG files: {what}")
            if name.endswith(suffix.lower()):
                if entry.is_dir():
                    raise DataError(f"{path}: a folder named like an image, expected {what}")
                if not entry.is_file():
                    target = os.path.realpath(path)
                    raise FileNotFoundError(f"{path}: leads to {target}, where no file is; expected {what}")
                files.append(path)
    return sorted(files)


def check_pairs(images: Collection[str], labels: Collection[str], where: Path, kind: str = "label") -> None:
    """Raise FileNotFoundError unless both hold the same ids."""
    for name, here, there in (("image", images, labels), (kind, labels, images)):
        alone = sorted(set(here) - set(there))
        if alone:
            other = kind if name == "image" else "image"
            raise FileNotFoundError(
                f"{where}: {len(alone)} of {len(here)} {name}s have no {other}, the first is {alone[0]}; "
                f"expected one {other} for each {name}"
            )


def label_files(
    images: Collection[str], folder: Path, pattern: str, what: str, kind: str = "label"
) -> dict[str, tuple[Path, ...]]:
    """Id -> (path,) of the labels of images; errors as of `list_images` and `check_pairs`."""
    labels = list_images(folder, pattern, what)
    check_pairs(images, labels, folder, kind)
    return {i: (path,) for i, path in labels.items()}


def _check_split(split: str, where: Path) -> None:
    if split not in ("train", "val", "all"):
        raise DataError(f"{where}: split {split!r}, expected 'train', 'val' or 'all'")


def split_tail(ids: Sequence[str], split: str, n_val: int, where: Path) -> list[str]:
    """The last `n_val` ids are "val", the others "train"."""
    _check_split(split, where)
    if split == "all":
        return list(ids)
    n_train = len(ids) - n_val
    chosen = list(ids[:max(n_train, 0)] if split == "train" else ids[max(n_train, 0) :])
    if n_val < 0 or n_train < 0 or not chosen:
        raise DataError(
            f"{where}: empty split {split!r}: {len(ids)} images with n_val = {n_val}, "
            f"expected 0 < n_val < {len(ids)}"
        )
    return chosen


def split_by_hash(ids: Iterable[str], split: str, where: Path) -> list[str]:
    """ "val" is the fifth of the ids with the lowest hash, at least one; "train" the others, "all" every one.

    The order stays. Raises ValueError for another split, and for one without an id.
    """
    ids = list(ids)
    _check_split(split, where)
    ranked = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).digest())
    val = set(ranked[: max(1, round(len(ranked) / 5))])
    chosen = [i for i in ids if split == "all" or (i in val) == (split == "val")]
    if not chosen:
        raise DataError(f"{where}: {len(ids)} image file, expected 2 or more, of which a fifth validates")
    return chosen


class FolderSet(ImageSet):
    """Samples whose image and label files are known by path."""

    class_of_id: Mapping[int, str | None]  # class name by id in the label files; None is void

    def __init__(
        self,
        name: str,
        label_set: LabelSet,
        ids: Iterable[str],
        images: Mapping[str, Path],
        labels: Mapping[str, tuple[Path, ...]] | None,
        *,
        has_instances: bool = False,
    ):
        self.name, self.label_set, self.ids = name, label_set, list(ids)
        self.has_instances = has_instances and labels is not None
        self._images = [images[i] for i in self.ids]
        self._labels = [labels[i] for i in self.ids] if labels is not None else None

    @property
    def image_files(self) -> list[Path]:
        """The files of the images in order, each once, also one with many pages."""
        return list(dict.fromkeys(getattr(image, "path", image) for image in self._images))

    def subset(self, indices: Iterable[int]) -> FolderSet:
        """The samples at these positions, under their ids; nothing is read."""
        part, indices = copy.copy(self), list(indices)
        part.ids = [self.ids[i] for i in indices]
        part._images = [self._images[i] for i in indices]
        part._labels = None if self._labels is None else [self._labels[i] for i in indices]
        return part

    def train_ids(self, file_ids: np.ndarray, path: Path) -> np.ndarray:
        """uint8 [H, W] train ids. Raises ValueError for a file id outside the table."""
        semantic = self._table[file_ids]
        unknown = semantic == _UNKNOWN
        if unknown.any():
            known = np.flatnonzero(self._table != _UNKNOWN).tolist()
            found = int(file_ids[unknown][0])
            raise DataError(f"{path}: class id {found} outside the table, expected one of {known}")
        return semantic

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """uint8 [65536]: train id per file id."""
        table = np.full(1 << 16, _UNKNOWN, np.uint8)
        for file_id, name in self.class_of_id.items():
            table[file_id] = VOID if name is None else self.label_set.ids_of([name])[0]
        return table

    def _read_image(self, path: Path) -> np.ndarray:
        """uint8 [H, W, 3] RGB; by default of an 8-bit PNG."""
        return read_image(path)

    def _read_labels(self, paths: tuple[Path, ...]) -> tuple[np.ndarray, ...]:
        """(semantic, instance, crowd) of one image, perhaps `ignored`; by default of an index PNG without
        instances, so that things are crowd."""
        semantic = self.train_ids(read_indices(paths[0]), paths[0])
        return semantic, np.zeros(semantic.shape, np.int32), is_thing(semantic, self.label_set)

    def __getitem__(self, index: int) -> Sample:
        index = operator.index(index)
        image = self._read_image(self._images[index])
        if self._labels is None:
            return Sample(image, None, None, None, self.ids[index])
        paths = self._labels[index]
        return self._match(image, self._read_labels(paths), next(filter(None, paths)), self.ids[index])

    def _match(self, image: np.ndarray, labels: tuple, path: Path, sample_id: str) -> Sample:
        """Sample of one image and its labels, once their sizes agree."""
        if labels[0].shape != image.shape[:2]:
            found, expected = (f"{height} x {width}" for height, width in (labels[0].shape, image.shape[:2]))
            raise DataError(f"{path}: label of {found} (height x width), expected {expected} as its image")
        semantic, instance, crowd, *ignored = labels
        return Sample(image, semantic, instance, crowd, sample_id, *ignored)

    def semantic(self, index: int) -> np.ndarray | None:
        """uint8 [h, w] train ids of one sample at the size of its label file; the image is not opened."""
        return None if self._labels is None else self._read_labels(self._labels[operator.index(index)])[0]
