"""Two names never share a key: what is asked for twice is one run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from toy_kinds import KINDS, toy_run, trained

from panolib.lab.engine import get_all
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.load import load
from panolib.profiles import load_yaml, project_root
from panolib.study import study
from panolib.study.declared import one_run_for_each_key, with_versions

ROOT = project_root(Path(__file__).parent)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, KINDS)


def declared() -> dict[str, Run]:
    """"first" and "second" have one key, and a child each, which have one key too."""
    first = toy_run("first", n_iterations=2)
    second = replace(first, name="second")
    children = [toy_run(f"child-{parent.name}", parent=parent, n_iterations=2) for parent in (first, second)]
    runs = (first, second, *children, toy_run("other", seed=1, n_iterations=1))
    return {run.name: run for run in runs}


def test_names_of_one_key_are_one_run_and_trained_once(store):
    runs = one_run_for_each_key(declared(), store)
    assert list(runs) == ["first", "second", "child-first", "child-second", "other"]
    assert runs["second"] is runs["first"] and runs["first"].name == "first"
    assert runs["child-second"] is runs["child-first"]
    assert dict(runs["child-first"].parents)["start"] is runs["first"]
    records = get_all(store, runs.values())
    assert sorted(trained(store.root)) == ["child-first", "first", "other"]
    assert sorted(records) == ["child-first", "first", "other"]


def test_a_list_with_two_names_of_one_key_trains_one(store):
    records = get_all(store, declared().values())
    assert records["second"].run.name == "first" and "second" not in trained(store.root)


def test_a_run_that_is_recorded_under_its_other_name_is_that_run(store):
    runs = declared()
    store.get(runs["second"])
    found = one_run_for_each_key(runs, store)
    assert found["first"] is found["second"] and found["first"].name == "second"
    assert dict(found["child-first"].parents)["start"].name == "second"
    get_all(store, found.values())
    assert "first" not in trained(store.root)


def test_a_later_record_of_the_second_name_is_read_until_the_shared_run_is_recorded_anew(store):
    runs = declared()
    for name in ("first", "second"):
        store.get(runs[name])
    found = one_run_for_each_key(runs, store)
    assert (found["first"].name, found["second"].name) == ("first", "second")
    assert dict(found["child-second"].parents)["start"] is found["first"]
    assert store.load(found["second"]).info["name"] == "second"

    store.retrain_since = store.load(runs["second"]).recorded_at + 1e-6  # as `reproduce --retrain` does
    get_all(store, found.values())
    assert Counter(trained(store.root))["second"] == 1 and Counter(trained(store.root))["first"] == 2
    store.retrain_since = 0.0
    found = one_run_for_each_key(runs, store)
    assert found["second"] is found["first"]


@pytest.mark.parametrize("damaged", ["first", "second"])
def test_a_damaged_record_of_either_name_is_seen_and_the_whole_one_is_read(store, damaged):
    runs = declared()
    for name in ("first", "second"):
        store.get(runs[name])
    (store.folder(runs[damaged]) / "metrics.json").write_text("{")
    found = one_run_for_each_key(runs, store)
    states = {name: store.state(found[name]) for name in ("first", "second")}
    assert states == {"first": "recorded", "second": "recorded"} | {damaged: "damaged"}


def test_versions_enter_the_keys_of_a_run_and_of_all_that_starts_from_it():
    runs = declared()
    assert {name: run.key for name, run in with_versions(runs, {"toy": 1}).items()} == {
        name: run.key for name, run in runs.items()
    }
    raised = with_versions(runs, {"toy": 2})
    assert all(run.version == 2 and run.key != runs[name].key for name, run in raised.items())
    assert dict(raised["child-first"].parents)["start"] is raised["first"]
    with pytest.raises(KeyError, match="toy"):
        with_versions(runs, {})


def test_the_weight_of_the_ladder_is_the_run_of_the_ladder(tmp_path):
    """Experiment E7 asks for the self-trained network of the ladder by another name."""
    profile = load_yaml(ROOT / "notebooks" / "profiles" / "smoke.yaml")
    profile["experiments"]["consistency_weights"] = [0.0, 0.1]
    del profile["experiments"]["shorter"]  # with it, each weight trains as shortly
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile))
    loaded = load(path, root=tmp_path)
    ladder, second = "city-instance-self_trained-s0", "city-instance-self_trained-consistency.0.1-s0"
    assert loaded.runs[second] is loaded.runs[ladder] and loaded.runs[second].name == ladder
    threat = loaded.runs["city-threat-consistency.0.1-s0"]
    assert dict(threat.parents)["instance.all"] is loaded.runs[ladder]
    distinct = {run.name: run for run in loaded.runs.values()}
    assert len({run.key for run in distinct.values()}) == len(distinct)
    assert study.is_available(loaded, second) and loaded.store.state(loaded.runs[second]) == "missing"


def test_the_record_holds_no_key_twice_with_other_results():
    results: dict[str, dict[str, str]] = {}
    for file in sorted((ROOT / "results" / "cpu" / "runs").glob("*/run.json")):
        key = json.loads(file.read_text())["key"]
        texts = ((file.parent / name).read_text() for name in ("metrics.json", "curves.csv"))
        results.setdefault(key, {})[file.parent.name] = "".join(texts)
    assert len(results) > 150
    assert not [names for names in results.values() if len(set(names.values())) > 1]


def test_what_was_trained_again_has_the_keys_of_the_record():
    files = sorted((ROOT / "results" / "cpu" / "trained_again").glob("*/run.json"))
    assert files
    for file in files:
        record = ROOT / "results" / "cpu" / "runs" / file.parent.name / "run.json"
        again, first = (json.loads(path.read_text()) for path in (file, record))
        assert again["key"] == first["key"] and again["recorded_at"] != first["recorded_at"]


def test_narrower_bandwidths_are_of_runs_of_the_record_with_other_settings():
    files = sorted((ROOT / "results" / "cpu" / "bandwidths").glob("*/*/run.json"))
    assert len(files) == 7
    for file in files:
        record = ROOT / "results" / "cpu" / "runs" / file.parent.name / "run.json"
        narrow, own = (json.loads(path.read_text()) for path in (file, record))
        assert narrow["key"] != own["key"]  # as parents chose the bandwidth
        for field in narrow["spec"].keys() - {"compute"}:  # which has more fields than it had
            assert narrow["spec"][field] == own["spec"][field]
