"""Runs are trained once, recorded whole, and go on after a kill as if nothing had happened."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import cv2
import filelock
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from toy_kinds import (
    KINDS,
    ToySpec,
    get_all_in_child,
    get_in_child,
    toy_run,
    train_in_much_memory,
    trained,
)

from panolib.errors import UserError
from panolib.lab.engine import get_all, missing_runs
from panolib.lab.files import (
    CorruptCheckpoint,
    load_checkpoint,
    nan_to_null,
    null_to_nan,
    save_checkpoint,
    write,
)
from panolib.lab.job import small_file
from panolib.lab.run import MissingRun, Run, RunsFailed
from panolib.lab.store import Store, retrain_started, retraining


@pytest.fixture(autouse=True)
def one_thread():
    """Numbers are compared bit for bit, with child processes of one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processes():
    """Child processes forked from a server that has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy_kinds"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the server finds toy_kinds
        forkserver.ensure_running()
    return context


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "smoke", KINDS, checkpoint_s=0.0)


def files_of(store: Store, run: Run) -> dict:
    """All that a training decides: bytes of metrics, curves and samples, and the weights."""
    folder = store.folder(run)
    files = {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in ("run.json", "checkpoint.pt")
    }
    return files | {name: value.numpy().tobytes() for name, value in store.final_state(run).items()}


def leftovers(store: Store) -> list[str]:
    """Files beside the records, without the empty lock files."""
    return [
        file.name
        for file in (store.root / "work").rglob("*")
        if file.name != ".gitignore" and file.suffix != ".lock"
    ] + [file.name for file in (store.root / "runs").rglob("*.tmp")]


def wait_for(condition, timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


# ---- keys


def test_anew_trains_a_recorded_run_again(store):
    run = toy_run("again")
    first = store.get(run)
    assert store.get(run).info["recorded_at"] == first.info["recorded_at"]
    again = store.get(run, anew=True)
    assert again.recorded_at > first.recorded_at and again.metrics == first.metrics
    assert store.load(run).info["recorded_at"] == again.info["recorded_at"]


def test_key_depends_on_all_that_decides_the_result_and_not_on_the_name():
    parent = toy_run("parent", seed=1)
    run = Run("a", "toy", ToySpec(), (("start", parent),), ("data-1",))
    others = [
        dataclasses.replace(run, kind="other"),
        dataclasses.replace(run, version=2),
        dataclasses.replace(run, spec=ToySpec(learning_rate=0.2)),
        dataclasses.replace(run, parents=(("start", toy_run("parent", seed=2)),)),
        dataclasses.replace(run, parents=(("end", parent),)),
        dataclasses.replace(run, parents=()),
        dataclasses.replace(run, data=("data-2",)),
        dataclasses.replace(run, data=()),
    ]
    assert len({run.key, *(other.key for other in others)}) == 1 + len(others)
    renamed = dataclasses.replace(run, name="b", parents=(("start", dataclasses.replace(parent, name="c")),))
    assert renamed.key == run.key


def test_key_is_the_same_in_every_process_and_release():
    assert toy_run().key == "4841059c750362d1a1effb7738e80a6d7c5538d66d2136f88fbf930df04beb0c"


@pytest.mark.parametrize("name", ["City", "a/b", "..", "-a", "", "a b"])
def test_name_must_be_a_folder_name(name):
    with pytest.raises(ValueError, match="run name"):
        toy_run(name)


def test_roles_of_parents_are_unique():
    with pytest.raises(ValueError, match="every role once"):
        Run("a", "toy", ToySpec(), (("start", toy_run("b")), ("start", toy_run("c"))))


# ---- records


def test_record_says_what_was_trained(store):
    parent = toy_run("parent", n_iterations=3)
    run = dataclasses.replace(toy_run("child", parent=parent, seed=7, n_iterations=12), data=("city-1",))
    record = store.get(run)
    assert trained(store.root) == ["child", "parent"]  # the child asked for its parent's weights
    assert (
        record.info
        | {
            "name": "child",
            "kind": "toy",
            "version": 1,
            "key": run.key,
            "seed": 7,
            "parents": {"start": {"name": "parent", "key": parent.key}},
            "data": ["city-1"],
            "iterations": 12,
            "spec": dataclasses.asdict(run.spec),
        }
        == record.info
    )
    assert {"commit", "dirty", "device", "versions", "peak_memory_mb"} <= set(record.info)
    assert 0 < record.info["training_s"] <= record.info["wall_s"]  # which 09 and 14 read
    assert 0 < record.info["step_s"] <= record.info["training_s"] / 6  # half of the iterations
    assert record.info["wall_s"] > 0 and record.info["versions"]["torch"]
    assert abs(record.recorded_at - time.time()) < 60
    assert math.isnan(record.metrics["absent"]) and math.isnan(record.metrics["list"][1])
    assert '"absent": null' in (store.folder(run) / "metrics.json").read_text()
    assert list(record.curves["iteration"]) == [*range(10), 9, 10, 11]
    assert record.curves["score"].notna().sum() == 1
    assert record.samples["weight"].read_bytes()[1:4] == b"PNG"
    assert leftovers(store) == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system cannot reset a peak")
def test_a_run_does_not_report_the_memory_of_a_parent_trained_within_it(tmp_path):
    store = Store(tmp_path, {"toy": train_in_much_memory})
    parent = toy_run("large", n_iterations=2)
    child = store.get(toy_run("child", parent=parent, n_iterations=2))
    parent = store.get(parent)
    more = parent.info["peak_memory_mb"] - child.info["peak_memory_mb"]
    assert more > 150  # MiB of 300: what earlier tests leave comes and goes


def test_recorded_run_is_loaded_and_not_trained_again(store):
    first, second = store.get(toy_run()), store.get(toy_run())
    assert trained(store.root) == ["toy"]
    assert second.info == first.info and second.curves.equals(first.curves)


def test_training_says_which_committed_records_it_replaces(tmp_path, capsys):
    runs = [toy_run(f"run{i}", n_iterations=2, seed=i) for i in range(5)]
    store = Store(tmp_path / "results", KINDS)
    get_all(store, runs[:4])
    store.get(runs[0], anew=True)  # nothing is committed yet
    assert "committed" not in capsys.readouterr().err
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    get_all(store, runs)
    assert "committed" not in capsys.readouterr().err
    again = Store(tmp_path / "results", KINDS, retrain_since=time.time())
    again.get(runs[2])
    get_all(again, runs)
    one, others = (line for line in capsys.readouterr().err.splitlines() if "committed" in line)
    assert one.startswith("training replaces committed records below ") and ": run2; `git restore" in one
    assert ": run0, run1, run3; `git restore" in others


def test_states(store):
    run = toy_run(n_iterations=5)
    assert store.state(run) == "missing"
    store.get(run)
    assert store.state(run) == "recorded"
    changed = toy_run(n_iterations=6)
    assert store.state(changed) == "outdated" and store.load(changed) is None
    store.get(changed)
    assert (store.state(changed), store.state(run)) == ("recorded", "outdated")
    with pytest.raises(FloatingPointError):
        store.get(toy_run(n_iterations=6, fails_at=3))
    assert store.state(toy_run(n_iterations=6, fails_at=3)) == "partial"
    assert store.state(changed) == "recorded"


def test_reading_store_names_the_run_and_the_command(store):
    store.train = False
    with pytest.raises(
        MissingRun, match=r"run 'toy' .*missing.*python -m panolib train --profile smoke --only toy"
    ):
        store.get(toy_run())
    assert not store.root.exists()


def test_weights_of_a_parent_are_trained_again_only_when_a_child_needs_them(store):
    parent = toy_run("parent", n_iterations=3)
    state = store.get(parent) and store.final_state(parent)
    (store.folder(parent) / "checkpoint.pt").unlink()
    store.get(parent)
    assert trained(store.root) == ["parent"] and store.state(parent) == "recorded"
    child = store.get(toy_run("child", parent=parent, n_iterations=3))
    assert trained(store.root) == ["parent", "child", "parent"]
    assert all(torch.equal(value, store.final_state(parent)[name]) for name, value in state.items())
    (store.folder(parent) / "checkpoint.pt").unlink()
    reader = Store(store.root, KINDS, train=False)
    assert reader.get(child.run).info == child.info
    with pytest.raises(MissingRun, match="has no weights here"):
        reader.final_state(parent)


def test_weights_of_another_spec_are_not_taken(store):
    old, new = toy_run(n_iterations=3), toy_run(n_iterations=4)
    store.get(old)
    weights = (store.folder(old) / "checkpoint.pt").read_bytes()
    store.get(new)
    expected = files_of(store, new)
    (store.folder(new) / "checkpoint.pt").write_bytes(weights)  # a checkout brought a new record beside them
    assert files_of(store, new) == expected
    assert trained(store.root) == ["toy"] * 3


def test_incomplete_record_is_an_error(store):
    store.get(toy_run())
    (store.folder(toy_run()) / "metrics.json").unlink()
    with pytest.raises(
        RuntimeError, match=r"expected run.json, metrics.json, curves.csv, found .*restore"
    ):
        store.get(toy_run())


# ---- kills

OLD, NEW = toy_run(n_iterations=1), toy_run(n_iterations=3)  # one name: NEW replaces OLD's record


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Store with OLD's record, and what NEW's record is to be."""
    torch.set_num_threads(1)
    store = Store(tmp_path_factory.mktemp("uninterrupted"), KINDS)
    store.get(OLD)
    reference = Store(tmp_path_factory.mktemp("reference"), KINDS)
    reference.get(NEW)
    return store, files_of(store, OLD), files_of(reference, NEW)


