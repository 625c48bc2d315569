"""Tables of the threat score: counts of runs, scores against ThreatScore and by hand."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest

from panolib import threat_tables
from panolib.labels import CITYSCAPES
from panolib.metrics.instance import ThreatScore

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
