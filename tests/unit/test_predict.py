"""Packaged networks on images and on folders of them: results, going on, what stays, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from test_tiles import discs, same_partition, spots
from tiny_packages import of_colours, painted, recipe, write_tiny

import panolib
from panolib.__main__ import main
from panolib.data import images as data_images
from panolib.data.errors import DataError
from panolib.data.images import read_indices, resize_labels, stretch_intensity, write_png
from panolib.data.intensity import Intensity
from panolib.data.render.nuclei_scenes import render_nuclei
from panolib.inference import panoptic
from panolib.inference.exports import write_coco_panoptic
from panolib.inference.tiles import same_objects
from panolib.lab.measuring import with_peak_memory
from panolib.labels import CITYSCAPES, NUCLEI
from panolib.profiles import project_root
from panolib.study import apply
from panolib.study.apply import SHIPPED
from panolib.study.packaged import NoWeights, PanopticNetworks, read_package
from panolib.your_images import predict_files

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of untrained networks by the name of their classes."""
    folder = tmp_path_factory.mktemp("weights")
    return {
        "nuclei": write_tiny(folder / "nuclei.safetensors", NUCLEI.name, stretched=True),
        "other": write_tiny(folder / "other.safetensors", NUCLEI.name, seed=1, stretched=True),
        "street": write_tiny(folder / "street.safetensors", CITYSCAPES.name, width=48),
    }


