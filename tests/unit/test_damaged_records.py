"""A damaged file of a record is named, with what is wrong and the way on; nothing is trained over it."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from toy_kinds import KINDS, toy_run, trained

from panolib.lab import records
from panolib.lab.counts import packed
from panolib.lab.engine import get_all
from panolib.lab.files import CorruptCheckpoint, load_checkpoint, save_checkpoint
from panolib.lab.records import DamagedRecord
from panolib.lab.store import Store, retrain_started


def text(pattern: str, value: str):
    """Replace what fits in a text file."""
    return lambda file: file.write_text(re.sub(pattern, value, file.read_text(), count=1))


def content(data: bytes):
    """Write something else."""
    return lambda file: file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def instead(make):
    """Put something else in the place of a file or folder."""

    def change(file: Path) -> None:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        make(file)

    return change


def no_file(file: Path) -> None:
    """Leave nothing in its place."""


def flip(file: Path) -> None:
    """Change one byte amid the packed numbers."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def fractions() -> bytes:
    """An .npz file with an array that counts nothing."""
    file = io.BytesIO()
    np.savez(file, greys=np.ones((4, 16, 1)))
    return file.getvalue()


DAMAGES = {  # name: (file, what is done to it, what the message says)
    "conflict markers": ("metrics.json", text("^", "<<<<<<< HEAD\n"), "found '<<<<<<< HEAD' in line 1"),
    "markers within": ("run.json", text('"key"', '=======\n"key"'), "expected JSON, found '  ======='"),
    "cut": ("metrics.json", cut, "expected JSON, found"),
    "cut run": ("run.json", cut, "expected JSON, found"),
    "empty": ("run.json", content(b""), "expected JSON, found 'nothing more' in line 1"),
    "a list": ("run.json", content(b"[]"), "expected the keys of _Info"),
    "metrics are a list": ("metrics.json", content(b"[1, 2]"), "expected a mapping, found a list"),
    "many digits": ("metrics.json", content(b"1" * 5000), "Exceeds the limit"),
    "many brackets": ("metrics.json", content(b"[" * 10**5), "recursion"),
    "deep": ("metrics.json", content(b'{"a":' * 900 + b"1" + b"}" * 900), "recursion"),
    "no key": ("run.json", text('"key"', '"keys"'), "key: missing key, expected str"),
    "key is a number": ("run.json", text('"key": ".*?"', '"key": 3'), "key: expected str, found 3"),
    "time is a word": ("run.json", text('ed_at": ".*?"', 'ed_at": "noon"'), "recorded_at: expected a valid"),
    "no time": ("run.json", text('"wall_s": [0-9.]*', '"wall_s": null'), "wall_s: expected float, found"),
    "time is nan": ("run.json", text('"wall_s": [0-9.]*', '"wall_s": NaN'), "wall_s"),
    "training is a word": ("run.json", text('ing_s": [0-9.]*', 'ing_s": "a"'), "training_s: expected float"),
    "empty curves": ("curves.csv", content(b""), "whole lines of a table, found the end ''"),
    "cut curves": ("curves.csv", cut, "expected whole lines of a table, found the end"),
    "markers in curves": ("curves.csv", text("\n3,", "\n=======\n3,"), "iteration: expected numbers"),
    "head of curves": ("curves.csv", text("^", "<<<<<<< HEAD\n"), "expected a column 'iteration'"),
    "too many cells": ("curves.csv", text("\n3,", "\n3,1,1,1,1,1,1,"), "Expected . fields"),
    "a word in curves": ("curves.csv", text("\n3,", "\n3,high"), "loss: expected numbers, found 'high"),
    "half an iteration": ("curves.csv", text("\n3,", "\n3.5,"), "iteration: expected a whole number"),
    "binary": ("curves.csv", content(b"\x89PNG\xff\x00"), "expected text, found the byte 0x89 at 0"),
    "zeros": ("curves.csv", content(b"\0" * 512 + b"\n"), "expected a column 'iteration'"),
    "binary metrics": ("metrics.json", content(b"{\xff"), "expected text, found the byte 0xff at 1"),
    "no curves": ("curves.csv", instead(no_file), "no such file: expected run.json"),
    "no run.json": ("run.json", instead(no_file), "no such file: expected run.json"),
    "dangling link": ("curves.csv", instead(lambda file: file.symlink_to("nowhere")), "no such file"),
    "folder": ("metrics.json", instead(Path.mkdir), "expected a file, found a folder"),
    "folder for run.json": ("run.json", instead(Path.mkdir), "expected a file, found a folder"),
    "file for samples": ("samples", instead(Path.touch), "expected a folder of pictures, found a file"),
    "folder for a sample": ("samples/weight.png", instead(Path.mkdir), "expected a picture, found no file"),
    "no counts": ("counts.npz", instead(no_file), "no such file: expected counts.npz, found .*metrics.json"),
    "cut counts": ("counts.npz", cut, "expected counts as .npz, found an unreadable file"),
    "empty counts": ("counts.npz", content(b""), "expected counts as .npz, found an unreadable file"),
    "folder for counts": ("counts.npz", instead(Path.mkdir), "expected a file, found a folder"),
    "a byte of counts": ("counts.npz", flip, "expected counts as .npz, found an unreadable file"),
    "counts of another run": (
        "counts.npz",
        content(packed({"greys": np.ones((5, 16, 1), int)})),
        r"expected the counts {'greys': \[4, 16, 1\]}, found {'greys': \[5, 16, 1\]}",
    ),
    "counts of something else": (
        "counts.npz",
        content(packed({"pq": np.ones((4, 16, 1), int)})),
        "expected the counts {'greys'.*{'pq'",
    ),
    "fractions": ("counts.npz", content(fractions()), "greys: expected whole numbers >= 0, found float64"),
    "counts are a list": ("run.json", text('"counts": {', '"counts": [], "a": {'), "counts: expected a map"),
    "file for the record": ("", instead(Path.touch), "expected the folder of a record, found a file"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with a record."""
    store = Store(tmp_path_factory.mktemp("whole"), KINDS)
    store.get(toy_run(n_iterations=6))
    return store


@pytest.fixture
def store(tmp_path, whole):
    """A copy of it."""
    shutil.copytree(whole.root, tmp_path / "results")
    return Store(tmp_path / "results", KINDS, checkpoint_s=0.0)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_named_and_never_replaced(store, name):
    run, other = toy_run(n_iterations=6), toy_run("other", n_iterations=1)
    file, change, message = DAMAGES[name]
    path = store.folder(run) / file
    change(path)
    named = f"{re.escape(str(path))}: .*{message}.*restore .* or delete it"
    assert store.state(run) == "damaged" and re.search(named, store.damage(run)), store.damage(run)
    assert store.state(other) == "missing" and store.damage(other) is None
    for ask in (
        lambda: store.load(run),
        lambda: store.get(run),
        lambda: store.get(run, anew=True),
        lambda: store.get(toy_run(n_iterations=7)),  # would replace the record
        lambda: store.final_state(run),
        lambda: store.attempt(run),
        lambda: get_all(store, [other, toy_run("child", parent=run, n_iterations=1)]),
    ):
        with pytest.raises(DamagedRecord, match=named):
            ask()
    assert trained(store.root) == ["toy"]


def test_after_deleting_a_damaged_record_its_run_is_trained_again(store, whole):
    run = toy_run(n_iterations=6)
    (store.folder(run) / "metrics.json").write_text("{")
    shutil.rmtree(store.folder(run))
    assert str(store.get(run).metrics) == str(whole.get(run).metrics)


def test_every_damaged_record_of_a_list_is_named_before_anything_is_trained(store):
    runs = [toy_run(f"run-{seed}", seed=seed, n_iterations=1) for seed in range(4)]
    get_all(store, runs[:3])
    for run in runs[:2]:
        (store.folder(run) / "metrics.json").write_text("{")
    with pytest.raises(DamagedRecord, match=r"(?s)run-0/metrics\.json.*\n.*run-1/metrics\.json"):
        get_all(store, runs)
    assert "run-3" not in trained(store.root)


def test_a_record_is_read_once_and_again_when_a_file_of_it_changes(store, monkeypatch):
    run, read = toy_run(n_iterations=6), []
    monkeypatch.setattr(records, "_metrics", lambda folder: read.append(1) or {"n": len(read)})
    first = store.load(run)
    assert store.load(run).metrics == {"n": 1} == first.metrics and first.curves is not store.load(run).curves
    first.metrics["n"], first.curves["iteration"] = 9, 0  # a copy
    again = store.load(run)
    assert again.metrics == {"n": 1} and again.curves["iteration"].iloc[-1] > 0
    file = store.folder(run) / "metrics.json"
    changes = lambda: file.write_bytes(file.read_bytes()), lambda: os.utime(file, (1, 1))
    for n, change in enumerate(changes, start=2):
        time.sleep(0.02)  # coarser than the clock of any file system that counts fractions of seconds
        change()
        assert store.load(run).metrics == {"n": n}
    (store.folder(run) / "samples").mkdir(exist_ok=True)
    (store.folder(run) / "samples" / "new.png").write_bytes(b"")
    assert "new" in store.load(run).samples


def test_weights_alone_are_no_record(store):
    run = toy_run(n_iterations=6)
    for name in ("run.json", "metrics.json", "curves.csv"):
        (store.folder(run) / name).unlink()
    assert store.state(run) == "missing"
    store.get(run)
    assert trained(store.root) == ["toy", "toy"]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("{", "expected JSON"),
        ("[]", "top level: expected the keys of"),
        ("{}", "key: missing key, expected str"),
        (None, "expected a file, found a folder"),
    ],
)
def test_a_damaged_job_file_is_named_with_the_way_on(store, written, found):
    run = toy_run("failing", n_iterations=9, fails_at=5)
    with pytest.raises(FloatingPointError):
        store.get(run)
    assert store.state(run) == "partial"
    file = store.root / "work" / "failing" / "job.json"
    file.unlink()
    file.mkdir() if written is None else file.write_text(written)
    assert store.state(run) == "damaged"
    with pytest.raises(DamagedRecord, match=rf"work/failing/job\.json: {found}.*delete .*work/failing: "):
        store.get(run)
    shutil.rmtree(file.parent)
    assert store.state(run) == "missing"


@pytest.mark.parametrize("saved", [[1], {"state": {}}, {"key": 3, "state": {}}, {"key": "a", "state": [1]}])
def test_a_checkpoint_of_something_else_is_corrupt(tmp_path, saved):
    save_checkpoint(tmp_path / "checkpoint.pt", saved)
    with pytest.raises(CorruptCheckpoint, match=r"checkpoint.pt: expected a checkpoint whose .* delete it"):
        load_checkpoint(tmp_path / "checkpoint.pt", "delete it", key=str, state=dict)


def test_a_folder_in_place_of_weights_is_corrupt(store):
    weights = store.folder(toy_run()) / "checkpoint.pt"
    weights.unlink()
    weights.mkdir()
    with pytest.raises(CorruptCheckpoint, match=r"runs/toy/checkpoint.pt: .*delete it"):
        store.final_state(toy_run(n_iterations=6))


def test_a_damaged_start_of_a_retraining_is_named(tmp_path):
    (tmp_path / "retrain_since").write_text("yesterday")
    with pytest.raises(DamagedRecord, match=r"retrain_since: expected .* found 'yesterday'; delete it"):
        retrain_started(tmp_path)
