"""The weight of the consistency term reaches the loss and the network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from panolib.data.samples import Sample
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.study import kinds
from panolib.training.setup import build_instance, build_semantic

(CAR,) = CITYSCAPES.ids_of(["car"])


class Images:
    """Two noisy street images with a car each, under every name."""

    def open(self, name):
        generator = np.random.default_rng(0)
        semantic = np.zeros((64, 128), np.uint8)
        semantic[20:50, 30:90] = CAR
        instance = (semantic == CAR).astype(np.int32)
        images = generator.integers(0, 255, (2, 64, 128, 3), dtype=np.uint8)
        return [Sample(image, semantic, instance, semantic > 99, str(i)) for i, image in enumerate(images)]


class OneStep:
    """Stands in for a job: parents with random weights, and what the first iteration logs."""

    start = 0

    def __init__(self, run):
        self.run, self.spec, self.logged, self.final, self.images = run, run.spec, {}, None, {}

    def parent(self, role):
        torch.manual_seed(5)
        if role == "semantic":
            network = build_semantic(dict(self.run.parents)[role].spec.network, CITYSCAPES.n_classes)
        else:
            network = build_instance(self.spec.network)
        return {"model": network.state_dict()}

    def parent_record(self, role):
        self.metrics = {"bandwidth": 1.0, "delta_dist": 2.0}
        return self

    def resume(self):
        return None

    def progress(self, start, stop):
        return range(start, stop)

    def log(self, iteration, **values):
        self.logged |= {name: float(value) for name, value in values.items()}

    def checkpoint(self, *args):
        pass

    def finish(self, state):
        self.final = state["model"]


def one_step(weight):
    run = load("smoke").runs["city-instance-self_trained-consistency.1-s0"]
    spec = replace(
        run.spec, iterations=1, min_stability=None, weights=replace(run.spec.weights, consistency=weight)
    )
    job = OneStep(replace(run, spec=spec))
    kinds.instance_self_training({"city": Images()}, job.run, job)
    return job


def test_the_weight_changes_the_loss_of_a_real_step_and_the_weights_after_it(monkeypatch):
    masks = [sample.semantic for sample in Images().open("")]  # the random network might see no car
    monkeypatch.setattr(kinds.evaluate, "predicted_masks", lambda *_, **__: masks)
    none, some, full = (one_step(weight) for weight in (0.0, 0.1, 1.0))
    assert some.logged["pseudo_instances"] > 0
    assert full.logged["consistency"] == pytest.approx(10 * some.logged["consistency"], rel=1e-4)
    assert some.logged["consistency"] > 0 and none.logged.get("consistency", 0) == 0
    assert none.logged["target_loss"] < some.logged["target_loss"] < full.logged["target_loss"]
    for term in ("pull", "push", "regulariser", "object_dice", "unlabelled_push"):
        assert none.logged[term] == full.logged[term]
    same = [torch.equal(none.final[name], full.final[name]) for name in none.final]
    assert not all(same)
