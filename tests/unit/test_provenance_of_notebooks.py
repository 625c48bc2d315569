"""Five lines on where numbers come from, published tables, and settings beside those of the thesis."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from panolib.load import load
from panolib.report.provenance import budgets, crops_seen, differences_from_thesis, provenance
from panolib.report.published import published


@pytest.fixture(scope="module")
def study():
    return load("cpu", train=False)


def test_five_lines_count_the_runs(study):
    lines = provenance(study, "07_panoptic_results").splitlines()
    n = len(study.notebooks["07_panoptic_results"])
    beginnings = ["profile: cpu", f"runs: {n},", "commits:", "devices: cpu"]
    assert len(lines) == 5
    assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings))
    assert "torch 2." in lines[4]


def test_runs_that_no_notebook_declares_are_counted_where_they_are_named(study):
    assert study.notebooks["17_your_images"] == ()
    _, runs, commits, devices, versions = provenance(study, "17_your_images").splitlines()
    assert runs == "runs: 0, trained in 0.0 min in all"
    assert (commits, devices) == ("commits: none", "devices: none")
    assert versions.startswith("versions: none;")

    further = study.notebooks["08_nuclei"][:2]
    _, runs, commits, devices, versions = provenance(study, "17_your_images", further=further).splitlines()
    assert runs.startswith("runs: 2, ") and not commits.endswith("none")
    assert devices.startswith("devices: cpu") and "torch 2." in versions


def test_differences_in_kind_are_said_and_sizes_that_nobody_knows_are_not(study):
    table = differences_from_thesis(study).set_index(["section", "setting"])
    assert table.loc[("instance baseline", "network.coordinates")].tolist() == ["embedding", "False"]
    assert table.loc[("instance self training", "min_stability"), "here"] == "none"
    assert ("semantic baseline", "renormalise") in table.index
    assert not any(setting.startswith("renormalise.") for _, setting in table.index)
    assert ("semantic baseline", "augmentation.height") not in table.index
    assert (table["here"] != table["thesis"]).all()


def test_an_encoder_is_said_by_its_name(study):
    city = study.profile.city
    network = {"version": "v3+", "rates": [1], "encoder": {"name": "resnet50", "weights": None, "frozen": 1}}
    other = replace(city, semantic_baseline=dict(city.semantic_baseline) | {"network": network})
    table = differences_from_thesis(SimpleNamespace(profile=SimpleNamespace(city=other)))
    table = table.set_index(["section", "setting"])
    assert table.loc[("semantic baseline", "network.encoder.name")].tolist() == ["resnet50", "resnet101"]


def test_sizes_say_how_much_every_training_sees(study):
    usual = differences_from_thesis(study)
    table = differences_from_thesis(study, sizes=True)
    assert set(map(tuple, usual.to_numpy())) < set(map(tuple, table.to_numpy()))
    table = table.set_index(["section", "setting"])
    assert table.loc[("semantic baseline", "iterations")].tolist() == ["900", "75000"]
    assert table.loc[("semantic baseline", "source crops"), "here"] == str(900 * 8)
    assert table.loc[("self training", "target views"), "here"] == str(300 * 2 * 3)


def test_trainings_beside_the_ladder_may_be_shorter(study):
    ladder, beside = (
        differences_from_thesis(study, shorter=shorter).set_index(["section", "setting"])["here"]
        for shorter in (False, True)
    )
    changed = ladder.compare(beside)
    assert changed.index.get_level_values("setting").unique().tolist() == ["iterations"]
    assert changed.droplevel("setting").to_dict("index") == {
        "semantic baseline": {"self": "900", "other": "300"},
        "self training": {"self": "300", "other": "100"},
        "instance self training": {"self": "200", "other": "80"},
    }
    sizes = differences_from_thesis(study, ["self_training"], sizes=True, shorter=True).set_index("setting")
    assert sizes.loc["target views", "here"] == str(100 * 2 * 3)
    longer = replace(study.profile, experiments=replace(study.profile.experiments, shorter=None))
    assert differences_from_thesis(SimpleNamespace(profile=longer), shorter=True).equals(
        differences_from_thesis(study)
    )


def test_crops_of_every_kind_of_training():
    assert crops_seen({"iterations": 10, "batch_size": 4}) == {"source crops": 40, "target views": 0}
    assert crops_seen({"iterations": 10, "batch_size": 4, "n_target": 2, "n_views": 3}) == {
        "source crops": 40, "target views": 60
    }  # fmt: skip
    for share, expected in ((0.25, (10, 30)), (1.0, (40, 10))):  # the control shows its layers one crop
        found = crops_seen({"iterations": 10, "batch_size": 4, "source_share": share})
        assert tuple(found.values()) == expected
    assert crops_seen({"n_batches": 3, "batch_size": 4}) == {}


def test_budgets_state_length_and_switches_of_every_training(study):
    table = budgets(study, "city ladder").set_index(["branch", "rung"])
    n_seeds = table["n_seeds"].groupby("rung").agg(set)
    assert not table.index.has_duplicates and n_seeds.pop("oracle") == {1} and set.union(*n_seeds) == {3}
    assert table.loc[("semantic", "oracle"), "iterations"] == 1200
    trained = table.loc[("instance", "self_trained")]
    assert (trained["iterations"], trained["source_crops"], trained["target_views"]) == (200, 400, 800)
    assert (trained["coordinates"], trained["min_stability"]) == ("embedding", "none")
    assert trained["images"] == "cityscapes/train:unlabelled 400, synthia/train 400"
    assert table.loc[("semantic", "oracle"), "coordinates"] == ""
    assert ("panoptic", "oracle") not in table.index and ("semantic", "adabn") not in table.index


def test_published_tables_are_copies_and_unknown_ones_are_named():
    name = "thesis_ch12_tab1_panoptic.csv"
    first = published(name)
    first["value"] = 0.0
    assert (published(name)["value"] != 0).any()
    with pytest.raises(FileNotFoundError, match="expected one of"):
        published("none.csv")
