"""Is a cluster an object: features of masks made by hand, spoilt masks, classifiers, scores, the filter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from panolib.config import ProfileError
from panolib.load import load
from panolib.metrics.from_counts import false_share
from panolib.objectness.candidates import Candidates, only
from panolib.objectness.classifier import Objectness, calibrated_trees, fit, main_directions, reduced
from panolib.objectness.features import FAR, NAMES, describe, pool
from panolib.objectness.perturbations import REAL, best_iou, perturbed
from panolib.profiles import project_root
from panolib.scoring import objectness as scoring
from panolib.training.instance_targets import objects_only

SETTINGS = {"components": 2, "trees": 10, "leaves": 4, "folds": 3, "hidden": 8, "iterations": 100, "seed": 0}
PROFILES = project_root() / "notebooks" / "profiles"


def squares(*boxes, size=(20, 30)):
    """int64 Tensor: squares 1, 2, .. at (row, column, height, width)."""
    labels = torch.zeros(size, dtype=torch.int64)
    for number, (row, column, height, width) in enumerate(boxes, start=1):
        labels[row : row + height, column : column + width] = number
    return labels


def described(labels, *, places=None, confidence=1.0, bandwidth=0.5):
    """Features of masks whose embeddings are the number of the mask, 4 apart, or those of `places`."""
    places = torch.arange(int(labels.max()) + 1) if places is None else torch.tensor(places)
    embeddings = 4.0 * places[labels][None].float().repeat(2, 1, 1)
    maps = torch.stack([labels.float(), torch.ones(labels.shape)])
    sure = torch.full(labels.shape, confidence)
    return describe(
        labels, (labels > 0).long(), embeddings, embeddings, sure, maps, bandwidth=bandwidth
    )


def separated(n_images=9, *, noise=0.0, real=lambda n: np.arange(n) % 2 == 0):
    """Clusters of which the first feature, and the first channel of the encoder, say what they are."""
    rng = np.random.default_rng(0)
    truth = real(20 * n_images)
    values = rng.normal(size=(len(truth), len(NAMES)))
    values[:, 0] = truth + noise * rng.normal(size=len(truth))
    pooled = rng.normal(size=(len(truth), 4)).astype(np.float32)
    pooled[:, 0] = 4 * truth
    image = np.repeat(np.arange(n_images), 20)
    return Candidates(values, pooled, truth, image, np.zeros(len(truth), bool), n_images)


def first(found, n):
    """The first candidates only."""
    names = ("values", "pooled", "real", "image", "spoilt")
    return Candidates(*(getattr(found, name)[:n] for name in names), n_images=found.n_images)


def column(found, name: str) -> np.ndarray:
    """A feature of all clusters."""
    return found.values[:, NAMES.index(name)]


# --- features ---------------------------------------------------------------------------------------------


def test_features_of_squares_by_hand():
    found = described(squares((2, 2, 4, 4), (10, 0, 6, 3)), confidence=0.75)
    assert found.values.shape == (2, len(NAMES))
    assert column(found, "log_area") == pytest.approx(np.log([16, 18]))
    for name, value in (("solidity", 1.0), ("extent", 1.0), ("spread", 0.0), ("stability", 1.0)):
        assert column(found, name) == pytest.approx([value, value]), name
    assert column(found, "border") == pytest.approx([0.0, 6 / np.sqrt(18)])
    assert column(found, "margin") == pytest.approx([FAR, FAR])
    assert column(found, "confidence") == pytest.approx([0.75, 0.75])
    assert found.pooled == pytest.approx(np.array([[1, 1], [2, 1]]))


def test_a_cluster_of_two_objects_spreads_and_one_near_another_has_no_margin():
    labels = squares((2, 2, 4, 4), (2, 8, 4, 4), (12, 2, 4, 4))
    apart = described(labels, places=[0.0, 0.0, 0.1, 2.0], bandwidth=1.0)
    assert column(apart, "margin")[:2] == pytest.approx([0.4 * np.sqrt(2)] * 2, rel=1e-4)
    assert column(apart, "stability") == pytest.approx([0.5, 0.5, 1.0]), "the first two cut each other out"
    joined = torch.where(labels == 2, 1, labels)
    embeddings = 4.0 * labels[None].float()
    everywhere = torch.ones(labels.shape)
    found = describe(
        joined, (labels > 0).long(), embeddings, embeddings, everywhere, everywhere[None], bandwidth=1.0
    )
    assert column(found, "spread") == pytest.approx([2.0, 0.0])
    assert column(found, "solidity")[0] == pytest.approx(32 / 40) and column(found, "extent")[0] < 1


def test_no_cluster_and_one_pixel():
    none = described(squares())
    assert none.values.shape == (0, len(NAMES)) and none.pooled.shape == (0, 2)
    one = described(squares((5, 7, 1, 1)))
    wanted = {"log_area": 0.0, "solidity": 1.0, "extent": 1.0, "border": 0.0, "spread": 0.0, "margin": FAR}
    assert {name: column(one, name)[0] for name in wanted} == pytest.approx(wanted)
    assert np.isfinite(one.values).all() and np.isfinite(one.pooled).all()


def test_describing_draws_nothing_and_is_repeatable():
    labels = squares((2, 2, 4, 4), (10, 5, 6, 3))
    before = torch.random.get_rng_state()
    first, second = described(labels), described(labels)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(first.values, second.values) and np.array_equal(first.pooled, second.pooled)


def test_pooling_takes_the_cell_that_a_pixel_lies_in():
    labels = squares((0, 0, 2, 3), size=(4, 4))
    feature_map = torch.tensor([[[1.0, 3.0], [100.0, 100.0]]])  # cells of 2 x 2 pixels
    assert pool(labels, feature_map) == pytest.approx(np.array([[(4 * 1 + 2 * 3) / 6]]))


# --- spoilt masks -----------------------------------------------------------------------------------------


def test_best_overlap_by_hand():
    instances = squares((0, 0, 4, 4), (0, 10, 4, 4)).numpy()
    masks = squares((0, 0, 4, 4), (0, 12, 4, 4), (10, 0, 2, 2)).numpy()
    assert best_iou(masks, instances) == pytest.approx([1.0, 8 / 24, 0.0])
    assert best_iou(masks, 10**9 * instances) == pytest.approx([1.0, 8 / 24, 0.0]), "any ids"
    assert best_iou(masks, np.zeros_like(instances)) == pytest.approx([0, 0, 0])
    assert len(best_iou(np.zeros_like(masks), instances)) == 0


def test_spoilt_masks_are_no_objects_and_every_way_makes_some():
    instances = squares((1, 1, 6, 6), (1, 8, 6, 6), (1, 15, 6, 6), (10, 2, 8, 5), (11, 15, 6, 9)).numpy()
    found = perturbed(instances, min_size=2, rng=np.random.default_rng(0))
    assert set(found) == {"merged", "split", "shifted", "eroded"}
    for name, masks in found.items():
        assert masks.max() > 0, name
        assert sorted(np.unique(masks)) == list(range(masks.max() + 1))
        assert (best_iou(masks, instances) < REAL).all(), name
    again = perturbed(instances, min_size=2, rng=np.random.default_rng(0))
    assert all(np.array_equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize("boxes", [(), [(3, 3, 1, 1)], [(0, 0, 20, 30)]])
def test_nothing_one_pixel_and_the_whole_image_can_be_spoilt(boxes):
    instances = squares(*boxes).numpy()
    for masks in perturbed(instances, min_size=1, rng=np.random.default_rng(0)).values():
        assert (best_iou(masks, instances) < REAL).all()


# --- classifiers ------------------------------------------------------------------------------------------


def test_a_perfect_separation_is_learned_and_survives_its_state():
    found = separated()
    state = fit(found, **SETTINGS).state()
    model = Objectness.from_state({name: value.clone() for name, value in state.items()})
    for variant in ("boosting", "head"):
        sure = model.probability(found.values, found.pooled, variant)
        assert sure[found.real].min() > 0.6 > 0.4 > sure[~found.real].max(), variant
        assert ((sure >= 0) & (sure <= 1)).all()


def test_the_arrays_say_what_scikit_learn_says():
    found = separated(noise=0.7)
    model = fit(found, **SETTINGS)
    inputs = np.concatenate([found.values, reduced(found.pooled, model.centre, model.directions)], 1)
    part = found.image % SETTINGS["folds"]
    splits = [(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(SETTINGS["folds"])]
    theirs = calibrated_trees(inputs, found.real, splits, trees=10, leaves=4, seed=0)
    ours = model.probability(found.values, found.pooled)
    assert ours == pytest.approx(theirs.predict_proba(inputs)[:, 1], abs=1e-9)


def test_spoilt_masks_are_learned_from_but_do_not_move_the_calibration():
    found = separated(noise=0.7)
    spoilt = np.arange(len(found.real)) % 4 == 1
    assert not found.real[spoilt].any()
    model = fit(replace(found, spoilt=spoilt), **SETTINGS)
    clusters = ~spoilt
    assert model.prior[0] == found.real[clusters].mean()
    said = model.probability(found.values[clusters], found.pooled[clusters])
    assert said.mean() == pytest.approx(found.real[clusters].mean(), abs=0.05)


@pytest.mark.parametrize(
    ("kind", "prior"), [("none", 0.5), ("all real", 1.0), ("all false", 0.0), ("one", 1.0)]
)
def test_without_two_kinds_every_cluster_gets_the_share_of_real_ones(kind, prior):
    found = separated(real=lambda n: np.full(n, kind != "all false"))
    if kind in ("none", "one"):
        found = first(found, int(kind == "one"))
    model = Objectness.from_state(fit(found, **SETTINGS).state())
    other = separated()
    for variant in ("boosting", "head"):
        assert (model.probability(other.values, other.pooled, variant) == prior).all()
        assert len(model.probability(other.values[:0], other.pooled[:0], variant)) == 0


def test_main_directions_have_unit_variance_and_leave_out_what_is_constant():
    pooled = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32) * [3, 1, 0]
    centre, directions = main_directions(pooled.astype(np.float32), 3)
    assert directions.shape == (3, 2)
    assert np.cov(reduced(pooled, centre, directions).T) == pytest.approx(np.eye(2), abs=1e-4)
    assert main_directions(pooled[:1].astype(np.float32), 3)[1].shape == (3, 0)


# --- scores -----------------------------------------------------------------------------------------------


def test_area_under_roc_and_thresholds_by_hand():
    value, real = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, False, True, True, False])
    assert scoring.area_under_roc(value, real) == pytest.approx(4 / 6)
    assert scoring.area_under_roc(np.ones(5), real) == 0.5
    assert np.isnan(scoring.area_under_roc(value, np.ones(5, bool)))
    assert scoring.threshold_at(value, real, 0.66) == 0.7 and scoring.threshold_at(value, real, 1.0) == 0.6
    assert scoring.threshold_at(value, np.zeros(5, bool), 0.9) == -np.inf
    curve = scoring.roc(value, real)
    assert curve[0] == pytest.approx(1 / 3) and curve[-1] == 1.0 and (np.diff(curve) >= 0).all()
    assert scoring.roc(value, np.ones(5, bool)) == []
    even = np.linspace(0, 1, scoring.N_CURVE)
    assert scoring.roc(np.ones(5), real) == pytest.approx(even), "what knows nothing is the diagonal"
    assert scoring.roc(real.astype(float), real) == pytest.approx(np.ones(scoring.N_CURVE))


def test_scores_of_filters_and_their_counts():
    found, counts = separated(), {}
    model = fit(found, **SETTINGS)
    scores = scoring.score_filters(model, found, save_counts=counts.__setitem__, name="val")
    assert (scores["n_clusters"], scores["n_real"]) == (180, 90)
    assert set(scores["filters"]) == set(scoring.FILTERS)
    for name in ("boosting", "head", "size"):  # the first feature is the size
        assert scores["filters"][name]["auc"] == pytest.approx(1.0)
        assert scores["filters"][name]["precision_90"] == 1.0
        assert scores["filters"][name]["false_kept_95"] == 0.0
    assert 0.3 < scores["filters"]["stability"]["auc"] < 0.7
    for name in scoring.FILTERS:
        of_images = counts[f"objectness.val.{name}"]
        assert of_images.shape == (9, 1, 3) and of_images[:, 0, 0].sum() + of_images[:, 0, 2].sum() == 90
        precision = 1 - false_share(of_images.sum(0))
        assert precision == pytest.approx(scores["filters"][name]["precision_90"])


@pytest.mark.parametrize("kind", ["none", "real only"])
def test_data_without_clusters_or_with_one_kind_is_scored(kind):
    found = separated(real=lambda n: np.ones(n, bool))
    if kind == "none":
        found = first(found, 0)
    model = fit(separated(), **SETTINGS)
    scores = scoring.score_filters(model, found, save_counts=lambda *_: None, name="val")
    assert np.isnan(scores["filters"]["boosting"]["auc"]) and scores["roc"]["boosting"] == []


# --- the filter of self-training --------------------------------------------------------------------------


def test_clusters_that_are_dropped_are_unlabelled_and_the_others_numbered_anew():
    labels = squares((2, 2, 4, 4), (2, 10, 4, 4), (10, 2, 4, 4))
    kept = only(labels, np.array([True, False, True]))
    assert torch.equal(kept, squares((2, 2, 4, 4), (10, 2, 4, 4)))
    assert not only(labels, np.zeros(3, bool)).any()
    assert torch.equal(only(squares(), np.zeros(0, bool)), squares())


@pytest.mark.parametrize(("least", "kept"), [(0.0, 2), (0.9, 0)])
def test_pseudo_labels_of_a_batch_are_filtered(least, kept):
    model = replace(fit(separated(real=lambda n: np.ones(n, bool)), **SETTINGS), prior=np.array([0.5]))
    labels = torch.stack([squares((2, 2, 4, 4), (2, 10, 4, 4)), squares()])
    embeddings = labels[:, None].float().repeat(1, 2, 1, 1)
    confidence, maps = torch.full(labels.shape, 200), torch.ones(2, 4, 5, 7)
    found = objects_only(
        model, least, labels, (labels > 0).long(), confidence, embeddings, embeddings, maps, 0.5
    )
    assert found.shape == labels.shape and found[0].max() == kept and not found[1].any()


# --- as it is declared ------------------------------------------------------------------------------------


def test_the_classifier_reads_labels_of_the_source_and_one_setting_differs_between_filters(tmp_path):
    others = "camvid: null\nexperiments: null\ndetr: null\nrealtime: null\nperformance: null\n"
    file = tmp_path / "few.yaml"
    file.write_text(f"extends: smoke\n{others}refinement: null\nobjectness: {{domains: [city, nuclei]}}\n")
    loaded = load(file, root=tmp_path, train=False)
    tags = [(loaded.runs[tag.run], dict(tag.values)) for tag in loaded.tags if tag.experiment == "objectness"]
    for domain in ("city", "nuclei"):
        runs = {(at["part"], at.get("filter"), run.branch): run for run, at in tags if run.domain == domain}
        classifier = runs["classifier", None, "objectness"]
        assert classifier.spec.source == loaded.profile.ladders[domain].instance_source
        assert dict(classifier.parents)["instance"].rung == loaded.profile.ladders[domain].self_training_start
        trained = {name: runs["training", name, "instance"] for name in ("none", "stability", "objectness")}
        assert all(run.spec.target.endswith(":unlabelled") for run in trained.values())
        least = loaded.profile.objectness["least"]
        changed = {"objectness": {"objectness": least}, "stability": {"min_stability": 0.6}}
        for name, values in changed.items():
            assert replace(trained["none"].spec, **values) == trained[name].spec
        assert dict(trained["objectness"].parents)["objectness"] is classifier
        assert dict(runs["ranking", None, "objectness"].parents)["objectness"] is classifier
    file.write_text("extends: smoke\nobjectness: {least: 2.0}\n")
    with pytest.raises(ProfileError, match=r"few\.yaml: objectness: least: expected <= 1"):
        load(file, root=tmp_path, train=False)
