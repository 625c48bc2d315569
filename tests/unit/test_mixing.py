"""Selecting frames by class, joining data sets, and the source share of a batch."""

from __future__ import annotations

import operator
import pickle

import numpy as np
import pytest

from panolib.data.mixing import Concatenation, class_presence, source_share_counts
from panolib.data.samples import ImageSet, Sample
from panolib.labels import CAMVID, CITYSCAPES

TRUCK, TRAIN, ROAD = CITYSCAPES.ids_of(["truck", "train", "road"])


class Fake(ImageSet):
    """Images of one pixel row; `rows` are their train ids."""

    def __init__(self, name, rows, *, has_instances=True, label_set=CITYSCAPES, labels=True):
        self.name, self.label_set, self.has_instances = name, label_set, has_instances
        self.rows, self.labels = rows, labels
        self.ids = [f"{i:03d}" for i in range(len(rows))]

    def __getitem__(self, index):
        row = self.rows[operator.index(index)]
        image = np.zeros((1, len(row), 3), np.uint8)
        if not self.labels:
            return Sample(image, None, None, None, self.ids[index])
        semantic = np.array([row], np.uint8)
        known = np.ones_like(semantic, np.int32) * self.has_instances
        return Sample(image, semantic, known, known == 0, self.ids[index])


@pytest.fixture
def gta():
    rows = [[ROAD, TRUCK], [TRAIN, TRUCK], [TRAIN, 255], [ROAD, ROAD], [TRUCK, TRAIN]]
    return Fake("gta5", rows, has_instances=False)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_presence_of_classes_by_image(gta, n_workers):
    presence = class_presence(gta, n_workers=n_workers)
    assert presence.shape == (5, CITYSCAPES.n_classes)
    assert np.flatnonzero(presence[:, TRUCK]).tolist() == [0, 1, 4]
    assert np.flatnonzero(presence[:, [TRUCK, TRAIN]].all(axis=1)).tolist() == [1, 4]
    assert presence.sum() == 8  # and void is no class


def test_presence_reads_labels_only(gta):
    class LabelsOnly(Fake):
        def __getitem__(self, index):
            raise AssertionError("decodes the image")

        def semantic(self, index):
            return np.array([self.rows[index]], np.uint8)

    assert class_presence(LabelsOnly("gta5", gta.rows)).tolist() == class_presence(gta).tolist()


def test_presence_needs_labels(gta):
    with pytest.raises(ValueError, match="gta5: 000 has no labels"):
        class_presence(Fake("gta5", gta.rows, labels=False))


def test_concatenation_keeps_order_ids_and_who_knows_instances(gta):
    synthia = Fake("synthia", [[ROAD], [ROAD, 13]])
    mix = Concatenation([synthia, Fake("gta5", [gta.rows[4], gta.rows[1]], has_instances=False)])
    assert len(mix) == 4 and mix.name == "synthia+gta5" and mix.label_set is CITYSCAPES
    assert mix.ids == ["synthia/000", "synthia/001", "gta5/000", "gta5/001"]
    assert [sample.id for sample in mix] == mix.ids
    assert mix[-1].semantic.tolist() == [[TRAIN, TRUCK]]
    assert not mix.has_instances
    assert not mix[2].instance.any() and mix[2].crowd.all()

    nested = Concatenation([mix, synthia])
    assert pickle.loads(pickle.dumps(nested)).ids == nested.ids


def test_concatenation_errors(gta):
    with pytest.raises(ValueError, match=r"label sets \['camvid', 'cityscapes'\]"):
        Concatenation([gta, Fake("camvid", [[0]], label_set=CAMVID)])


@pytest.mark.parametrize(
    ("batch_size", "share", "expected"),
    [(4, 0.0, (0, 4)), (4, 0.25, (1, 3)), (8, 0.75, (6, 2)), (4, 1.0, (4, 0)), (3, 0.25, (1, 2)),
     (2, 0.25, (1, 1)), (10, 0.25, (3, 7)), (6, 0.05, (0, 6))],
)  # fmt: skip
def test_source_share_counts(batch_size, share, expected):
    assert source_share_counts(batch_size, share) == expected


@pytest.mark.parametrize(("batch_size", "share"), [(0, 0.5), (4, -0.1), (4, 1.1), (4, float("nan"))])
def test_source_share_outside_its_range(batch_size, share):
    with pytest.raises(ValueError, match=f"share = {share}"):
        source_share_counts(batch_size, share)
