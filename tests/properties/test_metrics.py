"""Properties of the metrics that hold for every pair of images."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from panolib.labels import VOID, LabelSet
from panolib.metrics import from_counts
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.averages import mean_of_defined
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix, iou_per_class
from panolib.metrics.threat_score import ThreatScore

LABELS = LabelSet(
    name="three", classes=("ground", "ball", "stick"), colours=((0, 0, 0),) * 3, things=("ball", "stick"),
    file_ids=(0, 1, 2), subsets={"3": ("ground", "ball", "stick")},
)  # fmt: skip
N_IDS = 7

examples = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def blocks(rng, n_ids: int) -> np.ndarray:
    """int [12, 12]: blocks of ids 0 .. n_ids; 0 is void, 1 is ground, the others are things."""
    return np.kron(rng.integers(0, n_ids + 1, (3, 3)), np.ones((4, 4), int))


def segments_of(panoptic_map, rng, *, crowd_id: int | None = None) -> list[dict]:
    return [
        {
            "id": int(i),
            "category_id": 0 if i == 1 else 1 + int(i) % 2,
            "iscrowd": int(i == crowd_id),
            "confidence": float(rng.integers(1, 5)) / 4,
        }
        for i in np.unique(panoptic_map[panoptic_map > 0])
    ]


@st.composite
def pairs(draw, crowd=True):
    """(truth map, truth segments, predicted map, predicted segments) of one image, at most 12 x 12 pixels.

    The prediction is the truth with a share of its pixels from another scene, so some segments match.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    n_ids, share = draw(st.integers(0, N_IDS)), draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    truth = blocks(rng, n_ids)[:height, :width]
    prediction = np.where(rng.random(truth.shape) < share, blocks(rng, N_IDS)[:height, :width], truth)
    crowd_id = 2 if crowd else None
    return truth, segments_of(truth, rng, crowd_id=crowd_id), prediction, segments_of(prediction, rng)


def renamed(panoptic_map, segments, rng):
    """The same image with other ids and its segments in another order."""
    table = np.append(0, rng.permutation(1000)[:N_IDS] + 1)
    segments = [{**s, "id": int(table[s["id"]])} for s in segments]
    return table[panoptic_map], [segments[i] for i in rng.permutation(len(segments))]


def scores_of(*images) -> list[np.ndarray]:
    """Every number that the accumulators report."""
    stats, threat, ap = PanopticStats(LABELS), ThreatScore(LABELS), CityscapesAP(LABELS, min_region=3)
    for one in images:
        for accumulator in (stats, threat, ap):
            accumulator.update(*one)
    return reported(stats, threat, ap)


def reported(stats, threat, ap) -> list[np.ndarray]:
    values = [vars(accumulator.result((0, 1, 2) if accumulator is not ap else None)).values()
              for accumulator in (stats, threat, ap)]  # fmt: skip
    return [np.asarray(value, float) for part in values for value in part]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@examples
@given(pairs(crowd=False))
def test_an_image_matches_itself(pair):
    truth, segments = pair[:2]
    stats, threat, ap = PanopticStats(LABELS), ThreatScore(LABELS), CityscapesAP(LABELS, min_region=1)
    for accumulator in (stats, threat, ap):
        accumulator.update(truth, segments, truth, segments)
    present = np.isin(range(3), [s["category_id"] for s in segments])
    result = stats.result()
    for values in (result.pq, result.sq, result.rq, result.pq_plus, threat.result((0, 1, 2)).image_mean):
        np.testing.assert_array_equal(values, np.where(present, 1.0, np.nan))
    np.testing.assert_allclose(ap.result().ap, np.where(present[1:], 1.0, np.nan), atol=1e-12)


@examples
@given(pairs(), st.integers(0, 2**31))
def test_renaming_ids_changes_nothing(pair, seed):
    rng = np.random.default_rng(seed)
    assert_same(scores_of(pair), scores_of((*renamed(*pair[:2], rng), *renamed(*pair[2:], rng))))


@examples
@given(pairs())
def test_flipping_the_image_changes_nothing(pair):
    truth, segments, prediction, predicted = pair
    assert_same(scores_of(pair), scores_of((truth[::-1, ::-1], segments, prediction[::-1, ::-1], predicted)))


