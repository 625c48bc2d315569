"""A key decides a result: what each kind of run computes is stored beside its key, and compared.

Whoever changes what a kind computes raises its version, in VERSIONS of the module that the message names,
and stores the results anew with ``python tests/unit/test_versions.py``. That refuses what changed under an
unchanged key, unless ``--anyway`` is given.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import digest, machine_class, results, summary, tiny_runs, tiny_study, train

from panolib.bench import kinds as bench_kinds
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.related.detr import kinds as detr_kinds
from panolib.related.mean_teacher import kinds as peer_kinds
from panolib.related.realtime import kinds as realtime_kinds
from panolib.study import active, cleanup, kinds, objectness, shared
from panolib.training.batch_norm import adapt_batch_norm
from panolib.training.setup import build_semantic

STORED = Path(__file__).with_name("stored_results.json")
COMMAND = "python tests/unit/test_versions.py"
MODULES = (kinds, cleanup, shared, objectness, active, bench_kinds, realtime_kinds, detr_kinds)
KINDS = tuple(kind for module in MODULES for kind in module.VERSIONS)
OF_AN_EXTRA = tuple(peer_kinds.VERSIONS)  # what they compute is for a package to say that is not everywhere
MEASURING = ("performance", "clustering_cost", "latency", "detr_cost")  # times and memory; they take longest
# Largest change of a projection, as a share of the norm. Other instruction sets (AVX2, AVX-512, AMX) change
# weights and losses by up to 5e-6; a feedback is a small difference of losses, a score counts pixels.
TOLERANCES = {"weights": 1e-4, "curve": 1e-4, "metric": 2e-2, "picture": 2e-2, "curve feedback": 1e-2}


def computed(store: Store, run: Run, *, anew: bool = False) -> dict:
    """What is stored of one run."""
    vectors = results(store, train(store, run, anew=anew))
    return {
        "key": run.key,
        "version": run.version,
        "sha256": digest(vectors),
        "numbers": {name: list(values) for name, values in summary(vectors).items()},
    }


def compute_all(root: Path) -> tuple[Store, dict[str, Run], dict[str, dict]]:
    """(store, runs, what is stored) by kind, trained one after the other in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaded = tiny_study(root)
        loaded.prepare_data(progress=False, domains=("city", "nuclei"))
        runs = tiny_runs(loaded)
        return loaded.store, runs, {kind: computed(loaded.store, run) for kind, run in runs.items()}
    finally:
        torch.set_num_threads(before)


def differences(stored: dict, now: dict) -> list[str]:
    """Vectors that differ beyond what rounding does, in words."""
    found = []
    for name in sorted(stored["numbers"].keys() | now["numbers"].keys()):
        before, after = (numbers["numbers"].get(name) for numbers in (stored, now))
        if before is None or after is None or before[:2] != after[:2]:
            found.append(f"{name}: lengths {before and before[:2]} and {after and after[:2]}")
            continue
        tolerance = TOLERANCES.get(name) or TOLERANCES[name.split()[0]]
        change = np.abs(np.subtract(before, after)).max() / max(before[2], 1e-12)
        if not change <= tolerance:
            found.append(f"{name}: changed by {change:.1e} of its size, allowed are {tolerance:.0e}")
    return found


def verdict(kind: str, stored: dict | None, now: dict, *, same_machine: bool) -> str | None:
    """What is wrong with the results of a kind, and what to do; None if nothing is."""
    if stored is None or stored["key"] != now["key"]:
        return f"the tiny run of {kind} has another key (version, settings or data): store with {COMMAND}"
    found = differences(stored, now)
    if not found and same_machine and stored["sha256"] != now["sha256"]:
        found = ["bits, on the kind of machine that they were stored on"]
    if not found:
        return None
    module = next(module for module in MODULES if kind in module.VERSIONS)
    return (
        f"results of kind {kind} changed under one key ({'; '.join(found[:5])}): raise its version in "
        f"VERSIONS of {Path(module.__file__).relative_to(Path(kinds.__file__).parents[2])} and store anew "
        f"with {COMMAND}"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return compute_all(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def trained_again(trained, tmp_path_factory):
    """{kind: what is stored}, each after other runs and whatever else drew random numbers before."""
    store, runs, _ = trained
    root = tmp_path_factory.mktemp("again")
    shutil.copytree(store.root, root / "results")
    again = Store(root / "results", store.kinds)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for number, (kind, run) in enumerate(reversed(runs.items())):
        if kind in MEASURING:
            continue
        torch.manual_seed(1000 + number)
        np.random.seed(number)  # noqa: NPY002
        random.seed(number)
        found[kind] = computed(again, run, anew=True)
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_a_key_stay(trained, kind):
    stored = json.loads(STORED.read_text())
    same_machine = stored["machine"] == machine_class()
    problem = verdict(kind, stored["kinds"].get(kind), trained[2][kind], same_machine=same_machine)
    assert problem is None, problem


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(MEASURING)))
def test_a_run_alone_equals_one_after_others_in_the_same_process(trained, trained_again, kind):
    assert trained_again[kind]["numbers"] == trained[2][kind]["numbers"]
    assert trained_again[kind]["sha256"] == trained[2][kind]["sha256"]


