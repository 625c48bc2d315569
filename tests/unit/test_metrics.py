"""Metrics: answers worked out by hand, edges and errors. Every case fits on a page of squared paper."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from panolib.labels import CAMVID, CITYSCAPES, NUCLEI, VOID, merged_ids
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.averages import mean_of_defined
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.segments import compare_segments
from panolib.metrics.semantic import confusion_matrix, iou_per_class
from panolib.metrics.threat_score import ThreatScore

ROAD, SKY, PERSON, CAR, TRUCK, BUS = CITYSCAPES.ids_of(("road", "sky", "person", "car", "truck", "bus"))


@pytest.fixture(autouse=True)
def _no_numpy_warnings():
    """A division by zero hidden in a score must not pass as a warning."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error", RuntimeWarning)
        yield


def row(text: str) -> np.ndarray:
    """One image row: a digit per pixel, "." is 0."""
    return np.array([[int(c) for c in text.replace(".", "0")]], np.int32)


def segment(id: int, category_id: int, **more) -> dict:
    return {"id": id, "category_id": category_id, **more}


def panoptic(truth, truth_segments, prediction, prediction_segments, label_set=CITYSCAPES):
    stats = PanopticStats(label_set)
    stats.update(row(truth), truth_segments, row(prediction), prediction_segments)
    return stats


# semantic