def test_kill_before_any_change_on_the_disk_leaves_the_old_record_or_the_new(
    processes, uninterrupted, tmp_path
):
    old_store, old_files, new_files = uninterrupted
    seen, dies_at, exit_code = [], 0, None
    while exit_code != 0:
        root = tmp_path / str(dies_at)
        shutil.copytree(old_store.root / "runs", root / "runs")
        child = processes.Process(target=get_in_child, args=(root, NEW, dies_at))
        child.start()
        child.join()
        exit_code = child.exitcode
        assert exit_code in (0, -signal.SIGKILL)

        reader = Store(root, KINDS, train=False)
        recorded = NEW if reader.load(NEW) is not None else OLD
        assert files_of(reader, recorded) == (new_files if recorded is NEW else old_files)
        n_trained = len(trained(root))
        store = Store(root, KINDS, checkpoint_s=0.0)
        record = store.get(NEW)
        assert files_of(store, NEW) == new_files
        assert record.info["iterations"] == 3
        assert len(trained(root)) == n_trained + (recorded is OLD)
        assert leftovers(store) == []
        seen.append(recorded is NEW)
        dies_at += 1
    assert sum(seen) > 5 and len(seen) - sum(seen) > 20  # kills on both sides of the commit point
    assert seen == sorted(seen)


