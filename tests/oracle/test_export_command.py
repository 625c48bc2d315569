"""`python -m panolib export`: the official tools give its files the scores that the run recorded.

A rendered city with caravans, trailers and groups in its truth, and predictions that are shifted, split,
merged and false; networks stand by untrained, because `predict_image` is replaced.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
import yaml
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instance_tool
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as panoptic_tool
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as pixel_tool
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

from panolib import commands
from panolib.__main__ import main
from panolib.data.images import read_channel16, read_indices, write_png
from panolib.data.readers import Cityscapes
from panolib.inference import panoptic, predict
from panolib.inference.instances import found_instances
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.predict import Prediction
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.labels import CITYSCAPES, VOID
from panolib.load import load
from panolib.metrics.average_precision import CityscapesAP
from panolib.profiles import load_yaml, project_root
from panolib.scoring import evaluate
from panolib.study import kinds, study
from panolib.study.export import ImagePrediction, write_predictions
from panolib.training.setup import build_instance, build_semantic
from panolib.training.specs import InstanceNetwork

RUN = "city-panoptic-source_only-s0"
N_IMAGES = 8
CAR, ROAD = CITYSCAPES.ids_of(("car", "road"))


# the tools under a current NumPy


@pytest.fixture
def tools(monkeypatch):
    """`np.in1d` is gone since NumPy 2.4; JSON files of the tools cannot hold integers of NumPy."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(instance_tool, "writeDict2JSON", lambda *_: None)
    monkeypatch.setattr(
        panoptic_tool, "pq_compute_multi_core", lambda *args: panoptic_tool.pq_compute_single_core(0, *args)
    )


def official_scores(truth: Path, export: Path, min_region: int) -> dict[str, float]:
    """mIoU, AP, AP50 and PQ of an export; `truth` is the folder that holds gtFine."""
    files = sorted((truth / "gtFine" / "val").rglob("*_instanceIds.png"))
    labels = [str(path).replace("instanceIds", "labelIds") for path in files]
    pixel, instance = copy.copy(pixel_tool.args), argparse.Namespace(**vars(instance_tool.args))
    for args, folder in ((pixel, "semantic"), (instance, "instances")):
        args.quiet, args.JSONOutput = True, False
        args.predictionPath, args.predictionWalk = str(export / folder), None
    found = [pixel_tool.getPrediction(pixel, path) for path in labels]
    semantic = pixel_tool.evaluateImgLists(found, labels, pixel)

    instance.gtInstancesFile = str(truth / "gtInstances.json")
    instance.minRegionSizes = np.array([min_region])
    instance.distanceThs, instance.distanceConfs = (np.array([sign * np.inf]) for sign in (1, -1))
    found = [instance_tool.getPrediction(str(path), instance) for path in files]
    averages = instance_tool.evaluateImgLists(found, list(map(str, files)), instance)["averages"]

    convert2panoptic(str(truth / "gtFine"), str(truth), setNames=["val"])
    official = truth / "cityscapes_panoptic_val"
    panoptic = panoptic_tool.evaluatePanoptic(
        f"{official}.json", str(official), str(export / "panoptic.json"), str(export / "panoptic"),
        str(truth / "pq.json"),
    )  # fmt: skip
    panoptic = json.loads((truth / "pq.json").read_text()) if panoptic is None else panoptic
    return {
        "miou_19": semantic["averageScoreClasses"],
        "ap": float(averages["allAp"]),
        "ap50": float(averages["allAp50%"]),
        **{f"{name}_19": panoptic["All"][name] for name in ("pq", "sq", "rq")},
    }


# truth, predictions, study


def disturb_truth(root: Path) -> None:
    """Single and grouped caravans and trailers, a group of cars, and kinds of void on the rendered labels."""
    for number, path in enumerate(sorted(root.rglob("*_instanceIds.png"))):
        labels = path.with_name(path.name.replace("instanceIds", "labelIds"))
        values, label_ids = read_channel16(path), read_indices(labels).copy()
        for column, value in enumerate((29001, 30000, 29, 30, 26, 14)):
            box = np.s_[20 + 4 * number : 34 + 4 * number, 6 + 20 * column : 20 + 20 * column]
            values[box], label_ids[box] = value, value // 1000 or value
        write_png(path, values)
        assert cv2.imwrite(str(labels), label_ids)


