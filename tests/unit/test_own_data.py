"""Any folder of images: its readers, its intensities and scale, and what is wrong with it."""

from __future__ import annotations

import json
import re
import sys
import types

import cv2
import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter

from panolib.data.any_image import n_pages, read_page
from panolib.data.check import check_folders, otsu_objects
from panolib.data.errors import DataError
from panolib.data.images import read_ids, read_image, scale_intensity, stretch_intensity
from panolib.data.intensity import Intensity, percentiles_of
from panolib.data.label_sets import read_label_set
from panolib.data.readers import CocoPanoptic, Folders
from panolib.data.readers.own import OwnData, OwnFolder, OwnSources, diameters
from panolib.errors import UserError
from panolib.labels import LABEL_SETS, NUCLEI, VOID

SIZE = (6, 8)
TWO = np.zeros(SIZE, np.uint16)
TWO[1:3, 1:4], TWO[4:, 5:] = 3, 700  # two objects of 6 pixels


@pytest.fixture(autouse=True)
def label_sets(monkeypatch):
    """Those of a test are gone after it."""
    for name in list(LABEL_SETS):
        monkeypatch.setitem(LABEL_SETS, name, LABEL_SETS[name])
    before = dict(LABEL_SETS)
    yield
    for name in LABEL_SETS.keys() - before.keys():
        del LABEL_SETS[name]


