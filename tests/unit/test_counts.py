"""What every validation image counts lies beside the scores, and the scores are those of its sums."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import tiny_city
from toy_kinds import KINDS, toy_run

from panolib.lab.counts import packed, unpacked
from panolib.lab.store import Store
from panolib.labels import CITYSCAPES
from panolib.report.counted import counted
from panolib.report.rows import rows

# --- the file -----------------------------------------------------------------------------------------------


def shapes(counts: dict) -> dict:
    return {name: list(values.shape) for name, values in counts.items()}


def test_counts_come_back_and_are_small():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 8000, (120, 19, 3)) * (generator.random((120, 19, 1)) < 0.5)
    counts = {"semantic_19": pixels, "city/val.0.85.few": np.ones((2, 3, 4), np.int64), "none": pixels[:0]}
    content = packed(counts)
    found = unpacked(content, shapes(counts))
    assert found.keys() == counts.keys()
    for name, values in counts.items():
        assert found[name].dtype == np.int64 and np.array_equal(found[name], values)
    with np.load(io.BytesIO(content)) as archive:
        assert archive["semantic_19"].dtype == np.uint16 and archive["city/val.0.85.few"].dtype == np.uint8
    assert len(content) < 2 * pixels.size and packed(counts) == content


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones((2, 3, 4)), "found float64"), (np.ones((2, 3), int), r"found int64 \[2, 3\]"),
        (-np.ones((2, 3, 4), int), "lowest -1"),
    ],
)  # fmt: skip
def test_what_is_no_count_is_refused(values, said):
    with pytest.raises(ValueError, match=rf"counts 'pq': expected whole numbers >= 0 .*{said}"):
        packed({"pq": values})


def test_a_record_holds_its_counts_and_says_their_shapes(tmp_path):
    record = Store(tmp_path, KINDS).get(toy_run(n_iterations=1))
    assert record.counts["greys"].shape == (4, 16, 1) and record.counts["greys"].max() > 0
    assert record.info["counts"] == {"greys": [4, 16, 1]}


def test_a_name_is_given_once(tmp_path):
    def twice(run, job):
        for _ in range(2):
            job.save_counts("greys", np.ones((1, 1, 1), int))

    with pytest.raises(ValueError, match="'greys' are given twice"):
        Store(tmp_path, {"toy": twice}).get(toy_run())


# --- scores are those of the sums ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny_city(tmp_path_factory.mktemp("counts"))


def ious(counts: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of sums over images."""
    total = counts[..., :3].sum(0)
    with np.errstate(invalid="ignore"):
        return total[:, 0] / total.sum(1)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("city-semantic-source_only-s0", ""), ("city-semantic-adabn-s0", ""),
        ("city-semantic-self_trained-s0", ""), ("city-semantic-self_trained-s0", "teacher"),
        ("city-semantic-teacher-s0", ""),
        ("city-gap-source_only-s0", "texture"), ("city-semantic-light-bisenet-s0", ""),
        ("city-panoptic-self_trained-s0", ""), ("city-detr_scores-plain-s0", "cityscapes/val.0.85"),
    ],
)  # fmt: skip
def test_miou_is_that_of_the_pixels_of_all_images(study, name, part):
    record = study.get(name)
    metrics = record.metrics
    for key in part.split(".", 1) if part else ():
        metrics = metrics[key]
    counts = {
        subset: record.counts[f"{part}.semantic_{subset}" if part else f"semantic_{subset}"]
        for subset in CITYSCAPES.subsets
    }
    for subset, pixels in counts.items():
        assert pixels.shape == (1 if "gap" in name else 2, int(subset), 3)
        assert np.nanmean(ious(pixels)) == metrics[f"miou_{subset}"]
    assert np.array_equal(ious(counts["19"]), list(metrics["iou"].values()), equal_nan=True)


def test_panoptic_scores_are_those_of_the_segments_of_all_images(study):
    record = study.get("city-panoptic-self_trained-s0")
    for part, scores in {
        "embedding.void": record.metrics,
        "embedding.nearest": record.metrics["merge"]["nearest"],
        "connected_components.void": record.metrics["connected_components"],
    }.items():
        counts = record.counts[f"panoptic.{part}"]
        tp, fp, fn, iou_sum, overlaps = np.moveaxis(counts.sum(0), -1, 0)
        assert counts.shape == (2, 19, 5) and tp.sum() + fp.sum() + fn.sum() > 0
        for name, total in {"tp": tp, "fp": fp, "fn": fn}.items():
            assert list(scores[name].values()) == total.tolist()
        with np.errstate(invalid="ignore"):
            pq = 1e-6 * iou_sum / (tp + fp / 2 + fn / 2)
            stuff = 1e-6 * overlaps / (tp + fn)
        plus = np.where(np.isin(np.arange(19), CITYSCAPES.thing_ids), pq, stuff)
        assert list(scores["pq"].values()) == pytest.approx(pq, abs=1e-5, nan_ok=True)
        assert list(scores["pq_plus"].values()) == pytest.approx(plus, abs=1e-5, nan_ok=True)


