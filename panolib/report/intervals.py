"""One rule for every comparison: a difference paired over seeds and images, its 95 % interval, its verdict.

What another seed changes is the sample variance of the paired differences of the seeds, divided by their
number; what other images change is the bootstrap variance over validation images (drawn once for both sides
and all seeds). Both add up; the quantile is the mean of those of Student's t for each part, weighted by the
parts (Cochran 1964). With three seeds such intervals cover the truth in 95 to 97 % of all cases, in more
where seeds change single images, as both parts hold that. The degrees of freedom of Satterthwaite would cover
92 % with three seeds and 87 % with two; three seeds resampled among themselves far less: all of the three
differences have one sign in a quarter of all cases where there is none.

References: Efron & Tibshirani 1993, An Introduction to the Bootstrap; Cochran 1964, Approximate significance
levels of the Behrens-Fisher test.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

HOLDS, CONTRADICTED, NO_DIFFERENCE = "holds", "contradicted", "no difference"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable here"
LEVEL = 0.95
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % interval, and what it is over.

    Attributes
    ----------
    estimate, low, high : float
        In one unit. `low` and `high` are NaN where one seed without counts of several images says nothing,
        and where the variance is not known.
    n_seeds, n_images : int
        `n_images` is 0 where only seeds vary.
    samples : str
        What the images are, in words.
    """

    estimate: float
    low: float
    high: float
    n_seeds: int
    n_images: int = 0
    samples: str = "images"

    @property
    def over(self) -> str:
        """What varies, in words."""
        seeds = f"{self.n_seeds} seeds" if self.n_seeds > 1 else "1 seed"
        if self.n_images:
            return f"{seeds}, {self.n_images} {self.samples}"
        return f"{seeds} only" if self.n_seeds > 1 else "1 seed: no interval"


def interval(differences, image_variance: float = 0.0, *, n_images: int = 0) -> Interval:
    """The mean of paired differences and its interval.

    Parameters
    ----------
    differences : sequence of float
        One for every seed that both sides have.
    image_variance : float
        Variance of the mean difference over images, the differences' unit squared; 0 where it is not known.
    n_images : int
        Number of these images; 0 where they are not known. One says nothing.

    Raises
    ------
    ValueError
        Without any difference.
    """
    differences = np.asarray(differences, np.float64)
    n = len(differences)
    if n == 0:
        raise ValueError("no seed that both sides have; expected one at least")
    estimate, n_images = float(differences.mean()), n_images if n_images > 1 else 0
    parts = [(differences.var(ddof=1) / n, n - 1)] if n > 1 else []  # variance, its degrees of freedom
    parts += [(image_variance, n_images - 1)] if n_images else []
    if not parts:
        return Interval(estimate, np.nan, np.nan, n)
    variance = sum(part for part, _ in parts)
    if not np.isfinite(variance):
        return Interval(estimate, np.nan, np.nan, n, n_images)
    weighted = sum(part * stats.t.ppf((1 + LEVEL) / 2, free) for part, free in parts)
    half = weighted / np.sqrt(variance) if variance > 0 else 0.0
    return Interval(estimate, float(estimate - half), float(estimate + half), n, n_images)


