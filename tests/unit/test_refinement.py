"""Rounds of refinement as they are declared: what each exchange starts from, reads and says, equally long."""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np
import pytest

from panolib.config import ProfileError
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.metrics.from_counts import false_share
from panolib.profiles import project_root
from panolib.study.refinement import EXCHANGES, EXPERIMENT, START
from panolib.study.settings import Refinement, read_profile

PROFILES = project_root() / "notebooks" / "profiles"
ROUNDS = 3


@functools.cache
def study():
    return load("smoke", train=False)


@pytest.fixture(scope="module")
def declared(tmp_path_factory):
    """{(exchange, round): {branch: run}} of a study with three rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    file = folder / "three.yaml"
    others = "camvid: null\nexperiments: null\ndetr: null\nrealtime: null\nperformance: null\n"
    section = f"refinement: {{rounds: {ROUNDS}, domains: [city, nuclei, camvid]}}\n"
    file.write_text(f"extends: smoke\n{others}{section}")
    loaded = load(file, root=folder, train=False)
    found = defaultdict(dict)
    for tag in loaded.tags:
        if tag.experiment == EXPERIMENT:
            run, at = loaded.runs[tag.run], dict(tag.values)
            assert at["to_go"] == ROUNDS - at["round"]
            found[run.domain, at["exchange"], at["round"]][run.branch] = run
    return found


DOMAINS = ("city", "nuclei")


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_exchange_has_every_round_and_one_start(declared, domain):
    names = {(exchange, number) for of, exchange, number in declared if of == domain}
    assert names == {(START, 0)} | {(name, n) for name in EXCHANGES for n in range(1, ROUNDS + 1)}
    assert {of for of, _, _ in declared} == set(DOMAINS), "a domain without a ladder is passed over"
    assert all(set(runs) == {"semantic", "instance", "panoptic"} for runs in declared.values())
    assert declared[domain, START, 0]["semantic"].name == f"{domain}-semantic-self_trained-s0"


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_round_goes_on_from_the_one_before(declared, domain, exchange):
    said = EXCHANGES[exchange]
    before = start = declared[domain, START, 0]
    for number in range(1, ROUNDS + 1):
        runs = declared[domain, exchange, number]
        semantic, instance = (dict(runs[branch].parents) for branch in ("semantic", "instance"))
        assert semantic["start"] is before["semantic"] and instance["start"] is before["instance"]
        if said.painted == "predicted":
            assert semantic["instance"] is before["instance"] and semantic["semantic"] is before["semantic"]
        else:
            assert set(semantic) == {"start"}
        assert runs["semantic"].spec.painted == said.painted
        guide = start["semantic"] if said.masks == "ladder" else runs["semantic"]
        assert instance["semantic"] is guide
        scored = dict(runs["panoptic"].parents)
        assert scored["semantic"] is runs["semantic"] and scored["instance"] is runs["instance"]
        clusterings = {dict(run.parents)["clustering"] for run in (runs["instance"], runs["panoptic"])}
        assert {run.name for run in clusterings} == {f"{domain}-instance-source_only-s0"}
        before = runs


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_only_upper_bounds_read_labels_of_the_target(declared, exchange):
    read = set()
    for number in range(1, ROUNDS + 1):
        for branch in ("semantic", "instance"):
            run = declared["city", exchange, number][branch]
            labelled = not run.spec.target.endswith(":unlabelled")
            assert run.spec.monitor is None
            true = run.spec.painted == "true" if branch == "semantic" else run.spec.truth_share > 0
            assert labelled == true
            read |= {branch} if labelled else set()
    assert read == {"true masks": {"instance"}, "true instances": {"semantic"}}.get(exchange, set())
    assert EXCHANGES[exchange].reads_labels == bool(read)


def test_all_exchanges_train_equally_long_on_the_same_source(declared):
    for branch in ("semantic", "instance"):
        runs = [found[branch] for (_, name, _), found in declared.items() if name != START]
        assert {run.spec.iterations for run in runs} == {4}
        for domain in DOMAINS:
            assert len({(run.spec.source, run.spec.batch_size) for run in runs if run.domain == domain}) == 1


def test_exchanges_that_have_said_the_same_share_their_runs(declared):
    names = ("both", "instances to masks", "true masks")
    assert len({declared["city", name, 1]["semantic"].key for name in names}) == 1
    assert len({declared["city", name, 2]["semantic"].key for name in names}) == 3
    for number in range(1, ROUNDS + 1):
        alone, masks, instances = (
            declared["city", name, number] for name in ("none", "masks to instances", "instances to masks")
        )
        assert alone["semantic"] is masks["semantic"] and alone["instance"] is instances["instance"]
        assert alone["instance"] is not masks["instance"]


def test_other_seeds_and_profiles_without_the_section_have_none(tmp_path):
    assert not any(tag.experiment == EXPERIMENT and tag.run.endswith("-s1") for tag in study().tags)
    for name, wanted in (("cpu", True), ("smoke", True), ("gpu", False), ("paper", True)):
        settings = read_profile(PROFILES / f"{name}.yaml").refinement
        assert isinstance(settings, Refinement) == wanted
    file = tmp_path / "wrong.yaml"
    file.write_text("extends: smoke\nrefinement: {rounds: 0}\n")
    with pytest.raises(ProfileError, match=r"wrong\.yaml: refinement\.rounds: expected >= 1"):
        read_profile(file)


def test_the_share_of_false_objects():
    counts = np.zeros((2, len(CITYSCAPES.things), 3), np.int64)
    counts[0, 0], counts[0, 1] = (3, 1, 9), (0, 2, 0)
    found = false_share(counts)
    assert found[0] == pytest.approx(3 / 6) and np.isnan(found[1])
