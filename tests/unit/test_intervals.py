"""The one rule of comparisons: how often its intervals cover the truth, and what it says of an interval."""

import warnings

import numpy as np
import pytest

from panolib.report.intervals import (
    CONTRADICTED,
    HOLDS,
    NO_DIFFERENCE,
    UNDECIDED,
    Interval,
    class_mean_threat_score,
    effective_number,
    interval,
    paired_over_images,
    paired_over_iterations,
    verdict,
)

SIMULATIONS = 2000


def mean_value(counts):
    """Mean of what images count: value and number [..., 2]."""
    return counts[..., 0] / counts[..., 1]


def images_and_seeds(generator, n_seeds, n_images, *, of_seed, of_image, of_both):
    """Values [n_seeds, n_images] with mean zero; every spread is that of a mean over images."""
    shape = (n_seeds, n_images)
    seed = of_seed * generator.standard_normal((n_seeds, 1))
    image, both = (np.sqrt(n_images) * generator.standard_normal(s) for s in ((1, n_images), shape))
    return seed + of_image * image + of_both * both


def with_number(values):
    return np.stack([values, np.ones_like(values)], axis=-1)


# --- intervals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_seeds_alone_cover_the_truth_in_95_percent(n_seeds):
    differences = np.random.default_rng(0).standard_normal((SIMULATIONS, n_seeds))
    found = [interval(row) for row in differences]
    assert 0.94 < np.mean([i.low <= 0 <= i.high for i in found]) < 0.96


def test_three_seeds_equal_the_paired_t_interval():
    found = interval([1.0, 2.0, 3.0])
    half = 4.302653 * 1 / np.sqrt(3)  # of Student's t with two degrees of freedom
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert (found.estimate, found.n_seeds, found.over) == (2, 3, "3 seeds only")


@pytest.mark.parametrize(
    "n_seeds, of_seed, of_image",
    [(1, 0, 1), *((n, *spread) for n in (2, 3) for spread in ((1, 0), (1, 1), (0.3, 1), (1, 0.3)))],
)
def test_seeds_and_images_cover_the_truth_in_95_percent(n_seeds, of_seed, of_image):
    """Variance over images here is that of the sample, to which resampling converges (see below)."""
    generator, n_images, hits = np.random.default_rng(1), 60, []
    for _ in range(SIMULATIONS):
        values = images_and_seeds(generator, n_seeds, n_images, of_seed=of_seed, of_image=of_image, of_both=0)
        variance = values.mean(0).var(ddof=1) / n_images
        found = interval(values.mean(1), variance, n_images=n_images)
        hits.append(found.low <= 0 <= found.high)
    assert 0.93 < np.mean(hits) < 0.98


def test_effects_of_seeds_on_single_images_make_it_wider_never_narrower():
    generator, hits = np.random.default_rng(2), []
    for _ in range(SIMULATIONS):
        values = images_and_seeds(generator, 3, 60, of_seed=0, of_image=0, of_both=1)
        found = interval(values.mean(1), values.mean(0).var(ddof=1) / 60, n_images=60)
        hits.append(found.low <= 0 <= found.high)
    assert np.mean(hits) > 0.95


def test_resampled_images_give_the_variance_of_the_sample():
    generator = np.random.default_rng(3)
    a, b = generator.standard_normal((2, 3, 40))
    found = paired_over_images(mean_value, with_number(a), with_number(b))
    expected = interval((a - b).mean(1), (a - b).mean(0).var(ddof=1) / 40, n_images=40)
    assert found.estimate == pytest.approx(expected.estimate)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.05)
    assert found.over == "3 seeds, 40 images"


def test_resampling_covers_the_truth(monkeypatch):
    monkeypatch.setattr("panolib.report.intervals.N_RESAMPLES", 200)
    generator, hits = np.random.default_rng(4), []
    for _ in range(400):
        a, b = (images_and_seeds(generator, 3, 40, of_seed=0.5, of_image=0.5, of_both=0) for _ in range(2))
        found = paired_over_images(mean_value, with_number(a), with_number(b))
        hits.append(found.low <= 0 <= found.high)
    assert 0.93 < np.mean(hits) < 0.97