def test_confusion_counts_by_hand_and_adds_up():
    truth = np.array([[0, 0, 1], [1, 2, VOID]], np.uint8)
    prediction = np.array([[0, 1, 1], [VOID, 0, 2]], np.uint8)
    expected = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
    counts = confusion_matrix(truth, prediction, 3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(confusion_matrix(truth[:1], prediction[:1], 3)
                                  + confusion_matrix(truth[1:], prediction[1:], 3), expected)  # fmt: skip
    as_tensors = confusion_matrix(torch.from_numpy(truth).long(), torch.from_numpy(prediction), 3)
    np.testing.assert_array_equal(as_tensors, expected)


def test_predicted_void_is_a_miss_and_true_void_no_false_positive():
    # class 0: hit 1, missed 1, false 1 (on class 2); class 1: hit 1, missed 1 (as void), false 1;
    # class 2: missed 1, and its only prediction lies on void
    confusion = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_allclose(iou_per_class(confusion, (0, 1, 2)), [1 / 3, 1 / 3, 0])


def test_subset_counts_false_positives_on_evaluated_classes_only():
    confusion = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_allclose(iou_per_class(confusion, (0, 1)), [1 / 2, 1 / 3])
    np.testing.assert_allclose(iou_per_class(confusion, (1, 0)), [1 / 3, 1 / 2])


def test_a_prediction_outside_the_subset_is_a_miss():
    confusion = confusion_matrix(np.array([0, 0]), np.array([0, 2]), 3)
    np.testing.assert_allclose(iou_per_class(confusion, (0,)), [0.5])


def test_absent_class_is_nan_and_left_out_of_the_mean():
    confusion = confusion_matrix(np.array([0, 0, VOID]), np.array([0, 0, 1]), 3)
    np.testing.assert_array_equal(iou_per_class(confusion, (0, 1, 2)), [1, np.nan, np.nan])
    assert mean_of_defined(iou_per_class(confusion, (0, 1, 2))) == 1
    assert math.isnan(mean_of_defined(iou_per_class(confusion, (1, 2))))
    assert confusion_matrix(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), 3).sum() == 0


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\).*\(3, 2\)"),
        (np.array([7]), np.array([0]), r"truth holds class \[7\]"),
        (np.array([0]), np.array([-1]), "prediction holds -1"),
        (np.array([300]), np.array([0]), r"truth holds 300"),
        (np.array([0.0]), np.array([0]), "float64"),
    ],
)
def test_confusion_names_what_is_wrong(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(truth, prediction, 3)


# panoptic


def test_panoptic_scores_by_hand():
    # car 1: IoU 3/4; car 2: 1 of 3 pixels found, so missed and false; road: 2 of 4 is not above one half
    stats = panoptic(
        "11112223333", [segment(1, CAR), segment(2, CAR), segment(3, ROAD)],
        "1114442..33", [segment(1, CAR), segment(2, CAR), segment(3, ROAD), segment(4, PERSON)],
    )  # fmt: skip
    result = stats.result((ROAD, PERSON, CAR, BUS))
    np.testing.assert_array_equal(result.tp, [0, 0, 1, 0])
    np.testing.assert_array_equal(result.fp, [1, 1, 1, 0])
    np.testing.assert_array_equal(result.fn, [1, 0, 1, 0])
    np.testing.assert_allclose(result.pq, [0, 0, 0.75 / 2, np.nan])
    np.testing.assert_allclose(result.sq, [0, 0, 0.75, np.nan])
    np.testing.assert_allclose(result.rq, [0, 0, 0.5, np.nan])
    np.testing.assert_allclose(result.pq_plus, [0.5, 0, 0.375, np.nan])
    assert result.mean_pq == pytest.approx(0.125)
    assert result.mean_sq == pytest.approx(0.25)  # three classes, two of them with sq = 0
    assert result.mean_sq_matched == pytest.approx(0.75)  # the only class with a match
    assert result.mean_rq == pytest.approx(1 / 6)
    assert result.mean_pq_plus == pytest.approx(0.875 / 3)


def test_void_pixels_leave_the_union():
    # 2 shared pixels, 2 more on void: IoU is 2/2, not 2/4
    result = panoptic("11..", [segment(1, CAR)], "1111", [segment(1, CAR)]).result((CAR,))
    assert (result.tp[0], result.sq[0]) == (1, 1.0)


@pytest.mark.parametrize(("truth", "n_false"), [("...22", 0), ("..222", 1), ("..22", 1), (".....", 0)])
def test_prediction_on_more_than_half_void_is_ignored(truth, n_false):
    # exactly half on void counts as false
    segments = [segment(2, ROAD)] if "2" in truth else []
    stats = panoptic(truth, segments, "1" * len(truth), [segment(1, CAR)])
    assert stats.result((CAR,)).fp[0] == n_false


def test_crowd_is_neither_matched_nor_missed_nor_false():
    crowd = [segment(1, CAR, iscrowd=1)]
    stats = panoptic("1111", crowd, "1111", [segment(1, CAR)])
    assert stats.result((CAR,)).tp + stats.result((CAR,)).fp + stats.result((CAR,)).fn == 0
    assert panoptic("1111", crowd, "....", []).result((CAR,)).fn[0] == 0
    # a crowd of another class ignores nothing
    assert panoptic("1111", crowd, "1111", [segment(1, BUS)]).result((BUS,)).fp[0] == 1
    assert panoptic("11.2", [*crowd, segment(2, SKY)], "1111", [segment(1, CAR)]).result((CAR,)).fp[0] == 0
    two_crowds = [segment(1, CAR, iscrowd=1), segment(2, CAR, iscrowd=1), segment(3, SKY)]
    assert panoptic("1233", two_crowds, "111.", [segment(1, CAR)]).result((CAR,)).fp[0] == 0


def test_pq_plus_of_stuff_is_the_mean_iou_over_images_that_have_it():
    stats = panoptic("1111", [segment(1, SKY)], "11..", [segment(1, SKY)])
    stats.update(row("1111"), [segment(1, SKY)], row("1111"), [segment(1, SKY)])
    # no sky here: not penalised
    stats.update(row("1111"), [segment(1, ROAD)], row("1111"), [segment(1, SKY)])
    result = stats.result((SKY,))
    assert result.pq_plus[0] == pytest.approx((0.5 + 1) / 2)
    assert result.pq[0] == pytest.approx(1 / (1 + 0.5 * 2 + 0.5 * 1))


def test_pq_plus_leaves_crowd_stuff_out():
    truth = [segment(1, SKY), segment(2, SKY, iscrowd=1)]
    assert panoptic("1122", truth, "1111", [segment(1, SKY)]).result((SKY,)).pq_plus[0] == pytest.approx(0.5)


def test_stuff_that_is_only_predicted_has_pq_zero_and_no_pq_plus():
    result = panoptic("1111", [segment(1, ROAD)], "1111", [segment(1, SKY)]).result((SKY,))
    assert result.pq[0] == 0
    assert math.isnan(result.pq_plus[0])


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (0, 5)])
def test_empty_images_score_nothing(shape):
    stats = PanopticStats(CITYSCAPES)
    stats.update(np.zeros(shape, np.int32), [], np.zeros(shape, np.int32), [])
    result = stats.result()
    assert np.isnan(result.pq).all() and math.isnan(result.mean_pq) and math.isnan(result.mean_sq_matched)
    assert result.tp.sum() + result.fp.sum() + result.fn.sum() == 0