@pytest.mark.parametrize("n_lines", [2, 15])
def test_sigkill_in_mid_training_then_the_same_again(processes, store, tmp_path, n_lines):
    run = toy_run(n_iterations=25, pause_s=0.01)
    child = processes.Process(target=get_in_child, args=(store.root, run))
    child.start()
    curves = store.root / "work" / run.name / "curves.csv"
    wait_for(lambda: curves.exists() and curves.read_text().count("\n") > n_lines)
    assert store.state(run) == "training" and f"process {child.pid}" in store.holder(run)
    assert not store.attempt(run)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert store.state(run) == "partial"
    record = store.get(run)
    assert trained(store.root) == [run.name] * 2
    reference = Store(tmp_path / "reference", KINDS)
    reference.get(run)
    assert files_of(store, run) == files_of(reference, run)
    assert record.info["wall_s"] >= 0.25  # 25 pauses: both processes count
    assert leftovers(store) == []


def test_killing_the_main_process_ends_its_workers(processes, store):
    runs = [toy_run(f"run-{seed}", seed=seed, n_iterations=400, pause_s=0.05) for seed in range(2)]
    main = processes.Process(target=get_all_in_child, args=(store.root, runs, 2))
    main.start()
    wait_for(lambda: all(store.state(run) == "training" for run in runs))
    os.kill(main.pid, signal.SIGKILL)
    main.join()
    wait_for(lambda: not any(store.holder(run) for run in runs), timeout_s=1.5)
    assert {store.state(run) for run in runs} <= {"partial", "missing"}