def save(path, pixels):
    """A TIFF, or by OpenCV (channels in its order)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        is_rgb = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
        tifffile.imwrite(path, pixels, photometric="rgb" if is_rgb else "minisblack")
    else:
        assert cv2.imwrite(str(path), pixels)


def read_pages(path):
    return [read_page(path, i) for i in range(n_pages(path))]


def ramp(size=SIZE, dtype=np.uint8):
    return np.arange(size[0] * size[1], dtype=dtype).reshape(size)


@pytest.fixture
def cells(tmp_path):
    """Three images in the layout of StarDist."""
    for i, name in enumerate("abc"):
        save(tmp_path / "cells" / "images" / f"{name}.tif", ramp() + i)
        save(tmp_path / "cells" / "masks" / f"{name}.tif", TWO)
    return tmp_path / "cells"


TISSUE = {"classes": ["background", "nucleus", "debris"], "things": ["nucleus"], "void": 9}


@pytest.fixture
def tissue(tmp_path):
    """(folder, label set) of one image with a class for every pixel."""
    (tmp_path / "tissue.yaml").write_text(yaml.safe_dump(TISSUE))
    classes = np.where(TWO > 0, 1, 0).astype(np.uint8)
    classes[0] = 2
    classes[5, 0] = 9
    save(tmp_path / "tissue" / "images" / "a.png", ramp())
    save(tmp_path / "tissue" / "classes" / "a.png", classes)
    save(tmp_path / "tissue" / "masks" / "a.png", TWO)
    return tmp_path / "tissue", read_label_set(tmp_path / "tissue.yaml")


SEGMENTS = [
    {"id": 5, "category_id": 7, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]},
    {"id": 70_000, "category_id": 30, "iscrowd": 0},
    {"id": 9, "category_id": 30, "iscrowd": 1},
]
CATEGORIES = [
    {"id": 30, "name": "cat", "isthing": 1, "color": [1, 2, 3], "supercategory": "animal"},
    {"id": 7, "name": "grass", "isthing": 0},
]


@pytest.fixture
def coco(tmp_path):
    """A JSON file, its PNGs in the folder of its name and two photos, as COCO has it."""
    root = tmp_path / "coco"
    ids = np.full(SIZE, 5)
    ids[0], ids[2:4, 2:4], ids[5, 4:] = 0, 70_000, 9
    png = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], 2).astype(np.uint8)
    content = {"info": {}, "images": [], "annotations": [], "categories": CATEGORIES}
    for i in (11, 12):
        save(root / "val2017" / f"{i:04d}.jpg", np.dstack([ramp()] * 3))
        save(root / "annotations" / "panoptic_val2017" / f"{i:04d}.png", png)
        content["images"].append({"id": i, "file_name": f"{i:04d}.jpg", "height": 6})
        segments = {"image_id": i, "file_name": f"{i:04d}.png", "segments_info": SEGMENTS}
        content["annotations"].append(segments)
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return root


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------- images of any kind


COLOURS = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_rgb_and_rgba_of_8_and_16_bits(tmp_path, dtype, suffix, channels):
    pixels = COLOURS.astype(dtype) * (1 if dtype == np.uint8 else 257)
    pixels = pixels[..., 0] if channels == 1 else pixels[..., :channels]
    stored = pixels
    if suffix == ".png" and channels > 1:
        stored = pixels[..., [2, 1, 0, 3][:channels]]  # B, G, R
    save(tmp_path / f"a{suffix}", stored)
    (page,) = read_pages(tmp_path / f"a{suffix}")
    assert page.dtype == dtype
    np.testing.assert_array_equal(page, pixels if channels == 1 else pixels[..., :3])
    assert n_pages(tmp_path / f"a{suffix}") == 1


def test_jpeg_and_bmp(tmp_path):
    Image.fromarray(COLOURS[..., :3]).save(tmp_path / "a.BMP")
    np.testing.assert_array_equal(read_pages(tmp_path / "a.BMP")[0], COLOURS[..., :3])
    Image.fromarray(np.full(SIZE, 90, np.uint8)).save(tmp_path / "a.jpg")
    assert read_pages(tmp_path / "a.jpg")[0].tolist() == np.full(SIZE, 90).tolist()


@pytest.mark.parametrize("axes", ["ZYX", "ZCYX", "TYXS", "planar"])
def test_stacks_are_their_pages_in_order(tmp_path, axes):
    path = tmp_path / "a.tif"
    shape = {"ZYX": (4, *SIZE), "ZCYX": (2, 2, *SIZE), "TYXS": (4, *SIZE, 3), "planar": (3, *SIZE)}[axes]
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    if axes == "planar":
        tifffile.imwrite(path, pixels, photometric="rgb", planarconfig="separate")
        expected = pixels.transpose(1, 2, 0)[None]
    else:
        tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": axes})
        expected = pixels.reshape(4, *SIZE, *([3] if axes == "TYXS" else []))
    pages = read_pages(path)
    assert n_pages(path) == len(pages) == len(expected)
    for page, wanted in zip(pages, expected):
        np.testing.assert_array_equal(page, wanted)


def test_a_compression_that_tifffile_leaves_to_another_package(tmp_path):
    path = tmp_path / "a.tif"
    stack = np.stack([TWO, TWO[::-1]])
    assert cv2.imwritemulti(str(path), list(stack), [cv2.IMWRITE_TIFF_COMPRESSION, 5])  # LZW
    np.testing.assert_array_equal(read_pages(path), stack)
    assert n_pages(path) == 2


class StandInBioImage:
    """What bioio 3 says of a file with three slices of two stains: `data` is T, C, Z, Y, X."""

    def __init__(self, path):
        self.data = np.arange(6 * 48, dtype=np.uint16).reshape(1, 2, 3, *SIZE)
        self.shape, self.dims = self.data.shape, types.SimpleNamespace(order="TCZYX")


def test_formats_of_microscopes_are_read_by_bioio(tmp_path, monkeypatch):
    stand_in = types.SimpleNamespace(BioImage=StandInBioImage)
    monkeypatch.setitem(sys.modules, "bioio", stand_in)
    save(tmp_path / "images" / "b.png", ramp())
    (tmp_path / "images" / "a.czi").write_bytes(b"zeiss")
    data = Folders(tmp_path, with_labels=False)
    assert data.ids == [*(f"a/{i:04d}" for i in range(1, 7)), "b"]
    np.testing.assert_array_equal(data.raw(1), np.arange(48, 96).reshape(SIZE))


def test_what_bioio_refuses_is_one_short_line(tmp_path, monkeypatch):
    """In the words of bioio 3.6.0 without the plug-in of a format."""

    def refuse(path):
        raise ValueError(
            f"BioImage does not support the image: '{path}'. You may need to install an extra format "
            "dependency. See our list of known plugins in the bioio README."
        )

    monkeypatch.setitem(sys.modules, "bioio", types.SimpleNamespace(BioImage=refuse))
    (tmp_path / "a.czi").write_bytes(b"zeiss")
    told = r"a\.czi: no readable image: BioImage .* image: '.*a\.czi'; expected a whole file, and bioio's"
    with pytest.raises(DataError, match=told):
        n_pages(tmp_path / "a.czi")


# ---------------------------------------------------------------- folders


def test_images_and_masks_of_equal_names(cells):
    data = Folders(cells)
    assert data.ids == ["a", "b", "c"] and data.has_instances and data.label_set.name == "objects"
    sample = data[1]
    np.testing.assert_array_equal(sample.instance, TWO)
    np.testing.assert_array_equal(sample.semantic, TWO > 0)
    assert sample.instance.dtype == np.int32 and not sample.crowd.any() and sample.image.shape == (*SIZE, 3)
    np.testing.assert_array_equal(data.semantic(1), sample.semantic)


@pytest.mark.parametrize("endings", [("_masks.tif", "_cp_masks.png"), ("_cp_masks.tif", "_masks.png")])
@pytest.mark.parametrize("folder", [".", "images"])
def test_masks_beside_images_as_cellpose_writes_them(tmp_path, endings, folder):
    for name, ending in zip("ab", endings):
        save(tmp_path / folder / f"{name}.jpg", ramp())
        save(tmp_path / folder / f"{name}{ending}", TWO)
    (tmp_path / folder / "a_seg.npy").write_bytes(b"of Cellpose")
    (tmp_path / folder / "._a.jpg").write_bytes(b"of macOS")
    assert [sample.id for sample in Folders(tmp_path)] == ["a", "b"]
    np.testing.assert_array_equal(Folders(tmp_path)[1].instance, TWO)
    assert Folders(tmp_path, with_labels=False).ids == ["a", "b"]


def test_without_labels_no_mask_is_opened(cells):
    for mask in (cells / "masks").iterdir():
        mask.write_bytes(b"")
    samples = list(Folders(cells, with_labels=False))
    assert [sample.semantic for sample in samples] == [None] * 3
    assert not Folders(cells, with_labels=False).has_instances


def test_pages_of_a_stack_are_samples_with_their_own_masks(cells):
    save(cells / "images" / "s.tif", np.stack([ramp(), ramp() + 1, ramp() + 2]))
    save(cells / "masks" / "s.tif", np.stack([TWO, 0 * TWO, TWO // 3]))
    data = Folders(cells)
    assert data.ids[3:] == ["s/0001", "s/0002", "s/0003"]
    assert [int(data[i].instance.max()) for i in (3, 4, 5)] == [700, 0, 233]


def test_a_split_is_a_folder_or_drawn_by_name(cells, tmp_path):
    for i in range(7):
        save(cells / "images" / f"x{i}.png", ramp())
        save(cells / "masks" / f"x{i}.png", TWO)
    train, val = (Folders(cells, split).ids for split in ("train", "val"))
    assert len(val) == 2 and sorted(train + val) == Folders(cells).ids
    for split, names in (("train", "ab"), ("val", "b")):
        for name in names:
            save(tmp_path / "split" / split / "images" / f"{name}.png", ramp())
    opened = {s: Folders(tmp_path / "split", s, with_labels=False).ids for s in ("train", "val")}
    assert opened == {"train": ["a", "b"], "val": ["b"]}


@pytest.mark.parametrize("kind", ["palette", "8 bits", "int32", "bool", "large ids"])
def test_masks_of_any_type_are_the_same_objects(cells, kind):
    mask = {"int32": TWO.astype(np.int32), "bool": TWO > 3, "large ids": TWO.astype(np.uint32) * 100_000}
    (cells / "masks" / "a.tif").unlink()
    if kind in mask:
        save(cells / "masks" / "a.tif", mask[kind])
    else:
        image = Image.fromarray(np.where(TWO == 700, 9, TWO).astype(np.uint8))
        if kind == "palette":
            image.putpalette([(7 * i) % 256 for i in range(768)])
        image.save(cells / "masks" / "a.png")
    found = Folders(cells)[0].instance
    pairs = np.unique(np.stack([found.ravel(), mask.get(kind, TWO).astype(np.int64).ravel()]), axis=1)
    assert pairs.shape[1] == (2 if kind == "bool" else 3) and pairs[:, 0].tolist() == [0, 0]
    assert found.max() <= 2**16


def test_classes_of_pixels_beside_the_objects(tissue):
    folder, label_set = tissue
    sample = Folders(folder, label_set=label_set)[0]
    assert sample.semantic[0].tolist() == [2] * 8 and sample.semantic[5, 0] == VOID
    np.testing.assert_array_equal(sample.instance, TWO)
    save(folder / "masks" / "a.png", np.where(TWO == 3, 0, TWO))
    sample = Folders(folder, label_set=label_set)[0]
    assert sample.crowd.sum() == 6 and sample.semantic[sample.crowd].tolist() == [1] * 6
    (folder / "masks" / "a.png").unlink()
    (folder / "masks").rmdir()
    data = Folders(folder, label_set=label_set)
    assert not data.has_instances and data[0].crowd.sum() == 12


# ---------------------------------------------------------------- COCO


def test_segments_of_coco(coco):
    data = CocoPanoptic(coco)
    assert data.ids == ["11", "12"] and data.label_set.classes == ("grass", "cat")
    assert data.label_set.things == ("cat",) and data.label_set.file_ids == (7, 30)
    assert data.label_set.colours[1] == (1, 2, 3)
    sample = data[0]
    assert sample.semantic[0].tolist() == [VOID] * 8 and sample.semantic[1].tolist() == [0] * 8
    assert sample.semantic[2, 2] == 1 and (sample.instance > 0).sum() == 4 and sample.crowd.sum() == 4
    assert not (sample.crowd & (sample.instance > 0)).any()
    for png in (coco / "annotations").rglob("*.png"):
        png.unlink()
    assert [sample.semantic for sample in CocoPanoptic(coco, with_labels=False)] == [None, None]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_are_ids(channels, tmp_path):
    """Grey repeated, alpha dropped, as when an image is read."""
    path, rng = tmp_path / "ids.png", np.random.default_rng(0)
    stored = rng.integers(0, 256, (5, 7, channels), np.uint8)
    path.write_bytes(cv2.imencode(".png", stored)[1])
    ids = read_ids(path)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, read_image(path).astype(np.int64) @ [1, 256, 65536])
    path.write_bytes(cv2.imencode(".png", stored.astype(np.uint16))[1])
    with pytest.raises(DataError, match=r"ids\.png: image of uint16, expected 8 bits a channel"):
        read_ids(path)


def test_splits_of_coco_never_overlap(coco):
    """Whatever the files are called."""
    splits = [CocoPanoptic(coco, split).ids for split in ("train", "val")]
    assert sorted(map(len, splits)) == [1, 1] and splits[0] != splits[1]
    path = coco / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["images"].pop()
    path.with_name("panoptic_train2017.json").write_text(json.dumps(content))
    path.with_name("captions_train2017.json").write_text("{}")
    (coco / "train2017").symlink_to(coco / "val2017")
    train = CocoPanoptic(coco, "train", with_labels=False)
    assert train.ids == ["11"] and CocoPanoptic(coco, "val").ids == ["11", "12"]


def test_the_same_categories_are_the_same_label_set(coco, tmp_path):
    name = CocoPanoptic(coco).label_set.name
    path = coco / "annotations" / "panoptic_val2017.json"
    change(path, lambda content: content["categories"].reverse())
    assert CocoPanoptic(coco).label_set.name == name
    change(path, lambda content: content["categories"][0].update(isthing=1))
    assert CocoPanoptic(coco).label_set.name != name
    nuclei = [{"id": i, "name": n, "isthing": i} for i, n in enumerate(NUCLEI.classes)]
    change(path, lambda content: content.update(categories=nuclei))
    change(path, lambda content: [row.update(segments_info=[]) for row in content["annotations"]])
    assert CocoPanoptic(coco).label_set is NUCLEI


# ---------------------------------------------------------------- intensities and scale


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_percentiles_of_a_set_are_those_of_all_its_values(dtype):
    rng = np.random.default_rng(3)
    high = np.iinfo(dtype).max
    images = [rng.integers(0, high, (5, 7 + i), dtype=dtype) // (i + 1) for i in range(4)]
    values = np.concatenate([image.ravel() for image in images])
    for percentiles in ((1.0, 99.8), (0.0, 100.0), (12.5, 50.0)):
        expected = np.percentile(values, percentiles)
        assert percentiles_of(images, percentiles) == tuple(expected)  # also as rounded


def test_16_bits_are_scaled_as_8_bits_are():
    image = np.random.default_rng(4).integers(10, 90, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        stretch_intensity(image),
        scale_intensity(image.astype(np.uint16), *np.percentile(image, (1.0, 99.8))),
    )
    ends = scale_intensity(np.array([[99, 100, 300, 610, 611]], np.uint16), 100, 610)
    assert ends[0, :, 0].tolist() == [0, 0, 100, 255, 255] and ends.shape == (1, 5, 3)
    assert not scale_intensity(np.full((2, 2), 7, np.uint16), 7, 7).any()


def test_a_dark_image_stays_dark_among_those_of_its_set(tmp_path):
    for name, factor in (("bright", 1000), ("dark", 10)):
        save(tmp_path / f"{name}.tif", ramp(dtype=np.uint16) * factor)
    means = {}
    for over in ("image", "set"):
        data = Folders(tmp_path, with_labels=False, intensity=Intensity(over=over))
        means[over] = [int(sample.image.mean()) for sample in data]
    assert means["image"][0] == means["image"][1] > 100
    assert means["set"][0] > 100 and means["set"][1] < 3
    assert data.limits[1] > 40_000
    fixed = Folders(tmp_path, with_labels=False, intensity=Intensity(over="set"), limits=(0.0, 470.0))
    assert fixed[1].image.max() == 255


def own(root, source="cells", target="cells", **settings) -> OwnSources:
    """`source` and `target`: a folder, or the values of `OwnFolder`."""
    folders = [OwnFolder(root=f) if isinstance(f, str) else OwnFolder(**f) for f in (source, target)]
    return OwnSources(OwnData(*folders, **settings), root)


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [
        ({}, {}, 1.0),
        ({"pixel_size": 0.5}, {"pixel_size": 0.25}, 2.0),
        ({"diameter": 10.0}, {"diameter": 5.0}, 0.5),
        ({}, {"diameter": 2 * np.sqrt(24 / np.pi)}, 2.0),  # its objects have 6 pixels
    ],
)
def test_the_source_takes_the_scale_of_the_target(cells, source, target, factor):
    sources = own(cells.parent, {"root": "cells", **source}, {"root": "cells", **target})
    assert sources.factor == pytest.approx(factor)
    sample = sources.open("source/train")[0]
    assert sample.image.shape[:2] == sample.instance.shape == tuple(round(n * factor) for n in SIZE)
    if factor == 2:
        np.testing.assert_allclose(diameters(sample.instance), 2 * np.sqrt(24 / np.pi))
    assert sources.open("target/train:unlabelled")[0].image.shape[:2] == SIZE


def test_fingerprints_say_what_changes_a_data_set(cells):
    root = cells.parent
    names = ("source/train", "target/train:unlabelled")

    def prints(*args, **settings):
        return [own(root, *args, **settings).fingerprint(name) for name in names]

    plain = prints()
    assert prints() == plain
    assert prints(intensity=Intensity(over="set"))[1] != plain[1]
    scaled = prints("cells", {"root": "cells", "diameter": 4.0})
    assert scaled[0] != plain[0] and scaled[1] == plain[1]
    assert prints(label_set="nuclei") != plain
    save(cells / "masks" / "a.tif", TWO // 2)
    assert prints()[0] != plain[0]
    assert str(root) not in "".join(plain)


def test_settings_of_the_input_go_with_the_weights(cells):
    sources = own(cells.parent, "cells", {"root": "cells", "diameter": 3.0}, intensity=Intensity(over="set"))
    found = json.loads(json.dumps(sources.preprocessing()))
    assert found["intensity"] == {"percentiles": [1.0, 99.8], "over": "set"} and found["diameter"] == 3.0
    np.testing.assert_allclose(found["limits"], sources.open("target/train:unlabelled")._dataset.limits)


# ---------------------------------------------------------------- bad input


def tiff(path, pixels):
    return lambda root: save(root / path, pixels)


def write(path, content):
    return lambda root: (root / path).write_bytes(content)


def cut(path):
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:150])


def two_series(root):
    with tifffile.TiffWriter(root / "images/a.tif") as file:
        file.write(ramp())
        file.write(ramp((7, 8)))


def jpeg_cut(root):
    path = root / "images/a.jpg"
    (root / "images/a.tif").unlink()
    save(path, COLOURS[..., :3])
    path.write_bytes(path.read_bytes()[:-40])


BAD_FOLDERS = {  # what is done to a good folder: what the message says
    "mask of another size": (
        tiff("masks/a.tif", TWO[:5]),
        r"a\.tif: label of 5 x 8 \(height x width\), expected 6 x 8 as its image",
    ),
    "no mask of an image": (
        lambda root: (root / "masks/b.tif").unlink(),
        r"cells: 1 of 3 images have no mask, the first is b; expected one mask for each image",
    ),
    "no image of a mask": (tiff("masks/d.tif", TWO), r"1 of 4 masks have no image, the first is d; expected"),
    "float mask": (
        tiff("masks/a.tif", TWO.astype(np.float32)), r"a\.tif: mask of float32, expected whole numbers",
    ),
    "negative ids": (
        tiff("masks/a.tif", TWO.astype(np.int16) - 1), r"a\.tif: mask with value -1, expected 0 ",
    ),
    "ids beyond 31 bits": (
        tiff("masks/a.tif", TWO.astype(np.uint32) * 2**22), r"value 2936012800, expected 0 .*2147483647",
    ),
    "mask with 3 channels": (
        tiff("masks/a.tif", np.dstack([TWO] * 3).astype(np.uint8)),
        r"a\.tif: mask with 3 channels, expected one",
    ),
    "colours as mask": (
        lambda root: ((root / "masks/a.tif").unlink(), save(root / "masks/a.png", COLOURS[..., :3])),
        r"a\.png: label of mode RGB, expected palette \(P\) or 8-bit grey",
    ),
    "JPEG as mask": (
        lambda root: ((root / "masks/a.tif").unlink(), save(root / "masks/a.jpg", TWO.astype(np.uint8))),
        r"a\.jpg: mask as \.jpg, which changes values; expected PNG or TIFF",
    ),
    "cut TIFF": (cut("images/a.tif"), r"a\.tif: no readable image: .*; expected a whole TIFF file"),
    "cut mask": (cut("masks/a.tif"), r"masks.a\.tif: no readable image: .*; expected a whole TIFF file"),
    "TIFF of text": (write("images/a.tif", b"<html>"), r"a\.tif: no readable image: .*expected a whole TIFF"),
    "empty TIFF": (write("masks/c.tif", b""), r"c\.tif: no readable image: .*; expected a whole TIFF file"),
    "cut JPEG": (jpeg_cut, r"a\.jpg: no readable image: .*truncated.*; expected a whole JPEG"),
    "pages of two sizes": (two_series, r"cells: 2 of 4 images have no mask, the first is a/0001; expected"),
    "float image": (
        tiff("images/a.tif", ramp(dtype=np.float32)), r"a\.tif: image of float32, expected uint8 or uint16",
    ),
    "signed image": (
        tiff("images/a.tif", ramp(dtype=np.int16)), r"a\.tif: image of int16, expected uint8 or uint16",
    ),
    "five samples a pixel": (
        lambda root: tifffile.imwrite(
            root / "images/a.tif", np.zeros((*SIZE, 5), np.uint8), photometric="minisblack",
            planarconfig="contig", extrasamples=["unspecified"] * 4,
        ),
        r"a\.tif: 5 samples a pixel, expected grey or RGB, perhaps with alpha",
    ),
    "two images of a name": (
        lambda root: save(root / "images/a.png", ramp()),
        r"a\.tif: has the name of .*a\.png, expected one file for 'a'",
    ),
    "two masks of an image": (
        tiff("masks/a_masks.tif", TWO), r"a_masks\.tif: has the name of .*a\.tif, expected one file for 'a'",
    ),
    "masks of fewer pages": (
        tiff("images/a.tif", np.stack([ramp()] * 3)),
        r"3 of 5 images have no mask, the first is a/0001; expected",
    ),
    "no masks at all": (
        lambda root: [file.unlink() for file in (root / "masks").iterdir()],
        r"cells: no masks, expected masks/X, or X_masks\.tif or X_cp_masks\.png beside image X; 3 images",
    ),
    "no image": (
        lambda root: [file.unlink() for file in (root / "images").iterdir()],
        r"cells: no image, expected images \(\.png, .*\) in images/ or in the folder itself",
    ),
    "format of a microscope": (
        lambda root: (save(root / "masks/d.tif", TWO), (root / "images/d.czi").write_bytes(b"zeiss")),
        r"d\.czi: \.czi is read by bioio, which is not installed; expected .*pip",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_folders(cells, spoil, message):
    assert len(list(Folders(cells))) == 3
    spoil(cells)
    with pytest.raises((UserError, FileNotFoundError), match=message) as caught:
        list(Folders(cells))
    assert "\n" not in str(caught.value) and str(cells) in str(caught.value)


def test_bad_choices(cells, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: no such folder, expected images"):
        Folders(tmp_path / "none")
    with pytest.raises(UserError, match=r"cells: split 'test', expected 'train', 'val' or 'all'"):
        Folders(cells, "test")
    save(cells / "images" / "a.tif", ramp(dtype=np.uint16))
    with pytest.raises(UserError, match=r"a\.tif: image of 16 bits, expected 8, or percentiles in"):
        Folders(cells, intensity=None)[0]
    with pytest.raises(UserError, match=r"a\.txt: found suffix '\.txt', expected one of \.png"):
        read_pages(tmp_path / "a.txt")
    for name in "bc":
        (cells / "images" / f"{name}.tif").unlink()
        (cells / "masks" / f"{name}.tif").unlink()
    with pytest.raises(UserError, match=r"cells: 1 image file, expected 2 or more"):
        Folders(cells, "train")


BAD_CLASSES = {
    "no classes": (
        lambda root: [(root / "classes/a.png").unlink(), (root / "classes").rmdir()],
        r"classes: no such folder, expected the class of every pixel, as the label set 'tissue' has more",
    ),
    "id outside the table": (
        lambda root: save(root / "classes/a.png", np.full(SIZE, 4, np.uint8)),
        r"a\.png: class id 4 outside the table, expected one of \[0, 1, 2, 9\]",
    ),
    "an object of stuff": (
        lambda root: save(root / "classes/a.png", np.full(SIZE, 2, np.uint8)),
        r"masks.a\.png: object 3 of class debris, expected one thing class",
    ),
    "classes of another size": (
        lambda root: save(root / "classes/a.png", np.zeros((2, 2), np.uint8)),
        r"masks.a\.png: mask of \(6, 8\), expected \(2, 2\) as .*classes.a\.png",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_CLASSES.values(), ids=BAD_CLASSES)
def test_bad_classes(tissue, spoil, message):
    folder, label_set = tissue
    spoil(folder)
    with pytest.raises((UserError, FileNotFoundError), match=message):
        list(Folders(folder, label_set=label_set))


BAD_COCO = {  # what is done to the content of the JSON: what the message says
    "no key": (lambda c: c.pop("categories"), r"val2017\.json: categories: missing key, expected"),
    "no key of an image": (
        lambda c: c["images"][1].pop("file_name"), r"json: images\[1\]\.file_name: missing key, expected str",
    ),
    "no id of a segment": (
        lambda c: c["annotations"][0]["segments_info"][2].pop("id"),
        r"json: annotations\[0\]\.segments_info\[2\]\.id: missing key",
    ),
    "a list that is none": (lambda c: c.update(images="all"), r"json: images: expected a list, found 'all'"),
    "an id that is text": (
        lambda c: c["categories"][0].update(id="30"), r"json: categories\[0\]\.id: expected int, found '30'",
    ),
    "id of a category": (
        lambda c: c["categories"][0].update(id=70_000),
        r"json: categories\[0\]\.id: expected < 65536, found 70000",
    ),
    "no image": (lambda c: c.update(images=[]), r"json: images: expected a list with 1 or more items"),
    "an image twice": (
        lambda c: c["images"].append(c["images"][0]),
        r"json: images: id 11 is there 2 times, expected it once",
    ),
    "a category twice": (
        lambda c: c["categories"].append(c["categories"][0]), r"json: categories: id 30 is there 2 times",
    ),
    "a name twice": (
        lambda c: c["categories"][1].update(name="cat"), r"json: categories \['cat', 'cat'\], expected",
    ),
    "one category": (lambda c: c["categories"].pop(), r"json: categories \['cat'\], expected 2 \.\. 254"),
    "a segment twice": (
        lambda c: c["annotations"][0]["segments_info"].append(SEGMENTS[0]),
        r"json: image 11: segment id 5 is there 2 times, expected it once",
    ),
    "unknown category": (
        lambda c: c["annotations"][1]["segments_info"][0].update(category_id=8),
        r"json: image 12: segment 5: category_id 8, expected one of \[7, 30\]",
    ),
    "no annotation": (
        lambda c: c["annotations"].pop(),
        r"json: 1 of 2 images have no annotation, the first is 12; expected",
    ),
    "no image file": (
        lambda c: c["images"][0].update(file_name="x.jpg"),
        r"val2017: no image 'x\.jpg', expected it as .*json lists",
    ),
    "no PNG": (
        lambda c: c["annotations"][0].update(file_name="x.png"), r"x\.png: no such file, expected a PNG",
    ),
    "a segment without pixels": (
        lambda c: c["annotations"][0]["segments_info"].append({"id": 77, "category_id": 7}),
        r"0011\.png: segment 77 is listed but has no pixel, expected it in the image \(1 such",
    ),
    "pixels without a segment": (
        lambda c: c["annotations"][0].update(segments_info=SEGMENTS[:1]),
        r"0011\.png: segment 9 is drawn but not listed, expected it in the JSON \(2 such segments\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_COCO.values(), ids=BAD_COCO)
def test_bad_coco(coco, spoil, message):
    change(coco / "annotations" / "panoptic_val2017.json", spoil)
    with pytest.raises((UserError, FileNotFoundError), match=message) as caught:
        list(CocoPanoptic(coco))
    assert "\n" not in str(caught.value) and str(coco) in str(caught.value)


def test_bad_files_of_coco(coco):
    path = coco / "annotations" / "panoptic_val2017.json"
    with pytest.raises(UserError, match=r"json: category 'grass', expected one of \['background'"):
        CocoPanoptic(coco, label_set=NUCLEI)
    (coco / "val2017").rename(coco / "pictures")
    with pytest.raises(FileNotFoundError, match=r"json: no folder of images, expected one of .*val2017"):
        CocoPanoptic(coco)
    (coco / "pictures").rename(coco / "val2017")
    save(coco / "val2017" / "0011.jpg", np.zeros((3, 3), np.uint8))
    with pytest.raises(UserError, match=r"0011\.png: label of 6 x 8 .*expected 3 x 3 as its image"):
        CocoPanoptic(coco)[0]
    path.with_name("panoptic_test.json").write_text("{}")
    with pytest.raises(UserError, match=r"found panoptic_test\.json, panoptic_val2017\.json, expected"):
        CocoPanoptic(coco, "train")
    path.write_text("{")
    with pytest.raises(UserError, match=r"val2017\.json: .*, expected a JSON file"):
        CocoPanoptic(path)
    with pytest.raises(FileNotFoundError, match=r"val2017: no JSON file, expected one in COCO"):
        CocoPanoptic(coco / "val2017")


BAD_LABEL_SETS = {
    "unknown key": ({"classs": []}, r"a\.yaml: classs: unknown key.*did you mean 'classes'"),
    "one class": ({"classes": ["a"]}, r"a\.yaml: classes: expected a list with 2 or more items"),
    "a class twice": ({"classes": ["a", "a"]}, r"a\.yaml: classes: expected different items"),
    "unknown thing": ({"things": ["cell"]}, r"a\.yaml: things: expected names of .*, found 'cell'"),
    "colour of nothing": ({"colours": {"cell": [1, 2, 3]}}, r"a\.yaml: colours: expected names of .*'cell'"),
    "bright colour": (
        {"colours": {"debris": [1, 2, 300]}}, r"a\.yaml: colours\.debris\[2\]: expected <= 255",
    ),
    "too few ids": ({"ids": [1, 2]}, r"a\.yaml: ids: expected one a class, 3, found 2"),
    "large id": ({"ids": [1, 2, 256]}, r"a\.yaml: ids\[2\]: expected <= 255, found 256"),
    "void is a class": ({"void": 1}, r"a\.yaml: void: expected an id that is no class, found 1"),
    "a name with spaces": ({"name": "my cells"}, r"a\.yaml: name: expected letters, digits and _, found"),
    "a known name": ({"name": "nuclei"}, r"a\.yaml: label set 'nuclei' .*: expected another name, found"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "message"), BAD_LABEL_SETS.values(), ids=BAD_LABEL_SETS)
def test_bad_label_sets(tmp_path, values, message):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(TISSUE | values))
    with pytest.raises(UserError, match=message):
        read_label_set(tmp_path / "a.yaml")


BAD_SETTINGS = {
    "one pixel size": (
        ("cells", {"root": "cells", "pixel_size": 1.0}), {}, r"pixel_size: expected one of source",
    ),
    "a diameter alone": (
        ({"root": "cells", "diameter": 9.0},), {}, r"source\.diameter: expected target\.diam",
    ),
    "two scales": (
        ({"root": "cells", "pixel_size": 1.0}, {"root": "cells", "pixel_size": 1.0, "diameter": 2.0}), {},
        r"diameter: expected null beside pixel_size, found both",
    ),
    "unknown reader": (
        ({"root": "cells", "reader": "tiff"},), {},
        r"source\.reader: expected one of folders, coco.*found 'tiff'",
    ),
    "unknown label set": (
        (), {"label_set": "cell"}, r"label set 'cell': expected one of cityscapes, .*, or a YAML file",
    ),
    "another planet": (
        ("cells", {"root": "cells", "diameter": 500.0}), {},
        r"cells: images would grow 181 times .*expected 0\.1",
    ),
    "no folder": (("none",), {}, r"none: no such folder, expected the images of data\.source"),
    "more classes": (
        (), {"label_set": "cityscapes"}, r"classes: no such folder, expected the class of every pixel",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("args", "settings", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings(cells, args, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        own(cells.parent, *args, **settings).open("source/train")


def test_percentiles_must_rise():
    for percentiles in ((50.0, 50.0), (1.0, 101.0)):
        with pytest.raises(ValueError, match=r"percentiles: expected two of 0 \.\. 100, rising, found"):
            Intensity(percentiles)


# ---------------------------------------------------------------- what adapt prints first


def disc(radius: int) -> np.ndarray:
    """A mask of 40 x 40."""
    y, x = np.mgrid[:40, :40] - 20
    return (x**2 + y**2 <= radius**2).astype(np.uint8)


def blobs(values: tuple[int, ...]) -> np.ndarray:
    """A mask with a square for each value."""
    mask = np.zeros((40, 40), np.uint8)
    for i, value in enumerate(values):
        mask[2:10, 10 * i : 10 * i + 8] = value
    return mask


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ([(), *[(255, 255)] * 3], "3 of 3 masks hold one value, 255: expected one number an object"),
        ([(255,), (255, 255, 255)], "2 of 2 masks hold one value, 255"),
        ([(1, 1, 1), (1, 1, 1, 1), (1,)], "3 of 3 masks hold one value, 1: "),
        ([(2, 2, 2), (3, 3, 3)], "2 of 2 masks hold one value: "),
        ([(1,), (1,), (1,)], None),  # one object an image
        ([(3,), (9,), (4,)], None),  # cut from larger ones, under the numbers there
        ([(1, 1), (1,), (1,)], None),  # an object in two parts
        ([(255, 255), (1, 2), (3, 4)], None),
    ],
)
def test_masks_that_do_not_part_objects_are_a_problem(tmp_path, masks, said):
    for i, values in enumerate(masks):
        save(tmp_path / "src" / "images" / f"{i}.tif", 50 + 100 * (blobs(values) > 0).astype(np.uint8))
        save(tmp_path / "src" / "masks" / f"{i}.tif", blobs(values))
        save(tmp_path / "new" / f"{i}.tif", 50 + 100 * (blobs((1, 2)) > 0).astype(np.uint8))
    check = check_folders(own(tmp_path, "src", "new"))
    assert len(check.problems) == (said is not None)
    assert all(said in problem for problem in check.problems)
    assert check.object_share == pytest.approx(np.mean([64 * len(values) / 1600 for values in masks]))
    if said is None:
        assert check.otsu_count == 2.0


@pytest.mark.filterwarnings("error")
def test_check_says_where_there_is_no_object(tmp_path):
    """Nothing is divided by no object: in the source, in a part of it, in the target."""
    for i in range(5):
        save(tmp_path / "src" / "images" / f"{i}.tif", disc(9) * 100)
        save(tmp_path / "src" / "masks" / f"{i}.tif", disc(9))
        save(tmp_path / "new" / f"{i}.png", 0 * disc(9))
    check = check_folders(own(tmp_path, "src", "new"))
    assert check.problems == [] and "no object is seen in any image of the target" in check.warnings[0]
    assert check.otsu_count is None and "nan" not in str(check)
    held_out = own(tmp_path, "src", "new").on_disk("source", "val", False).ids
    for names, said in ((held_out, f"{len(held_out)} masks of its part 'val'"), ("01234", "5 masks,")):
        for name in names:
            save(tmp_path / "src" / "masks" / f"{name}.tif", 0 * disc(9))
        check = check_folders(own(tmp_path, "src", "new"))
        assert len(check.problems) == 1 and f"src: no object in any of {said}" in check.problems[0]
        assert "nan" not in str(check)


def test_noise_of_an_empty_image_is_no_scale(tmp_path):
    """Otsu's threshold parts the noise of an empty image into more specks than all others have objects."""
    rng = np.random.default_rng(0)
    for i in range(4):
        save(tmp_path / "src" / "images" / f"{i}.tif", disc(9) * 100)
        save(tmp_path / "src" / "masks" / f"{i}.tif", disc(9))
        save(tmp_path / "new" / f"{i}.png", 20 + 150 * disc(9))
    noise = gaussian_filter(rng.normal(size=(200, 200)), 0.9)
    save(tmp_path / "new" / "empty.png", np.clip(40 + 30 * noise, 0, 255).astype(np.uint8))
    specks = otsu_objects(read_image(tmp_path / "new" / "empty.png"))
    assert specks.max() > 100
    check = check_folders(own(tmp_path, "src", "new"))
    assert check.problems == check.warnings == [] and check.otsu_count == 0.8  # of 5 images
    assert check.table.loc["objects", "target"] == "4 (Otsu, without the specks of empty)"
    assert check.table.loc["images", "target"] == "5"


