"""Tables of the threat score: counts of runs, scores against ThreatScore and by hand."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest

from panolib.labels import CITYSCAPES
from panolib.metrics.threat_score import ThreatScore
from panolib.report import tables, threat_tables

THINGS = CITYSCAPES.things


def frame(rows):
    return pd.DataFrame(rows, columns=["image", "class", "tp", "fp", "fn"])


def test_counts_have_a_row_for_every_image_and_class_of_a_variant():
    def variant(share, tp):
        fn = {"car": "1 0 2", "bus": "0 4 0"}
        return {"truth_share": share, "kernel": 3, "tp": tp, "fp": dict.fromkeys(tp, "0 0 0"), "fn": fn}

    variants = [
        variant(0.0, {"car": "1 2 3", "bus": "4 5 16"}),
        variant(1.0, {"car": "7 8 9", "bus": "0 0 0"}),
    ]
    metrics = {"things": ["car", "bus"], "n_images": 3, "variants": variants}
    table = threat_tables.counts(types.SimpleNamespace(metrics=metrics))
    assert len(table) == 2 * 3 * 2
    assert list(table.columns) == ["truth_share", "kernel", "image", "class", "tp", "fp", "fn"]
    row = table.query("truth_share == 0 and `class` == 'bus' and image == 2").iloc[0]
    assert (row["kernel"], row["tp"], row["fp"], row["fn"]) == (3, 16, 0, 0)
    assert table.query("truth_share == 1 and `class` == 'car'")["tp"].tolist() == [7, 8, 9]


def test_scores_by_hand():
    table = frame([
        (0, "car", 1, 0, 1), (1, "car", 0, 3, 0), (2, "car", 2, 0, 0),  # image 1 shows no car
        (0, "bus", 0, 1, 1), (1, "bus", 0, 0, 0), (2, "bus", 0, 0, 0),
        (0, "train", 0, 0, 0), (1, "train", 0, 0, 0), (2, "train", 0, 0, 0),  # never seen nor predicted
    ])  # fmt: skip
    found = threat_tables.threat_score(table.assign(kernel=0), by=["kernel"]).iloc[0]
    assert (found["tp"], found["fp"], found["fn"]) == (3, 4, 2)
    assert found["pooled"] == pytest.approx(3 / 9)
    assert found["class_mean"] == pytest.approx((3 / 7 + 0) / 2)
    assert found["image_mean"] == pytest.approx(((0.5 + 1) / 2 + 0) / 2)
    by_class = threat_tables.threat_score(table, by=["class"]).set_index("class")
    assert by_class.loc["car", "class_mean"] == by_class.loc["car", "pooled"] == pytest.approx(3 / 7)
    assert by_class.loc["train", ["pooled", "class_mean", "image_mean"]].isna().all()
    assert by_class.loc["bus", "image_mean"] == 0


def test_nothing_to_count_is_nan():
    table = frame([(0, "car", 0, 0, 0), (0, "bus", 0, 0, 0)]).assign(kernel=0)
    assert threat_tables.threat_score(table, by=["kernel"])[threat_tables.SCORES].isna().all(axis=None)


def test_scores_equal_those_of_the_metric():
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 3, (7, 3, len(THINGS))) * (generator.random((7, 1, len(THINGS))) < 0.6)
    counts[:, :, 5] = 0
    rows = [(n, thing, *counts[n, :, t]) for n in range(7) for t, thing in enumerate(THINGS)]
    found = threat_tables.threat_score(frame(rows).assign(kernel=0), by=["kernel"]).iloc[0]

    things = list(CITYSCAPES.thing_ids)
    score = ThreatScore(CITYSCAPES)
    for tp, fp, fn in counts:
        part = ThreatScore(CITYSCAPES)
        part.tp[things], part.fp[things], part.fn[things] = tp, fp, fn
        part.n_images[things] = tp + fn > 0
        part.score_sum[things] = np.where(tp + fn > 0, tp / np.maximum(tp + fp + fn, 1), 0)
        score += part
    result = score.result()
    assert found["class_mean"] == pytest.approx(result.mean_pooled)
    assert found["image_mean"] == pytest.approx(result.mean_image_mean)
    assert found["pooled"] == pytest.approx(result.tp.sum() / (result.tp + result.fp + result.fn).sum())


# --- several runs -------------------------------------------------------------------------------------------


def record(counts, *, seed=0, guided=True, vote=None):
    """A threat run with {(truth share, kernel): {thing: (tp, fp, fn) of every image}}."""
    things = list(next(iter(counts.values())))
    variants = [
        {
            "truth_share": share, "kernel": kernel,
            **{
                name: {thing: " ".join(str(image[i]) for image in images) for thing, images in found.items()}
                for i, name in enumerate(("tp", "fp", "fn"))
            },
        }
        for (share, kernel), found in counts.items()
    ]  # fmt: skip
    shares = dict.fromkeys(share for share, _ in counts)
    metrics = {
        "things": things, "n_images": len(next(iter(counts.values()))[things[0]]), "variants": variants,
        "masks": [{"truth_share": s, "miou": (1 + s) / 2, "wrong_share": (1 - s) / 4} for s in shares],
        "vote": vote or {},
    }  # fmt: skip
    spec = types.SimpleNamespace(seed=seed, guided=guided)
    return types.SimpleNamespace(metrics=metrics, run=types.SimpleNamespace(spec=spec, name="run"))


CARS = {"car": [(1, 1, 0), (0, 1, 1)], "bus": [(0, 0, 0), (1, 0, 0)]}


def test_gathered_counts_say_method_seed_mask_and_morphology():
    some = record({(0.0, 0): CARS, (0.5, 0): CARS, (1.0, 3): CARS}, seed=2)
    found = threat_tables.gather({"a": [some], "b": [record({(0.0, 0): CARS}, guided=False)]})
    kinds = found[["method", "seed", "mask", "morphology"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [
        ["a", 2, "predicted masks", "none"], ["a", 2, "masks 50 % corrected", "none"],
        ["a", 2, "true masks", "3 px"], ["b", 0, "no masks", "none"],
    ]  # fmt: skip


def test_rows_are_percent_and_have_classes_averages_and_counts():
    rows = threat_tables.score_rows(threat_tables.gather({"a": [record({(0.0, 0): CARS})]}))
    values = rows.set_index("class_or_metric")["value"]
    assert values["car"] == pytest.approx(25) and values["bus"] == 100
    assert values["class mean"] == pytest.approx(62.5)
    assert values["pooled"] == pytest.approx(40)
    assert values["mean of image means"] == pytest.approx((25 + 100) / 2)
    assert values[["TP", "FP", "FN"]].tolist() == [2, 2, 1]
    assert set(rows.query("unit == 'count'")["class_or_metric"]) == {"TP", "FP", "FN"}
    assert set(rows["setting"]) == {"predicted masks"}


def test_sensitivity_puts_scores_beside_the_masks():
    none = {"car": [(0, 1, 1), (0, 1, 1)], "bus": [(0, 0, 0), (0, 0, 1)]}
    table = threat_tables.sensitivity_rows(record({(1.0, 0): CARS, (0.0, 0): none, (0.0, 3): CARS}))
    assert table["mask"].tolist() == ["predicted masks", "true masks"]
    assert table["wrong pixels"].tolist() == [25, 0] and table["mIoU"].tolist() == [50, 100]
    assert table["class_mean"].tolist() == pytest.approx([0, 62.5])
    by_class = threat_tables.sensitivity_rows(record({(1.0, 0): CARS, (0.0, 0): none}), by_class=True)
    assert by_class.query("`class` == 'bus'")["pooled"].tolist() == [0, 100]


def test_objects_are_those_of_the_truth():
    table = threat_tables.objects(threat_tables.gather({"a": [record({(0.0, 0): CARS, (1.0, 0): CARS})]}))
    assert table.set_index("class")["objects"].to_dict() == {"car": 2, "bus": 1}
    assert set(table["images"]) == {2}


def test_vote_table_ends_with_the_sum():
    vote = {"repaired": {"car": 5, "bus": 2}, "spoiled": {"car": 1, "bus": 4}}
    table = threat_tables.vote_table(record({(0.0, 0): CARS}, vote=vote)).set_index("class")
    assert table["net, px"].to_dict() == {"car": 4, "bus": -2, "all things": 2}


def per_image(method, **hits):
    """Counts of four images; a digit per image: 1 found, 0 missed, - without the object."""
    return [
        {"method": method, "seed": 0, "image": i, "class": thing, "tp": int(hit == "1"), "fp": 0,
         "fn": int(hit == "0")}
        for thing, images in hits.items() for i, hit in enumerate(images)
    ]  # fmt: skip


def test_mix_is_chosen_on_one_half_and_scored_on_the_other():
    counts = pd.DataFrame(
        per_image("a", car="1010", bus="1111", train="----")
        + per_image("b", car="0111", bus="0000", train="----")
    )
    picks = threat_tables.mix_picks(counts).set_index(["chosen_on", "class"])["method"]
    assert picks["even", "car"] == "a" and picks["odd", "car"] == "b"
    assert picks["all", "car"] == "b" and picks["all", "bus"] == "a"
    assert picks["all", "train"] == "a"  # nothing to choose by: the first

    scores = threat_tables.mix_scores(counts).set_index(["choice", "chosen_on", "scored"])["value"]
    assert scores["MIX*", "even", "same half"] == 100
    assert scores["MIX*", "even", "other half"] == pytest.approx(50)  # cars of a on odd images: none
    assert scores["MIX*", "odd", "other half"] == pytest.approx((50 + 100) / 2)
    assert scores["MIX*", "all", "all images"] == pytest.approx((75 + 100) / 2)
    assert scores["best framework", "all", "all images"] == pytest.approx((50 + 100) / 2)
    shown = threat_tables.mix_table(threat_tables.mix_scores(counts))
    assert shown.loc["MIX*", "all images"] == "87.5" and shown.loc["MIX*", "same half"] == "100.0"
    wide = threat_tables.mix_pick_table(threat_tables.mix_picks(counts))
    assert wide.loc["car"].tolist() == ["a", "b", "b"] and list(wide.index) == ["car", "bus", "train"]


def rows_of(values, setting="true masks", metric="class mean"):
    """Tidy rows of {method: values of its seeds}."""
    return pd.DataFrame(
        [(method, setting, metric, value, "%", "", seed)
         for method, seeds in values.items() for seed, value in enumerate(seeds)],
        columns=["method", "setting", "class_or_metric", "value", "unit", "source", "seed"],
    )  # fmt: skip


def test_noise_is_that_of_differences_within_a_seed():
    shared = rows_of({"a": [10, 20, 30], "b": [12, 22, 32]})
    assert threat_tables.noise_floor(shared) == 0
    apart = rows_of({"a": [10, 20, 30], "b": [11, 20, 29]})
    assert threat_tables.noise_floor(apart) == pytest.approx(1)
    assert np.isnan(threat_tables.noise_floor(rows_of({"a": [10], "b": [12]})))
    assert np.isnan(threat_tables.noise_floor(rows_of({"a": [10, 12]})))


def test_published_rows_stay_unlabelled_where_labels_are_lost():
    table = threat_tables.published_frameworks()
    assert table["position"].tolist() == list(range(1, 10))
    assert table["known"].tolist() == ["Baseline", *[""] * 7, "Self-train MIX*"]
    assert table["mAP"].iloc[[0, 7, 8]].tolist() == [7.09, 13.50, 14.00]


def test_the_seven_class_mean_of_v2_is_corrected():
    table = threat_tables.published_networks().set_index("network").round(2)
    assert table.loc["DeepLabV2"].tolist() == [20.77, 19.19]
    assert table.loc["DeepLabV3+"].tolist() == [25.80, 25.80]


def test_weights_stand_beside_those_of_the_thesis():
    rows = rows_of({"weight 0": [1.0, 2.0], "weight 0.01": [1.0, 2.0], "weight 7": [1.0, 2.0]})
    found = threat_tables.beside_weights(tables.summarise(rows))
    assert found["published"].tolist()[:2] == [53.5, 51.0] and np.isnan(found["published"].iloc[2])
