"""``python -m panolib predict``: packaged networks on image files, one folder of results."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from tqdm import tqdm

from panolib.data.any_image import Page, is_streamed, n_pages, n_pixels, read_page
from panolib.data.images import large_arrays_in, row_strips
from panolib.data.intensity import as_colour, grey_of_one_colour
from panolib.errors import UserError
from panolib.inference.views import Views
from panolib.lab.files import check_writable, remove_folder
from panolib.lab.provenance import free_memory
from panolib.labels import VOID, LabelSet
from panolib.report.contact_sheet import preview
from panolib.study.apply import (
    TILE,
    PanopticResult,
    as_network_sees,
    load_networks,
    predict,
    scale_for,
    views_called,
    weights_file,
)
from panolib.study.packaged import PanopticNetworks, Recipe
from panolib.your_images.given import PredictError, files_of
from panolib.your_images.predicted_folder import (
    RECORDS,
    SHEET,
    STAGING,
    SUMMARY,
    claim,
    write_image,
    write_overview,
    write_stacks,
)

READING = 2  # counted up when a file is read otherwise than before; 2: one colour is grey
NEARLY_ALL = 0.9  # of the pixels: beyond, a class of objects has hardly left anything between them
BYTES, BYTES_OF_TILE = 27, 600  # of memory for a pixel: of an image, and of the tile that networks look at
HELD, HELD_STREAMED = 18, 5  # of these, what stays in memory where arrays stand on disk (`is_streamed`)
ONE_COLOUR = "of one colour, read as grey"
FULLER = "fuller of objects than any labelled image that taught the networks"


def predict_files(
    images: Sequence[str], weights: str, out: Path, *, overwrite: bool = False, scale: float | None = None,
    diameter: float | None = None, tile: int = TILE, views: str | None = None,
) -> list[str]:  # fmt: skip
    """Write what networks say about image files.

    The folder gets `semantic/*.png` (class ids of the official files), `instances/*.tif` (uint16, or uint32
    beyond 65535 objects), `panoptic/*.png` with `panoptic.json` (COCO; ids of things are those of the
    instances), `cityscapes_instances/` where the classes are those of Cityscapes, `previews/*.png`,
    `records/*.json`, `summary.csv`, `objects.csv` and `contact_sheet.png`. `panoptic.json` and the last three
    are about all images that the folder holds and that are still where they were. The readers `CocoPanoptic`
    and `Folders` open the folder. `notes` in the summary says which images are of one colour and read as
    grey, and which ones are fuller of objects than what taught the networks. The pages of a stack are images
    of their own, numbered from 1; their instances stand together in `stacks/*.tif`, too (ids of one page are
    not those of the next).

    `images` are files, folders (not what lies in folders below) and patterns such as "plate/**/*.tif"; `out`
    is a folder that none of them lies in. `weights`, `scale`, `diameter`, `tile` and `views` are as in
    `panolib.predict`. What is there and is not of these images, weights and settings is an error, or replaced
    to `overwrite` it, which also removes the results of images that are gone.

    Returns a line for each image that could not be read or predicted; the others are written. Raises
    PredictError for no image, one that is not there, and results of other origin; UserError or OSError for
    weights that are none, and a folder or disk that cannot be written.
    """
    check_writable(out)
    file = weights_file(weights)
    pictures, broken = find_pictures(images)
    networks = load_networks(file).seeing(views_called(views))
    scale = scale_for(networks.recipe, scale, diameter)
    if scale is not None:
        least = networks.recipe.min_size * (networks.recipe.instance.output_stride / scale) ** 2
        left_out = f"most objects whose area in the image is below about {least:.0f} pixels are left out"
        print(f"images are resized by {scale:.2f}; {left_out}")
    origin = {"weights": _digest(file), "scale": scale, "tile": tile, "reading": READING, "views": views}
    digest = functools.cache(_digest)  # a stack is read once
    try:
        done, n_others = claim(out, pictures, origin, overwrite, networks.label_set, digest)
        if n_others:
            print(f"other images in {out}: {n_others}; its tables and its contact sheet are of all")
        left = {image_id: page for image_id, page in pictures.items() if image_id not in done}
        bar = tqdm(left.items(), total=len(pictures), initial=len(done), unit="image", disable=not left)
        for image_id, page in bar:
            problem = _predict_one(image_id, page, networks, scale, tile, out, origin, digest)
            broken += [] if problem is None else [problem]
        write_overview(out, networks.label_set, pictures)
        write_stacks(out, pictures)
    finally:
        remove_folder(out / STAGING)
    return broken


def _predict_one(
    image_id: str, page: Page, networks: PanopticNetworks, scale: float | None, tile: int, out: Path,
    origin: dict, digest: Callable[[Path], str],
) -> str | None:  # fmt: skip
    """Predict and write one image, whose arrays are then gone. Returns why it could not be predicted."""
    with contextlib.ExitStack() as arrays:
        try:
            if not _fits(page, scale or 1.0, tile, out, networks.recipe.views or Views()):
                arrays.enter_context(large_arrays_in(out))
            image, result, row = _predicted(page, networks, scale, tile)
            record = {"origin": origin, "image": [digest(page.path), page.number], "path": str(page.path)}
        except (UserError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            return f"{image_id}: {str(error) or type(error).__name__}"
        record |= {"row": {"image": image_id} | row, "objects": _object_rows(result)}
        drawn = preview(as_network_sees(image, networks.recipe), result, networks.label_set)
        write_image(out, image_id, result, drawn, networks.label_set, record)
    return None


def _predicted(
    page: Page, networks: PanopticNetworks, scale: float | None, tile: int
) -> tuple[np.ndarray, PanopticResult, dict]:
    """An image, what is predicted, and its line of the summary but for its id."""
    began = time.monotonic()
    stored = read_page(page.path, page.number)
    seen = grey_of_one_colour(stored)
    image = as_colour(seen, page.path)
    result = predict(image, networks, scale=scale, tile=tile)
    notes = [ONE_COLOUR] if seen.ndim < stored.ndim else []
    row = _summary_row(result, networks.label_set, time.monotonic() - began)
    notes += _full_notes(row, networks.recipe)
    return image, result, row | {"notes": "; ".join(notes)}


def _fits(page: Page, scale: float, tile: int, out: Path, views: Views) -> bool:
    """Whether an image and its maps fit into the memory that is free; if not, they do on the disk of `out`.

    PredictError for an image that fits nowhere, before it is read.
    """
    n = n_pixels(page.path, page.number)
    whole = n * max(1.0, scale) ** 2 * BYTES
    of_tile = min(n * scale**2, tile**2) * max(1.0, *views.scales) ** 2 * BYTES_OF_TILE
    free = free_memory() * 2**20
    if not whole + of_tile > free:
        return True
    held = n * (HELD_STREAMED if is_streamed(page.path, page.number) else HELD) + of_tile
    wanted = (held, free, "memory"), (whole, shutil.disk_usage(out).free, f"disk in {out}")
    if _is_in_memory(out):
        wanted = ((whole + of_tile, free, "memory"),)
    for need, there, where in wanted:
        if need > there:
            raise PredictError(
                f"{page}: {n / 1e6:.0f} million pixels need about {need / 2**30:.1f} GB of {where}, "
                f"{there / 2**30:.1f} GB are free; expected a smaller image, or one that is cut into parts"
            )
    return False


def _is_in_memory(folder: Path) -> bool:
    """Whether the files of a folder are kept in memory, as those of /tmp on some systems."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    folder = folder.resolve()
    return next((mounts[at] for at in (folder, *folder.parents) if at in mounts), "") in ("tmpfs", "ramfs")


