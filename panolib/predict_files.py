"""``python -m panolib predict``: packaged networks on image files, one folder of results.

For each image the folder gets label images, a preview, and a record of what made them; the record is why the
same command goes on where it stopped, and why nothing of another origin is overwritten. Files are written in
a hidden folder beside and then moved, so that none is ever there in part.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from tqdm import tqdm

from panolib.data.any_image import IMAGES, Page, n_pages, read_page
from panolib.data.intensity import as_colour, grey_of_one_colour
from panolib.errors import UserError
from panolib.inference.exports import (
    file_stem,
    write_cityscapes_instances,
    write_cityscapes_semantic,
    write_coco_panoptic,
    write_coco_panoptic_json,
)
from panolib.lab.files import check_writable, remove_folder, write, write_json
from panolib.labels import CITYSCAPES, VOID, LabelSet
from panolib.report.contact_sheet import contact_sheet, preview
from panolib.study.apply import TILE, PanopticResult, as_network_sees, load_networks, predict, weights_file

RECORDS, STAGING = "records", ".writing"
KEYS = ("origin", "image", "row", "annotation", "files")  # of a record
SUMMARY, PANOPTIC_JSON, SHEET = "summary.csv", "panoptic.json", "contact_sheet.png"
STACKS = "stacks"
N_ON_SHEET = 24
READING = 2  # counted up when a file is read otherwise than before; 2: one colour is grey
NEARLY_ALL = 0.9  # of the pixels: beyond, a class of objects has hardly left anything between them
ONE_COLOUR = "of one colour, read as grey"


class PredictError(UserError, ValueError):
    """Images or a folder of results with which `predict` cannot begin."""


def predict_files(
    images: Sequence[str], weights: str, out: Path, *, overwrite: bool = False, scale: float | None = None,
    tile: int = TILE,
) -> list[str]:  # fmt: skip
    """Write what networks say about image files.

    The folder gets `semantic/*.png` (class ids of the official files), `instances/*.tif` (uint16, or uint32
    beyond 65535 objects), `panoptic/*.png` with `panoptic.json` (COCO; ids of things are those of the
    instances), `cityscapes_instances/` where the classes are those of Cityscapes, `previews/*.png`,
    `records/*.json`, `summary.csv` and `contact_sheet.png`. `panoptic.json` and the last two are about all
    images that the folder holds and that are still where they were. `notes` in the summary says which images
    are of one colour and read as grey, and which ones are nearly all objects. The pages of a stack are images
    of their own, numbered from 1; their instances stand together in `stacks/*.tif`, too (ids of one page are
    not those of the next).

    `images` are files, folders (not what lies in folders below) and patterns such as "plate/**/*.tif"; `out`
    is a folder that none of them lies in. `weights`, `scale` and `tile` are as in `panolib.predict`. What is
    there and is not of these images, weights and settings is an error, or replaced to `overwrite` it, which
    also removes the results of images that are gone.

    Returns a line for each image that could not be read or predicted; the others are written. Raises
    PredictError for no image, one that is not there, and results of other origin; UserError or OSError for
    weights that are none, and a folder or disk that cannot be written.
    """
    check_writable(out)
    file = weights_file(weights)
    networks = load_networks(file)
    pictures, broken = find_pictures(images)
    origin = {"weights": _digest(file), "scale": scale, "tile": tile, "reading": READING}
    digest = functools.cache(_digest)  # a stack is read once
    try:
        done = _claim(out, pictures, origin, overwrite, networks.label_set, digest)
        left = {image_id: page for image_id, page in pictures.items() if image_id not in done}
        bar = tqdm(left.items(), total=len(pictures), initial=len(done), unit="image", disable=not left)
        for image_id, page in bar:
            try:
                began = time.monotonic()
                stored = read_page(page.path, page.number)
                seen = grey_of_one_colour(stored)
                image = as_colour(seen, page.path)
                result = predict(image, networks, scale=scale, tile=tile)
                seconds = time.monotonic() - began
            except (UserError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
                broken.append(f"{image_id}: {str(error) or type(error).__name__}")
                continue
            record = {"origin": origin, "image": [digest(page.path), page.number], "path": str(page.path)}
            notes = [ONE_COLOUR] if seen.ndim < stored.ndim else []
            record["row"] = _summary_row(image_id, result, networks.label_set, seconds, notes)
            drawn = preview(as_network_sees(image, networks.recipe), result, networks.label_set)
            _write_image(out, image_id, result, drawn, networks.label_set, record)
        _write_overview(out, networks.label_set, pictures)
        _write_stacks(out, pictures)
    finally:
        remove_folder(out / STAGING)
    return broken


def find_pictures(images: Sequence[str]) -> tuple[dict[str, Page], list[str]]:
    """The images that arguments name, by id, and a line for each file whose pages cannot be counted.

    An id is the path below the folder that all files share, without its suffix unless another file differs by
    that alone; pages of a stack have their number added.

    Raises PredictError for an argument that leads to no image.
    """
    files = sorted({Path(os.path.abspath(path)) for argument in images for path in _files_of(argument)})
    shared = os.path.commonpath([path.parent for path in files])
    names = {path: path.relative_to(shared) for path in files}
    stems = Counter(name.with_suffix("") for name in names.values())
    pictures: dict[str, Page] = {}
    broken = []
    for path, name in names.items():
        stem = (name if stems[name.with_suffix("")] > 1 else name.with_suffix("")).as_posix()
        try:
            n_found = n_pages(path)
        except (UserError, OSError) as error:
            broken.append(f"{stem}: {error}")
            continue
        for number in range(n_found):
            image_id = f"{stem}_p{number + 1:04d}" if n_found > 1 else stem
            if image_id in pictures:
                both = f"{pictures[image_id].path} and {path}"
                raise PredictError(f"{both}: both would be written as {image_id!r}, expected different names")
            pictures[image_id] = Page(path, number)
    return pictures, broken


def _files_of(argument: str) -> list[Path]:
    """Image files of one argument: a file, a folder or a pattern."""
    path, expected = Path(argument), f"expected images whose names end in {', '.join(IMAGES)}"
    if path.is_dir():
        found = [item for item in path.iterdir() if not item.name.startswith(".")]
    elif path.is_file() or not glob.has_magic(argument):
        if not path.is_file():
            raise PredictError(f"{path}: no such file or folder, {expected}")
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(argument, recursive=True)]
    files = [item for item in found if item.suffix.lower() in IMAGES and not item.is_dir()]
    if not files:
        raise PredictError(f"{argument}: holds no image ({len(found)} other files), {expected}")
    return files


def _claim(
    out: Path, pictures: Mapping[str, Page], origin: dict, overwrite: bool, label_set: LabelSet,
    digest: Callable[[Path], str],
) -> set[str]:  # fmt: skip
    """Ids of the images whose results are whole and of this origin, once nothing else is in the way.

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
        for name in (SUMMARY, PANOPTIC_JSON, SHEET, STACKS):
            if (out / name).exists():
                raise PredictError(f"{out / name}: was not written by this command, {advice}")
    for image_id, record in list(records.items()):
        if record["origin"] != origin:
            if not overwrite:
                differs = [name for name, value in origin.items() if record["origin"].get(name) != value]
                raise PredictError(f"{out}: holds predictions with other {', '.join(differs)}, {advice}")
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
    return done


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
    """Whether the files of an image are there, as long as they were."""
    return all(_size(out / name) == size for name, size in record["files"].items())


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


