"""What the exporters write, the readers read, and the official panoptic tool scores it to the same numbers.

The tool is cityscapesScripts' `evaluatePanoptic`, which is panopticapi's code.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as panoptic_tool

from panolib.data.readers import CocoPanoptic, Folders
from panolib.data.samples import Sample
from panolib.inference.exports import write_coco_panoptic, write_coco_panoptic_json
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.labels import CITYSCAPES, NUCLEI, VOID
from panolib.metrics.panoptic import PanopticStats

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