def test_two_processes_that_want_one_run_train_it_once(processes, store, capfd):
    run = toy_run(n_iterations=20, pause_s=0.02)
    child = processes.Process(target=get_in_child, args=(store.root, run))
    child.start()
    wait_for(lambda: (store.holder(run) or "").startswith("process"))
    record = store.get(run)
    child.join()
    assert child.exitcode == 0 and trained(store.root) == [run.name]
    assert record.info["key"] == run.key
    assert f"{run.name}: waiting for process {child.pid}" in capfd.readouterr().err


# ---- failures


def test_non_finite_loss_leaves_the_checkpoint_and_the_old_record(store):
    store.get(toy_run(n_iterations=3))
    failing = toy_run(n_iterations=9, fails_at=5)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="iteration 5"):
            store.get(failing)
        saved = torch.load(store.root / "work" / "toy" / "checkpoint.pt", weights_only=True)
        assert saved["iteration"] == 5 and store.load(failing) is None
    assert store.state(toy_run(n_iterations=3)) == "recorded"
    store.get(toy_run(n_iterations=9))  # mended: begins anew, with nothing of the failed one
    assert store.state(toy_run(n_iterations=9)) == "recorded" and leftovers(store) == []


def test_corrupt_checkpoint_is_named_with_the_way_on(store):
    run = toy_run(n_iterations=9, fails_at=5)
    with pytest.raises(FloatingPointError):
        store.get(run)
    checkpoint = store.root / "work" / "toy" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(CorruptCheckpoint, match=r"work/toy/checkpoint.pt: expected a checkpoint.*delete it"):
        store.get(run)
    checkpoint.unlink()
    with pytest.raises(FloatingPointError):
        store.get(run)

    store.get(toy_run())
    weights = store.folder(toy_run()) / "checkpoint.pt"
    weights.write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match=r"runs/toy/checkpoint.pt: .*delete it"):
        store.final_state(toy_run())
    weights.unlink()
    assert set(store.final_state(toy_run())) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (lambda run, job: {"loss": 0.0}, RuntimeError, "job.finish"),
        (
            lambda run, job: job.finish({"a": np.float32(1)}),
            TypeError,
            r"\['state'\]\['a'\]: expected tensors.*float32",
        ),
        (
            lambda run, job: job.finish({}) or {"a": {"b": math.inf}},
            TypeError,
            "metrics.a.b: expected finite",
        ),
        (lambda run, job: job.finish({}) or {"a": None}, TypeError, "metrics.a: expected"),
        (lambda run, job: job.parent("teacher"), KeyError, "no parent in role 'teacher'"),
        (
            lambda run, job: job.save_sample("a", np.zeros((4, 4), np.uint8)),
            ValueError,
            r"expected a uint8 image.*\[4, 4\]",
        ),
    ],
)
def test_mistakes_of_training_functions_are_named(tmp_path, train, error, message):
    store = Store(tmp_path, {"toy": train})
    with pytest.raises(error, match=message):
        store.get(toy_run())
    assert store.load(toy_run()) is None


def test_metrics_come_back_as_they_went():
    metrics = {"a": np.float32(0.5), "b": np.array([1.0, np.nan]), "c": (1, True, "x"), "d": {"e": math.nan}}
    there = json.loads(json.dumps(nan_to_null(metrics), allow_nan=False))
    assert there == {"a": 0.5, "b": [1.0, None], "c": [1, True, "x"], "d": {"e": None}}
    assert math.isnan(null_to_nan(there)["b"][1]) and math.isnan(null_to_nan(there)["d"]["e"])


