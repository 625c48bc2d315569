"""Oracles of equal budget train as long as baseline and self-training together; without it no key changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from panolib.config import ProfileError
from panolib.load import load
from panolib.profiles import load_yaml, project_root
from panolib.study.study import RUNGS

PROFILES = project_root(Path(__file__).parent) / "notebooks" / "profiles"


def study_with(root: Path, change) -> object:
    """The smoke profile after a change, as a study below `root`."""
    profile = load_yaml(PROFILES / "smoke.yaml")
    change(profile)
    (root / "budgets.yaml").write_text(yaml.safe_dump(profile))
    return load(root / "budgets.yaml", root=root)


def equal(profile: dict) -> None:
    profile["city"]["equal_budgets"] = True


def iterations(study, branch: str, variant: str = "", domain: str = "city") -> dict[str, int]:
    """{rung: iterations} of the first seed."""
    found = {
        run.rung: getattr(run.spec, "iterations", 0)
        for run in study.runs.values()
        if (run.domain, run.branch, run.variant, run.spec.seed) == (domain, branch, variant, 0)
    }
    return {rung: found[rung] for rung in RUNGS if rung in found}


@pytest.mark.parametrize(
    ("branch", "variant"),
    [("semantic", ""), ("instance", ""), ("semantic", "mix.v3"), ("semantic", "bisenet")],
)
def test_an_oracle_trains_as_long_as_baseline_and_self_training_together(tmp_path, branch, variant):
    found = iterations(study_with(tmp_path, equal), branch, variant)
    assert found["oracle"] == found["source_only"] + found["self_trained"]
    assert found.get("control", found["self_trained"]) == found["self_trained"] > 0


def test_on_a_further_target_the_baseline_is_that_of_the_city(tmp_path):
    study = study_with(tmp_path, equal)
    city, camvid = (iterations(study, "semantic", "bisenet", domain) for domain in ("city", "camvid"))
    assert camvid["oracle"] == city["oracle"] == city["source_only"] + camvid["self_trained"]


def test_the_ladder_of_a_further_target_has_equal_budgets_and_a_teacher_too(tmp_path):
    def change(profile):
        profile["city"] |= {"equal_budgets": True, "score_teachers": True}
        profile["camvid"]["ladder"] = {"self_training": {"iterations": 7}}

    study = study_with(tmp_path, change)
    found = iterations(study, "semantic", domain="camvid")
    assert found["self_trained"] == found["control"] == 7
    assert found["oracle"] == 7 + iterations(study, "semantic")["source_only"]
    teacher = study.runs["camvid-semantic-teacher-s0"]
    assert dict(teacher.parents)["semantic"] is study.runs["camvid-semantic-self_trained-s0"]
    assert (teacher.spec.scored, teacher.spec.validation) == ("teacher", "camvid/val")


def test_a_section_that_says_no_iterations_has_those_of_its_baseline(tmp_path):
    def change(profile):
        equal(profile)
        del profile["city"]["self_training"]["iterations"]

    found = iterations(study_with(tmp_path, change), "semantic")
    assert found["self_trained"] == found["source_only"] and found["oracle"] == 2 * found["source_only"]


def test_other_runs_keep_their_keys_and_all_do_where_it_is_off(tmp_path):
    def keys(change) -> dict[str, str]:
        return {name: run.key for name, run in study_with(tmp_path, change).runs.items()}

    usual, off, on = keys(lambda _: None), keys(lambda p: p["city"].update(equal_budgets=False)), keys(equal)
    assert usual == off and usual.keys() == on.keys()
    changed = {name for name in usual if usual[name] != on[name]}
    assert {name for name in changed if name.split("-")[1] in ("semantic", "instance")} == {
        f"{domain}-{branch}-oracle{variant}-s0"
        for domain, branch, variant in (
            *(("city", "semantic", variant) for variant in ("", "-mix.v3", "-mix.v3plus", "-bisenet")),
            ("city", "instance", ""), ("camvid", "semantic", "-bisenet"),
        )
    }  # fmt: skip
    assert not any(name.startswith("nuclei") for name in changed)


@pytest.mark.parametrize("value", ["many", 0, None])
def test_a_wrong_number_of_iterations_is_named(tmp_path, value):
    def change(profile):
        equal(profile)
        profile["city"]["self_training"]["iterations"] = value

    with pytest.raises(ProfileError, match=r"budgets.yaml: city.self_training: iterations: expected"):
        study_with(tmp_path, change)
