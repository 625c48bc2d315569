"""Predictions as the files that the official tools score: Cityscapes and COCO panoptic formats.

An image id becomes the path of its files: its folders stay folders, what a file system cannot hold is
written as %XX (`file_stem`). A value that a format cannot hold is one `ExportError`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pandas as pd
import scipy  # loads its parts when they are used

from panolib.data.images import look_up, row_strips, write_png
from panolib.errors import UserError
from panolib.labels import VOID, LabelSet

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_COCO_ID = 2**24 - 1  # three bytes: R + 256 G + 65536 B
LARGEST_ID = 2**63 - 1

# what Windows or Linux cannot hold in a name, ends of a name that are hidden or dropped, device names
_UNSAFE = re.compile(
    r"""[%\\:*?"<>|\x00-\x1f\x7f]|^\.|[. ]\Z|^(?:con|prn|aux|nul|com\d|lpt\d)(?=\.|\Z)""", re.IGNORECASE
)


class ExportError(UserError, ValueError):
    """A value that an official format cannot hold."""


def file_stem(image_id: str) -> str:
    """Relative path of the files of an image, without their suffixes.

    "/" separates folders. Characters that a file system may refuse become %XX, also "%" itself, so that
    different ids have different files and `urllib.parse.unquote` gives the id back. The path never leaves
    the folder to which it is joined: ".." becomes "%2E%2E". Spaces and letters of all alphabets stay,
    because the official tools look for files by the name of the image.

    An empty id, or an empty part such as the one before the first "/" of an absolute path, is an ExportError.
    """
    if not all(image_id.split("/")):
        raise ExportError(
            f"image id {image_id!r}: expected a name, or names that a single '/' joins; it becomes a file"
        )

    def percent(match: re.Match) -> str:
        return "".join(f"%{ord(character):02X}" for character in match[0])

    return "/".join(_UNSAFE.sub(percent, part) for part in image_id.split("/"))


def write_cityscapes_semantic(
    path: Path | str, semantic_labels: Tensor | np.ndarray, label_set: LabelSet
) -> Path:
    """8-bit PNG of the label ids of the data set (not train ids), for the pixel-level tool.

    `semantic_labels` are train ids, integers [H, W]; 255 is void and becomes `label_set.void_file_id`. A
    train id that the label set does not have is an ExportError.
    """
    path = Path(path)
    semantic = _as_ids(semantic_labels, str(path))
    for rows in row_strips(semantic.shape):
        part = semantic[rows]
        known = (part >= 0) & (part < label_set.n_classes) | (part == VOID)
        if not known.all():
            raise ExportError(
                f"{path}: train id {part[~known][0]}, expected 0 .. {label_set.n_classes - 1} of "
                f"{label_set.name} or {VOID} for void"
            )
    write_png(path, look_up(label_set.file_id_table(), semantic.astype(np.uint8, copy=False)))
    return path


