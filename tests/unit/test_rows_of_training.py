"""What monitors and curves become: rows and sides of a claim, from records made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from panolib.report import intervals, rows, verdicts
from panolib.study.study import Tag

VAL = "cityscapes/val"


@pytest.fixture
def study(monkeypatch):
    """Two networks of BASE, monitored twice in three iterations, and one of "all" that was not."""
    monkeypatch.setattr(rows, "is_available", lambda *_: True, raising=False)
    curves = {
        "auto": {"tp": (1, 3), "fp": (1, 0), "fn": (4, 2), "loss": (1.0, 2.0), "step_s": (2.0, 4.0, np.nan)},
        "bike": {"tp": (0, 1), "fp": (0, 4), "fn": (0, 0), "loss": (3.0, 6.0), "step_s": (6.0, 4.0, np.nan)},
        "all": {"step_s": (1.0, 2.0, np.nan)},
    }
    records, tags = {}, []
    for name, columns in curves.items():
        table = {"iteration": range(3)}
        for column, values in columns.items():
            inside = (values[0], np.nan, values[1]) if len(values) == 2 else values
            table[column if column == "step_s" else f"{column} {VAL}"] = inside
        run = SimpleNamespace(domain="city", branch="instance", rung="self_trained", variant=name, name=name,
                              spec=SimpleNamespace(seed=0), kind="instance_self_training")  # fmt: skip
        records[name] = SimpleNamespace(run=run, curves=pd.DataFrame(table))
        workflow = "all" if name == "all" else "base"
        tags.append(Tag("E3", name, {"workflow": workflow, "share": 0.0, "classes": name}))
    return SimpleNamespace(
        tags=tags, runs={name: record.run for name, record in records.items()}, get=records.__getitem__
    )


def test_networks_of_one_setting_add_up(study):
    table = rows.monitored(study, "E3", workflow="base")
    assert table["iteration"].tolist() == [0, 2] and set(table["data_set"]) == {VAL}
    assert table[["tp", "fp", "fn", "n_networks"]].to_numpy().tolist() == [[1, 1, 4, 2], [4, 4, 2, 2]]
    assert table["loss"].tolist() == [2.0, 4.0] and "classes" not in table
    assert table["threat_score"].tolist() == pytest.approx([1 / 6, 0.4])


def test_a_network_without_monitor_is_said(study):
    with pytest.raises(LookupError, match="was monitored"):
        rows.monitored(study, "E3", workflow="all")
    with pytest.raises(LookupError, match=r"no row with data_set 'cityscapes/train'.*cityscapes/val"):
        rows.monitored(study, "E3", workflow="base", data_set="cityscapes/train")


def test_a_side_of_monitored_counts_is_at_a_part_of_the_training(study):
    at = {"experiment": "E3", "workflow": "base", "data_set": VAL}
    values = [verdicts.side(study, "monitored: fp", {**at, "at": part}).by_seed.tolist() for part in (0, 1)]
    assert values == [[1], [4]]


def test_times_of_steps_are_paired_over_iterations(study):
    at = {"experiment": "E3", "branch": "instance", "at": "median"}
    base, one = (verdicts.side(study, "curve: step_s", {**at, "workflow": name}) for name in ("base", "all"))
    assert base.curve.to_numpy().tolist() == [[4.0, 4.0]] and base.by_seed.tolist() == [4.0]
    found = verdicts.compare(base, one, "ratio")
    assert found.estimate == pytest.approx(100 * np.log(4 / 1.5)) and found.low < found.estimate < found.high
    assert found.over == "1 seed, 2 iterations (worth 2)"


def test_the_interval_over_iterations_is_that_of_the_mean():
    a = np.random.default_rng(0).normal(1, 1, (1, 400))
    found = intervals.paired_over_iterations(np.mean, a, np.zeros_like(a))
    half = 1.96 * a.std() / 20
    assert (found.low, found.high) == pytest.approx((a.mean() - half, a.mean() + half), abs=0.1 * half)


def test_three_ways_to_average_a_threat_score():
    counts = pd.DataFrame({
        "image": [0, 1, 0, 1], "class": ["car", "car", "bus", "bus"], "run": "r",
        "tp": [1, 1, 2, 0], "fp": [1, 0, 0, 0], "fn": [2, 0, 0, 0],
    })  # fmt: skip
    found = rows.threat_score(counts, ["run"]).iloc[0]
    assert found["pooled"] == pytest.approx(4 / 7) and found["class_mean"] == pytest.approx((2 / 5 + 1) / 2)
    assert found["image_mean"] == pytest.approx(((1 / 4 + 1) / 2 + 1) / 2)