def test_batch_norm_adaptation_draws_nothing(trained):
    """Dropout of V3+ would put its noise into the statistics."""
    store, runs, _ = trained
    run, states = runs["semantic_batch_norm"], []
    start = dict(run.parents)["start"]
    data = [store.kinds[run.kind].args[0]["city"].open(name) for name in (run.spec.source, run.spec.target)]
    for seed in range(2):
        model = build_semantic(start.spec.network, CITYSCAPES.n_classes)
        model.load_state_dict(store.final_state(start)["model"])
        assert any(isinstance(layer, torch.nn.Dropout) for layer in model.modules())
        torch.manual_seed(seed)
        states.append(adapt_batch_norm(run.spec, model, *data).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_every_kind_has_a_version_and_a_tiny_run(trained):
    store, runs, _ = trained
    assert set(KINDS) == set(runs) == set(store.kinds) - set(OF_AN_EXTRA)
    assert {run.kind for run in runs.values()} == set(KINDS)


def test_tiny_runs_have_something_to_compute(trained):
    numbers = {kind: found["numbers"] for kind, found in trained[2].items()}
    for kind, name in (
        ("self_training", "curve coverage"),
        ("self_training", "curve target_loss"),
        ("instance_self_training", "curve pseudo_instances"),
        ("instance_self_training", "curve consistency"),
        ("adversarial_adaptation", "curve target_loss"),
        ("meta_labels", "curve feedback"),
        ("threat", "metric variants"),
        ("panoptic", "metric threat"),
        ("classical", "metric pq"),
        ("performance", "metric mean_shift"),
    ):
        assert numbers[kind][name][2] > 0, (kind, name)


def small_change(values: np.ndarray) -> np.ndarray:
    return values * (1 + 1e-5 * np.sin(np.arange(len(values))))


@pytest.mark.parametrize(
    ("name", "change", "seen"),
    [
        ("weights", small_change, False),
        ("curve loss", small_change, False),
        ("weights", lambda values: 1.01 * values, True),
        ("curve loss", lambda values: 1.01 * values, True),
        ("weights", lambda values: np.flip(values), True),
        ("weights", lambda values: np.where(np.arange(len(values)) < 9, 1.1 * values, values), True),
        ("curve loss", lambda values: np.append(values, 1.0), True),
        ("curve loss", lambda values: np.where(np.arange(len(values)) == 2, np.nan, values), True),
        ("metric iou", lambda values: 1.001 * values, False),
        ("metric iou", lambda values: 1.1 * values, True),
    ],
)
def test_changes_are_seen_and_rounding_is_not(name, change, seen):
    values = np.random.default_rng(0).normal(1.0, 1.0, 100)
    before, after = (
        {"key": "a", "sha256": digest(vectors), "numbers": summary(vectors)}
        for vectors in ({name: values}, {name: change(values)})
    )
    problem = verdict("panoptic", before, after, same_machine=False)
    assert (problem is not None) == seen
    if seen:
        assert f"changed under one key ({name}: " in problem
    exact = verdict("panoptic", before, after, same_machine=True)
    assert "raise its version in VERSIONS of panolib/study/kinds.py and store anew with python tests" in exact
    assert "another key" in verdict("panoptic", before, after | {"key": "b"}, same_machine=True)
    assert verdict("panoptic", before, before, same_machine=True) is None


# ---- versions and shared keys


def test_a_raised_version_changes_the_keys_of_its_kind_and_of_what_starts_from_it(trained, monkeypatch):
    root = trained[0].root.parents[1]
    before = load(root / "tiny.yaml", root=root).runs
    monkeypatch.setitem(detr_kinds.VERSIONS, "detr", 2)
    after = load(root / "tiny.yaml", root=root).runs
    changed = {name for name in after if after[name].key != before[name].key}
    assert {after[name].kind for name in changed} == {"detr", "detr_scores", "detr_cost"}
    assert all(run.version == (2 if run.kind == "detr" else 1) for run in after.values())


def main(arguments: list[str]) -> int:
    """Store the results of this machine, unless they changed under an unchanged key."""
    if arguments not in ([], ["--anyway"]):
        print(f"usage: {COMMAND} [--anyway]", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        _, _, now = compute_all(Path(folder))
    stored = json.loads(STORED.read_text()) if STORED.exists() else {"machine": None, "kinds": {}}
    same_machine = stored["machine"] == machine_class()
    problems = [
        problem
        for kind, found in stored["kinds"].items()
        if kind in now and found["key"] == now[kind]["key"]
        if (problem := verdict(kind, found, now[kind], same_machine=same_machine))
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems and not arguments:
        return 1
    text = json.dumps({"machine": machine_class(), "kinds": now}, indent=1)
    STORED.write_text(re.sub(r"\n {5,}(?=[^\s\"])|\n {4}(?=\])", "", text) + "\n")  # a vector in one line
    print(f"stored: {STORED}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
