"""Any folder of images, with label images whose values are the objects: what StarDist and Cellpose read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from panolib.data.any_image import IMAGES, Page, n_pages
from panolib.data.errors import DataError
from panolib.data.folders import FolderSet, by_name, check_pairs, is_thing, split_by_hash
from panolib.data.images import read_indices
from panolib.data.intensity import STRETCHED, Intensity, Limits, check_depth, percentiles_of, to_rgb
from panolib.data.readers.coco_json import image_pages, read_json
from panolib.labels import OBJECTS, LabelSet

MASK_FOLDERS = ("masks", "labels")
MASK_ENDINGS = ("_cp_masks", "_masks")
PREDICTED = "panoptic.json", "instances"  # in a folder that `predict` wrote
LOSSY = (".jpg", ".jpeg", ".webp")
LARGEST = 2**31 - 1  # of ids in a file
MANY = 2**16  # larger ids are renumbered: tables by id would be as long
EXPECTED = f"images ({', '.join(IMAGES)}) in images/ or in the folder itself"


class PagedSet(FolderSet):
    """Samples whose images are pages of files of any kind and bit depth.

    `limits` become black and white in all images; None where each image has its own.
    """

    def __init__(
        self,
        name: str,
        label_set: LabelSet,
        images: Mapping[str, Page],
        labels: Mapping[str, tuple] | None,
        *,
        intensity: Intensity | None,
        limits: Limits | None = None,
    ):
        super().__init__(name, label_set, images, images, labels, has_instances=True)
        self.intensity, self.limits = intensity, limits
        if intensity is not None and intensity.over == "set" and limits is None:
            raw = (check_depth(page.read(), page) for page in self._images)
            self.limits = percentiles_of(raw, intensity.percentiles)

    def raw(self, index: int) -> np.ndarray:
        """The image as it is in its file, [H, W] or [H, W, 3]."""
        return self._images[index].read()

    def _read_image(self, path: Page) -> np.ndarray:
        return to_rgb(path.read(), path, self.intensity, self.limits)


class Folders(PagedSet):
    """Images of any kind with label images: 0 is background, every other value one object.

    images/X.png with masks/X.tif (also labels/, and X_masks or X_cp_masks in there); or all in one folder,
    beside image X its X_masks.tif or X_cp_masks.png. Suffixes may differ. Every page of a stack is a sample,
    X/0001, X/0002 ..., and its masks are a stack as long.

    Two classes, one stuff and one thing, need no more. With others, classes/X.png says the class of every
    pixel (`LabelSet.file_ids`); masks are then optional: things without are crowd.

    Also a folder that `predict` wrote, whose objects are instances/X.tif for every image or page X. Images
    are where they were then, seen from there. (More than two classes of it are for `CocoPanoptic`.) In either
    case they may lie in another folder, `images`.

    `split` "train" or "val" is the folder of that name, if there is one; else a fifth of the files, chosen by
    the hash of their names, is "val". "all": the folder as it is. `with_labels` False never opens a label.
    `intensity` None takes 8-bit images as they are; `limits` (floor, ceiling) of one over the "set" are by
    default those of this split.

    Schmidt et al. 2018, arXiv:1806.03535 (StarDist); Stringer et al. 2021, doi:10.1038/s41592-020-01018-x.
    """

    def __init__(
        self,
        root: Path,
        split: str = "all",
        *,
        label_set: LabelSet = OBJECTS,
        with_labels: bool = True,
        intensity: Intensity | None = STRETCHED,
        limits: Limits | None = None,
        images: Path | str | None = None,
    ):
        folder = Path(root)
        if split != "all" and (folder / split).is_dir():
            folder, split = folder / split, "all"
        predicted = _predicted_pages(folder, images)
        files = image_files(folder if images is None else Path(images)) if predicted is None else predicted
        stems = split_by_hash(files, split, folder)
        pages = _pages(stems, files) if predicted is None else {i: predicted[i] for i in stems}
        labels = masks = None
        if with_labels:
            table = dict(zip(label_set.file_ids, label_set.classes))
            self.class_of_id = {label_set.void_file_id: None, **table}
            masks, classes = mask_files(folder), _listed(folder / "classes")
            if predicted is not None:
                masks, classes = {i: folder / PREDICTED[1] / f"{i}.tif" for i in predicted}, None
            _check_labels(folder, files, masks, classes, label_set)
            found = [
                _paired(pages, files, stems, folder, kind)
                for kind, files in (("mask", masks), ("class image", classes))
            ]
            labels = {i: tuple(of_kind[i] for of_kind in found) for i in pages}
        super().__init__(Path(root).name, label_set, pages, labels, intensity=intensity, limits=limits)
        self.has_instances = masks is not None

    def _read_labels(self, paths: tuple) -> tuple[np.ndarray, ...]:
        mask, classes = paths
        instance = None if mask is None else read_mask(mask)
        if classes is None:
            ids = np.array([*self.label_set.stuff_ids, *self.label_set.thing_ids], np.uint8)
            return ids[(instance > 0).astype(int)], instance, np.zeros(instance.shape, bool)
        semantic = self.train_ids(read_mask(classes), classes.path)
        thing = is_thing(semantic, self.label_set)
        if instance is None:
            return semantic, np.zeros(semantic.shape, np.int32), thing
        if instance.shape != semantic.shape:
            raise DataError(f"{mask}: mask of {instance.shape}, expected {semantic.shape} as {classes}")
        self._check_objects(semantic, instance, mask)
        return semantic, np.where(thing, instance, 0), thing & (instance == 0)

    def _check_objects(self, semantic: np.ndarray, instance: np.ndarray, mask: Page) -> None:
        """Raise DataError for an object that is not of one thing class; void does not count."""
        class_of: dict[int, str] = {}
        inside = (instance > 0) & (semantic < self.label_set.n_classes)
        for pair in np.unique(instance[inside].astype(np.int64) * 256 + semantic[inside]).tolist():
            number, name = pair // 256, self.label_set.classes[pair % 256]
            if name not in self.label_set.things or number in class_of:
                found = [class_of[number], name] if number in class_of else name
                raise DataError(f"{mask}: object {number} of class {found}, expected one thing class")
            class_of[number] = name


def image_files(folder: Path) -> dict[str, Path]:
    """{stem: image} of a folder in one of the layouts of `Folders`, without its masks."""
    images = {i: path for i, path in _with_images(folder).items() if _image_of(i) == i}
    if not images:
        found = "no such folder" if not folder.is_dir() else "no image"
        raise (DataError if folder.is_dir() else FileNotFoundError)(f"{folder}: {found}, expected {EXPECTED}")
    return images


def mask_files(folder: Path) -> dict[str, Path] | None:
    """{stem of the image: mask}; None where there are no masks."""
    inside = next((folder / name for name in MASK_FOLDERS if (folder / name).is_dir()), None)
    if inside is not None:
        masks = _listed(inside)
    else:
        masks = {i: path for i, path in _with_images(folder).items() if _image_of(i) != i}
    return by_name((_image_of(i), path) for i, path in masks.items()) or None


def read_mask(page: Page) -> np.ndarray:
    """int32 [H, W] of a label image of whole numbers, 0 .. 2**31 - 1; palettes give their indices."""
    suffix = page.path.suffix.lower()
    if suffix in LOSSY:
        raise DataError(f"{page}: mask as {suffix}, which changes values; expected PNG or TIFF")
    if suffix == ".png" and page.path.read_bytes()[24:26] != b"\x10\x00":  # not grey of 16 bits
        return read_indices(page.path).astype(np.int32)
    mask = page.read(as_stored=True)
    if mask.ndim != 2:
        raise DataError(f"{page}: mask with {mask.shape[2]} channels, expected one")
    if mask.dtype.kind not in "iub":
        raise DataError(f"{page}: mask of {mask.dtype}, expected whole numbers (8, 16 or 32 bits)")
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > LARGEST:
        found = low if low < 0 else high
        raise DataError(f"{page}: mask with value {found}, expected 0 (background) .. {LARGEST}")
    if high > MANY:
        values, place = np.unique(mask, return_inverse=True)
        mask = place.reshape(mask.shape) + (values[0] > 0)
    return mask.astype(np.int32)


def _image_of(stem: str) -> str:
    """The stem of the image of a mask; that of an image is itself."""
    for ending in MASK_ENDINGS:
        if stem.endswith(ending):
            return stem.removesuffix(ending)
    return stem


def _with_images(folder: Path) -> dict[str, Path]:
    """{stem: file} of what lies where the images are."""
    return _listed(folder / "images" if (folder / "images").is_dir() else folder) or {}


def _listed(folder: Path) -> dict[str, Path] | None:
    """{stem: image file} of a folder in name order; None without the folder."""
    if not folder.is_dir():
        return None
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return by_name((path.stem, path) for path in paths if path.suffix.lower() in IMAGES)


def _predicted_pages(folder: Path, images: Path | str | None) -> dict[str, Page] | None:
    """{stem of the instances: page of the image} of what `predict` wrote; None for another folder."""
    path, instances = (folder / name for name in PREDICTED)
    if not (path.is_file() and instances.is_dir()):
        return None
    content = read_json(path)
    file_of = {row.image_id: row.file_name for row in content.annotations}
    check_pairs([image.id for image in content.images], file_of, path, "annotation")
    names = [file_of[image.id].removesuffix("_panoptic.png") for image in content.images]
    return dict(zip(names, image_pages(path, content.images, images)))


def _pages(stems: Iterable[str], files: Mapping[str, Path]) -> dict[str, Page]:
    """{sample id: page} of files; the pages of a stack are numbered from 1.

    A damaged file has one page: reading it says what is wrong, and the others can be read.
    """
    pages = {}
    for stem in stems:
        n = 1
        with contextlib.suppress(DataError):
            n = n_pages(files[stem])
        for i in range(n):
            pages[stem if n == 1 else f"{stem}/{i + 1:04d}"] = Page(files[stem], i)
    return pages


def _paired(
    pages: Mapping[str, Page], files: Mapping[str, Path] | None, stems: Iterable[str], folder: Path, kind: str
) -> Mapping[str, Page | None]:
    """{sample id: page of its label}; None for each where there are no such files."""
    if files is None:
        return dict.fromkeys(pages)
    found = _pages(stems, files)
    check_pairs(pages, found, folder, kind)
    return found


def _check_labels(
    folder: Path, images: Mapping, masks: Mapping | None, classes: Mapping | None, label_set: LabelSet
) -> None:
    """Raise unless every image has its labels and these say all that the label set needs."""
    if masks is None and classes is None:
        expected = f"masks/X, or X_masks.tif or X_cp_masks.png beside image X; {len(images)} images are there"
        raise FileNotFoundError(f"{folder}: no masks, expected {expected}")
    if classes is None and (len(label_set.thing_ids), len(label_set.stuff_ids)) != (1, 1):
        raise FileNotFoundError(
            f"{folder / 'classes'}: no such folder, expected the class of every pixel, as the label set "
            f"{label_set.name!r} has more than one thing and one stuff class"
        )
    for kind, files in (("mask", masks), ("class image", classes)):
        if files is not None:
            check_pairs(images, files, folder, kind)
