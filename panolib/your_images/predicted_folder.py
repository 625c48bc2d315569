"""The folder that `predict` writes: what is there already, the files of an image, those about all images.

For each image the folder gets label images, a preview, and a record of what made them; the record is why the
same command goes on where it stopped, and why nothing of another origin is overwritten. Files are written in
a hidden folder beside and then moved, so that none is ever there in part.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from panolib.data.any_image import Page
from panolib.data.images import empty
from panolib.inference.exports import (
    file_stem,
    write_cityscapes_instances,
    write_cityscapes_semantic,
    write_coco_panoptic,
    write_coco_panoptic_json,
)
from panolib.lab.files import remove_folder, write, write_json
from panolib.labels import CITYSCAPES, LabelSet
from panolib.report.contact_sheet import contact_sheet
from panolib.study.apply import PanopticResult
from panolib.your_images.given import PredictError

RECORDS, STAGING = "records", ".writing"
KEYS = ("origin", "image", "row", "annotation", "files")  # of a record
SUMMARY, OBJECTS, PANOPTIC_JSON, SHEET = "summary.csv", "objects.csv", "panoptic.json", "contact_sheet.png"
STACKS = "stacks"
OBJECT_COLUMNS = ["image", "object", "class", "area", "centroid_y", "centroid_x", "confidence"]
N_ON_SHEET = 24


def claim(
    out: Path, pictures: Mapping[str, Page], origin: dict, overwrite: bool, label_set: LabelSet,
    digest: Callable[[Path], str],
) -> tuple[set[str], int]:  # fmt: skip
    """What a folder holds, once nothing is in the way: ids of these images whose results are whole, and how
    many other images have whole results there.

    PredictError unless what else is there may be replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(page.path.is_relative_to(os.path.abspath(out)) for page in pictures.values()):
        raise PredictError(f"--out {out}: images to predict lie there, expected another folder")
    remove_folder(out / STAGING)
    (out / STAGING).mkdir()  # a folder that cannot be written is told now
    advice = "expected another --out, or --overwrite to replace them"
    records = dict(_records(out, overwrite))
    if not records and not overwrite:
        for name in (SUMMARY, OBJECTS, PANOPTIC_JSON, SHEET, STACKS):
            if (out / name).exists():
                raise PredictError(f"{out / name}: was not written by this command, {advice}")
    for image_id, record in list(records.items()):
        differs = [name for name, value in origin.items() if record["origin"].get(name) != value]
        if differs:
            if not overwrite:
                found = ", ".join(differs).replace("scale", "scale (or diameter)")
                raise PredictError(f"{out}: holds predictions with other {found}, {advice}")
            _remove(out, image_id, records.pop(image_id))
    if overwrite:
        for image_id in _gone(records, pictures):
            _remove(out, image_id, records.pop(image_id))
    done = set()
    for image_id, page in pictures.items():
        record = records.get(image_id)
        if record is None:
            taken = [path for path in _planned(out, image_id, label_set) if path.exists()]
            if taken and not overwrite:
                raise PredictError(f"{taken[0]}: was not written by this command, {advice}")
            continue
        if record["image"] != [digest(page.path), page.number]:
            if not overwrite:
                raise PredictError(f"{out}: holds predictions of another image {image_id!r}, {advice}")
            _remove(out, image_id, record)
        elif _is_whole(out, record):
            done.add(image_id)
            if record["path"] != str(page.path):  # the same image in another place
                write_json(_record_file(out, image_id), record | {"path": str(page.path)})
    others = records.keys() - pictures.keys() - _gone(records, pictures)
    return done, sum(_is_whole(out, records[image_id]) for image_id in others)


def _gone(records: Mapping[str, dict], pictures: Mapping[str, Page]) -> set[str]:
    """Ids of results whose image is no longer there, or has another id among these pictures."""
    given = {str(page.path) for page in pictures.values()}
    return {
        image_id
        for image_id in records.keys() - pictures.keys()
        if records[image_id]["path"] in given or not Path(records[image_id]["path"]).is_file()
    }


def _record_file(out: Path, image_id: str) -> Path:
    return out / RECORDS / f"{file_stem(image_id)}.json"


def _stack_file(out: Path, image_id: str) -> Path:
    """Where the instances of a stack stand together, of which an image may be a page."""
    return out / STACKS / f"{re.sub(r'_p[0-9]{4,}$', '', file_stem(image_id))}.tif"


def _is_whole(out: Path, record: dict) -> bool:
    """Whether the files of an image are there, as long as they were, and its objects are in the record."""
    return "objects" in record and all(_size(out / name) == size for name, size in record["files"].items())


def _planned(out: Path, image_id: str, label_set: LabelSet) -> list[Path]:
    """The files of an image whose names are known before it is predicted."""
    stem = file_stem(image_id)
    names = [f"semantic/{stem}.png", f"instances/{stem}.tif", f"panoptic/{stem}_panoptic.png",
             f"previews/{stem}.png", f"{RECORDS}/{stem}.json"]  # fmt: skip
    if label_set == CITYSCAPES:
        names.append(f"cityscapes_instances/{stem}_pred.txt")
    return [out / name for name in names]


