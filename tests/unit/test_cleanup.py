"""The clean-up of clusters: chosen by PQ of things, and taken by the scores that have it as a parent."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from panolib.config import ProfileError
from panolib.data.samples import Sample
from panolib.labels import NUCLEI
from panolib.load import load
from panolib.scoring import cleanup
from panolib.study.parents import cleanup_of

BACKGROUND, NUCLEUS = NUCLEI.stuff_ids[0], NUCLEI.thing_ids[0]


@pytest.fixture
def touching(monkeypatch):
    """Two squares side by side; a column of pixels between them has embeddings of its own."""
    instance = np.zeros((24, 40), np.int32)
    instance[4:20, 4:20], instance[4:20, 20:36] = 1, 2
    semantic = np.where(instance > 0, NUCLEUS, BACKGROUND).astype(np.uint8)
    embeddings = torch.from_numpy(10.0 * instance)[None].float()
    embeddings[0, 4:20, 19:21] = 15.0
    classes = torch.from_numpy(semantic).long()
    outputs = SimpleNamespace(
        semantic=classes, embeddings=embeddings,
        probabilities=torch.nn.functional.one_hot(classes, 2).movedim(-1, 0).float(),
    )  # fmt: skip
    monkeypatch.setattr(cleanup, "predict_image", lambda *_: outputs)
    image = np.zeros((24, 40, 3), np.uint8)
    return [Sample(image, semantic, instance, np.zeros(semantic.shape, bool), "touching")]


def choose(dataset, **settings):
    every = {"bandwidths": (1.0,), "merge_distances": (2.0,), "min_sizes": (4,), "openings": (0,)}
    every |= {"merge_rules": ("void",)} | settings
    return cleanup.choose_cleanup(None, None, dataset, NUCLEI, **every)


def test_what_separates_two_objects_is_no_third_one(touching):
    found = choose(touching, min_sizes=(4, 60), merge_rules=("void", "nearest"))
    pq = {(row["min_size"], row["merge_rule"]): row["pq"] for row in found["grid"]}
    assert pq[4, "void"] == pytest.approx(15 / 16 * 2 / 2.5) == pq[4, "nearest"], "a false one"
    assert pq[60, "void"] == pytest.approx(15 / 16) and pq[60, "nearest"] == pytest.approx(1.0)
    assert (found["min_size"], found["merge_rule"]) == (60, "nearest")


def test_an_opening_removes_what_is_thin_and_of_equal_settings_the_first_is_taken(touching):
    found = choose(touching, min_sizes=(4, 60), openings=(0, 3, 5), merge_rules=("nearest",))
    assert (found["min_size"], found["opening"]) == (4, 3)
    assert len(found["grid"]) == 6


def test_of_what_is_within_a_standard_error_the_widest_bandwidth_is_taken(touching):
    one = choose(touching, bandwidths=(12.0, 1.0), min_sizes=(60,), merge_rules=("nearest",))
    assert one["bandwidth"] == 1.0 and one["standard_error"] == 0, "at 12 both squares are one"
    many = touching * 3
    many.append(replace(many[0], instance=np.where(many[0].instance > 0, 1, 0).astype(np.int32)))
    found = choose(many, bandwidths=(1.0, 12.0), min_sizes=(60,), merge_rules=("nearest",))
    pq = [row["pq"] for row in found["grid"]]
    assert pq[0] > pq[1] and found["standard_error"] == pytest.approx(jackknife(many))
    assert found["bandwidth"] == (12.0 if pq[0] - pq[1] <= found["standard_error"] else 1.0)


def jackknife(dataset):
    """Standard error of the PQ at bandwidth 1, image by image."""
    left_out = []
    for k in range(len(dataset)):
        rest = dataset[:k] + dataset[k + 1 :]
        left_out.append(choose(rest, min_sizes=(60,), merge_rules=("nearest",))["grid"][0]["pq"])
    return np.sqrt((len(dataset) - 1) * np.var(left_out))


def test_without_any_object_the_first_setting_is_taken(touching):
    touching[0].instance[:], touching[0].semantic[:] = 0, BACKGROUND
    found = choose(touching, min_sizes=(1000, 2000))
    assert found["min_size"] == 1000 and np.isnan(found["grid"][0]["pq"])


def test_an_even_opening_is_told_before_anything_is_predicted(tmp_path):
    file = tmp_path / "even.yaml"
    choices = "{bandwidths: [1.0], merge_distances: [1.0], min_sizes: [4], openings: [0, 4]}"
    file.write_text(f"extends: smoke\ncity: {{cleanup: !replace {choices}}}\n")
    with pytest.raises(ProfileError, match=r"city.cleanup.*openings: expected 0 or odd kernels, found \[4\]"):
        load(file, root=tmp_path, train=False)


def test_scores_take_what_their_parent_chose():
    own = SimpleNamespace(min_size=12, opening=0, merge_rules=("void", "nearest"))
    chosen = SimpleNamespace(metrics={"min_size": 6, "opening": 3, "merge_rule": "nearest"})
    run = SimpleNamespace(spec=own, parents=())
    assert cleanup_of(run, None) == vars(own)
    run.parents = (("cleanup", None),)
    expected = {"min_size": 6, "opening": 3, "merge_rules": ("nearest", "void")}
    assert cleanup_of(run, lambda role: chosen) == expected