def autoregressive(generator, correlation, n, *, n_seeds=1):
    """Values [n_seeds, n] with mean zero whose neighbours correlate so much."""
    noise = generator.standard_normal((n_seeds, n))
    values = noise[:, :1] / np.sqrt(1 - correlation**2)
    for i in range(1, n):
        values = np.append(values, correlation * values[:, -1:] + noise[:, i, None], axis=1)
    return values


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_iterations_that_resemble_each_other_cover_the_truth(correlation, statistic, monkeypatch):
    """As many independent iterations would cover it in half of all cases at a correlation of 0.8."""
    monkeypatch.setattr("panolib.report.intervals.N_RESAMPLES", 100)
    generator, hits = np.random.default_rng(9), []
    for _ in range(300):
        a, b = (autoregressive(generator, correlation, 60) for _ in range(2))
        found = paired_over_iterations(statistic, a, b)
        hits.append(found.low <= 0 <= found.high)
    assert 0.9 < np.mean(hits) < 0.985


def test_effective_number_of_an_autoregressive_series():
    generator = np.random.default_rng(10)
    for correlation in (0.0, 0.5, 0.9):
        expected = 20000 * (1 - correlation) / (1 + correlation)
        found = effective_number(autoregressive(generator, correlation, 20000)[0])
        assert found == pytest.approx(expected, rel=0.1)
    assert effective_number(np.ones(50)) == 50 and effective_number(np.arange(50.0)) == 2
    assert effective_number(np.tile([1.0, -1.0], 25)) == 50  # worth no more than its number
    found = paired_over_iterations(np.mean, np.arange(50.0)[None], np.zeros((1, 50)))
    assert found.over == "1 seed, 50 iterations (worth 2)"


def test_what_both_sides_share_of_an_image_cancels():
    generator = np.random.default_rng(5)
    shared = 100 * generator.standard_normal((1, 50))
    a, b = (shared + generator.standard_normal((3, 50)) for _ in range(2))
    found = paired_over_images(mean_value, with_number(a), with_number(b))
    assert found.high - found.low < 4


def test_resampling_is_repeatable():
    a, b = np.random.default_rng(6).integers(0, 5, (2, 2, 30, 4, 3))
    assert paired_over_images(class_mean_threat_score, a, b) == paired_over_images(
        class_mean_threat_score, a, b
    )


def test_one_seed_varies_over_images_only():
    a, b = np.random.default_rng(7).integers(1, 5, (2, 1, 30, 4, 3))
    found = paired_over_images(class_mean_threat_score, a, b)
    assert found.low < found.estimate < found.high
    assert found.over == "1 seed, 30 images"


@pytest.mark.parametrize("n_images", [0, 1])
def test_one_seed_without_several_images_has_no_interval(n_images):
    found = interval([1.5], n_images=n_images)
    assert found.estimate == 1.5 and np.isnan(found.low) and np.isnan(found.high)
    assert found.over == "1 seed: no interval"
    assert verdict(found, "higher", 1.0) == UNDECIDED


def test_one_image_says_nothing_of_other_images():
    counts = np.ones((3, 1, 2, 3), int)
    assert paired_over_images(class_mean_threat_score, counts, counts).over == "3 seeds only"


def test_equal_seeds_have_an_interval_without_width():
    assert interval([0.0, 0.0, 0.0]) == Interval(0, 0, 0, 3)


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(ValueError, match="no seed that both sides have"):
        interval([])
    with pytest.raises(ValueError, match=r"\(3, 4, 2, 3\) and \(3, 5, 2, 3\)"):
        paired_over_images(class_mean_threat_score, np.ones((3, 4, 2, 3)), np.ones((3, 5, 2, 3)))


def test_class_mean_leaves_out_classes_without_objects():
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    assert class_mean_threat_score(counts) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert np.isnan(class_mean_threat_score(np.zeros((2, 3))))


# --- verdicts -----------------------------------------------------------------------------------------------

SMALLEST = 1.0


@pytest.mark.parametrize(
    "low, high, higher, lower, same",
    [
        (0.2, 3.0, HOLDS, CONTRADICTED, UNDECIDED),
        (1.2, 3.0, HOLDS, CONTRADICTED, CONTRADICTED),
        (-3.0, -0.2, CONTRADICTED, HOLDS, UNDECIDED),
        (-3.0, -1.2, CONTRADICTED, HOLDS, CONTRADICTED),
        (-0.9, 0.8, NO_DIFFERENCE, NO_DIFFERENCE, HOLDS),
        (-0.9, 1.1, UNDECIDED, UNDECIDED, UNDECIDED),
        (-9.0, 9.0, UNDECIDED, UNDECIDED, UNDECIDED),
        (0.2, 0.8, HOLDS, CONTRADICTED, HOLDS),  # small, but above zero
        (np.nan, np.nan, UNDECIDED, UNDECIDED, UNDECIDED),
    ],
)
def test_verdict_of_several_seeds(low, high, higher, lower, same):
    found = Interval((low + high) / 2, low, high, n_seeds=3)
    assert [verdict(found, word, SMALLEST) for word in ("higher", "lower", "same")] == [higher, lower, same]


