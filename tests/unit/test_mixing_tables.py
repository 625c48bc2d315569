"""Tables and findings of sources and networks, on made-up rows and a toy data set."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from panolib.labels import CITYSCAPES, VOID
from panolib.report import findings, mixing_findings, mixing_tables, tables

VARIANTS = ("SYN V2", "GTA V2", "MIX V2", "MIX V3", "MIX V3+")
TRUCK, TRAIN, ROAD = CITYSCAPES.ids_of(("truck", "train", "road"))


class Toy:
    """A data set of label maps only."""

    label_set, name, has_instances = CITYSCAPES, "toy", False

    def __init__(self, *maps):
        self.maps = [np.array(m, np.uint8) for m in maps]

    def __len__(self):
        return len(self.maps)

    def semantic(self, index):
        return self.maps[index]


def rows(values, seeds=(0,)):
    """Tidy rows of {(variant, method, metric): value or one value a seed}."""
    return pd.DataFrame([
        (method, variant, metric, value, "%", "made up", seed)
        for (variant, method, metric), found in values.items()
        for seed, value in zip(seeds, np.broadcast_to(found, len(seeds)))
    ], columns=list(tables.COLUMNS))  # fmt: skip


@pytest.fixture
def thesis():
    """Rows with the thesis's own numbers: every finding about them must hold."""
    found = {}
    for variant, (ours, theirs) in {
        "SYN V2": ((35.1, 51.1), None), "GTA V2": (None, (41.8, 53.8)),
        "MIX V2": ((43.7, 55.6), (40.8, 52.4)),
        "MIX V3": ((43.7, 54.8), (39.6, 50.2)), "MIX V3+": ((45.4, 56.8), (40.7, 52.6)),
    }.items():  # fmt: skip
        for metric, pair in (("mIoU_16", ours or (40, 50)), ("mIoU_19", theirs or (30, 43))):
            for method, value in zip(("ABN", "self-trained"), pair):
                found[variant, method, metric] = value
        lost = variant in ("MIX V3", "MIX V3+")
        for name in mixing_tables.MIX_CLASSES:
            value = 0.0 if variant == "SYN V2" or (lost and name == "train") else 30.0
            found[variant, "self-trained", name] = found[variant, "ABN", name] = value
    return found


def test_frames_are_counted_by_all_combinations():
    toy = Toy([[TRUCK, TRAIN]], [[TRUCK, ROAD]], [[TRUCK, TRUCK]], [[VOID, TRAIN]], [[ROAD, VOID]])
    table = mixing_tables.frames_showing(toy, ("truck", "train"))
    assert dict(zip(table["frames that show"], table["images"])) == {
        "truck and train": 1, "truck only": 2, "train only": 1, "none of them": 1,
    }  # fmt: skip
    assert table["share, %"].sum() == pytest.approx(100)
    assert mixing_tables.frames_showing(Toy(), ("truck",))["images"].tolist() == [0, 0]


def test_before_and_after_counts_images_and_pixels():
    def description(n_images, shares):
        classes = pd.DataFrame({"class": ["road", "train"]})
        return {"presence": classes.assign(n_images=n_images), "counts": classes.assign(pixel_share=shares)}

    parts = {"a": description([2, 0], [1.0, 0.0]), "b": description([3, 1], [0.75, 0.25])}
    table = mixing_tables.before_and_after(parts)
    assert table["b, images"].tolist() == [3, 1] and table["a, % of pixels"].tolist() == [100, 0]
    finding = mixing_findings.new_classes_finding(parts, "a", "b")
    assert finding.ours == "a to b: train" and finding.verdict == findings.NOT_REPRODUCED