@examples
@given(st.lists(pairs(), min_size=1, max_size=4))
def test_pq_is_sq_times_rq_and_scores_are_fractions(images):
    stats = PanopticStats(LABELS)
    for one in images:
        stats.update(*one)
    result = stats.result()
    np.testing.assert_allclose(result.pq, result.sq * result.rq, atol=1e-12)
    for values in scores_of(*images):
        if values.dtype == float and values.max(initial=0) > 1:
            assert np.array_equal(values, values.astype(int))  # counts and class ids
        assert not (values < 0).any()
    for values in (result.pq, result.sq, result.rq, result.pq_plus):
        assert ((values >= 0) & (values <= 1) | np.isnan(values)).all()
    assert (result.sq[result.tp > 0] > 0.5).all()
    assert result.mean_sq_matched >= result.mean_sq or np.isnan(result.mean_sq_matched)


@examples
@given(st.lists(pairs(), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_order_of_images_changes_nothing(images, random):
    assert_same(scores_of(*images), scores_of(*random.sample(images, len(images))))


@examples
@given(st.lists(pairs(), min_size=1, max_size=5))
def test_scores_are_those_of_the_summed_counts_of_images(images):
    stats, threat = PanopticStats(LABELS), ThreatScore(LABELS)
    for image in images:
        stats.update(*image)
        threat.update(*image)
    found, counts = stats.result(), stats.counts()
    assert counts.shape == (len(images), 3, 5) and counts.dtype == np.int64
    sums = counts.sum(0)
    is_thing = np.isin(range(3), LABELS.thing_ids)
    for name in ("pq", "sq", "rq"):
        values = getattr(from_counts, name)(sums)
        assert np.allclose(values, getattr(found, name), atol=1e-5, equal_nan=True)
        mean = from_counts.class_mean(values)
        assert np.allclose(mean, getattr(found, f"mean_{name}"), atol=1e-5, equal_nan=True)
    assert np.allclose(from_counts.pq_plus(sums, is_thing), found.pq_plus, atol=1e-5, equal_nan=True)
    matched = from_counts.class_mean(from_counts.sq_matched(sums))
    assert np.allclose(matched, found.mean_sq_matched, atol=1e-5, equal_nan=True)
    result, objects = threat.result(), threat.counts()
    assert objects.shape == (len(images), 2, 3)
    assert np.array_equal(from_counts.overlap_ratio(objects.sum(0)), result.pooled, equal_nan=True)
    total = result.tp.sum() + result.fp.sum() + result.fn.sum()
    pooled = result.tp.sum() / total if total else np.nan
    assert np.array_equal(from_counts.pooled_ratio(objects.sum(0)), pooled, equal_nan=True)


@examples
@given(pairs())
def test_truth_void_hides_what_is_predicted_there(pair):
    truth, segments, prediction, predicted = pair
    hidden = np.where(truth == 0, 0, prediction)
    left = [s for s in predicted if (hidden == s["id"]).any()]
    shown, without = PanopticStats(LABELS), PanopticStats(LABELS)
    shown.update(*pair)
    without.update(truth, segments, hidden, left)
    shown, without = shown.result(), without.result()
    np.testing.assert_array_equal(shown.tp, without.tp)
    np.testing.assert_array_equal(shown.fn, without.fn)
    np.testing.assert_allclose(shown.pq_plus[0], without.pq_plus[0])


@examples
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_semantic_scores_are_fractions_and_add_up(seed, n_classes):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.choice([*range(n_classes - 1), VOID], (2, 9, 7))
    confusion = confusion_matrix(truth, prediction, n_classes)
    assert confusion.sum() == truth.size
    iou = iou_per_class(confusion, range(n_classes))
    assert ((iou >= 0) & (iou <= 1) | np.isnan(iou)).all() and np.isnan(iou[-1])
    swapped = confusion_matrix(prediction, truth, n_classes)
    np.testing.assert_array_equal(confusion.T, swapped)
    order = rng.permutation(truth.size)
    np.testing.assert_array_equal(
        confusion_matrix(truth.ravel()[order], prediction.ravel()[order], n_classes), confusion
    )
    assume((truth != VOID).any())
    perfect = confusion_matrix(truth, truth, n_classes)
    assert mean_of_defined(iou_per_class(perfect, range(n_classes))) == 1
