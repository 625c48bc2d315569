"""A labelled image, and what all data sets share: pairing files, class ids, serving from memory."""

from __future__ import annotations

import copy
import math
import operator
import os
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from panolib.data.errors import DataError
from panolib.data.images import read_image, resize_image, resize_labels
from panolib.labels import VOID, LabelSet

_UNKNOWN = 254  # marks file ids outside the table of a data set; never leaves this module
OTHER_IMAGES = (".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")  # no reader opens them


@dataclass(frozen=True)
class Sample:
    """One image with its labels.

    Attributes
    ----------
    image : uint8 array [H, W, 3]
        RGB.
    semantic : uint8 array [H, W] or None
        Train ids, 255 is void. None (with the next two) if the data set was opened without labels.
    instance : int32 array [H, W] or None
        0 = no instance, otherwise an id >= 1 that no other object of the image has.
    crowd : bool array [H, W] or None
        Thing pixels that are not one object: groups, or objects whose instances are not known.
    id : str
    ignored : bool array [H, W] or None
        Pixels on which the official instance evaluation of the data set counts no false instance. None where
        these are the void pixels. Cityscapes is the exception: a single caravan or trailer is void, and yet
        its tool counts predictions there.
    """

    image: np.ndarray
    semantic: np.ndarray | None
    instance: np.ndarray | None
    crowd: np.ndarray | None
    id: str
    ignored: np.ndarray | None = None


def id_table(names: Mapping[int, str | None], label_set: LabelSet) -> np.ndarray:
    """uint8 [65536]: train id per file id; VOID for a name of None, _UNKNOWN outside the table."""
    table = np.full(1 << 16, _UNKNOWN, np.uint8)
    for file_id, name in names.items():
        table[file_id] = VOID if name is None else label_set.ids_of([name])[0]
    return table