def test_published_values_stand_beside_the_right_variant(thesis):
    summary = tables.summarise(rows(thesis))
    beside = mixing_tables.beside_chapter_8(summary)
    found = beside.set_index(["setting", "method", "class_or_metric"])["published"].dropna()
    assert found["SYN V2", "ABN", "mIoU_16"] == 35.1 and found["SYN V2", "self-trained", "mIoU_16"] == 51.1
    assert found["MIX V3", "self-trained", "mIoU_19"] == 50.2
    assert found["MIX V3+", "self-trained", "mIoU_19"] == 52.6
    assert set(found["SYN V2"].index.get_level_values(1)) == {"mIoU_16"}  # the thesis has no 19 there
    assert found.groupby("setting").size().to_dict() == dict.fromkeys(VARIANTS, 2)

    classes = mixing_tables.beside_chapter_10(summary)
    found = classes.set_index(["setting", "method", "class_or_metric"])["published"]
    assert found["MIX V3", "self-trained", "train"] == 0.4 and found["MIX V3+", "ABN", "mIoU_16"] == 45.4
    assert found["GTA V2"].isna().all() and np.isnan(found["SYN V2", "self-trained", "train"])
    shown = tables.show(mixing_tables.by_variant(classes), metrics=["train", "mIoU_19"])
    assert set(shown.index[:2]) == {"SYN V2, ABN", "SYN V2, self-trained"}


def test_the_thesis_reproduces_itself(thesis):
    found = mixing_findings.mixing_findings(rows(thesis))
    assert len(found) == 5 + 5 + 4
    assert [str(f) for f in found if f.verdict != findings.REPRODUCED] == []
    assert "one seed, no spread" in found[0].ours and "35.1" in found[0].thesis


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({("MIX V2", "self-trained", "mIoU_19"): 60.0}, "GTA alone"),
        ({("SYN V2", "ABN", "mIoU_16"): 50.0}, "MIX raises the baseline's mIoU_16"),
        ({("MIX V3", "self-trained", "mIoU_19"): 39.6}, "self-training raises mIoU_19 of MIX V3 "),
        ({("MIX V3+", "self-trained", "train"): 12.0}, "self-trained MIX V3+ fails on train"),
        ({("MIX V2", "self-trained", "terrain"): np.nan}, "mixing adds terrain"),
        ({("SYN V2", "self-trained", "truck"): 5.0}, "mixing adds truck"),
    ],
)
def test_every_finding_can_fail(thesis, change, what):
    found = mixing_findings.mixing_findings(rows(thesis | change))
    failed = [f.thesis for f in found if f.verdict == findings.NOT_REPRODUCED]
    assert any(text.startswith(what) for text in failed), failed


def test_spread_and_seeds_are_said(thesis):
    several = rows({k: v for k, v in thesis.items() if k[0] == "MIX V2"}, seeds=(0, 1, 2))
    several["value"] += several["seed"]
    one = rows({k: v for k, v in thesis.items() if k[0] != "MIX V2"})
    found = mixing_findings.mixing_findings(pd.concat([one, several]))
    mix = next(f for f in found if f.thesis.startswith("self-training raises mIoU_19 of MIX V2"))
    assert "41.8 ± 1.0 to 53.4 ± 1.0, no control; n = 3 seeds" in mix.ours
    gta = next(f for f in found if f.thesis.startswith("GTA alone"))
    assert "+0.4 points, less than the spread over seeds" in gta.ours


def test_a_gain_stands_beside_its_control(thesis):
    found = mixing_findings.mixing_findings(rows(thesis | {("MIX V2", "control", "mIoU_19"): 51.0}))
    ours = {f.thesis.split(" from ")[0]: f.ours for f in found if f.thesis.startswith("self-training raises")}
    assert "40.8 to 52.4, its control 51.0; " in ours["self-training raises mIoU_19 of MIX V2"]
    assert "41.8 to 53.8, no control; " in ours["self-training raises mIoU_19 of GTA V2"]


def test_variants_without_others_give_fewer_findings(thesis):
    only = rows({k: v for k, v in thesis.items() if k[0] == "MIX V2"})
    assert len(mixing_findings.mixing_findings(only)) == 1


@pytest.mark.parametrize(
    ("mean", "limit", "n", "expected"), [(80.31, 72.7, 16, 2), (50, 60, 4, 0), (100, 1, 4, 4), (80, 60, 4, 2)]
)
def test_classes_to_fall_below(mean, limit, n, expected):
    assert mixing_findings.classes_to_fall_below(mean, limit, n) == expected