def test_sparse_images_beside_full_ones_are_no_noise(tmp_path):
    """Objects that touch are one to Otsu's threshold; images where they do not say how large they are."""
    for i in range(4):
        save(tmp_path / "src" / "images" / f"{i}.tif", disc(4) * 100)
        save(tmp_path / "src" / "masks" / f"{i}.tif", disc(4))
        save(tmp_path / "new" / f"{i}.png", 20 + 150 * disc(4 if i < 2 else 18))
    save(tmp_path / "new" / "empty.png", 0 * disc(4))
    check = check_folders(own(tmp_path, "src", "new"))
    assert check.table.loc["objects", "target"] == "4 (Otsu)"
    assert check.table.loc["images without objects", "target"] == "1: empty"


def test_check_says_what_is_there_and_what_is_wrong(tmp_path):
    for i in range(4):
        save(tmp_path / "src" / "images" / f"{i}.tif", disc(15).astype(np.uint16) * 900)
        save(tmp_path / "src" / "masks" / f"{i}.tif", disc(15) * (i > 0))
        save(tmp_path / "new" / f"{i}.png", 50 + 100 * disc(4))
    check = check_folders(own(tmp_path, "src", "new"))
    table = check.table
    assert table.loc["images"].tolist() == ["4", "4"]
    assert table.loc["height x width", "source"] == "40 x 40 (4)"
    assert table.loc["pixels"].tolist() == ["uint16 grey (4)", "uint8 grey (4)"]
    assert table.loc["images without objects", "source"] == "1: 0"
    assert table.loc["objects"].tolist() == ["3", "4 (Otsu)"]
    assert table.loc["diameter 16 .. 32"].tolist() == ["3", "0"]
    assert table.loc["diameter 4 .. 8"].tolist() == ["0", "4"] and check.problems == []
    (note,) = check.warnings
    assert check.otsu_count is None  # of another size than the objects of the source
    assert re.search(r"source are 3\.8 times as large as those of the target .* with --diameter \d+ ", note)
    assert not check_folders(own(tmp_path, "src", {"root": "new", "diameter": 8.0})).warnings

    (tmp_path / "src" / "masks" / "1.tif").write_bytes(b"")
    save(tmp_path / "src" / "masks" / "2.tif", TWO)
    (tmp_path / "new" / "3.png").write_bytes(b"")
    problems = check_folders(own(tmp_path, "src", "new")).problems
    assert len(problems) == 3
    for said in ("1.tif: no readable image", "2.tif: label of 6 x 8", "3.png: no readable image"):
        assert any(said in problem for problem in problems)
    (tmp_path / "src" / "masks" / "1.tif").unlink()
    problems = check_folders(own(tmp_path, "src", "new")).problems
    assert any("have no mask, the first is 1" in problem for problem in problems)
