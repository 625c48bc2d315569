"""The experiments as the grid declares them: what their tags cover, and what clustering costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from panolib.bench.operations import cost_rows, cost_sizes
from panolib.config import ProfileError
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.report.rows import tagged
from panolib.study.run_specs import ClusteringCostSpec
from panolib.training.specs import Compute


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_workflows_share_the_thing_classes_and_none_is_left_out(profile, monkeypatch):
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    study = load(profile)
    trained = tagged(study, "E3", branch="instance")
    assert {at["workflow"] for _, at in trained} == set(study.profile.experiments.shares)
    assert profile == "cpu" or set(study.profile.experiments.shares) == {"all", "icm", "base", "ccm"}
    for threat, scored in tagged(study, "E3", branch="threat"):
        networks = {
            run.name: run.spec.classes for run, at in trained
            if all(at[name] == scored.get(name) for name in ("workflow", "share", "seed"))
        }  # fmt: skip
        if networks:
            parents = {run.name for role, run in threat.parents if role.startswith("instance.")}
            assert parents == set(networks)
            learned = [name for classes in networks.values() for name in classes or CITYSCAPES.things]
            assert sorted(learned) == sorted(CITYSCAPES.things)
    (crops, _), (usual, _) = tagged(study, "E4", branch="instance", seed=study.seeds[0])
    assert crops.spec.augmentation != usual.spec.augmentation
    assert crops.spec.source_share == usual.spec.source_share


@pytest.mark.parametrize("profile", ["smoke", "cpu", "paper"])
def test_workflows_differ_in_their_networks_only(profile, monkeypatch):
    """One network for all things without source comes from E2, which also has rings of another kind."""
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    study = load(profile, train=False)
    ladder = study.runs["city-instance-self_trained-s0"].spec
    found = [(run.spec, at) for run, at in tagged(study, "E3", branch="instance", share=[0.0, 0.25])]
    assert {(at["workflow"], at["share"]) for _, at in found} >= {("all", 0.0), ("all", 0.25)}
    assert {(spec.margins, spec.algorithm, spec.target) for spec, _ in found} == {
        (ladder.margins, ladder.algorithm, ladder.target)
    }


def test_without_a_run_of_e2_one_network_for_all_is_trained_for_e3(tmp_path, monkeypatch):
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    file = tmp_path / "other.yaml"
    file.write_text("extends: smoke\ncity: {instance_self_training: {algorithm: mean_shift_peel}}\n")
    ((run, at),) = tagged(load(file), "E3", branch="instance", workflow="all", share=0.0)
    assert (run.variant, run.spec.algorithm, at["classes"]) == ("all.00", "mean_shift_peel", "all")


def test_names_of_sources_and_networks_may_hold_a_dot(tmp_path, monkeypatch):
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    file = tmp_path / "other.yaml"
    networks, sources = "{v3.1: {version: v3, rates: [6]}}", "{g.5: gta5/train}"
    file.write_text(f"extends: smoke\nexperiments: {{networks: {networks}, sources: {sources}}}\n")
    study = load(file)
    ((run, _),) = tagged(study, "E1", source="mix", network="v3.1", rung="self_trained")
    assert run.spec.network.rates == (6,)
    ((run, _),) = tagged(study, "E1", source="g.5", network="v2", rung="source_only")
    assert run.spec.source == "gta5/train"


def test_experiments_may_train_shorter_and_are_then_compared_with_each_other(tmp_path, monkeypatch):
    """The ladder's network, which trains longer, is then no network of E5 and E7."""
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    file = tmp_path / "other.yaml"
    file.write_text("extends: smoke\nexperiments: {shorter: {instance_self_training: 1}}\n")
    study = load(file)
    assert study.runs["city-instance-self_trained-s0"].spec.iterations > 1
    for experiment in ("E2", "E3", "E4", "E5", "E7"):
        trained = [run for run, _ in tagged(study, experiment, branch="instance")]
        assert trained and {run.spec.iterations for run in trained} == {1}, experiment
        for threat, _ in tagged(study, experiment, branch="threat"):
            networks = [run for role, run in threat.parents if role.startswith("instance.")]
            networks = [run.spec.iterations for run in networks if run.rung == "self_trained"]
            assert set(networks) <= {1}, threat.name


