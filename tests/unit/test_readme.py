"""README.md says what the recorded tables and the profiles say: each of its numbers, formatted from them."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from panolib.config import project_root
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.report import oracles, tables
from panolib.report.claims import CONTROL
from panolib.report.progress_tables import time_ratios
from panolib.report.tables import SELF_TRAINED, SOURCE_ONLY, per_seed, select
from panolib.study.study import run_name

TABLES = project_root() / "results" / "cpu" / "tables"


@pytest.fixture(scope="module")
def readme():
    return re.sub(r"\s+", " ", (project_root() / "README.md").read_text())


def recorded(name, **wanted):
    return select(pd.read_csv(TABLES / name, keep_default_na=False, na_values={"value": [""]}), **wanted)


def test_the_control_and_its_closest_seed(readme):
    rows = recorded("01_semantic.csv")
    values = per_seed(rows, "mIoU_19")
    mean = values.mean(axis=1)
    gain, alone = (mean[name] - mean[SOURCE_ONLY] for name in (SELF_TRAINED, CONTROL))
    assert f"it alone gives {alone:.1f} of the {gain:.1f} points" in readme
    seed = (values.loc[SELF_TRAINED] - values.loc[CONTROL]).idxmin()
    ours, control = (values.loc[name, seed] for name in (SELF_TRAINED, CONTROL))
    assert ours > control and f"ends at {ours:.2f} against the control's {control:.2f}" in readme
    ours, control = (per_seed(rows, "mIoU_16").loc[name, seed] for name in (SELF_TRAINED, CONTROL))
    assert ours < control and f"that seed stays below it ({ours:.2f} against {control:.2f})" in readme


def test_what_is_above_the_control_in_every_seed(readme):
    city = recorded("07_panoptic.csv", setting="leftover pixels: void")
    for metric in ("PQ_16", "PQ_19"):
        values = per_seed(city, metric)
        assert (values.loc[SELF_TRAINED] > values.loc[CONTROL]).all()
    nuclei = per_seed(recorded("08_panoptic.csv", setting="leftover pixels: void"), "PQ_nucleus")
    wins = nuclei.loc[SELF_TRAINED] > nuclei.loc[CONTROL]
    assert f"above the control in {wins.sum()} of {len(wins)} only" in readme


def test_embeddings_and_components_inside_true_masks(readme):
    def mean(name, way, score="pooled"):
        rows = recorded(name, method=SELF_TRAINED, setting=f"{way} in true masks", class_or_metric=score)
        return rows["value"].mean()

    city, nuclei = (
        [mean(name, way) for way in ("embedding", "connected components")]
        for name in ("07_threat_score.csv", "08_threat_score.csv")
    )
    assert city[0] < city[1] and "threat score {:.1f} against {:.1f})".format(*city) in readme
    assert nuclei[0] < nuclei[1] and "inside true masks ({1:.1f} against {0:.1f})".format(*nuclei) in readme
    ways = ("embedding", "connected components")
    by_class = [mean("07_threat_score.csv", way, "class mean") for way in ways]
    assert by_class[0] > by_class[1] and "in the mean over classes only" in readme


def test_times_of_mean_shift(readme):
    names = ("whole step", "thesis", "clustering")
    ratios = time_ratios(recorded("02_times.csv")).loc["mean-shift"]
    step, thesis, clustering = (ratios[f"{name}, ratio"] for name in names)
    said = f"takes {step:.1f} times as long as with mean-shift+ (thesis {thesis:.1f}), its clustering alone "
    assert f"a step with mean-shift {said}{clustering:.1f} times" in readme


def test_oracles_and_differences_in_kind(readme):
    study = load("cpu", train=False)
    runs = [study.runs[run_name("city", "semantic", rung, 0)] for rung in ("oracle", "self_trained")]
    (oracle,), (trained,) = map(oracles.iterations, runs)
    assert f"({oracle} against {trained} iterations on the city)" in readme
    shares = recorded("01_mixing_summary.csv", class_or_metric=["mIoU_16 gap closed", "mIoU_19 gap closed"])
    assert oracle < trained and shares["mean"].max() > 100
    city = study.profile.city
    assert city.instance_baseline["network"]["coordinates"] and "sees pixel coordinates" in readme
    assert city.instance_self_training["min_stability"] is None and "no stability filter" in readme


def test_scores_that_only_a_summary_states(readme):
    stated = tables.published("summary_claims.csv")
    absent = stated[stated["setting"].str.startswith("NOT FOUND")].set_index("class_or_metric")["value"]
    said = f"mIoU {absent['mIoU']:.2f} and mAP {absent['mAP']:.2f}"
    assert readme.count(f"{said}, which the thesis does not contain") == 1
    for name in ("thesis_ch8_tab1_mixing_miou.csv", "thesis_ch10_tab1_semantic_class_iou.csv"):
        assert not tables.published(name)["value"].isin(absent).any()


def test_classes_without_a_panoptic_quality(readme):
    rows = recorded("07_class_pq.csv", method=SELF_TRAINED)
    zero = [name for name in CITYSCAPES.classes if (per_seed(rows, name).fillna(0) == 0).all(axis=None)]
    assert zero == ["wall", "fence", "pole", "terrain"] and "0 on walls, fences, poles and terrain" in readme


def test_detr_beside_the_embeddings(readme):
    costs = per_seed(recorded("10_costs.csv", unit="%"), "PQ_19").mean(axis=1)
    scores = select(recorded("10_scores.csv"), method="no augmentation", class_or_metric="PQ_19")
    of_target = scores[scores["setting"].str.startswith("target; score > ")]["value"]
    detr, ours = costs
    assert f"reaches a PQ of {detr:.0f} % here ({of_target.max():.0f} % at the lower threshold)" in readme
    assert detr == pytest.approx(of_target.min()) and f"the embeddings {ours:.0f} %" in readme