def test_one_pixel_and_no_prediction():
    assert panoptic("1", [segment(1, CAR)], "1", [segment(1, CAR)]).result((CAR,)).pq[0] == 1
    result = panoptic("1", [segment(1, CAR)], ".", []).result((CAR,))
    assert (result.pq[0], result.sq[0], result.fn[0]) == (0, 0, 1)


def test_ids_above_16_bits_and_tensors():
    truth = np.array([[0, 65537, 1, 2**31 - 1]], np.int64)
    segments = [segment(1, CAR), segment(65537, CAR), segment(2**31 - 1, CAR)]
    stats = PanopticStats(CITYSCAPES)
    stats.update(torch.from_numpy(truth), segments, truth, segments)
    assert stats.result((CAR,)).tp[0] == 3


@pytest.mark.parametrize(
    ("truth", "truth_segments", "prediction", "prediction_segments", "message"),
    [
        ("11", [segment(1, CAR)], "111", [segment(1, CAR)], r"\(1, 2\).*\(1, 3\)"),
        ("11", [segment(1, CAR)], "17", [segment(1, CAR)], r"prediction map holds id \[7\]"),
        ("12", [segment(1, CAR)], "11", [segment(1, CAR)], r"truth map holds id \[2\]"),
        ("1", [segment(1, CAR)], "1", [segment(1, CAR), segment(5, CAR)], r"segments list id \[5\]"),
        ("11", [segment(1, CAR)], "11", [segment(1, CAR), segment(1, BUS)], "twice"),
        ("11", [segment(1, CAR)], "11", [segment(1, 19)], "segment 1 has category_id 19"),
        ("11", [segment(1, VOID)], "11", [segment(1, CAR)], "truth segment 1 has category_id 255"),
    ],
)
def test_panoptic_names_what_is_wrong(truth, truth_segments, prediction, prediction_segments, message):
    with pytest.raises(ValueError, match=message):
        panoptic(truth, truth_segments, prediction, prediction_segments)


def test_maps_must_hold_ids():
    with pytest.raises(ValueError, match="float"):
        compare_segments(np.zeros((2, 2)), [], np.zeros((2, 2), int), [], CITYSCAPES)
    with pytest.raises(ValueError, match="-3"):
        compare_segments(np.full((2, 2), -3), [], np.zeros((2, 2), int), [], CITYSCAPES)


# threat score


def threat(truth, truth_segments, prediction, instances):
    score = ThreatScore(CITYSCAPES)
    score.update(row(truth), truth_segments, row(prediction), instances)
    return score


def test_threat_score_image_mean_and_pooled_differ():
    cars = [segment(i, CAR) for i in (1, 2, 3)]
    score = threat("112233", cars, "11....", [segment(1, CAR)])  # 1 of 3
    score.update(row("11...."), cars[:1], row("11...."), cars[:1])  # 1 of 1
    # no car: one false, not in the mean
    score.update(row("44.."), [segment(4, SKY)], row("11.."), cars[:1])
    result = score.result((CAR, BUS))
    np.testing.assert_array_equal([result.tp[0], result.fp[0], result.fn[0]], [2, 1, 2])
    np.testing.assert_allclose(result.image_mean, [(1 / 3 + 1) / 2, np.nan])
    np.testing.assert_allclose(result.pooled, [2 / 5, np.nan])
    assert result.mean_pooled == pytest.approx(2 / 5)
    assert result.mean_image_mean == pytest.approx(2 / 3)


def test_threat_score_crowd_and_void_rules():
    crowd = [segment(1, CAR, iscrowd=1)]
    result = threat("1111", crowd, "1111", [segment(1, CAR)]).result((CAR,))
    assert math.isnan(result.pooled[0]) and math.isnan(result.image_mean[0])
    on_void = ("....", [], "1111", [segment(1, CAR)])
    assert threat(*on_void).result((CAR,)).fp[0] == 0
    beside_void = ("11..", [segment(1, CAR)], "1111", [segment(1, CAR)])
    assert threat(*beside_void).result((CAR,)).tp[0] == 1


# official average precision


def official(truth, truth_segments, prediction, instances, **options):
    ap = CityscapesAP(CITYSCAPES, **{"min_region": 1, **options})
    ap.update(row(truth), truth_segments, row(prediction), instances)
    return ap


