"""Files for the official tools: where they lie for any image id, and what a format cannot hold."""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panolib.data.images import read_indices
from panolib.inference.exports import (
    ExportError,
    file_stem,
    write_cityscapes_instances,
    write_cityscapes_semantic,
    write_coco_panoptic,
    write_coco_panoptic_json,
)
from panolib.labels import CAMVID, CITYSCAPES, NUCLEI, VOID, LabelSet

CAR = CITYSCAPES.classes.index("car")
ONE = [{"id": 1, "category_id": CAR, "confidence": 0.5}]
ODD_IDS = (
    "gta5/00001", "a/b/c", "north side_000000_000001", "100%", "a%2Fb", "..", "../../x", "./a", "a/..",
    "C:\\x", "a\\b", "aux", "con.1/x", "what?*", "tab\tand\nline", "masks/a", "köln_000000_000019", "x ",
    "x.", ".x",
)  # fmt: skip


# ids


@pytest.mark.parametrize("image_id", ODD_IDS)
def test_every_file_is_where_its_reader_looks_and_never_outside(image_id, tmp_path):
    folder = tmp_path / "out"
    text = write_cityscapes_instances(folder / "instances", image_id, np.ones((4, 4), int), ONE, CITYSCAPES)
    ((mask, label_id, confidence),) = [line.split(" ") for line in text.read_text().splitlines()]
    assert cv2.imread(str(text.parent / mask), -1).tolist() == [[255] * 4] * 4
    assert (label_id, float(confidence)) == ("26", 0.5) and mask.isascii()
    entry = write_coco_panoptic(folder / "panoptic", image_id, np.ones((4, 4), int), ONE, CITYSCAPES)
    assert entry["image_id"] == image_id and (folder / "panoptic" / entry["file_name"]).is_file()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3 and all(path.is_relative_to(folder.resolve()) for path in written)


def test_folders_of_an_id_stay_folders_as_the_tools_search_by_the_name_of_the_image(tmp_path):
    text = write_cityscapes_instances(
        tmp_path, "cityscapes/ulm_000003_000019", np.ones((4, 4)) > 0, ONE, CITYSCAPES
    )
    assert text == tmp_path / "cityscapes" / "ulm_000003_000019_pred.txt"
    text = write_cityscapes_instances(
        tmp_path, "north side_000000_000001", np.ones((4, 4), int), ONE, CITYSCAPES
    )
    assert text.name == "north side_000000_000001_pred.txt"
    assert text.read_text() == "masks/north%20side_000000_000001_1.png 26 0.500000\n"


NAMES = st.text(st.characters(exclude_characters="/"), min_size=1) | st.sampled_from(
    ["..", ".", "CON", "a", "A.", "%"]
)


@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, min_size=1, max_size=3))
def test_stems_are_reversible_and_stay_below_their_folder(first, second):
    ids = ["/".join(parts) for parts in (first, second)]
    stems = [file_stem(image_id) for image_id in ids]
    assert [unquote(stem) for stem in stems] == ids
    assert (stems[0] == stems[1]) == (ids[0] == ids[1])
    for stem, parts in zip(stems, (first, second)):
        for path in (PurePosixPath(stem), PureWindowsPath(stem)):
            assert len(path.parts) == len(parts) and not path.anchor and not {"..", "."} & set(path.parts)
        assert not PureWindowsPath(stem).is_reserved()


@pytest.mark.parametrize("image_id", ["", "/", "/etc/x", "a//b", "a/"])
def test_an_id_without_a_name_is_an_error(image_id, tmp_path):
    with pytest.raises(ExportError, match=r"image id .* expected a name"):
        write_coco_panoptic(tmp_path, image_id, np.ones((2, 2), int), ONE, CITYSCAPES)
    assert not any(tmp_path.iterdir())


# semantic


@pytest.mark.parametrize(
    ("label_set", "expected"), [(CITYSCAPES, [[7, 0]]), (CAMVID, [[0, 11]]), (NUCLEI, [[0, 255]])]
)
def test_void_is_never_written_as_a_class(label_set, expected, tmp_path):
    for labels in (
        np.array([[0, VOID]], np.uint8),
        torch.tensor([[0, VOID]]),
        np.array([[VOID, 0]])[:, ::-1],
    ):
        path = write_cityscapes_semantic(tmp_path / "a.png", labels, label_set)
        assert read_indices(path).tolist() == expected
    assert label_set.file_id_table()[VOID] not in label_set.file_ids


def test_what_eight_bits_cannot_hold(tmp_path):
    path = tmp_path / "a.png"
    for labels, found in (([[0, 19]], "19"), ([[-1]], "-1"), ([[256]], "256"), ([[2**40]], str(2**40))):
        with pytest.raises(ExportError, match=rf"a\.png: train id {found}, expected 0 \.\. 18 of cityscapes"):
            write_cityscapes_semantic(path, np.array(labels), CITYSCAPES)
    for labels in (np.zeros((2, 2)), np.zeros((1, 2, 2), int), np.zeros((0, 4), int)):
        with pytest.raises(ExportError, match="expected integers"):
            write_cityscapes_semantic(path, labels, CITYSCAPES)
    for file_ids, void, what in (
        ((0, 256), 255, "file id 256"),
        ((-1, 3), 255, "file id -1"),
        ((4, 5), 5, "'b'"),
    ):
        odd = LabelSet("odd", ("a", "b"), ((0, 0, 0),) * 2, (), file_ids, void_file_id=void)
        with pytest.raises(ValueError, match=what):
            write_cityscapes_semantic(path, np.zeros((2, 2), int), odd)
    assert not any(tmp_path.iterdir())