@pytest.fixture
def images(tmp_path):
    """A folder of images of several kinds and sizes; a stack of two pages makes five of them."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(RNG.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(RNG.integers(0, 256, (33, 47), np.uint8)).save(folder / "b.jpg")
    write_png(folder / "c.PNG", RNG.integers(0, 4000, (50, 40), np.uint16))
    stack = RNG.integers(0, 4000, (2, 36, 44), np.uint16)
    tifffile.imwrite(folder / "d.tif", stack, photometric="minisblack")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("of the operating system")
    return folder


IDS = ["a", "b", "c", "d_p0001", "d_p0002"]


def run(images, weights, out, *options) -> int:
    return main(["predict", str(images), "--weights", str(weights), "--out", str(out), *map(str, options)])


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


# the function


def test_tiles_find_what_the_whole_image_shows():
    labels = spots((230, 340))
    image, networks = painted(labels), of_colours()
    whole = panolib.predict(image, networks)
    assert same_partition(whole.instances, labels) and len(networks.semantic.sizes) == 1
    tiled = panolib.predict(image, networks, tile=160)
    assert len(networks.semantic.sizes) > 5 and max(map(max, networks.semantic.sizes[1:])) < 192
    assert same_partition(tiled.instances, whole.instances)
    assert np.array_equal(tiled.semantic, whole.semantic)
    assert sorted(s["area"] for s in tiled.segments) == sorted(s["area"] for s in whole.segments)


def test_tiles_of_the_shipped_networks_find_what_they_find_in_the_whole():
    image = render_nuclei(seed=17, index=3, height=512, width=512).image
    whole, tiled = (panolib.predict(image, "nuclei", tile=tile) for tile in (512, 256))
    n_same = len(same_objects(whole.instances, tiled.instances))  # IoU above 0.5
    assert 2 * n_same / (whole.instances.max() + tiled.instances.max()) >= 0.98
    assert whole.instances.max() > 30 and (whole.semantic == tiled.semantic).mean() > 0.99


def test_a_result_says_one_thing_in_all_its_parts():
    labels = discs((90, 120), n=12)
    result = panolib.predict(painted(labels), of_colours())
    assert (result.semantic.dtype, result.instances.dtype) == (np.uint8, np.int32)
    n_things = result.instances.max()
    assert [segment["id"] for segment in result.segments] == list(range(1, len(result.segments) + 1))
    assert np.array_equal(np.where(result.panoptic <= n_things, result.panoptic, 0), result.instances)
    for segment in result.segments:
        mask = result.panoptic == segment["id"]
        assert segment["area"] == mask.sum() and segment["isthing"] == (segment["id"] <= n_things)
        assert segment["confidence"] == pytest.approx(result.confidence[mask].mean())
        assert result.label_names[segment["category_id"]] == segment["category"]
        assert (result.semantic[mask] == segment["category_id"]).all()
    with pytest.raises(AttributeError):
        result.semantic = None


def test_grey_wide_and_transparent_images_are_one():
    grey = painted(discs((60, 80), n=9))[..., 0]
    colour = np.repeat(grey[..., None], 3, 2)
    expected = panolib.predict(colour, of_colours()).panoptic
    for image in (grey, grey.astype(np.uint16) * 257, np.dstack([colour, 255 - grey]), grey[..., None]):
        assert np.array_equal(panolib.predict(image, of_colours()).panoptic, expected)


def test_intensities_are_those_that_the_networks_learned_from():
    dark = np.where(spots((60, 80)) > 0, 1500, 500).astype(np.uint16)  # of 65535
    assert panolib.predict(dark, of_colours()).instances.max() == 0
    assert panolib.predict(dark, of_colours(stretched=True)).instances.max() > 0
    limits = {"intensity": Intensity(over="set"), "limits": (0.0, 65535.0)}  # of other, brighter images
    assert panolib.predict(dark, of_colours(**limits)).instances.max() == 0
    seen = apply.as_network_sees(np.repeat(dark[..., None], 3, 2), recipe(stretched=True))
    assert np.array_equal(seen, stretch_intensity(dark))


def test_a_street_is_seen_at_the_width_of_training():
    labels = np.repeat(np.repeat(spots((32, 64), cell=16), 4, 0), 4, 1)
    networks = of_colours(width=64)
    result = panolib.predict(painted(labels), networks)
    assert networks.semantic.sizes == [(32, 64)] and result.semantic.shape == labels.shape
    assert same_partition(resize_labels(result.instances, (32, 64)), resize_labels(labels, (32, 64)))
    panolib.predict(painted(labels), networks, scale=0.5)
    assert networks.semantic.sizes[1:] == [(64, 128)]


def test_objects_are_brought_to_the_diameter_of_training(files, images, tmp_path, monkeypatch, capsys):
    labels = np.repeat(np.repeat(spots((32, 64), cell=16), 4, 0), 4, 1)
    networks = of_colours(diameter=10.0)
    panolib.predict(painted(labels), networks, diameter=40)
    assert networks.semantic.sizes == [(32, 64)]
    monkeypatch.setattr(predict_files, "load_networks", lambda _: networks)
    assert run(images / "a.png", files["nuclei"], tmp_path / "out", "--diameter", 20) == 0
    told = "resized by 0.50; most objects whose area in the image is below about 64 pixels are left out"
    assert told in capsys.readouterr().out  # 4 of the embeddings, which have half of the size
    assert networks.semantic.sizes[1:] == [(20, 30)]
    assert run(images / "a.png", files["nuclei"], tmp_path / "out", "--scale", 0.5) == 0  # is the same
    assert len(networks.semantic.sizes) == 2
    monkeypatch.undo()
    assert run(images / "a.png", files["nuclei"], tmp_path / "none", "--diameter", 20) == 1
    told = "diameter is 20, but the weights (tiny) store none of the objects that they learned from; expected"
    assert told in one_error(capsys) and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("image", "options", "error", "words"),
    [
        (np.zeros((4, 4)), {}, DataError, "image: image of float64, expected uint8 or uint16"),
        (np.zeros((4, 4, 2), np.uint8), {}, DataError, r"image of shape \[4, 4, 2\]"),
        (np.zeros((0, 4), np.uint8), {}, DataError, r"image of shape \[0, 4"),
        ("image.png", {}, DataError, r"image is a text or a path \(image.png\), expected an array"),
        (np.zeros((4, 4), np.uint8), {"scale": 0}, DataError, "scale is 0, expected a factor above 0"),
        (np.zeros((4, 4), np.uint8), {"scale": float("nan")}, DataError, "scale is nan"),
        (np.zeros((4, 4), np.uint8), {"scale": 2, "diameter": 9}, DataError, "9 and scale 2, expected one"),
        (np.zeros((4, 4), np.uint8), {"tile": 100}, ValueError, "tile is 96 pixels"),
        (np.zeros((4, 4), np.uint8), {"weights": "nucleus"}, NoWeights, "expected street or nuclei, or a"),
    ],
)
def test_bad_arguments_of_the_function(image, options, error, words):
    with pytest.raises(error, match=words):
        panolib.predict(image, **{"weights": of_colours()} | options)


def test_shipped_weights_go_by_name(files, tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "project_root", lambda _: tmp_path)
    image = RNG.integers(0, 256, (20, 20), np.uint8)
    with pytest.raises(NoWeights, match=r"nuclei\.safetensors: is not there.*panolib weights --prof"):
        panolib.predict(image)
    folder = tmp_path / "results" / "cpu" / "weights"
    folder.mkdir(parents=True)
    (folder / "nuclei.safetensors").write_bytes(files["nuclei"].read_bytes())
    assert np.array_equal(panolib.predict(image).panoptic, panolib.predict(image, files["nuclei"]).panoptic)


def test_shipped_weights_are_of_the_runs_that_are_named():
    for name, run in SHIPPED.items():
        file = project_root() / "results" / "cpu" / "weights" / f"{name}.safetensors"
        assert read_package(file).recipe.run == run
        assert f"Run {run}, key" in file.with_suffix(".md").read_text()


def test_the_package_is_light_until_it_predicts():
    code = "import sys, panolib; assert 'predict' in panolib.__all__ and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(panolib.__file__).parents[1])
    with pytest.raises(AttributeError, match="no attribute 'x'"):
        panolib.x  # noqa: B018


def test_strips_of_rows_change_nothing(tmp_path, monkeypatch):
    labels = spots((230, 170))
    dark = painted(labels)[..., 0] // np.uint16(3) + RNG.integers(0, 9, labels.shape).astype(np.uint16)
    for image in (painted(labels), dark):
        for rule in ("void", "nearest"):
            networks = of_colours(stretched=True, rule=rule)
            whole = panolib.predict(image, networks, tile=160)
            with monkeypatch.context() as patch:
                patch.setattr(data_images, "STRIP", 1000)
                patch.setattr(panoptic, "NEAR", 2)
                in_strips = panolib.predict(image, networks, tile=160)
                written = write_coco_panoptic(tmp_path, "a", whole.panoptic, whole.segments, NUCLEI)
            assert written == write_coco_panoptic(tmp_path, "a", whole.panoptic, whole.segments, NUCLEI)
            for name in ("semantic", "instances", "panoptic", "confidence"):
                assert np.array_equal(getattr(whole, name), getattr(in_strips, name)), name
            assert [s | {"confidence": pytest.approx(s["confidence"])} for s in whole.segments] == list(
                in_strips.segments
            )


# the command


class Grid(PanopticNetworks):
    """Finds a square in every 32 pixels where an image is bright, in no time."""

    def predict(self, sample):
        y, x = np.indices(sample.image.shape[:2])
        ids = torch.from_numpy(np.where(sample.image[..., 0] > 128, y // 32 * 64 + x // 32 + 1, 0))
        thing = torch.where(ids > 0, 0.9, 0.1)
        outputs = SimpleNamespace(probabilities=torch.stack([1 - thing, thing]))
        return SimpleNamespace(outputs=outputs, instances=(ids, []))


def test_a_large_image_takes_little_memory(tmp_path, monkeypatch):
    y, x = np.ogrid[:2560, :2560]
    image = ((y % 32 > 4) & (x % 32 > 4)) * np.uint16(30_000) + (y * 7 + x * 3) % np.uint16(500)
    tifffile.imwrite(tmp_path / "large.tif", image.astype(np.uint16))
    networks = Grid(recipe(stretched=True), None, None)
    monkeypatch.setattr(predict_files, "load_networks", lambda _: networks)
    broken, mib = with_peak_memory(
        lambda: predict_files.predict_files([str(tmp_path)], "nuclei", tmp_path.with_name("large"))
    )
    assert not broken and not mib > 150 + predict_files.BYTES * image.size / 2**20  # 100 are not the pixels'


@pytest.mark.parametrize("rule", panoptic.MERGE_RULES)
def test_an_image_beyond_memory_stands_on_disk_and_gives_the_same_files(rule, tmp_path, monkeypatch):
    y, x = np.ogrid[:2048, :2048]
    image = ((y % 64 > 4) & (x % 64 > 4)) * np.uint16(30_000) + (y * 7 + x * 3) % np.uint16(500)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "large.tif", image.astype(np.uint16), compression="zlib")
    networks = Grid(recipe(stretched=True, rule=rule), None, None)
    monkeypatch.setattr(predict_files, "load_networks", lambda _: networks)
    monkeypatch.setattr(data_images, "ON_DISK", data_images.ON_DISK // 2)
    taken = {}
    for place, free in (("memory", np.inf), ("disk", 680.0)):  # MiB, of which tiles take 600
        monkeypatch.setattr(predict_files, "free_memory", lambda free=free: free)
        tracemalloc.start()  # of arrays; files and what torch takes are not in it
        broken = predict_files.predict_files([str(tmp_path / "images")], "nuclei", tmp_path / place)
        taken[place] = tracemalloc.get_traced_memory()[1] / image.size
        tracemalloc.stop()
        assert not broken and not list(tmp_path.glob("*/tmp*"))
    assert taken["disk"] < taken["memory"] - 10  # bytes a pixel
    names = [path.relative_to(tmp_path / "memory") for path in (tmp_path / "memory").rglob("*.[pt][ni][gf]")]
    assert len(names) == 5  # the sheet is one of them
    for name in (*names, "objects.csv"):
        assert (tmp_path / "memory" / name).read_bytes() == (tmp_path / "disk" / name).read_bytes(), name


def test_an_image_that_vanishes_does_not_stop_the_rest(files, images, tmp_path, capsys):
    (images / "bb.png").symlink_to(tmp_path / "none.png")
    assert run(images, files["nuclei"], tmp_path / "out") == 1
    assert "bb.png: no such file, expected an image" in one_error(capsys)
    assert list(pd.read_csv(tmp_path / "out" / "summary.csv")["image"]) == IDS


def test_the_arrays_of_an_image_are_gone_before_the_next(images, files, tmp_path, monkeypatch):
    results, predicted = [], predict_files._predicted

    def watched(*arguments):
        assert not any(result() for result in results)
        found = predicted(*arguments)
        results.append(weakref.ref(found[1]))
        return found

    monkeypatch.setattr(predict_files, "_predicted", watched)
    assert run(images, files["nuclei"], tmp_path / "out") == 0 and len(results) == 5


@pytest.mark.parametrize(
    ("free", "on_disk", "said"),
    [
        (100.0, 1e15, "about 4.8 GB of memory, 0.1 GB"),
        (6000.0, 2**30, "about 22.6 GB of disk in {}, 1.0 GB"),
        (6000.0, None, "about 23.2 GB of memory, 5.9 GB"),  # None: what is written stands in memory, too
    ],
)
def test_an_image_that_does_not_fit_is_told_before_it_is_read(
    free, on_disk, said, files, images, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    small = predict_files._fits
    monkeypatch.setattr(predict_files, "_fits", lambda p, *a: "large" not in str(p) or small(p, *a))
    monkeypatch.setattr(predict_files, "free_memory", lambda: free)  # MiB
    usage = predict_files.shutil.disk_usage(tmp_path)
    kind = "tmpfs" if on_disk is None else "ext4"
    mounts = {"/": "ext4", str(tmp_path.resolve()): kind}
    found = [SimpleNamespace(mountpoint=at, fstype=mounts[at]) for at in mounts]
    monkeypatch.setattr(predict_files.psutil, "disk_partitions", lambda all: found)
    monkeypatch.setattr(predict_files.shutil, "disk_usage", lambda _: usage._replace(free=on_disk))
    tifffile.imwrite(images / "large.tif", shape=(30_000, 30_000), dtype=np.uint8)  # holes, no bytes on disk
    assert run(images, files["nuclei"], out) == 1
    told = one_error(capsys)
    assert f"large.tif: 900 million pixels need {said.format(out)} are free; expected a" in told
    assert len(pd.read_csv(out / "summary.csv")) == 5


@pytest.mark.parametrize("name", ["nuclei", "street"])
def test_every_format_says_what_the_function_says(name, files, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(images, files[name], out) == 0
    assert f"5 images in {out}" in capsys.readouterr().out
    label_set = read_package(files[name]).label_set
    table = pd.read_csv(out / "summary.csv").set_index("image")
    coco = json.loads((out / "panoptic.json").read_text())
    names = {entry["image_id"]: entry["file_name"] for entry in coco["annotations"]}
    assert list(table.index) == IDS and names == {k: f"{i}_panoptic.png" for k, i in enumerate(IDS, 1)}
    assert [image["id"] for image in coco["images"]] == [1, 2, 3, 4, 5]
    stack = tifffile.imread(images / "d.tif")
    result = panolib.predict(stack[1], files[name])
    semantic = read_indices(out / "semantic" / "d_p0002.png")
    assert np.array_equal(semantic, label_set.file_id_table()[result.semantic])
    instances = tifffile.imread(out / "instances" / "d_p0002.tif")
    assert instances.dtype == np.uint16 and np.array_equal(instances, result.instances)
    together = tifffile.imread(out / "stacks" / "d.tif")
    assert together.shape == stack.shape and np.array_equal(together[1], instances)
    assert [path.name for path in (out / "stacks").iterdir()] == ["d.tif"]
    pixels = np.asarray(Image.open(out / "panoptic" / "d_p0002_panoptic.png")).astype(int)
    assert np.array_equal(pixels @ (1, 256, 65536), result.panoptic)
    (entry,) = [entry for entry in coco["annotations"] if entry["image_id"] == 5]
    assert {(s["id"], s["category_id"], s["area"]) for s in entry["segments_info"]} == {
        (s["id"], label_set.file_ids[s["category_id"]], s["area"]) for s in result.segments
    }
    row, areas = table.loc["d_p0002"], [s["area"] for s in result.segments if s["isthing"]]
    assert (row["height"], row["width"], row["objects"]) == (*result.semantic.shape, len(areas))
    assert np.isnan(row["median_object_area"]) if not areas else row["median_object_area"] == np.median(areas)
    objects = pd.read_csv(out / "objects.csv").set_index("image")
    assert set(objects.index) <= set(IDS) and len(objects) == table["objects"].sum()
    for k, kind, area, *rest in objects[objects.index == "d_p0002"].itertuples(index=False):
        (segment,) = [s for s in result.segments if s["id"] == k and s["isthing"]]
        assert (kind, area) == (segment["category"], segment["area"])
        centroid = np.argwhere(instances == k).mean(0)
        assert rest == pytest.approx([*centroid, segment["confidence"]], abs=0.0051)
    shares = row[[f"share of {each}" for each in label_set.classes]]
    assert shares.sum() == pytest.approx(1, abs=1e-3) and row["seconds"] >= 0
    assert row["mean_confidence"] == pytest.approx(result.confidence.mean(), abs=1e-4)
    assert Image.open(out / "contact_sheet.png").width > 500
    assert {path.stem for path in (out / "previews").iterdir()} == set(IDS)
    texts = list(out.glob("cityscapes_instances/*_pred.txt"))
    assert len(texts) == (5 if name == "street" else 0)
    for text in texts:
        masks = [line.split()[0] for line in text.read_text().splitlines()]
        assert len(masks) == table.loc[text.stem.removesuffix("_pred"), "objects"]
        assert all((text.parent / mask).is_file() for mask in masks)
    assert not [path for path in out.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


def test_more_objects_than_sixteen_bits_hold(files, images, tmp_path, monkeypatch):
    many = np.arange(1, 257 * 257 + 1, dtype=np.int32).reshape(257, 257)
    result = apply.PanopticResult(
        np.ones(many.shape, np.uint8), many, many,
        tuple({"id": k, "category_id": 1, "category": "nucleus", "isthing": True, "area": 1, "confidence": 1}
              for k in range(1, many.size + 1)),
        np.ones(many.shape, np.float32), NUCLEI.classes,
    )  # fmt: skip
    monkeypatch.setattr(predict_files, "predict", lambda *_, **__: result)
    assert run(images / "a.png", files["nuclei"], tmp_path / "out") == 0
    found = tifffile.imread(tmp_path / "out" / "instances" / "a.tif")
    assert found.dtype == np.uint32 and np.array_equal(found, many)


def test_it_goes_on_where_it_stopped(files, images, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(images, files["nuclei"], whole)
    predicted, predict = [], predict_files.predict

    def stop_at_third(*arguments, **options):
        predicted.append(1)
        if len(predicted) == 3:
            raise KeyboardInterrupt
        return predict(*arguments, **options)

    monkeypatch.setattr(predict_files, "predict", stop_at_third)
    assert run(images, files["nuclei"], out) == 130
    assert one_error(capsys).endswith("images that are written; the one in work begins anew")
    assert not (out / "summary.csv").exists() and not (out / ".writing").exists()
    assert run(images, files["nuclei"], out) == 0 and len(predicted) == 3 + 3
    first, second = content(whole), content(out)
    for name in first.keys() | second.keys():
        if not name.startswith(("records/", "summary")):  # these hold seconds
            assert first[name] == second[name], name
    assert run(images, files["nuclei"], out) == 0 and len(predicted) == 6
    (out / "instances" / "b.tif").write_bytes(b"half")
    (out / "previews" / "c.png").unlink()
    assert run(images, files["nuclei"], out) == 0 and len(predicted) == 8
    assert (out / "instances" / "b.tif").read_bytes() == first["instances/b.tif"]


class Killed(BaseException):
    """Nothing handles it."""


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_kill_while_files_are_moved_leaves_whole_files(after, files, images, tmp_path, monkeypatch):
    out, moved, replace = tmp_path / "out", [], os.replace

    def killed(source, target):
        if ".writing" in str(source):
            if len(moved) == after:
                monkeypatch.setattr(predict_files, "remove_folder", lambda _: None)  # a kill clears nothing
                raise Killed
            moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            run(images / "a.png", files["nuclei"], out)
    monkeypatch.undo()
    left = {name: value for name, value in content(out).items() if not name.startswith(".writing")}
    assert len(left) == after + 1 and (out / ".writing").is_dir()  # and the record
    assert run(images / "a.png", files["nuclei"], out) == 0
    found = content(out)
    assert all(found[name] == value for name, value in left.items() if not name.startswith("records"))
    assert len(found) == 5 + 4 and not (out / ".writing").exists()


def test_what_is_there_of_other_origin_stays(files, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    (out / "semantic").mkdir(parents=True)
    (out / "semantic" / "c.png").write_text("mine")
    assert run(images, files["nuclei"], out) == 1
    assert "c.png: was not written by this command, expected another --out, or" in one_error(capsys)
    assert content(out) == {"semantic/c.png": b"mine"}
    assert run(images, files["nuclei"], out, "--overwrite") == 0
    before = content(out)
    assert run(images, files["other"], out) == 1 and "with other weights," in one_error(capsys)
    assert run(images, files["nuclei"], out, "--tile", 160) == 1 and "other tile," in one_error(capsys)
    monkeypatch.setattr(predict_files, "READING", 3)
    assert run(images, files["nuclei"], out) == 1 and "other reading," in one_error(capsys)
    monkeypatch.undo()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(images / "a.png")
    assert run(images, files["nuclei"], out) == 1
    assert "predictions of another image 'a'" in one_error(capsys)
    assert content(out) == before
    assert run(images, files["nuclei"], out, "--overwrite") == 0
    after = content(out)
    assert after["semantic/a.png"] != before["semantic/a.png"]
    assert after["semantic/b.png"] == before["semantic/b.png"]
    assert run(images / "b.jpg", files["other"], out, "--overwrite") == 0
    assert [name for name in content(out) if name.startswith("semantic")] == ["semantic/b.png"]


def test_other_images_in_the_folder_are_told(files, images, tmp_path, capsys):
    out = tmp_path / "out"
    told = f"other images in {out}: 1; its tables and its contact sheet are of all"
    assert run(images / "a.png", files["nuclei"], out) == 0 and "other images" not in capsys.readouterr().out
    assert run(images / "b.jpg", files["nuclei"], out) == 0 and told in capsys.readouterr().out
    assert list(pd.read_csv(out / "summary.csv")["image"]) == ["a", "b"]
    assert run(images, files["nuclei"], out) == 0 and "other images" not in capsys.readouterr().out
    (images / "a.png").unlink()  # its results stay, and are in no table
    assert run(images / "b.jpg", files["nuclei"], out) == 0
    assert f"other images in {out}: {len(IDS) - 2};" in capsys.readouterr().out


def test_a_log_file_gets_a_line_of_progress_now_and_then(files, tmp_path):
    stack = RNG.integers(0, 4000, (20, 36, 44), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    command = [sys.executable, "-m", "panolib", "predict", tmp_path / "a.tif", "--weights", files["nuclei"]]
    command, root = [*map(str, command), "--out", str(tmp_path / "out")], project_root(Path(__file__).parent)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "20/20" in done.stderr
    bars = done.stderr.splitlines()
    assert 2 <= len(bars) <= 4, done.stderr  # the first, the last, perhaps one of a busy machine, a warning
    assert "\r" not in done.stderr and all(line.strip() for line in bars)


def test_images_of_an_older_version_are_predicted_again(files, images, tmp_path):
    out = tmp_path / "out"
    assert run(images, files["nuclei"], out) == 0
    before = content(out)
    record = json.loads((out / "records" / "b.json").read_text())
    del record["objects"]
    (out / "records" / "b.json").write_text(json.dumps(record))
    listed = json.loads((out / "panoptic.json").read_text())  # names were the ids of images
    for key in ("image_id", "id"):
        for entry in listed["annotations" if key == "image_id" else "images"]:
            entry[key] = entry["file_name"]
    (out / "panoptic.json").write_text(json.dumps(listed))
    assert run(images, files["nuclei"], out, "--resume") == 0
    after = content(out)
    assert {name for name in before if before[name] != after[name]} <= {"records/b.json", "summary.csv"}


def test_a_folder_may_get_more_images(files, images, tmp_path):
    out = tmp_path / "out"
    assert run(images / "a.png", files["nuclei"], out) == 0
    assert run(images, files["nuclei"], out) == 0
    assert list(pd.read_csv(out / "summary.csv")["image"]) == IDS


def images_of(out: Path) -> list[str]:
    """What the three overviews are about, once they agree."""
    names = list(pd.read_csv(out / "summary.csv")["image"])
    listed = json.loads((out / "panoptic.json").read_text())["annotations"]
    assert names == [entry["file_name"].removesuffix("_panoptic.png") for entry in listed]
    return names


def test_results_of_images_that_are_gone_leave_the_overviews(files, images, tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("c.PNG", "d.tif"):
        (images / name).unlink()
    assert run(images, files["nuclei"], out) == 0 and images_of(out) == ["a", "b"]
    tifffile.imwrite(images / "c.tif", np.zeros((9, 9), np.uint8))
    assert run(images / "c.tif", files["nuclei"], out) == 0
    assert images_of(out) == ["a", "b", "c"]  # images that this command does not name stay
    (images / "a.png").unlink()
    (images / "c.tif").unlink()
    tifffile.imwrite(images / "c.tif", np.zeros((2, 9, 9), np.uint8), photometric="minisblack")
    capsys.readouterr()
    assert run(images, files["nuclei"], out) == 0 and images_of(out) == ["b", "c_p0001", "c_p0002"]
    told = capsys.readouterr().out
    assert f"3 images in {out}" in told and "2 results left out there: their image is gone" in told
    assert (out / "instances" / "a.tif").is_file() and (out / "stacks" / "c.tif").is_file()
    tifffile.imwrite(images / "c.tif", np.zeros((9, 9), np.uint8))
    assert run(images, files["nuclei"], out, "--overwrite") == 0 and images_of(out) == ["b", "c"]
    assert not list((out / "stacks").iterdir())
    tifffile.imwrite(images / "c.tif", np.zeros((2, 9, 9), np.uint8), photometric="minisblack")
    assert run(images, files["nuclei"], out, "--overwrite") == 0
    assert images_of(out) == ["b", "c_p0001", "c_p0002"]
    assert "left out" not in capsys.readouterr().out
    assert {path.stem for path in (out / "instances").iterdir()} == {"b", "c_p0001", "c_p0002"}


@pytest.mark.parametrize("n_pages", [3, 4])
def test_pages_of_a_stack_are_no_colours(n_pages, files, tmp_path):
    stack = RNG.integers(0, 4000, (n_pages, 20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    assert run(tmp_path / "a.tif", files["nuclei"], tmp_path / "out") == 0
    pages = [tifffile.imread(page) for page in sorted((tmp_path / "out" / "instances").iterdir())]
    together = tifffile.imread(tmp_path / "out" / "stacks" / "a.tif")
    assert np.array_equal(together, np.stack(pages)) and len(pages) == n_pages


def test_images_may_move(files, images, tmp_path):
    out, moved = tmp_path / "out", tmp_path / "moved"
    assert run(images, files["nuclei"], out) == 0
    images.rename(moved)
    assert run(moved, files["nuclei"], out) == 0
    assert run(moved / "a.png", files["nuclei"], out) == 0 and images_of(out) == IDS


def test_images_of_one_colour_and_full_ones_are_told(files, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict_files, "load_networks", lambda _: of_colours())
    full = np.full((40, 40), 200, np.uint8)
    full[:, :3] = 0
    green = np.zeros((40, 40, 3), np.uint8)
    green[10:20, 10:20, 1] = 200
    few = tmp_path / "few"
    few.mkdir()
    for name, image in {"full": full, "full2": full, "green": green, "grey": green[..., 1]}.items():
        Image.fromarray(image).save(few / f"{name}.png")
    assert run(few, files["nuclei"], tmp_path / "out") == 0
    told = capsys.readouterr()
    assert "1 of 4 images is of one colour, read as grey, the first is green\n" in told.out
    warnings = [line for line in told.err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "2 of 4 images are nearly all nucleus, the first is full:" in warnings[0]
    table = pd.read_csv(tmp_path / "out" / "summary.csv", index_col="image")
    assert table.loc["green", "objects"] == table.loc["grey", "objects"] == 1
    assert table["notes"].fillna("").to_dict() == {
        "full": "nearly all nucleus", "full2": "nearly all nucleus", "grey": "",
        "green": "of one colour, read as grey",
    }  # fmt: skip
    monkeypatch.setattr(predict_files, "load_networks", lambda _: of_colours(share=0.05))
    assert run(few, files["nuclei"], tmp_path / "knowing") == 0
    told = f"4 of 4 images are {predict_files.FULLER}, the first is full:"
    assert told in capsys.readouterr().err
    monkeypatch.setattr(predict_files, "load_networks", lambda _: of_colours(share=0.1))
    assert run(few, files["nuclei"], tmp_path / "more") == 0
    table = pd.read_csv(tmp_path / "more" / "summary.csv", index_col="image")["notes"].fillna("")
    assert list(table.index[table == predict_files.FULLER]) == ["full", "full2"]


def test_a_broken_image_does_not_stop_the_others(files, images, tmp_path, capsys):
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:300])
    (images / "d.tif").write_text("text")
    out = tmp_path / "out"
    assert run(images, files["nuclei"], out) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not predicted: ")]
    assert len(told) == 2 and "b.jpg: no readable image" in told[1] and "d.tif" in told[0]
    assert list(pd.read_csv(out / "summary.csv")["image"]) == ["a", "c"]
    assert run(images / "b.jpg", files["nuclei"], tmp_path / "none") == 1
    assert not content(tmp_path / "none")


def test_folders_and_names(files, images, tmp_path, monkeypatch):
    below = images / "well 1" / "x"
    below.mkdir(parents=True)
    for name in ("a.png", "a.tif"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(below / name)
    found, broken = predict_files.find_pictures([f"{images}/**/a.*", str(images / "d.tif")])
    ids = ["a", "d_p0001", "d_p0002", "well 1/x/a.png", "well 1/x/a.tif"]
    assert list(found) == ids and not broken
    assert len({page.path for page in found.values()}) == 4
    out = tmp_path / "out"
    assert run(f"{images}/**/a.*", files["nuclei"], out) == 0
    assert (out / "instances" / "well 1" / "x" / "a.png.tif").is_file()
    monkeypatch.chdir(images)
    assert list(predict_files.find_pictures(["a.png", "./a.png"])[0]) == ["a"]


# bad input: one line, no traceback


def one_error(capsys) -> str:
    """The last line of the standard error, which has no traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


