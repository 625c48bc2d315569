"""Tables and findings of E2 to E4 from records made by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from panolib.bench.clustering_cost import cost_rows, cost_sizes
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.report import progress_findings as findings
from panolib.report import progress_tables
from panolib.report.findings import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, compared
from panolib.report.progress_tables import ALGORITHM_LABELS, RING_LABELS, WORKFLOW_LABELS
from panolib.report.tables import COLUMNS, summarise
from panolib.study import progress_runs
from panolib.study.settings import ClusteringCostSpec
from panolib.training.setup import Compute

TRAIN, VAL, SOURCE = "cityscapes/train", "cityscapes/val", "synthia/val"
METRICS = ("pooled", "class mean", *(f"group {name}" for name in CITYSCAPES.groups), *CITYSCAPES.things)
SPREAD = pd.Series(0.5, METRICS)


@dataclass(frozen=True)
class FakeRun:
    name: str
    kind: str = "instance_self_training"
    parents: tuple = ()


def record(name: str, curves: dict | None = None, metrics: dict | None = None, parents=()):
    return SimpleNamespace(run=FakeRun(name, parents=parents), curves=pd.DataFrame(curves), metrics=metrics)


def monitored(name: str, data: str, iterations, tp, fp, fn, loss):
    columns = {"iteration": range(max(iterations) + 1)}
    for column, values in {"tp": tp, "fp": fp, "fn": fn, "loss": loss}.items():
        filled = np.full(max(iterations) + 1, np.nan)
        filled[list(iterations)] = values
        columns[f"{column} {data}"] = filled
    return record(name, columns)


def test_progress_adds_networks_up():
    one = monitored("one", VAL, (0, 2), (1, 3), (1, 0), (4, 2), (1.0, 2.0))
    two = monitored("two", VAL, (0, 2), (0, 1), (0, 4), (0, 0), (3.0, 6.0))
    table = progress_tables.progress([one, two])
    assert table["iteration"].tolist() == [0, 2] and set(table["data"]) == {VAL}
    assert table[["tp", "fp", "fn"]].to_numpy().tolist() == [[1, 1, 4], [4, 4, 2]]
    assert table["loss"].tolist() == [2.0, 4.0]
    assert table["threat_score"].tolist() == pytest.approx([100 / 6, 40])


def test_progress_without_an_object_has_no_score():
    table = progress_tables.progress([monitored("one", VAL, (0, 1), (0, 0), (0, 1), (0, 0), (0.0, 0.0))])
    assert np.isnan(table["threat_score"][0]) and table["threat_score"][1] == 0


def test_progress_names_what_does_not_fit():
    one = monitored("one", VAL, (0, 2), (1, 3), (1, 0), (4, 2), (1.0, 2.0))
    with pytest.raises(ValueError, match="two was not monitored"):
        progress_tables.progress([one, record("two", {"iteration": [0], "loss": [1.0]})])
    other = monitored("two", VAL, (0, 1), (1, 3), (1, 0), (4, 2), (1.0, 2.0))
    with pytest.raises(ValueError, match="different iterations"):
        progress_tables.progress([one, other])


def test_change_is_end_minus_start_and_percent_change_by_points():
    one = monitored("one", VAL, (0, 2, 5), (0, 9, 1), (1, 0, 1), (4, 2, 2), (3.0, 2.0, 1.0))
    table = progress_tables.labelled_progress(None, {("mean-shift", "epsilon zero", 0): one})
    found = progress_tables.change(table, VAL, "loss").iloc[0]
    assert found.tolist() == [3.0, 1.0, -2.0]
    rows = progress_tables.change_rows(table, VAL, "threat_score", "target", "%")
    assert rows["class_or_metric"].tolist() == ["target: start", "target: end", "target: change"]
    assert rows["unit"].tolist() == ["%", "%", "points"] and rows["value"].tolist() == [0.0, 25.0, 25.0]


def threat_record(name: str, per_class: dict[str, tuple[int, int, int]]):
    """One image; the variants of other masks and kernels hold other counts."""
    things = list(CITYSCAPES.things)
    zero, other = (0, 0, 0), (9, 9, 9)

    def variant(share, kernel, counts):
        numbers = {thing: counts.get(thing, zero) if counts else other for thing in things}
        return {"truth_share": share, "kernel": kernel} | {
            column: {thing: str(found[i]) for thing, found in numbers.items()}
            for i, column in enumerate(("tp", "fp", "fn"))
        }

    variants = [variant(1.0, 0, None), variant(0.0, 3, None), variant(0.0, 0, per_class)]
    return record(name, metrics={"things": things, "n_images": 1, "variants": variants})


def test_scores_by_class_and_group_of_the_predicted_masks_only():
    named = {("BASE", "0 % source", 0): threat_record("t", {"car": (1, 1, 2), "bus": (2, 0, 0)})}
    rows = progress_tables.score_rows(named)
    values = rows.set_index("class_or_metric")["value"]
    assert list(rows.columns) == list(COLUMNS)
    assert values["pooled"] == 50 and values["car"] == 25 and values["bus"] == 100
    assert values["class mean"] == 62.5 and values["group auto"] == 50
    assert np.isnan(values["person"]) and np.isnan(values["group human"])
    assert values[["TP", "FP", "FN"]].tolist() == [3, 1, 2]
    assert progress_tables.score_rows(named, truth_share=1.0)["value"][0] == pytest.approx(100 / 3)


def test_times_of_a_workflow_are_the_sum_and_the_slowest():
    runs = [FakeRun("a"), FakeRun("b")]
    seconds = {"a": [1.0, 2.0, np.nan], "b": [4.0, 1.0, np.nan]}
    records = {name: record(name, {"step_s": found}) for name, found in seconds.items()}
    parents = (("semantic", FakeRun("s")), ("instance.x", runs[0]), ("instance.y", runs[1]))
    threat = record("t", parents=parents)
    fake = SimpleNamespace(get=records.__getitem__)
    rows = progress_tables.workflow_time_rows(fake, {("BASE", "0 % source", 0): threat})
    assert dict(zip(rows["class_or_metric"], rows["value"])) == {
        "all networks": 8, "longest network": 5, "networks": 2,
    }  # fmt: skip


def test_times_stand_beside_the_thesis():
    named = {
        (ALGORITHM_LABELS[name], RING_LABELS["zero"], 0): record(
            name, {"clustering_s": [s, s, np.nan], "step_s": [s + 2, s + 2, np.nan]}
        )
        for name, s in {"mean_shift": 6.0, "mean_shift_plus": 2.0, "connected_components": 1.0}.items()
    }
    table = progress_tables.time_ratios(progress_tables.clustering_time_rows(named))
    assert table["clustering, ratio"].tolist() == [3.0, 1.0, 0.5]
    assert table["whole step, ratio"].tolist() == [2.0, 1.0, 0.75]
    assert table["thesis, ratio"].tolist()[:2] == [4.8, 1.0] and np.isnan(table["thesis, ratio"].iloc[2])
    assert progress_tables.thesis_hours("all classes") == 48 and progress_tables.thesis_hours("ICM") == 13
    summary = summarise(scores({("BASE", ""): {"longest network": 3.0}}).assign(unit="s"))
    beside = progress_tables.with_thesis_hours(summary)
    assert beside["mean"].tolist() == [3.0, 24.0] and beside["unit"].tolist() == ["s", "h"]
    shown = progress_tables.show_time_ratios(table)
    assert shown.loc["mean-shift", "thesis, h per 10,000 iterations"] == "96.0"


def scores(values: dict[tuple[str, str], dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [(method, setting, metric, value, "%", "", 0)
         for (method, setting), found in values.items() for metric, value in found.items()],
        columns=list(COLUMNS),
    )  # fmt: skip


def progress_of(values: dict[tuple[str, str], dict], data: str, iterations=(0, 4, 10)) -> pd.DataFrame:
    """Rows of `labelled_progress`; columns that are not given are 1."""
    parts = [
        pd.DataFrame({"method": method, "setting": setting, "seed": 0, "data": data, "iteration": iterations,
                      **{name: 1.0 for name in ("tp", "fp", "fn", "loss", "threat_score")}, **found})
        for (method, setting), found in values.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("as_thesis", [True, False])
def test_clustering_findings_follow_the_numbers(as_thesis):
    names = [ALGORITHM_LABELS[name] for name in ("mean_shift", "mean_shift_plus", "agglomerative")]
    rings = list(RING_LABELS.values())
    fp, tp = ((1, 2, 3), (0, 9, 10)) if as_thesis else ((3, 2, 1), (0, 1, 10))
    progress = progress_of({(n, r): {"fp": fp, "tp": tp} for n in names for r in rings}, TRAIN)
    best = ("mean-shift+", rings[1]) if as_thesis else ("agglomerative", rings[0])
    table = scores({(n, r): {"class mean": 9.0 if (n, r) == best else 1.0} for n in names for r in rings})
    ratios = pd.DataFrame({
        "clustering, ratio": [30.0, 1.0, 7.0],
        "whole step, ratio": [4.0, 1.0, 1.5] if as_thesis else [0.5, 1.0, 9.0],
    }, names)  # fmt: skip
    rise = {"agglomerative": 3.0 if as_thesis else 1.0}
    losses = pd.concat([
        pd.DataFrame({"method": n, "setting": rings[0], "iteration": (0, 4, 10),
                      "target_loss": (1.0, rise.get(n, 1.2), 9.0)}) for n in names
    ])  # fmt: skip
    n_clusters = pd.Series([1.0, 1.0, 2.0 if as_thesis else 0.5], names)
    found = findings.clustering_findings(table, ratios, progress, losses, n_clusters, SPREAD, train=TRAIN)
    assert {finding.verdict for finding in found} == {REPRODUCED if as_thesis else NOT_REPRODUCED}
    assert all("one seed, no spread" in finding.ours for finding in found)
    step = "4.0" if as_thesis else "0.5"  # the thesis gives hours of whole training: whole steps decide
    assert found[0].ours.startswith(f"a whole step takes {step} times as long, its clustering alone 30.0")


@pytest.mark.parametrize("as_thesis", [True, False])
def test_workflow_findings_follow_the_numbers(as_thesis):
    order = {"all": 1.0, "ccm": 2.0, "base": 3.0, "icm": 4.0}
    metrics = [*(f"group {name}" for name in CITYSCAPES.groups), *CITYSCAPES.things]
    none = findings.NONE
    table = scores({
        (WORKFLOW_LABELS[name], none): dict.fromkeys(metrics, value if as_thesis else -value)
        for name, value in order.items()
    })  # fmt: skip
    table.loc[table["class_or_metric"] == "train", "value"] = np.nan  # nothing to count decides nothing
    seconds = {"all": 48.0, "base": 24.0, "ccm": 23.0, "icm": 13.0}
    times = scores({
        (WORKFLOW_LABELS[name], none): {"longest network": value if as_thesis else 50 - value}
        for name, value in seconds.items()
    })  # fmt: skip
    course = (1, 2, 3) if as_thesis else (3, 2, 1)
    keys = {(WORKFLOW_LABELS[name], none): {"fp": course, "loss": course} for name in order}
    progress = pd.concat([progress_of(keys, TRAIN), progress_of(keys, VAL)])
    found = findings.workflow_findings(table, times, progress, SPREAD, train=TRAIN, val=VAL)
    assert {finding.verdict for finding in found} == {REPRODUCED if as_thesis else NOT_REPRODUCED}
    wide = findings.workflow_findings(table, times, progress, 9 * SPREAD, train=TRAIN, val=VAL)
    assert [finding.verdict for finding in wide].count(NOT_TESTABLE) == 3  # every comparison of scores
    without = table[table["method"] != "ICM"], times[times["method"] != "ICM"]
    found = findings.workflow_findings(*without, progress, SPREAD, train=TRAIN, val=VAL)
    assert [finding.verdict for finding in found].count(NOT_TESTABLE) == 2


@pytest.mark.parametrize("as_thesis", [True, False])
def test_forgetting_findings_follow_the_numbers(as_thesis):
    methods, sign = [*WORKFLOW_LABELS.values()], 1 if as_thesis else -1
    keys = [(method, setting) for method in methods for setting in (findings.NONE, findings.QUARTER)]
    of_source = {key: {"threat_score": (50, 50, 50 - sign * (9 if key[1] == findings.NONE else 2))}
                 for key in keys}  # fmt: skip
    of_train = {key: {"tp": (1, 1, 5 + sign * (key[1] == findings.QUARTER))} for key in keys}
    progress = pd.concat([progress_of(of_source, SOURCE), progress_of(of_train, TRAIN)])
    gain = {"BASE": 1.0, "CCM": -1.0}
    table = scores({
        (method, setting): {"class mean": 10 + sign * gain.get(method, 0) * (setting == findings.QUARTER)}
        for method, setting in keys
    })  # fmt: skip
    crops = scores({("smaller source crops", ""): {"class mean": 5.0 - sign},
                    ("as elsewhere", ""): {"class mean": 5.0}})  # fmt: skip
    found = findings.forgetting_findings(table, progress, crops, SPREAD, train=TRAIN, source=SOURCE)
    assert {finding.verdict for finding in found} == {REPRODUCED if as_thesis else NOT_REPRODUCED}
    progress.loc[progress["data"] == SOURCE, "threat_score"] = 0.0
    again = findings.forgetting_findings(table, progress, crops, SPREAD, train=TRAIN, source=SOURCE)
    assert [finding.verdict for finding in again].count(NOT_TESTABLE) == 1 and len(again) == len(found) - 1


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_every_run_of_the_notebooks_is_declared_and_none_of_the_workflows_is_left_out(profile):
    loaded = load(profile)
    asked = {name for number in ("02", "03", "04") for notebook, names in loaded.notebooks.items()
             if notebook.startswith(number) for name in names}  # fmt: skip
    assert asked <= set(loaded.runs)
    declared = {name for name in loaded.runs if name.split("-")[1:3] == ["instance", "self_trained"]}
    workflows = progress_runs.WORKFLOWS
    trained = {name for name in declared if name.split("-")[3].split(".")[0] in workflows}
    assert trained <= asked and len(trained) > 10
    for seed in loaded.profile.experiments.seeds:
        crops = loaded.runs[progress_runs.network("crops", seed)].spec
        usual = loaded.runs[progress_runs.network("all.25", seed)].spec
        assert crops.augmentation != usual.augmentation and crops.source_share == usual.source_share


def test_the_cost_of_every_algorithm_and_size_is_measured():
    algorithms, compute = ("mean_shift_plus", "connected_components"), Compute("cpu", "32-true", 0, False)
    spec = ClusteringCostSpec("cityscapes", algorithms, (8, 16), (2, 3), 4, 1, compute, 0)
    of_pixels, of_instances = (
        [("pixels", 8, 2), ("pixels", 16, 2)],
        [("instances", 8, 2), ("instances", 8, 3)],
    )
    assert list(cost_sizes(spec)) == of_pixels + of_instances
    rows = cost_rows(spec)
    assert len(rows) == 8 and all(row["ms"] > 0 and row["pixels"] > 0 for row in rows)
    assert {(row["algorithm"], row["axis"]) for row in rows} == {
        (name, axis) for name in spec.algorithms for axis in ("pixels", "instances")
    }


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([2.0, 1.5], REPRODUCED), ([2.0, 0.5], NOT_TESTABLE), ([2.0, -1.5], NOT_REPRODUCED),
        ([-0.5], NOT_TESTABLE), ([], NOT_TESTABLE), ([2.0, 1.0], NOT_TESTABLE),
    ],
)  # fmt: skip
def test_differences_count_beyond_their_spread(differences, verdict):
    assert compared("", "", differences, [1.0] * len(differences)).verdict == verdict
    without = compared("", "", differences, [np.nan] * len(differences))
    assert without.verdict == NOT_TESTABLE  # one seed: nothing to compare with


def test_the_spread_over_seeds_is_that_of_every_weight_by_itself(monkeypatch):
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 11.0, ("b", 1): 17.0}

    def rows(named):
        return pd.DataFrame([
            {"method": method, "class_or_metric": "pooled", "value": values[method, number]}
            for method, _, number in named
        ])

    monkeypatch.setattr(progress_tables, "by_weight", lambda _: {"a": ["a0", "a1"], "b": ["b0", "b1"]})
    monkeypatch.setattr(progress_tables, "score_rows", rows)
    fake = SimpleNamespace(profile=SimpleNamespace(experiments=None), get=lambda name: name)
    assert progress_tables.seed_spread(fake)["pooled"] == pytest.approx((2**0.5 + 18**0.5) / 2)
