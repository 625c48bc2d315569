"""Five lines on where numbers come from, published tables, and settings beside those of the thesis."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest

from panolib.load import load
from panolib.profiles import project_root
from panolib.report.provenance import differences_from_thesis, provenance
from panolib.report.published import published

# Commits of side branches that were not merged and are lost; by notes, their library was main's.
LOST = ("4c1edede", "6cb3d5f5", "11ef20e6", "57af6699", "e21b4c11", "fa080914")


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


def test_images_of_recorded_runs_are_counted(study):
    usual, table = differences_from_thesis(study), differences_from_thesis(study, images=True)
    assert table[: len(usual)].equals(usual)
    counted = table[len(usual) :].set_index("setting")
    target = counted.loc["images of cityscapes/train:unlabelled"]
    assert target[["here", "thesis"]].tolist() == ["400", "2975"]
    assert set(counted["section"]) == {"data"} and len(counted) == 5


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
    longer = replace(study.profile, experiments=replace(study.profile.experiments, shorter=None))
    assert differences_from_thesis(SimpleNamespace(profile=longer), shorter=True).equals(
        differences_from_thesis(study)
    )


def test_published_tables_are_copies_and_unknown_ones_are_named():
    name = "thesis_ch12_tab1_panoptic.csv"
    first = published(name)
    first["value"] = 0.0
    assert (published(name)["value"] != 0).any()
    with pytest.raises(FileNotFoundError, match="expected one of"):
        published("none.csv")


def test_commits_of_records_are_in_the_history():
    """Whoever records on a branch merges it: else nobody can look up what a number was made with."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=project_root(), text=True, capture_output=True).stdout

    if git("rev-parse", "--is-shallow-repository") != "false\n":
        pytest.skip("no git, or not all of its history")
    known = set(git("rev-list", "HEAD").split())
    files = sorted(project_root().glob("results/*/runs/*/run.json"))
    commits = {json.loads(file.read_text())["commit"] for file in files}
    assert len(files) > 600 and {c for c in commits - known if not c.startswith(LOST)} == set()