def _records(out: Path, overwrite: bool) -> Iterator[tuple[str, dict]]:
    """Id and record of all that the folder holds. PredictError for a damaged one, unless it is replaced."""
    for path in sorted((out / RECORDS).rglob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            image_id, _ = record["row"]["image"], [record[key] for key in KEYS]
        except (ValueError, KeyError, TypeError) as error:
            if not overwrite:
                raise PredictError(f"{path}: expected a record of this command, found {error!r}") from error
            path.unlink()
            continue
        yield image_id, record


def _remove(out: Path, image_id: str, record: dict) -> None:
    """Remove the results of an image and then their record."""
    for name in record["files"]:
        (out / name).unlink(missing_ok=True)
    _stack_file(out, image_id).unlink(missing_ok=True)
    _record_file(out, image_id).unlink(missing_ok=True)


def write_image(
    out: Path, image_id: str, result: PanopticResult, drawn: np.ndarray, label_set: LabelSet, record: dict
) -> None:
    """Write the files of one image, whole or not at all, and the record that they are its own."""
    staging, stem = out / STAGING, file_stem(image_id)
    write_cityscapes_semantic(staging / "semantic" / f"{stem}.png", result.semantic, label_set)
    annotation = write_coco_panoptic(
        staging / "panoptic", image_id, result.panoptic, result.segments, label_set
    )
    if label_set == CITYSCAPES:
        things = [segment for segment in result.segments if segment["isthing"]]
        write_cityscapes_instances(
            staging / "cityscapes_instances", image_id, result.instances, things, label_set
        )
    instances, previews = staging / "instances" / f"{stem}.tif", staging / "previews" / f"{stem}.png"
    for path in (instances, previews):
        path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if result.instances.max() <= np.iinfo(np.uint16).max else np.uint32
    np.copyto(ids := empty(result.instances.shape, dtype), result.instances, casting="unsafe")
    tifffile.imwrite(instances, ids, compression="zlib")
    Image.fromarray(drawn).save(previews)

    files = {path.relative_to(staging): _size(path) for path in staging.rglob("*") if path.is_file()}
    record |= {"annotation": annotation, "files": {name.as_posix(): size for name, size in files.items()}}
    # first: files that it names are ours, those that are not there yet are missing
    write_json(_record_file(out, image_id), record)
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, out / name)


def write_overview(out: Path, label_set: LabelSet, pictures: Mapping[str, Page]) -> None:
    """The four files about all images that are whole and still there; none where there is no image."""
    found = dict(_records(out, overwrite=False))
    gone = _gone(found, pictures)
    records = [record for i, record in found.items() if i not in gone and _is_whole(out, record)]
    if not records:
        for name in (SUMMARY, OBJECTS, PANOPTIC_JSON, SHEET):
            (out / name).unlink(missing_ok=True)
        return
    rows = pd.DataFrame([record["row"] for record in records])
    found = ([record["row"]["image"], *row] for record in records for row in record["objects"])
    objects = pd.DataFrame(found, columns=OBJECT_COLUMNS)
    for name, table in ((SUMMARY, rows), (OBJECTS, objects)):
        write(out / name, table.to_csv(index=False, lineterminator="\n").encode())
    _write_json(out, records, label_set)
    ids = [record["row"]["image"] for record in records]
    chosen = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, N_ON_SHEET).round().astype(int))]
    pictures = {name: np.asarray(Image.open(out / "previews" / f"{file_stem(name)}.png")) for name in chosen}
    write(out / SHEET, contact_sheet(pictures, label_set, n_images=len(ids)))


def _write_json(out: Path, records: Sequence[dict], label_set: LabelSet) -> None:
    """The COCO file: images are numbered from 1, as tools want it, and say where they came from."""
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        path, row, n_parts = Path(record["path"]), record["row"], record["row"]["image"].count("/") + 1
        images.append({
            "id": number,
            "file_name": Path(*path.parts[-n_parts:]).as_posix(),  # as far as the id says it
            "source": Path(os.path.relpath(path.parent.resolve() / path.name, out.resolve())).as_posix(),
            "page": record["image"][1] + 1,
            "height": row["height"],
            "width": row["width"],
        })  # fmt: skip
        annotations.append(record["annotation"] | {"image_id": number})
    staged = out / STAGING / PANOPTIC_JSON
    write_coco_panoptic_json(staged, annotations, label_set, images)
    os.replace(staged, out / PANOPTIC_JSON)


def write_stacks(out: Path, pictures: Mapping[str, Page]) -> None:
    """The instances of every stack in one file of as many pages, where all are written and of one size."""
    stacks: dict[Path, list[Path]] = defaultdict(list)
    files: dict[Path, Path] = {}
    for image_id, page in pictures.items():
        stacks[page.path].append(out / "instances" / f"{file_stem(image_id)}.tif")
        files[page.path] = _stack_file(out, image_id)
    for path, pages in stacks.items():
        if len(pages) == 1 or not all(page.is_file() for page in pages):
            continue
        opened = [_shape_and_dtype(page) for page in pages]
        if len({shape for shape, _ in opened}) > 1:
            continue
        dtype, staged = np.result_type(*(dtype for _, dtype in opened)), out / STAGING / "stack.tif"
        one_by_one = (tifffile.imread(page).astype(dtype) for page in pages)  # a stack may exceed memory
        tifffile.imwrite(
            staged, one_by_one, shape=(len(pages), *opened[0][0]), dtype=dtype, compression="zlib",
            photometric="minisblack", metadata={"axes": "ZYX"},  # three pages are no colours
        )  # fmt: skip
        files[path].parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, files[path])


def _shape_and_dtype(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Of the first page of a TIFF file, whose pixels are not read."""
    with tifffile.TiffFile(path) as file:
        return file.pages[0].shape, file.pages[0].dtype


def _size(path: Path) -> int:
    """Bytes of a file, -1 for none."""
    return path.stat().st_size if path.is_file() else -1