def test_shorter_semantic_trainings_include_the_ladders_network(tmp_path, monkeypatch):
    """Sources and networks of E1, E9, E10 and E11 train alike, and E12 has a whole SAC of its own length."""
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    file = tmp_path / "other.yaml"
    shorter = "{semantic_baseline: 2, self_training: 1, instance_self_training: 1}"
    ablations = "{no_focal: {focal_exponent: 0.0}}"
    file.write_text(f"extends: smoke\nexperiments: {{shorter: {shorter}, ablations: {ablations}}}\n")
    study = load(file)
    found = tagged(study, "E1")
    assert {(at["source"], at["network"]) for _, at in found} == {
        ("syn", "v2"), ("gta", "v2"), ("mix", "v2"), ("mix", "v3"), ("mix", "v3plus"),
    }  # fmt: skip
    for run, _ in found:
        if run.rung in ("source_only", "self_trained"):
            assert run.spec.iterations == {"source_only": 2, "self_trained": 1}[run.rung], run.name
        assert run.rung != "oracle"
    for experiment in ("E9", "E10"):
        found = tagged(study, experiment)
        assert {at["network"] for _, at in found} == {"v2", "v3", "v3plus"}
        for run, _ in found:
            semantic = dict(run.parents)["semantic"]
            assert semantic.variant.startswith("mix.") and semantic.rung in ("abn", "self_trained")
    curves = [run for run, _ in tagged(study, "E11", seed=0)]
    assert [run.spec.iterations for run in curves] == [2, 1] and all(run.spec.monitor for run in curves)
    assert {run.spec.iterations for run, _ in tagged(study, "E12", seed=0)} == {1}
    assert {run.spec.iterations for run, _ in tagged(study, "E6", seed=0)} == {1}


def test_an_ablation_changes_what_it_names_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    file = tmp_path / "other.yaml"
    file.write_text("extends: smoke\nexperiments: {ablations: {no_focal: {focal_exponent: 0.0}}}\n")
    found = {at["ablation"]: run for run, at in tagged(load(file), "E12", seed=0)}
    assert set(found) == {"none", "no_focal"}
    assert found["no_focal"].spec == replace(found["none"].spec, focal_exponent=0.0)
    assert found["no_focal"].parents == found["none"].parents
    file.write_text("extends: smoke\nexperiments: {ablations: {same: {}}}\n")
    with pytest.raises(ProfileError, match=r"experiments\.ablations\.same: expected settings that differ"):
        load(file)


def test_the_ladders_network_is_named_by_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr("panolib.report.rows.is_available", lambda *_: True)
    file = tmp_path / "other.yaml"
    file.write_text(
        "extends: smoke\ncity: {semantic_baseline: {network: {version: v3+}}}\n"
        "experiments: {networks: !replace {v2: {version: v2}}}\n"
    )
    study = load(file)
    for experiment in ("E1", "E10"):
        tags = [(run, at["network"]) for run, at in tagged(study, experiment, rung="self_trained", seed=0)]
        assert {name for _, name in tags} == {"v2", "v3plus"}
    assert {run.spec.network.version for run, at in tagged(study, "E1", network="v3plus")} == {"v3+"}
    file.write_text(file.read_text().replace("{v2: {version: v2}}", "{v3plus: {version: v3+}}"))
    with pytest.raises(ProfileError, match="other networks than the ladder's, found 'v3plus'"):
        load(file)


def test_the_cost_of_every_algorithm_and_size_is_measured():
    algorithms, compute = ("mean_shift_plus", "connected_components"), Compute("cpu", "32-true", 0, False)
    spec = ClusteringCostSpec(
        label_set="cityscapes", algorithms=algorithms, heights=(8, 16), n_instances=(2, 3), embedding_dim=4,
        repeats=1, compute=compute, seed=0,
    )  # fmt: skip
    of_pixels, of_instances = (
        [("pixels", 8, 2), ("pixels", 16, 2)],
        [("instances", 8, 2), ("instances", 8, 3)],
    )
    assert list(cost_sizes(spec)) == of_pixels + of_instances
    rows = cost_rows(spec)
    assert len(rows) == 8 and all(row["ms"] > 0 and row["pixels"] > 0 for row in rows)
    assert {(row["algorithm"], row["axis"]) for row in rows} == {
        (name, axis) for name in spec.algorithms for axis in ("pixels", "instances")
    }
