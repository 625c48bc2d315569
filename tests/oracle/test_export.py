"""Exported files are read by the official Cityscapes tools: perfect predictions score 1, known faults less.

The tools are cityscapesScripts; its in-process functions run on files that this test writes.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instance_tool
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as panoptic_tool
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as pixel_tool
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

from panolib.data.samples import Sample
from panolib.inference.exports import (
    write_cityscapes_instances,
    write_cityscapes_semantic,
    write_coco_panoptic,
    write_coco_panoptic_json,
)
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.labels import CITYSCAPES, NUCLEI, VOID

ROAD, SKY, PERSON, CAR = CITYSCAPES.ids_of(("road", "sky", "person", "car"))
IMAGE_ID = "ulm_000003_000019"
STATIC = 4  # an official label id that is void in evaluation


def scene() -> Sample:
    """64 x 96: road and sky, three cars of 200 px, a person of 150 px, a group of persons, a void strip."""
    semantic = np.full((64, 96), ROAD, np.uint8)
    instance = np.zeros((64, 96), np.int32)
    crowd = np.zeros((64, 96), bool)
    semantic[:16] = SKY
    semantic[60:] = VOID
    for k, left in enumerate((4, 24, 44), start=1):
        semantic[30:40, left : left + 20] = CAR
        instance[30:40, left : left + 20] = 300 * k  # ids above 255, as SYNTHIA has them
    semantic[20:35, 80:90] = PERSON
    instance[20:35, 80:90] = 7
    semantic[45:58, 60:90] = PERSON
    crowd[45:58, 60:90] = True
    return Sample(np.zeros((64, 96, 3), np.uint8), semantic, instance, crowd, IMAGE_ID)


@pytest.fixture
def truth(tmp_path, monkeypatch):
    """(sample, labelIds file, instanceIds file) in the official folders; void is "static"."""
    # the instance tool dumps matches into the working directory, and fails at NumPy integers in them
    monkeypatch.setattr(instance_tool, "writeDict2JSON", lambda *_: None)
    if not hasattr(np, "in1d"):  # removed in NumPy 2.4; the tools still call it
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    sample = scene()
    label_ids = replace(CITYSCAPES, void_file_id=STATIC).file_id_table()[sample.semantic]
    single = sample.instance > 0
    number = np.unique(sample.instance, return_inverse=True)[1].reshape(label_ids.shape)
    instance_ids = np.where(single, label_ids.astype(np.uint16) * 1000 + number, label_ids).astype(np.uint16)
    folder = tmp_path / "gtFine" / "val" / "ulm"
    folder.mkdir(parents=True)
    files = [folder / f"{IMAGE_ID}_gtFine_{name}.png" for name in ("labelIds", "instanceIds")]
    for path, image in zip(files, (label_ids, instance_ids)):
        assert cv2.imwrite(str(path), image)
    return sample, *map(str, files)


def merged_instances(sample: Sample) -> np.ndarray:
    """The instance map with the first two cars as one."""
    return np.where(sample.instance == 600, 300, sample.instance)


def table_of(sample: Sample, instances: np.ndarray, confidence: float = 0.75) -> list[dict]:
    return [
        {"id": int(k), "category_id": int(sample.semantic[instances == k][0]), "confidence": confidence}
        for k in np.unique(instances[instances > 0])
    ]


# semantic


def pixel_scores(prediction, label_file) -> dict:
    args = copy.copy(pixel_tool.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    return pixel_tool.evaluateImgLists([str(prediction)], [label_file], args)["classScores"]


def test_pixel_tool_reads_the_semantic_map(truth, tmp_path):
    sample, label_file, _ = truth
    path = write_cityscapes_semantic(tmp_path / "results" / f"{IMAGE_ID}.png", sample.semantic, CITYSCAPES)
    perfect = pixel_scores(path, label_file)
    assert {name: score for name, score in perfect.items() if not np.isnan(score)} == {
        "road": 1.0, "sky": 1.0, "person": 1.0, "car": 1.0,
    }  # fmt: skip
    half = sample.semantic.copy()
    half[30:35, 4:64] = ROAD  # upper half of all cars
    faulty = pixel_scores(write_cityscapes_semantic(tmp_path / "half.png", half, CITYSCAPES), label_file)
    assert faulty["car"] == pytest.approx(0.5) and faulty["sky"] == 1.0


# instances


def instance_scores(folder, instance_file) -> dict:
    args = argparse.Namespace(**vars(instance_tool.args))
    args.quiet, args.JSONOutput = True, False
    args.predictionPath, args.predictionWalk = str(folder), None
    args.gtInstancesFile = str(folder.parent / "gtInstances.json")
    prediction = instance_tool.getPrediction(instance_file, args)
    return instance_tool.evaluateImgLists([prediction], [instance_file], args)["averages"]


def test_instance_tool_reads_masks_and_text_file(truth, tmp_path):
    sample, _, instance_file = truth
    folder = tmp_path / "perfect"
    text = write_cityscapes_instances(
        folder, IMAGE_ID, sample.instance, table_of(sample, sample.instance), CITYSCAPES
    )
    assert text.read_text().splitlines()[0] == f"masks/{IMAGE_ID}_7.png 24 0.750000"
    perfect = instance_scores(folder, instance_file)
    assert perfect["classes"]["car"]["ap"] == perfect["classes"]["person"]["ap"] == 1.0
    assert perfect["allAp"] == 1.0

    folder = tmp_path / "merged"
    instances = merged_instances(sample)
    write_cityscapes_instances(folder, IMAGE_ID, instances, table_of(sample, instances), CITYSCAPES)
    # the merged pair has IoU 1/2 with each car, which does not match: R = 1/3, P = 1/2, AP = R (1 + P) / 2
    merged = instance_scores(folder, instance_file)["classes"]
    assert merged["car"]["ap"] == pytest.approx(1 / 4) and merged["person"]["ap"] == 1.0


def test_no_instance_still_gives_a_text_file(truth, tmp_path):
    _, _, instance_file = truth
    write_cityscapes_instances(tmp_path / "none", IMAGE_ID, np.zeros((64, 96), int), [], CITYSCAPES)
    assert instance_scores(tmp_path / "none", instance_file)["allAp"] == 0.0


# panoptic


@pytest.fixture
def official_panoptic(truth, tmp_path):
    """Ground-truth JSON and PNG folder made by the official converter."""
    root = tmp_path / "gtFine"
    convert2panoptic(str(root), str(root), setNames=["val"])
    return root / "cityscapes_panoptic_val.json", root / "cityscapes_panoptic_val"


def panoptic_scores(official, folder, panoptic, monkeypatch) -> dict:
    """Write a panoptic result and score it; in this process, not in one per core."""
    entry = write_coco_panoptic(folder, IMAGE_ID, *panoptic, CITYSCAPES)
    path = write_coco_panoptic_json(folder.with_suffix(".json"), [entry], CITYSCAPES)
    monkeypatch.setattr(
        panoptic_tool, "pq_compute_multi_core", lambda *args: panoptic_tool.pq_compute_single_core(0, *args)
    )
    results = folder.with_suffix(".scores.json")
    panoptic_tool.evaluatePanoptic(str(official[0]), str(official[1]), str(path), str(folder), str(results))
    per_class = json.loads(results.read_text())["per_class"]
    return {name: per_class[str(file_id)] for name, file_id in zip(CITYSCAPES.classes, CITYSCAPES.file_ids)}


def test_panoptic_tool_reads_png_and_json(truth, official_panoptic, tmp_path, monkeypatch):
    sample = truth[0]
    perfect = merge_panoptic(sample.semantic, sample.instance, CITYSCAPES)
    scores = panoptic_scores(official_panoptic, tmp_path / "perfect", perfect, monkeypatch)
    for name in ("road", "sky", "car", "person"):
        assert scores[name]["pq"] == 1.0, name
    assert scores["bus"]["pq"] == 0.0

    faulty = merge_panoptic(sample.semantic, merged_instances(sample), CITYSCAPES)
    scores = panoptic_scores(official_panoptic, tmp_path / "merged", faulty, monkeypatch)
    # one car found; the merged pair is a false positive and two misses: RQ = 1 / (1 + 0.5 + 1)
    assert scores["car"]["rq"] == pytest.approx(0.4) and scores["car"]["sq"] == 1.0
    assert scores["person"]["pq"] == scores["road"]["pq"] == 1.0


def test_our_truth_is_the_one_of_the_official_converter(truth, official_panoptic):
    panoptic_map, segments = panoptic_truth(truth[0], CITYSCAPES)
    official = json.loads(official_panoptic[0].read_text())["annotations"][0]
    image = cv2.imread(str(official_panoptic[1] / official["file_name"]))[..., ::-1].astype(int)
    official_map = image @ [1, 256, 65536]
    np.testing.assert_array_equal(panoptic_map == 0, official_map == 0)
    expected = set()
    for segment in official["segments_info"]:
        (ours,) = np.unique(panoptic_map[official_map == segment["id"]])
        expected.add((int(ours), segment["category_id"], segment["area"], segment["iscrowd"]))
    found = {(s["id"], CITYSCAPES.file_ids[s["category_id"]], s["area"], s["iscrowd"]) for s in segments}
    assert found == expected
    assert sum(s["iscrowd"] for s in segments) == 1


def test_png_holds_ids_above_two_bytes_and_boxes_are_xywh(tmp_path):
    ids = np.zeros((4, 6), np.int32)
    ids[1:3, 2:6] = 70_000
    ids[0, 0] = 300
    segments = [
        {"id": 70_000, "category_id": 1, "isthing": True, "area": 8, "iscrowd": 0},
        {"id": 300, "category_id": 0, "isthing": False, "area": 1, "iscrowd": 0},
    ]
    entry = write_coco_panoptic(tmp_path, "a", ids, segments, NUCLEI)
    image = cv2.imread(str(tmp_path / entry["file_name"]))[..., ::-1].astype(int)
    np.testing.assert_array_equal(image @ [1, 256, 65536], ids)
    assert [s["bbox"] for s in entry["segments_info"]] == [[2, 1, 4, 2], [0, 0, 1, 1]]
    content = json.loads(write_coco_panoptic_json(tmp_path / "a.json", [entry], NUCLEI).read_text())
    assert [(c["id"], c["name"], c["isthing"]) for c in content["categories"]] == [
        (0, "background", 0), (1, "nucleus", 1),
    ]  # fmt: skip
    assert content["annotations"] == [entry]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        write_cityscapes_semantic(blocked / "a.png", np.zeros((2, 2), np.uint8), CITYSCAPES)
