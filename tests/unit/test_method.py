"""The recipe as it is declared: runs of one branch differ in their part alone, and read no target label."""

from __future__ import annotations

from dataclasses import replace

import pytest

from panolib.config import ProfileError
from panolib.load import load
from panolib.profiles import project_root
from panolib.study.method import ALL, EXPERIMENT, LADDER, NONE
from panolib.study.settings import read_profile
from panolib.study.study import TEACHER

OTHERS = (
    "experiments: null\ndetr: null\nrealtime: null\nperformance: null\nrefinement: null\nobjectness: null\n"
)
CHANGES = {  # of cpu and smoke, at the values below
    "slow_teacher": {"ema_decay": 0.999},
    "class_mix": {"class_mix": True},
    "rare_source": {"rare_source": 0.01},
    "ego_rows": {"ego_share": 0.08},
    "confident_weight": {"confident_weight": 0.5},
    "paste": {"paste": 0.3},
}
SEMANTIC = (NONE, *list(CHANGES)[:4], ALL)
INSTANCE = (NONE, *list(CHANGES)[4:], ALL)
RUNGS = ("self_trained", TEACHER)


def declared(folder, text="", others=OTHERS):
    """(study, {(domain, branch, rung, in_branch, part): run}) of the smoke profile with more said."""
    file = folder / "few.yaml"
    file.write_text(f"extends: smoke\n{others}{text}")
    loaded = load(file, root=folder, train=False)
    tags = [(loaded.runs[tag.run], dict(tag.values)) for tag in loaded.tags if tag.experiment == EXPERIMENT]
    parts = [(run, at["in_branch"], at["part"]) for run, at in tags if "part" in at]
    return loaded, {(run.domain, run.branch, run.rung, *where): run for run, *where in parts}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    domains = """
city: {score_teachers: true}
camvid: {ladder: {}}
method:
  domains:
    nuclei: {semantic_iterations: 3, instance_iterations: 2, without: [rare_source, ego_rows]}
    camvid: {semantic_iterations: 3, without: [ego_rows]}
"""
    return declared(tmp_path_factory.mktemp("method"), domains)


def test_each_domain_has_its_parts(whole):
    _, runs = whole
    for domain, semantic in (
        ("city", SEMANTIC), ("nuclei", (NONE, "slow_teacher", "class_mix", ALL)),
        ("camvid", (NONE, "slow_teacher", "class_mix", "rare_source", ALL)),
    ):  # fmt: skip
        of_domain = {key[1:]: run for key, run in runs.items() if key[0] == domain}
        expected = {("semantic", "self_trained", "semantic", part) for part in semantic}
        if domain != "camvid":
            expected |= {("instance", "self_trained", "instance", part) for part in INSTANCE}
            expected |= {("panoptic", "self_trained", "instance", part) for part in INSTANCE}
            both = ("both", "cleaned") if domain == "city" else ("both",)  # the nuclei have no `cleanup`
            expected |= {("panoptic", "self_trained", name, part) for name in both for part in (NONE, ALL)}
        scored = {(branch, TEACHER, *rest) for branch, _, *rest in expected if branch != "instance"}
        assert set(of_domain) == expected | (scored if domain != "nuclei" else set())


def test_the_scores_of_the_ladder_are_beside_it(whole):
    loaded, _ = whole
    beside = {tag.run for tag in loaded.tags if dict(tag.values).get("in_branch") == LADDER}
    rungs = {name.rpartition("-s0")[0] for name in beside if name.startswith("camvid")}
    expected = ("source_only", "control", "self_trained", TEACHER, "oracle")
    assert rungs == {f"camvid-semantic-{rung}" for rung in expected}
    assert "city-panoptic-oracle-s0" in beside and not any("method" in name for name in beside)


@pytest.mark.parametrize(("branch", "parts"), [("semantic", SEMANTIC), ("instance", INSTANCE)])
@pytest.mark.parametrize("domain", ["city", "nuclei", "camvid"])
def test_runs_differ_in_their_part_alone(whole, domain, branch, parts):
    loaded, runs = whole
    found = {part: runs.get((domain, branch, "self_trained", branch, part)) for part in parts}
    found = {part: run for part, run in found.items() if run is not None}
    together = {}
    for part in found.keys() & CHANGES.keys():
        assert found[part].spec == replace(found[NONE].spec, **CHANGES[part])
        together |= CHANGES[part]
    if domain == "camvid" and branch == "instance":
        assert not found
        return
    assert found[ALL].spec == replace(found[NONE].spec, **together)
    assert all(run.parents == found[NONE].parents and run.data == found[NONE].data for run in found.values())
    lengths = loaded.profile.method.domains[domain]
    assert found[NONE].spec.iterations == getattr(lengths, f"{branch}_iterations")
    assert found[NONE].spec.target.endswith(":unlabelled") and found[NONE].spec.monitor is None
    ladder = (loaded.profile.ladders | loaded.profile.target_ladders)[domain]
    assert dict(found[NONE].parents)["start"].rung == ladder.self_training_start


