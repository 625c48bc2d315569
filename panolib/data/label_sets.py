"""Label sets that a user brings: a small YAML file, or the categories of a COCO panoptic file.

    classes: [background, nucleus, debris]     # in the files these are 0, 1, 2, unless `ids` says otherwise
    things: [nucleus]                          # with countable objects; the others are stuff
    void: 255                                  # in the files: no class
    colours: {nucleus: [255, 128, 0]}          # of some or all
    connected: true                            # every object is one region, as cells are
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from panolib.config import Different, from_mapping, spec
from panolib.data.errors import DataError
from panolib.labels import LABEL_SETS, VOID, LabelSet, register_label_set
from panolib.profiles import load_yaml

Byte = Annotated[int, Field(ge=0, le=VOID)]
MOST_CLASSES = 254  # 254 and 255 mark pixels without a class


@spec
class _File:
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_CLASSES), Different]
    things: Annotated[tuple[str, ...], Different] = ()
    ids: Annotated[tuple[Byte, ...], Different] | None = None
    void: Byte = VOID
    colours: Mapping[str, tuple[Byte, Byte, Byte]] | None = None
    connected: bool = False
    name: str | None = None


def find_label_set(name: str, root: Path) -> LabelSet:
    """A label set by its name, or by the path of a YAML file, seen from `root`."""
    if name in LABEL_SETS:
        return LABEL_SETS[name]
    if not name.endswith((".yaml", ".yml")):
        raise DataError(f"label set {name!r}: expected one of {', '.join(LABEL_SETS)}, or a YAML file")
    return read_label_set(root / name)


def read_label_set(path: Path) -> LabelSet:
    """The label set of a YAML file, known by its name from now on: that of the file, if it says none.

    Raises ProfileError or DataError naming file, key, value and what was expected.
    """
    found = from_mapping(_File, load_yaml(path), where=path)
    for key in ("things", "colours"):
        for name in getattr(found, key) or ():
            if name not in found.classes:
                raise DataError(f"{path}: {key}: expected names of {list(found.classes)}, found {name!r}")
    ids = found.ids or tuple(range(len(found.classes)))
    if len(ids) != len(found.classes):
        raise DataError(f"{path}: ids: expected one a class, {len(found.classes)}, found {len(ids)}")
    if found.void in ids:
        raise DataError(f"{path}: void: expected an id that is no class, found {found.void}")
    name = found.name or Path(path).stem
    if not re.fullmatch(r"\w+", name):  # names of scores end in it
        raise DataError(f"{path}: name: expected letters, digits and _, found {name!r}")
    colours = found.colours or {}
    return _registered(
        path, name, found.classes, tuple(colours.get(c) for c in found.classes), found.things, ids,
        void_file_id=found.void, connected_things=found.connected,
    )  # fmt: skip


def label_set_of_categories(categories: Sequence[Any], path: Path) -> LabelSet:
    """The label set of COCO's categories (id, name, isthing, perhaps color), in the order of their ids.

    A known label set with these ids, names and things is that one. Another one is named by what it holds, so
    that the files of train and val, which list the same categories, have one.
    """
    rows = sorted(categories, key=lambda row: row.id)
    names = tuple(row.name for row in rows)
    if not 1 < len(rows) <= MOST_CLASSES or len(set(names)) < len(names):
        raise DataError(f"{path}: categories {list(names)}, expected 2 .. {MOST_CLASSES} different names")
    ids = tuple(row.id for row in rows)
    things = tuple(row.name for row in rows if row.isthing)
    for known in LABEL_SETS.values():
        if (known.classes, known.file_ids, known.things) == (names, ids, things):
            return known
    digest = hashlib.sha256(json.dumps([ids, names, things]).encode()).hexdigest()[:8]
    return _registered(path, f"coco_{digest}", names, tuple(row.color for row in rows), things, ids)


def _registered(
    path: Path, name: str, classes: tuple, colours: tuple, things: tuple, ids: tuple, **others
) -> LabelSet:
    """A label set whose classes are scored together under its name and learned one by one."""
    hues = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.6, 0.9) for i in range(len(classes))]  # far from each other
    drawn = [tuple(round(255 * part) for part in hue) for hue in hues]
    label_set = LabelSet(
        name=name,
        classes=classes,
        colours=tuple(given or own for given, own in zip(colours, drawn)),
        things=things,
        file_ids=ids,
        groups={"things": things} if things else {},
        subsets={name: classes},
        **others,
    )
    try:
        return register_label_set(label_set)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