def paired_over_images(
    score: Callable[[np.ndarray], np.ndarray], a: np.ndarray, b: np.ndarray | None = None, *, seed: int = 0
) -> Interval:
    """score(a) - score(b), paired over seeds and images; score(a) itself without b.

    Parameters
    ----------
    score : function
        Counts summed over images, [..., *counts], to scores [...].
    a, b : array [n_seeds, n_images, *counts]
        What every image counts, on the same images and seeds. Where only one image counts anything, images
        say nothing of the spread.
    seed : int
        Of the resampling.
    """
    if b is not None and a.shape != b.shape:
        raise ValueError(f"counts of both sides: expected one shape, found {a.shape} and {b.shape}")
    n_images = a.shape[1]

    def compared(times: np.ndarray) -> np.ndarray:
        """Difference of every seed [..., n_seeds], every image counted so many times [..., n_images]."""
        scores = [score(np.tensordot(times, side, axes=(-1, 1))) for side in (a, b) if side is not None]
        return scores[0] - sum(scores[1:])

    def difference(index: np.ndarray, axis: int = -1) -> np.ndarray:
        """Mean difference over seeds for images [..., n_images]."""
        times = np.apply_along_axis(np.bincount, axis, index, minlength=n_images)
        return _mean_of_defined(compared(times.astype(np.float64)))

    of_seeds, sides = compared(np.ones(n_images)), [side for side in (a, b) if side is not None]
    counting = sum((side != 0).any(axis=(0, *range(2, side.ndim))) for side in sides) > 0
    if counting.sum() < 2:  # all that is counted is in one image: what others change is not known
        return interval(of_seeds)
    return interval(of_seeds, _variance(difference, n_images, seed), n_images=n_images)


def paired_over_iterations(
    statistic: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray, *, seed: int = 0
) -> Interval:
    """statistic(a) - statistic(b), paired over seeds and iterations: both trainings saw the same crops.

    Parameters
    ----------
    statistic : function (values, axis)
    a, b : float array [n_seeds, n_iterations]
    seed : int
        Of the resampling.
    """

    def difference(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return (statistic(a[:, index], -1) - statistic(b[:, index], -1)).mean(0)

    n, of_seeds = a.shape[1], statistic(a, -1) - statistic(b, -1)
    return replace(interval(of_seeds, _variance(difference, n, seed), n_images=n), samples="iterations")


def _variance(difference: Callable[..., np.ndarray], n: int, seed: int) -> float:
    """Bootstrap variance of a difference that takes the indices of n samples [..., n]; 0 for one sample.

    Resamples without a difference (of a class that few images show, none was drawn) do not count. NaN where
    fewer than two are left.
    """
    if n < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # its interval, which nobody reads
        found = stats.bootstrap(
            (np.arange(n),), difference, n_resamples=N_RESAMPLES, method="basic", vectorized=True, batch=200,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
    values = found.bootstrap_distribution
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1)) ** 2 * n / (n - 1)  # resampling divides by n, a sample by n - 1


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(-1) / defined.sum(-1)


def class_mean_threat_score(counts: np.ndarray) -> np.ndarray:
    """Mean over classes of TP / (TP + FP + FN) of counts [..., n_classes, 3], over those that count any."""
    total = counts.sum(-1)
    shown = total > 0
    of_classes = counts[..., 0] / np.where(shown, total, 1)  # 0 where nothing is shown
    with np.errstate(invalid="ignore"):
        return of_classes.sum(-1) / shown.sum(-1)


def verdict(found: Interval, expected: str, smallest: float) -> str:
    """What an interval says of a claim.

    Parameters
    ----------
    found : Interval
        Of a - b.
    expected : {"higher", "lower", "same"}
        What the claim says of a beside b.
    smallest : float
        Smallest effect of interest, in the unit of the interval: what lies within is no difference.

    Returns
    -------
    str
        "holds" (beyond zero in the expected direction), "contradicted" (beyond zero in the other one), "no
        difference" (within the smallest effect), or "undecided". For "same": "holds" within the smallest
        effect, "contradicted" where the interval is beyond it. What another seed changes is not in the
        interval of one seed: it has to lie beyond the smallest effect, not only beyond zero, and never shows
        that there is no difference.
    """
    low, high = (found.low, found.high) if expected != "lower" else (-found.high, -found.low)
    if np.isnan(low):
        return UNDECIDED
    inside = found.n_seeds > 1 and -smallest <= low and high <= smallest
    if expected == "same":
        return HOLDS if inside else CONTRADICTED if low > smallest or high < -smallest else UNDECIDED
    beyond = smallest if found.n_seeds == 1 else 0.0
    if low > beyond:
        return HOLDS
    if high < -beyond:
        return CONTRADICTED
    return NO_DIFFERENCE if inside else UNDECIDED
