"""What the exporters write, the readers read, and the official panoptic tool scores it to the same numbers.

The tool is cityscapesScripts' `evaluatePanoptic`, which is panopticapi's code.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as panoptic_tool
from hotcoco.panoptic import PanopticEval

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_tiles import spots
from tiny_packages import of_colours, painted

import panolib
from panolib.__main__ import main
from panolib.data.images import read_ids, stretch_intensity, write_png
from panolib.data.intensity import STRETCHED
from panolib.data.readers import CocoPanoptic, Folders
from panolib.data.samples import Sample
from panolib.inference.exports import write_coco_panoptic, write_coco_panoptic_json
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.labels import CITYSCAPES, NUCLEI, VOID
from panolib.metrics.panoptic import PanopticStats
from panolib.your_images import predict_files

SIZE = (40, 56)


def scene(rng, label_set, *, n_objects: int, crowd: bool) -> Sample:
    """Stripes of stuff, a void corner, rectangles of things in random order and, perhaps, a group."""
    semantic = np.repeat(rng.choice(label_set.stuff_ids, SIZE[1]), SIZE[0]).reshape(SIZE[1], -1).T
    semantic = np.ascontiguousarray(semantic).astype(np.uint8)
    instance, groups = np.zeros(SIZE, np.int32), np.zeros(SIZE, bool)
    for k in range(1, n_objects + 1):
        top, left = rng.integers(0, 30, 2)
        part = slice(top, top + rng.integers(4, 12)), slice(left, left + rng.integers(4, 20))
        semantic[part], instance[part] = rng.choice(label_set.thing_ids), 300 * k
    if crowd:
        semantic[34:38, :9], instance[34:38, :9], groups[34:38, :9] = label_set.thing_ids[0], 0, True
    semantic[:3, :3], instance[:3, :3] = VOID, 0
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Sample(image, semantic, instance, groups, f"{n_objects:03d}")


def shaken(rng, sample: Sample) -> tuple[np.ndarray, list[dict]]:
    """A prediction: the truth moved by a pixel or two, without some objects, and with two joined."""
    shift = tuple(rng.integers(-2, 3, 2))
    semantic, instance = (np.roll(part, shift, (0, 1)) for part in (sample.semantic, sample.instance))
    instance = np.where(instance == 600, 300, instance)
    semantic = np.where(instance == 900, sample.semantic[-1, -1], semantic)
    return semantic, np.where(instance == 900, 0, instance)


def write(root, name, results, label_set):
    """PNGs and JSON of {image id: (panoptic map, segments)}."""
    entries = [write_coco_panoptic(root / name, i, *found, label_set) for i, found in results.items()]
    return write_coco_panoptic_json(root / f"{name}.json", entries, label_set)


@pytest.mark.parametrize("label_set", [CITYSCAPES, NUCLEI], ids=lambda label_set: label_set.name)
def test_coco_files_come_back_and_score_the_same(label_set, tmp_path, monkeypatch):
    rng = np.random.default_rng(label_set.n_classes)
    crowd = label_set is CITYSCAPES
    truth = [scene(rng, label_set, n_objects=n, crowd=crowd) for n in (0, 3, 8, 12)]
    for sample in truth:
        (tmp_path / "images").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "images" / f"{sample.id}.png"), sample.image[..., ::-1])
    predicted = {
        sample.id: merge_panoptic(*shaken(rng, sample), label_set, rule="void") for sample in truth
    }
    files = {
        "truth": write(tmp_path, "truth", {s.id: panoptic_truth(s, label_set) for s in truth}, label_set),
        "predicted": write(tmp_path, "predicted", predicted, label_set),
    }
    read = {name: CocoPanoptic(path) for name, path in files.items()}
    assert all(data.label_set is label_set for data in read.values())

    stats = PanopticStats(label_set)
    for sample, found, prediction in zip(truth, read["truth"], read["predicted"], strict=True):
        assert found.id == sample.id == prediction.id
        np.testing.assert_array_equal(found.image, sample.image)
        np.testing.assert_array_equal(found.semantic, sample.semantic)
        np.testing.assert_array_equal(found.crowd, sample.crowd)
        pairs = {(int(a), int(b)) for a, b in zip(found.instance.ravel(), sample.instance.ravel())}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        stats.update(*panoptic_truth(found, label_set), *panoptic_truth(prediction, label_set))

    one_process = lambda *args: panoptic_tool.pq_compute_single_core(0, *args)  # noqa: E731
    monkeypatch.setattr(panoptic_tool, "pq_compute_multi_core", one_process)
    paths = [str(path) for name in files for path in (files[name], files[name].with_suffix(""))]
    official = panoptic_tool.evaluatePanoptic(*paths, str(tmp_path / "scores.json"))
    ours = stats.result()
    for class_id, file_id in enumerate(label_set.file_ids):
        for score in ("pq", "sq", "rq"):
            expected = official["per_class"][file_id]
            assert np.nan_to_num(getattr(ours, score)[class_id]) == pytest.approx(expected[score], abs=1e-9)
    assert ours.mean_pq == pytest.approx(official["All"]["pq"], abs=1e-9)
    assert 0.1 < ours.mean_pq < 0.95 and min(ours.tp.sum(), ours.fp.sum(), ours.fn.sum()) > 2


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_instance_tiffs_come_back(dtype, tmp_path):
    """The label images that ImageJ, napari and Cellpose open."""
    sample = scene(np.random.default_rng(1), NUCLEI, n_objects=9, crowd=False)
    instance = np.where(sample.semantic == VOID, 0, sample.instance)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", sample.image)
    tifffile.imwrite(tmp_path / "masks" / "a.tif", instance.astype(dtype), compression="zlib")
    found = Folders(tmp_path, label_set=NUCLEI, intensity=None)[0]
    np.testing.assert_array_equal(found.image, sample.image)
    np.testing.assert_array_equal(found.instance, instance)
    np.testing.assert_array_equal(found.semantic, instance > 0)


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """A folder that `predict` wrote, beside the images: a PNG, 16 bits, and in a folder a stack of two."""
    monkeypatch.setattr(predict_files, "load_networks", lambda _: of_colours(min_size=200))  # others are void
    scene = painted(spots((60, 90), cell=30))
    names = ["1", "0", "well/z_p0001", "well/z_p0002"]
    pages = {name: scene[:, k : 80 + k] for k, name in enumerate(names)}
    write_png(tmp_path / "in" / "1.png", pages["1"])
    tifffile.imwrite(tmp_path / "in" / "0.tif", pages["0"].astype(np.uint16) * 257)
    (tmp_path / "in" / "well").mkdir()
    tifffile.imwrite(tmp_path / "in" / "well" / "z.tif", np.stack([pages[name] for name in names[2:]]))
    out = tmp_path / "all" / "found"
    assert main(["predict", f"{tmp_path}/in/**/*.*", "--weights", "nuclei", "--out", str(out)]) == 0
    return out, pages


def test_the_command_writes_what_readers_read(predicted, tmp_path):
    out, pages = predicted
    (tmp_path / "all" / "images").mkdir()  # where images of other data sets are; these are others
    write_png(tmp_path / "all" / "images" / "1.png", np.zeros((5, 5, 3), np.uint8))
    assert_read(out, pages)
    both = tmp_path / "elsewhere"
    both.mkdir()
    for name in ("in", "all"):
        (tmp_path / name).rename(both / name)
    assert_read(both / "all" / "found", pages)
    out, images = (both / "all" / "found").rename(tmp_path / "found"), both / "in"
    with pytest.raises(FileNotFoundError, match=r"panoptic.json: no folder of images, expected one of"):
        CocoPanoptic(out)
    assert_read(out, pages, images=images)
    parts = [Folders(out, split, images=images) for split in ("train", "val")]
    assert sorted([*parts[0].ids, *parts[1].ids]) == sorted(pages)


def assert_read(out: Path, pages: dict[str, np.ndarray], **options) -> None:
    """Both readers give the images, and what the function predicts for them."""
    coco = CocoPanoptic(out, intensity=STRETCHED, **options)
    folders = Folders(out, label_set=NUCLEI, **options)
    assert folders.ids == sorted(pages) and coco.label_set is NUCLEI
    for name, from_json, from_tiff in zip(folders.ids, coco, folders, strict=True):
        result = panolib.predict(pages[name], of_colours(min_size=200))
        assert (result.panoptic == 0).any()
        np.testing.assert_array_equal(from_json.semantic, np.where(result.panoptic, result.semantic, VOID))
        np.testing.assert_array_equal(from_tiff.semantic, result.instances > 0)
        for found in (from_json, from_tiff):
            np.testing.assert_array_equal(found.instance, result.instances)
            np.testing.assert_array_equal(found.image, stretch_intensity(pages[name]))


def test_the_official_tool_scores_what_the_command_writes(predicted, tmp_path):
    """hotcoco keeps panopticapi's rules; the truth is the prediction, and then another one."""
    out, _ = predicted
    truth = tmp_path / "all" / "truth"
    shutil.copytree(out, truth)
    assert score(truth, out) == 1
    content = json.loads((truth / "panoptic.json").read_text())
    for entry in content["annotations"]:  # all moves by three columns, and two objects are one
        path = truth / "panoptic" / entry["file_name"]
        ids = np.roll(read_ids(path), 3, axis=1)
        ids[ids == 2] = 1
        write_png(path, np.pad(ids[..., None], ((0, 0), (0, 0), (0, 2))).astype(np.uint8))
        entry["segments_info"] = [
            segment | {"area": int((ids == segment["id"]).sum())}
            for segment in entry["segments_info"] if segment["id"] != 2
        ]  # fmt: skip
    (truth / "panoptic.json").write_text(json.dumps(content))
    assert 0.3 < score(truth, out) < 0.95


def score(truth: Path, predicted: Path) -> float:
    """PQ over classes of two folders, once we and hotcoco agree on that of each class."""
    stats = PanopticStats(NUCLEI)
    read = [CocoPanoptic(folder, intensity=STRETCHED) for folder in (truth, predicted)]
    for both in zip(*read, strict=True):
        stats.update(*panoptic_truth(both[0], NUCLEI), *panoptic_truth(both[1], NUCLEI))
    official = PanopticEval(*(str(folder / "panoptic.json") for folder in (truth, predicted)))
    official.evaluate()
    theirs, ours = official.results()["per_class"], stats.result()
    assert ours.pq == pytest.approx([theirs[i]["pq"] for i in NUCLEI.file_ids], abs=1e-12)
    return ours.mean_pq
