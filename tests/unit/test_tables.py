"""Tables and claims: arithmetic by hand, order of rungs, joins with published numbers, files."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest

from panolib.report import claims, tables
from panolib.study.settings import find_profile, read_profile
from panolib.study.study import RUNG_LABELS, RUNGS

MIOU = dict(zip(RUNGS, (0.20, 0.24, 0.23, 0.22, 0.30, 0.40)))
STEP = 0.01  # added per seed
MATCHES = {
    "ABN": ("DeepLabV2", "baseline; source MIX"),
    "self-trained": ("DeepLabV2", "self-train; source MIX"),
}


def record(name, **metrics):
    return types.SimpleNamespace(run=types.SimpleNamespace(name=name), metrics=metrics)


def ladder(scores=MIOU, seeds=(0, 1), step=STEP):
    """Semantic records, listed in the wrong order on purpose."""
    return {
        (rung, seed): record(
            f"city-semantic-{rung}-s{seed}",
            miou_19=scores[rung] + step * seed,
            iou={"road": scores[rung] + step * seed, "train": np.nan},
        )
        for rung in reversed(RUNGS)
        for seed in reversed(seeds)
    }


@pytest.fixture
def rows():
    return tables.semantic_rows(ladder(), setting="DeepLabV2; source MIX")


def test_rows_have_the_published_columns_and_are_percent(rows):
    assert list(rows.columns) == [*tables.published("thesis_ch8_tab1_mixing_miou.csv").columns, "seed"]
    first = rows.iloc[0].to_dict()
    assert first == {
        "method": "source only", "setting": "DeepLabV2; source MIX", "class_or_metric": "mIoU_19",
        "value": pytest.approx(20.0), "unit": "%", "source": "run city-semantic-source_only-s0", "seed": 0,
    }  # fmt: skip


def test_rows_follow_the_ladder_and_the_seeds(rows):
    part = tables.select(rows, class_or_metric="mIoU_19")
    assert list(dict.fromkeys(part["method"])) == [RUNG_LABELS[rung] for rung in RUNGS]
    assert part["seed"].tolist() == [0, 1] * len(RUNGS)


def test_summary_by_hand(rows):
    summary = tables.summarise(rows).set_index(["method", "class_or_metric"])
    oracle = summary.loc[("oracle", "mIoU_19")]
    assert oracle["mean"] == pytest.approx(40.5)
    assert oracle["spread"] == pytest.approx(np.sqrt(0.5))  # sample deviation of 40 and 41
    assert (oracle["n"], oracle["seeds"]) == (2, "0 1")


def test_a_class_without_value_counts_no_seed(rows):
    absent = tables.summarise(tables.select(rows, class_or_metric="train")).iloc[0]
    assert np.isnan(absent["mean"]) and (absent["n"], absent["seeds"]) == (0, "")


def test_one_seed_has_no_spread():
    summary = tables.summarise(tables.semantic_rows(ladder(seeds=(3,), step=0.0)))
    assert summary["spread"].isna().all()
    assert tables.show(summary, metrics=["mIoU_19"]).loc["ABN"].tolist() == ["24.0", 1]


@pytest.mark.parametrize(
    ("value", "low", "high", "share"),
    [(0.2, 0.2, 0.4, 0.0), (0.4, 0.2, 0.4, 1.0), (0.25, 0.2, 0.4, 0.25), (0.1, 0.2, 0.4, -0.5),
     (0.3, 0.4, 0.4, np.nan), (0.3, 0.4, 0.2, np.nan), (0.3, np.nan, 0.4, np.nan)],
)  # fmt: skip
def test_gap_closed(value, low, high, share):
    assert tables.gap_closed(value, low, high) == pytest.approx(share, nan_ok=True)


def test_gap_is_closed_within_each_seed():
    uneven = ladder()
    uneven["oracle", 1].metrics["miou_19"] = 0.61  # seed 1: source 21, self-trained 31, oracle 61
    rows = tables.with_gap_closed(tables.semantic_rows(uneven), ["mIoU_19"])
    values = tables.per_seed(rows, "mIoU_19 gap closed")
    assert values.loc["self-trained"].tolist() == pytest.approx([50.0, 25.0])
    assert values.loc["source only"].tolist() == pytest.approx([0.0, 0.0])
    assert values.loc["oracle"].tolist() == pytest.approx([100.0, 100.0])


def test_published_values_stand_beside_ours(rows):
    joined = tables.with_published(
        tables.summarise(rows), "thesis_ch10_tab1_semantic_class_iou.csv", MATCHES
    ).set_index(["method", "class_or_metric"])
    assert joined.loc[("ABN", "mIoU_19"), "published"] == 40.8
    assert joined.loc[("self-trained", "mIoU_19"), "published"] == 52.6
    assert joined.loc[("self-trained", "mIoU_19"), "published_method"] == "DeepLabV2; self-train; source MIX"
    assert np.isnan(joined.loc[("oracle", "mIoU_19"), "published"])


def test_a_metric_without_counterpart_stays_empty(rows):
    joined = tables.with_published(
        tables.summarise(rows), "thesis_ch10_tab1_semantic_class_iou.csv", MATCHES, metrics={"mIoU_19": None}
    )
    assert joined.loc[joined["class_or_metric"] == "mIoU_19", "published"].isna().all()
    assert joined.loc[joined["class_or_metric"] == "road", "published"].notna().any()


@pytest.mark.parametrize("match", [("DeepLabV9", "baseline"), ("DeepLabV2", "")])
def test_a_match_must_be_unique(rows, match):
    with pytest.raises(KeyError, match="expected one for each metric"):
        tables.with_published(
            tables.summarise(rows), "thesis_ch10_tab1_semantic_class_iou.csv", {"ABN": match}
        )


def test_unknown_published_table():
    with pytest.raises(FileNotFoundError, match=r"thesis_ch8_tab1_mixing_miou\.csv"):
        tables.published("thesis_ch99.csv")


def test_published_is_a_copy():
    table = tables.published("thesis_ch8_tab1_mixing_miou.csv")
    table["value"] = 0.0
    assert (tables.published("thesis_ch8_tab1_mixing_miou.csv")["value"] > 0).all()


def test_show_prints_text_with_published_column(rows):
    summary = tables.with_published(
        tables.summarise(rows), "thesis_ch10_tab1_semantic_class_iou.csv", MATCHES
    )
    shown = tables.show(summary, metrics=["mIoU_19"])
    assert shown.columns.tolist() == ["mIoU_19, %", "mIoU_19, published", "n"]
    assert shown.loc["ABN"].tolist() == ["24.5 ± 0.7", "40.8", 2]
    assert shown.loc["oracle"].tolist() == ["40.5 ± 0.7", "–", 2]


def test_show_refuses_two_settings_in_one_table(rows):
    both = pd.concat([rows, rows.assign(setting="another")])
    with pytest.raises(ValueError, match="select one setting"):
        tables.show(tables.summarise(both))


def test_show_counts_without_decimals(rows):
    counts = tables.select(rows, class_or_metric="mIoU_19").assign(unit="count", class_or_metric="TP")
    shown = tables.show(tables.summarise(counts))
    assert shown.loc["oracle", "TP"] == "40 ± 1"


def test_written_table_is_the_shown_one(rows, tmp_path):
    path = tmp_path / "tables" / "semantic.csv"
    back = tables.write_csv(rows, path)
    pd.testing.assert_frame_equal(back, rows.round(6), check_dtype=False)
    assert back["value"].isna().sum() == rows["value"].isna().sum() > 0
    assert [file.name for file in path.parent.iterdir()] == ["semantic.csv"]  # no temporary file left
    before = path.read_bytes()
    tables.write_csv(back, path)
    assert path.read_bytes() == before


def test_empty_setting_survives_the_file(tmp_path):
    rows = tables.semantic_rows(ladder())
    assert set(tables.write_csv(rows, tmp_path / "t.csv")["setting"]) == {""}


def test_select_by_last_part_of_a_setting(rows):
    rows = rows.assign(setting="DeepLabV2; leftover pixels: void")
    assert len(tables.select(rows, setting="leftover pixels: void")) == len(rows)
    with pytest.raises(KeyError, match="leftover pixels: void"):
        tables.select(rows, setting="pixels: void")


def panoptic_ladder():
    def scores(pq):
        return {f"{name}_2": pq for name in tables.PANOPTIC_SCORES} | {"pq": {"nucleus": pq}}

    def threat(pooled):
        return {"pooled": pooled, "class_mean": pooled, "class_mean_of_image_means": pooled,
                "per_class": {"nucleus": pooled}, "tp": 3, "fp": 2, "fn": 1}  # fmt: skip

    return {
        (rung, seed): record(
            f"nuclei-panoptic-{rung}-s{seed}", **scores(value),
            merge={"void": scores(value), "nearest": scores(value + 0.1)},
            connected_components=scores(value - 0.1),
            threat={
                f"{method} in {mask} masks": threat(value + better_method + better_mask)
                for method, better_method in (("embedding", 0.05), ("connected_components", 0.0))
                for mask, better_mask in (("predicted", 0.0), ("true", 0.2))
            },
            ap=value / 2, ap50=value, ap50_per_class={"nucleus": value},
        )
        for rung, value in MIOU.items() for seed in (0, 1)
    }  # fmt: skip


def test_panoptic_rows_keep_merge_rules_and_control_apart():
    rows = tables.panoptic_rows(panoptic_ladder(), setting="s")
    oracle = tables.select(rows, method="oracle", class_or_metric="PQ_2")
    found = oracle.groupby("setting", sort=False)["value"].mean()
    assert found.to_dict() == pytest.approx(
        {"s; leftover pixels: void": 40, "s; leftover pixels: nearest": 50, "s; connected components": 30}
    )
    per_class = tables.class_panoptic_rows(panoptic_ladder())
    assert set(per_class["class_or_metric"]) == {"nucleus"} and set(per_class["setting"]) == {"PQ"}


def test_threat_score_and_average_precision_never_share_a_table():
    threat, official = tables.threat_rows(panoptic_ladder()), tables.average_precision_rows(panoptic_ladder())
    assert "AP50" not in set(threat["class_or_metric"])
    assert set(official["class_or_metric"]) == {"AP", "AP50", "nucleus"}
    counts = tables.select(threat, setting="embedding in true masks", class_or_metric="FP")
    assert set(counts["value"]) == {2.0} and set(counts["unit"]) == {"count"}


def test_claims_hold_and_fail_at_the_right_place(rows):
    assert claims.gain_over_source_only(rows, "mIoU_19", points=9.9).holds
    assert not claims.gain_over_source_only(rows, "mIoU_19", points=10.1).holds
    assert claims.ratio_to_source_only(rows, "mIoU_19", factor=1.48).holds  # 30.5 / 20.5
    assert not claims.ratio_to_source_only(rows, "mIoU_19", factor=1.49).holds
    best = claims.gain_over_batch_norm(rows, "mIoU_19", points=5.9)
    assert best.holds and "(ABN)" in best.statement and "above in 2 of 2 seeds" in best.numbers
    assert not claims.gain_over_batch_norm(rows, "mIoU_19", points=6.1).holds
    assert str(best).startswith("[holds]") and "+6.0 ± 0.0 points" in str(best)


def test_one_bad_seed_breaks_what_must_hold_in_every_seed():
    uneven = ladder()
    uneven["self_trained", 0].metrics["miou_19"] = 0.50
    uneven["self_trained", 1].metrics["miou_19"] = 0.24  # ABN has 0.25 there
    rows = tables.semantic_rows(uneven)
    for claim in (
        claims.gain_over_batch_norm(rows, "mIoU_19", points=3),
        claims.above_every_batch_norm(rows, "mIoU_19"),
    ):
        assert not claim.holds and "above in 1 of 2 seeds" in claim.numbers
        assert str(claim).startswith("[does NOT hold]")
    assert claims.gain_over_source_only(rows, "mIoU_19", points=8).holds  # the mean is enough there


def test_embedding_against_components():
    claim = claims.embedding_over_components(tables.threat_rows(panoptic_ladder()))
    assert claim.holds and "+5.0 ± 0.0 points" in claim.numbers


def test_embedding_against_components_by_masks_and_score():
    found = panoptic_ladder()
    for record_ in found.values():
        threat = record_.metrics["threat"]
        threat["connected_components in true masks"]["pooled"] = 0.99
    rows = tables.threat_rows(found)
    for masks, score, holds in (
        ("predicted", "pooled", True), ("true", "class mean", True), ("true", "pooled", False),
    ):  # fmt: skip
        claim = claims.embedding_over_components(rows, masks=masks, score=score)
        assert claim.holds == holds and f"({score} threat score, {masks} masks)" in claim.statement
    assert "55.0 ± 0.0 against 99.0 ± 0.0, -44.0 ± 0.0 points; above in 0 of 2 seeds" in claim.numbers


def test_the_control_is_compared_seed_by_seed():
    close = ladder()
    close["control", 1].metrics["miou_19"] = 0.3092  # self-trained has 0.31
    claim = claims.gain_over_control(tables.semantic_rows(close), "mIoU_19")
    assert claim.holds and claim.numbers.endswith(
        "; above in 2 of 2 seeds; least in seed 1, 31.00 against 30.92"
    )
    close["control", 0].metrics["miou_19"] = 0.32
    claim = claims.gain_over_control(tables.semantic_rows(close), "mIoU_19")
    assert not claim.holds and claim.numbers.endswith(
        "; above in 1 of 2 seeds; least in seed 0, 30.00 against 32.00"
    )


def test_what_the_control_gains_alone():
    line = claims.control_line(tables.semantic_rows(ladder()), "mIoU_19")
    assert line.endswith("points: self-trained +10.0; its control, without pseudo-labels, +2.0")
    worse = ladder(MIOU | {"control": 0.15})
    assert claims.control_line(tables.semantic_rows(worse), "mIoU_19").endswith("-5.0")


def test_differences_in_kind_are_found_and_sizes_are_not():
    ours = {"network": {"coordinates": True, "depth": 10}, "min_stability": None, "lr": 0.1, "rates": [1]}
    theirs = {"network": {"coordinates": False, "depth": 101}, "min_stability": 0.6, "lr": 0.2, "rates": [2]}
    assert claims.of_kind(ours, theirs) == ["network.coordinates", "min_stability"]
    assert claims.of_kind(theirs, ours) == ["network.coordinates", "min_stability"]
    assert claims.of_kind(ours, ours) == []
    found = claims.differing(ours, theirs, claims.of_kind(ours, theirs))
    assert found == ["network.coordinates True instead of False", "min_stability none instead of 0.6"]
    only_theirs = {**ours, "geometry": "first pixel", "margin": 3, "blur": None}
    assert claims.of_kind(ours, only_theirs) == ["geometry"]  # a default says nothing of a number
    assert claims.differing(ours, only_theirs, ["geometry"]) == ["geometry default instead of first pixel"]


def test_the_recorded_study_names_its_differences_in_kind():
    def study(name):
        return types.SimpleNamespace(profile=read_profile(find_profile(name)))

    sections = ["instance_baseline", "instance_self_training"]
    instance = claims.differences_from_thesis(study("cpu"), sections)
    assert "network.coordinates True instead of False" in instance[0]
    assert "min_stability none instead of 0.6" in instance[1]
    (semantic,) = claims.differences_from_thesis(study("cpu"), ["self_training"])
    assert "default" not in semantic  # what it inherits from the baseline is compared, too
    assert claims.differences_from_thesis(study("paper")) == []


def test_classes_in_words(rows):
    assert claims.lost_classes(rows, ["road"]) == "self-training lowers no class below source only"
    worse = rows.assign(value=-rows["value"])
    assert claims.lost_classes(worse, ["road"]).endswith("1 of 1 classes below source only: road (-10.0)")
    unscored = claims.unscored_classes(rows, ["road", "train"])
    assert unscored == "self-trained scores 0 on 1 of 2 classes: train"
    assert claims.seeds_line(rows).startswith("n = 2 (seeds 0, 1)")


def test_show_with_methods_as_columns(rows):
    shown = tables.show(tables.summarise(rows), metrics=["road"], index="class_or_metric", columns="method")
    assert shown.index.tolist() == ["road"]
    assert shown.columns.tolist() == [*(f"{method}, %" for method in tables.METHODS), "n"]


GAPS = {"none": 0.30, "photometry": 0.25, "texture": 0.28, "all": 0.20}


def test_gap_of_style_groups():
    gaps = {
        (rung, seed): record(f"city-gap-{rung}-s{seed}", **{
            group: {"miou_19": score + STEP * seed} for group, score in GAPS.items()
        })
        for rung in ("abn", "source_only") for seed in (0, 1)
    }  # fmt: skip
    rows = tables.gap_rows(gaps)
    shown = tables.show(tables.summarise(rows))
    assert shown.index.tolist() == ["source only", "ABN"]
    assert shown.columns.tolist() == [*(f"{group}, %" for group in GAPS), "n"]
    assert claims.gap_line(rows).endswith("points: all -10.0, photometry -5.0, texture -2.0")


def test_a_study_without_gap_runs_says_so():
    rows = tables.gap_rows({})
    assert tables.show(tables.summarise(rows)).empty
    assert "no gap runs" in claims.gap_line(rows)
