"""The performance comparison on tiny inputs: it agrees, it measures, and it says what does not agree."""

import time
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from panolib.bench import cases as bench_cases
from panolib.bench import operations as bench
from panolib.bench import peers
from panolib.bench import step as bench_step
from panolib.bench.instance_step import instance_step_rows
from panolib.bench.references import loop_average_precision, loop_panoptic
from panolib.bench.specs import InstanceStepSpec, PerformanceSpec
from panolib.config import from_mapping
from panolib.data.render import city
from panolib.inference.exports import write_coco_panoptic, write_coco_panoptic_json
from panolib.lab import measuring
from panolib.labels import CITYSCAPES
from panolib.metrics.panoptic import PanopticStats
from panolib.profiles import load_yaml, project_root

PROFILE = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")
TINY = replace(
    from_mapping(
        PerformanceSpec,
        {**PROFILE["performance"], "label_set": "cityscapes", "validation": ""},
        where="smoke.yaml",
    ),
    height=48, width=96, panoptic_height=64, panoptic_width=100, n_instances=(3,), embedding_dims=(4,),
    repeats=1, n_rendered=1,
)  # fmt: skip
TINY = replace(TINY, step=replace(TINY.step, height=32, width=64, n_views=2))


@pytest.fixture(scope="module", autouse=True)
def _brief():
    """Nothing here says how fast something is: quick functions are called for a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "BRIEF", 0.02)
        yield


@pytest.fixture(scope="module")
def rows():
    return bench.operation_rows(TINY)


def test_every_operation_agrees_with_its_reference_and_is_measured(rows):
    names = [row["operation"] for row in rows]
    n_peers = sum(version != peers.MISSING for version in peers.peer_versions().values())
    assert len(set(names)) == len(names) == 10 + n_peers
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference_ms"] / row["ours_ms"])
        assert row["ours_ms"] > 0 and row["threads"] == 1 and row["input_mib"] > 0
        assert row["agrees"] or "shift" in row["operation"]  # tiny maps are nearly all border


def test_quick_operations_are_called_often_and_slow_ones_once_a_round():
    calls, slow_calls = [], []
    ours = {"ours": bench_cases.Ours(lambda: calls.append(1), lambda a, b: ("identical", True))}

    def reference():
        slow_calls.append(1)
        time.sleep(1.5 * bench.BRIEF)

    (row,) = bench.measure(bench_cases.Operation("1", "loop", reference, ours, 0), repeats=2)
    assert row["reference_repeats"] == 2 and len(slow_calls) == 1 + 2 and len(calls) > 1000
    assert row["reference_ms"] >= 1e3 * bench.BRIEF > 100 * row["ours_ms"]


def test_peak_memory_counts_what_is_held_at_once():
    def one_after_the_other():
        for _ in range(4):
            np.ones(2**21)  # 16 MiB

    measuring.with_peak_memory(one_after_the_other)
    _, mib = measuring.with_peak_memory(one_after_the_other)
    _, both = measuring.with_peak_memory(lambda: [np.ones(2**21) for _ in range(4)])
    assert np.isnan(mib) or (12 < mib < 24 and 56 < both < 72)


def test_pairs_are_timed_on_the_threads_of_the_caller():
    seen = []
    ours = {"ours": bench_cases.Ours(lambda: seen.append(torch.get_num_threads()), lambda a, b: ("", True))}
    before = torch.get_num_threads()
    with measuring.set_torch_threads(before + 1):
        bench.measure(bench_cases.Operation("1", "loop", lambda: None, ours, 0), repeats=1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_a_wrong_result_is_said():
    wrong = bench_cases.Ours(lambda: 1.0, lambda a, b: bench_cases.close(a, b, 0.1))
    (row,) = bench.measure(bench_cases.Operation("1", "loop", lambda: 2.0, {"sum": wrong}, 0), repeats=1)
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


def test_targets_hold_for_their_sizes_and_for_one_thread(rows):
    targets = {row["operation"]: row["target_ratio"] for row in rows}
    assert targets["PQ of one image"] == 12 and targets["stability filter"] == 1  # of 3 clusters, not of 20
    assert bench_cases.TARGETS["stability filter", 20] == 24
    ours = {"PQ of one image": bench_cases.Ours(lambda: None, lambda a, b: ("", True))}
    with measuring.set_torch_threads(2):
        (row,) = bench.measure(bench_cases.Operation("1", "loop", lambda: None, ours, 0), repeats=1)
    assert np.isnan(row["target_ratio"])


def test_a_ratio_that_fell_is_said(rows):
    def record(ratio):
        found = [row | {"ratio": ratio} for row in rows]
        metrics = {"operations": found, "step": {"row": found[0] | {"operation": "step"}}, "processor": "x"}
        return SimpleNamespace(metrics=metrics, info={"versions": {"python": "3"}})

    fast, slow = record(10.0), record(4.0)
    assert len(bench.slower_than(slow, fast)) == len(rows) + 1
    assert bench.slower_than(fast, slow) == bench.slower_than(fast, None) == []
    assert set(bench.pairs(fast)["machine"]) == {"x"} and set(bench.pairs(fast)["versions"]) == {"python 3"}


def test_starting_is_timed_in_fresh_processes(monkeypatch):
    quick = {name: bench.STARTS[name] for name in ("import torch", "python -m panolib --help")}
    monkeypatch.setattr(bench, "STARTS", {"sleep": ["-c", "import time; time.sleep(0.2)"], **quick})
    found = {row["command"]: row["seconds"] for row in bench.start_rows(1)}
    assert found.keys() == {"sleep", "import torch", "python -m panolib --help"}
    assert found["sleep"] > 0.2 and min(found.values()) > 0


def test_floors_are_below_what_is_measured(rows):
    assert all(0 < row["floor_ms"] < row["ours_ms"] for row in rows)


def test_the_step_is_timed_against_size():
    found = bench_step.step_scaling_rows(TINY)
    assert {row["axis"] for row in found} == {"pixels of an image", "images in a batch"}
    assert all(row["ours_ms"] > 0 and row["repeats"] == TINY.scaling_step.iterations - 1 for row in found)


def test_a_step_takes_longer_than_the_passes_of_its_student():
    found = bench_step.step_overhead(TINY)
    assert found["steps"] == 3 * TINY.repeats
    assert found["ratio"] == found["step_ms"] / found["passes_ms"] > 1


def test_panoptic_quality_of_files_is_that_of_the_maps(tmp_path):
    paths, stats = [tmp_path / "truth.json", tmp_path / "prediction.json"], PanopticStats(CITYSCAPES)
    pairs = [bench_cases.panoptic_pair(32, 60, 5, seed) for seed in range(2)]
    for path, images in zip(paths, zip(*pairs)):
        entries = [write_coco_panoptic(path.with_suffix(""), str(i), *each, CITYSCAPES)
                   for i, each in enumerate(images)]  # fmt: skip
        write_coco_panoptic_json(path, entries[::-1] if path == paths[1] else entries, CITYSCAPES)
    for truth, prediction in pairs:
        stats.update(*truth, *prediction)
    np.testing.assert_array_equal(peers.panoptic_quality_of_files(*paths), stats.result().pq)


@pytest.mark.parametrize("package", peers.PEERS)
def test_packages_of_others_agree(package, tmp_path):
    if peers.peer_versions()[package] == peers.MISSING:
        pytest.skip(f"{package} is not installed")
    make = {"hotcoco": lambda: peers.panoptic_files(tmp_path, 2, 128, 256, 0),
            "torch_em": lambda: peers.contrastive(2, 24, 48, 3, 0)}[package]  # fmt: skip
    operation = make()
    (row,) = bench.measure(operation, repeats=1)
    assert row["agrees"], row["agreement"]
    assert max(np.max(np.asarray(part)) for part in operation.reference()) > 0  # not of two empty results


def test_without_the_packages_their_rows_are_left_out(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(peers.metadata, "version", missing)
    assert set(peers.peer_versions().values()) == {peers.MISSING}
    assert list(peers.peer_operations(TINY, tmp_path)) == []


def test_losses_before_training_are_measured_if_asked_for():
    def names(spec):
        return [name for operation in bench_cases.table_operations(spec) for name in operation.ours]

    early = "pull, push, object Dice, unlabelled push, before training"
    assert set(names(replace(TINY, before_training=True))) - set(names(TINY)) == {early}
    case = bench_cases.loss(1, 24, 48, 3, 0, unlabelled=True, told_apart=False)
    (row,) = bench.measure(case, repeats=1)
    assert row["operation"] == early and row["agrees"]


def test_the_embedding_step_says_what_clustering_and_loss_take():
    network = {"encoder": {"name": "test_efficientnet", "weights": None},
               "embedding_dim": 4, "output_stride": 2, "decoder_channels": [8, 8, 8, 8],
               "coordinates": "embedding",
               "coordinate_length": 4.0}  # fmt: skip
    spec = from_mapping(
        InstanceStepSpec,
        {"label_set": "cityscapes", "network": network, "height": 32, "width": 64, "batch_size": 4,
         "source_share": 0.25, "min_stability": 0.1, "bandwidth": 0.5, "start": 2, "iterations": 3,
         "source_style": "synthia", "target_style": "cityscapes"},
        where="test",
    )  # fmt: skip
    rows = {row["stage"]: row for row in instance_step_rows(spec, repeats=2, seed=0)}
    assert set(rows) == {"step", "clustering", "loss"} and rows["step"]["share"] == 1
    assert all(0 < row["share"] <= 1 and row["ms"] > 0 for row in rows.values())


def test_rendering_is_timed_by_processes():
    found = bench.rendering_rows(replace(TINY, render_processes=(1, 2)))
    assert [(row["style"], row["processes"]) for row in found] == [
        (style, n) for style in city.STYLES for n in (1, 2)
    ]
    assert all(row["images_per_s"] > 0 for row in found)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_step_row_compares_equal_losses_and_says_where_time_goes(bf16):
    found = bench_step.step_rows(TINY, bf16=bf16)
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
