"""The tidy table: selections by coordinates and tags, values as recorded, scores of counted images."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from panolib.lab.run import Run
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.metrics.threat_score import ThreatScore
from panolib.report import rows as report
from panolib.study.study import Tag

THINGS = CITYSCAPES.things


@pytest.fixture(scope="module")
def cpu():
    """The study of profile cpu with its recorded runs."""
    return load("cpu", train=False)


def study_of(records):
    """A study with records: name -> (kind, branch, rung, seed, tag values of "E0", metrics, curves)."""
    runs, found, tags = {}, {}, []
    for name, (kind, branch, rung, seed, values, metrics, curves) in records.items():
        spec = SimpleNamespace(seed=seed, validation="target/val")
        runs[name] = Run(name, kind, spec, domain="city", branch=branch, rung=rung)
        found[name] = SimpleNamespace(run=runs[name], metrics=metrics, curves=curves)
        tags.append(Tag("E0", name, values))
    store = SimpleNamespace(load=lambda run: found[run.name])
    profile = SimpleNamespace(left_out=lambda: ["detr"])
    return SimpleNamespace(runs=runs, tags=tags, get=found.get, store=store, profile=profile)


def threat_metrics(variants):
    """Metrics of a threat run: {(truth share, kernel): {class: (tp, fp, fn), each a text of images}}."""
    first = next(iter(variants.values()))
    found = []
    for (share, kernel), counts in variants.items():
        of_names = zip(("tp", "fp", "fn"), zip(*counts.values()))
        texts = {name: dict(zip(counts, of_classes)) for name, of_classes in of_names}
        found.append({"truth_share": share, "kernel": kernel, **texts})
    masks = [{"truth_share": share, "miou": 0.5 + share / 2, "wrong_share": 0.2} for share, _ in variants]
    n_images = len(next(iter(first.values()))[0].split())
    return {"things": list(first), "n_images": n_images, "masks": masks, "variants": found}


@pytest.fixture
def small():
    scores = {"miou_19": 0.5, "iou": {"car": 0.7, "bus": None}, "note": "text", "sure": True}
    curve = pd.DataFrame({"iteration": [1, 2], "loss": [0.5, 0.25]})
    counts = threat_metrics({
        (0.0, 3): {"car": ("1 2 3", "0 0 1", "1 0 2"), "bus": ("4 5 16", "0 0 0", "0 4 0")},
        (1.0, 0): {"car": ("7 8 9", "0 0 0", "1 0 2"), "bus": ("0 0 0", "0 0 0", "0 4 0")},
    })  # fmt: skip
    return study_of({
        "a": ("semantic", "semantic", "self_trained", 0, {"share": 0.0}, scores, curve),
        "b": ("semantic", "semantic", "self_trained", 1, {"share": 0.25}, scores, curve),
        "c": ("semantic", "semantic", "oracle", 0, {}, scores, curve),
        "d": ("threat", "threat", "", 0, {"share": 0.25}, counts, curve),
    })  # fmt: skip


# --- selections ---------------------------------------------------------------------------------------------


def test_runs_are_selected_by_tags_and_coordinates_in_the_order_of_the_grid(small):
    assert [run.name for run, _ in report.tagged(small, "E0", branch="semantic")] == ["a", "b", "c"]
    found = report.tagged(small, "E0", share=[0.25, 0.0], branch="semantic")
    assert [at["run"] for _, at in found] == ["a", "b"]  # c has no share
    ((_, at),) = report.tagged(small, "E0", rung="oracle")
    coordinates = {"domain": "city", "branch": "semantic", "rung": "oracle", "variant": ""}
    assert at == {**coordinates, "seed": 0, "run": "c"}


def test_a_selection_of_nothing_says_what_there_is(small):
    with pytest.raises(LookupError, match=r"'E0': no run with \{'share': 0.5\}; found .*0.0, 0.25, None"):
        report.rows(small, "E0", share=0.5)
    with pytest.raises(LookupError, match=r"'E12': no run with \{\}; found no run at all; .*out: detr"):
        report.rows(small, "E12")
    with pytest.raises(LookupError, match=r"no row with metric 'pq'; found .*miou_19"):
        report.rows(small, "E0", branch="semantic", metric="pq")
    with pytest.raises(LookupError, match=r"no column 'colour'; found .*'share'"):
        report.rows(small, "E0", branch="semantic", colour="red")


def test_every_number_of_a_record_is_one_row(small):
    table = report.rows(small, "E0", branch="semantic", seed=1)
    assert table[["metric", "subset", "value"]].to_numpy().tolist() == [
        ["miou_19", "", 0.5], ["iou", "car", 0.7],
    ]  # fmt: skip
    assert set(table["data_set"]) == {"target/val"} and set(table["share"]) == {0.25}


def test_curves_have_the_columns_of_their_run(small):
    table = report.curves(small, "E0", branch="semantic", share=[0.0, 0.25])
    assert table[["run", "iteration", "loss"]].to_numpy().tolist() == [
        ["a", 1, 0.5], ["a", 2, 0.25], ["b", 1, 0.5], ["b", 2, 0.25],
    ]  # fmt: skip


def test_counts_have_a_row_for_every_image_and_class_of_a_variant(small):
    table = report.image_counts(small, "E0")
    assert len(table) == 2 * 3 * 2
    row = table.query("truth_share == 0 and `class` == 'bus' and image == 2").iloc[0]
    assert (row["kernel"], row["tp"], row["fp"], row["fn"], row["share"]) == (3, 16, 0, 0, 0.25)
    cars = report.image_counts(small, "E0", truth_share=1.0, **{"class": "car"})
    assert cars["tp"].tolist() == [7, 8, 9]


def test_masks_of_a_threat_run_are_rows_with_their_share_of_truth(small):
    table = report.rows(small, "E0", branch="threat", metric="mask_miou")
    assert table[["truth_share", "value"]].to_numpy().tolist() == [[0.0, 0.5], [1.0, 1.0]]


# --- recorded runs ------------------------------------------------------------------------------------------


def test_values_are_those_of_the_records(cpu):
    table = report.rows(cpu, "E1", source="mix", network="v2", metric=["miou_19", "iou"])
    assert set(table["rung"]) >= {"source_only", "abn", "self_trained"}
    assert set(table["seed"]) == set(cpu.profile.experiments.seeds)
    for row in table.sample(30, random_state=0).itertuples():
        metrics = cpu.get(row.run).metrics
        assert row.value == (metrics["iou"][row.subset] if row.subset else metrics["miou_19"])


def test_panoptic_parts_are_told_apart(cpu):
    table = report.rows(cpu, "E10", network="v2", rung="self_trained", metric="pq_19", subset="")
    metrics = cpu.get(table["run"].iloc[0]).metrics
    found = table[table["seed"] == 0].set_index(["instances", "leftover"])["value"]
    assert found["embeddings", "void"] == metrics["pq_19"] == metrics["merge"]["void"]["pq_19"]
    assert found["embeddings", "nearest"] == metrics["merge"]["nearest"]["pq_19"]
    assert found["connected components", "void"] == metrics["connected_components"]["pq_19"]


def test_every_experiment_of_a_notebook_has_rows(cpu):
    experiments = dict.fromkeys(tag.experiment for tag in cpu.tags)
    recorded = {tag.experiment for tag in cpu.tags if cpu.store.load(cpu.runs[tag.run]) is not None}
    assert set(experiments) - recorded <= {"performance"}  # whose record README says is not made yet
    for experiment in recorded:
        assert report.tagged(cpu, experiment)


# --- scores of counts ---------------------------------------------------------------------------------------


def frame(rows):
    return pd.DataFrame(rows, columns=["image", "class", "tp", "fp", "fn"])


def test_scores_by_hand():
    table = frame([
        (0, "car", 1, 0, 1), (1, "car", 0, 3, 0), (2, "car", 2, 0, 0),  # image 1 shows no car
        (0, "bus", 0, 1, 1), (1, "bus", 0, 0, 0), (2, "bus", 0, 0, 0),
        (0, "train", 0, 0, 0), (1, "train", 0, 0, 0), (2, "train", 0, 0, 0),  # never seen nor predicted
    ])  # fmt: skip
    found = report.threat_score(table.assign(kernel=0), by=["kernel"]).iloc[0]
    assert (found["tp"], found["fp"], found["fn"]) == (3, 4, 2)
    assert found["pooled"] == pytest.approx(3 / 9)
    assert found["class_mean"] == pytest.approx((3 / 7 + 0) / 2)
    assert found["image_mean"] == pytest.approx(((0.5 + 1) / 2 + 0) / 2)
    by_class = report.threat_score(table, by=["class"]).set_index("class")
    assert by_class.loc["car", "class_mean"] == by_class.loc["car", "pooled"] == pytest.approx(3 / 7)
    assert by_class.loc["train", ["pooled", "class_mean", "image_mean"]].isna().all()
    assert by_class.loc["bus", "image_mean"] == 0


def test_nothing_to_count_is_nan():
    table = frame([(0, "car", 0, 0, 0), (0, "bus", 0, 0, 0)]).assign(kernel=0)
    found = report.threat_score(table, by=["kernel"])[["pooled", "class_mean", "image_mean"]]
    assert found.isna().all(axis=None)


def test_scores_equal_those_of_the_metric():
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 3, (7, 3, len(THINGS))) * (generator.random((7, 1, len(THINGS))) < 0.6)
    counts[:, :, 5] = 0
    rows = [(n, thing, *counts[n, :, t]) for n in range(7) for t, thing in enumerate(THINGS)]
    found = report.threat_score(frame(rows).assign(kernel=0), by=["kernel"]).iloc[0]

    things = list(CITYSCAPES.thing_ids)
    score = ThreatScore(CITYSCAPES)
    for image in counts:
        score.images.append(np.zeros((CITYSCAPES.n_classes, 3), np.int64))
        score.images[-1][things] = image.T
    result = score.result()
    assert found["class_mean"] == pytest.approx(result.mean_pooled)
    assert found["image_mean"] == pytest.approx(result.mean_image_mean)
    assert found["pooled"] == pytest.approx(result.tp.sum() / (result.tp + result.fp + result.fn).sum())


# --- what a reader sees -------------------------------------------------------------------------------------


def test_summary_is_mean_and_spread_over_seeds_in_percent():
    table = pd.DataFrame({
        "rung": ["abn", "abn", "oracle", "abn"], "seed": [0, 1, 0, 0],
        "metric": ["miou", "miou", "miou", "pq"], "value": [0.31, 0.33, 0.6, 0.2],
    })  # fmt: skip
    shown = report.summary(table, "rung")
    assert shown.loc["abn"].tolist() == ["32.0 ± 1.4", "20.0", 2]
    assert shown.loc["oracle"].tolist() == ["60.0", "", 1]
    with pytest.raises(ValueError, match=r"two values for .*'rung': 'abn'"):
        report.summary(pd.concat([table, table]), "rung")


def test_percent_of_nothing_is_empty():
    assert report.percent(np.nan) == "" and report.percent(0.5) == "50.0"
    assert report.percent(0.5, 0.01, decimals=2) == "50.00 ± 1.00"


def test_tables_are_written_with_six_digits(tmp_path):
    table = pd.DataFrame({"a": [1 / 3]})
    assert report.write_csv(table, tmp_path / "new" / "t.csv") is table
    assert (tmp_path / "new" / "t.csv").read_text() == "a\n0.333333\n"
