"""One run on several devices: two processes with half a batch each train as one with the whole batch."""

from __future__ import annotations

import functools
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
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from tiny_packages import INSTANCE, SEMANTIC
from toy_kinds import KINDS, toy_run

from panolib.config import canonical_json
from panolib.data.samples import ImageSet, Sample
from panolib.lab.job import Follower
from panolib.lab.store import Store
from panolib.labels import NUCLEI
from panolib.losses.embedding import EmbeddingLossWeights
from panolib.training import ranks
from panolib.training.instance import instance_self_train, train_instance_baseline
from panolib.training.run_specs import (
    BaselineSpec,
    InstanceBaselineSpec,
    InstanceSelfTrainingSpec,
    SelfTrainingSpec,
)
from panolib.training.semantic import self_train, train_baseline
from panolib.training.setup import build_instance, build_semantic
from panolib.training.specs import Augmentation, Compute, Margins, Optimiser

ITERATIONS, SIZE = 3, 40
COMPUTE = Compute("cpu", "32-true", 0, False)
COMMON = {
    "label_set": "nuclei", "source": "a", "iterations": ITERATIONS, "batch_size": 4, "seed": 0,
    "augmentation": Augmentation(32, 32, (0.5, 1.0), "window", 0.5, 0.2, 0.5, None),
    "optimiser": Optimiser("sgd", 0.1, 0.0005, 0.9, 10.0, "poly", 0),
}  # fmt: skip
EMBEDDING = {
    "network": INSTANCE, "weights": EmbeddingLossWeights(), "margins": Margins(0.5, 2.0, 0.5, 0.0, 1.0),
    "min_area": 2, "optimiser": Optimiser("sgd", 0.001, 0.0005, 0.9, 1.0, "poly", 0),
}  # fmt: skip
TOGETHER = ("loss", "source_loss", "target_loss", "coverage", "pseudo_instances", "pull", "consistency")


class Images(ImageSet):
    """Six small images; every one has another share of void pixels, and other instances."""

    name, label_set, has_instances = "images", NUCLEI, True

    def __init__(self):
        self.ids = list("abcdef")

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        instance = np.zeros((SIZE, SIZE), np.int32)
        for k, (row, column) in enumerate(rng.integers(0, SIZE - 12, (index + 1, 2)), start=1):
            instance[row : row + 12, column : column + 12] = k
        semantic = (instance > 0).astype(np.uint8)
        semantic[: 3 * index] = 255
        image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        return Sample(image, semantic, instance, np.zeros((SIZE, SIZE), bool), self.ids[index])


class Notes:
    """A job that only keeps what is logged, as means over the processes, and the class prior."""

    start = 0

    def __init__(self):
        self.curves, self.prior = [], []

    def resume(self):
        return None

    def progress(self, start, stop):
        return range(start, stop)

    def log(self, iteration, **values):
        together = [ranks.mean(values[name].detach()).item() for name in TOGETHER if name in values]
        self.curves.append(together)

    def checkpoint(self, state_fn, iteration):
        self.prior = state_fn().get("class_prior", torch.zeros(0)).tolist()


def semantic_baseline(compute: Compute, job: Notes):
    spec = BaselineSpec(**COMMON, compute=compute, validation="c", network=SEMANTIC)
    return train_baseline(spec, job, Images(), 2)


def semantic_self_training(compute: Compute, job: Notes, target_weight: float = 1.0):
    """SAC's frozen batch norm."""
    spec = SelfTrainingSpec(
        **COMMON, compute=compute, target="b", validation="c", network=SEMANTIC,
        n_target=2, n_views=2, zoom=(0.5, 1.0), noise_blur=(0.1, 1.0), fusion_stride=2,
        target_weight=target_weight, focal_exponent=3.0, threshold_scale=0.75, prior_scale=0.001,
        prior_momentum=0.9, minimum_threshold=0.2, ema_decay=0.9, ema_interval=1, batch_norm="frozen",
        rare_class_sampling=False,
    )  # fmt: skip
    start = build_semantic(SEMANTIC, 2, pretrained=False).state_dict()
    return self_train(spec, job, start, Images(), Images(), 2)[0]


def instance_baseline(compute: Compute, job: Notes):
    spec = InstanceBaselineSpec(
        **COMMON | EMBEDDING, compute=compute, selection="a", n_selection=1, bandwidths=(0.5,),
        merge_distances=(0.0,),
    )  # fmt: skip
    return train_instance_baseline(spec, job, Images(), NUCLEI)