def perturbed_predictions(dataset):
    """Predictions made from the truth, with faults of every kind."""
    for index in range(len(dataset)):
        sample, rng = dataset[index], np.random.default_rng(index)
        shift = tuple(rng.integers(-1, 2, 2))
        semantic = np.where(sample.semantic == VOID, CAR, sample.semantic)  # something is found on all void
        instance = np.where(sample.semantic == VOID, 900_000 + np.arange(128) // 20, sample.instance)
        semantic, instance = (np.roll(part, shift, (0, 1)) for part in (semantic, instance))
        semantic[40:50, :30] = rng.integers(19)
        for k in np.unique(instance)[1:].tolist():
            fate, mask = rng.integers(6), instance == k
            if fate == 0:  # split
                instance[mask & (np.arange(128) > np.median(np.nonzero(mask)[1]))] = k + 500_000
            elif fate == 1:  # class of a neighbour in the list
                semantic[mask] = rng.choice(CITYSCAPES.thing_ids)
        own = 0.4 + 0.6 * rng.random(semantic.shape).round(2)
        probabilities = np.tile((1 - own) / 18.0, (19, 1, 1))
        np.put_along_axis(probabilities, semantic[None].astype(int), own[None], 0)
        ids, place = np.unique(instance, return_inverse=True)
        centres = 10 * rng.standard_normal((len(ids), 4))
        embeddings = centres[place.reshape(semantic.shape)] + 0.05 * rng.standard_normal((*semantic.shape, 4))
        yield Prediction(
            sample,
            torch.from_numpy(probabilities).float(),
            torch.from_numpy(embeddings).float().movedim(2, 0),
        )


def untrained_network(run: Run, job) -> dict:
    """In place of every training: initial weights."""
    network = run.spec.network
    is_instance = isinstance(network, InstanceNetwork)
    model = build_instance(network) if is_instance else build_semantic(network, 19)
    job.finish({"model": model.state_dict()})
    return {"bandwidth": 0.5, "delta_dist": 2.0}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The study of a tiny profile, with validation images but nothing trained."""
    root = tmp_path_factory.mktemp("export")
    profile = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")
    profile["city"]["data"]["embedded"]["n_val"] = N_IMAGES
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile))
    loaded = load(path, root=root)
    sources = loaded.sources["city"]
    validation = sources.renderings()[-1]
    disturb_truth(validation.write(validation.folder, progress=False, **validation.arguments))
    return loaded


@pytest.fixture
def city(rendered, tmp_path, monkeypatch):
    """The same with a store of its own, in which every training gives initial weights; `main` loads it."""
    functions = dict.fromkeys(rendered.store.kinds, untrained_network)
    functions["panoptic"] = functools.partial(kinds.panoptic, rendered.sources)
    loaded = replace(rendered, store=Store(tmp_path / "results", functions), results=tmp_path / "results")
    monkeypatch.setattr(study.Study, "prepare_data", lambda self, **_: None)
    monkeypatch.setattr(commands, "load", lambda profile, **_: loaded)
    predictions = perturbed_predictions(loaded.sources["city"].open("cityscapes/val"))
    by_image = {prediction.sample.id: prediction for prediction in predictions}
    for module in (predict, panoptic, evaluate):
        monkeypatch.setattr(module, "predict_image", lambda *inputs: by_image[inputs[-1].id])
    return loaded


def export(folder: Path, *options: str, run: str = RUN) -> int:
    return main(["export", "--profile", "smoke", "--run", run, "--out", str(folder), *options])


# tests


def test_official_tools_give_the_recorded_scores(city, tools, tmp_path, capsys):
    folder = tmp_path / "out"
    assert export(folder) == 0
    captured = capsys.readouterr()
    assert "trained first" in captured.err and "city-semantic-source_only-s0, city-instance" in captured.err
    lines = [line.split() for line in captured.out.splitlines()]
    assert [line[1] for line in lines[1:4]] == [
        str(folder / n) for n in ("instances", "panoptic", "semantic")
    ]
    assert {path.name for path in folder.iterdir()} == {
        "fingerprint.json", "instances", "panoptic", "panoptic.json", "semantic",
    }  # fmt: skip

    run = city.runs[RUN]
    recorded = city.get(RUN).metrics
    truth = tmp_path / "truth"  # the tools write beside the labels
    truth.mkdir()
    (truth / "gtFine").symlink_to(city.sources["city"].folders["cityscapes"] / "gtFine")
    official = official_scores(truth, folder, run.spec.min_region)
    assert official == pytest.approx({name: recorded[name] for name in official}, abs=1e-9)
    assert all(0.05 < value < 0.95 for value in official.values())  # neither perfect nor hopeless


def test_without_the_ignored_pixels_ap_is_another(city):
    """Predictions on single caravans and trailers are false: the void pixels would excuse them."""
    data = city.sources["city"].open("cityscapes/val")
    scores = []
    for void in (lambda sample: sample.ignored, lambda sample: None):
        ap = CityscapesAP(CITYSCAPES, min_region=10)
        for prediction in perturbed_predictions(data):
            found = found_instances(
                prediction, prediction.semantic, CITYSCAPES, opening=0, min_size=4, bandwidth=0.5
            )
            truth = panoptic_truth(prediction.sample, CITYSCAPES)
            ap.update(*truth, *found, void=void(prediction.sample))
        scores.append(ap.result().mean_ap)
    assert scores[0] < scores[1] - 0.001


def test_license_plates_are_ignored(tmp_path, tools, monkeypatch):
    """-1 cannot stand in a PNG: the tool is handed such a map, our reader the 16 bits that hold it."""
    stem, size = "ulm_000000_000019", (32, 48)
    values, predicted = np.full(size, 7), np.zeros(size, int)
    values[4:20, 4:20], predicted[4:20, 4:19] = 26000, 1
    values[22:30, 4:30], predicted[22:30, 4:30] = -1, 2
    values[4:20, 30:40], predicted[4:20, 30:40] = 29001, 3
    folder = tmp_path / "gtFine" / "val" / "ulm"
    (tmp_path / "leftImg8bit" / "val" / "ulm").mkdir(parents=True)
    folder.mkdir(parents=True)
    image = tmp_path / "leftImg8bit" / "val" / "ulm" / f"{stem}_leftImg8bit.png"
    assert cv2.imwrite(str(image), np.zeros((*size, 3), np.uint8))
    files = {kind: folder / f"{stem}_gtFine_{kind}.png" for kind in ("labelIds", "instanceIds")}
    label_ids = np.where(values >= 1000, values // 1000, values)
    assert cv2.imwrite(str(files["labelIds"]), label_ids.astype(np.int8).view(np.uint8))
    write_png(files["instanceIds"], values.astype(np.int16).view(np.uint16))

    table = [{"id": k, "category_id": CAR, "confidence": k / 4} for k in (1, 2, 3)]
    sample = Cityscapes(tmp_path, "val")[0]
    ours = CityscapesAP(CITYSCAPES)
    ours.update(*panoptic_truth(sample, CITYSCAPES), predicted, table, void=sample.ignored)
    semantic = np.full(size, ROAD)
    write_predictions(
        tmp_path / "out", [ImagePrediction(stem, semantic, (predicted, table), None)], CITYSCAPES
    )

    args = argparse.Namespace(**vars(instance_tool.args))
    args.quiet, args.predictionPath, args.predictionWalk = True, str(tmp_path / "out" / "instances"), None
    args.distanceAvailable = False
    instance_tool.setInstanceLabels(args)
    path = str(files["instanceIds"])
    monkeypatch.setattr(instance_tool, "readGTImage", lambda *_: values)
    truth = {name: [] for name in args.instLabels}
    truth["car"] = [{"instID": 26000, "labelID": 26, "pixelCount": 256, "medDist": -1, "distConf": 0.0}]
    matches = instance_tool.matchGtWithPreds(
        [instance_tool.getPrediction(path, args)], [path], {path: truth}, args
    )
    official = instance_tool.evaluateMatches(matches, args)[0]
    car = args.instLabels.index("car")
    np.testing.assert_allclose(ours.result().per_threshold[car], official[car], atol=1e-12)
    assert ours.result().ap50[car] == pytest.approx(0.25)  # the caravan is false and comes first: P 1/2


def test_all_void_no_instance_and_folders_in_ids(city, tools, tmp_path):
    """The tools find the files of "part/id", and of images on which nothing is predicted."""
    truth = city.sources["city"].folders["cityscapes"]
    data = city.sources["city"].open("cityscapes/val")
    ap, predictions = CityscapesAP(CITYSCAPES, min_region=10), []
    for index, prediction in enumerate(perturbed_predictions(data)):
        semantic, sample = prediction.semantic.numpy(), prediction.sample
        found = found_instances(
            prediction, prediction.semantic, CITYSCAPES, opening=3, min_size=4, bandwidth=0.5
        )
        if index == 0:
            semantic, found = np.full_like(semantic, VOID), (np.zeros_like(semantic), [])
        elif index == 1:
            found = (np.zeros_like(semantic), [])
        ap.update(*panoptic_truth(sample, CITYSCAPES), *found, void=sample.ignored)
        merged = merge_panoptic(semantic, found[0], CITYSCAPES)
        predictions.append(ImagePrediction(f"mix/{sample.id}", semantic, found, merged))
    write_predictions(tmp_path / "out", predictions, CITYSCAPES)
    listing = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert listing["annotations"][0]["segments_info"] == []
    for entry in listing["annotations"]:
        assert (tmp_path / "out" / "panoptic" / entry["file_name"]).is_file()
        entry["image_id"] = entry["image_id"].removeprefix("mix/")  # the truth's ids have no folder
    (tmp_path / "out" / "panoptic.json").write_text(json.dumps(listing))
    official = official_scores(truth, tmp_path / "out", 10)
    assert official["ap"] == pytest.approx(ap.result().mean_ap, abs=1e-9) and official["pq_19"] > 0


def test_a_semantic_run_gives_label_ids_only(city, tmp_path):
    run = "city-semantic-source_only-s0"
    city.get(run)
    assert export(tmp_path / "out", run=run) == 0
    files = sorted((tmp_path / "out").rglob("*.png"))
    assert len(files) == N_IMAGES and {file.parent.name for file in files} == {"semantic"}
    assert set(np.unique(read_indices(files[0]))) <= set(CITYSCAPES.file_ids)
    assert not (tmp_path / "out" / "panoptic.json").exists()


def test_what_is_in_the_folder_stays_unless_an_export_wrote_it(city, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    for options in ((), ("--overwrite",)):
        assert export(mine, *options) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {mine}: holds files")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert export(mine / "thesis.txt") == 1 and export(mine / "thesis.txt" / "below") == 1

    folder = tmp_path / "out"
    assert export(folder) == 0
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
    (folder / "semantic" / "stale.png").write_bytes(b"")
    assert export(folder) == 1
    assert "--overwrite replaces an earlier export" in capsys.readouterr().err
    assert export(folder, "--overwrite") == 0
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")} == first
    assert "trained first" not in capsys.readouterr().err


def test_a_run_that_cannot_be_exported(city, tmp_path, capsys):
    with pytest.raises(
        SystemExit,
        match=r"--run city-panoptic-sourceonly-s0: expected .* such as city-panoptic-source_only-s0",
    ):
        export(tmp_path / "out", run="city-panoptic-sourceonly-s0")
    assert export(tmp_path / "out", run="city-instance-source_only-s0") == 1
    assert "is of kind 'instance_baseline'; expected a panoptic run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run", "out", "message"),
    [
        ("city-threat-icm.00-s0", "out", "error: run 'city-threat-icm.00-s0' is of kind 'threat'"),
        ("performance", "out", "error: run 'performance' is of kind 'performance'"),
        ("city-panoptic-oracle-s0", "file/below/out", "error: .*file is a file"),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_rendered(run, out, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    options = ["export", "--profile", "cpu", "--run", run, "--out", str(tmp_path / out)]
    with mock.patch("panolib.study.study.Study.prepare_data", side_effect=AssertionError):
        assert main(options) == 1
    assert re.match(message, capsys.readouterr().err)


def test_images_are_written_before_it_is_asked_which_networks_are_missing(city, tmp_path, monkeypatch):
    """To ask opens the validation images, which a fresh clone has not rendered."""
    asked, found = [], commands.untrained
    monkeypatch.setattr(study.Study, "prepare_data", lambda self, **_: asked.append("images"))
    monkeypatch.setattr(commands, "untrained", lambda *of: asked.append("networks") or found(*of))
    assert export(tmp_path / "out") == 0
    assert asked == ["images", "networks"]
