"""The monitor of the semantic branch: when it scores, what, and that it leaves everything alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.labels import CITYSCAPES, VOID
from panolib.scoring.semantic_monitor import SemanticMonitor
from panolib.training.specs import Monitor

MONITOR = Monitor(interval=2, n_images=3, data=("city/train", "city/val"))
H, W = 8, 16


class Pictures:
    """A job that keeps names only."""

    def __init__(self):
        self.names = []

    def save_sample(self, name, image):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        self.names.append(name)


class Constant(nn.Module):
    """Class 0 on the left half, class 1 on the right; with statistics and dropout that must not move."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, image):
        self.dropout(self.norm(image))
        logits = torch.zeros(len(image), 19, H // 2, W // 2)
        logits[:, 0, :, : W // 4] = 1
        logits[:, 1, :, W // 4 :] = 1
        return logits


def sample(semantic, name="0"):
    image = np.zeros((H, W, 3), np.uint8)
    nothing = np.zeros((H, W), np.int32)
    return Sample(image, semantic, nothing, nothing > 0, name)


@pytest.fixture
def data():
    """val: all of class 0; train: class 0 in two images, all void in the third."""
    zeros, void = np.zeros((H, W), np.uint8), np.full((H, W), VOID, np.uint8)
    return {"city/train": [sample(zeros), sample(zeros), sample(void)], "city/val": [sample(zeros)] * 5}


def watch(data, monitor=MONITOR, stop=5):
    return SemanticMonitor(monitor, Pictures(), data, CITYSCAPES, stop)


def half(image):
    """Pseudo-labels: void in the top half, class 0 left and 1 right below."""
    labels = torch.full((1, H, W), VOID)
    labels[:, H // 2 :, : W // 2], labels[:, H // 2 :, W // 2 :] = 0, 1
    return labels


def test_scored_at_start_every_interval_and_end(data):
    found = watch(data)
    assert [i for i in range(6) if found(i, Constant())] == [0, 2, 4, 5]
    assert [i for i in range(6) if watch({}, None)(i, Constant())] == []


def test_scores_by_hand(data):
    scores = watch(data)(0, Constant(), half)
    # class 0: half of its pixels found; class 1: false positives only, so its IoU is 0; others do not appear
    assert scores["miou city/val"] == pytest.approx(0.25) == scores["miou city/train"]
    assert scores["label_coverage"] == pytest.approx(0.5) and scores["accuracy"] == pytest.approx(0.5)


def test_what_does_not_exist_is_left_out(data):
    scores = watch(data)(0, Constant(), lambda image: torch.full((1, H, W), VOID))
    assert "accuracy" not in scores and scores["label_coverage"] == 0
    all_void = {name: [sample(np.full((H, W), VOID, np.uint8))] for name in data}
    assert watch(all_void)(0, Constant(), half) == {}


def test_pictures_are_few_and_named_by_iteration(data):
    found = watch(data)
    for iteration in range(6):
        found(iteration, Constant(), half)
    names = found.job.names
    assert [n for n in names if "prediction" in n] == [
        f"city.val-{index:02d}-prediction-{iteration:06d}" for iteration in (0, 5) for index in (0, 1)
    ]
    assert [n for n in names if "pseudo" in n] == [
        f"city.train-{index:02d}-pseudo-{iteration:06d}" for iteration in (0, 2, 4, 5) for index in (0, 1)
    ]
    assert sorted(n for n in names if n.endswith(("image", "truth"))) == sorted(
        f"city.{split}-{index:02d}-{what}"
        for split in ("train", "val") for index in (0, 1) for what in ("image", "truth")
    )  # fmt: skip


def test_nothing_is_changed(data):
    network = Constant().train()
    network.norm.eval()  # as with frozen batch norm
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    watch(data)(0, network, lambda image: half(image * torch.rand(())))
    assert torch.equal(torch.rand(3), expected)
    assert network.training and network.dropout.training and not network.norm.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_data_set_without_labels_is_named(data):
    with pytest.raises(ValueError, match="city/train was opened without labels"):
        watch(data | {"city/train": [sample(None)]})
