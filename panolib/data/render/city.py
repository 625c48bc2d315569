"""Street scenes: pictures of a town with exact labels, and on disk as SYNTHIA, GTA5 and Cityscapes are.

A scene is a pure function of (style, seed, index). Written data sets have the official formats: the readers
of the real ones read them, so every test walks the path of a user's own data. A data set appears complete or
not at all, is written once, and is used again as long as its fingerprint matches.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from panolib.data.errors import DataError
from panolib.data.images import resize_labels, write_png
from panolib.data.processes import leave_unguarded_import, map_in_processes
from panolib.data.render.city_shapes import LABEL_ID, Dice
from panolib.data.render.city_styles import STYLES, Look, Style, rich, style_of
from panolib.data.render.city_town import Town
from panolib.data.render.raster import Light, Point
from panolib.labels import CITYSCAPES, VOID

__all__ = [
    "RENDERER_VERSION", "STYLES", "Scene", "Style", "StyleName", "fingerprint", "is_written", "render",
    "rich", "write_city",
]  # fmt: skip

StyleName = Literal[tuple(STYLES)]
RENDERER_VERSION = 1  # raise it whenever the pixels of a scene change
SUPERSAMPLING = 2  # the image is the mean of 2 x 2 pixels, labels are one of them
SMALLEST = 50 / (256 * 512)  # share of the picture; a smaller instance is part of a group

_SPLITS = {"all": 0, "train": 0, "val": 1_000_000, "val_rare": 2_000_000}  # first scene: none is in two
_CITIES = {
    "train": ("ahrenfurt", "birkstadt", "calmenau"),
    "val": ("dornfeld", "eichwald", "falkenried"),
    "val_rare": ("grafenau", "hohenstedt", "ilmried"),
}
_SYNTHIA_CLASS = {
    "sky": 1, "building": 2, "road": 3, "sidewalk": 4, "fence": 5, "vegetation": 6, "pole": 7, "car": 8,
    "traffic sign": 9, "person": 10, "bicycle": 11, "motorcycle": 12, "traffic light": 15, "rider": 17,
    "bus": 19, "wall": 21,
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A rendered image with its exact labels."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    semantic: np.ndarray  # uint8 [H, W], train ids, 255 is void
    instance: np.ndarray  # int32 [H, W], 0 = none, otherwise an id >= 1 that no other object has
    crowd: np.ndarray  # bool [H, W], thing pixels of groups, which are not one object
    label_id: np.ndarray  # uint8 [H, W], of Cityscapes: also tells kinds of void apart (ego vehicle, static)


def render(style: Style | str, *, seed: int, index: int, height: int, width: int) -> Scene:
    """Render one scene.

    `style` is a style or a key of STYLES (else KeyError); with its number, `seed` and `index` determine the
    scene. Every label is exact for the pixel it stands on. Raises ValueError for less than 32 x 32 pixels.
    """
    style = style_of(style)
    if min(height, width) < 32:
        raise ValueError(f"cannot render {height} x {width} pixels; expected at least 32 x 32")
    dice = Dice(seed, style.number, index, 4)
    look = dice.pick(style.photometry)
    light, shadow, develop = _photometry(look, dice)
    size = height * SUPERSAMPLING, width * SUPERSAMPLING
    painting = Town(style, seed, index, *size, shadow).compose().painted()
    noise = np.random.default_rng([seed, style.number, index, 5])
    image = develop(painting.shaded(light, SUPERSAMPLING), noise)
    label_id, instance, crowd = painting.labels(SUPERSAMPLING, LABEL_ID["sky"])
    instance, crowd = _small_as_groups(instance, crowd)
    train_ids = np.full(256, VOID, np.uint8)
    train_ids[list(CITYSCAPES.file_ids)] = np.arange(CITYSCAPES.n_classes)
    return Scene(image, train_ids[label_id], instance, crowd, label_id)


def _small_as_groups(instance: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Instances too small to be predicted become part of a group: neither scored nor learned from."""
    least = SMALLEST * instance.size
    small = np.bincount(instance.ravel()) < least
    small[0] = False
    return np.where(small[instance], 0, instance), crowd | small[instance]


def _photometry(p: Look, dice: Dice) -> tuple[Light, Point | None, Callable]:
    """Light of one scene, how far a shadow falls a metre of height (None where the sun casts none), and the
    camera that turns linear colour into an 8-bit image."""
    angle = dice(0, 2 * math.pi)
    light = Light(
        sun=dice(*p.sun), sun_direction=(math.cos(angle), math.sin(angle)), shadow=dice(*p.shadow),
        fog=dice(*p.fog), fog_colour=dice.pick(p.fog_colour), zenith=dice.pick(p.zenith),
        skyline=dice.pick(p.skyline), clouds=dice(*p.clouds), cloud_shift=dice(0, 20),
    )  # fmt: skip
    names = ("gain", "saturation", "gamma", "vignette", "blur", "noise")
    drawn = {name: dice(*getattr(p, name)) for name in names}
    develop = partial(_develop, cast=p.cast, **drawn)
    elevation, beam = dice(*(p.elevation or (90.0, 90.0))), dice(*p.beam)
    if p.elevation is None:
        return light, None, develop
    reach, (x, z) = -1 / math.tan(math.radians(elevation)), light.sun_direction
    light = replace(light, beam=(beam, 0.96 * beam, 0.86 * beam))  # shade is bluish
    return light, (x * reach, z * reach), develop