def write_cityscapes_instances(
    folder: Path | str,
    image_id: str,
    instance_labels: Tensor | np.ndarray,
    table: Sequence[Mapping],
    label_set: LabelSet,
) -> Path:
    """Masks and text file of one image for the Cityscapes instance-level tool.

    The text file, whose path is returned, has a line "mask, label id, confidence" per instance. It lists
    masks by names without spaces, which separate its columns: a space of the image id is %20 there.

    Parameters
    ----------
    folder : path
        Gets `{image_id}_pred.txt` and beside it `masks/{image_id}_{id}.png`; folders of the id are created.
    image_id : str
        `{city}_{sequence}_{frame}` for Cityscapes; see `file_stem`.
    instance_labels : integer Tensor or array [H, W]
        0 = no instance.
    table : sequence of mappings
        `id`, `category_id` (train id) and `confidence` of every instance, as of `predict_instances`.

    Raises ExportError unless map and table hold the same ids, each once and from 1 on, and for an unknown
    category.
    """
    where = f"image {image_id!r}"
    path = Path(folder) / f"{file_stem(image_id)}_pred.txt"
    labels = _as_ids(instance_labels, where)
    _check_segments(_drawn(labels), table, label_set, where, LARGEST_ID)
    stem = quote(path.name.removesuffix("_pred.txt"), safe="%", errors="surrogateescape")
    lines = []
    for row in table:
        name = f"masks/{stem}_{int(row['id'])}.png"
        write_png(path.parent / name, (labels == row["id"]).astype(np.uint8) * 255)
        digits = np.format_float_positional(row["confidence"], min_digits=6)  # no two become equal
        lines.append(f"{name} {label_set.file_ids[row['category_id']]} {digits}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="ascii", newline="\n")
    return path


def write_coco_panoptic(
    folder: Path | str,
    image_id: str,
    panoptic_map: Tensor | np.ndarray,
    segments_info: Sequence[Mapping],
    label_set: LabelSet,
) -> dict:
    """PNG of one image in COCO panoptic format (id = R + 256 G + 65536 B), named `{image_id}_panoptic.png`.

    Folders of the image id (`file_stem`) are created. `panoptic_map` is integer [H, W], 0 for void, else the
    id of a segment, at most 2**24 - 1; `segments_info` has `id`, `category_id` (train id) and, optional,
    `iscrowd` of each. Areas are counted.

    Returns its entry for `write_coco_panoptic_json`, with the class ids of the data set's files as
    categories; `file_name` is relative to `folder`. Errors as of `write_cityscapes_instances`, and for ids
    above 2**24 - 1.
    """
    where = f"image {image_id!r}"
    name = f"{file_stem(image_id)}_panoptic.png"
    ids = _as_ids(panoptic_map, where)
    drawn = _drawn(ids)
    _check_segments(drawn, segments_info, label_set, where, LARGEST_COCO_ID)
    little_endian = np.ascontiguousarray(ids, "<i4")
    write_png(Path(folder) / name, little_endian.view(np.uint8).reshape(*ids.shape, 4)[..., :3])
    entries = []
    for segment in segments_info:
        area, top, left, bottom, right = drawn[segment["id"]]
        entries.append({
            "id": int(segment["id"]),
            "category_id": label_set.file_ids[segment["category_id"]],
            "area": area,
            "bbox": [left, top, right - left, bottom - top],  # x, y, width, height
            "iscrowd": int(segment.get("iscrowd", 0)),
        })  # fmt: skip
    return {"image_id": image_id, "file_name": name, "segments_info": entries}


def write_coco_panoptic_json(
    path: Path | str,
    annotations: Sequence[Mapping],
    label_set: LabelSet,
    images: Sequence[Mapping] | None = None,
) -> Path:
    """The JSON file beside the PNGs: images, annotations (of `write_coco_panoptic`) and categories.

    `images` say more of the images than the ids and PNGs of their annotations, which they have by default.
    Raises ExportError for an image that is annotated twice.
    """
    twice = [image for image, n in Counter(entry["image_id"] for entry in annotations).items() if n > 1]
    if twice:
        raise ExportError(f"{path}: image {twice[0]!r} is annotated twice, expected every image once")
    things = set(label_set.things)
    if images is None:
        images = [{"id": entry["image_id"], "file_name": entry["file_name"]} for entry in annotations]
    content = {
        "images": list(images),
        "annotations": list(annotations),
        "categories": [
            {"id": file_id, "name": name, "color": list(colour), "isthing": int(name in things)}
            for file_id, name, colour in zip(label_set.file_ids, label_set.classes, label_set.colours)
        ],
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="ascii")
    return path


def to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """An array of a tensor on any device, or of an array."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _as_ids(values: Tensor | np.ndarray, where: str) -> np.ndarray:
    """Integer map [H, W]; raises ExportError for anything else."""
    ids = to_numpy(values)
    if ids.dtype.kind not in "iub" or ids.ndim != 2 or ids.size == 0:
        raise ExportError(f"{where}: map {list(ids.shape)} of {ids.dtype}, expected integers [H, W]")
    return ids


def _drawn(ids: np.ndarray) -> dict[int, tuple[int, ...]]:
    """{id: (area, top, left, bottom, right)} of what a map [H, W] holds, by rows: in little memory."""
    found: dict[int, tuple[int, ...]] = {}
    for rows in row_strips(ids.shape):
        place, numbers = pd.factorize(ids[rows].ravel())
        boxes = scipy.ndimage.find_objects(place.reshape(ids[rows].shape) + 1)
        for number, area, (y, x) in zip(numbers.tolist(), np.bincount(place).tolist(), boxes):
            new = (area, rows.start + y.start, x.start, rows.start + y.stop, x.stop)
            if number in found:
                old = found[number]
                new = (old[0] + area, old[1], min(old[2], x.start), new[3], max(old[4], x.stop))
            found[number] = new
    return found


def _check_segments(
    drawn: Mapping[int, tuple], listed: Sequence[Mapping], label_set: LabelSet, where: str, largest: int
) -> None:
    """Raise ExportError unless the map holds the listed segments and 0, and the format can hold them."""
    times, present = Counter(segment["id"] for segment in listed), drawn.keys() - {0}
    for number in sorted({*times, *present}):
        if not 1 <= number <= largest:
            raise ExportError(f"{where}: segment id {number}, expected 1 .. {largest} (0 is void)")
        if times[number] != 1 or number not in present:
            shown = "drawn" if number in present else "not drawn"
            raise ExportError(
                f"{where}: segment {number} is listed {times[number]} times and {shown}, expected it listed "
                "once and drawn"
            )
    for segment in listed:
        if not 0 <= segment["category_id"] < label_set.n_classes:
            raise ExportError(
                f"{where}: segment {segment['id']} has category_id {segment['category_id']}, expected a "
                f"train id 0 .. {label_set.n_classes - 1} of {label_set.name}"
            )