def test_threat_scores_are_those_of_the_objects_of_all_images(study):
    record = study.get("city-panoptic-self_trained-s0")
    for part, scores in record.metrics["threat"].items():
        counts = record.counts["threat." + part.removesuffix(" masks").replace(" in ", ".")]
        assert counts.shape == (2, len(CITYSCAPES.things), 3)
        assert counts.sum((0, 1)).tolist() == [scores[name] for name in ("tp", "fp", "fn")]
        assert np.array_equal(ious(counts), list(scores["per_class"].values()), equal_nan=True)


def test_a_record_says_how_many_images_it_saw(study):
    embedded = study.profile.city.data["embedded"]
    found = study.get("city-semantic-self_trained-s0").info["images"]
    assert found["cityscapes/val"] == embedded["n_val"] == 2
    assert found["cityscapes/train:unlabelled"] == embedded["n_train"] == 4
    assert found["mix/train"] == len(study.sources["city"].open("mix/train")) and len(found) == 3


def test_a_run_that_scores_nothing_has_no_file(study):
    name = "city-instance-source_only-s0"
    assert study.get(name).counts == {}
    assert not (study.store.folder(study.runs[name]) / "counts.npz").exists()


def test_scores_of_other_images_are_other_counts(study):
    """Images are told apart, in the order of the data set."""
    panoptic = study.runs["city-panoptic-self_trained-s0"]
    counts = study.get(panoptic.name).counts
    pixels = counts["semantic_19"][:, 0]  # of road
    truth = [(sample.semantic == 0).sum() for sample in study.sources["city"].open(panoptic.spec.validation)]
    assert (pixels[:, 0] + pixels[:, 2]).tolist() == truth and truth[0] != truth[1]
    again = study.store.get(replace(panoptic, name="again")).counts
    assert all(np.array_equal(again[name], counts[name]) for name in (*again, *counts))


# --- rows of the table --------------------------------------------------------------------------------------

COUNTED = {  # metrics of rows, by kind of run, whose values are those of counts
    "semantic": {"miou_19", "miou_16", "iou"},
    "panoptic": {
        *(f"{name}_{n}" for name in ("pq", "sq", "sq_matched", "rq", "pq_plus") for n in (19, 16)),
        *("pq", "rq", "sq", "pq_plus", "threat_pooled", "threat_class_mean", "threat_score", "threat_false"),
        *("miou_19", "miou_16", "iou"),
    },
}
COUNTED["detr"] = {name for name in COUNTED["panoptic"] if not name.startswith("threat")} | {"sq_rq_19"}


@pytest.mark.parametrize(
    ("experiment", "wanted", "metrics"),
    [
        ("city ladder", {"branch": "semantic", "rung": ["source_only", "teacher"]}, "semantic"),
        ("city ladder", {"branch": "panoptic", "rung": ["self_trained"]}, "panoptic"),
        ("gap", {"rung": "source_only"}, "semantic"),
        ("realtime", {"method": "light", "domain": "city"}, "semantic"),
        ("detr", {"branch": ["detr_scores", "panoptic"], "run": "city-detr_scores-plain-s0"}, "detr"),
    ],
)
def test_values_of_the_table_are_those_of_the_counts_of_all_images(study, experiment, wanted, metrics):
    found, seen = rows(study, experiment, **wanted), set()
    for at in found.to_dict("records"):
        term = counted(study.get(at["run"]), at, at["metric"], at["subset"])
        if term is None:
            assert at["metric"] not in COUNTED[metrics], at
            continue
        value = term.value(np.ones(len(term.counts)))
        assert value == pytest.approx(at["value"], abs=1e-5, nan_ok=True), at
        seen.add(at["metric"])
    assert seen == COUNTED[metrics]


def test_metrics_that_are_no_sums_have_no_counts(study):
    record = study.get("city-panoptic-self_trained-s0")
    at = {"instances": "embeddings", "masks": "predicted", "leftover": "void", "data_set": "cityscapes/val"}
    for metric in ("ap50", "ap", "threat_image_mean", "pq_99", "miou_99", "n_images"):
        assert counted(record, at, metric, "") is None
    assert counted(record, at, "pq", "no class") is None and counted(record, at, "iou", "no class") is None
    assert counted(record, {**at, "leftover": "other"}, "pq_19", "") is None
