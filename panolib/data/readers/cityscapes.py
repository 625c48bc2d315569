"""Cityscapes with fine annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panolib.data.errors import DataError
from panolib.data.folders import FolderSet, is_thing, label_files, list_images
from panolib.data.images import read_channel16, read_indices
from panolib.labels import CITYSCAPES, VOID


class Cityscapes(FolderSet):
    """Cityscapes: `root` holds leftImg8bit and gtFine; splits "train", "val" and "test".

    An instance keeps its file value (label id * 1000 + number). Thing pixels whose value is below 1000 are
    groups: crowd. Label id 255 is the license plate's -1 in 8 bits and becomes void, like all classes that
    the benchmark ignores. Its instance-level tool reads ignored pixels from the instance file, where only
    values below 1000 can be such a class: a caravan or trailer with a number is void but not `ignored`.

    When a sample is read, 8-bit instance files, and instance and label files that disagree, are errors, too.
    Cordts et al. 2016, arXiv:1604.01685; cityscapesScripts (json2instanceImg, labels).
    """

    class_of_id = dict.fromkeys((*range(34), 255)) | dict(zip(CITYSCAPES.file_ids, CITYSCAPES.classes))

    def __init__(self, root: Path, split: str, *, with_labels: bool = True):
        root, suffix = Path(root), "_leftImg8bit.png"
        what = "Cityscapes images leftImg8bit/{split}/{city}/*" + suffix
        images = list_images(root / "leftImg8bit" / split, "*/*" + suffix, what)
        labels = None
        if with_labels:
            labels = dict.fromkeys(images, ())
            for kind in ("labelIds", "instanceIds"):
                suffix = f"_gtFine_{kind}.png"
                what = "Cityscapes labels gtFine/{split}/{city}/*" + suffix
                found = label_files(images, root / "gtFine" / split, "*/*" + suffix, what, kind)
                labels = {i: paths + found[i] for i, paths in labels.items()}
        super().__init__("cityscapes", CITYSCAPES, images, images, labels, has_instances=True)

    def _read_labels(self, paths):
        label_ids = read_indices(paths[0])
        semantic = self.train_ids(label_ids, paths[0])
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