def _write_image(
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
    tifffile.imwrite(instances, result.instances.astype(dtype), compression="zlib")
    Image.fromarray(drawn).save(previews)

    files = {path.relative_to(staging): _size(path) for path in staging.rglob("*") if path.is_file()}
    record |= {"annotation": annotation, "files": {name.as_posix(): size for name, size in files.items()}}
    path = _record_file(out, image_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)  # first: files that it names are ours, those that are not there yet are missing
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, out / name)


def _summary_row(
    image_id: str, result: PanopticResult, label_set: LabelSet, seconds: float, notes: Sequence[str]
) -> dict:
    """One line of summary.csv: areas in pixels, shares of all pixels; the notes, and one on many objects."""
    areas = [segment["area"] for segment in result.segments if segment["isthing"]]
    shares = np.bincount(result.semantic.ravel(), minlength=VOID + 1) / result.semantic.size
    height, width = result.semantic.shape
    row = {"image": image_id, "height": height, "width": width, "objects": len(areas)}
    row |= {f"share of {name}": round(float(share), 5) for name, share in zip(label_set.classes, shares)}
    row |= {"median_object_area": float(np.median(areas)) if areas else None}
    row |= {"mean_confidence": round(float(result.confidence.mean()), 4), "seconds": round(seconds, 2)}
    full = [f"nearly all {label_set.classes[k]}" for k in label_set.thing_ids if shares[k] > NEARLY_ALL]
    return row | {"notes": "; ".join([*notes, *full])}