# ---- training again


def test_retraining_counts_old_records_as_missing_and_new_ones_not(store):
    run, parent = toy_run("child", parent=toy_run("parent")), toy_run("parent")
    store.get(run)
    store.retrain_since = time.time()
    assert store.state(run) == "missing"
    get_all(store, [run])
    get_all(store, [run])
    assert trained(store.root) == ["child", "parent", "parent", "child"]
    assert store.state(parent) == store.state(run) == "recorded"


def test_retraining_does_not_go_on_from_an_older_checkpoint(store):
    run = toy_run(n_iterations=9, fails_at=5)
    with pytest.raises(FloatingPointError):
        store.get(run)
    assert store.state(run) == "partial"
    store.retrain_since = time.time()
    assert store.state(run) == "missing"
    with pytest.raises(FloatingPointError):
        store.get(run)
    assert store.state(run) == "partial"  # begun after: a killed retraining goes on from here


def test_stopped_retraining_keeps_its_start(tmp_path):
    with pytest.raises(KeyboardInterrupt), retraining(tmp_path) as first:
        raise KeyboardInterrupt
    assert retrain_started(tmp_path) == first
    with retraining(tmp_path) as second:
        assert second == first
    assert not (tmp_path / "retrain_since").exists() and retrain_started(tmp_path) > first


# ---- many runs


def test_many_runs_with_workers_equal_those_of_one_process(store, tmp_path):
    parent = toy_run("parent", n_iterations=5)
    children = [toy_run(f"child-{seed}", parent=parent, seed=seed, n_iterations=8) for seed in range(3)]
    records = get_all(store, children, workers=2)
    assert sorted(records) == ["child-0", "child-1", "child-2"]
    assert trained(store.root)[0] == "parent" and len(trained(store.root)) == 4
    serial = Store(tmp_path / "serial", KINDS)
    get_all(serial, children)
    for run in (parent, *children):
        assert files_of(store, run) == files_of(serial, run)
    assert "threads: 1" in records["child-0"].info["device"]


def test_only_what_is_missing_is_trained_parents_first(store):
    grandparent = toy_run("a", seed=1)
    parent = toy_run("b", parent=grandparent)
    child = toy_run("c", parent=parent)
    assert [run.name for run in missing_runs(store, [child, parent])] == ["a", "b", "c"]
    store.get(parent)
    shutil.rmtree(store.folder(grandparent))  # its child is recorded: nobody asks for it
    assert [run.name for run in missing_runs(store, [child, parent])] == ["c"]
    store.get(child)
    assert missing_runs(store, [child, parent]) == []
    with pytest.raises(ValueError, match="run name 'd': expected one run"):
        missing_runs(store, [toy_run("d"), toy_run("d", seed=1)])


def test_a_failed_run_takes_only_its_descendants_along(store):
    failing = toy_run("failing", fails_at=2)
    runs = [failing, toy_run("child", parent=failing), toy_run("other", n_iterations=2)]
    with pytest.raises(
        RunsFailed, match="run 'failing' failed with FloatingPointError: non-finite loss at iteration 2"
    ):
        get_all(store, runs)
    assert [store.state(run) for run in runs] == ["partial", "missing", "recorded"]
    assert "child" not in trained(store.root)


def test_there_is_a_worker(tmp_path):
    with pytest.raises(ValueError, match="workers: expected 1 or more, found 0"):
        get_all(Store(tmp_path, KINDS), [toy_run()], workers=0)


def test_kinds_may_be_partial_functions(tmp_path):
    def train(extra, run, job):
        job.finish({})
        return {"extra": extra}

    assert Store(tmp_path, {"toy": functools.partial(train, 3)}).get(toy_run()).metrics == {"extra": 3}