def _develop(colour, rng, *, cast, gain, saturation, gamma, vignette, blur, noise) -> np.ndarray:
    """uint8 [H, W, 3] from linear colour [H, W, 3]."""
    height, width = colour.shape[:2]
    grey = colour @ np.array([0.30, 0.59, 0.11], np.float32)
    colour = grey[..., None] + saturation * (colour - grey[..., None])
    rows, columns = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    falloff = 1 - vignette * (rows[:, None] ** 2 + columns[None] ** 2) / 2
    colour *= (gain * falloff)[..., None] * np.array(cast, np.float32)
    sigma = blur * height / 128
    if sigma > 0.15:
        colour = cv2.GaussianBlur(colour, (0, 0), sigma)
    colour = np.clip(colour, 0, 1) ** np.float32(gamma)
    colour += np.float32(noise) * rng.standard_normal(colour.shape, np.float32)
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------------------------- data sets


def fingerprint(
    style: Style | str, *, split: str, n_images: int, height: int, width: int, seed: int
) -> dict:
    """What a written data set depends on, as plain values: style parameters, renderer, sizes, seed, split.

    Raises KeyError for an unknown style or split.
    """
    style = _style_of_split(style, split)
    parameters = json.dumps(asdict(style), sort_keys=True)
    return {
        "style": style.name,
        "style_parameters": hashlib.sha256(parameters.encode()).hexdigest()[:16],
        "renderer": RENDERER_VERSION,
        "split": split,
        "n_images": n_images,
        "height": height,
        "width": width,
        "seed": seed,
    }


def write_city(
    root: Path | str, style: Style | str, *, n_workers: int = 1, progress: bool = True, **arguments
) -> Path:
    """Render a data set into a folder, or use the one that is there; `arguments` are those of `fingerprint`.

    The name of the style decides the format: "synthia", "gta5" or "cityscapes". Several splits of
    "cityscapes" live in one folder; the others have one folder each, whatever the split. Val scenes are never
    those of train (or all); those of val_rare are rich in rare classes. GTA5 has a few frames of other
    heights, as the real data. With `n_workers` processes, a script must call this below ``if __name__ ==
    "__main__"``.

    Raises KeyError for an unknown style or split, DataError if the folder holds a data set with another
    fingerprint or files that were not written here, and errors of `map_in_processes`.
    """
    leave_unguarded_import()
    root, wanted = Path(root), fingerprint(style, **arguments)
    style = _style_of_split(style, wanted["split"])
    stamp, parts = _layout(style.name, wanted["split"])
    work = root / stamp.replace("city", ".writing").removesuffix(".json")

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        _finish_or_clear(root, work, stamp, parts)
        if _usable(root, stamp, parts, wanted):
            return root
        work.mkdir()
        job, n = partial(_render_and_write, work, style, wanted), wanted["n_images"]
        label = "{style} {split} {height}x{width}".format_map(wanted)
        done = map_in_processes(job, n, n_workers)
        for _ in tqdm(done, total=n, desc=label, unit="image", disable=not progress):
            pass
        part = work / (stamp + ".part")
        part.write_text(json.dumps(wanted, indent=1) + "\n")
        os.replace(part, work / stamp)  # from here on the data set is complete
        _finish_or_clear(root, work, stamp, parts)
    return root


def _style_of_split(style: Style | str, split: str) -> Style:
    """The style of a split. KeyError for an unknown one."""
    style = style_of(style)
    if split not in _SPLITS:
        raise KeyError(f"unknown split {split!r}; expected one of {sorted(_SPLITS)}")
    return rich(style) if split == "val_rare" else style


def is_written(root: Path, style: str, *, split: str, **arguments) -> bool:
    """Whether `write_city` would find the data set of these arguments in its folder.

    Raises ValueError where another one lies there.
    """
    return _usable(Path(root), *_layout(style, split), fingerprint(style, split=split, **arguments))


# ---------------------------------------------------------------------------------- complete or not at all


def _layout(style: str, split: str) -> tuple[str, list[str]]:
    """(stamp of a complete data set, folders in the order a reader opens them)."""
    suffix = f"_{split}" if style == "cityscapes" else ""
    return f"city{suffix}.json", [part.format(split=split) for part in _FORMATS[style][1]]