def test_ap_with_one_common_confidence_is_half_recall_times_one_plus_precision():
    # truth: three cars; found: one exactly, one false, so R = 1/3 and P = 1/2 at every threshold
    truth = [segment(1, CAR), segment(2, CAR), segment(3, CAR), segment(4, SKY)]
    found = [segment(1, CAR, confidence=0.7), segment(2, CAR, confidence=0.7)]
    result = official("11223344", truth, "11....22", found).result((CAR,))
    np.testing.assert_allclose(result.per_threshold, np.full((1, 10), 0.5 * (1 / 3) * (1 + 1 / 2)))
    assert result.mean_ap == result.mean_ap50 == pytest.approx(0.25)


def test_ap_by_hand_over_two_confidences():
    # by rising confidence: (P, R) = (2/3, 1), (1/2, 1/2), (1, 0); steps 1/4, 1/2, 1/4
    truth = [segment(1, CAR), segment(2, CAR), segment(3, SKY)]
    found = [segment(i, CAR, confidence=confidence) for i, confidence in ((1, 0.9), (2, 0.9), (3, 0.1))]
    result = official("112233", truth, "113322", found).result((CAR,))
    assert result.ap50[0] == pytest.approx(2 / 3 / 4 + 1 / 2 / 2 + 1 / 4)


def test_ap_thresholds_are_strict():
    # IoU is exactly 3/4: above 0.50 .. 0.70 only; then it is a miss and, not lying on void, false
    result = official(
        "1111", [segment(1, CAR)], "1112", [segment(1, CAR, confidence=1), segment(2, ROAD)]
    ).result((CAR,))
    np.testing.assert_allclose(result.per_threshold[0], [1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert result.ap[0] == pytest.approx(0.5)


def test_ap_void_group_and_small_truth_are_ignored():
    found = [segment(1, CAR, confidence=0.9), segment(2, CAR, confidence=0.95)]
    truth = [segment(1, CAR), segment(2, CAR, iscrowd=1), segment(3, CAR)]
    with_small = [truth[0], truth[2]]
    assert official("11111.....", truth[:1], "1111122222", found).result((CAR,)).ap[0] == 1
    assert official("1111122222", truth[:2], "1111122222", found).result((CAR,)).ap[0] == 1
    assert official("1113...", with_small, "1112...", found, min_region=2).result((CAR,)).ap[0] == 1
    assert official("1113...", with_small, "1112...", found, min_region=1).result((CAR,)).ap[0] == 1
    # one third on the small object, the rest on sky: false at every threshold
    mostly_sky = official("1113555", [*with_small, segment(5, SKY)], "1112225", [*found, segment(5, SKY)],
                          min_region=2)  # fmt: skip
    assert mostly_sky.result((CAR,)).per_threshold.max() < 1
    void = row("..........").astype(bool)
    ap = CityscapesAP(CITYSCAPES, min_region=1)
    ap.update(row("11111....."), truth[:1], row("1111122222"), found, void=void)
    assert ap.result((CAR,)).ap[0] < 1


def test_ap_without_truth_is_nan_and_without_prediction_zero():
    result = official("11", [segment(1, CAR)], "22", [segment(2, BUS, confidence=1)]).result((CAR, BUS))
    np.testing.assert_array_equal(result.ap, [0, np.nan])
    assert result.mean_ap == 0
    empty = CityscapesAP(CITYSCAPES)
    empty.update(row("...."), [], row("...."), [])
    assert math.isnan(empty.result().mean_ap) and math.isnan(CityscapesAP(CITYSCAPES).result().mean_ap50)
    # the only prediction is ignored: nothing is false, nothing found
    ignored = official("11..", [segment(1, CAR)], "..22", [segment(2, CAR, confidence=1)])
    assert ignored.result((CAR,)).ap[0] == 0


def test_ap_errors():
    truth = [segment(1, CAR)]
    with pytest.raises(ValueError, match="instance 1 has confidence nan"):
        official("11", truth, "11", [segment(1, CAR)])


def test_predictions_are_merged_into_the_classes_of_another_data_set():
    merged = merged_ids(CITYSCAPES, CAMVID)
    assert merged.shape == (19,) and set(merged) == set(range(11))
    names = {CITYSCAPES.classes[i]: CAMVID.classes[k] for i, k in enumerate(merged)}
    for name, expected in (
        ("traffic light", "sign"), ("train", "car"), ("bicycle", "bicyclist"), ("terrain", "tree"),
        ("wall", "building"), ("sidewalk", "pavement"),
    ):  # fmt: skip
        assert names[name] == expected
    assert merged_ids(CAMVID, CAMVID).tolist() == list(range(11))
    with pytest.raises(ValueError, match="nuclei"):
        merged_ids(NUCLEI, CAMVID)