def _write_overview(out: Path, label_set: LabelSet, pictures: Mapping[str, Page]) -> None:
    """The three files about all images that are whole and still there; none where there is no image."""
    found = dict(_records(out, overwrite=False))
    gone = _gone(found, pictures)
    records = [record for i, record in found.items() if i not in gone and _is_whole(out, record)]
    if not records:
        for name in (SUMMARY, PANOPTIC_JSON, SHEET):
            (out / name).unlink(missing_ok=True)
        return
    text = pd.DataFrame([record["row"] for record in records]).to_csv(index=False, lineterminator="\n")
    write(out / SUMMARY, text.encode())
    staged = out / STAGING / PANOPTIC_JSON
    write_coco_panoptic_json(staged, [record["annotation"] for record in records], label_set)
    os.replace(staged, out / PANOPTIC_JSON)
    ids = [record["row"]["image"] for record in records]
    chosen = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, N_ON_SHEET).round().astype(int))]
    pictures = {name: np.asarray(Image.open(out / "previews" / f"{file_stem(name)}.png")) for name in chosen}
    write(out / SHEET, contact_sheet(pictures, label_set, n_images=len(ids)))


def _write_stacks(out: Path, pictures: Mapping[str, Page]) -> None:
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


def _digest(path: Path) -> str:
    """What a file holds, in 32 letters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _size(path: Path) -> int:
    """Bytes of a file, -1 for none."""
    return path.stat().st_size if path.is_file() else -1


def report(broken: Sequence[str], out: Path) -> int:
    """Print what was written where, and what was not. Returns the exit status, 1 if an image is broken."""
    n_images, notes = 0, pd.Series(dtype=object)
    if (out / SUMMARY).is_file():
        table = pd.read_csv(out / SUMMARY, dtype=str, keep_default_na=False)
        n_images, notes = len(table), table.set_index("image")["notes"].str.split("; ").explode()
    print(f"{n_images} images in {out}" + (f"; look at {out / SHEET}, {out / SUMMARY}" if n_images else ""))
    n_left_out = sum(1 for _ in (out / RECORDS).rglob("*.json")) - n_images
    if n_left_out:
        print(
            f"{n_left_out} results left out there: their image is gone or has another name, or they lack "
            "files; --overwrite removes those of images that are gone"
        )
    for note, of_note in notes[notes != ""].groupby(notes):
        line = f"{len(of_note)} of {n_images} images are {note}, the first is {of_note.index[0]}"
        if note == ONE_COLOUR:
            print(line)
        else:
            print(f"warning: {line}: look at the previews before you use its numbers", file=sys.stderr)
    for line in broken:
        print(f"not predicted: {line}", file=sys.stderr)
    return 1 if broken else 0