def instance_self_training(compute: Compute, job: Notes, source_share: float = 0.5, reduction: str = "mean"):
    weights = replace(EMBEDDING["weights"], consistency_reduction=reduction)
    spec = InstanceSelfTrainingSpec(
        **COMMON | EMBEDDING | {"weights": weights}, compute=compute, target="b", source_share=source_share,
        algorithm="mean_shift_plus", min_stability=None, noise_blur=(0.1, 1.0), rotation=30.0,
        momentum_mode="ema", ema_decay=0.9, copy_interval=1, batch_norm="frozen",
    )  # fmt: skip
    start = build_instance(INSTANCE, pretrained=False).state_dict()
    masks, clustering = [sample.semantic for sample in Images()], {"bandwidth": 0.5, "delta_dist": 2.0}
    return instance_self_train(spec, job, start, Images(), Images(), masks, NUCLEI, clustering)[0]


TRAININGS = {
    "semantic baseline": semantic_baseline,
    "semantic control": functools.partial(semantic_self_training, target_weight=0.0),
    "semantic self-training": semantic_self_training,
    "instance baseline": instance_baseline,
    "instance control": functools.partial(instance_self_training, source_share=1.0),
    "instance self-training": instance_self_training,
    "instance self-training, summed": functools.partial(instance_self_training, reduction="sum"),
    "instance self-training without source": functools.partial(instance_self_training, source_share=0.0),
}


def alike(*size: int | torch.Size, rand=torch.rand, **_) -> torch.Tensor:
    """In place of torch.rand: the same draws in any process and for every image, the first dimension."""
    *_, size = (torch.Size(size),) if not size or isinstance(size[0], int) else size
    return rand(size[1:], generator=torch.Generator().manual_seed(0)).expand(size).clone()


def in_halves(image: torch.Tensor, *options, batch_norm=F.batch_norm, **settings) -> torch.Tensor:
    """In place of torch's batch norm: each half of a batch by itself, as its process does."""
    return torch.cat([batch_norm(half, *options, **settings) for half in image.chunk(2)])


def train(name: str, compute: Compute, patch: pytest.MonkeyPatch) -> dict:
    """Curves, a sum over the final weights, and SAC's class prior."""
    torch.manual_seed(0)
    if "self-training" in name:
        patch.setattr(torch, "rand", alike)
    job = Notes()
    network = TRAININGS[name](compute, job)
    weights = sum(value.double().abs().sum().item() for value in network.module.parameters())
    return {"curves": job.curves, "weights": weights, "prior": job.prior}


def train_all(compute: Compute) -> dict:
    """Every training, and who this process is."""
    found = {}
    for name in TRAININGS:
        with pytest.MonkeyPatch.context() as patch:
            found[name] = train(name, compute, patch)
    found["first"] = ranks.from_first(lambda: ranks.rank() + 5)
    return found | {"rank": ranks.rank(), "n": ranks.n_processes(), "follows": ranks.follows()}


@pytest.fixture(scope="module")
def two():
    """What two processes find that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import json; from test_ranks import *; print(json.dumps(train_all(replace(COMPUTE, devices=2))))"
    command = [sys.executable, "-c", code]
    met = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    started = [
        subprocess.Popen(command, env=os.environ | met | {"LOCAL_RANK": str(i), "PYTHONPATH": paths},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=900) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one(two, monkeypatch, name):
    """Given the same draws on the device; and where batch norm learns, given that one parts it as two do."""
    if "baseline" in name:
        monkeypatch.setattr(F, "batch_norm", in_halves)
    alone = train(name, COMPUTE, monkeypatch)
    assert len(alone["curves"]) == ITERATIONS
    for found in (each[name] for each in two):
        np.testing.assert_allclose(found["curves"], alone["curves"], rtol=1e-4, atol=1e-5)
        assert found["weights"] == pytest.approx(alone["weights"], rel=1e-5)
        assert found["prior"] == pytest.approx(alone["prior"], abs=1e-6)
    if name == "semantic self-training":
        assert min(alone["prior"]) > 0.001 and np.min(alone["curves"]) > 0  # the prior moved, target loss too


def test_two_processes_know_who_they_are(two):
    first, second = two
    assert (first["n"], first["rank"], second["rank"]) == (2, 0, 1)
    assert second["follows"] and not first["follows"] and first["first"] == second["first"] == 5


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
