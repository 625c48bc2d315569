"""SYNTHIA-RAND-CITYSCAPES."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panolib.data.errors import DataError
from panolib.data.folders import FolderSet, is_thing, label_files, list_images, split_tail
from panolib.data.images import read_png16
from panolib.labels import CITYSCAPES

_CLASS_OF_ID = dict.fromkeys(range(23)) | {
    1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole", 8: "car",
    9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle", 15: "traffic light", 16: "terrain",
    17: "rider", 18: "truck", 19: "bus", 20: "train", 21: "wall",
}  # fmt: skip


class Synthia(FolderSet):
    """SYNTHIA: `root` is RAND_CITYSCAPES or holds it; "val" is the last `n_val` images, "all" every one.

    In the 16-bit RGB labels the first channel is the class, the second the instance. The pixels of one (thing
    class, instance value > 0) pair are one object and get fresh ids 1 .. K. Thing pixels with instance value
    0 are crowd. Void pixels stay void whatever their instance value. There is no official split. Ros et al.
    2016; label reading as in EDAPS and SAC.
    """

    class_of_id = _CLASS_OF_ID

    def __init__(self, root: Path, split: str, *, n_val: int = 400, with_labels: bool = True):
        root = Path(root)
        root = root / "RAND_CITYSCAPES" if (root / "RAND_CITYSCAPES").is_dir() else root
        images = list_images(root / "RGB", "*.png", "SYNTHIA images RAND_CITYSCAPES/RGB/*.png")
        where = root / "GT" / "LABELS", "*.png", "SYNTHIA labels RAND_CITYSCAPES/GT/LABELS/*.png"
        labels = label_files(images, *where) if with_labels else None
        ids = split_tail(list(images), split, n_val, root)
        super().__init__("synthia", CITYSCAPES, ids, images, labels, has_instances=True)

    def _read_labels(self, paths):
        channels = read_png16(paths[0])
        if channels.ndim != 3:
            raise DataError(f"{paths[0]}: one channel, expected three (class, instance, unused)")
        semantic = self.train_ids(channels[..., 0], paths[0])
        thing = is_thing(semantic, CITYSCAPES)
        values = channels[..., 1].astype(np.int64)
        is_object = thing & (values > 0)

        pairs = semantic[is_object].astype(np.int64) * (values.max() + 1) + values[is_object]
        present = np.bincount(pairs) > 0  # cheaper than sorting the pixels
        instance = np.zeros(semantic.shape, np.int32)
        instance[is_object] = np.cumsum(present)[pairs]
        return semantic, instance, thing & (instance == 0)
