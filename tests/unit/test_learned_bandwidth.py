"""A bandwidth that each instance learns: its loss against plain loops, its decoding by hand, training."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_odd_sizes import EMBEDDING, NETWORKS, Once, crop, embedding_network, self_training_spec, streets

from panolib.clustering.algorithms import cluster
from panolib.clustering.seeds import seeds, split_channels, width_kernel
from panolib.config import canonical_json
from panolib.labels import CITYSCAPES
from panolib.losses.learned_bandwidth import SMOOTHNESS, learned_bandwidth_loss
from panolib.scoring.evaluate import score_panoptic
from panolib.training.instance import train_instance_baseline
from panolib.training.run_specs import InstanceBaselineSpec
from panolib.training.setup import build_instance, build_semantic
from panolib.training.specs import SharedNetworks


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def learned(network):
    return dataclasses.replace(network, bandwidth="learned")


# --- the loss ---------------------------------------------------------------------------------------------


def plain(output, labels, ignore):
    """The terms of one image, pixel by pixel."""
    pixels = [
        (output[:-2, y, x].tolist(), float(output[-2, y, x]), float(output[-1, y, x]), int(labels[y, x]))
        for y in range(labels.shape[0]) for x in range(labels.shape[1]) if not ignore[y, x]
    ]  # fmt: skip
    ids = sorted({label for *_, label in pixels} - {0})
    terms, target = {"mask": 0.0, "smoothness": 0.0, "seed": 0.0}, {}
    for k in ids:
        own = [pixel for pixel in pixels if pixel[3] == k]
        centre = [sum(values) / len(own) for values in zip(*(e for e, *_ in own))]
        log_width = sum(s for _, s, _, _ in own) / len(own)
        kernel = [
            math.exp(-sum((a - b) ** 2 for a, b in zip(e, centre)) / (2 * math.exp(log_width) ** 2))
            for e, *_ in pixels
        ]
        overlap = sum(value for value, pixel in zip(kernel, pixels) if pixel[3] == k)
        terms["mask"] += (1 - 2 * overlap / (sum(value**2 for value in kernel) + len(own))) / len(ids)
        variance = sum((s - log_width) ** 2 for _, s, _, _ in own) / len(own)
        terms["smoothness"] += SMOOTHNESS * variance / len(ids)
        target |= {i: value for i, (value, pixel) in enumerate(zip(kernel, pixels)) if pixel[3] == k}
    for i, (_, _, seed, _) in enumerate(pixels):
        terms["seed"] += (1 / (1 + math.exp(-seed)) - target.get(i, 0.0)) ** 2 / len(pixels)
    return terms


def test_the_loss_equals_plain_loops():
    output, labels = torch.randn(3, 5, 6, 7, dtype=torch.float64), torch.randint(0, 4, (3, 6, 7)) * 7
    labels[2] = 0  # an image without an instance
    ignore = torch.rand(3, 6, 7) < 0.2
    found = learned_bandwidth_loss(output, labels, ignore=ignore)
    images = [plain(*image) for image in zip(output, labels, ignore)]
    for name, value in found.items():
        assert float(value) == pytest.approx(sum(terms[name] for terms in images) / 3)


@pytest.mark.parametrize("kind", ["no instance", "all ignored", "one pixel", "equal embeddings", "wide"])
def test_gradients_are_finite(kind):
    output = torch.zeros(1, 5, 4, 6) if kind == "equal embeddings" else torch.randn(1, 5, 4, 6)
    output = output * (1e3 if kind == "wide" else 1)
    labels, ignore = torch.ones(1, 4, 6, dtype=torch.int64), torch.zeros(1, 4, 6, dtype=torch.bool)
    labels[:, 2:] = 0 if kind == "no instance" else 2
    labels[:, :2] = 0 if kind in ("no instance", "one pixel") else 1
    if kind == "one pixel":
        labels[:], labels[0, 0, 0] = 0, 5
    ignore |= kind == "all ignored"
    output.requires_grad_()
    sum(learned_bandwidth_loss(output, labels, ignore=ignore).values()).backward()
    assert torch.isfinite(output.grad).all()
    with pytest.raises(ValueError, match="instance_labels has shape"):
        learned_bandwidth_loss(output, labels[:, 1:])


# --- decoding ---------------------------------------------------------------------------------------------


def points(*pixels):
    """[N, 3] of (place, log width, seed in [0, 1])."""
    return torch.tensor([(place, log_width, math.log(p / (1 - p))) for place, log_width, p in pixels])


def test_instances_grow_from_the_surest_pixel_as_wide_as_it_says():
    """Half the kernel is at 1.18 widths: the wide instance takes what is nearer than 4.7, the narrow 1.18."""
    found = seeds(points((0, math.log(4), 0.9), (4.6, 0, 0.6), (4.8, 0, 0.8), (5.9, 0, 0.55), (9, 0, 0.4)))
    assert found.tolist() == [1, 1, 2, 2, 0]
    assert seeds(points((0, 0, 0.4))).tolist() == [0]
    assert seeds(torch.zeros(0, 3)).shape == (0,)


def test_what_lies_for_half_in_earlier_instances_is_none():
    """The second proposal holds the pixels at 1, 1.1 and 1.5, of which the first took two."""
    found = seeds(points((0, 0, 0.9), (1, 0, 0.7), (1.1, 0, 0.6), (1.5, 0, 0.8)))
    assert found.tolist() == [1, 1, 1, 0]


def test_a_trained_map_is_cut_right_where_no_one_bandwidth_would():
    """One object of 40 x 40 pixels beside four of 4 x 4: optimised on its own loss, then decoded."""
    labels = torch.zeros(48, 64, dtype=torch.int64)
    labels[4:44, 2:42] = 1
    for k, y in enumerate(range(4, 44, 10), start=2):
        labels[y : y + 4, 50:54] = k
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    place = torch.stack([columns, rows]) / 8
    extra = torch.zeros(4, 48, 64, requires_grad=True)
    optimizer = torch.optim.Adam([extra], lr=0.05)
    for _ in range(150):
        output = torch.cat([place + extra[:2], extra[2:]])
        loss = sum(learned_bandwidth_loss(output[None], labels[None]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = cluster(output.detach(), labels > 0, algorithm="seeds", min_size=4)
    overlaps = [((found == k) & (labels == label)).sum() / ((found == k) | (labels == label)).sum()
                for label in range(1, 6) for k in [int(found[labels == label].mode().values)]]  # fmt: skip
    assert int(found.max()) == 5 and min(overlaps) > 0.8
    _, log_width, _ = split_channels(output.detach())
    assert log_width[labels == 1].mean() > log_width[labels == 3].mean()
    assert width_kernel(torch.zeros(2), torch.tensor([1e9, -1e9])).tolist() == [1.0, 1.0]


# --- as a network -----------------------------------------------------------------------------------------


def test_it_is_trained_and_scored():
    network, job = learned(embedding_network(2)), Once()
    spec = InstanceBaselineSpec(
        **EMBEDDING, network=network, augmentation=crop((32, 48)), selection="a", n_selection=1,
        bandwidths=(0.5,), merge_distances=(0.0,),
    )  # fmt: skip
    model = train_instance_baseline(spec, job, streets((40, 61)), CITYSCAPES).module
    job.assert_finite()
    assert {"mask", "smoothness", "seed"} < set(job.logged) and "pull" not in job.logged
    assert model.embed.out_channels == network.embedding_dim + 2
    scores = score_panoptic(
        build_semantic(NETWORKS["v3+"], CITYSCAPES.n_classes), build_instance(network), streets((40, 61)),
        CITYSCAPES, algorithm="seeds", min_size=1, merge_rules=("void",), opening=0, min_region=1,
        n_samples=0, save_sample=lambda name, image: None,
    )  # fmt: skip
    assert scores["n_images"] == 2 and "embedding in true masks" in scores["threat"]


def test_keys_stay_and_other_trainings_refuse_it():
    network = embedding_network(2)
    assert "bandwidth" not in canonical_json(network) and "bandwidth" in canonical_json(learned(network))
    spec = self_training_spec((32, 48), network)
    with pytest.raises(ValueError, match=r"network\.bandwidth: expected 'chosen' in self-training"):
        dataclasses.replace(spec, network=learned(network))
    plain_network = dataclasses.replace(network, coordinates=False)
    with pytest.raises(ValueError, match="bandwidth: expected 'chosen' in a shared network"):
        SharedNetworks(NETWORKS["v3+"], learned(plain_network))
