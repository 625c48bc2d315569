"""Guidance: instances inside class masks, class votes inside instances."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from panolib.clustering.corrected_masks import corrected
from panolib.clustering.in_masks import (
    cluster_batch_in_class_masks,
    cluster_batch_unguided,
    cluster_in_class_masks,
    cluster_unguided,
)
from panolib.clustering.votes import vote_categories, vote_semantic_class
from panolib.labels import CITYSCAPES, VOID
from panolib.study import kinds

ROAD, PERSON, CAR, BUS = CITYSCAPES.ids_of(("road", "person", "car", "bus"))
THINGS = CITYSCAPES.thing_ids


@pytest.fixture
def street():
    """Two touching cars, one person with the embedding of the left car, road around; 12 x 20."""
    semantic = torch.full((12, 20), ROAD)
    semantic[2:6, 2:14] = CAR
    semantic[8:11, 4:7] = PERSON
    embeddings = torch.zeros(3, 12, 20)
    embeddings[0, 2:6, 8:14] = 6.0
    embeddings += 0.02 * torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0))
    return embeddings, semantic


def test_classes_are_clustered_apart_and_touching_objects_are_found(street):
    embeddings, semantic = street
    labels, table = cluster_in_class_masks(embeddings, semantic, THINGS)
    assert labels.dtype == torch.int64
    assert [(row["id"], row["category_id"], row["area"]) for row in table] == [
        (1, PERSON, 9), (2, CAR, 24), (3, CAR, 24),
    ]  # fmt: skip
    assert all(math.isnan(row["stability"]) for row in table)
    assert torch.equal(labels > 0, (semantic == CAR) | (semantic == PERSON))
    assert (labels[8:11, 4:7] == 1).all()  # the left car has the same embedding but another class
    assert len(labels[2:6, 2:8].unique()) == len(labels[2:6, 8:14].unique()) == 1
    for row in table:
        assert (labels == row["id"]).sum() == row["area"]


def test_connected_components_are_the_control(street):
    embeddings, semantic = street
    _, table = cluster_in_class_masks(embeddings, semantic, THINGS, algorithm="connected_components")
    assert [(row["category_id"], row["area"]) for row in table] == [(PERSON, 9), (CAR, 48)]


def test_min_size_drops_masks_and_clusters(street):
    embeddings, semantic = street
    embeddings[0, 2:6, 12:14] = 12.0  # right car loses 8 pixels to a third cluster
    labels, table = cluster_in_class_masks(embeddings, semantic, THINGS, min_size=10)
    assert [(row["id"], row["category_id"], row["area"]) for row in table] == [(1, CAR, 24), (2, CAR, 16)]
    assert not labels[2:6, 12:14].any() and not labels[8:11].any()


def test_only_the_asked_classes(street):
    _, table = cluster_in_class_masks(*street, (PERSON,))
    assert [row["category_id"] for row in table] == [PERSON]


def test_nothing_to_find():
    labels, table = cluster_in_class_masks(torch.zeros(2, 4, 4), torch.full((4, 4), VOID), THINGS)
    assert table == [] and labels.shape == (4, 4) and not labels.any()


def test_unstable_instances_are_dropped_and_ids_stay_consecutive(street):
    embeddings, semantic = street
    teacher = embeddings.clone()
    teacher[1, 8:11, 4:7] = torch.arange(9.0).view(3, 3) * 3  # the teacher tears the person into pixels
    labels, table = cluster_in_class_masks(
        embeddings, semantic, THINGS, second_embeddings=teacher, min_stability=0.6
    )
    assert [(row["id"], row["category_id"], row["stability"]) for row in table] == [
        (1, CAR, 1.0), (2, CAR, 1.0),
    ]  # fmt: skip
    assert not labels[8:11].any() and labels.unique().tolist() == [0, 1, 2]
    _, table = cluster_in_class_masks(embeddings, semantic, THINGS, second_embeddings=teacher)
    assert [round(row["stability"], 4) for row in table] == [0.1111, 1.0, 1.0]


def test_connected_objects_are_split_where_one_embedding_names_two_of_them(street):
    embeddings, semantic = street
    semantic[8:11, 4:7] = CAR  # now three cars, two of them with one embedding, 2 pixels apart
    far_apart, _ = cluster_in_class_masks(embeddings, semantic, THINGS)
    assert far_apart.max() == 2
    labels, table = cluster_in_class_masks(embeddings, semantic, THINGS, connected=True)
    assert sorted(row["area"] for row in table) == [9, 24, 24]
    areas = [(labels == row["id"]).sum() for row in table]
    assert labels.max() == 3 and areas == [
        row["area"] for row in table
    ]

    # the size filter sees the regions, and every region keeps the stability of its cluster
    labels, table = cluster_in_class_masks(
        embeddings,
        semantic,
        THINGS,
        connected=True,
        min_size=10,
        second_embeddings=embeddings,
        min_stability=0.5,
    )
    assert [row["area"] for row in table] == [24, 24] and not labels[8:11].any()
    assert all(row["stability"] == pytest.approx(1.0) for row in table)


def test_options_reach_the_algorithm_and_wrong_ones_fail_even_without_things(street):
    embeddings, semantic = street
    options = {"algorithm": "mean_shift_peel", "min_points": 999}  # no place is that dense: one mode a mask
    _, table = cluster_in_class_masks(embeddings, semantic, THINGS, **options)
    assert [row["category_id"] for row in table] == [PERSON, CAR]
    road = torch.full((12, 20), ROAD)
    with pytest.raises(TypeError, match="no option"):
        cluster_in_class_masks(embeddings, road, THINGS, seeds=1)
    with pytest.raises(ValueError, match="algorithm is 'kmeans'"):
        cluster_in_class_masks(embeddings, road, THINGS, algorithm="kmeans")
    with pytest.raises(ValueError, match="needs second_embeddings"):
        cluster_in_class_masks(embeddings, road, THINGS, min_stability=0.6)
    with pytest.raises(ValueError, match=r"embeddings are \[3, 12, 20\]"):
        cluster_in_class_masks(embeddings, road[:, 1:], THINGS)
    with pytest.raises(ValueError, match="second_embeddings are"):
        cluster_in_class_masks(embeddings, road, THINGS, second_embeddings=embeddings[:, 1:])


def test_generator_makes_subsamples_repeat(street):
    embeddings, semantic = street
    runs = [
        cluster_in_class_masks(
            embeddings, semantic, THINGS, algorithm="agglomerative", max_points=2,
            generator=torch.Generator().manual_seed(4),
        )[0]
        for _ in range(2)
    ]
    assert torch.equal(*runs)


def batch_of_streets(street):
    """The street, the same mirrored with more noise, and a road without things."""
    embeddings, semantic = street
    noise = 0.3 * torch.randn(3, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    fields = torch.stack([embeddings, embeddings.flip(-1), embeddings]) + noise
    return fields, torch.stack([semantic, semantic.flip(-1), torch.full_like(semantic, ROAD)])


@pytest.mark.parametrize("algorithm", ["mean_shift_plus", "mean_shift_peel", "agglomerative"])
@pytest.mark.parametrize("guided", [True, False])
def test_a_batch_has_the_results_and_draws_of_its_images(street, algorithm, guided):
    fields, maps = batch_of_streets(street)
    others = fields + 0.1
    one, all_at_once = (
        (cluster_in_class_masks, cluster_batch_in_class_masks) if guided
        else (cluster_unguided, cluster_batch_unguided)
    )  # fmt: skip
    found = []
    for batched in (True, False):
        options = {"algorithm": algorithm, "generator": torch.Generator().manual_seed(3), "connected": True}
        options |= {"max_points": 30} if algorithm == "agglomerative" else {}
        if batched:
            found.append(all_at_once(fields, maps, THINGS, second_embeddings=others, **options))
        else:
            views = zip(fields, maps, others)
            found.append([one(f, m, THINGS, second_embeddings=o, **options) for f, m, o in views])
    for (labels, table), (expected, expected_table) in zip(*found):
        assert torch.equal(labels, expected) and table == expected_table
    assert not found[0][2][1] and (found[0][0][1] or not guided)


# votes


def test_vote_by_hand():
    semantic = torch.tensor([[BUS, BUS, CAR, ROAD, ROAD, ROAD, PERSON, VOID]], dtype=torch.uint8)
    instance = torch.tensor([[7, 7, 7, 7, 7, 7, 0, 2]])
    voted = vote_semantic_class(semantic, instance, THINGS)
    # bus wins over car, and over road although road has more pixels; void-only instance 2 stays void
    assert voted.tolist() == [[BUS] * 6 + [PERSON, VOID]]
    assert voted.dtype == torch.uint8
    assert semantic[0, 2] == CAR  # the input is not changed
    assert vote_categories(semantic, instance, THINGS).tolist() == [-1, -1, -1, -1, -1, -1, -1, BUS]


def test_vote_edges():
    semantic = torch.tensor([[CAR, BUS]])
    assert vote_semantic_class(semantic, torch.tensor([[1, 1]]), THINGS).tolist() == [[CAR, CAR]]  # lower id
    assert torch.equal(vote_semantic_class(semantic, torch.tensor([[0, 0]]), THINGS), semantic)
    assert torch.equal(vote_semantic_class(semantic, torch.tensor([[1, 1]]), ()), semantic)
    assert vote_semantic_class(semantic, torch.tensor([[1, 1]]), (BUS,)).tolist() == [[BUS, BUS]]
    with pytest.raises(ValueError, match="one grid"):
        vote_semantic_class(semantic, torch.zeros(2, 2, dtype=torch.int64), THINGS)


@pytest.fixture
def spotted():
    """A truth of car and road with a void corner, and a prediction with three tenths of wrong pixels."""
    generator = np.random.default_rng(3)
    truth = np.where(generator.random((40, 60)) < 0.5, CAR, ROAD).astype(np.uint8)
    truth[:10, :10] = VOID
    return np.where(generator.random(truth.shape) < 0.3, BUS, truth).astype(np.uint8), truth


def test_corrected_ends_at_the_prediction_and_at_the_truth(spotted):
    prediction, truth = spotted
    assert np.array_equal(corrected(prediction, truth, 0), prediction)
    expected = np.where(truth == VOID, prediction, truth)
    assert np.array_equal(corrected(prediction, truth, 1), expected)
    assert corrected(prediction, truth, 0.5).dtype == prediction.dtype


def test_corrected_sets_about_the_share_of_wrong_pixels_right_and_breaks_none(spotted):
    prediction, truth = spotted
    wrong = (prediction != truth) & (truth != VOID)
    before = np.zeros_like(wrong)
    for share in (0.25, 0.5, 0.75):
        result = corrected(prediction, truth, share)
        changed = result != prediction
        assert (result[changed] == truth[changed]).all()
        assert (changed <= wrong).all() and (before <= changed).all()  # never void; more of the same
        assert changed.sum() / wrong.sum() == pytest.approx(share, abs=0.02)
        before = changed


def test_corrected_takes_whole_regions_of_a_true_class():
    truth = np.full((6, 9), ROAD, np.uint8)
    truth[1:3, 1:3] = CAR
    truth[3, 3] = CAR  # joined to the square by a corner
    truth[3, 4] = PERSON  # beside it, another class
    prediction = np.full((6, 9), ROAD, np.uint8)
    changes = {(corrected(prediction, truth, 0.5, seed=seed) != prediction).sum() for seed in range(20)}
    assert changes == {1, 5}  # the person alone, or the car
    assert {corrected(prediction, truth, 0.8, seed=seed)[1, 1] for seed in range(20)} == {CAR}


@pytest.mark.parametrize("truth", [np.full((4, 5), VOID), np.full((4, 5), ROAD)])
def test_corrected_has_nothing_to_do_without_wrong_pixels(truth):
    prediction = np.full((4, 5), ROAD)
    for share in (0, 0.5, 1):
        assert np.array_equal(corrected(prediction, truth, share), prediction)


def test_corrected_refuses_other_shares_and_grids():
    with pytest.raises(ValueError, match=r"share is 1\.2"):
        corrected(np.zeros((2, 2)), np.zeros((2, 2)), 1.2)
    with pytest.raises(ValueError, match="one grid"):
        corrected(np.zeros((2, 2)), np.zeros((2, 3)), 0.5)


def test_masks_of_one_guide_are_predicted_once_for_runs_that_ask_in_turn(monkeypatch):
    """Most instance runs of a study have the same guide: predicting anew took a fifth of each."""
    asked = []

    def predicted(guide, target, label):
        asked.append((guide, label))
        return [np.full((2, 2), len(asked), np.uint8) for _ in target]

    monkeypatch.setattr(kinds.evaluate, "predicted_masks", predicted)
    monkeypatch.setattr(kinds, "_last_masks", {})

    def job(key, name, guide="student"):
        run = SimpleNamespace(name=name, domain="city", parents=(("semantic", SimpleNamespace(key=key)),))
        return SimpleNamespace(run=run, spec=SimpleNamespace(guide=guide, compute="cpu"))

    images = ["image", "image"]
    first = kinds.guiding_masks(job("a", "one"), "guide", images)
    first[0] = None  # a caller that corrects its own list changes no other's
    second = kinds.guiding_masks(job("a", "two"), "guide", images)
    assert [mask.max() for mask in second] == [1, 1]
    assert kinds.guiding_masks(job("b", "three"), "guide", images)[0].max() == 2
    assert kinds.guiding_masks(job("b", "four", "teacher"), "guide", images)[0].max() == 3
    assert kinds.guiding_masks(job("b", "five", "teacher"), "guide", list(images))[0].max() == 4
    assert [label for _, label in asked] == [f"{name}: masks" for name in ("one", "three", "four", "five")]