FINE = "{images} --weights {nuclei} --out"
BAD = {  # what is wrong -> arguments, exit status, words of the line
    "no weights": ("{images} --out {out}", 2, "--weights"),
    "no folder for results": ("{images} --weights {nuclei}", 2, "--out"),
    "no images": ("--weights {nuclei} --out {out}", 2, "IMAGES"),
    "no such image": ("{images}/x.png --weights {nuclei} --out {out}", 1,
                      "x.png: no such file or folder, expected images"),
    "pattern without images": ("{images}/x* --weights {nuclei} --out {out}", 1,
                               "x*: holds no image (0 folders, 0"),
    "folder without images": ("{empty} --weights {nuclei} --out {out}", 1,
                               "empty: holds no image (0 folders, 0"),
    "other file": ("{images}/notes.txt --weights {nuclei} --out {out}", 1,
                               "notes.txt: holds no image (0 folders, 1"),
    "unknown weights": ("{images} --weights nucleus --out {out}", 1,
                        "weights 'nucleus': no such file, expected street or nuclei, or a safetensors file"),
    "run of another profile": ("{images} --weights my_cells-panoptic-teacher-s0 --out {out}", 1,
                               "for one of another: python -m panolib weights --profile PROFILE --run RUN"),
    "weights that are none": ("{images} --weights {images}/a.png --out {out}", 1, "a.png: expected a"),
    "weights in a folder": ("{images} --weights {images} --out {out}", 1, "images: is a folder, expected"),
    "results in a file": (FINE + " {images}/a.png", 1, "a.png"),
    "results below a file": (FINE + " {images}/a.png/x", 1, "a.png"),
    "results where none can be": (FINE + " /proc/x", 1, "No such file or directory: '/proc/x'"),
    "scale and diameter": (FINE + " {out} --scale 2 --diameter 9", 2, "not allowed with argument --scale"),
    "diameter of zero": (FINE + " {out} --diameter 0", 2, "above 0"),
    "results among images": (FINE + " {images}", 1, "images to predict lie there, expected another folder"),
    "results on those of others": (FINE + " {taken}", 1, "summary.csv: was not written by this command"),
    "damaged record": (FINE + " {damaged}", 1, "a.json: expected a record of this command"),
    "tile that is no number": (FINE + " {out} --tile x", 2, "found 'x'"),
    "tile too small": (FINE + " {out} --tile 159", 2, "160 or more"),
    "scale of zero": (FINE + " {out} --scale 0", 2, "above 0"),
    "scale that is no number": (FINE + " {out} --scale nan", 2, "above 0"),
    "unknown option": (FINE + " {out} --fast", 2, "--fast"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(what, files, images, tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("empty", "taken", "damaged", "out")}
    for name in ("empty", "taken"):
        folders[name].mkdir()
    (folders["taken"] / "summary.csv").write_text("mine")
    (folders["damaged"] / "records").mkdir(parents=True)
    (folders["damaged"] / "records" / "a.json").write_text('{"row": {"image": "a"}}')
    line, expected, words = BAD[what]
    places = {"images": images, "nuclei": files["nuclei"], **folders}
    try:
        status = main(["predict", *(part.format(**places) for part in line.split())])
    except SystemExit as error:
        status = error.code
    assert status == expected and words in one_error(capsys)
    assert not folders["out"].exists() or not content(folders["out"])
    assert (folders["taken"] / "summary.csv").read_text() == "mine"


def test_unknown_weights_are_one_line_outside_the_clone(images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("images", "nucleii", "out") == 1
    assert "weights 'nucleii': no such file, expected street or nuclei, or a" in one_error(capsys)


def test_an_error_of_the_disk_stops_at_once(files, images, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "x.tif")

    monkeypatch.setattr(tifffile, "imwrite", full)
    assert run(images, files["nuclei"], tmp_path / "out") == 1
    assert "No space left on device" in one_error(capsys) and not content(tmp_path / "out")


def test_networks_that_fail_on_an_image_are_told(files, images, tmp_path, capsys, monkeypatch):
    def fail(self, sample):
        raise FloatingPointError("class probabilities hold nan")

    monkeypatch.setattr(PanopticNetworks, "predict", fail)
    assert run(images / "a.png", files["nuclei"], tmp_path / "out") == 1
    assert one_error(capsys) == "not predicted: a: class probabilities hold nan"
