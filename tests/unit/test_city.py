"""Street scenes on disk: formats, determinism, complete or not at all, errors."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from panolib.data.images import read_png16
from panolib.data.readers import GTA5, Cityscapes, Synthia
from panolib.data.render import city
from panolib.labels import CITYSCAPES, VOID

SIZE = {"height": 64, "width": 128, "seed": 5}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("city")
    for style, split, n_images in (
        ("synthia", "all", 4), ("gta5", "train", 9), ("cityscapes", "train", 4), ("cityscapes", "val", 3),
    ):  # fmt: skip
        city.write_city(root / style, style, split=split, n_images=n_images, progress=False, **SIZE)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = len(np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).T)
    return pairs == len(np.unique(a)) == len(np.unique(b)) and np.array_equal(a == 0, b == 0)


def test_synthia_round_trip_loses_only_what_the_format_cannot_hold(written):
    data = Synthia(written / "synthia", "all")
    absent = CITYSCAPES.ids_of(["terrain", "truck", "train"])
    for i, sample in enumerate(data):
        scene = city.render("synthia", index=i, **SIZE)
        lost = np.isin(scene.semantic, absent)
        assert np.array_equal(sample.image, scene.image)
        assert np.array_equal(sample.semantic, np.where(lost, VOID, scene.semantic))
        assert same_partition(sample.instance, np.where(lost, 0, scene.instance))


def test_synthia_keeps_truck_and_train_as_instances_without_a_class(tmp_path):
    style = city.STYLES["synthia"]
    style = dataclasses.replace(style, statistics=dataclasses.replace(style.statistics, truck=1.0, train=1.0))
    city.write_city(tmp_path, style, split="all", n_images=3, progress=False, **SIZE)
    heavy = CITYSCAPES.ids_of(["truck", "train"])
    seen = 0
    for i in range(3):
        scene = city.render(style, index=i, **SIZE)
        labels = read_png16(tmp_path / "RAND_CITYSCAPES/GT/LABELS" / f"{i:07d}.png")
        where = np.isin(scene.semantic, heavy)
        seen += where.sum()
        assert (labels[where, 0] == 0).all() and (labels[where, 1] > 255).all()
        assert set(np.unique(labels[..., 0])) <= set(range(23)) - {16, 18, 20}
    assert seen > 0


def test_gta5_is_palette_of_label_ids_with_odd_sizes(written):
    data = GTA5(written / "gta5", "train", n_val=0)
    sizes = {sample.image.shape[:2] for sample in data}
    assert sizes == {(64, 128), (63, 128)}
    for i, sample in enumerate(data):
        with Image.open(written / "gta5/labels" / f"{i + 1:05d}.png") as file:
            assert file.mode == "P"
            label_size = file.size[::-1]
        if i == 7:
            assert label_size != sample.image.shape[:2]
            continue
        scene = city.render("gta5", index=i, **(SIZE | {"height": sample.image.shape[0]}))
        assert np.array_equal(sample.semantic, scene.semantic)


def test_cityscapes_round_trip_with_crowd_and_bonnet(written):
    for split, offset in (("train", 0), ("val", 1_000_000)):
        data = Cityscapes(written / "cityscapes", split)
        order = sorted(range(len(data)), key=lambda i: (i % 3, i // 3))  # names sort by city first
        for i, sample in zip(order, data):
            scene = city.render("cityscapes", index=offset + i, **SIZE)
            assert np.array_equal(sample.image, scene.image)
            assert np.array_equal(sample.semantic, scene.semantic)
            assert same_partition(sample.instance, scene.instance)
            assert np.array_equal(sample.crowd, scene.crowd)
            path = next((written / "cityscapes/gtFine" / split).rglob(f"{sample.id}_gtFine_labelIds.png"))
            label_id = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert (label_id[-1] == 1).any(), "the own bonnet is label 1"


def test_train_and_val_have_other_cities_and_other_scenes(written):
    train, val = (Cityscapes(written / "cityscapes", split) for split in ("train", "val"))
    assert {i.split("_")[0] for i in train.ids}.isdisjoint(i.split("_")[0] for i in val.ids)
    assert not any(np.array_equal(a.image, b.image) for a in train for b in val)


def test_crowds_are_things_without_instance():
    style = city.STYLES["cityscapes"]
    style = dataclasses.replace(style, statistics=dataclasses.replace(style.statistics, crowds=1.0))
    scenes = [city.render(style, index=i, **SIZE) for i in range(6)]
    assert any(scene.crowd.any() for scene in scenes)
    for scene in scenes:
        assert np.isin(scene.semantic[scene.crowd], CITYSCAPES.thing_ids).all()
        assert (scene.instance[scene.crowd] == 0).all()


def test_workers_write_the_same_bytes(written, tmp_path):
    city.write_city(tmp_path, "synthia", split="all", n_images=4, n_workers=2, progress=False, **SIZE)
    assert contents(tmp_path) == contents(written / "synthia")


def test_a_matching_data_set_is_used_again(written):
    root = written / "gta5"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert city.write_city(root, "gta5", split="train", n_images=9, progress=False, **SIZE) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == before


def test_another_fingerprint_is_an_error(tmp_path):
    city.write_city(tmp_path, "gta5", split="train", n_images=2, progress=False, **SIZE)
    with pytest.raises(ValueError, match=r"n_images = 2, expected 3") as error:
        city.write_city(tmp_path, "gta5", split="train", n_images=3, progress=False, **SIZE)
    assert str(tmp_path) in str(error.value)
    style = city.STYLES["gta5"]
    other = dataclasses.replace(style, texture=dataclasses.replace(style.texture, road_amplitude=0.9))
    with pytest.raises(ValueError, match="style_parameters"):
        city.write_city(tmp_path, other, split="train", n_images=2, progress=False, **SIZE)
    assert len(list((tmp_path / "images").iterdir())) == len(list((tmp_path / "labels").iterdir())) == 2


def test_files_of_others_are_never_touched(tmp_path):
    theirs = tmp_path / "images" / "00001.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"without city\.json"):
        city.write_city(tmp_path, "gta5", split="train", n_images=1, progress=False, **SIZE)
    assert theirs.read_bytes() == b"precious"


def test_fingerprint_names_everything_and_is_plain():
    options = {"split": "train", "n_images": 3, **SIZE}
    base = city.fingerprint("synthia", **options)
    assert json.loads(json.dumps(base)) == base
    for change in ({"split": "val"}, {"n_images": 4}, {"height": 65}, {"width": 129}, {"seed": 6}):
        assert city.fingerprint("synthia", **(options | change)) != base
    assert city.fingerprint("gta5", **options) != base


KILLED = """
import os, signal, sys
from panolib.data.render import city
state = {"n": 0}
render = city.render
def dying(*args, **options):
    state["n"] += 1
    if state["n"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return render(*args, **options)
city.render = dying
options = {"n_images": 4, "height": 64, "width": 128, "seed": 5, "progress": False}
city.write_city(sys.argv[1], "cityscapes", split="train", **options)
"""


def test_a_killed_writer_leaves_nothing_to_be_read(written, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".writing*"))
    with pytest.raises(FileNotFoundError):
        Cityscapes(tmp_path, "train")
    city.write_city(tmp_path, "cityscapes", split="train", n_images=4, progress=False, **SIZE)
    assert not list(tmp_path.glob(".writing*"))
    expected = {k: v for k, v in contents(written / "cityscapes").items() if "/train/" in k}
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("kept_moves", [0, 1, 2])
def test_a_kill_while_moving_into_place_is_finished_by_the_next_call(
    written, tmp_path, monkeypatch, kept_moves
):
    real, calls = os.replace, []

    def failing(source, target):
        if not str(source).endswith(".part"):
            calls.append(target)
            if len(calls) > kept_moves:
                raise KeyboardInterrupt
        real(source, target)

    options = {"split": "val", "n_images": 3, "progress": False, **SIZE}
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(KeyboardInterrupt):
            city.write_city(tmp_path, "cityscapes", **options)
        patched.setattr(city, "render", None)  # the second call has nothing left to render
        patched.setattr(os, "replace", real)
        city.write_city(tmp_path, "cityscapes", **options)
    expected = {k: v for k, v in contents(written / "cityscapes").items() if "/val/" in k}
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: city.render("paris", index=0, **SIZE), KeyError, "paris"),
        (lambda: city.render("gta5", seed=0, index=0, height=8, width=128), ValueError, "8 x 128"),
        (lambda: city.render("gta5", seed=0, index=-1, height=64, width=128), ValueError, "negative"),
        (lambda: city.fingerprint("gta5", split="test", n_images=1, **SIZE), KeyError, "test"),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_speed():
    """A loose guard against an accidental loop over pixels; the measured rate is above 20 images/s."""
    city.render("cityscapes", seed=0, index=0, height=128, width=256)
    start = time.process_time()
    for i in range(8):
        city.render("cityscapes", seed=0, index=i, height=128, width=256)
    assert (time.process_time() - start) / 8 < 0.4