def test_parts_are_scored_inside_the_masks_that_the_tags_say(whole):
    _, runs = whole
    for (domain, branch, rung, in_branch, part), run in runs.items():
        parents = dict(run.parents)
        if branch == "panoptic":
            assert parents["instance"] is runs[domain, "instance", "self_trained", "instance", part]
            masks = f"{domain}-semantic-self_trained-s0"  # the ladder's
            if in_branch != "instance":
                masks = runs[domain, "semantic", "self_trained", "semantic", part].name
            assert parents["semantic"].name == masks
        if branch in ("semantic", "panoptic") and (branch == "panoptic" or rung == TEACHER):
            assert run.spec.scored == ("teacher" if rung == TEACHER else "student")


def test_with_a_classifier_of_objects_what_it_doubts_is_dropped_as_well(tmp_path):
    others = OTHERS.replace("objectness: null\n", "")
    loaded, runs = declared(tmp_path, "city: {score_teachers: true}\n", others)
    judged = {key: run for key, run in runs.items() if key[1] == "objectness"}
    assert {key[2::2] for key in judged} == {(rung, part) for rung in RUNGS for part in (NONE, ALL)}
    for (_, _, rung, _, part), run in judged.items():
        panoptic = runs["city", "panoptic", rung, "both", part]
        parents = dict(run.parents)
        assert parents.pop("objectness") is loaded.runs["city-objectness-s0"]
        assert parents == dict(panoptic.parents) and run.spec.scored == panoptic.spec.scored
        assert run.spec.least == loaded.runs["city-objectness-self_trained-s0"].spec.least


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: {semantic: {all: {ema_decay: 0.5}}}", "expected a name of its own .*, found 'all'"),
        ("method: {instance: {class_mix: {paste: 0.5}}}", "expected a name of its own .*, found 'class_mix'"),
        ("method: {semantic: {faster: {ema_decay: 0.5}}}", "expected one part that changes 'ema_decay'"),
        (
            "method: {domains: {city: {semantic_iterations: 1, without: [mix]}}}",
            r"domains\.city\.without: expected some of slow_teacher, .*, found 'mix'",
        ),
        (
            "camvid: {ladder: {}}\n"
            "method: {domains: {camvid: {semantic_iterations: 1, instance_iterations: 2}}}",
            r"method\.domains\.camvid\.instance_iterations: expected null, .*, found 2",
        ),
        ("method: {semantic: {same: {n_views: 2}}}", r"method\.semantic\.same: expected settings"),
        ("method: {semantic: {odd: {n_veiws: 2}}}", r"method\.semantic\.odd: n_veiws: unknown key"),
        ("method: {semantic: {class_mix: {class_mix: 1}}}", r"\.class_mix: class_mix: expected"),
    ],
)
def test_what_is_no_part_is_one_error(tmp_path, text, message):
    with pytest.raises(ProfileError, match=rf"few\.yaml: .*{message}"):
        declared(tmp_path, text)


def test_a_domain_may_take_other_seeds_than_the_recipe(tmp_path):
    text = """
seeds: [0, 1, 2]
city: {n_seeds: 2}
method:
  n_seeds: !remove
  domain_seeds: {city: [1]}
  domains:
    city: {semantic_iterations: 3}
    nuclei: {semantic_iterations: 3, instance_iterations: 2, without: [rare_source, ego_rows]}
"""
    loaded, _ = declared(tmp_path, text)
    names = [tag.run for tag in loaded.tags if tag.experiment == EXPERIMENT]
    seeds = {(name.partition("-")[0], name.rpartition("-")[2]) for name in names}
    assert seeds == {("city", "s1"), *(("nuclei", f"s{seed}") for seed in range(3))}


def test_parts_with_instances_may_have_other_seeds(tmp_path):
    text = """
seeds: [4, 5, 6]
method:
  n_seeds: !remove
  instance_seeds: {city: [1, 2]}
  domains:
    city: {semantic_iterations: 3, instance_iterations: 2}
"""
    loaded, _ = declared(tmp_path, text)
    tagged = [(loaded.runs[tag.run], dict(tag.values)) for tag in loaded.tags if tag.experiment == EXPERIMENT]
    seeds: dict[str, set] = {}
    for run, at in tagged:
        seeds.setdefault(at["in_branch"], set()).add(run.spec.seed)
    assert seeds.pop("ladder") == seeds.pop("semantic") == {4, 5, 6}
    assert set(seeds) == {"instance", "both", "cleaned"} and all(each == {5, 6} for each in seeds.values())


def test_profiles_without_the_section_have_none(tmp_path):
    loaded, runs = declared(tmp_path, "method: null")
    assert not runs and loaded.profile.method is None
    for name, wanted in (("cpu", True), ("smoke", True), ("gpu", False), ("paper", True)):
        settings = read_profile(project_root() / "notebooks" / "profiles" / f"{name}.yaml").method
        assert (settings is not None) == wanted
