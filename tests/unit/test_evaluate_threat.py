"""Counts behind the threat score: masks, fused networks, no masks, morphology, votes."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.labels import CITYSCAPES, VOID
from panolib.scoring import threat as evaluate_threat
from panolib.scoring.threat import Network, count_votes, fused_instances, score_threat
from panolib.study.parents import learned_classes

ROAD, PERSON, CAR, BUS = CITYSCAPES.ids_of(("road", "person", "car", "bus"))
THINGS = CITYSCAPES.thing_ids
CLUSTERING = {"bandwidth": 0.5, "delta_dist": 2.0}
HEIGHT, WIDTH = 16, 32


class Constant(nn.Module):
    """Gives the same maps [C, H, W] for every image."""

    def __init__(self, maps):
        super().__init__()
        self.maps = nn.Parameter(maps)

    def forward(self, image):
        return self.maps[None].expand(len(image), *self.maps.shape)


@pytest.fixture
def street():
    """A sample with two touching cars, a bus and a person; embeddings that tell the four apart."""
    semantic = np.full((HEIGHT, WIDTH), ROAD, np.uint8)
    instance = np.zeros((HEIGHT, WIDTH), np.int32)
    boxes = ((2, 2, 8, CAR), (2, 8, 14, CAR), (2, 18, 28, BUS), (10, 4, 8, PERSON))
    for k, (top, left, right, class_id) in enumerate(boxes, start=1):
        semantic[top : top + 5, left:right] = class_id
        instance[top : top + 5, left:right] = k
    embeddings = torch.zeros(2, HEIGHT, WIDTH)
    embeddings[0] = torch.from_numpy(instance.astype(np.float32)) * 5
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    sample = Sample(image, semantic, instance, np.zeros((HEIGHT, WIDTH), bool), "street")
    return sample, embeddings


def logits(semantic):
    one_hot = nn.functional.one_hot(torch.from_numpy(semantic.astype(np.int64)), 19)
    return 9 * one_hot.movedim(-1, 0).float()


def scored(sample, predicted, networks, **values):
    values = {"truth_shares": (0.0, 1.0), "kernels": (0,), "guided": True, "min_size": 4} | values
    saved = {}
    model, images = Constant(logits(predicted)), [sample, sample]
    return score_threat(model, networks, images, CITYSCAPES, save_sample=saved.__setitem__, **values), saved


def counts_of(metrics, place):
    """{thing: "tp fp fn"} of the first image where there is anything."""
    variant = metrics["variants"][place]
    found = {t: [variant[name][t].split()[0] for name in ("tp", "fp", "fn")] for t in metrics["things"]}
    return {thing: " ".join(numbers) for thing, numbers in found.items() if set(numbers) != {"0"}}


def test_better_masks_give_better_counts(street):
    sample, embeddings = street
    predicted = np.where(sample.semantic == BUS, CAR, sample.semantic)
    metrics, saved = scored(sample, predicted, [Network(Constant(embeddings), THINGS, **CLUSTERING)])
    assert [(v["truth_share"], v["kernel"]) for v in metrics["variants"]] == [(0.0, 0), (1.0, 0)]
    assert counts_of(metrics, 0) == {"car": "2 1 0", "bus": "0 0 1", "person": "1 0 0"}
    assert counts_of(metrics, 1) == {"car": "2 0 0", "bus": "1 0 0", "person": "1 0 0"}
    assert metrics["n_images"] == 2 and metrics["variants"][0]["tp"]["car"] == "2 2"
    assert metrics["masks"][1] == {"truth_share": 1.0, "miou": 1.0, "wrong_share": 0.0}
    assert metrics["masks"][0]["wrong_share"] == pytest.approx((predicted != sample.semantic).mean())
    assert {"00-truth", "00-result", "01-truth", "01-result", "vote-0-before"} <= set(saved)


def test_a_network_answers_for_its_classes_only_and_all_are_fused(street):
    sample, embeddings = street
    blind = torch.zeros_like(embeddings)  # finds one object per mask
    networks = [
        Network(Constant(blind), (CAR,), **CLUSTERING),
        Network(Constant(embeddings), (PERSON, BUS), **CLUSTERING),
    ]
    metrics, _ = scored(sample, sample.semantic, networks, truth_shares=(0.0,))
    assert counts_of(metrics, 0) == {"car": "0 1 2", "bus": "1 0 0", "person": "1 0 0"}
    instances, table = fused_instances(
        networks, [blind, embeddings], sample.semantic, CITYSCAPES, min_size=4, guided=True
    )
    assert [(row["id"], row["category_id"]) for row in table] == [(1, CAR), (2, PERSON), (3, BUS)]
    assert set(instances.unique().tolist()) == {0, 1, 2, 3}


def test_morphology_may_remove_an_instance(street):
    sample, embeddings = street
    predicted = sample.semantic.copy()
    predicted[0, :] = PERSON  # one pixel high: opening removes it
    metrics, _ = scored(sample, predicted, [Network(Constant(embeddings), THINGS, **CLUSTERING)],
                        truth_shares=(0.0,), kernels=(0, 3))  # fmt: skip
    assert counts_of(metrics, 0)["person"] == "1 1 0"
    assert counts_of(metrics, 1)["person"] == "1 0 0"


def test_without_masks_clusters_are_named_and_other_classes_dropped(street):
    sample, embeddings = street

    def found(embeddings, class_ids):
        network = Network(Constant(embeddings), class_ids, **CLUSTERING)
        return fused_instances([network], [embeddings], sample.semantic, CITYSCAPES, min_size=4, guided=False)

    labels, table = found(embeddings, THINGS)
    assert sorted(row["category_id"] for row in table) == sorted([PERSON, CAR, CAR, BUS])
    assert torch.equal(labels > 0, torch.from_numpy(sample.instance > 0))  # the road is a cluster, too
    merged = torch.where(embeddings == 5 * 4, 0, embeddings)  # person and road in one cluster: mostly road
    assert [row["category_id"] for row in found(merged, (CAR, PERSON))[1]] == [CAR, CAR]
    metrics, _ = scored(sample, sample.semantic, [Network(Constant(embeddings), THINGS, **CLUSTERING)],
                        truth_shares=(0.0,), guided=False)  # fmt: skip
    assert metrics["vote"] == {}
    assert counts_of(metrics, 0) == {"car": "2 0 0", "bus": "1 0 0", "person": "1 0 0"}


def test_the_vote_repairs_a_split_bus(street):
    sample, embeddings = street
    predicted = sample.semantic.copy()
    predicted[2:7, 24:28] = CAR  # the last four of ten columns
    network = Network(Constant(embeddings), THINGS, **CLUSTERING)
    metrics, saved = scored(sample, predicted, [network], truth_shares=(0.0,))
    vote = metrics["vote"]
    assert vote["repaired"]["bus"] == vote["changed"] == 2 * 5 * 4
    assert sum(vote["repaired"].values()) == 2 * 5 * 4 and not any(vote["spoiled"].values())
    assert vote["images"] == [0, 1]
    assert vote["thing_pixels"] == 2 * (sample.instance > 0).sum()
    assert np.array_equal(saved["vote-0-after"], CITYSCAPES.colourise(sample.semantic))
    assert np.array_equal(saved["vote-0-before"], CITYSCAPES.colourise(predicted))

    (bicycle,) = CITYSCAPES.ids_of(["bicycle"])
    half = predicted.copy()
    half[10:12, 4:8] = bicycle  # the upper two of five rows of the person
    metrics, _ = scored(sample, half, [network], truth_shares=(0.0,))
    assert metrics["vote"]["changed"] == vote["changed"]  # no vote between people and bikes

    single = [Network(Constant(embeddings), (i,), **CLUSTERING) for i in THINGS]
    assert scored(sample, predicted, single, truth_shares=(0.0,))[0]["vote"] == {}  # one class: unanimous


def test_votes_are_counted_by_true_class_beside_void():
    before = np.array([[CAR, CAR, BUS, BUS, CAR]])
    after = np.array([[BUS, BUS, BUS, CAR, BUS]])
    truth = np.array([[BUS, CAR, BUS, PERSON, VOID]])
    votes = count_votes(before, after, truth, 19)
    assert votes["changed"] == 3
    assert np.flatnonzero(votes["repaired"]).tolist() == [BUS] and votes["repaired"][BUS] == 1
    assert np.flatnonzero(votes["spoiled"]).tolist() == [CAR] and votes["spoiled"][CAR] == 1


def test_masks_are_compared_beside_void():
    confusion = np.zeros((3, 3), np.int64)
    confusion[0, 0], confusion[0, 1], confusion[2, 0] = 6, 2, 5
    quality = evaluate_threat.mask_quality(confusion)
    assert quality["wrong_share"] == pytest.approx(0.25)
    assert quality["miou"] == pytest.approx((6 / 8 + 0) / 2)


def test_classes_of_batch_norm_runs_are_those_of_their_start():
    start = types.SimpleNamespace(spec=types.SimpleNamespace(classes=("car",)), parents=())
    adapted = types.SimpleNamespace(spec=types.SimpleNamespace(), parents=(("start", start),))
    assert learned_classes(start) == learned_classes(adapted) == ("car",)
