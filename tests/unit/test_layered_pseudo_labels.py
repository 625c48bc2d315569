"""Votes of several heads and thresholds per class, against plain loops and by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

from panolib.labels import VOID
from panolib.related.realtime.layered_pseudo_labels import (
    keep_confident,
    median_thresholds,
    reference_thresholds,
    select_labels,
    vote,
)


def heads(n, *, batch=2, n_classes=4, size=(5, 7), seed=0):
    draws = torch.randn(n, batch, n_classes, *size, generator=torch.Generator().manual_seed(seed))
    return list((2 * draws).softmax(2))


def slow_vote(probabilities):
    batch, n_classes, height, width = probabilities[0].shape
    labels, confidence = np.zeros((batch, height, width), int), np.zeros((batch, height, width))
    for b, y, x in np.ndindex(batch, height, width):
        pixel = [head[b, :, y, x].tolist() for head in probabilities]
        votes = [max(range(n_classes), key=p.__getitem__) for p in pixel]
        sums = [sum(p[c] for p, v in zip(pixel, votes) if v == c) for c in range(n_classes)]
        labels[b, y, x] = sums.index(max(sums))
        agreeing = [p[v] for p, v in zip(pixel, votes) if v == labels[b, y, x]]
        confidence[b, y, x] = sum(agreeing) / len(agreeing)
    return labels, confidence


@pytest.mark.parametrize("n", [1, 2, 3])
def test_vote_equals_the_loop(n):
    labels, confidence = vote(heads(n))
    expected_labels, expected_confidence = slow_vote(heads(n))
    assert np.array_equal(labels.numpy(), expected_labels)
    np.testing.assert_allclose(confidence.numpy(), expected_confidence, rtol=1e-5)


def test_vote_by_hand():
    """Two weak votes beat a strong one; a strong one beats one weak."""

    def pixel(*p):
        return torch.tensor(p).reshape(1, 3, 1, 1)

    labels, confidence = vote([pixel(0.8, 0.1, 0.1), pixel(0.1, 0.5, 0.4), pixel(0.2, 0.6, 0.2)])
    assert labels.item() == 1 and confidence.item() == pytest.approx(0.55)
    labels, confidence = vote([pixel(0.8, 0.1, 0.1), pixel(0.1, 0.5, 0.4)])
    assert labels.item() == 0 and confidence.item() == pytest.approx(0.8)


def image(n_classes=6, absent=(1, 4), size=(12, 20), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice([c for c in range(n_classes) if c not in absent], size)
    return labels, rng.uniform(0.2, 1, size).astype(np.float32)


@pytest.mark.parametrize("cap", [0.5, 0.9])
def test_medians_equal_the_loop(cap):
    labels, confidence = image()
    found = median_thresholds(labels, confidence, 6, cap=cap)
    for class_id in range(6):
        own = [float(p) for c, p in zip(labels.ravel(), confidence.ravel()) if c == class_id]
        assert found[class_id] == pytest.approx(min(cap, statistics.median(own)) if own else cap)


def test_edges_of_the_medians():
    assert median_thresholds(np.array([[2]]), np.array([[0.3]]), 4).tolist() == [0.9, 0.9, 0.3, 0.9]
    assert median_thresholds(np.zeros(0, int), np.zeros(0), 2).tolist() == [0.9, 0.9]


def test_the_bug_of_the_reference_shifts_later_classes():
    labels, confidence = image(absent=(1,))
    right, wrong = (f(labels, confidence, 6) for f in (median_thresholds, reference_thresholds))
    assert wrong[0] == right[0] and wrong[1] == 0 and np.isnan(wrong[2])
    np.testing.assert_array_equal(wrong[3:], right[2:-1])
    labels, confidence = image(absent=())
    np.testing.assert_array_equal(
        *(f(labels, confidence, 6) for f in (median_thresholds, reference_thresholds))
    )


def test_only_pixels_below_the_threshold_are_dropped():
    labels, confidence = np.array([0, 0, 1, 1, 2]), np.array([0.5, 0.4, 0.9, 0.1, 0.0])
    found = keep_confident(labels, confidence, np.array([0.5, 0.2, np.nan]))
    assert found.tolist() == [0, VOID, 1, VOID, 2] and found.dtype == np.uint8


def test_rules_differ_as_they_should():
    """Class 0 is sure in the first image and unsure in the second."""
    labels = [np.zeros((2, 2), int), np.zeros((2, 2), int)]
    confidence = [np.full((2, 2), 0.8), np.full((2, 2), 0.6)]
    kept = {
        rule: [
            (found != VOID).sum() for found in select_labels(labels, confidence, 1, rule=rule, threshold=0.75)
        ]
        for rule in ("constant", "set", "image", "reference")
    }
    assert kept == {"constant": [4, 0], "set": [4, 0], "image": [4, 4], "reference": [4, 4]}
    assert select_labels([], [], 3, rule="set") == []
    with pytest.raises(ValueError, match="'mean'"):
        select_labels(labels, confidence, 1, rule="mean")


def test_image_rule_keeps_about_half_of_every_class():
    labels, confidence = image(absent=(), size=(60, 60))
    (found,) = select_labels([labels], [confidence], 6, rule="image")
    shares = [(found[labels == c] != VOID).mean() for c in range(6)]
    assert np.allclose(shares, 0.5, atol=0.01)