def _usable(root: Path, stamp: str, parts: list[str], wanted: dict) -> bool:
    """Whether the wanted data set is there. Raises ValueError for another one in its place."""
    if not (root / stamp).is_file():
        present = [part for part in parts if (root / part).exists()]
        if present:
            raise DataError(
                f"{root}: found {', '.join(present)} without {stamp}: not written by this renderer and left "
                "alone; expected an empty folder"
            )
        return False
    try:
        found = dict(json.loads((root / stamp).read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{root / stamp}: {error}, expected a JSON object; delete {root} to render it again"
        ) from error
    differing = [k for k in found | wanted if found.get(k) != wanted.get(k)]
    if differing:
        text = ", ".join(f"{k} = {found.get(k)!r}, expected {wanted.get(k)!r}" for k in differing)
        raise DataError(f"{root}: holds another rendered data set ({text}); delete it or use another folder")
    return True


def _finish_or_clear(root: Path, work: Path, stamp: str, parts: list[str]) -> None:
    """Move a complete data set from `work` to its place; remove an incomplete one.

    Every step can be repeated, so that a kill in between is mended by the next call. Images move last:
    readers look for them first and so never see half a data set.
    """
    if (work / stamp).is_file():
        for part in reversed(parts):
            if (work / part).exists():
                (root / part).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / part, root / part)
        os.replace(work / stamp, root / stamp)
    if work.exists():
        shutil.rmtree(work)


def _render_and_write(work: Path, style: Style, wanted: dict, i: int) -> None:
    height, split = wanted["height"], wanted["split"]
    if style.name == "gta5" and i % 9 == 4:  # a few frames of 1046 instead of 1052 rows
        height = min(round(height * 1046 / 1052), height - 1)
    scene = render(style, seed=wanted["seed"], index=_SPLITS[split] + i, height=height, width=wanted["width"])
    _FORMATS[style.name][0](work, scene, i, split)


# ---------------------------------------------------------------------------------- the three formats


def _write_synthia(work: Path, scene: Scene, i: int, split: str) -> None:
    """16-bit RGB labels: class, instance, unused. Terrain, truck and train have no class of their own."""
    table = np.zeros(256, np.uint16)
    for name, number in _SYNTHIA_CLASS.items():
        table[CITYSCAPES.ids_of([name])[0]] = number
    folder = work / "RAND_CITYSCAPES"
    labels = np.zeros((*scene.semantic.shape, 3), np.uint16)
    labels[..., 0] = table[scene.semantic]
    labels[..., 1] = np.where(scene.instance > 0, 256 + scene.instance * 53 % 4001, 0)  # scattered, unique
    write_png(folder / "RGB" / f"{i:07d}.png", scene.image)
    write_png(folder / "GT" / "LABELS" / f"{i:07d}.png", labels)
    write_png(folder / "GT" / "COLOR" / f"{i:07d}.png", CITYSCAPES.colourise(scene.semantic))


def _write_gta5(work: Path, scene: Scene, i: int, split: str) -> None:
    """Palette PNG of label ids; a few labels differ in size from their image."""
    label_id = scene.label_id
    if i % 11 == 7:
        height, width = label_id.shape
        label_id = resize_labels(label_id, (min(round(height * 1046 / 1052), height - 1), width))
    palette = np.zeros((256, 3), np.uint8)
    palette[list(CITYSCAPES.file_ids)] = CITYSCAPES.colours
    picture = Image.fromarray(label_id)
    picture.putpalette(palette.ravel().tolist())
    write_png(work / "images" / f"{i + 1:05d}.png", scene.image)
    (work / "labels").mkdir(exist_ok=True)
    picture.save(work / "labels" / f"{i + 1:05d}.png")


def _write_cityscapes(work: Path, scene: Scene, i: int, split: str) -> None:
    """leftImg8bit and gtFine; instances are label id * 1000 + k, groups keep the plain label id."""
    city = _CITIES[split][i % 3]
    name = f"{city}/{city}_{i // 3:06d}_000019"
    values = scene.label_id.astype(np.uint16)
    counted = np.zeros(256, np.int64)
    for instance in np.unique(scene.instance[scene.instance > 0]):
        mask = scene.instance == instance
        label_id = int(scene.label_id[mask][0])
        values[mask] = label_id * 1000 + counted[label_id]
        counted[label_id] += 1

    write_png(work / "leftImg8bit" / split / f"{name}_leftImg8bit.png", scene.image)
    truth = work / "gtFine" / split / name
    write_png(Path(f"{truth}_gtFine_labelIds.png"), scene.label_id)
    write_png(Path(f"{truth}_gtFine_instanceIds.png"), values)
    write_png(Path(f"{truth}_gtFine_color.png"), CITYSCAPES.colourise(scene.semantic))


_FORMATS = {  # writer; folders in the order a reader opens them
    "synthia": (_write_synthia, ["RAND_CITYSCAPES"]),
    "gta5": (_write_gta5, ["images", "labels"]),
    "cityscapes": (_write_cityscapes, ["leftImg8bit/{split}", "gtFine/{split}"]),
}