# segments


def rows(*ids, category=CAR, confidence=0.5):
    return [{"id": i, "category_id": category, "confidence": confidence} for i in ids]


@pytest.mark.parametrize(
    ("ids", "listed", "message"),
    [
        ([[1, 2]], rows(1), "segment 2 is listed 0 times and drawn"),
        ([[1, 0]], rows(1, 5), "segment 5 is listed 1 times and not drawn"),
        ([[1, 0]], rows(1, 1), "segment 1 is listed 2 times and drawn"),
        ([[1, 0]], rows(0, 1), r"segment id 0, expected 1 \.\. "),
        ([[1, -3]], rows(1, -3), r"segment id -3, expected 1 \.\. "),
        ([[1, 0]], rows(1, category=19), r"segment 1 has category_id 19, expected a train id 0 \.\. 18"),
        ([[1, 0]], rows(1, category=-1), "segment 1 has category_id -1"),
        ([[1, 0]], rows(1, category=VOID), "segment 1 has category_id 255"),
        ([[1.0, 0]], rows(1), "of float64, expected integers"),
    ],
)
def test_segments_that_do_not_fit_are_one_error(ids, listed, message, tmp_path):
    for write in (write_cityscapes_instances, write_coco_panoptic):
        with pytest.raises(ExportError, match=f"image 'gta5/7'.*{message}"):
            write(tmp_path, "gta5/7", np.array(ids), listed, CITYSCAPES)
    assert not any(tmp_path.iterdir())  # found before anything is written


def test_the_largest_id_of_three_bytes(tmp_path):
    ids = np.array([[2**24 - 1, 0, 65_536]], np.int64)
    entry = write_coco_panoptic(tmp_path, "a", ids, rows(65_536, 2**24 - 1), CITYSCAPES)
    blue_green_red = cv2.imread(str(tmp_path / entry["file_name"])).astype(int)
    assert (blue_green_red @ [65_536, 256, 1]).tolist() == ids.tolist()
    assert [(s["id"], s["area"], s["bbox"]) for s in entry["segments_info"]] == [
        (65_536, 1, [2, 0, 1, 1]), (2**24 - 1, 1, [0, 0, 1, 1]),
    ]  # fmt: skip
    for beyond in (2**24, 2**32 + 1):
        with pytest.raises(ExportError, match=rf"image 'a': segment id {beyond}, expected 1 \.\. 16777215"):
            write_coco_panoptic(tmp_path, "a", np.array([[beyond]]), rows(beyond), CITYSCAPES)
    text = write_cityscapes_instances(tmp_path, "a", np.array([[2**40, 3]]), rows(2**40, 3), CITYSCAPES)
    masks = [line.split()[0] for line in text.read_text().splitlines()]
    assert [cv2.imread(str(tmp_path / mask), -1).tolist() for mask in masks] == [[[255, 0]], [[0, 255]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_any_integer_type_strides_and_numpy_numbers(dtype, tmp_path):
    ids = np.array([[0, 1, 2], [0, 1, 2]], dtype)[:, ::-1]
    segments = [
        {
            "id": np.int64(k),
            "category_id": np.int64(CAR),
            "iscrowd": np.bool_(k == 2),
            "confidence": np.float32(0.25),
        }
        for k in (1, 2)
    ]
    entry = write_coco_panoptic(tmp_path, "a", ids, segments, CITYSCAPES)
    path = write_coco_panoptic_json(tmp_path / "a.json", [entry], CITYSCAPES)
    (annotation,) = json.loads(path.read_text())["annotations"]
    found = [(s["id"], s["area"], s["iscrowd"]) for s in annotation["segments_info"]]
    assert found == [(1, 2, 0), (2, 2, 1)]
    text = write_cityscapes_instances(
        tmp_path, "a", torch.from_numpy(ids.astype(np.int64)), segments, CITYSCAPES
    )
    assert text.read_text() == "masks/a_1.png 26 0.250000\nmasks/a_2.png 26 0.250000\n"


def test_a_confidence_keeps_all_digits(tmp_path):
    near = 0.5000000000000001
    text = write_cityscapes_instances(
        tmp_path, "a", np.ones((2, 2), int), rows(1, confidence=near), CITYSCAPES
    )
    assert float(text.read_text().split()[2]) == near


def test_an_image_comes_once(tmp_path):
    entry = write_coco_panoptic(tmp_path, "a", np.ones((2, 2), int), ONE, CITYSCAPES)
    with pytest.raises(ExportError, match="image 'a' is annotated twice"):
        write_coco_panoptic_json(tmp_path / "a.json", [entry, entry], CITYSCAPES)
