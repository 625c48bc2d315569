"""Settings and arrays that no function can compute with are named; what is switched off gives no nan."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from panolib.clustering.algorithms import ALGORITHMS, IMAGE_ALGORITHMS, cluster
from panolib.clustering.labels import merge_close_clusters, stability_filter
from panolib.data.images import resize_labels
from panolib.inference import instances
from panolib.labels import CITYSCAPES
from panolib.losses import embedding, semantic
from panolib.metrics.average_precision import CityscapesAP
from panolib.related.realtime import layered_pseudo_labels
from panolib.training import pseudo_labels

CAR = CITYSCAPES.ids_of(["car"])[0]
EMBEDDINGS = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(6, 7, dtype=torch.bool)
LABELS = (torch.arange(42) % 4).view(6, 7)
INSTANCES = LABELS.clamp(max=1).numpy()
SEGMENTS = [{"id": 1, "category_id": CAR, "confidence": 0.5}]


@pytest.mark.parametrize(
    ("margin", "terms"),
    [("delta_var", ["pull", "object_dice"]), ("delta_dist", ["push", "unlabelled_push"])],
)
def test_margins_whose_squares_are_no_numbers_are_named(margin, terms):
    def loss(field, **margins):
        return embedding.embedding_loss(field[None], LABELS[None], weights=weights, **margins)[name]

    for name in terms:
        weights = replace(embedding.EmbeddingLossWeights(0, 0, 0, 0, 0, 0), **{name: 1.0})
        for value in (1e-30, 1e-20, 1e20, 3e38, math.nan, -1.0):
            with pytest.raises(ValueError, match=re.escape(f"{margin} is {value}, expected a finite")):
                loss(EMBEDDINGS, **{margin: value})
        for value in (1e-15, 1e-3, 1e15):
            field = EMBEDDINGS.clone().requires_grad_()
            found = loss(field, **{margin: value})
            found.backward()
            assert found.isfinite() and field.grad.isfinite().all(), (name, value)


def test_a_prior_above_one_by_rounding_is_no_nan():
    logits, labels = torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8)
    prior = torch.tensor([1.0 + 2**-23, 0.0])
    loss = semantic.self_training_loss(logits, labels, torch.ones(1, 3, 3), prior, focal_exponent=0.5)
    assert loss == 0


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, *IMAGE_ALGORITHMS])
def test_clustering_names_a_bandwidth_or_distance_that_is_none(algorithm):
    def labels(**options):
        return cluster(EMBEDDINGS, MASK, algorithm=algorithm, **options)

    for value in (math.nan, math.inf, -1.0):
        if algorithm != "agglomerative":
            with pytest.raises(ValueError, match=rf"bandwidth is {value}; expected a"):
                labels(bandwidth=value)
        if algorithm != "hdbscan":
            with pytest.raises(ValueError, match=rf"delta_dist is {value}; expected a finite number >= 0"):
                labels(delta_dist=value)
    assert labels(delta_dist=0.0).shape == MASK.shape
    with pytest.raises(ValueError, match=r"expected at least one dimension"):
        cluster(EMBEDDINGS[:0], MASK, algorithm=algorithm)


def test_a_bandwidth_below_the_rounding_of_the_points_is_named():
    """All points would be within it."""
    for points, bandwidth in ((EMBEDDINGS, 1e-30), (EMBEDDINGS * 1e20, 0.5)):
        with pytest.raises(ValueError, match=rf"bandwidth is {bandwidth}; expected at least"):
            cluster(points, MASK, bandwidth=bandwidth)
        with pytest.raises(ValueError, match=rf"bandwidth is {bandwidth}; expected at least"):
            stability_filter(LABELS, points, MASK, bandwidth=bandwidth)
    assert cluster(torch.ones(3, 6, 7), MASK, bandwidth=1e-30).unique().tolist() == [1]
    assert cluster(EMBEDDINGS, MASK, bandwidth=1e-7, delta_dist=None).max() == 42


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: cluster(EMBEDDINGS, MASK, algorithm="agglomerative", max_points=1), "max_points is 1"),
        (lambda: cluster(EMBEDDINGS, MASK, algorithm="hdbscan", min_cluster_size=1), "min_cluster_size is 1"),
        (lambda: merge_close_clusters(EMBEDDINGS[0], LABELS[:, 0], math.nan), "delta_dist is nan"),
        (lambda: stability_filter(LABELS, EMBEDDINGS, MASK, bandwidth=1.0, n_anchors=0), "n_anchors is 0"),
        (lambda: resize_labels(torch.zeros(0, 5), (2, 2)), "labels are 0 x 5"),
        (lambda: instances.predict_instances(EMBEDDINGS, np.zeros((0, 5), "u1"), CITYSCAPES), "are 0 x 5"),
        (lambda: pseudo_labels.update_class_prior(torch.ones(2), torch.ones(0, 2, 3, 3)), "one pixel"),
        (
            lambda: pseudo_labels.pseudo_label_quality(LABELS, LABELS[0]),
            r"pseudo_labels are \[6, 7\], truth \[7\]",
        ),
    ],
)
def test_one_error_names_the_value(function, message):
    with pytest.raises(ValueError, match=message):
        function()


def test_void_of_another_shape_is_not_broadcast():
    score, void = CityscapesAP(CITYSCAPES, min_region=1), np.zeros((1, 1), bool)
    with pytest.raises(ValueError, match=r"void is \(1, 1\), expected \(6, 7\)"):
        score.update(INSTANCES, SEGMENTS, INSTANCES, SEGMENTS, void=void)


def test_an_image_without_a_pixel_has_nothing_to_clean():
    for labels in (np.zeros((0, 5), np.uint16), torch.zeros(0, 0, dtype=torch.int32)):
        cleaned = instances.clean_instances(labels)
        assert cleaned.shape == labels.shape and cleaned.dtype == labels.dtype


@pytest.mark.parametrize("rule", layered_pseudo_labels.RULES)
def test_labels_are_selected_from_tensors_as_from_arrays(rule):
    labels, confidence = np.zeros((4, 5), "u1"), np.linspace(0.0, 1.0, 20).reshape(4, 5)
    (expected,) = layered_pseudo_labels.select_labels([labels], [confidence], 1, rule=rule)
    found = layered_pseudo_labels.select_labels(
        [torch.from_numpy(labels)], [torch.from_numpy(confidence)], 1, rule=rule
    )
    assert (found[0] == expected).all()
