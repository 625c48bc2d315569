"""A JSON file in COCO panoptic format: what it lists, and where its images are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from panolib.config import Count, from_mapping
from panolib.data.any_image import IMAGES, Page
from panolib.data.errors import DataError

_part = dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))  # files hold more keys


@_part
class _Category:
    id: Annotated[int, Field(ge=0, lt=1 << 16)]
    name: str
    isthing: int | bool
    color: tuple[int, int, int] | None = None


@_part
class ListedImage:
    """An image of the list. `predict` adds its `source`, a path from the folder of the JSON, and its page.

    So both may move together.
    """

    id: int | str
    file_name: str
    source: str | None = None
    page: Count = 1


@_part
class Segment:
    id: Count
    category_id: int
    iscrowd: int | bool = 0


@_part
class _Annotation:
    image_id: int | str
    file_name: str
    segments_info: tuple[Segment, ...]


@_part
class _File:
    images: Annotated[tuple[ListedImage, ...], Field(min_length=1)]
    annotations: tuple[_Annotation, ...]
    categories: tuple[_Category, ...]


def read_json(path: Path) -> _File:
    """The content of a panoptic JSON file. Raises for keys that are missing and values of other types."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}, expected a JSON file") from error
    found = from_mapping(_File, content, where=path)
    for kind, ids in (
        ("images: id", [image.id for image in found.images]),
        ("annotations: image_id", [row.image_id for row in found.annotations]),
        ("categories: id", [category.id for category in found.categories]),
    ):
        check_once(ids, f"{path}: {kind}")
    return found


def check_once(ids: Sequence, where: str) -> None:
    """Raise DataError for an id that is there again."""
    if twice := [i for i, n in Counter(ids).items() if n > 1]:
        raise DataError(f"{where} {twice[0]!r} is there {ids.count(twice[0])} times, expected it once")


def image_pages(
    path: Path, listed: Iterable[ListedImage], images: Path | str | None = None
) -> list[Page]:
    """The pages of images that a JSON file lists.

    They lie in the folder `images`; by default where the file says that they come from, or if they are not
    there in a folder beside it. In a folder they have the name that the file gives, or their id, with any
    suffix. Raises FileNotFoundError for a folder or an image that is not there.
    """
    above = path.parent.parent
    places = [path.parent / "images", above / "images", above / path.stem.removeprefix("panoptic_")]
    places = places if images is None else [Path(images)]
    folder = next((place for place in places if place.is_dir()), None)
    files = [] if folder is None else sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGES)
    by_name = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    by_name |= {file.relative_to(folder).as_posix(): file for file in files}
    pages = []
    for image in listed:
        names = [image.file_name, Path(image.file_name).with_suffix("").as_posix(), str(image.id)]
        file = next((by_name[name] for name in names if name in by_name), None)
        source = None if image.source is None else (path.parent / image.source).resolve()
        if images is None and source is not None and source.is_file():
            file = source
        if file is None and folder is None:
            expected = ", ".join(map(str, places))
            raise FileNotFoundError(f"{path}: no folder of images, expected one of {expected}")
        if file is None:
            expected = f"expected it as {path} lists it"
            raise FileNotFoundError(f"{folder}: no image {image.file_name!r}, {expected}")
        pages.append(Page(file, image.page - 1))
    return pages
