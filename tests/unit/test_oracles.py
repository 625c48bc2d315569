"""What a share of a gap is worth: iterations of made-up runs, and who is above the oracle."""

from __future__ import annotations

import types

import pandas as pd
import pytest

from panolib.report import oracles, tables


def run(kind="semantic_baseline", iterations=None, **parents):
    spec = types.SimpleNamespace() if iterations is None else types.SimpleNamespace(iterations=iterations)
    return types.SimpleNamespace(kind=kind, spec=spec, parents=tuple(parents.items()))


def trained(iterations, further):
    """Source-only, its batch-norm adaptation (no iterations), and what goes on from there."""
    return run("self_training", further, start=run("semantic_batch_norm", start=run(iterations=iterations)))


def ladder(oracle, further, seeds=(0, 1), before=100):
    runs = {"source_only": run(iterations=before), "self_trained": trained(before, further),
            "oracle": run(iterations=oracle)}  # fmt: skip
    return {(rung, seed): types.SimpleNamespace(run=found) for rung, found in runs.items() for seed in seeds}


def rows(scores, setting=""):
    """Tidy rows of {method: one value a seed}."""
    return pd.DataFrame(
        [(method, setting, "mIoU_19", value, "%", "", seed)
         for method, values in scores.items() for seed, value in enumerate(values)],
        columns=list(tables.COLUMNS),
    )  # fmt: skip


BELOW = {"source only": (20, 22), "self-trained": (30, 31), "oracle": (40, 41)}


def test_iterations_follow_the_networks_that_a_run_starts_from():
    assert oracles.iterations(run(iterations=7)) == (7,)
    assert oracles.iterations(run("transfer", start=run(iterations=7))) == (7,)
    other = run(iterations=1000)  # gives masks, not weights
    instance = run("instance_self_training", 5, start=run(iterations=30), semantic=other, clustering=other)
    assert oracles.iterations(instance) == (35,)
    both = run("panoptic", semantic=trained(100, 60), instance=instance, clustering=other)
    assert oracles.iterations(both) == (160, 35)


@pytest.mark.parametrize(("oracle", "less"), [(100, True), (159, True), (160, False), (500, False)])
def test_an_oracle_that_trained_less_is_said_to_be_no_limit(oracle, less):
    budget, above = oracles.lines({"": ladder(oracle, 60)}, rows(BELOW), ["mIoU_19"])
    assert budget.startswith(f"iterations: oracle {oracle}, others up to 160")
    assert budget.endswith("upper estimates") == less
    assert above == "mIoU_19 above the oracle's (share over 100 %): none"


def test_one_of_two_branches_that_trained_less_is_enough():
    def pair(semantic, instance):
        return types.SimpleNamespace(run=run("panoptic", semantic=semantic, instance=instance))

    found = {("self_trained", 0): pair(trained(100, 60), trained(10, 5)),
             ("oracle", 0): pair(run(iterations=160), run(iterations=10))}  # fmt: skip
    budget = oracles.lines({"": found}, rows(BELOW), [])[0]
    assert budget.startswith(
        "iterations, semantic: oracle 160, others up to 160; iterations, instance: oracle 10, others up to 15"
    )
    assert budget.endswith("upper estimates")


def test_methods_above_the_oracle_are_named_with_their_seeds():
    scores = BELOW | {"self-trained": (30, 45), "control": (41, 42)}
    line = oracles.lines({"": ladder(100, 60)}, rows(scores), ["mIoU_19"])[1]
    assert line.endswith(
        ": self-trained in 1 of 2 seeds (mean 37.5, oracle 40.5); "
        "control in 2 of 2 seeds (mean 41.5, oracle 40.5)"
    )


def test_variants_are_named_and_equal_budgets_are_said_once():
    both = pd.concat([rows(BELOW, "A"), rows(BELOW | {"oracle": (25, 26)}, "B")])
    found = oracles.lines({"A": ladder(100, 60), "B": ladder(100, 60)}, both, ["mIoU_19"])
    assert len(found) == 2 and found[0].startswith("iterations: oracle 100")
    assert found[1].endswith("100 %): B, self-trained in 2 of 2 seeds (mean 30.5, oracle 25.5)")
    found = oracles.lines({"A": ladder(100, 60), "B": ladder(160, 60)}, both, ["mIoU_19"])
    assert [line.split(":")[0] for line in found[:2]] == ["A", "B"]
    assert found[0].endswith("upper estimates") and not found[1].endswith("upper estimates")


def test_a_missing_seed_counts_for_nobody():
    some = rows({"source only": (20, 22), "self-trained": (50,), "oracle": (40, 41)})
    line = oracles.lines({"": ladder(100, 60)}, some, ["mIoU_19"])[1]
    assert line.endswith("self-trained in 1 of 1 seeds (mean 50.0, oracle 40.5)")