def find_pictures(images: Sequence[str]) -> tuple[dict[str, Page], list[str]]:
    """The images that arguments name, by id, and a line for each file whose pages cannot be counted.

    An id is the path below the folder that all files share, without its suffix unless another file differs by
    that alone; pages of a stack have their number added.

    Raises PredictError for an argument that leads to no image.
    """
    files = sorted({Path(os.path.abspath(path)) for argument in images for path in files_of(argument)})
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


def _summary_row(result: PanopticResult, label_set: LabelSet, seconds: float) -> dict:
    """A line of summary.csv but for its notes: areas in pixels, shares of all pixels."""
    areas = [segment["area"] for segment in result.segments if segment["isthing"]]
    strips = (result.semantic[rows].ravel() for rows in row_strips(result.semantic.shape))
    shares = sum(np.bincount(strip, minlength=VOID + 1) for strip in strips) / result.semantic.size
    height, width = result.semantic.shape
    row = {"height": height, "width": width, "objects": len(areas)}
    row |= {f"share of {name}": round(float(share), 5) for name, share in zip(label_set.classes, shares)}
    row |= {"median_object_area": float(np.median(areas)) if areas else None}
    row |= {"mean_confidence": round(float(result.confidence.mean()), 4), "seconds": round(seconds, 2)}
    return row


