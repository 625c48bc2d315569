"""GTA5 ("Playing for Data")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from panolib.data.errors import DataError
from panolib.data.folders import FolderSet, check_pairs, list_images, split_tail
from panolib.data.images import resize_labels
from panolib.labels import CITYSCAPES


class GTA5(FolderSet):
    """Frames of GTA5: `root` holds images and labels; semantic labels only, so all thing pixels are crowd.

    Some frames are 1046 instead of 1052 rows high and some labels differ a little from their image in size:
    the label is then resized (nearest) to the image. A difference of more than 5 % in height or width is
    another frame's label and an error.

    Split "val" is the last `n_val` frames in name order, those that are left out included, "train" the
    others, "all" both. At most `allow_missing` frames may lack their image or their label (some downloads
    miss 25): they are left out and listed in `missing`. Richter et al. 2016, arXiv:1608.02192.
    """

    class_of_id = dict.fromkeys(range(35)) | dict(zip(CITYSCAPES.file_ids, CITYSCAPES.classes))

    def __init__(
        self, root: Path, split: str, *, n_val: int = 1000, allow_missing: int = 0, with_labels: bool = True
    ):
        root = Path(root)
        images = list_images(root / "images", "*.png", "GTA5 images/*.png")
        ids, labels, self.missing = split_tail(list(images), split, n_val, root), None, []
        if with_labels:
            labels = list_images(root / "labels", "*.png", "GTA5 labels/*.png")
            self.missing = _unpaired(images, labels, allow_missing, root)
            labels = {i: (path,) for i, path in labels.items()}
            ids = [i for i in ids if i in labels]
            if not ids:
                raise DataError(f"{root}: empty split {split!r}, no frame of it has a label, expected some")
        super().__init__("gta5", CITYSCAPES, ids, images, labels)

    def _match(self, image, labels, path, sample_id):
        height, width = image.shape[:2]
        odd = labels[0].shape
        if abs(odd[0] - height) <= 0.05 * height and abs(odd[1] - width) <= 0.05 * width:
            labels = tuple(resize_labels(part, (height, width)) for part in labels)
        return super()._match(image, labels, path, sample_id)


def _unpaired(images: Mapping[str, Path], labels: Mapping[str, Path], allowed: int, root: Path) -> list[str]:
    """Frames without image or without label. Raises FileNotFoundError for more than allowed."""
    if allowed < 0:
        raise DataError(f"allow_missing = {allowed}, expected 0 or more")
    if allowed == 0:
        check_pairs(images, labels, root)
    alone = sorted(images.keys() ^ labels.keys())
    if len(alone) > allowed:
        shown = ", ".join(alone[:40]) + (f" and {len(alone) - 40} more" if len(alone) > 40 else "")
        raise FileNotFoundError(
            f"{root}: {len(alone)} frames lack their image or their label: {shown}; "
            f"expected at most {allowed}"
        )
    return alone