def to_train_ids(file_ids: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """uint8 [H, W] train ids. Raises ValueError for a file id outside the table."""
    semantic = table[file_ids]
    unknown = semantic == _UNKNOWN
    if unknown.any():
        known = np.flatnonzero(table != _UNKNOWN).tolist()
        found = int(file_ids[unknown][0])
        raise DataError(f"{path}: class id {found} outside the table, expected one of {known}")
    return semantic


def is_thing(semantic: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """Bool [H, W]: pixels of thing classes."""
    table = np.zeros(256, bool)
    table[list(label_set.thing_ids)] = True
    return table[semantic]


def list_images(folder: Path, pattern: str, suffix: str, what: str) -> dict[str, Path]:
    """Id -> path of the PNG files below `folder`, in id order; an id is a file's name without `suffix`.

    `suffix` is met in upper case, too. Names that begin with a dot belong to the operating system.

    Parameters
    ----------
    pattern : str
        "*.png" for files in `folder`; "*/*_x.png" or "*/images/*.png" for files in folders below it.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, and for a link that leads nowhere.
    ValueError
        If there is no such file, two files have one id, a folder is named like an image, or an image is of
        another format.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected {what}")
    below = pattern.rpartition("/")[0]
    folders = _folders_below(folder, below.split("/")[1:], what) if below else [folder]
    images: dict[str, Path] = {}
    for path in (path for parent in folders for path in png_files(parent, suffix, what)):
        image_id = path.name[: -len(suffix)]
        if image_id in images:
            raise DataError(f"{path}: has the id of {images[image_id]}, expected one file an id")
        images[image_id] = path
    if not images:
        raise DataError(f"{folder}: empty split, found 0 files {pattern}, expected {what}")
    return dict(sorted(images.items()))


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


def split_tail(ids: Sequence[str], split: str, n_val: int, where: Path) -> list[str]:
    """The last `n_val` ids are "val", the others "train"."""
    if split not in ("train", "val", "all"):
        raise DataError(f"{where}: split {split!r}, expected 'train', 'val' or 'all'")
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


class ImageSet(Sequence[Sample]):
    """A sequence of samples; base of every data set here.

    Attributes
    ----------
    name : str
    label_set : LabelSet
    ids : list of str
        Sample ids in order.
    has_instances : bool
        Whether `instance` tells objects apart. False without labels and where the data set knows none.
    """

    name: str
    label_set: LabelSet
    ids: list[str]
    has_instances: bool

    def __len__(self) -> int:
        return len(self.ids)

    def semantic(self, index: int) -> np.ndarray | None:
        """uint8 [h, w] train ids of one sample, perhaps without decoding its image."""
        return self[index].semantic

    def origin(self, index: int) -> str:
        """Name of the data set that a sample comes from."""
        return self.name

    def instances_known(self, index: int) -> bool:
        """Whether `instance` tells the objects of this sample apart; differs by sample in mixed sets only."""
        return self.has_instances

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {len(self)} images)"


class FolderSet(ImageSet):
    """Samples whose image and label files are known by path."""

    def __init__(
        self,
        name: str,
        label_set: LabelSet,
        ids: Iterable[str],
        images: Mapping[str, Path],
        labels: Mapping[str, tuple[Path, ...]] | None,
        *,
        has_instances: bool,
    ):
        self.name, self.label_set, self.ids = name, label_set, list(ids)
        self.with_labels = labels is not None
        self.has_instances = has_instances and self.with_labels
        self._images = [images[i] for i in self.ids]
        self._labels = [labels[i] for i in self.ids] if labels is not None else None

    def subset(self, indices: Iterable[int]) -> FolderSet:
        """The samples at these positions, under their ids; nothing is read."""
        part, indices = copy.copy(self), list(indices)
        part.ids = [self.ids[i] for i in indices]
        part._images = [self._images[i] for i in indices]
        part._labels = None if self._labels is None else [self._labels[i] for i in indices]
        return part

    def _read_labels(self, paths: tuple[Path, ...]) -> tuple[np.ndarray, ...]:
        """(semantic, instance, crowd) of one image, and `ignored` where the data set says which pixels are.

        By default: semantic only, so things are crowd.
        """
        semantic = self._read_semantic(paths)
        return semantic, np.zeros(semantic.shape, np.int32), is_thing(semantic, self.label_set)

    def _read_semantic(self, paths: tuple[Path, ...]) -> np.ndarray:
        return self._read_labels(paths)[0]

    def __getitem__(self, index: int) -> Sample:
        index = operator.index(index)
        image = read_image(self._images[index])
        if self._labels is None:
            return Sample(image, None, None, None, self.ids[index])
        paths = self._labels[index]
        return self._match(image, self._read_labels(paths), paths[0], self.ids[index])

    def _match(self, image: np.ndarray, labels: tuple, path: Path, sample_id: str) -> Sample:
        """Sample of one image and its labels, once their sizes agree."""
        if labels[0].shape != image.shape[:2]:
            found, expected = (f"{height} x {width}" for height, width in (labels[0].shape, image.shape[:2]))
            raise DataError(f"{path}: label of {found} (height x width), expected {expected} as its image")
        semantic, instance, crowd, *ignored = labels
        return Sample(image, semantic, instance, crowd, sample_id, *ignored)

    def semantic(self, index: int) -> np.ndarray | None:
        """uint8 [h, w] train ids of one sample at the size of its label file; the image is not opened."""
        return None if self._labels is None else self._read_semantic(self._labels[operator.index(index)])


def resize_sample(sample: Sample, size: tuple[int, int]) -> Sample:
    """Sample at another size; labels take the nearest pixel at each centre."""
    labels = {name: getattr(sample, name) for name in ("semantic", "instance", "crowd", "ignored")}
    labels = {name: None if part is None else resize_labels(part, size) for name, part in labels.items()}
    return replace(sample, image=resize_image(sample.image, size), **labels)


class Memory:
    """Decoded samples of several data sets: the least recently used ones go when there are too many.

    The bound holds for one process. A copy in another process (pickled) starts empty; loader workers that are
    forked share what was decoded before and add their own.

    Parameters
    ----------
    max_bytes : float, optional
        Of all samples kept; None keeps everything. A sample larger than this is decoded each time.
    """

    def __init__(self, max_bytes: float | None = None):
        self.max_bytes = math.inf if max_bytes is None else max_bytes
        self.n_bytes = 0
        self._samples: dict[Hashable, Sample] = {}  # the most recently used one last
        self._lock = threading.Lock()

    def __getstate__(self) -> float:
        return self.max_bytes

    def __setstate__(self, max_bytes: float) -> None:
        self.__init__(max_bytes)

    def get(self, key: Hashable, decode: Callable[[], Sample]) -> Sample:
        """The sample kept under `key`, decoded first if it is not here."""
        with self._lock:
            sample = self._samples.pop(key, None)
            if sample is not None:
                self._samples[key] = sample
                return sample
        sample = decode()
        with self._lock:
            if key not in self._samples:
                self._samples[key] = sample
                self.n_bytes += n_bytes(sample)
            while self.n_bytes > self.max_bytes:
                self.n_bytes -= n_bytes(self._samples.pop(next(iter(self._samples))))
        return sample

    def fits(self, size: float) -> bool:
        """Whether `size` more bytes can be kept beside what is here."""
        return self.n_bytes + size <= self.max_bytes


def n_bytes(sample: Sample) -> int:
    """Memory of the arrays of a sample."""
    arrays = (getattr(sample, field.name) for field in fields(sample))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


class InMemory(ImageSet):
    """A data set served from memory. Samples are shared: do not write into them.

    Everything is decoded at once where it fits, so that a damaged file is found before hours are spent and
    forked loader workers share the pixels. A set that does not fit is decoded as it is asked for.

    Parameters
    ----------
    dataset : ImageSet
    size : (height, width), optional
        Resize every sample: image by area mean (bilinear where it grows), labels by the nearest pixel at
        each output pixel's centre, so both stay aligned. Small instances may vanish.
    transform : callable, optional
        uint8 image [H, W, 3] -> uint8 image [H, W, 3], applied once to each image as read, before resizing;
        for example `stretch_intensity`.
    memory : Memory, optional
        What bounds the samples kept, of this and perhaps other data sets. By default all are kept.
    """

    def __init__(
        self,
        dataset: ImageSet,
        *,
        size: tuple[int, int] | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
        memory: Memory | None = None,
    ):
        self.name, self.label_set, self.ids = dataset.name, dataset.label_set, list(dataset.ids)
        self.has_instances = dataset.has_instances
        self._dataset, self._size, self._transform = dataset, size, transform
        self._memory = Memory() if memory is None else memory
        for index, left in enumerate(reversed(range(len(dataset)))):
            if not self._memory.fits(left * n_bytes(self[index])):  # if the others are as large
                break

    def _decode(self, index: int) -> Sample:
        sample = self._dataset[index]
        if self._transform is not None:
            sample = replace(sample, image=self._transform(sample.image))
        return sample if self._size is None else resize_sample(sample, self._size)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[operator.index(index)]
        return self._memory.get((self, index), lambda: self._decode(index))