def draw(run, job):
    """A training function that draws from every global generator, and may ask for its parent in between."""
    before = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
    if run.parents:
        job.parent("start")
    image = np.empty((1, 1), np.float32)
    cv2.randu(image, 0, 1)
    drawn = {"before": before, "after": [torch.rand(()).item(), np.random.rand(), random.random()]}  # noqa: NPY002
    job.finish({})
    return drawn if run.parents else drawn | {"opencv": float(image[0, 0])}


def test_a_run_draws_the_same_whatever_the_process_did_before(tmp_path):
    parent = toy_run("parent", seed=3)
    child = toy_run("child", parent=parent, seed=3)
    first, second = (Store(tmp_path / name, {"toy": draw}) for name in ("first", "second"))
    metrics = [first.get(child).metrics, first.get(parent).metrics]  # trains the parent within its child
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    cv2.setRNGSeed(5)
    expected = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    again = [second.get(run).metrics for run in (parent, child)]
    assert again[::-1] == metrics
    found = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert torch.equal(found[0], expected[0]) and found[1:] == expected[1:]  # nobody else notices a run
    assert metrics[0]["before"] == metrics[1]["before"]
    assert Store(tmp_path / "other", {"toy": draw}).get(toy_run("other", seed=4)).metrics != metrics[1]


def test_work_folder_is_never_committed(store):
    store.get(toy_run())
    assert (store.root / "work" / ".gitignore").read_text() == "*\n"
    assert Path(store.folder(toy_run())).name == "toy"


@pytest.mark.parametrize("n_colours", [1, 2, 256, 257])
def test_label_maps_are_kept_without_loss_and_photographs_small(n_colours):
    rng = np.random.default_rng(0)
    colours = rng.permutation(2**24)[:n_colours]
    colours = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.uint8)
    picked = np.append(np.arange(n_colours), rng.integers(0, n_colours, 600 - n_colours))
    image = colours[rng.permutation(picked)].reshape(20, 30, 3)
    ending, content = small_file(image)
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert ending == (".png" if n_colours <= 256 else ".jpg")
    assert np.array_equal(found, image) if ending == ".png" else found.shape == image.shape


# ---- disks that are full or read-only


class FullDisk:
    """A file in whose place there is no space after some bytes."""

    def __init__(self, file, n_bytes):
        self.file, self.left = file, n_bytes

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.left -= len(content)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(content)


@pytest.mark.parametrize("n_bytes", [0, 1000, 100_000])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(n_bytes, tmp_path, monkeypatch):
    """torch says "unexpected pos 704 vs 598" where a checkpoint does not fit."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"state": torch.zeros(3)})
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: FullDisk(real(self, *mode), n_bytes))
    for write_it in (
        lambda: save_checkpoint(path, {"state": torch.zeros(10**6)}),
        lambda: write(path, b"0" * 10**6),
    ):
        with pytest.raises(OSError, match=r"No space left on device: '.*checkpoint\.pt'"):
            write_it()
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert len(load_checkpoint(path, "", state=torch.Tensor)["state"]) == 3


def test_states_of_a_folder_that_is_read_only(store, monkeypatch):
    run, other = toy_run("recorded", n_iterations=3), toy_run("other", n_iterations=9, fails_at=5)
    store.get(run)
    with pytest.raises(FloatingPointError):
        store.get(other)

    def refused(*_args, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    assert store.state(run) == "recorded" and store.load(run) is not None
    assert store.state(other) == "partial" and store.holder(other) is None
    with pytest.raises(OSError, match="Read-only"):
        store.get(other)


def test_an_error_that_says_all_is_not_shown_with_a_traceback(tmp_path, capsys):
    errors = {"user": UserError("mend it"), "disk": OSError(28, "No space left", "a"), "other": KeyError("x")}

    def fail(run, job):
        raise errors[run.name]

    with pytest.raises(RunsFailed, match=r"(?s)user.*mend it.*disk.*No space left: 'a'.*other.*KeyError"):
        get_all(Store(tmp_path, {"toy": fail}), [toy_run(name, seed=i) for i, name in enumerate(errors)])
    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 1 and "KeyError: 'x'" in shown
