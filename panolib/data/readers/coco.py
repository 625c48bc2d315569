"""COCO panoptic format: one JSON file with the segments, one PNG an image with their ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from panolib.data.errors import DataError
from panolib.data.folders import check_pairs, is_thing, split_by_hash
from panolib.data.images import read_ids
from panolib.data.intensity import Intensity, Limits
from panolib.data.label_sets import label_set_of_categories
from panolib.data.readers.coco_json import check_once, image_pages, read_json
from panolib.data.readers.folders import PagedSet
from panolib.labels import VOID, LabelSet


class CocoPanoptic(PagedSet):
    """A panoptic JSON file and its PNGs, whose pixels are segment ids R + 256 G + 65536 B; 0 is void.

    The categories are the label set, unless one is given, which is taken by their names: `isthing` says which
    are things. Segments with `iscrowd` are crowd. Objects get new ids 1 .. K, in the order of theirs.

    `root` is the JSON file, or a folder that holds it, itself or in annotations/: a single one, which is
    split by the hash of the images' ids, or one with `split` ("train", "val" or "all") in its name. PNGs lie
    in the folder of the JSON's name, or beside it. Images lie in images/ beside the JSON or one folder
    higher, or in {split}2017/ as COCO has it, under the name of the file or the id of the image, with any
    suffix; those of a folder that `predict` wrote where they were then, seen from there; or in the folder
    `images`. `with_labels` False reads the list of images, and no PNG. `intensity` and `limits` are as of
    `Folders`; by default 8-bit images stay as they are.

    Kirillov et al. 2019, arXiv:1801.00868; cocodataset.org, format-data, "Panoptic Segmentation".
    """

    def __init__(
        self,
        root: Path,
        split: str = "all",
        *,
        label_set: LabelSet | None = None,
        with_labels: bool = True,
        intensity: Intensity | None = None,
        limits: Limits | None = None,
        images: Path | str | None = None,
    ):
        path, is_split = find_json(Path(root), split)
        content = read_json(path)
        own = label_set_of_categories(content.categories, path)
        label_set = own if label_set is None else label_set
        for name in own.classes:
            if name not in label_set.classes:
                raise DataError(f"{path}: category {name!r}, expected one of {list(label_set.classes)}")
        self.class_of_id = dict(zip(own.file_ids, own.classes))
        found = {str(image.id): image for image in content.images}
        names = list(found) if is_split else split_by_hash(found, split, path)
        pages = image_pages(path, [found[i] for i in names], images)
        pages, labels = dict(zip(names, pages)), None
        if with_labels:
            listed = {str(row.image_id): row for row in content.annotations}
            check_pairs(names, set(names) & listed.keys(), path, "annotation")
            folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
            labels = {i: (folder / listed[i].file_name, listed[i].segments_info) for i in names}
            _check_segments(path, labels, self.class_of_id)
        super().__init__(path.stem, label_set, pages, labels, intensity=intensity, limits=limits)

    def _read_labels(self, paths: tuple) -> tuple[np.ndarray, ...]:
        path, segments = paths
        ids = read_ids(path)
        place, drawn = pd.factorize(ids.ravel(), sort=True)  # np.unique sorts all pixels
        place, listed = place.reshape(ids.shape), {segment.id: segment for segment in segments}
        for wrong, what in (
            (listed.keys() - set(drawn.tolist()), "is listed but has no pixel, expected it in the image"),
            (set(drawn.tolist()) - listed.keys() - {0}, "is drawn but not listed, expected it in the JSON"),
        ):
            if wrong:
                raise DataError(f"{path}: segment {min(wrong)} {what} ({len(wrong)} such segments)")
        found = [listed.get(i) for i in drawn.tolist()]  # None: void
        train_ids = [VOID if segment is None else self._table[segment.category_id] for segment in found]
        crowd = np.array([segment is not None and bool(segment.iscrowd) for segment in found])
        thing = is_thing(np.array(train_ids, np.uint8), self.label_set)
        single = thing & ~crowd
        numbers = (single.cumsum() * single).astype(np.int32)
        return np.array(train_ids, np.uint8)[place], numbers[place], (thing & crowd)[place]


def find_json(root: Path, split: str = "all") -> tuple[Path, bool]:
    """(JSON file in which a split is, whether it is that split and no more).

    Raises FileNotFoundError without a JSON file, DataError if several may be it.
    """
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")]) if root.is_dir() else [root]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"{root}: no JSON file, expected one in COCO panoptic format")
    found = [path for path in found if "panoptic" in path.stem] or found  # beside COCO's captions
    if len(found) == 1:
        return found[0], False
    named = [path for path in found if split in path.stem]
    if len(named) != 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{root}: found {names}, expected a single JSON file, or one named by {split!r}")
    return named[0], True


def _check_segments(path: Path, labels: Mapping[str, tuple], class_of_id: Mapping[int, str]) -> None:
    for image, (_, segments) in labels.items():
        check_once([segment.id for segment in segments], f"{path}: image {image}: segment id")
        for segment in segments:
            if segment.category_id not in class_of_id:
                where = f"{path}: image {image}: segment {segment.id}"
                known = sorted(class_of_id)
                raise DataError(f"{where}: category_id {segment.category_id}, expected one of {known}")