def test_both_conventions_of_sq_and_who_is_unmatched():
    zero = dict.fromkeys(CITYSCAPES.classes, 0)
    scores = {
        "tp": zero | {"road": 3}, "fp": zero | {"car": 1},
        "fn": dict.fromkeys(CITYSCAPES.classes, 1) | {"sky": 0},
        "sq_matched_16": 0.8, "sq_16": 0.1, "sq_matched_19": 0.8, "sq_19": 0.05,
    }  # fmt: skip
    record = SimpleNamespace(metrics={"merge": {"void": scores}})
    table = mixing_tables.sq_conventions({"MIX V2": {("abn", 0): record}}, CITYSCAPES, rule="void")
    assert table["classes"].tolist() == ["16", "19"] and table["SQ, %"].tolist() == [10, 5]
    assert table["n unmatched"].tolist() == [14, 17]  # all but road, and sky that is nowhere
    assert "sky" not in table["unmatched"][0] and "car" in table["unmatched"][0]


def test_panoptic_findings_of_the_thesis_itself():
    void = {}
    for variant, name in (("MIX V2", "V2"), ("MIX V3", "V3"), ("MIX V3+", "V3+")):
        printed = mixing_findings._chapter_12(f"Thesis self-train DeepLab{name}")
        for metric in ("PQ_16", "PQ+_16", "PQ_19"):
            void[variant, "self-trained", metric] = printed[metric]
            void[variant, "ABN", metric] = mixing_findings._chapter_12("Thesis baseline")[metric]
    conventions = pd.DataFrame({
        "network": ["MIX V2", "MIX V2"], "method": "self-trained", "seed": 0, "classes": [16, 19],
        "n unmatched": [2, 3], "unmatched": "", "SQ matched, %": [80.0, 79.0], "SQ, %": [70.0, 66.5],
    })  # fmt: skip
    threat = rows({
        (f"embedding in {mask} masks", "self-trained", name): value
        for mask, values in {"predicted": (10, 50, 5), "true": (40, 20, 30)}.items()
        for name, value in zip(("pooled", "FP", "TP"), values)
    })  # fmt: skip
    found = mixing_findings.panoptic_findings(rows(void), conventions, threat)
    verdicts = [f.verdict for f in found]
    assert verdicts.count(findings.NOT_TESTABLE) == 2 and findings.NOT_REPRODUCED not in verdicts
    assert "MIX V2 80.0 to 70.0 (2.0 classes)" in found[-3].ours and "2 of 16" in found[-3].ours
    threat.loc[threat["setting"].str.contains("true"), "value"] = 0
    worse = mixing_findings.panoptic_findings(rows(void), conventions, threat)
    assert worse[-2].verdict == findings.NOT_REPRODUCED


def test_state_of_the_art_is_sorted_and_of_all_classes():
    table = mixing_tables.state_of_the_art()
    assert table["PQ, %"].is_monotonic_increasing and not table.index.duplicated().any()
    assert table.loc["EDAPS"].tolist() == [72.7, 53.6, 41.2]
    assert table.loc["CVRN on PSN", "PQ, %"] == 32.1  # not the mean with its thing and stuff rows
    assert table.loc["Thesis self-train DeepLabV3+", "PQ, %"] == 38.75


def test_progress_takes_the_first_and_last_scoring():
    curves = pd.DataFrame({
        "iteration": [0, 1, 2], "loss": [1.0, 0.5, np.nan], "miou a/val": [0.1, np.nan, 0.3],
        "accuracy": [np.nan, np.nan, 0.9],
    })  # fmt: skip
    table = mixing_tables.progress_rows({"self-trained": SimpleNamespace(curves=curves)})
    assert table["score"].tolist() == ["mIoU, a/val", "accuracy of pseudo-labels"]
    assert table["last, %"].tolist() == pytest.approx([30, 90]) and np.isnan(table["first, %"][1])
    assert table["iterations"].tolist() == [2, 2]
