"""Inference: semantic maps, instances in masks, morphology, panoptic maps; cases by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.inference.instances import clean_instances, predict_instances
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.predict import predict_semantic
from panolib.labels import CITYSCAPES, NUCLEI, VOID
from panolib.scoring.evaluate import score_semantic

ROAD, SKY, PERSON, CAR, BUS = CITYSCAPES.ids_of(("road", "sky", "person", "car", "bus"))


def as_map(text: str, **classes: int) -> np.ndarray:
    """A map drawn with one character per pixel; digits stand for themselves, "." for 0."""
    return np.array([[classes.get(c, int(c) if c.isdigit() else 0) for c in line] for line in text.split()])


def segments(info):
    return [(s["category_id"], s["isthing"], s["area"], s["iscrowd"]) for s in info]


# semantic


def test_logits_are_resized_before_the_decision():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2, :, 1] = 4.0
    logits[0, 1] = 1.0
    labels = predict_semantic(nn.Identity(), logits, (4, 8))
    # class 2 rises linearly 0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4 over the columns against a flat 1
    assert labels.tolist() == [[[1, 1, 1, 2, 2, 2, 2, 2]] * 4]
    assert labels.dtype == torch.uint8


def test_predicting_changes_no_weight_buffer_or_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 99, 1))
    model.train()
    model[1].eval()  # frozen batch norm inside a training model must come back frozen
    before = copy.deepcopy(model.state_dict())
    image = torch.randn(2, 3, 16, 24)
    first, second = (predict_semantic(model, image, (16, 24)) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert first.shape == (2, 16, 24)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True]


# instances


def test_instances_come_back_at_full_size_inside_their_class():
    embeddings = torch.zeros(2, 8, 16)
    embeddings[0, :, 8:] = 5.0
    semantic = torch.full((16, 32), SKY, dtype=torch.uint8)
    semantic[4:12, 4:28] = CAR
    semantic[4:12, 26] = BUS  # thinner than a cell of the embedding grid, and not under a cell's centre
    semantic[4, 4:8] = ROAD
    probabilities = torch.zeros(19, 16, 32)
    probabilities[CAR, :, :16] = 0.8
    probabilities[CAR, :, 16:] = 0.25
    labels, table = predict_instances(embeddings, semantic, CITYSCAPES, probabilities=probabilities)
    assert labels.shape == (16, 32) and labels.dtype == torch.int64
    assert torch.equal(labels > 0, semantic == CAR)
    left, right = int(labels[5, 4]), int(labels[5, 27])
    assert {left, right} == {1, 2}
    by_id = {row["id"]: row for row in table}
    assert by_id[left]["area"] == 8 * 12 - 4 and by_id[right]["area"] == 8 * 11
    assert by_id[left]["confidence"] == pytest.approx(0.8)
    assert by_id[right]["confidence"] == pytest.approx(0.25)
    assert [row["category_id"] for row in table] == [CAR, CAR]

    _, plain = predict_instances(embeddings, semantic.numpy(), CITYSCAPES, algorithm="connected_components")
    assert [row["confidence"] for row in plain] == [1.0]
    _, none = predict_instances(embeddings, semantic, CITYSCAPES, thing_ids=(PERSON,))
    assert none == []


def test_an_object_that_no_cell_sees_is_no_instance():
    semantic = torch.full((4, 8), SKY)
    semantic[1, 1] = PERSON  # a 3 x 6 grid looks at rows 0, 2, 3 and columns 0, 2, 3, 4, 6, 7
    semantic[:, 4:] = CAR
    semantic[0, 0] = PERSON
    _, table = predict_instances(torch.zeros(1, 3, 6), semantic, CITYSCAPES)
    assert [(row["id"], row["category_id"], row["area"]) for row in table] == [(1, PERSON, 1), (2, CAR, 16)]

    semantic[0, 0] = SKY  # now no cell shows the person
    labels, table = predict_instances(torch.zeros(1, 3, 6), semantic, CITYSCAPES)
    assert [(row["id"], row["category_id"], row["area"]) for row in table] == [(1, CAR, 16)]
    assert labels.unique().tolist() == [0, 1]


def test_ids_have_no_gap_where_an_instance_is_lost_on_the_way_back():
    semantic = torch.full((1, 1), PERSON)  # of a grid larger than the map only the middle cell returns,
    embeddings = torch.tensor([[[9.0, 9.0, 0.0, 9.0, 9.0]]])  # which is in the smaller, second cluster
    labels, table = predict_instances(embeddings, semantic, CITYSCAPES)
    assert [(row["id"], row["area"]) for row in table] == [(1, 1)] and labels.tolist() == [[1]]


def test_no_things_no_instances():
    labels, table = predict_instances(torch.zeros(4, 3, 3), torch.full((6, 6), VOID), CITYSCAPES)
    assert table == [] and not labels.any()


# morphology


def test_opening_removes_specks_and_closing_fills_gaps():
    labels = as_map("""
        .............
        .1111.1111...
        .1111.1111.1.
        .1111.1111...
        .1111.1111...
        .............
        ..2..........
    """)
    cleaned = clean_instances(labels)
    expected = labels.copy()
    expected[1:5, 5] = 1  # the gap between the halves
    expected[2, 11] = 0  # the speck
    expected[6, 2] = 0  # thinner than the kernel: the instance is gone
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(clean_instances(labels, kernel=1), labels)
    at_the_border = labels[1:, 1:]
    np.testing.assert_array_equal(clean_instances(at_the_border)[:4], expected[1:5, 1:])
    assert labels[2, 11] == 1  # the input is not changed


def test_holes_are_filled_unless_another_instance_is_inside():
    labels = np.ones((11, 11), int)
    labels[3:8, 3:8] = 0
    assert (clean_instances(labels) == 1).all()
    labels[4:7, 4:7] = 2
    cleaned = clean_instances(labels)
    assert (cleaned[4:7, 4:7] == 2).all() and (cleaned == 2).sum() == 9 and (cleaned > 0).all()


def test_instances_never_overlap_nor_take_pixels_from_each_other():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (8, 10)), np.ones((4, 4), int))
    specks = rng.random(labels.shape) < 0.1
    labels[specks] = rng.integers(0, 4, specks.sum())
    for kernel in (3, 5):
        cleaned = clean_instances(labels, kernel=kernel)
        both = (labels > 0) & (cleaned > 0)
        assert (cleaned[both] == labels[both]).all()
        assert (cleaned != labels).any() and set(np.unique(cleaned)) <= set(np.unique(labels))


def test_cleaning_keeps_the_kind_of_its_input_and_wants_an_odd_kernel():
    tensor = torch.zeros(5, 5, dtype=torch.int64)
    tensor[1:4, 1:4] = 3
    cleaned = clean_instances(tensor)
    assert torch.is_tensor(cleaned) and cleaned.dtype == torch.int64 and torch.equal(cleaned, tensor)
    assert not clean_instances(np.zeros((3, 3), np.int32)).any()
    with pytest.raises(ValueError, match="kernel is 4"):
        clean_instances(tensor, kernel=4)


# panoptic


SEMANTIC = as_map("""
    ssssssss
    cccccccc
    cccbppvv
    rrrrrrrr
