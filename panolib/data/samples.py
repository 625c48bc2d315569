"""A labelled image, and what all data sets share: pairing files, class ids, serving from memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from panolib.data.images import read_image, resize_image, resize_labels
from panolib.labels import VOID, LabelSet

_UNKNOWN = 254  # marks file ids outside the table of a data set; never leaves this module


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
        raise ValueError(f"{path}: class id {found} outside the table, expected one of {known}")
    return semantic


def is_thing(semantic: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """Bool [H, W]: pixels of thing classes."""
    table = np.zeros(256, bool)
    table[list(label_set.thing_ids)] = True
    return table[semantic]


def list_images(folder: Path, pattern: str, suffix: str, what: str) -> dict[str, Path]:
    """Id -> path of the files `pattern` below `folder`, in id order; an id is a name without `suffix`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected {what}")
    paths = {path.name.removesuffix(suffix): path for path in folder.glob(pattern)}
    if not paths:
        raise ValueError(f"{folder}: empty split, found 0 files {pattern}, expected {what}")
    return dict(sorted(paths.items()))


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
        raise ValueError(f"{where}: split {split!r}, expected 'train', 'val' or 'all'")
    if split == "all":
        return list(ids)
    n_train = len(ids) - n_val
    chosen = list(ids[:max(n_train, 0)] if split == "train" else ids[max(n_train, 0) :])
    if n_val < 0 or n_train < 0 or not chosen:
        raise ValueError(
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
            raise ValueError(f"{path}: label of {found} (height x width), expected {expected} as its image")
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


class InMemory(ImageSet):
    """A data set decoded once and served from memory. Samples are shared: do not write into them.

    Parameters
    ----------
    dataset : ImageSet
    size : (height, width), optional
        Resize every sample: image by area mean (bilinear where it grows), labels by the nearest pixel at
        each output pixel's centre, so both stay aligned. Small instances may vanish.
    transform : callable, optional
        uint8 image [H, W, 3] -> uint8 image [H, W, 3], applied once to each image as read, before resizing;
        for example `stretch_intensity`.
    """

    def __init__(
        self,
        dataset: ImageSet,
        *,
        size: tuple[int, int] | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.name, self.label_set, self.ids = dataset.name, dataset.label_set, list(dataset.ids)
        self.has_instances = dataset.has_instances
        self._samples = []
        for index in range(len(dataset)):
            sample = dataset[index]
            if transform is not None:
                sample = replace(sample, image=transform(sample.image))
            self._samples.append(sample if size is None else resize_sample(sample, size))

    def __getitem__(self, index: int) -> Sample:
        return self._samples[operator.index(index)]
