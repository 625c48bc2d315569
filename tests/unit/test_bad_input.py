"""Bad input, one row a kind: each command tells it in one line, with file or key, value and expectation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_packages import write_tiny

from panolib.__main__ import main
from panolib.data.images import write_png
from panolib.data.render import city
from panolib.labels import LABEL_SETS, NUCLEI
from panolib.profiles import project_root
from panolib.study.packaged import ENTRY
from panolib.your_images.adapt_folder import DESCRIPTION

STUDY = project_root(Path(__file__).parent)
SIZE = (32, 64)
LEFT_OUT = dict.fromkeys(("nuclei", "camvid", "experiments", "detr", "performance", "realtime"))
TWO = np.zeros(SIZE, np.uint16)  # two objects
TWO[4:12, 4:20], TWO[18:30, 30:50] = 1, 300
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
SEGMENTS = [{"id": 5, "category_id": 7, "iscrowd": 0}, {"id": 9, "category_id": 30, "iscrowd": 0}]
CATEGORIES = [{"id": 7, "name": "grass", "isthing": 0}, {"id": 30, "name": "cat", "isthing": 1}]


@dataclass
class Place:
    """A project folder with good data in it, which a row spoils before its command runs."""

    root: Path

    def path(self, name: str) -> Path:
        found = self.root / name
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def first(self, pattern: str) -> Path:
        return min(self.root.glob(pattern))

    def write(self, name: str, content: str | bytes) -> Path:
        self.path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return self.root / name

    def profile(self, name: str = "rows", **sections) -> str:
        """Path of a profile: smoke without all but the city, and what `sections` say."""
        return str(self.write(f"{name}.yaml", yaml.safe_dump({"extends": "smoke", **LEFT_OUT, **sections})))


@dataclass(frozen=True)
class Row:
    """`spoil` prepares the input; `command` is what is typed, {} the folder; `words` are in the message."""

    command: str
    words: str
    spoil: Callable[[Place], object] = lambda place: None
    status: int = 1
    needs: tuple[str, ...] = field(default=())  # good data that is copied first


# ---- good data


def save(path: Path, pixels: np.ndarray) -> Path:
    """By the suffix: a TIFF; a PNG or JPEG, 16 bits of it by OpenCV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack")
    elif pixels.dtype == np.uint16:
        write_png(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """Folders of good data by name: streets, camvid, nuclei, cells, new, tissue, coco, weights."""
    root = tmp_path_factory.mktemp("good")
    for style, split, n in (("synthia", "all", 3), ("gta5", "all", 3), ("cityscapes", "train", 2),
                            ("cityscapes", "val", 2)):  # fmt: skip
        sizes = {"height": SIZE[0], "width": SIZE[1], "seed": 0}
        city.write_city(root / "streets" / style, style=style, split=split, n_images=n, **sizes,
                        n_workers=1, progress=False)  # fmt: skip
    for file in root.glob("streets/*/*.json"):
        file.unlink()  # what the renderer remembers
    classes = np.tile(np.arange(SIZE[1], dtype=np.uint8) % 11 + 1, (SIZE[0], 1))
    for name in ("train", "val", "test"):
        save(root / "camvid" / name / "a.png", NOISE)
        save(root / "camvid" / f"{name}annot" / "a.png", classes)
    for name in "abcd":
        save(root / "nuclei" / "images" / f"{name}.png", NOISE)
        save(root / "nuclei" / "labels" / f"{name}.png", TWO)
        for folder in ("cells", "new"):
            save(root / folder / "images" / f"{name}.tif", (TWO > 0).astype(np.uint16) * 900 + 50)
        save(root / "cells" / "masks" / f"{name}.tif", TWO)
        save(root / "tissue" / "images" / f"{name}.png", NOISE)
        save(root / "tissue" / "masks" / f"{name}.png", TWO)
        save(root / "tissue" / "classes" / f"{name}.png", (TWO > 0).astype(np.uint8))
    (root / "nuclei" / "splits").mkdir()
    (root / "nuclei" / "splits" / "train.txt").write_text("a\nb\nc\n")
    (root / "nuclei" / "splits" / "val.txt").write_text("d\n")
    rows = "".join(f"{name},fluorescence_grey\n" for name in "abcd")
    (root / "nuclei" / "index.csv").write_text(f"id,modality\n{rows}")
    ids = np.where(TWO > 0, 9, 5).astype(np.uint8)
    content: dict = {"images": [], "annotations": [], "categories": CATEGORIES}
    for i in range(1, 5):
        save(root / "coco" / "images" / f"{i}.png", NOISE)
        save(root / "coco" / "panoptic" / f"{i}.png", np.dstack([ids, 0 * ids, 0 * ids]))
        content["images"].append({"id": i, "file_name": f"{i}.png"})
        row = {"image_id": i, "file_name": f"{i}.png", "segments_info": SEGMENTS}
        content["annotations"].append(row)
    (root / "coco" / "panoptic.json").write_text(json.dumps(content))
    (root / "weights").mkdir()
    write_tiny(root / "weights" / "good.safetensors", NUCLEI.name, stretched=True)
    return root


# ---- what is done to it


def pixels(pattern: str, values: np.ndarray):
    """Other pixels in the first file of a pattern."""
    return lambda place: save(place.first(pattern), values)


def content(pattern: str, text: str | bytes):
    """Other bytes in the first file of a pattern."""
    value = text.encode() if isinstance(text, str) else text
    return lambda place: place.first(pattern).write_bytes(value)


def cut(pattern: str, n_bytes: int = 100):
    return lambda place: place.first(pattern).write_bytes(place.first(pattern).read_bytes()[:n_bytes])


def gone(pattern: str):
    """Without the first file or folder of a pattern."""

    def spoil(place: Place) -> None:
        path = place.first(pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def emptied(folder: str):
    return lambda place: [path.unlink() for path in (place.root / folder).rglob("*") if path.is_file()]


def new(name: str, value: np.ndarray | str | bytes):
    """A file more."""

    def spoil(place: Place) -> None:
        write = save if isinstance(value, np.ndarray) else Path.write_bytes
        write(place.path(name), value.encode() if isinstance(value, str) else value)

    return spoil


def flipped(pattern: str):
    """One byte of a file is another one."""

    def spoil(place: Place) -> None:
        data = bytearray(place.first(pattern).read_bytes())
        data[len(data) // 2] ^= 0xFF
        place.first(pattern).write_bytes(data)

    return spoil


def in_place_of(pattern: str, name: str, value: np.ndarray):
    """A file under another name in place of the first of a pattern."""

    def spoil(place: Place) -> None:
        path = place.first(pattern)
        path.unlink()
        save(path.with_name(name), value)

    return spoil


def folder_like(pattern: str):
    def spoil(place: Place) -> None:
        path = place.first(pattern)
        path.unlink()
        path.mkdir()

    return spoil


def dead_link(pattern: str):
    def spoil(place: Place) -> None:
        path = place.first(pattern)
        path.unlink()
        path.symlink_to(place.root / "nowhere.png")

    return spoil


def both(*spoils: Callable[[Place], object]):
    return lambda place: [spoil(place) for spoil in spoils]


def coco(edit: Callable[[dict], object]):
    """Another JSON file."""

    def spoil(place: Place) -> None:
        path = place.root / "coco" / "panoptic.json"
        found = json.loads(path.read_text())
        edit(found)
        path.write_text(json.dumps(found))

    return spoil


ONE = (TWO > 0).astype(np.uint8)
COLOUR = NOISE
SMALL = NOISE[:20, :40]
FIVE = np.array([5, 0, 0], np.uint8)
FIVE_AND_NINE = np.where(np.arange(40)[:, None] < 20, FIVE, FIVE // 5 * 9)[None].repeat(20, 0)

# ---- street data sets: `reproduce --dry-run` opens them


def streets(words: str, spoil=lambda place: None, **data) -> Row:
    """The real city, in the official layouts."""

    def prepare(place: Place) -> None:
        spoil(place)
        folders = {kind: str(place.root / "streets" / kind) for kind in ("synthia", "gta5", "cityscapes")}
        given = folders | {"embedded": None, "n_val_synthia": 1, "n_val_gta5": 1, "mix_requires": []} | data
        place.profile(city={"data": given, "gap": None})

    command = "reproduce --dry-run --notebook 07 --profile {}/rows.yaml"
    return Row(command, words, prepare, needs=("streets",))


SYNTHIA, GTA, REAL = "streets/synthia/", "streets/gta5/", "streets/cityscapes/"
LABELS_OF_SYNTHIA = SYNTHIA + "RAND_CITYSCAPES/GT/LABELS/*.png"
IMAGES_OF_SYNTHIA = SYNTHIA + "RAND_CITYSCAPES/RGB/*.png"
LABELS_OF_VAL = REAL + "gtFine/val/*/*_labelIds.png"
INSTANCES_OF_VAL = REAL + "gtFine/val/*/*_instanceIds.png"
IMAGES_OF_VAL = REAL + "leftImg8bit/val/*/*.png"


def second_city(place: Place) -> None:
    image = place.first(IMAGES_OF_VAL)
    save(image.parent.with_name("zzz") / image.name, NOISE)


STREETS = {
    "synthia: no folder": streets("RGB: no such folder", gone("streets/synthia")),
    "synthia: empty folder": streets("empty split, found 0 files", emptied(SYNTHIA)),
    "synthia: image without label": streets("1 of 3 images have no label", gone(LABELS_OF_SYNTHIA)),
    "synthia: label without image": streets("1 of 3 labels have no image", gone(IMAGES_OF_SYNTHIA)),
    "synthia: label of 8 bits": streets("8 bits a channel", pixels(LABELS_OF_SYNTHIA, NOISE)),
    "synthia: label of one channel": streets("one channel", pixels(LABELS_OF_SYNTHIA, TWO)),
    "synthia: id outside the table": streets(
        "class id 300 outside the table", pixels(LABELS_OF_SYNTHIA, np.dstack([TWO] * 3))
    ),
    "synthia: sizes differ": streets("label of 32 x 64", pixels(IMAGES_OF_SYNTHIA, SMALL)),
    "synthia: cut image": streets("cut short", cut(IMAGES_OF_SYNTHIA)),
    "synthia: JPEG image": streets(
        ".jpg: an image of another format", new(SYNTHIA + "RAND_CITYSCAPES/RGB/x.jpg", NOISE)
    ),
    "synthia: all held out": streets("empty split 'train'", n_val_synthia=3),
    "synthia: none held out": streets("empty split 'val'", n_val_synthia=0),
    "gta5: no folder": streets("images: no such folder", gone("streets/gta5")),
    "gta5: label in colours": streets("label of mode RGB", pixels(GTA + "labels/*.png", NOISE)),
    "gta5: id outside the table": streets("class id 77", pixels(GTA + "labels/*.png", ONE * 77)),
    "gta5: frame without label": streets("1 of 3 images have no label", gone(GTA + "labels/*.png")),
    "gta5: label of another frame": streets("label of 20 x 40", pixels(GTA + "labels/*.png", ONE[:20, :40])),
    "gta5: dead link": streets("leads nowhere", dead_link(GTA + "images/*.png")),
    "cityscapes: no val": streets("val: no such folder", gone(REAL + "leftImg8bit/val")),
    "cityscapes: empty val": streets("empty split", emptied(REAL + "leftImg8bit/val")),
    "cityscapes: no instanceIds": streets("1 of 2 images have no instanceIds", gone(INSTANCES_OF_VAL)),
    "cityscapes: no labels": streets("gtFine/val: no such folder", gone(REAL + "gtFine/val")),
    "cityscapes: labels in colours": streets("label of mode RGB", pixels(LABELS_OF_VAL, NOISE)),
    "cityscapes: labels of 16 bits": streets("label of mode I;16", pixels(LABELS_OF_VAL, TWO)),
    "cityscapes: instances of 8 bits": streets("8 bits a channel", pixels(INSTANCES_OF_VAL, ONE)),
    "cityscapes: instances in colours": streets(
        "3 channels", pixels(INSTANCES_OF_VAL, np.dstack([TWO] * 3))
    ),
    "cityscapes: instances of others": streets("instance value", pixels(INSTANCES_OF_VAL, TWO + 24000)),
    "cityscapes: instances of another size": streets(
        "label of (20, 40)", pixels(INSTANCES_OF_VAL, TWO[:20, :40])
    ),
    "cityscapes: empty file": streets("it is empty", content(LABELS_OF_VAL, b"")),
    "cityscapes: a page of HTML": streets("it does not start as a PNG", content(IMAGES_OF_VAL, "<html>")),
    "cityscapes: flipped byte": streets("differs from its checksum", flipped(IMAGES_OF_VAL)),
    "cityscapes: image of 16 bits": streets("image of uint16", pixels(IMAGES_OF_VAL, np.dstack([TWO] * 3))),
    "cityscapes: folder like an image": streets("a folder named like an image", folder_like(IMAGES_OF_VAL)),
    "cityscapes: one id twice": streets("has the name of", second_city),
}


def camvid(words: str, spoil=lambda place: None, **data) -> Row:
    def prepare(place: Place) -> None:
        spoil(place)
        folders = {kind: str(place.root / "drawn" / kind) for kind in ("synthia", "gta5", "cityscapes")}
        camvid = {"root": str(place.root / "camvid"), **data}
        without = {name: value for name, value in LEFT_OUT.items() if name not in ("camvid", "realtime")}
        profile = {"extends": "smoke", **without, "city": {"data": folders, "gap": None}, "camvid": camvid}
        place.write("rows.yaml", yaml.safe_dump(profile))

    return Row("reproduce --dry-run --notebook 09 --profile {}/rows.yaml", words, prepare, needs=("camvid",))


CAMVID = {
    "camvid: no labels": camvid("valannot: no such folder", gone("camvid/valannot")),
    "camvid: id outside the table": camvid("class id 99", pixels("camvid/valannot/*.png", ONE * 99)),
    "camvid: label in colours": camvid("label of mode RGB", pixels("camvid/valannot/*.png", NOISE)),
    "camvid: sizes differ": camvid("label of 20 x 40", pixels("camvid/valannot/*.png", ONE[:20, :40])),
    "camvid: empty split": camvid("empty split", emptied("camvid/val")),
    "camvid: other files than recorded": camvid("fingerprint", fingerprint="0" * 16),
}


def nuclei(words: str, spoil=lambda place: None, **data) -> Row:
    def prepare(place: Place) -> None:
        spoil(place)
        folders = {"root": str(place.root / "nuclei"), "scenes": str(place.root / "drawn")}
        place.profile(main="nuclei", city=None, nuclei={"data": folders | {"fingerprint": None} | data})

    return Row("reproduce --dry-run --notebook 08 --profile {}/rows.yaml", words, prepare, needs=("nuclei",))


LISTED = "".join(f"{name},fluorescence_grey\n" for name in "abc")
NUCLEI_ROWS = {
    "nuclei: listed but not there": nuclei("1 of 4 ids", content("nuclei/splits/train.txt", "a\nb\nc\nx\n")),
    "nuclei: listed twice": nuclei("line 3: id 'a'", content("nuclei/splits/train.txt", "a\nb\na\n")),
    "nuclei: list in another encoding": nuclei(
        "no text in utf-8", content("nuclei/splits/train.txt", "zelle_ä\n".encode("latin-1"))
    ),
    "nuclei: empty list": nuclei("empty split 'train'", content("nuclei/splits/train.txt", "\n")),
    "nuclei: no such split": nuclei("val.txt: no such split", gone("nuclei/splits/val.txt")),
    "nuclei: unknown modality": nuclei("no modality 'mri'", modality="mri"),
    "nuclei: no such column": nuclei("columns ['id', 'kind']", content("nuclei/index.csv", "id,kind\n")),
    "nuclei: no row": nuclei("no row for d", content("nuclei/index.csv", "id,modality\n" + LISTED)),
    "nuclei: row of other length": nuclei("line 2", content("nuclei/index.csv", "id,modality\na,b,c\n")),
    "nuclei: label of 8 bits": nuclei("8 bits a channel", pixels("nuclei/labels/d.png", ONE)),
    "nuclei: label in colours": nuclei("3 channels", pixels("nuclei/labels/d.png", np.dstack([TWO] * 3))),
    "nuclei: sizes differ": nuclei("label of 20 x 40", pixels("nuclei/labels/d.png", TWO[:20, :40])),
    "nuclei: no label": nuclei("no label, the first is d", gone("nuclei/labels/d.png")),
    "nuclei: cut image": nuclei("cut short", cut("nuclei/images/d.png")),
}

# ---- a user's own folders: `adapt` reads all of them before it trains

ADAPT = "adapt --profile smoke --workers 1 --out {}/out --target {}/new --source {}/"


def cells(words: str, spoil=lambda place: None, options: str = "", source: str = "cells", **others) -> Row:
    return Row(f"{ADAPT}{source}{options}", words, spoil, needs=(source.split("/")[0], "new"), **others)


FOLDERS = {
    "folders: no source": cells("no such folder", gone("cells")),
    "folders: no target": cells("no such folder", gone("new")),
    "folders: source is a file": cells("no such folder", source="cells/masks/a.tif"),
    "folders: no image": cells("no image", emptied("cells/images")),
    "folders: no image in the target": cells("no image", emptied("new")),
    "folders: no masks": cells("no masks", gone("cells/masks")),
    "folders: image without mask": cells("have no mask", gone("cells/masks/a.tif")),
    "folders: mask without image": cells("have no image", gone("cells/images/a.tif")),
    "folders: one image with its mask": cells(
        "cells: 1 image file, expected 2 or more",
        both(*(gone(f"cells/{part}/{name}.tif") for part in ("images", "masks") for name in "bcd")),
    ),
    "folders: empty masks": cells(
        "cells: no object in any of 4 masks, expected label images with objects",
        both(*(pixels(f"cells/masks/{name}.tif", 0 * TWO) for name in "abcd")),
    ),
    "folders: sizes differ": cells("label of 20 x 40", pixels("cells/masks/a.tif", TWO[:20, :40])),
    "folders: mask of floats": cells("mask of float32", pixels("cells/masks/a.tif", TWO.astype(np.float32))),
    "folders: negative ids": cells("value -1", pixels("cells/masks/a.tif", TWO.astype(np.int16) - 1)),
    "folders: ids beyond 31 bits": cells(
        "value 3145728000", pixels("cells/masks/a.tif", (TWO // 300).astype(np.uint32) * 3145728000)
    ),
    "folders: mask of three channels": cells(
        "3 channels", lambda place: tifffile.imwrite(place.root / "cells/masks/a.tif", NOISE)
    ),
    "folders: mask in colours": cells("mode RGB", in_place_of("cells/masks/a.tif", "a.png", NOISE)),
    "folders: mask as JPEG": cells("mask as .jpg", in_place_of("cells/masks/a.tif", "a.jpg", ONE)),
    "folders: cut TIFF": cells("no readable image", cut("cells/images/a.tif", 150)),
    "folders: cut mask": cells("no readable image", cut("cells/masks/a.tif", 150)),
    "folders: cut TIFF of the target": cells("new/images/a.tif", cut("new/images/a.tif", 150)),
    "folders: text as TIFF": cells("no readable image", content("cells/images/a.tif", "<html>")),
    "folders: empty mask file": cells("no readable image", content("cells/masks/a.tif", b"")),
    "folders: cut JPEG": cells(
        "no readable image",
        both(in_place_of("new/images/a.tif", "a.jpg", NOISE), cut("new/images/a.jpg", 400)),
    ),
    "folders: image of floats": cells("float32", pixels("new/images/a.tif", TWO.astype(np.float32))),
    "folders: signed image": cells("int16", pixels("new/images/a.tif", TWO.astype(np.int16))),
    "folders: two images of a name": cells("has the name of", new("cells/images/a.png", NOISE)),
    "folders: two masks of an image": cells("has the name of", new("cells/masks/a_masks.tif", TWO)),
    "folders: pages without masks": cells(
        "images have no mask", pixels("cells/images/a.tif", np.stack([TWO] * 3))
    ),
    "folders: a microscope's format": cells("bioio", new("new/images/x.czi", "zeiss")),
    "classes: no folder": cells("classes: no such folder", gone("tissue/classes"),
                                " --label-set {}/three.yaml", "tissue"),
    "classes: id outside the table": cells("class id 4", pixels("tissue/classes/a.png", ONE * 4),
                                           " --label-set {}/three.yaml", "tissue"),
    "classes: an object of stuff": cells("of class debris", pixels("tissue/classes/a.png", ONE * 2),
                                         " --label-set {}/three.yaml", "tissue"),
}  # fmt: skip


def segment(number: int, **values):
    return coco(lambda c: c["annotations"][0]["segments_info"][number].update(values))


def of_coco(words: str, spoil, options: str = "") -> Row:
    return cells(words, spoil, options, source="coco")


COCO = {
    "coco: broken JSON": of_coco("panoptic.json", content("coco/panoptic.json", '{"images": [')),
    "coco: a list": of_coco("panoptic.json", content("coco/panoptic.json", "[1, 2]")),
    "coco: no categories": of_coco("categories: missing key", coco(lambda c: c.pop("categories"))),
    "coco: image without a name": of_coco(
        "images[1].file_name: missing key", coco(lambda c: c["images"][1].pop("file_name"))
    ),
    "coco: text as id": of_coco("found '30'", coco(lambda c: c["categories"][1].update(id="30"))),
    "coco: no images": of_coco("images: expected a list", coco(lambda c: c.update(images=[]))),
    "coco: image twice": of_coco("id 1 is there 2 times", coco(lambda c: c["images"].append(c["images"][0]))),
    "coco: category twice": of_coco(
        "id 7 is there 2 times", coco(lambda c: c["categories"].append(c["categories"][0]))
    ),
    "coco: one category": of_coco("categories ['cat']", coco(lambda c: c["categories"].pop(0))),
    "coco: segment twice": of_coco(
        "segment id 5 is there 2 times",
        coco(lambda c: c["annotations"][0]["segments_info"].append(SEGMENTS[0])),
    ),
    "coco: unknown category": of_coco("category_id 8", segment(0, category_id=8)),
    "coco: segment 0": of_coco("expected >= 1, found 0", segment(0, id=0)),
    "coco: segment that is not drawn": of_coco(
        "segment 77 is listed", coco(lambda c: c["annotations"][0]["segments_info"].append(
            {"id": 77, "category_id": 7}))
    ),
    "coco: segment that is not listed": of_coco(
        "segment 9 is drawn", coco(lambda c: c["annotations"][0]["segments_info"].pop())
    ),
    "coco: image without annotation": of_coco("no annotation", coco(lambda c: c["annotations"].pop())),
    "coco: no PNG": of_coco("1.png: no such file", gone("coco/panoptic/1.png")),
    "coco: no image": of_coco("no image '1.png'", gone("coco/images/1.png")),
    "coco: sizes differ": of_coco("label of 20 x 40", pixels("coco/panoptic/1.png", FIVE_AND_NINE)),
    "coco: two JSON files": of_coco("expected a single JSON", new("coco/panoptic_b.json", "{}")),
    "coco: other label set": of_coco("category 'grass'", lambda place: None, " --label-set nuclei"),
}  # fmt: skip


def labels(text: str, words: str) -> Row:
    return cells(words, new("set.yaml", text), " --label-set {}/set.yaml")


LABEL_SET = {
    "label set: unknown name": cells("label set 'mars'", options=" --label-set mars"),
    "label set: no file": cells("none.yaml: no such file", options=" --label-set {}/none.yaml"),
    "label set: no YAML": labels("classes: [a", "set.yaml"),
    "label set: no mapping": labels("[a, b]", "set.yaml: expected `key: value` lines"),
    "label set: no classes": labels("things: [a]", "classes: missing key"),
    "label set: one class": labels("classes: [a]", "classes: expected a list with 2 or more"),
    "label set: class twice": labels("classes: [a, a]", "classes: expected different items"),
    "label set: number as class": labels("classes: [a, 3]", "classes[1]: expected str, found 3"),
    "label set: unknown thing": labels("{classes: [a, b], things: [c]}", "things: expected names of"),
    "label set: too few ids": labels("{classes: [a, b], ids: [4]}", "ids: expected one a class, 2, found 1"),
    "label set: id twice": labels("{classes: [a, b], ids: [4, 4]}", "ids: expected different items"),
    "label set: id of 9 bits": labels("{classes: [a, b], ids: [4, 256]}", "ids[1]: expected <= 255, found"),
    "label set: void is a class": labels("{classes: [a, b], void: 1}", "void: expected an id that is no"),
    "label set: colour of 9 bits": labels(
        "{classes: [a, b], colours: {a: [0, 0, 256]}}", "colours.a[2]: expected <= 255, found 256"
    ),
    "label set: unknown key": labels("{classes: [a, b], thing: [a]}", "did you mean 'things'?"),
    "label set: odd name": labels("{classes: [a, b], name: a-b}", "name: expected letters, digits"),
}

OTHER_ADAPT = {
    "adapt: unknown start": cells("weights 'venus': no such file", options=" --start venus"),
    "adapt: start of text": cells("start.txt", new("start.txt", "no weights"), " --start {}/start.txt"),
    "adapt: no labels there": cells("none: no such folder", options=" --labels {}/none"),
    "adapt: labels without masks": cells("new: no masks", options=" --labels {}/new"),
    "adapt: target is the source": Row(
        "adapt --source {}/cells --target {}/cells/../cells --out {}/out", "is the folder of --source",
        needs=("cells",),
    ),
    "adapt: no name of a folder": Row("adapt --source= --target {}/new --out {}/out", "--source: expected a",
                                      status=2),
    "adapt: profile without nuclei": Row(
        "adapt --profile {}/none.yaml --source {}/cells --target {}/new --out {}/out",
        "none.yaml: found no section nuclei", new("none.yaml", "extends: smoke\nnuclei: null"),
        needs=("cells", "new"),
    ),
    "adapt: labels without objects": cells(
        "few: no object in any of 4 masks",
        lambda place: [save(place.root / "few" / part / f"{name}.tif", 0 * TWO)
                       for part in ("images", "masks") for name in "abcd"],
        " --labels {}/few",
    ),
    "adapt: 16 bits for networks of 8": Row(
        f"{ADAPT}cells --start {{}}/weights/eight.safetensors",
        "/cells, {}/new: 8 images of 16 bits, the first is a; expected 8 bits, as --start {}/weights/eight"
        ".safetensors knows, or percentiles for them: --intensity 1 99.8",
        lambda place: write_tiny(place.root / "weights" / "eight.safetensors", NUCLEI.name),
        needs=("cells", "new", "weights"),
    ),
    "adapt: intensity that falls": cells("intensity.percentiles: expected values in rising order",
                                         options=" --intensity 99 1"),
    "adapt: intensity of one number": cells("--intensity: expected 2 arguments", options=" --intensity 5",
                                            status=2),
    "adapt: out is a file": Row(
        "adapt --source {}/cells --target {}/new --out {}/file", "file is a file", new("file", "x"),
        needs=("cells", "new"),
    ),
    "adapt: out holds other settings": cells(
        "adapt.yaml: holds other settings",
        both(new("out/adapt.yaml", f"description: {DESCRIPTION}"), new("out/results/x", "x")),
    ),
    **{
        f"adapt: out holds {name} of others": cells(f"{name}: was not written by this command, expected",
                                                    new(f"out/{name}{below}", "x"))
        for name, below in {"adapt.yaml": "", "report.html": "", "predictions": "/summary.csv",
                            "weights": "/teacher.safetensors", "start": "/x", "results": "/x"}.items()
    },
    "adapt: out in the source": Row(
        "adapt --source {}/cells --target {}/new --out {}/cells/out", "cells/out: lies in",
        needs=("cells", "new"),
    ),
    "adapt: out is the target": Row(
        "adapt --source {}/cells --target {}/new --out {}/new", "the folder of --target",
        needs=("cells", "new"),
    ),
    "adapt: out in the labels": cells("the folder of --labels", options=" --labels {}"),
    "adapt: unknown profile": cells("profile 'mars'", options=" --profile mars"),
    "adapt: scale beyond reason": cells("images would grow", options=" --diameter 9000"),
    "adapt: no source": Row("adapt --target {}/new --out {}/out", "--source", status=2),
    "adapt: diameter of 0": cells("found '0'", options=" --diameter 0", status=2),
    "adapt: no workers": cells("found 'none'", options=" --workers none", status=2),
}  # fmt: skip

# ---- predict


def tensors_as(name: str, change: Callable[[dict, dict], object]):
    """A file of weights whose tensors and settings are changed."""

    def spoil(place: Place) -> None:
        from safetensors import safe_open

        source = place.root / "weights" / "good.safetensors"
        with safe_open(source, "pt") as file:
            settings = json.loads(file.metadata()[ENTRY])
        tensors = load_file(source)
        change(tensors, settings)
        save_file(tensors, place.path(name), metadata={ENTRY: json.dumps(settings)})

    return spoil


def predicted(words: str, spoil=lambda place: None, weights: str = "good", options: str = "",
              images: str = "{}/new/images/a.tif", out: str = "{}/out", status: int = 1) -> Row:  # fmt: skip
    command = f"predict {images} --weights {{}}/weights/{weights}.safetensors --out {out} {options}"
    return Row(command, words, spoil, status, needs=("new", "weights"))


PREDICT = {
    "predict: no such image": predicted("x.png: no such file or folder", images="{}/x.png"),
    "predict: no image": predicted("IMAGES", images="", status=2),
    "predict: empty folder": predicted(
        "holds no image (0 folders, 0", emptied("new/images"), images="{}/new/images"
    ),
    "predict: pattern that fits nothing": predicted("holds no image (0 folders, 0", images="{}/new/*.jpg"),
    "predict: another file": predicted("holds no image (0 folders, 1", new("a.txt", "x"), images="{}/a.txt"),
    "predict: two images of a name": predicted(
        "both would be written as", both(new("new/images/b_p0001.png", NOISE),
                                         pixels("new/images/b.tif", np.stack([TWO] * 2))),
        images="{}/new/images",
    ),
    "predict: no weights": Row("predict {}/a.png --out {}/out", "--weights", status=2),
    "predict: unknown weights": Row(
        "predict {}/new/images --weights mars --out {}/out", "weights 'mars': no such file", needs=("new",)
    ),
    "predict: weights folder": predicted("is a folder, expected", new("weights/x.safetensors/a", "x"), "x"),
    "predict: weights of text": predicted("cannot be read", new("weights/x.safetensors", "text"), "x"),
    "predict: empty weights": predicted("cannot be read", new("weights/x.safetensors", b""), "x"),
    "predict: cut weights": predicted("cannot be read", cut("weights/good.safetensors", 3000)),
    "predict: weights of another program": predicted(
        "no entry 'panolib'",
        lambda place: save_file(load_file(place.first("weights/*")), place.root / "weights/x.safetensors"),
        "x",
    ),
    "predict: weights of another format": predicted(
        "format: expected 2, found 9", tensors_as("weights/x.safetensors", lambda t, s: s.update(format=9)),
        "x",
    ),
    "predict: weights without a setting": predicted(
        "bandwidth: missing key", tensors_as("weights/x.safetensors", lambda t, s: s.pop("bandwidth")), "x"
    ),
    "predict: weights without a tensor": predicted(
        "weights that do not fit", tensors_as("weights/x.safetensors", lambda t, s: t.pop(min(t))), "x"
    ),
    "predict: out is a file": predicted("file is a file", new("file", "x"), out="{}/file"),
    "predict: out below a file": predicted("file is a file", new("file", "x"), out="{}/file/x"),
    "predict: out among images": predicted("images to predict lie there", out="{}/new"),
    "predict: out of others": predicted("summary.csv: was not written by", new("out/summary.csv", "x")),
    "predict: damaged record": predicted("a.json", new("out/records/a.json", "{}")),
    "predict: small tile": predicted("found '159'", options="--tile 159", status=2),
    "predict: tile of text": predicted("found 'x'", options="--tile x", status=2),
    "predict: scale of 0": predicted("found '0'", options="--scale 0", status=2),
    "predict: scale that is no number": predicted("found 'nan'", options="--scale nan", status=2),
    "predict: unknown option": predicted("--fast", options="--fast", status=2),
    "predict: empty TIFF": predicted("no readable image", content("new/images/a.tif", b"")),
    "predict: text as TIFF": predicted("no readable image", content("new/images/a.tif", "<html>")),
    "predict: image of floats": predicted("float32", pixels("new/images/a.tif", TWO.astype(np.float32))),
    "predict: cut PNG": predicted("cut short", both(new("p.png", NOISE), cut("p.png")), images="{}/p.png"),
    "predict: text as JPEG": predicted("no readable image", new("p.jpg", "text"), images="{}/p.jpg"),
    "predict: a microscope's format": predicted("bioio", new("p.nd2", "nikon"), images="{}/p.nd2"),
}  # fmt: skip

# ---- profiles: `runs` reads one and lists what it asks for


def profile(words: str, text: str | bytes, name: str = "mine.yaml") -> Row:
    return Row(f"runs --profile {{}}/{name}", words, new(name, text))


def setting(words: str, **sections) -> Row:
    """Another value somewhere in a profile that is good."""
    return Row("runs --profile {}/rows.yaml", words, lambda place: place.profile(**sections))


def of_city(words: str, **sections) -> Row:
    return setting(words, city=sections)


def trained(words: str, **values) -> Row:
    return of_city(words, semantic_baseline=values)


PROFILES = {
    "profile: unknown name": Row("runs --profile mars", "profile 'mars'"),
    "profile: no file": Row("runs --profile {}/none.yaml", "none.yaml"),
    "profile: a folder": Row("runs --profile {}/x.yaml", "x.yaml", new("x.yaml/a", "x")),
    "profile: unset variable": Row("runs --profile $NOT_SET_HERE/x.yaml", "variable $NOT_SET_HERE"),
    "profile: empty": profile("found None", ""),
    "profile: a list": profile("found [1, 2]", "[1, 2]"),
    "profile: no YAML": profile("mine.yaml", "a: [1"),
    "profile: tab": profile("mine.yaml", "a:\n\tb: 1"),
    "profile: other encoding": profile("utf-8", "a: schön".encode("latin-1")),
    "profile: binary": profile("mine.yaml", b"\x00\x01\x02"),
    "profile: conflict of git": profile("mine.yaml", "<<<<<<< HEAD\nextends: smoke\n=======\n>>>>>>> x\n"),
    "profile: key twice": profile("key 'seeds' is given twice", "extends: smoke\nseeds: [0]\nseeds: [1]"),
    "profile: no such date": profile("mine.yaml", "extends: smoke\ndescription: 2023-13-45"),
    "profile: unknown tag": profile("mine.yaml", "extends: smoke\ndescription: !bad x"),
    "profile: holds itself": profile("mine.yaml", "extends: smoke\ncompute: &a\n  b: *a"),
    "profile: extends an unknown one": profile("profile 'mars'", "extends: mars"),
    "profile: extends no file": profile("none.yaml", "extends: ./none.yaml"),
    "profile: extends a number": profile("extends", "extends: 3"),
    "profile: extends itself": profile("extends itself", "extends: ./mine.yaml"),
    "profile: extends in a circle": Row(
        "runs --profile {}/a.yaml", "extends itself",
        both(new("a.yaml", "extends: ./b.yaml"), new("b.yaml", "extends: ./a.yaml")),
    ),
    "profile: name of another": profile("its results would be those of", "extends: smoke", "cpu.yaml"),
    "profile: removes nothing": profile("expected a key to remove", "extends: smoke\ncity: {x: !remove }"),
    "profile: unknown section": setting("unknown key", towns={"iterations": 3}),
    "profile: misspelt section": setting("did you mean 'performance'", performence={"n_images": 3}),
    "profile: no seeds": setting("seeds: expected a list with 1 or more", seeds=[]),
    "profile: seed twice": setting("seeds: expected different items", seeds=[0, 0]),
    "profile: negative seed": setting("expected >= 0, found -1", seeds=[-1]),
    "profile: seeds is a number": setting("seeds: expected a list, found 3", seeds=3),
    "profile: no main section": setting("main", main="mars"),
    "profile: main is a number": setting("found 3", main=3),
    "profile: section of text": setting("found 'all'", nuclei="all"),
    "profile: main section left out": setting("found None", city=None),
    "profile: unknown key of a domain": of_city("did you mean 'panoptic'", panoptik={}),
    "profile: unknown key of a training": trained("did you mean 'iterations'", iteration=5),
    "profile: text for a number": trained("iterations: expected int, found 'many'", iterations="many"),
    "profile: yes for a number": trained("iterations: expected int, found True", iterations=True),
    "profile: half an iteration": trained("iterations: expected int, found 2.5", iterations=2.5),
    "profile: no iterations": trained("iterations: expected >= 1, found 0", iterations=0),
    "profile: no batch": trained("batch_size: expected >= 1, found -2", batch_size=-2),
    "profile: share above 1": trained(
        "expected <= 1, found 1.5", augmentation={"hflip": 1.5}
    ),
    "profile: falling pair": trained("values in rising order", augmentation={"scale": [2.0, 0.5]}),
    "profile: rate of 0": trained("lr: expected > 0, found 0", optimiser={"lr": 0}),
    "profile: rate that is infinite": trained("lr", optimiser={"lr": float("inf")}),
    "profile: unknown optimiser": trained("found 'lion'", optimiser={"name": "lion"}),
    "profile: unknown encoder": trained("'resnet_of_mars'", network={"encoder": {"name": "resnet_of_mars"}}),
    "profile: weights that are not there": trained(
        "no such file", network={"encoder": {"weights": "/nowhere/x.pth"}}
    ),
    "profile: a ResNet of old": trained("depth: unknown key", network={"depth": 18}),
    "profile: unknown version": trained("found 'v9'", network={"version": "v9"}),
    "profile: no encoder": trained("encoder", network={"encoder": None}),
    "profile: unknown weights": trained(
        "IMAGENET1K_V9", network={"encoder": {"name": "resnet18", "weights": "IMAGENET1K_V9"}}
    ),
    "profile: unknown precision": setting("found '8-true'", compute={"precision": "8-true"}),
    "profile: unknown accelerator": setting("found 'abacus'", compute={"accelerator": "abacus"}),
    "profile: no device": setting("devices: expected >= 1, found 0", compute={"devices": 0}),
    "profile: unknown strategy": setting("found 'hope'", compute={"strategy": "hope"}),
    "profile: negative loaders": setting("found -1", compute={"loader_workers": -1}),
    "profile: unknown source": of_city("found 'mars/train'", semantic_source="mars/train"),
    "profile: unknown label set": of_city("label_set: expected 'cityscapes'", label_set="nuclei"),
    "profile: unknown class": of_city("found 'dragon'", data={"mix_requires": ["dragon"]}),
    "profile: negative allowance": of_city("found -1", data={"gta5_missing": -1}),
    "profile: more held out than drawn": of_city("found 60", data={"n_val_synthia": 60}),
    "profile: unset variable in data": of_city("$NOT_SET_HERE", data={"gta5": "$NOT_SET_HERE/x"}),
    "profile: margins without a kernel": of_city(
        "delta_var is 0", instance_baseline={"margins": {"delta_var": 0.0}}
    ),
    "profile: unknown merge rule": of_city("found 'vote'", panoptic={"merge_rules": ["vote"]}),
    "profile: own section like nothing": setting(
        "cells.like", cells={"like": "mars", "data": {"source": {"root": "a"}, "target": {"root": "b"}}}
    ),
    "profile: own section without target": setting(
        "cells.data", cells={"like": "city", "data": {"source": {"root": "a"}}}
    ),
}  # fmt: skip

# ---- other commands


def command(line: str, words: str, spoil=lambda place: None, status: int = 1) -> Row:
    """A command on a study of the city."""

    def prepare(place: Place) -> None:
        place.profile(city={"data": {"synthia": "a", "gta5": "b", "cityscapes": "c"}})
        spoil(place)

    return Row(f"{line} --profile {{}}/rows.yaml", words, prepare, status)


def answers(words: str, text: str | bytes | None, **made_by) -> Row:
    """A profile that names a folder of pairs with answers; None: without."""

    def prepare(place: Place) -> None:
        place.write("pairs/fingerprint.json", json.dumps({**PAIRS, **made_by}))
        if text is not None:
            place.write("pairs/answers.jsonl", text)
        place.profile(active={"answers_folder": "pairs"})

    return Row("runs --profile {}/rows.yaml", words, prepare)


def answer(**changed) -> str:
    return json.dumps({**ANSWER, **changed}) + "\n"


def parts(*contents: bytes):
    return lambda place: [place.write(f"parts/runs.tar.{i:03d}", each) for i, each in enumerate(contents)]


SLURM = "train --cluster slurm --cluster-settings {}/slurm.yaml"
GAP, PANOPTIC = "city-gap-source_only-s0", "city-panoptic-self_trained-s0"
CANDIDATES = "city-candidates-active.disagreement.2.1-s0"
PAIRS = {"key": "0", "domain": "city", "seed": 0}  # what a folder of pairs says of its run
ANSWER = {"image": "a", "shown": ["student", "teacher"], "choice": "teacher", "seconds": 1.0}


def slurm(text: str, words: str) -> Row:
    return command(SLURM, words, new("slurm.yaml", text))


COMMANDS = {
    "no command": Row("", "command", status=2),
    "unknown command": Row("fly", "fly", status=2),
    "train: no profile": Row("train", "--profile", status=2),
    "train: no name of a profile": Row("train --profile", "--profile", status=2),
    "train: several devices and workers": Row(
        "train --workers 2 --profile {}/rows.yaml", "expected --workers 1",
        lambda place: place.profile(compute={"devices": 2}),
    ),
    "train: no run fits": command("train --only mars-*", "--only mars-*"),
    "train: no worker": command("train --workers 0", "found '0'", status=2),
    "train: workers of text": command("train --workers two", "found 'two'", status=2),
    "train: negative workers": command("train --workers -1", "--workers", status=2),
    "train: no minutes": command("train --minutes 0", "found '0'", status=2),
    "train: minutes of text": command("train --minutes soon", "found 'soon'", status=2),
    "train: minutes that are no number": command("train --minutes nan", "found 'nan'", status=2),
    "train: unknown cluster": command("train --cluster moon", "moon", status=2),
    "train: no address": command("train --scheduler nowhere", "found 'nowhere'", status=2),
    "train: address without a port": command("train --scheduler tcp://host", "found 'tcp://host'", status=2),
    "train: cluster and scheduler": command("train --cluster slurm --scheduler tcp://a:1", "not allowed",
                                            status=2),
    "train: slurm without settings": command("train --cluster slurm", "--cluster-settings FILE"),
    "train: settings without slurm": command("train --cluster-settings {}/x.yaml", "--cluster slurm"),
    "train: no settings there": command(SLURM, "slurm.yaml: no such file"),
    "train: settings without queue": slurm("walltime: '1:00:00'", "queue: missing key"),
    "train: odd walltime": slurm("{queue: a, walltime: long}", "walltime: expected"),
    "train: odd memory": slurm("{queue: a, walltime: '1:00:00', memory: much}", "memory: expected a size"),
    "train: unknown setting": slurm("{queue: a, walltime: '1:00:00', gpu: 1}", "did you mean 'gpus'?"),
    "reproduce: unknown notebook": command("reproduce --notebook 99", "one that begins with '99'"),
    "reproduce: section left out": command("reproduce --notebook 10", "no section 'detr'"),
    "reproduce: no device": Row(
        "reproduce --dry-run --notebook 07 --profile {}/rows.yaml", "a device of the kind 'cuda'",
        lambda place: place.profile(compute={"accelerator": "cuda"}),
    ),
    "bench: section left out": command("bench", "section 'performance'"),
    "export: unknown run": command("export --run mars --out {}/out", "--run mars"),
    "export: no network": command(f"export --run {GAP} --out {{}}/out", "of kind 'gap'"),
    "export: out is a file": command(f"export --run {PANOPTIC} --out {{}}/x", "x: is a file", new("x", "x")),
    "export: out below a file": command(
        f"export --run {PANOPTIC} --out {{}}/x/y", "x is a file", new("x", "x")
    ),
    "export: out of others": command(
        f"export --run {PANOPTIC} --out {{}}/x", "x: holds files", new("x/a", "x")
    ),
    "export: replaces an export only": command(
        f"export --run {PANOPTIC} --out {{}}/x --overwrite", "files that no export wrote", new("x/a", "x")
    ),
    "export: no run": command("export --out {}/out", "--run", status=2),
    "pairs: unknown run": command("pairs --run mars --out {}/out", "--run mars"),
    "pairs: none of a run": command(f"pairs --run {GAP} --out {{}}/out", "of kind 'gap'"),
    "pairs: not trained": command(f"pairs --run {CANDIDATES} --out {{}}/out", f"--only {CANDIDATES}"),
    "pairs: out of others": command(
        f"pairs --run {CANDIDATES} --out {{}}/x", "x: is there already", new("x/answers.jsonl", "x")
    ),
    "pairs: out below a file": command(
        f"pairs --run {CANDIDATES} --out {{}}/x/y", "x is a file", new("x", "x")
    ),
    "pairs: no out": command(f"pairs --run {CANDIDATES}", "--out", status=2),
    "answers: no folder": setting("pairs: expected a folder", active={"answers_folder": "pairs"}),
    "answers: a number": setting("answers_folder: expected str", active={"answers_folder": 3}),
    "answers: pairs of nobody": Row(
        "runs --profile {}/rows.yaml", "none that says so in its fingerprint.json",
        lambda place: (place.write("pairs/answers.jsonl", answer()),
                       place.profile(active={"answers_folder": "pairs"})),
    ),
    "answers: no file": answers("answers.jsonl: expected answers, found none", None),
    "answers: empty": answers("answers.jsonl: expected answers, found none", ""),
    "answers: all undone": answers("expected answers, found none", answer() + '{"undo": "a"}\n'),
    "answers: damaged": answers("answers.jsonl: line 2: expected an answer", answer() + "no json\n"),
    "answers: binary": answers("answers.jsonl: line 1: expected an answer", b"\xff\xfe\x00\n"),
    "answers: choice of no network": answers("expected student or teacher", answer(
        shown=["true", "joined"], choice="true")),
    "answers: negative seconds": answers("seconds: expected >= 0, found -1.0", answer(seconds=-1.0)),
    "answers: about another domain": answers("has pairs of nuclei with seed 0", answer(), domain="nuclei"),
    "answers: about another seed": answers("has pairs of city with seed 7", answer(), seed=7),
    "weights: unknown run": command("weights --run mars --out {}/a.safetensors", "--run mars"),
    "weights: no panoptic run": command(f"weights --run {GAP} --out {{}}/a.safetensors", "of kind 'gap'"),
    "weights: other suffix": command(f"weights --run {PANOPTIC} --out {{}}/a.pth", "a.pth"),
    "weights: out below a file": command(
        f"weights --run {PANOPTIC} --out {{}}/x/a.safetensors", "x is a file", new("x", "x")
    ),
    "pack: out is a file": command("pack --out {}/x", "x is a file", new("x", "x")),
    "pack: parts are there": command("pack --out {}/parts", "is there already", parts(b"x")),
    "unpack: no folder": command("unpack {}/none", "found none"),
    "unpack: first part lost": command("unpack {}/parts", "runs.tar.001", new("parts/runs.tar.001", "x")),
    "unpack: no tar file": command("unpack {}/parts", "cannot be read", parts(b"no tar file" * 99)),
    "unpack: empty part": command("unpack {}/parts", "cannot be read", parts(b"")),
}  # fmt: skip

TABLE = {**STREETS, **CAMVID, **NUCLEI_ROWS, **FOLDERS, **COCO, **LABEL_SET, **OTHER_ADAPT, **PREDICT,
         **PROFILES, **COMMANDS}  # fmt: skip


# ---- the tests


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    """A project of its own, with the notebooks and profiles of this one; label sets are gone after it."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "panolib"\n')
    (tmp_path / "notebooks").symlink_to(STUDY / "notebooks")
    three = {"classes": ["background", "nucleus", "debris"], "things": ["nucleus"]}
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(three))
    monkeypatch.chdir(tmp_path)
    before = dict(LABEL_SETS)
    yield Place(tmp_path)
    for name in LABEL_SETS.keys() - before.keys():
        del LABEL_SETS[name]


def told(arguments: list[str], capfd) -> tuple[int, list[str]]:
    """Exit status and lines of errors of a command; bars and what argparse says of its usage are none."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    lines = [line.strip() for line in capfd.readouterr().err.replace("\r", "\n").splitlines()]
    if status == 2:
        return status, [line for line in lines if "error: " in line]
    return status, [line for line in lines if line and "image/s]" not in line]


def test_there_are_rows_for_every_reader_and_command():
    assert len(TABLE) == sum(map(len, (STREETS, CAMVID, NUCLEI_ROWS, FOLDERS, COCO, LABEL_SET, OTHER_ADAPT,
                                       PREDICT, PROFILES, COMMANDS))) > 200  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_told_in_one_line(name, place, good, capfd):
    row = TABLE[name]
    for folder in row.needs:
        shutil.copytree(good / folder, place.root / folder)
    row.spoil(place)
    status, lines = told(row.command.replace("{}", str(place.root)).split(), capfd)
    assert status == row.status and len(lines) == 1, lines
    assert row.words.replace("{}", str(place.root)) in lines[0] and "Traceback" not in lines[0]
    assert status == 2 or "expected" in lines[0] or "expects" in lines[0]


@pytest.mark.parametrize(
    "line", ["predict {}/x.png --weights nuclei --out {}/out", "adapt --source {}/x --target {}/y --out {}/z"]
)
def test_a_path_that_leads_nowhere_is_told_at_once(line, tmp_path):
    """Before torch is imported, which takes seconds."""
    code = "import sys; from panolib.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, *line.replace("{}", str(tmp_path)).split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and "/x" in done.stderr and len(done.stderr.splitlines()) == 1


FAULTS = {"file": "is a file", "read-only": "may not be written", "full": "free space, found 1e-06 GB"}
TRAINING = {
    "train": "train --only *source_only* --workers 1 --profile {}/rows.yaml",
    "reproduce": "reproduce --notebook 07 --workers 1 --profile {}/rows.yaml",
    "adapt": ADAPT + "cells",
}


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_takes_no_results_is_told_before_training(name, fault, place, good, capfd, monkeypatch):
    for folder in ("cells", "new"):
        shutil.copytree(good / folder, place.root / folder)
    place.profile(city={"data": {"synthia": "a", "gta5": "b", "cityscapes": "c"}, "gap": None})
    results = place.root / ("out" if name == "adapt" else "results")
    if fault == "file":
        results.write_text("in the way")
    elif fault == "read-only":
        results.mkdir()
        access = os.access
        asked = lambda path, mode, **options: Path(path) != results and access(path, mode, **options)  # noqa: E731
        monkeypatch.setattr(os, "access", asked)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    status, lines = told(TRAINING[name].replace("{}", str(place.root)).split(), capfd)
    assert status == 1 and len(lines) == 1 and FAULTS[fault] in lines[0] and "expected" in lines[0], lines
    assert not list(place.root.rglob("work")) and not list(place.root.rglob("curves.csv"))
    assert not (place.root / "a").exists()  # nothing was drawn


def test_a_dry_run_tells_of_results_that_cannot_be_written(place, capfd):
    place.write("results", "in the way")
    place.profile(city={"data": {"synthia": "a", "gta5": "b", "cityscapes": "c"}, "gap": None})
    status, lines = told(["reproduce", "--dry-run", "--notebook", "07", "--profile", "rows.yaml"], capfd)
    assert status == 1 and len(lines) == 1 and "results is a file, expected" in lines[0]
