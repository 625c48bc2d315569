"""Parts of the recipe of notebook 16: what is pasted, which source images are drawn, which rows count."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_odd_sizes import (
    CAR,
    N_CLASSES,
    NETWORKS,
    ROAD,
    SAC,
    SEMANTIC,
    Once,
    crop,
    embedding_network,
    self_training_spec,
    streets,
)

from panolib.data import views
from panolib.data.loading import batches
from panolib.labels import CITYSCAPES, VOID
from panolib.losses import plain
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.training import semantic
from panolib.training.crops import (
    LabelledBatches,
    UnlabelledBatches,
    class_pixels,
    clean_view,
    ego_rows,
    rare_source_weights,
)
from panolib.training.instance import instance_self_train
from panolib.training.instance_targets import source_targets
from panolib.training.pasting import (
    half_of_classes,
    paste_classes,
    paste_instances,
    paste_labels,
    sure_instances,
)
from panolib.training.run_specs import SelfTrainingSpec
from panolib.training.setup import build_instance, build_semantic


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- classes of the source on views of the target ---------------------------------------------------------


@pytest.mark.parametrize("n_shown", range(6))
def test_half_of_the_classes_of_every_map_are_drawn_whole(n_shown):
    labels = torch.randint(3, 3 + n_shown, (50, 6, 9)) if n_shown else torch.full((50, 6, 9), VOID)
    labels[:, 0] = VOID
    found = half_of_classes(labels, N_CLASSES)
    for before, after in zip(labels, found):
        shown, kept = (set(values.unique().tolist()) - {VOID} for values in (before, after))
        assert len(kept) == len(shown) // 2 and kept <= shown
        assert torch.equal(after, torch.where(torch.isin(before, torch.tensor([*kept])), before, VOID))
    if n_shown > 1:
        assert len({tuple(values.unique().tolist()) for values in found}) > 1, "draws of their own"


def test_every_class_is_drawn_alike():
    labels = torch.arange(6).expand(4000, 1, 6)
    share = (half_of_classes(labels, N_CLASSES) != VOID).float().mean((0, 1))
    torch.testing.assert_close(share, torch.full((6,), 0.5), atol=0.03, rtol=0)


def test_classes_bring_their_pixels_and_labels_and_nothing_else_changes():
    source = {"image": torch.rand(2, 3, 8, 12), "semantic": torch.randint(0, 4, (2, 8, 12))}
    images = 2 + torch.rand(5, 3, 8, 12)  # two of a pair from crop 0 and 1, the last one from crop 0
    mixed, labels = paste_classes(images, source, N_CLASSES)
    for i, (image, own) in enumerate(zip(mixed, labels)):
        inside = own != VOID
        assert inside.any() and not inside.all()
        assert torch.equal(image[:, inside], source["image"][i % 2][:, inside])
        assert torch.equal(image[:, ~inside], images[i][:, ~inside])
        assert torch.equal(own[inside], source["semantic"][i % 2][inside])


def test_pasted_labels_are_sure_and_the_others_stay():
    pasted = torch.full((1, 4, 4), VOID)
    pasted[:, 2:, 2:] = 7
    pseudo_labels, confidence = torch.tensor([[[1, VOID], [2, 3]]]), torch.tensor([[[0.6, 0.1], [0.7, 0.8]]])
    labels, sure = paste_labels(pasted, pseudo_labels, confidence)
    assert labels.tolist() == [[[1, VOID], [2, 7]]]
    torch.testing.assert_close(sure, torch.tensor([[[0.6, 0.1], [0.7, 1.0]]]))
    assert confidence[0, 1, 1] == 0.8, "the caller's stays as it was"


# --- rare classes of the source ---------------------------------------------------------------------------


def test_rare_source_weights_by_hand():
    """Shares 0.8, 0.15 and 0.05; class 3 is nowhere. The first image shows one class, the second three."""
    pixels = torch.tensor([[100, 0, 0, 0], [60, 30, 10, 0]])
    weight = np.exp((1 - np.array([0.8, 0.15, 0.05])) / 0.5)
    weight /= weight.sum()
    expected = [weight[0] / 2, weight[0] / 2 + weight[1] + weight[2]]
    torch.testing.assert_close(
        rare_source_weights(pixels, temperature=0.5), torch.tensor(expected, dtype=torch.float64)
    )
    even = rare_source_weights(pixels, temperature=1e6)
    torch.testing.assert_close(even, torch.tensor([1 / 6, 5 / 6], dtype=torch.float64), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="2 labelled images show no class"):
        rare_source_weights(torch.zeros(2, 3), temperature=0.01)


def test_class_pixels_counts_labels_without_void():
    counts = class_pixels(streets((40, 61)), N_CLASSES)
    for sample, own in zip(streets((40, 61)), counts, strict=True):
        assert own.tolist() == [(sample.semantic == c).sum() for c in range(N_CLASSES)]


def test_batches_are_drawn_by_weight_and_go_on_exactly():
    source = streets((40, 61)) * 3
    for number, sample in enumerate(source):
        source[number] = dataclasses.replace(sample, image=np.full_like(sample.image, 40 * number))
    weights = torch.zeros(len(source), dtype=torch.float64)
    weights[[1, 4]] = torch.tensor([0.25, 0.75], dtype=torch.float64)
    shape = dataclasses.replace(crop((8, 12)), jitter_probability=0.0, scale=(0.1, 0.1))
    stream = LabelledBatches(source, 8, shape, weights=weights)
    whole = list(batches(stream, seed=5, start=0, stop=30))
    resumed = list(batches(stream, seed=5, start=28, stop=30))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(whole[28:], resumed, strict=True))
    brightness = torch.cat([batch["image"].mean((1, 2, 3)) for batch in whole])
    bright = (brightness > brightness.mean()).float().mean()
    assert brightness.round(decimals=2).unique().numel() == 2 and 0.65 < bright < 0.85


# --- rows of the own car ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.1, 4), (0.5, 20), (1.0, 40)])
def test_the_own_car_is_in_the_lowest_rows(share, rows):
    for found, sample in zip(ego_rows(streets((40, 61)), share), streets((40, 61)), strict=True):
        assert found["ego"].shape == sample.semantic.shape and found["ego"].sum() == rows * 61
        assert rows == 0 or found["ego"][-rows:].all()


def test_its_rows_move_with_the_crop_and_have_no_pseudo_label():
    spec = SelfTrainingSpec(
        **SEMANTIC, **SAC | {"n_views": 3}, network=NETWORKS["v2"], augmentation=crop((32, 48)),
        fusion_stride=1,
    )  # fmt: skip
    images = torch.linspace(0, 1, 32)[None, None, :, None].expand(2, 3, 32, 48)  # a pixel says its row
    crops = views.multi_view_crops(images, n_views=3, zoom=(0.5, 1.0))
    logits = torch.zeros(6, N_CLASSES, 32, 48)
    logits[:, 5] = 9.0
    prior = torch.full((N_CLASSES,), 0.1)
    ego = torch.zeros(2, 32, 48, dtype=torch.int64)
    ego[:, 24:] = 1
    placement = semantic.placement_of(build_semantic(NETWORKS["v2"], N_CLASSES))
    plain, sure = semantic.labels_of_views(spec, logits, placement, prior.clone(), crops, {})
    found, same = semantic.labels_of_views(spec, logits, placement, prior.clone(), crops, {"ego": ego})
    assert (plain[~crops.padding] == 5).all() and torch.equal(sure, same)
    row = crops.clean[:, 0] * 31
    away = (row - 23.5).abs() > 0.6  # between two rows the nearest one counts
    expected = torch.where(row > 23.5, VOID, plain)
    assert torch.equal(found[away], expected[away]) and (found == VOID).any() and (found == 5).any()


# --- in training ------------------------------------------------------------------------------------------


def trained(job=None, **values):
    torch.manual_seed(0)
    spec = SelfTrainingSpec(
        **SEMANTIC, **SAC, network=NETWORKS["v2"], augmentation=crop((32, 48)), fusion_stride=2, **values
    )
    state = build_semantic(NETWORKS["v2"], N_CLASSES).state_dict()
    job = job or Once()
    semantic.self_train(spec, job, state, streets((40, 61)), streets((40, 61)), N_CLASSES)
    job.assert_finite()
    return job.logged


def test_every_part_changes_its_own_loss():
    plain = trained()
    assert trained() == plain
    mixed, rare, ego = trained(class_mix=True), trained(rare_source=0.01), trained(ego_share=0.5)
    for name in ("source_loss", "coverage"):
        assert mixed[name] == plain[name]
    assert mixed["target_loss"] != plain["target_loss"] and rare["source_loss"] != plain["source_loss"]
    assert ego["source_loss"] == plain["source_loss"] and ego["coverage"] < plain["coverage"]
    assert trained(ego_share=1.0)["target_loss"] == 0.0


def test_ego_rows_ride_along_with_their_image():
    target = streets((40, 61))
    stream = UnlabelledBatches(target, 2, clean_view(crop((32, 48))), maps=ego_rows(target, 0.5))
    found = stream(0)["ego"]
    assert found.shape == (2, 32, 48) and found.dtype == torch.int64 and 0 < found.float().mean() < 1


# --- instances of the target ------------------------------------------------------------------------------


def test_sure_instances_by_hand():
    """Image 0: instance 1 is sure in the mean, 2 is not. Image 1: its own instance 1 is not."""
    instances = torch.tensor([[[1, 1, 2, 0]], [[1, 1, 1, 0]]])
    confidence = torch.tensor([[[0.9, 0.7, 0.7, 1.0]], [[0.7, 0.7, 0.7, 1.0]]])
    assert sure_instances(instances, confidence, 0.75).tolist() == [[[1, 1, 0, 0]], [[0, 0, 0, 0]]]
    assert torch.equal(sure_instances(instances, confidence, 0.0), instances)
    assert not sure_instances(torch.zeros_like(instances), confidence, 0.0).any()


def test_instances_are_pasted_whole_with_ids_of_their_own():
    source = {"image": torch.rand(3, 3, 8, 12), "semantic": torch.full((3, 8, 12), ROAD)}
    source |= {"instance": torch.zeros(3, 8, 12, dtype=torch.int64), "crowd": torch.ones(3, 8, 12).long()}
    source["instance"][:, :4] = 9
    images = 2 + torch.rand(2, 3, 8, 12)
    instances, semantic = torch.zeros(2, 4, 6, dtype=torch.int64), torch.full((2, 4, 6), VOID)
    instances[0, :, :3], semantic[0, :, :3] = 2, CAR
    before = {name: values.clone() for name, values in source.items()}
    found = paste_instances(source, images, instances, semantic)
    assert all(torch.equal(before[name], source[name]) for name in source)
    for number, of_target in ((0, 0), (2, 0)):  # crop 1 goes with the other target image, which has none
        inside = torch.zeros(8, 12, dtype=torch.bool)
        inside[:, :6] = True
        assert torch.equal(found["image"][number][:, inside], images[of_target][:, inside])
        assert (found["semantic"][number][inside] == CAR).all() and not found["crowd"][number][inside].any()
        assert (found["instance"][number][inside] == 11).all()
        for name, values in source.items():
            assert torch.equal(found[name][number][..., ~inside], values[number][..., ~inside])
    assert all(torch.equal(found[name][1], source[name][1]) for name in source)
    labels, ignore = source_targets(found, torch.zeros(3, 4, 4, 6), min_area=1)
    assert len(labels[0].unique()) == 2 and not ignore[0, :, :3].any() and ignore[0, :, 3:].all()


def test_an_instance_weighs_as_its_share_of_confident_pixels():
    """Each term is the mean of the terms of its instances, each with its weight, by the plain formulas."""
    embeddings = torch.randn(1, 3, 6, 8, dtype=torch.float64)
    labels = torch.zeros(1, 6, 8, dtype=torch.int64)
    labels[0, :2, :4], labels[0, 3:5, :4], labels[0, :, 6:] = 5, 2, 9
    confident = torch.zeros(1, 6, 8, dtype=torch.bool)
    confident[0, 3:5, :3], confident[0, :3, 6:], confident[0, 5] = True, True, True
    weight = {5: 0.0, 2: 6 / 8, 9: float(confident[labels == 9].float().mean())}
    weights = EmbeddingLossWeights(regulariser=1.0)
    found = embedding_loss(embeddings, labels, weights=weights, confident=confident)
    points, ids = embeddings[0].flatten(1).T, labels.flatten()
    alone = {
        "pull": lambda points, own: plain.pull_loss(points, own),
        "regulariser": lambda points, own: plain.regulariser(points, own),
        "object_dice": lambda points, own: plain.object_dice_loss(points, own),
    }
    for name, term in alone.items():
        parts = [w * term(points, torch.where(ids == label, label, 0)) for label, w in weight.items()]
        torch.testing.assert_close(found[name], sum(parts) / 3, msg=name)
    push = 0.0
    for a, b in ((5, 2), (5, 9), (2, 9)):
        pair = torch.where((ids == a) | (ids == b), ids, 0)
        push += plain.push_loss(points, pair) * (weight[a] + weight[b]) / 2 / 3
    torch.testing.assert_close(found["push"], push)


def test_sure_pixels_everywhere_are_no_weight_and_nowhere_no_loss():
    embeddings, labels = torch.randn(2, 4, 6, 8), torch.randint(0, 4, (2, 6, 8))
    labels[1] = 0  # an image without an instance
    ignore = torch.rand(2, 6, 8) < 0.2
    options = {"weights": EmbeddingLossWeights(), "ignore": ignore}
    plain_terms = embedding_loss(embeddings, labels, **options)
    everywhere = embedding_loss(embeddings, labels, **options, confident=torch.ones_like(ignore))
    nowhere = embedding_loss(embeddings, labels, **options, confident=torch.zeros_like(ignore))
    for name, term in plain_terms.items():
        torch.testing.assert_close(everywhere[name], term)
        assert term > 0 and nowhere[name] == 0
    with pytest.raises(ValueError, match="confident has shape"):
        embedding_loss(embeddings, labels, **options, confident=ignore[:1])


def instances_trained(level=255, **values):
    torch.manual_seed(0)
    network = embedding_network(2)
    spec = dataclasses.replace(self_training_spec((32, 48), network), monitor=None, **values)
    state, target, job = build_instance(network, pretrained=False).state_dict(), streets((40, 61)), Once()
    masks = [sample.semantic for sample in target]
    confidence = [np.full(mask.shape, level, np.uint8) for mask in masks] if spec.asks_confidence else None
    chosen = {"bandwidth": 0.5, "delta_dist": 2.0}
    instance_self_train(
        spec, job, state, streets((40, 61)), target, masks, CITYSCAPES, chosen, confidence=confidence
    )
    job.assert_finite()
    return job.logged


def test_each_part_changes_the_loss_of_its_domain():
    plain_run = instances_trained()
    assert instances_trained() == plain_run and plain_run["pseudo_instances"] > 0
    weighted = instances_trained(200, confident_weight=0.99)
    assert weighted["source_loss"] == plain_run["source_loss"]
    assert weighted["pull"] == weighted["object_dice"] == 0 and plain_run["object_dice"] > 0
    assert weighted["consistency"] == plain_run["consistency"]
    pasted, unsure = instances_trained(paste=0.75), instances_trained(100, paste=0.75)
    assert pasted["source_loss"] != plain_run["source_loss"]
    assert unsure["source_loss"] == pytest.approx(plain_run["source_loss"], rel=1e-5)
    assert pasted["target_loss"] == plain_run["target_loss"]


def test_parts_that_read_no_confidence_or_no_source_are_refused():
    spec = self_training_spec((32, 48), embedding_network(2))
    for name in ("confident_weight", "paste"):
        with pytest.raises(ValueError, match=f"{name}: expected none without masks"):
            dataclasses.replace(spec, guided=False, **{name: 0.5})
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"paste: expected none where a batch has one domain.*{share}"):
            dataclasses.replace(spec, source_share=share, paste=0.5)