@pytest.mark.parametrize(
    "low, high, higher, lower, same",
    [
        (0.2, 3.0, UNDECIDED, UNDECIDED, UNDECIDED),
        (1.2, 3.0, HOLDS, CONTRADICTED, CONTRADICTED),
        (-3.0, -1.2, CONTRADICTED, HOLDS, CONTRADICTED),
        (-0.2, 0.2, UNDECIDED, UNDECIDED, UNDECIDED),  # another seed may change it
    ],
)
def test_one_seed_has_to_exceed_the_smallest_effect_and_never_shows_that_there_is_none(
    low, high, higher, lower, same
):
    found = Interval((low + high) / 2, low, high, n_seeds=1, n_images=120)
    assert [verdict(found, word, SMALLEST) for word in ("higher", "lower", "same")] == [higher, lower, same]


@pytest.mark.parametrize(
    "low, high, n_seeds, expected",
    [
        (0.2, 3.0, 3, CONTRADICTED),
        (-3.0, 0.9, 3, HOLDS),
        (-3.0, -1.2, 3, HOLDS),
        (-0.2, 1.1, 3, UNDECIDED),
        (0.2, 3.0, 1, UNDECIDED),
        (1.2, 3.0, 1, CONTRADICTED),
        (-3.0, 0.9, 1, UNDECIDED),  # another seed may change it
        (-3.0, -1.2, 1, HOLDS),
        (np.nan, np.nan, 1, UNDECIDED),
    ],
)
def test_what_does_not_help_may_also_harm(low, high, n_seeds, expected):
    found = Interval((low + high) / 2, low, high, n_seeds=n_seeds)
    assert verdict(found, "not higher", SMALLEST) == expected


def test_a_null_difference_passes_seldom():
    """Three seeds of one sign hold in 2.5 % of all cases without a difference, not in 12.5 %."""
    differences = np.random.default_rng(8).standard_normal((SIMULATIONS, 3))
    found = [verdict(interval(row), "higher", SMALLEST) for row in differences]
    assert np.mean([word == HOLDS for word in found]) < 0.035


# --- what few images or seeds have --------------------------------------------------------------------------


def counts_in(images, n_images=51):
    """Counts [1, n_images, 1, 3] of a class that few images show: {image: (tp, fp, fn)}."""
    counts = np.zeros((1, n_images, 1, 3), int)
    for image, values in images.items():
        counts[0, image, 0] = values
    return counts


def test_a_class_that_few_images_show_has_an_interval_all_the_same():
    """Some resamples draw none of its images; those have no score and must not make the interval vanish."""
    a = counts_in({3: (1, 0, 0), 20: (1, 0, 1), 40: (0, 0, 1)})
    b = counts_in({3: (0, 0, 1), 20: (1, 0, 1), 40: (0, 1, 1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_over_images(class_mean_threat_score, a, b)
    assert found.low < 0 < found.estimate < found.high and found.over == "1 seed, 51 images"
    three = paired_over_images(class_mean_threat_score, *(np.concatenate([side] * 3) for side in (a, b)))
    assert three.low < 0 < three.high


def test_counts_of_a_single_image_say_nothing_of_others():
    a, b = counts_in({7: (1, 0, 0)}), counts_in({7: (0, 0, 1)})
    found = paired_over_images(class_mean_threat_score, a, b)
    assert found.estimate == 1 and np.isnan(found.low) and found.over == "1 seed: no interval"
    assert verdict(found, "higher", 0.0) == UNDECIDED


def test_a_variance_that_is_not_known_is_no_interval():
    for variance in (np.nan, np.inf):
        found = interval([1.0, 1.0, 1.1], variance, n_images=9)
        assert np.isnan([found.low, found.high]).all() and verdict(found, "higher", 0.0) == UNDECIDED


@pytest.mark.parametrize("n_images, quantile", [(2, 12.7062), (3, 4.30265), (11, 2.22814)])
def test_few_images_have_the_quantile_of_as_many_degrees_of_freedom_less_one(n_images, quantile):
    found = interval([0.0], 4.0, n_images=n_images)
    assert (found.low, found.high) == pytest.approx((-2 * quantile, 2 * quantile), rel=1e-4)


def test_the_variance_over_two_images_is_that_of_a_sample_of_two():
    """Resampling alone divides by two: half of it."""
    values = np.array([[1.0, 3.0]])
    found = paired_over_images(mean_value, with_number(values), with_number(np.zeros_like(values)))
    assert found.high - found.estimate == pytest.approx(12.7062 * np.sqrt(2 / 2), rel=0.03)
