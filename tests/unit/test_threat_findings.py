"""Findings of guidance and of the instance networks, from made-up tables; runs that their notebooks need."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest

from panolib.load import load
from panolib.report import threat_findings
from panolib.report.findings import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from panolib.study import threat_runs

COLUMNS = ["method", "setting", "class_or_metric", "value", "unit", "source", "seed"]


def rows_of(values, metric="class mean"):
    """Tidy rows of {(method, setting): values of its seeds}."""
    rows = [
        (method, setting, metric, value, "%", "", seed)
        for (method, setting), seeds in values.items() for seed, value in enumerate(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_weight_wins_only_by_more_than_the_noise():
    clear = rows_of({("weight 0", "true masks"): [50, 52], ("weight 0.1", "true masks"): [60, 62.5]})
    noisy = rows_of({("weight 0", "true masks"): [50, 55], ("weight 0.1", "true masks"): [58, 50]})
    assert threat_findings.best_weight(clear).verdict == REPRODUCED
    assert threat_findings.weight_matters(clear).verdict == REPRODUCED
    assert threat_findings.best_weight(noisy).verdict == NOT_REPRODUCED
    assert threat_findings.weight_matters(noisy).verdict == NOT_REPRODUCED
    other = rows_of({("weight 0", "true masks"): [60, 62], ("weight 0.1", "true masks"): [50, 52]})
    assert threat_findings.best_weight(other).verdict == NOT_REPRODUCED
    assert "-10.0 points" in threat_findings.best_weight(other).ours


def test_one_seed_shows_no_noise_and_a_missing_weight_no_winner():
    single = rows_of({("weight 0", "true masks"): [50], ("weight 1", "true masks"): [60]})
    assert threat_findings.weight_matters(single).verdict == NOT_TESTABLE
    assert threat_findings.best_weight(single).verdict == NOT_TESTABLE


@pytest.mark.parametrize(("learned", "verdict"), [(15, REPRODUCED), (45, NOT_REPRODUCED)])
def test_the_mask_is_the_bottleneck_if_it_costs_more_than_learning_gains(learned, verdict):
    rows = rows_of({
        ("baseline", "predicted masks"): [10], ("baseline", "true masks"): [40],
        ("predicted masks", "predicted masks"): [learned],
    })  # fmt: skip
    finding = threat_findings.bottleneck(rows, "baseline", "predicted masks", 1.0)
    assert finding.verdict == verdict and "+30.0 points" in finding.ours and "one seed" in finding.ours


def test_masks_help_only_beyond_what_another_seed_changes():
    rows = rows_of({
        ("a", "predicted masks"): [12], ("a", "no masks"): [10], ("a", "true masks"): [13],
        ("b", "predicted masks"): [11],
    })  # fmt: skip
    for spread, verdict in ((np.nan, NOT_TESTABLE), (0.5, REPRODUCED), (3.0, NOT_TESTABLE)):
        assert threat_findings.masks_help_clustering(rows, "a", spread).verdict == verdict
        assert threat_findings.masks_help_learning(rows, "a", "b", spread).verdict == verdict
        assert threat_findings.true_masks(rows, "a", spread).verdict == verdict
    assert threat_findings.masks_help_learning(rows, "b", "a", 0.5).verdict == NOT_REPRODUCED


def test_painting_has_to_gain_more_than_seeds_spread():
    rows = rows_of({("none", ""): [40.0], ("true", ""): [40.3]}, "mIoU_19")
    for spread, verdict in ((0.1, REPRODUCED), (0.5, NOT_TESTABLE), (np.nan, NOT_TESTABLE)):
        finding = threat_findings.painting(rows, "none", "true", thesis="", metric="mIoU_19", spread=spread)
        assert finding.verdict == verdict and "+0.30 points" in finding.ours


def test_equal_classes_are_compared_to_one_decimal():
    def table(other):
        parts = [rows_of({("none", ""): [a], ("true", ""): [b]}, name) for name, (a, b) in other.items()]
        return pd.concat(parts, ignore_index=True)

    same = table({"road": (90.11, 90.13), "bus": (np.nan, np.nan)})
    assert threat_findings.equal_classes(same, ["road", "bus"]).verdict == REPRODUCED
    differ = table({"road": (90.11, 90.13), "bus": (10, 11)})
    finding = threat_findings.equal_classes(differ, ["road", "bus"])
    assert finding.verdict == NOT_REPRODUCED and "1 of 2" in finding.ours


@pytest.mark.parametrize(("spoiled", "verdict"), [(3, REPRODUCED), (12, NOT_REPRODUCED)])
def test_the_vote_is_judged_by_long_vehicles(spoiled, verdict):
    votes = pd.DataFrame({
        "class": ["car", "bus", "truck", "all things"], "repaired, px": [0, 7, 1, 8],
        "spoiled, px": [99, spoiled, 0, 99 + spoiled],
    })  # fmt: skip
    assert threat_findings.vote_repairs(votes).verdict == verdict


def test_frameworks_are_compared_beyond_the_noise():
    rows = rows_of({
        ("baseline", "m"): [7], ("all things, 0 % source", "m"): [8],
        ("one class (ICM), 25 % source", "m"): [11],
    })  # fmt: skip
    names = ["all things, 0 % source", "one class (ICM), 25 % source"]
    assert threat_findings.single_framework(rows, "baseline", names, 2.0).verdict == REPRODUCED
    assert threat_findings.single_framework(rows, "baseline", names, 5.0).verdict == NOT_TESTABLE
    assert threat_findings.best_workflow(rows, names, "ICM", 2.0).verdict == REPRODUCED
    assert threat_findings.best_workflow(rows, names, "all", 0.0).verdict == NOT_REPRODUCED


def test_mix_is_judged_on_the_other_half():
    choices = pd.DataFrame([
        ("MIX*", "same half", 20), ("MIX*", "other half", 12), ("best framework", "other half", 13),
        ("MIX*", "all images", 19), ("best framework", "all images", 14),
    ], columns=["choice", "scored", "value"])  # fmt: skip
    assert threat_findings.mix_star(choices, 0.5).verdict == NOT_REPRODUCED
    assert threat_findings.mix_star(choices, 2.0).verdict == NOT_TESTABLE
    assert threat_findings.selection_bias(choices).verdict == REPRODUCED
    assert "+8.0 points" in threat_findings.selection_bias(choices).ours


def test_morphology_and_networks_are_compared_in_order():
    rows = rows_of({
        ("V2", "none"): [10], ("V2", "3 px"): [12], ("V3", "none"): [11], ("V3", "3 px"): [15],
    })  # fmt: skip
    assert threat_findings.morphology(rows, ["V2", "V3"], "3 px", 1.0).verdict == REPRODUCED
    assert threat_findings.morphology(rows, ["V2", "V3"], "3 px", 4.0).verdict == NOT_REPRODUCED
    cleaned = rows[rows["setting"] == "3 px"]
    assert threat_findings.better_masks(cleaned, ["V2", "V3"], 1.0).verdict == REPRODUCED
    assert threat_findings.better_masks(cleaned, ["V3", "V2"], 1.0).verdict == NOT_REPRODUCED


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu", "paper"])
def test_the_notebooks_ask_for_declared_runs(profile):
    study = load(profile)
    asked = {*study.notebooks["05_guided_masks"], *study.notebooks["06_instance_results"]}
    assert asked <= set(study.runs)
    threat = {name for name in study.runs if name.startswith("city-threat-")}
    labels = threat_runs.frameworks(study.profile.experiments)
    assert {"baseline", "all things, 0 % source"} <= set(labels)
    elsewhere = ("agglomerative", "hdbscan", "mean_shift.", "connected", "decay", "crops")  # 02 to 04
    assert {n for n in threat - asked if not any(part in n for part in elsewhere)} == set()


def test_the_cost_of_clustering_is_that_beside_the_rest_of_a_step():
    def record(clustering, step):
        return types.SimpleNamespace(curves=pd.DataFrame({"clustering_s": clustering, "step_s": step}))

    cheap, dear = record([1, 2, 1], [3, 4, 3]), record([6, 6, 60], [8, 8, 62])  # the rest takes 2 s
    found = threat_findings.clustering_cost({"predicted masks": [cheap], "no masks": [dear]})
    assert found.verdict == REPRODUCED and "0.50 times" in found.ours and "3.00 times" in found.ours
    found = threat_findings.clustering_cost({"predicted masks": [dear], "no masks": [cheap]})
    assert found.verdict == NOT_REPRODUCED
    untimed = types.SimpleNamespace(curves=pd.DataFrame({"loss": [1.0]}))
    found = threat_findings.clustering_cost({"predicted masks": [untimed], "no masks": [cheap]})
    assert found.verdict == NOT_TESTABLE