""", s=SKY, c=CAR, b=BUS, p=PERSON, v=VOID, r=ROAD)  # fmt: skip
INSTANCE = as_map("""
    ........
    11..4444
    11.44...
    11......
""")


def test_merge_void_by_hand():
    panoptic_map, info = merge_panoptic(SEMANTIC.astype(np.uint8), INSTANCE, CITYSCAPES)
    # 1: cars 4, road 2 -> car; 4: cars 4, bus 1, person 1 -> car. The other car and person pixels: void
    assert segments(info) == [
        (ROAD, False, 6, 0), (SKY, False, 8, 0), (CAR, True, 6, 0), (CAR, True, 6, 0),
    ]  # fmt: skip
    assert panoptic_map.dtype == np.int32
    np.testing.assert_array_equal(panoptic_map, as_map("""
        22222222
        33..4444
        33.44...
        33111111
    """))  # fmt: skip


def test_merge_nearest_by_hand():
    panoptic_map, info = merge_panoptic(SEMANTIC, torch.from_numpy(INSTANCE), CITYSCAPES, rule="nearest")
    # cars at (1, 2), (2, 2) are next to instance 1; (1, 3) is next to 4. The person has no instance: void
    np.testing.assert_array_equal(panoptic_map[1:3, 2:4], [[3, 4], [3, 4]])
    assert panoptic_map[2, 5] == 0
    assert segments(info)[2:] == [(CAR, True, 8, 0), (CAR, True, 7, 0)]


def test_merge_nearest_stays_in_its_class():
    semantic = as_map("cccccppp", c=CAR, p=PERSON)
    instance = as_map("1.....2.")
    panoptic_map, _ = merge_panoptic(semantic, instance, CITYSCAPES, rule="nearest")
    assert panoptic_map.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2]]


def test_an_instance_without_thing_pixels_does_not_count():
    panoptic_map, info = merge_panoptic(as_map("rrss", r=ROAD, s=SKY), as_map(".55."), CITYSCAPES)
    assert panoptic_map.tolist() == [[1, 1, 2, 2]]
    assert segments(info) == [(ROAD, False, 2, 0), (SKY, False, 2, 0)]


def test_class_zero_is_a_segment_and_all_void_is_none():
    panoptic_map, info = merge_panoptic(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.int64), NUCLEI)
    assert (panoptic_map == 1).all() and segments(info) == [(0, False, 4, 0)]
    panoptic_map, info = merge_panoptic(np.full((2, 2), VOID), np.ones((2, 2), np.int64), NUCLEI)
    assert not panoptic_map.any() and info == []


def test_merge_errors():
    semantic, instance = np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.int64)
    with pytest.raises(ValueError, match=r"rule is 'all'.*void"):
        merge_panoptic(semantic, instance, NUCLEI, rule="all")
    with pytest.raises(ValueError, match="expected one size"):
        merge_panoptic(semantic, instance[:1], NUCLEI)
    with pytest.raises(ValueError, match=r"train id 7; nuclei has 0 \.\. 1"):
        merge_panoptic(semantic + 7, instance, NUCLEI)


def sample(semantic, instance, crowd) -> Sample:
    image = np.zeros((*semantic.shape, 3), np.uint8)
    return Sample(image, semantic.astype(np.uint8), instance, crowd, "a")


def test_truth_by_hand():
    semantic = as_map("sscccccppv", s=SKY, c=CAR, p=PERSON, v=VOID)
    instance = as_map("...99.....").astype(np.int32) * 100
    crowd = as_map("......1...").astype(bool)
    panoptic_map, info = panoptic_truth(sample(semantic, instance, crowd), CITYSCAPES)
    # cars at 2, 5 and 6 belong to no object: one group of cars, whether marked or not; so do the persons
    assert panoptic_map.tolist() == [[1, 1, 3, 4, 4, 3, 3, 2, 2, 0]]
    assert segments(info) == [
        (SKY, False, 2, 0), (PERSON, True, 2, 1), (CAR, True, 3, 1), (CAR, True, 2, 0),
    ]  # fmt: skip


def test_crowd_wins_over_an_instance_and_stuff_is_no_instance():
    semantic, instance = as_map("ccrr", c=CAR, r=ROAD), as_map("1122").astype(np.int32)
    crowd = np.array([[True, False, False, False]])
    panoptic_map, info = panoptic_truth(sample(semantic, instance, crowd), CITYSCAPES)
    assert segments(info) == [(ROAD, False, 2, 0), (CAR, True, 1, 1), (CAR, True, 1, 0)]
    assert panoptic_map.tolist() == [[2, 3, 1, 1]]


def test_truth_without_labels_is_an_error():
    with pytest.raises(ValueError, match="sample a lacks"):
        panoptic_truth(sample(np.zeros((1, 1)), None, None), NUCLEI)


def test_merging_true_labels_gives_the_truth():
    rng = np.random.default_rng(0)
    square = np.ones((5, 5), int)
    semantic = np.kron(rng.integers(0, 19, (6, 8)), square)
    is_thing = np.isin(semantic, CITYSCAPES.thing_ids)
    instance = np.where(is_thing, np.kron(np.arange(1, 49).reshape(6, 8), square), 0).astype(np.int32)
    truth = panoptic_truth(sample(semantic, instance, None), CITYSCAPES)
    for rule in ("void", "nearest"):
        merged = merge_panoptic(semantic, instance, CITYSCAPES, rule=rule)
        np.testing.assert_array_equal(merged[0], truth[0])
        assert merged[1] == truth[1]
    assert sorted(s["area"] for s in truth[1] if s["isthing"]) == [25] * (is_thing.sum() // 25)


def test_a_network_of_nan_is_not_scored():
    """An argmax of nan is a class like any other."""
    image = np.zeros((8, 9, 3), np.uint8)
    sample = Sample(image, image[..., 0], image[..., 0].astype(np.int32), image[..., 0] > 0, "street/7")
    model = nn.Conv2d(3, CITYSCAPES.n_classes, 1)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(FloatingPointError, match=r"street/7: .*hold nan"):
        score_semantic(model, [sample], CITYSCAPES)
