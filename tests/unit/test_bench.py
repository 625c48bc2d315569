"""The performance comparison on tiny inputs: it agrees, it measures, and it says what does not agree."""

import itertools
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from panolib.bench import (
    cases as bench_cases,
)
from panolib.bench import (
    operations as bench,
)
from panolib.bench import (
    step as bench_step,
)
from panolib.bench import (
    tables as bench_tables,
)
from panolib.bench.references import loop_average_precision, loop_panoptic
from panolib.config import from_mapping, load_yaml, project_root
from panolib.data.render import city
from panolib.lab import measuring
from panolib.labels import CITYSCAPES
from panolib.report import claims

PROFILE = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")
TINY = replace(
    from_mapping(
        bench.PerformanceSpec,
        {**PROFILE["performance"], "label_set": "cityscapes", "validation": ""},
        where="smoke.yaml",
    ),
    height=48, width=96, panoptic_height=64, panoptic_width=100, n_instances=(3,), embedding_dims=(4,),
    repeats=1, n_rendered=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    with mock.patch.object(bench, "MANY", 1):
        return bench.operation_rows(TINY)


def test_every_operation_agrees_with_its_reference_and_is_measured(rows):
    names = [row["operation"] for row in rows]
    assert len(set(names)) == len(names) == 10
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference_ms"] / row["ours_ms"])
        assert row["ours_ms"] > 0 and row["threads"] == 1 and row["input_mib"] > 0
        assert row["agrees"] or "shift" in row["operation"]  # tiny maps are nearly all border


def test_quick_operations_are_repeated_and_slow_ones_are_not():
    ours = {"ours": bench_cases.Ours(lambda: 1.0, 1, lambda a, b: ("identical", True))}
    (quick,) = bench.measure(bench_cases.Operation("1", "loop", lambda: 1.0, ours, 0.0), repeats=2)
    (slow,) = bench.measure(bench_cases.Operation("1", "loop", lambda: time.sleep(0.6), ours, 0.0), repeats=2)
    assert (quick["repeats"], quick["reference_repeats"]) == (bench.MANY**2, bench.MANY**2)
    assert (slow["repeats"], slow["reference_repeats"]) == (2 * bench.MANY, 2)


def test_peak_memory_counts_what_is_held_at_once():
    def one_after_the_other():
        for _ in range(4):
            np.ones(2**21)  # 16 MiB

    measuring.with_peak_memory(one_after_the_other)
    _, mib = measuring.with_peak_memory(one_after_the_other)
    _, both = measuring.with_peak_memory(lambda: [np.ones(2**21) for _ in range(4)])
    assert np.isnan(mib) or (12 < mib < 24 and 56 < both < 72)


def test_threads_are_as_before(rows):
    before = torch.get_num_threads()
    with measuring.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_wrong_result_is_said():
    wrong = bench_cases.Ours(lambda: 1.0, 1, lambda a, b: bench_cases.close(a, b, 0.1))
    (row,) = bench.measure(bench_cases.Operation("1", "loop", lambda: 2.0, {"sum": wrong}, 0.0), repeats=1)
    assert (row["agreement"], row["agrees"]) == ("within 1e+00", False)


def test_quality_below_the_reference_is_said():
    truth = torch.tensor([1, 1, 1, 2, 2, 2])
    assert bench_cases._as_good(truth, truth, truth)[1]
    assert not bench_cases._as_good(torch.ones_like(truth), truth, truth)[1]
    assert not bench_cases._same_partition(torch.ones_like(truth), truth)[1]
    quality = bench_cases.partition_quality(torch.tensor([1, 1, 1, 2, 3, 4]), truth)
    assert quality["recall"] == 0.5 and quality["RQ"] == pytest.approx(2 / 6)


def test_references_by_hand():
    truth = np.zeros((2, 4), int)
    truth[:, :2] = 7
    prediction = np.zeros((2, 4), int)
    prediction[:, :3] = 9
    segment = {"category_id": 13, "isthing": True, "iscrowd": 0, "area": 4, "confidence": 0.5}
    pair = (truth, [segment | {"id": 7}]), (prediction, [segment | {"id": 9, "area": 6}])
    assert loop_average_precision(*pair).tolist() == [[13, 0.5, 4 / 6, 2 / 6]]
    assert loop_panoptic(*pair)[13].tolist() == [1, 1, 0, 0]  # to PQ, pixels on void do not count


def test_scaling_covers_every_axis():
    found = bench.scaling_rows(TINY)
    assert {row["axis"] for row in found} == {"pixels", "instances", "embedding dimensions"}
    assert all(row["ours_ms"] > 0 for row in found)


def test_verdicts_and_warnings_follow_the_numbers(rows):
    def record(rows):
        step = {"row": dict(rows[0], operation="step")}
        metrics = {"operations": rows, "step": step, "processor": "x"}
        return SimpleNamespace(metrics=metrics, info={"versions": {"python": "3"}})

    good = {"ratio": 10.0, "target_ratio": 5.0, "ours_mib": 1.0, "input_mib": 1.0, "agrees": True}
    reached = [row | good for row in rows]
    slower = [dict(row, ratio=4.0, ours_mib=9.0) for row in reached]
    fast, slow = (bench_tables.operation_rows(record(found)) for found in (reached, slower))
    assert all(claim.holds for claim in claims.ratios_reached(fast))
    assert not any(claim.holds for claim in claims.ratios_reached(slow))
    assert claims.small_memory(fast, limit=3).holds and not claims.small_memory(slow, limit=3).holds
    assert len(bench_tables.slower_than(record(slower), record(reached))) == len(rows) + 1
    assert bench_tables.slower_than(record(reached), record(slower)) == []
    assert bench_tables.slower_than(record(reached), None) == []
    assert len(bench_tables.shown(fast)) == len(rows) + 1
    assert bench_tables.missed(fast).empty
    table = bench_tables.missed(slow)
    assert len(table) == len(rows) + 1
    # the sketch's reference took half as long as this one, and the sketch 5.2 ms where ours takes 13
    times = {"sketch_ms": 26.0, "reference_ms": 52.0, "ours_ms": 13.0, "ratio": 4.0}
    table = bench_tables.missed(bench_tables.operation_rows(record([rows[0] | good | times])))
    assert table.iloc[0, 2:4].tolist() == ["0.5", "2.5"]


def test_wall_time_is_split_where_a_record_says_when_training_ended():
    names = itertools.count()

    def record(kind, wall_s, training_s, clustering_s=0.0):
        curves = pd.DataFrame({"iteration": [0, 1], "clustering_s": [clustering_s, clustering_s]})
        info = {"wall_s": wall_s} | ({} if training_s is None else {"training_s": training_s})
        run = SimpleNamespace(name=f"run{next(names)}", kind=kind)
        return SimpleNamespace(run=run, info=info, curves=curves)

    first = record("a_b", 120, 90, 6)
    table = bench_tables.wall_rows([first, record("a_b", 60, None), record("threat", 60, 0.0), first])
    assert table.loc["a b"].tolist() == [2, 3.0, 2.0, 0.2, 1, 1.5, 0.5]
    assert table.loc["threat"].tolist() == [1, 1.0, 1.0, 0.0, 1, 0.0, 1.0]


def test_starting_is_timed_in_fresh_processes():
    found = {row["command"]: row["seconds"] for row in bench.start_rows(1)}
    assert {"import torch", "import panolib.study.kinds", "python -m panolib --help"} < set(found)
    assert all(seconds > 0 for seconds in found.values())


def test_floors_are_below_what_is_measured(rows):
    assert all(0 < row["floor_ms"] < row["ours_ms"] for row in rows)


def test_the_step_is_timed_against_size():
    found = bench_step.step_scaling_rows(TINY, 19)
    assert {row["axis"] for row in found} == {"pixels of an image", "images in a batch"}
    assert all(row["ours_ms"] > 0 and row["repeats"] == TINY.scaling_step.iterations - 1 for row in found)


def test_rendering_is_timed_by_processes():
    found = bench.rendering_rows(replace(TINY, render_processes=(1, 2)))
    assert [(row["style"], row["processes"]) for row in found] == [
        (style, n) for style in city.STYLES for n in (1, 2)
    ]
    assert all(row["images_per_s"] > 0 for row in found)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_step_row_compares_equal_losses_and_says_where_time_goes(bf16):
    found = bench_step.step_rows(TINY, 19, bf16=bf16)
    assert ("bf16" in found["row"]["operation"]) == bf16
    assert found["row"]["agrees"], found["row"]["agreement"]
    assert found["row"]["ratio"] == pytest.approx(found["row"]["reference_ms"] / found["row"]["ours_ms"])
    assert sum(found["stages"].values()) == pytest.approx(100) and min(found["stages"].values()) >= 0
    assert found["images_per_s"] > 0


def test_clusterings_of_perfect_embeddings_find_every_thing():
    sample = city.render("synthia", seed=0, index=0, height=64, width=128)
    field = torch.from_numpy(np.stack([sample.instance, 0 * sample.instance]).astype(np.float32))[None]

    class Perfect(torch.nn.Module):
        def forward(self, images):
            return field

    options = {"algorithm": "mean_shift_plus", "bandwidth": 0.1, "delta_dist": 0.5, "min_size": 1}
    (row,) = bench.real_embedding_rows(Perfect(), [sample], CITYSCAPES, {"ours": options})
    assert (row["pooled threat score"], row["fp"], row["fn"]) == (1.0, 0, 0)
    assert row["tp"] > 0 and row["ms_per_image"] > 0