def _full_notes(row: Mapping, recipe: Recipe) -> list[str]:
    """What a line of the summary says of images that are full of objects, as those of another kind may be."""
    things = {name: row[f"share of {name}"] for name in recipe.label_set.things}
    if recipe.share is not None:
        return [FULLER] if sum(things.values()) > recipe.share else []
    return [f"nearly all {name}" for name, share in things.items() if share > NEARLY_ALL]


def _digest(path: Path) -> str:
    """What a file holds, in 32 letters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _object_rows(result: PanopticResult) -> list[list]:
    """Values of `OBJECT_COLUMNS` but the image: ids are those in the TIFF, areas and places are in pixels."""
    objects = [segment for segment in result.segments if segment["isthing"]]
    areas = np.array([segment["area"] for segment in objects])
    sums = np.zeros((2, len(objects) + 1))
    for rows in row_strips(result.instances.shape):
        ids = result.instances[rows]
        places = np.indices(ids.shape)
        places[0] += rows.start
        for total, place in zip(sums, places):
            total += np.bincount(ids.ravel(), place.ravel(), minlength=len(total))
    centroids = (sums[:, 1:] / areas).round(2).T.tolist()
    return [
        [segment["id"], segment["category"], segment["area"], *centroid, round(segment["confidence"], 4)]
        for segment, centroid in zip(objects, centroids)
    ]


def report(broken: Sequence[str], out: Path) -> int:
    """Print what was written where, and what was not. Returns the exit status, 1 if an image is broken."""
    n_images, notes = _notes(out)
    look = f"; look at {out / SHEET}, {out / SUMMARY}" if n_images else ""
    print(f"{n_images} image{'s' * (n_images != 1)} in {out}{look}")
    n_left_out = sum(1 for _ in (out / RECORDS).rglob("*.json")) - n_images
    if n_left_out:
        print(
            f"{n_left_out} results left out there: their image is gone or has another name, or they lack "
            "files; --overwrite removes those of images that are gone"
        )
    if ONE_COLOUR in notes:
        print(notes[ONE_COLOUR])
    for line in full_warnings(out):
        print(f"warning: {line}", file=sys.stderr)
    for line in broken:
        print(f"not predicted: {line}", file=sys.stderr)
    return 1 if broken else 0


def full_warnings(out: Path) -> list[str]:
    """That images of a folder of `predict_files` are fuller of objects than what taught the networks."""
    advice = "it may show other things; look at the previews before you use its numbers"
    return [f"{line}: {advice}" for note, line in _notes(out)[1].items() if note != ONE_COLOUR]


def _notes(out: Path) -> tuple[int, dict[str, str]]:
    """Of the summary: how many images it has, and a line for each of their notes."""
    if not (out / SUMMARY).is_file():
        return 0, {}
    table = pd.read_csv(out / SUMMARY, dtype=str, keep_default_na=False)
    notes = table.set_index("image")["notes"].str.split("; ").explode()
    lines = {}
    for note, noted in notes[notes != ""].groupby(notes):
        are = "is" if len(noted) == 1 else "are"
        lines[note] = f"{len(noted)} of {len(table)} images {are} {note}, the first is {noted.index[0]}"
    return len(table), lines
