"""One run on several devices: two processes with half a batch each train as one with the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from tiny_packages import SEMANTIC
from toy_kinds import KINDS, toy_run

from panolib.config import canonical_json
from panolib.data.samples import ImageSet, Sample
from panolib.lab.job import Follower
from panolib.lab.store import Store
from panolib.labels import NUCLEI
from panolib.training import ranks
from panolib.training.pseudo_labels import update_class_prior
from panolib.training.run_specs import SelfTrainingSpec
from panolib.training.semantic import self_train
from panolib.training.setup import build_semantic
from panolib.training.specs import Augmentation, Compute, Optimiser

ITERATIONS = 3
COMPUTE = Compute("cpu", "32-true", 0, False)


class Images(ImageSet):
    """Six small images; every one has another share of void pixels."""

    name, label_set, has_instances = "images", NUCLEI, False

    def __init__(self):
        self.ids = list("abcdef")

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        semantic = rng.integers(0, 2, (24, 24)).astype(np.uint8)
        semantic[: 3 * index] = 255
        image = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        return Sample(image, semantic, None, None, self.ids[index])


class Notes:
    """A job that only keeps what is logged."""

    start = 0

    def __init__(self):
        self.losses = []

    def resume(self):
        return None

    def progress(self, start, stop):
        return range(start, stop)

    def log(self, iteration, **values):
        self.losses.append(ranks.mean(values["source_loss"].detach()).item())

    def checkpoint(self, state_fn, iteration):
        pass


def spec(compute: Compute = COMPUTE) -> SelfTrainingSpec:
    """SAC's frozen batch norm; weight 0 of the target, whose views are drawn by every process for itself."""
    augmentation = Augmentation(16, 16, (0.5, 1.0), "window", 0.5, 0.2, 0.5, None)
    return SelfTrainingSpec(
        label_set="nuclei", source="a", target="b", validation="c", network=SEMANTIC,
        optimiser=Optimiser("sgd", 0.1, 0.0005, 0.9, 10.0, "poly", 0), augmentation=augmentation,
        iterations=ITERATIONS, batch_size=4, n_target=2, n_views=2, zoom=(0.5, 1.0), noise_blur=None,
        fusion_stride=2, target_weight=0.0, focal_exponent=3.0, threshold_scale=0.75, prior_scale=0.001,
        prior_momentum=0.9, minimum_threshold=0.2, ema_decay=0.9, ema_interval=1, batch_norm="frozen",
        rare_class_sampling=False, compute=compute, seed=0,
    )  # fmt: skip


def train(compute: Compute) -> dict:
    """Losses, a sum over the final weights, and the class prior after a batch of which each has a half."""
    torch.manual_seed(0)
    start = build_semantic(SEMANTIC, 2, pretrained=False).state_dict()
    job = Notes()
    student, _ = self_train(spec(compute), job, start, Images(), Images(), 2)
    weights = sum(value.double().abs().sum().item() for value in student.module.parameters())
    probabilities = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1)).softmax(1)
    mine = ranks.own_part({"probabilities": probabilities})["probabilities"]
    prior = update_class_prior(torch.full((2,), 0.001), mine, momentum=0.9, prior_scale=0.001)
    asked = ranks.from_first(lambda: ranks.rank() + 5)
    return {"losses": job.losses, "weights": weights, "prior": prior.tolist(), "first": asked,
            "rank": ranks.rank(), "n": ranks.n_processes(), "follows": ranks.follows()}  # fmt: skip


def test_two_processes_train_as_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import json; from test_ranks import *; print(json.dumps(train(replace(COMPUTE, devices=2))))"
    command = [sys.executable, "-c", code]
    met = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    started = [
        subprocess.Popen(command, env=os.environ | met | {"LOCAL_RANK": str(i), "PYTHONPATH": paths},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]  # fmt: skip
    alone = train(COMPUTE)
    outputs = [process.communicate(timeout=900) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert (first["n"], first["rank"], second["rank"]) == (2, 0, 1)
    assert second["follows"] and not first["follows"] and first["first"] == second["first"] == 5
    for found in (first, second):
        assert found["losses"] == pytest.approx(alone["losses"], abs=1e-5) and len(found["losses"]) == 3
        assert found["weights"] == pytest.approx(alone["weights"], rel=1e-5)
        assert found["prior"] == pytest.approx(alone["prior"], abs=1e-6)


def test_a_batch_that_cannot_be_parted_is_told(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    assert ranks.own_part({"a": torch.arange(6)})["a"].tolist() == [3, 4, 5]
    with pytest.raises(ranks.UnevenParts, match=r"2 processes share a batch \(a\) of 3, expected a multiple"):
        ranks.own_part({"a": torch.arange(3)})


def test_a_process_that_follows_records_nothing(tmp_path, monkeypatch):
    run = toy_run()
    Store(tmp_path, KINDS).get(run)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file())
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.follows()
    store = Store(tmp_path, KINDS)
    assert store.get(run).run == run and store.attempt(run)
    with pytest.raises(ranks.Followed):
        Follower(store, run).finish({})
    monkeypatch.setattr("panolib.lab.store.FIRST_S", 0.0)
    with pytest.raises(RuntimeError, match="nobody has trained it for 0 s, expected the first process"):
        store.get(toy_run(seed=9))
    after = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file())
    assert after == before


def test_one_device_is_no_part_of_a_key():
    assert "devices" not in canonical_json(COMPUTE) and "strategy" not in canonical_json(COMPUTE)
    assert '"devices":2' in canonical_json(replace(COMPUTE, devices=2))
