"""Readers: tiny data sets written in the official formats, then read back; one test per kind of bad input."""

from __future__ import annotations

import pickle
import re
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from panolib.data.images import (
    read_indices,
    read_png16,
    resize_image,
    resize_labels,
    stretch_intensity,
    write_png,
)
from panolib.data.mixing import Concatenation
from panolib.data.readers import GTA5, CamVid, Cityscapes, Nuclei, Synthia, describe
from panolib.data.samples import InMemory
from panolib.labels import CITYSCAPES, VOID

CAR, PERSON, ROAD, TRUCK = CITYSCAPES.ids_of(["car", "person", "road", "truck"])
SIZE = (6, 8)
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def picture(seed: int = 0, size: tuple[int, int] = SIZE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette([(7 * i) % 256 for i in range(768)])  # colours unlike the indices
    image.save(path)


def save16(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels.astype(np.uint16))


# ---------------------------------------------------------------- tiny data sets


@pytest.fixture
def cityscapes(tmp_path):
    """One image: a road, two cars, a group of cars, a caravan, a license plate (-1), void."""
    label_ids = np.full(SIZE, 7, np.uint8)
    label_ids[0] = 0
    instance_ids = label_ids.astype(np.uint16)
    for columns, label_id, value in (
        (slice(0, 2), 26, 26000),
        (slice(2, 4), 26, 26001),
        (slice(4, 6), 26, 26),
        (slice(6, 8), 29, 29000),
    ):
        label_ids[3:5, columns], instance_ids[3:5, columns] = label_id, value
    label_ids[5, 0] = 255
    save(tmp_path / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png", picture())
    stem = "gtFine/val/ulm/ulm_000000_000019_gtFine_"
    save(tmp_path / f"{stem}labelIds.png", label_ids)
    save16(tmp_path / f"{stem}instanceIds.png", instance_ids)
    return tmp_path


@pytest.fixture
def synthia(tmp_path):
    """Three images; void, road, and things with instance ids above 255."""
    labels = np.zeros((*SIZE, 3), np.uint16)  # class, instance, unused
    labels[1:, :, 0] = 3
    labels[2:4, 0:3] = (8, 300, 77)
    labels[2:4, 3:6] = (8, 44, 77)  # 300 % 256 = 44: eight bits would join the two cars
    labels[2:4, 6:8] = (10, 300, 77)  # a pedestrian with the number of a car
    labels[4, 0:2] = (8, 0, 0)  # a car without a number
    labels[0, 0:2] = (0, 12, 0)  # an object of unknown class
    labels[5, 0] = (3, 9, 0)  # a number on the road
    labels[5, 7] = (17, 1000, 0)  # one pixel of rider
    for name in ("0000000", "0000001", "0000002"):
        save(tmp_path / f"RAND_CITYSCAPES/RGB/{name}.png", picture(int(name), channels=4))
        save16(tmp_path / f"RAND_CITYSCAPES/GT/LABELS/{name}.png", labels)
    return tmp_path


@pytest.fixture
def gta5(tmp_path):
    """Three frames: regular; label one row higher than its image; another size altogether."""
    for name, image_size, label_size in (
        ("00001", (40, 60), (40, 60)),
        ("00002", (39, 60), (40, 60)),
        ("00003", (20, 30), (20, 30)),
    ):
        label = np.full(label_size, 7, np.uint8)
        label[:, label_size[1] // 2 :] = 27
        label[0] = 34
        save(tmp_path / f"images/{name}.png", picture(size=image_size))
        save(tmp_path / f"labels/{name}.png", label, palette=True)
    return tmp_path


@pytest.fixture
def camvid(tmp_path):
    label = np.tile(np.arange(8, dtype=np.uint8) + 4, (6, 1))  # 4 .. 11
    for name in ("a", "b"):
        save(tmp_path / f"train/{name}.png", picture())
        save(tmp_path / f"trainannot/{name}.png", label)
    return tmp_path


@pytest.fixture
def nuclei(tmp_path):
    """Shared layout: two grey images and a colour one."""
    labels = np.zeros(SIZE, np.uint16)
    labels[0:2, 0:2], labels[3:6, 4:8] = 1, 300
    rows = ["id,modality"]
    for name, modality in (("b", "fluorescence_grey"), ("a", "fluorescence_grey"), ("c", "histology_colour")):
        save(tmp_path / f"images/{name}.png", picture())
        save16(tmp_path / f"labels/{name}.png", labels)
        rows.append(f"{name},{modality}")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("b\na\nc\n")
    (tmp_path / "splits/val.txt").write_text("c\n")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def stage1(tmp_path):
    """Stage-1 layout: ten images, two masks each that share one pixel."""
    for number in range(10):
        folder = tmp_path / "stage1_train" / f"id{number}"
        save(folder / f"images/id{number}.png", picture(number, channels=4))
        for name, box in (("z", np.s_[0:2, 0:2]), ("y", np.s_[1:4, 1:4])):
            mask = np.zeros(SIZE, np.uint8)
            mask[box] = 255
            save(folder / f"masks/{name}.png", mask)
    return tmp_path


# ---------------------------------------------------------------- what is read


def test_png16_keeps_values_and_channel_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, 3), dtype=np.uint16)
    write_png(tmp_path / "rgb.png", pixels)
    write_png(tmp_path / "grey.png", pixels[..., 0])
    np.testing.assert_array_equal(read_png16(tmp_path / "rgb.png"), pixels)
    np.testing.assert_array_equal(read_png16(tmp_path / "grey.png"), pixels[..., 0])


def test_png16_file_order_is_red_first(tmp_path):
    """The reader against the bytes of a PNG built by hand: one pixel, R = 0x0108, G = 0x0203, B = 0."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = bytes([0, 0x01, 0x08, 0x02, 0x03, 0x00, 0x00])
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert read_png16(tmp_path / "a.png").tolist() == [[[0x0108, 0x0203, 0]]]


def test_cityscapes(cityscapes):
    dataset = Cityscapes(cityscapes, "val")
    sample = dataset[0]
    assert dataset.ids == ["ulm_000000_000019"] == [sample.id]
    assert (sample.image.dtype, sample.semantic.dtype) == (np.uint8, np.uint8)
    assert (sample.instance.dtype, sample.crowd.dtype) == (np.int32, bool)
    np.testing.assert_array_equal(sample.image, picture())
    assert sample.semantic[1, 0] == ROAD
    assert (sample.semantic[0] == VOID).all() and sample.semantic[5, 0] == VOID
    assert (sample.semantic[3, :6] == CAR).all() and (sample.semantic[3, 6:] == VOID).all()
    assert sample.instance[3].tolist() == [26000, 26000, 26001, 26001, 0, 0, 0, 0]
    assert sample.crowd.sum() == 4 and sample.crowd[3:5, 4:6].all()
    assert dataset.has_instances


def test_cityscapes_ignores_what_its_instance_tool_ignores(cityscapes):
    """By the values of the instance file: a numbered caravan is void, but predictions on it are false."""
    path = next((cityscapes / "gtFine").rglob("*_instanceIds.png"))
    labels = path.with_name(path.name.replace("instanceIds", "labelIds"))
    values, label_ids = read_png16(path), np.array(Image.open(labels))
    values[5, 0], values[5, 1] = 255, 65535  # license plates, -1 in 8 and in 16 bits
    label_ids[5, 1] = 255
    values[5, 2:4] = label_ids[5, 2:4] = (30, 14)  # a group of trailers, a guard rail
    save16(path, values)
    save(labels, label_ids)
    sample = Cityscapes(cityscapes, "val")[0]
    expected = np.zeros(SIZE, bool)
    expected[0] = expected[5, :4] = True
    np.testing.assert_array_equal(sample.ignored, expected)
    assert ((sample.semantic == VOID) & ~expected).sum() == 4  # the caravan
    memory = InMemory(Cityscapes(cityscapes, "val"), size=(12, 16), transform=lambda image: 255 - image)
    (resized,) = Concatenation([memory])
    np.testing.assert_array_equal(resized.ignored, np.repeat(np.repeat(expected, 2, 0), 2, 1))
    assert Cityscapes(cityscapes, "val", with_labels=False)[0].ignored is None


def test_synthia(synthia):
    sample = Synthia(synthia, "train", n_val=1)[0]
    np.testing.assert_array_equal(sample.image, picture(0, channels=4)[..., :3])
    assert sample.semantic[2].tolist() == [CAR] * 6 + [PERSON] * 2
    assert sorted(np.unique(sample.instance)) == [0, 1, 2, 3, 4]  # two cars, a person, a rider
    objects = [sample.instance[2, column] for column in (0, 3, 6)]
    assert len(set(objects)) == 3
    assert [(sample.instance == i).sum() for i in objects] == [6, 6, 4]
    assert (sample.semantic[0] == VOID).all() and not sample.instance[0].any()
    assert sample.instance[5, 0] == 0 and sample.semantic[5, 0] == ROAD
    assert sample.crowd.sum() == 2 and sample.crowd[4, 0:2].all()


def test_synthia_split_is_the_tail(synthia):
    assert Synthia(synthia / "RAND_CITYSCAPES", "val", n_val=1).ids == ["0000002"]
    assert Synthia(synthia, "train", n_val=1).ids == ["0000000", "0000001"]
    assert len(Synthia(synthia, "all")) == 3


def test_gta5_indices_sizes_and_unknown_instances(gta5):
    dataset = GTA5(gta5, "all")
    assert not dataset.has_instances
    for sample, size in zip(dataset, [(40, 60), (39, 60), (20, 30)]):
        assert sample.image.shape[:2] == sample.semantic.shape == size
        assert (sample.semantic[0] == VOID).all()
        assert sample.semantic[5, 0] == ROAD and sample.semantic[5, -1] == TRUCK
        assert not sample.instance.any()
        np.testing.assert_array_equal(sample.crowd, sample.semantic == TRUCK)
    assert dataset.semantic(1).shape == (40, 60)  # the label file's own size; the image stays closed


def test_gta5_missing_frames(gta5):
    (gta5 / "labels/00002.png").unlink()
    (gta5 / "images/00003.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images have no label, the first is 00002"):
        GTA5(gta5, "all")
    with pytest.raises(FileNotFoundError, match="00002"):
        GTA5(gta5, "all", allow_missing=1)
    dataset = GTA5(gta5, "all", allow_missing=2)
    assert dataset.ids == ["00001"] and dataset.missing == ["00002", "00003"]
    with pytest.raises(ValueError, match="allow_missing = -1, expected 0 or more"):
        GTA5(gta5, "all", allow_missing=-1)


def test_camvid(camvid):
    dataset = CamVid(camvid, "train")
    sample = dataset[1]
    assert sample.semantic[0].tolist() == [4, 5, 6, 7, 8, 9, 10, VOID]
    assert sample.crowd[0].tolist() == [False] * 4 + [True] * 3 + [False]
    assert not sample.instance.any() and not dataset.has_instances


def test_nuclei_shared_layout(nuclei):
    dataset = Nuclei(nuclei, "train", modality="fluorescence_grey")
    assert dataset.ids == ["b", "a"]  # order of the split file
    sample = dataset[0]
    assert np.unique(sample.instance).tolist() == [0, 1, 300]
    np.testing.assert_array_equal(sample.semantic, sample.instance > 0)
    assert not sample.crowd.any()


def test_nuclei_stage1_layout(stage1):
    dataset = Nuclei(stage1, "all")
    sample = dataset[3]
    np.testing.assert_array_equal(sample.image, picture(3, channels=4)[..., :3])
    assert sample.instance[1, 1] == 2 and sample.instance[3, 3] == 1  # y is first, z is written over it
    train, val = Nuclei(stage1, "train"), Nuclei(stage1, "val")
    assert (len(train), len(val)) == (8, 2) and sorted(train.ids + val.ids) == dataset.ids


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not here")
def test_shared_real_images():
    import csv

    camvid = CamVid(SHARED / "camvid", "val")
    assert len(camvid) == 51 and camvid[0].semantic.shape == (360, 480)
    assert set(np.unique(camvid[0].semantic)) <= {*range(11), VOID}
    nuclei = Nuclei(SHARED / "nuclei", "train", modality="fluorescence_grey")
    assert len(nuclei) == 328
    rows = {row["id"]: row for row in csv.DictReader((SHARED / "nuclei/index.csv").open())}
    for index in (0, 100, 327):
        sample, row = nuclei[index], rows[nuclei.ids[index]]
        assert sample.instance.max() == int(row["n_nuclei"]) == len(np.unique(sample.instance)) - 1
        assert sample.image.shape == (int(row["height"]), int(row["width"]), 3)


# ---------------------------------------------------------------- without labels; workers; memory


@pytest.mark.parametrize(
    ("name", "open_dataset", "label_folders"),
    [
        ("cityscapes", lambda root, **k: Cityscapes(root, "val", **k), "gtFine"),
        ("synthia", lambda root, **k: Synthia(root, "train", n_val=1, **k), "RAND_CITYSCAPES/GT"),
        ("gta5", lambda root, **k: GTA5(root, "all", **k), "labels"),
        ("camvid", lambda root, **k: CamVid(root, "train", **k), "trainannot"),
        ("nuclei", lambda root, **k: Nuclei(root, "train", **k), "labels"),
        ("stage1", lambda root, **k: Nuclei(root, "all", **k), "stage1_train/*/masks"),
    ],
)
def test_without_labels_no_label_file_is_needed(name, open_dataset, label_folders, request):
    root = request.getfixturevalue(name)
    with_labels = open_dataset(root)
    images = [sample.image for sample in with_labels]
    for folder in list(root.glob(label_folders)):
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        open_dataset(root)
    dataset = open_dataset(root, with_labels=False)
    assert dataset.ids == with_labels.ids and not dataset.has_instances and dataset.semantic(0) is None
    for sample, image in zip(dataset, images):
        np.testing.assert_array_equal(sample.image, image)
        assert sample.semantic is sample.instance is sample.crowd is None
    assert InMemory(dataset, size=(3, 4))[0].semantic is None


def test_datasets_are_sequences_that_pickle(synthia):
    dataset = Synthia(synthia, "train", n_val=1)
    clone = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(clone[-1].image, dataset[1].image)
    np.testing.assert_array_equal(clone.semantic(1), dataset[1].semantic)
    assert len(list(dataset)) == 2
    with pytest.raises(IndexError):
        dataset[2]


def test_in_memory_serves_what_the_files_hold(synthia):
    dataset = Synthia(synthia, "all")
    memory = InMemory(dataset)
    expected = [(s.image, s.semantic, s.instance, s.crowd) for s in dataset]
    shutil.rmtree(synthia / "RAND_CITYSCAPES")
    for sample, arrays in zip(memory, expected):
        for found, array in zip((sample.image, sample.semantic, sample.instance, sample.crowd), arrays):
            np.testing.assert_array_equal(found, array)
    assert (memory.ids, memory.name, memory.label_set) == (dataset.ids, dataset.name, dataset.label_set)
    assert memory.has_instances


def test_in_memory_transform_comes_before_resizing(camvid):
    def invert(image):
        assert image.shape == (*SIZE, 3)
        return 255 - image

    memory = InMemory(CamVid(camvid, "train"), size=(3, 4), transform=invert)
    np.testing.assert_array_equal(memory[0].image, resize_image(255 - picture(), (3, 4)))
    assert memory[0].semantic.shape == (3, 4)


@pytest.mark.parametrize("size", [(9, 12), (4, 5), (40, 30), (7, 31)])
def test_resized_image_and_labels_stay_aligned(size):
    """A symmetric picture stays symmetric, and a step edge lies at the same place in both."""
    labels = np.zeros((18, 24), np.int32)
    labels[4:14, 6:18] = 70_000
    small = resize_labels(labels, size)
    assert small.dtype == np.int32 and small.shape == size
    image = resize_image(np.repeat((labels > 0)[..., None], 3, axis=2).astype(np.uint8) * 200, size)
    inner = image[..., 0].astype(int)
    assert (small[inner > 190] == 70_000).all() and (small[inner < 10] == 0).all()
    row, column = 9 * size[0] // 18, 12 * size[1] // 24
    assert small[row, column] == 70_000 and inner[row, column] == 200


def test_resize_labels_takes_the_centre():
    np.testing.assert_array_equal(resize_labels(np.arange(9)[None].repeat(3, 0), (1, 3)), [[1, 4, 7]])
    np.testing.assert_array_equal(resize_labels(np.array([[1, 2]]), (2, 4)), [[1, 1, 2, 2]] * 2)


def test_stretch_intensity():
    dark = np.arange(20, dtype=np.uint8).reshape(4, 5)
    stretched = stretch_intensity(dark, low=0, high=100)
    assert stretched.shape == (4, 5, 3) and stretched.min() == 0 and stretched.max() == 255
    np.testing.assert_array_equal(stretched[..., 0].ravel(), np.rint(np.arange(20) * 255 / 19))
    np.testing.assert_array_equal(stretched, stretch_intensity(np.repeat(dark[..., None], 3, 2), 0, 100))
    assert not stretch_intensity(np.full((4, 4), 9, np.uint8)).any()
    colour = np.stack([dark, dark * 2, dark], axis=2)
    assert (stretch_intensity(colour, 0, 100)[..., 1] >= stretch_intensity(colour, 0, 100)[..., 0]).all()


# ---------------------------------------------------------------- describe


def test_describe_counts_by_hand(synthia):
    tables = describe(Synthia(synthia, "train", n_val=1))
    counts = tables["counts"].set_index("class")
    assert counts.loc["car", "pixels"] == 2 * 14 and counts.loc["car", "n_instances"] == 2 * 2
    assert counts.loc["car", "kind"] == "thing" and counts.loc["road", "kind"] == "stuff"
    assert counts["pixel_share"].sum() == pytest.approx(1)
    presence = tables["presence"].set_index("class")
    assert presence.loc["rider", "n_images"] == 2 and presence.loc["rider", "image_share"] == 1.0
    assert presence.loc["train", "n_images"] == 0
    instances = tables["instances"]
    first = instances[instances["image_id"] == "0000000"]
    found = sorted(zip(first["class"], first["area_px"]))
    assert found == [("car", 6), ("car", 6), ("person", 4), ("rider", 1)]


def test_describe_needs_labels(synthia):
    with pytest.raises(ValueError, match="0000000 has no labels"):
        describe(Synthia(synthia, "train", n_val=1, with_labels=False))


# ---------------------------------------------------------------- bad input


OPENERS = {
    "cityscapes": lambda root: Cityscapes(root, "val"),
    "synthia": lambda root: Synthia(root, "train", n_val=1),
    "gta5": lambda root: GTA5(root, "all"),
    "camvid": lambda root: CamVid(root, "train"),
    "nuclei": lambda root: Nuclei(root, "train"),
}
LABELS = {
    "cityscapes": "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png",
    "synthia": "RAND_CITYSCAPES/GT/LABELS/0000000.png",
    "gta5": "labels/00001.png",
    "camvid": "trainannot/a.png",
    "nuclei": "labels/b.png",
}
IMAGES = {
    "cityscapes": "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
    "synthia": "RAND_CITYSCAPES/RGB/0000000.png",
    "gta5": "images/00001.png",
    "camvid": "train/a.png",
    "nuclei": "images/b.png",
}


@pytest.mark.parametrize("name", OPENERS)
def test_wrong_folder(name, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{tmp_path.name}.*expected"):
        OPENERS[name](tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*expected"):
        OPENERS[name](tmp_path / "nowhere")


@pytest.mark.parametrize("name", OPENERS)
def test_empty_split(name, request):
    root = request.getfixturevalue(name)
    folder = (root / IMAGES[name]).parent
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"empty split.*found 0"):
        OPENERS[name](root)


def test_empty_split_of_a_listed_or_counted_kind(synthia, nuclei):
    with pytest.raises(ValueError, match=r"empty split 'train': 3 images with n_val = 3"):
        Synthia(synthia, "train", n_val=3)
    with pytest.raises(ValueError, match=r"empty split 'val'.*n_val = 0"):
        Synthia(synthia, "val", n_val=0)
    with pytest.raises(ValueError, match="n_val = 400"):
        Synthia(synthia, "val")
    with pytest.raises(ValueError, match="split 'test', expected"):
        Synthia(synthia, "test")
    (nuclei / "splits/empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty split 'empty'"):
        Nuclei(nuclei, "empty")
    with pytest.raises(FileNotFoundError, match=r"test.txt: no such split, expected one of .*train.*val"):
        Nuclei(nuclei, "test")
    with pytest.raises(ValueError, match=r"no modality 'mri', expected one of \['fluorescence_grey'"):
        Nuclei(nuclei, "train", modality="mri")
    with pytest.raises(ValueError, match="found 0 of 1 images of modality 'fluorescence_grey'"):
        Nuclei(nuclei, "val", modality="fluorescence_grey")


@pytest.mark.parametrize("name", ["synthia", "gta5", "camvid", "nuclei"])
def test_image_without_its_label_and_the_reverse(name, request):
    root = request.getfixturevalue(name)
    label, image = root / LABELS[name], root / IMAGES[name]
    moved = root / "moved.png"
    label.rename(moved)
    with pytest.raises(FileNotFoundError, match=f"have no label, the first is {label.stem}"):
        OPENERS[name](root)
    moved.rename(label)
    image.unlink()
    with pytest.raises(FileNotFoundError, match=f"have no image, the first is {image.stem}"):
        OPENERS[name](root)


def test_cityscapes_image_without_one_of_its_labels(cityscapes):
    other = "ulm/ulm_000000_000020"
    save(cityscapes / f"leftImg8bit/val/{other}_leftImg8bit.png", picture())
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no labelIds, .*_000020"):
        Cityscapes(cityscapes, "val")
    save(cityscapes / f"gtFine/val/{other}_gtFine_labelIds.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(FileNotFoundError, match="no instanceIds, the first is ulm_000000_000020"):
        Cityscapes(cityscapes, "val")


def test_stage1_image_without_masks(stage1):
    shutil.rmtree(stage1 / "stage1_train/id4/masks")
    with pytest.raises(FileNotFoundError, match=r"1 of 10 ids .* have no label, the first is id4"):
        Nuclei(stage1, "all")


@pytest.mark.parametrize("name", OPENERS)
def test_sizes_that_differ(name, request):
    root = request.getfixturevalue(name)
    save(root / IMAGES[name], picture(size=(60, 90)))
    with pytest.raises(ValueError, match=rf"{Path(LABELS[name]).name}.*expected 60 x 90"):
        OPENERS[name](root)[0]


def test_sizes_that_differ_between_label_files(cityscapes, stage1):
    save16(cityscapes / LABELS["cityscapes"].replace("labelIds", "instanceIds"), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"instanceIds.png: label of \(3, 3\), expected \(6, 8\)"):
        Cityscapes(cityscapes, "val")[0]
    save(stage1 / "stage1_train/id0/masks/z.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"z.png: mask of \(3, 3\), expected \(6, 8\)"):
        Nuclei(stage1, "all")[0]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cityscapes", LABELS["cityscapes"].replace("labelIds", "instanceIds")),
        ("synthia", LABELS["synthia"]),
        ("nuclei", LABELS["nuclei"]),
    ],
)
def test_eight_bits_where_sixteen_are_due(name, path, request):
    root = request.getfixturevalue(name)
    shape = (*SIZE, 3) if name == "synthia" else SIZE
    save(root / path, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=f"{Path(path).name}: 8 bits a channel, expected 16"):
        OPENERS[name](root)[0]


def test_sixteen_bits_where_eight_are_due(camvid):
    save16(camvid / "train/a.png", np.zeros((*SIZE, 3)))
    with pytest.raises(ValueError, match=r"a.png: image of uint16, expected 8 bits"):
        CamVid(camvid, "train")[0]


@pytest.mark.parametrize(("name", "bad"), [("cityscapes", 34), ("gta5", 35), ("camvid", 12)])
def test_class_id_outside_the_table(name, bad, request):
    root = request.getfixturevalue(name)
    with Image.open(root / LABELS[name]) as file:
        label = np.array(file)
    label[-1, -1] = bad
    save(root / LABELS[name], label)
    expected = rf"{Path(LABELS[name]).name}: class id {bad} outside.*expected one of \[0, 1"
    with pytest.raises(ValueError, match=expected):
        OPENERS[name](root)[0]


@pytest.mark.parametrize("bad", [23, 8 * 256])
def test_synthia_class_id_outside_the_table(synthia, bad):
    labels = read_png16(synthia / LABELS["synthia"])
    labels[0, 0, 0] = bad
    save16(synthia / LABELS["synthia"], labels)
    with pytest.raises(ValueError, match=f"0000000.png: class id {bad} outside the table"):
        Synthia(synthia, "train", n_val=1)[0]


def test_label_files_of_the_wrong_kind(gta5, synthia, nuclei, cityscapes):
    save(gta5 / LABELS["gta5"], picture())
    with pytest.raises(ValueError, match=r"00001.png: label of mode RGB, expected palette"):
        GTA5(gta5, "all")[0]
    save16(synthia / LABELS["synthia"], np.zeros(SIZE))
    with pytest.raises(ValueError, match=r"0000000.png: one channel, expected three"):
        Synthia(synthia, "train", n_val=1)[0]
    save16(nuclei / LABELS["nuclei"], np.zeros((*SIZE, 3)))
    with pytest.raises(ValueError, match=r"b.png: 3 channels, expected one"):
        Nuclei(nuclei, "train")[0]
    values = np.full(SIZE, 24_000, np.uint16)
    save16(cityscapes / LABELS["cityscapes"].replace("labelIds", "instanceIds"), values)
    with pytest.raises(ValueError, match=r"instanceIds.png: instance value 24000 where the label id is 7"):
        Cityscapes(cityscapes, "val")[0]


DAMAGES = {
    "cut in half": lambda content: content[: len(content) // 2],
    "cut within the first chunk": lambda content: content[:40],
    "cut before the end chunk": lambda content: content[:-12],
    "cut by a byte": lambda content: content[:-1],
    "empty": lambda content: b"",
    "of zeros": lambda content: bytes(len(content)),
    "a page of text": lambda content: b"<html>404: not found</html>",
    "another format": lambda content: b"\xff\xd8\xff\xe0" + content,
}
ALL_FILES = [(name, part[name]) for name in OPENERS for part in (IMAGES, LABELS)] + [
    ("cityscapes", LABELS["cityscapes"].replace("labelIds", "instanceIds")),
    ("stage1", "stage1_train/id4/images/id4.png"),
    ("stage1", "stage1_train/id4/masks/z.png"),
]


def read_all(name, root):
    return list(Nuclei(root, "all") if name == "stage1" else OPENERS[name](root))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(("name", "path"), ALL_FILES)
def test_damaged_files_are_named(name, path, damage, request):
    root = request.getfixturevalue(name)
    read_all(name, root)
    content = damage((root / path).read_bytes())
    (root / path).write_bytes(content)
    where = re.escape(str(root / path))
    message = rf"{where}: no readable image in {len(content)} bytes: .*expected a whole PNG"
    with pytest.raises(ValueError, match=message):
        read_all(name, root)


@pytest.mark.parametrize(("name", "path"), ALL_FILES)
def test_no_flipped_byte_is_read_as_something_else(name, path, request):
    """Palette images, too, whose decoder checks nothing; signature, every chunk and every checksum."""
    root = request.getfixturevalue(name)
    good = (root / path).read_bytes()
    for position in range(0, len(good), max(1, len(good) // 40)):
        bad = bytearray(good)
        bad[position] ^= 0x55
        (root / path).write_bytes(bytes(bad))
        with pytest.raises(ValueError, match=re.escape(Path(path).name)):
            read_all(name, root)


@pytest.mark.parametrize(("name", "path"), ALL_FILES)
def test_a_folder_named_like_an_image(name, path, request):
    root = request.getfixturevalue(name)
    (root / path).unlink()
    (root / path).mkdir()
    with pytest.raises(ValueError, match=rf"{Path(path).name}: a folder named like an image"):
        read_all(name, root)


@pytest.mark.parametrize(("name", "path"), ALL_FILES)
def test_a_link_that_leads_nowhere(name, path, request):
    root = request.getfixturevalue(name)
    (root / path).unlink()
    (root / path).symlink_to("gone.png")
    with pytest.raises(FileNotFoundError, match=rf"{Path(path).name}: leads to .*gone.png, where no file is"):
        read_all(name, root)


@pytest.mark.parametrize(("name", "path"), ALL_FILES)
def test_names_of_other_systems(name, path, request):
    """Upper case is the same; what macOS leaves beside is none; another format is an error, not a gap."""
    root = request.getfixturevalue(name)
    expected = read_all(name, root)
    (root / path).with_name(f"._{Path(path).name}").write_bytes(b"1")
    (root / path).rename((root / path).with_suffix(".PNG"))
    for sample, wanted in zip(read_all(name, root), expected, strict=True):
        assert sample.id == wanted.id
        np.testing.assert_array_equal(sample.semantic, wanted.semantic)
    (root / path).with_name("more.JPG").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"more.JPG: an image of another format, expected PNG"):
        read_all(name, root)


@pytest.mark.parametrize("name", [*OPENERS, "stage1"])
def test_folders_behind_links_are_read(name, request, tmp_path_factory):
    root, linked = request.getfixturevalue(name), tmp_path_factory.mktemp("linked")
    for path in root.iterdir():
        (linked / path.name).symlink_to(path)
    assert [s.id for s in read_all(name, linked)] == [s.id for s in read_all(name, root)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cityscapes", "leftImg8bit/val/bonn"),
        ("cityscapes", "gtFine/val/bonn"),
        ("stage1", "stage1_train/other"),
        ("stage1", "stage1_train/id4/images"),
    ],
)
def test_a_folder_behind_a_link_that_leads_nowhere(name, path, request):
    root = request.getfixturevalue(name)
    shutil.rmtree(root / path, ignore_errors=True)
    (root / path).symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=rf"{Path(path).name}: leads to .*gone, which is not there"):
        read_all(name, root)


def test_file_that_goes_after_opening(camvid):
    dataset = CamVid(camvid, "train")
    (camvid / IMAGES["camvid"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"a.png: no such file"):
        dataset[0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3], ids=["grey", "palette"])
def test_indices_of_few_bits(tmp_path, bits, colour):
    """Tools that shrink files store few ids in few bits, which decoders spread over 0 .. 255."""
    indices = (np.arange(48).reshape(3, 16) * 5 % 2**bits).astype(np.uint8)
    rows = np.unpackbits(indices[..., None], axis=-1)[..., -bits:].reshape(3, -1)
    lines = np.concatenate([np.zeros((3, 1), np.uint8), np.packbits(rows, axis=1)], axis=1)
    head = struct.pack(">IIBBBBB", 16, 3, bits, colour, 0, 0, 0)
    palette = [(b"PLTE", bytes(7 * i % 256 for i in range(3 * 2**bits)))] if colour else []
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), *palette, (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "label.png").write_bytes(content)
    np.testing.assert_array_equal(read_indices(tmp_path / "label.png"), indices)


# ---------------------------------------------------------------- ids, lists and empty images of the nuclei


def test_ids_with_spaces_are_themselves(nuclei):
    for name in ("cell", "1", "cell 1"):
        save(nuclei / f"images/{name}.png", picture())
        save16(nuclei / f"labels/{name}.png", np.full(SIZE, len(name)))
    (nuclei / "splits/train.txt").write_text("cell 1\n")
    dataset = Nuclei(nuclei, "train")
    assert dataset.ids == ["cell 1"] and dataset[0].instance.max() == 6


def test_lists_name_what_they_get_wrong(nuclei):
    path = nuclei / "splits/train.txt"
    path.write_text("b\na\nb\n")
    with pytest.raises(ValueError, match=r"train.txt: line 3: id 'b' is also in line 1"):
        Nuclei(nuclei, "train")
    path.write_text("b\nb.png\n")
    with pytest.raises(FileNotFoundError, match=r"train.txt: 1 of 2 ids .* the first is b.png"):
        Nuclei(nuclei, "train")
    path.write_bytes(b"\xef\xbb\xbfb\r\na\r\n")
    assert Nuclei(nuclei, "train").ids == ["b", "a"]
    (nuclei / "index.csv").write_text("id;modality\na;fluorescence_grey\n")
    with pytest.raises(ValueError, match=r"index.csv: no row for b and 0 more"):
        Nuclei(nuclei, "train", modality="fluorescence_grey")


@pytest.mark.parametrize("name", ["index.csv", "splits"])
def test_a_link_to_a_lost_table_or_list_is_not_as_if_there_was_none(nuclei, name):
    (nuclei / name).rename(nuclei / "lost")
    assert len(Nuclei(nuclei, "train")) > 0
    (nuclei / name).symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=name):
        Nuclei(nuclei, "train", modality="fluorescence_grey")


def test_an_empty_list_is_named(nuclei):
    (nuclei / "splits/val.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"splits/val.txt: empty split 'val', expected at least one id"):
        Nuclei(nuclei, "val")


def test_an_empty_folder_of_masks_is_an_image_without_nuclei(stage1):
    for path in (stage1 / "stage1_train/id4/masks").iterdir():
        path.unlink()
    dataset = Nuclei(stage1, "all")
    assert len(dataset) == 10 and not dataset[4].instance.any() and dataset[4].instance.shape == SIZE
    assert dataset[5].instance.any()


def test_two_images_of_one_folder_would_share_its_masks(stage1):
    save(stage1 / "stage1_train/id4/images/other.png", picture())
    with pytest.raises(ValueError, match=r"id4/images: holds id4.png and other.png, expected one image"):
        Nuclei(stage1, "all")


def test_describe_is_fast_enough(tmp_path):
    """2 MP of labels with 512 objects in one pass of bincounts, far below a second."""
    import time

    label = np.zeros((1024, 2048, 3), np.uint16)
    label[..., 0] = 8
    label[..., 1] = np.arange(1024)[:, None] // 16 * 8 + np.arange(2048) // 256 + 1
    save(tmp_path / "RGB/0.png", np.zeros((1024, 2048, 3), np.uint8))
    save16(tmp_path / "GT/LABELS/0.png", label)
    memory = InMemory(Synthia(tmp_path, "all"))
    start = time.perf_counter()
    tables = describe(memory)
    assert len(tables["instances"]) == 512 and time.perf_counter() - start < 2


def test_opencv_reads_what_pillow_cannot():
    """Why 16-bit RGB goes through OpenCV: guard against a build without it."""
    ok, data = cv2.imencode(".png", np.full((2, 2, 3), 300, np.uint16))
    assert ok and cv2.imdecode(data, cv2.IMREAD_UNCHANGED).max() == 300


def test_two_files_of_one_id(cityscapes, camvid):
    save(cityscapes / "leftImg8bit/val/bonn/ulm_000000_000019_leftImg8bit.png", picture())
    with pytest.raises(ValueError, match=r"000019_.*has the name of .*bonn.*, expected one file for"):
        Cityscapes(cityscapes, "val")
    save(camvid / "train/a.PNG", picture())
    if len(list((camvid / "train").iterdir())) == 3:  # where names differ by case
        with pytest.raises(ValueError, match="expected one file for"):
            CamVid(camvid, "train")
