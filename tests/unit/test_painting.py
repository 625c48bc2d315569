"""Instances painted on pseudo-labels: what is painted, with which class, and where nothing changes."""

from __future__ import annotations

import pytest
import torch

from panolib.clustering.votes import paint_instances
from panolib.data import views
from panolib.labels import CITYSCAPES, VOID
from panolib.training.painting import crop_maps, paint_pseudo_labels

ROAD, CAR, BUS, TRAIN = CITYSCAPES.ids_of(("road", "car", "bus", "train"))
THINGS = CITYSCAPES.thing_ids
SIZE = (8, 12)


@pytest.fixture
def scene():
    """One image, two equal views: a bus that the teacher splits, a train it does not label, void around."""
    instance = torch.zeros(2, *SIZE, dtype=torch.int64)
    instance[:, 1:4, 1:7] = 70  # the bus
    instance[:, 5:7, 8:12] = 9  # the train
    semantic = torch.full((2, *SIZE), ROAD)
    semantic[:, 1:4, 1:7], semantic[:, 5:7, 8:12] = BUS, TRAIN
    best = torch.full((2, *SIZE), ROAD)
    best[:, 1:4, 1:5], best[:, 1:4, 5:7] = BUS, CAR
    best[:, 5:7, 8:12] = CAR
    fused = torch.full((2, CITYSCAPES.n_classes, *SIZE), 0.01)
    fused.scatter_(1, best[:, None], 0.82)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    pseudo_labels = best.clone()
    pseudo_labels[:, 5:7, 8:12] = VOID  # below the threshold
    pseudo_labels[:, :, 0] = VOID
    return {"pseudo_labels": pseudo_labels, "confidence": fused.amax(1), "fused": fused, "valid": valid}, {
        "semantic": semantic,
        "instance": instance,
    }


def paint(scene, names=("semantic", "instance"), *, share=1.0, n_views=2):
    predictions, maps = scene
    chosen = {name: maps[name] for name in names}
    return paint_pseudo_labels(**predictions, maps=chosen, n_views=n_views, thing_ids=THINGS, share=share)


def test_share_0_changes_nothing(scene):
    labels, confidence = paint(scene, share=0.0)
    assert torch.equal(labels, scene[0]["pseudo_labels"]) and torch.equal(confidence, scene[0]["confidence"])


def test_share_1_paints_every_true_instance_at_confidence_1_and_keeps_void_elsewhere(scene):
    labels, confidence = paint(scene)
    before, maps = scene[0], scene[1]
    inside = maps["instance"] > 0
    assert torch.equal(labels[inside], maps["semantic"][inside])
    assert (confidence[inside] == 1).all()
    assert torch.equal(labels[~inside], before["pseudo_labels"][~inside])
    assert (labels[:, :, 0] == VOID).all()
    assert torch.equal(confidence[~inside], before["confidence"][~inside])


def test_a_predicted_instance_takes_the_class_of_its_vote_and_keeps_the_confidence(scene):
    labels, confidence = paint(scene, ("instance",))
    assert (labels[:, 1:4, 1:7] == BUS).all()  # 12 votes for bus, 6 for car
    assert (labels[:, 5:7, 8:12] == CAR).all()  # void before: votes count below thresholds
    assert torch.equal(confidence, scene[0]["confidence"])
    assert torch.equal(scene[0]["pseudo_labels"][0, 1:4, 5], torch.full((3,), CAR)), "input is unchanged"


def test_all_views_of_an_image_vote_together(scene):
    predictions, _ = scene
    predictions["fused"][1, :, 1:4, 1:7] = 0.01
    predictions["fused"][1, CAR, 1:4, 1:7] = 0.82  # car: 6 + 18 of 36
    assert (paint(scene, ("instance",))[0][:, 1:4, 1:7] == CAR).all()
    apart = paint(scene, ("instance",), n_views=1)[0]
    assert (apart[0, 1:4, 1:7] == BUS).all() and (apart[1, 1:4, 1:7] == CAR).all()


def test_an_instance_without_a_thing_pixel_is_not_painted(scene):
    predictions, maps = scene
    maps["instance"][:] = 0
    maps["instance"][:, 0, 9:11] = 3  # on the road
    assert torch.equal(paint(scene, ("instance",))[0], predictions["pseudo_labels"])
    maps["instance"][:] = 0  # no instance at all
    assert torch.equal(paint(scene, ("instance",))[0], predictions["pseudo_labels"])
    assert torch.equal(paint(scene)[0], predictions["pseudo_labels"])


def test_all_void_stays_void_outside_instances(scene):
    predictions, maps = scene
    predictions["valid"][:], predictions["pseudo_labels"][:] = False, VOID
    assert (paint(scene, ("instance",))[0] == VOID).all()  # nobody can vote
    assert torch.equal(paint(scene)[0] != VOID, maps["instance"] > 0)


def test_a_share_of_the_instances_is_drawn_and_the_same_in_all_views(scene):
    predictions, maps = scene
    maps["instance"] = torch.arange(1, 97).view(1, *SIZE).expand(2, *SIZE).contiguous()
    maps["semantic"][:] = CAR
    torch.manual_seed(0)
    labels, _ = paint(scene, share=0.3)
    painted = labels != predictions["pseudo_labels"]
    eligible = (predictions["pseudo_labels"] != CAR).sum()
    assert 0.2 < painted.sum() / eligible < 0.4
    assert torch.equal(painted[0], painted[1])


def test_paint_instances_by_hand():
    painted, inside = paint_instances(
        torch.tensor([[VOID, ROAD, ROAD]]), torch.tensor([[1, 2, 0]]), torch.tensor([-1, CAR, -1])
    )
    assert painted.tolist() == [[CAR, ROAD, ROAD]] and inside.tolist() == [[True, False, False]]


def test_maps_ride_along_with_the_crops_of_their_image():
    """A map painted into the image as well stays where the image has it, through crop, zoom and flip."""
    torch.manual_seed(3)
    instance = torch.zeros(2, 32, 48, dtype=torch.int64)
    instance[0, 4:20, 6:30], instance[1, 10:30, 20:40] = 5, 7
    image = (instance > 0).float()[:, None].repeat(1, 3, 1, 1)
    crops = views.multi_view_crops(image, n_views=4, zoom=(0.4, 0.9))
    maps = crop_maps({"instance": instance}, crops, (32, 48))["instance"]
    seen = crops.clean[:, 0]
    clear = (seen - 0.5).abs() > 0.49  # away from interpolated edges
    assert maps.shape == (8, 32, 48) and clear.float().mean() > 0.8
    assert torch.equal((maps > 0)[clear], (seen > 0.5)[clear])
    assert set(maps[:4].unique().tolist()) == {0, 5} and set(maps[4:].unique().tolist()) == {0, 7}
    small = crop_maps({"instance": instance}, crops, (16, 24))["instance"]
    assert (small == maps[:, ::2, ::2]).float().mean() > 0.95
