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

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from panolib.metrics.from_counts import class_mean, overlap_ratio

HOLDS, CONTRADICTED, NO_DIFFERENCE = "holds", "contradicted", "no difference"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable here"
LEVEL = 0.95
N_RESAMPLES = 2000
BATCH = 200  # resamples at once


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % interval, and what it is over.

    `low` and `high` are NaN where one seed without counts of several images says nothing, and where the
    variance is not known.
    """

    estimate: float
    low: float
    high: float
    n_seeds: int
    n_images: int = 0  # 0 where only seeds vary
    samples: str = "images"  # what these are, in words

    @property
    def over(self) -> str:
        """What varies, in words."""
        seeds = f"{self.n_seeds} seeds" if self.n_seeds > 1 else "1 seed"
        if self.n_images:
            return f"{seeds}, {self.n_images} {self.samples}"
        return f"{seeds} only" if self.n_seeds > 1 else "1 seed: no interval"


def interval(differences, image_variance: float = 0.0, *, n_images: int = 0) -> Interval:
    """The mean of paired differences, one for every seed that both sides have, and its interval.

    Parameters
    ----------
    image_variance : float
        Variance of the mean difference over images, the differences' unit squared; 0 where it is not known.
    n_images : int
        Number of these images; 0 where they are not known. One says nothing.
    """
    differences = np.asarray(differences, np.float64)
    n, n_images = len(differences), n_images if n_images > 1 else 0
    if n == 0:
        raise ValueError("no seed that both sides have; expected one at least")
    estimate = float(differences.mean())
    parts = [(differences.var(ddof=1) / n, n - 1)] if n > 1 else []  # variance, its degrees of freedom
    parts += [(image_variance, n_images - 1)] if n_images else []
    variance = sum(part for part, _ in parts)
    if not parts or not np.isfinite(variance):
        return Interval(estimate, np.nan, np.nan, n, n_images)
    weighted = sum(part * stats.t.ppf((1 + LEVEL) / 2, free) for part, free in parts)
    half = weighted / np.sqrt(variance) if variance > 0 else 0.0
    return Interval(estimate, float(estimate - half), float(estimate + half), n, n_images)


def paired_over_images(
    score: Callable[[np.ndarray], np.ndarray], a: np.ndarray, b: np.ndarray | None = None
) -> Interval:
    """score(a) - score(b), paired over seeds and images; score(a) itself without b.

    Parameters
    ----------
    score : function
        Counts summed over images, [..., *counts], to scores [...].
    a, b : array [n_seeds, n_images, *counts]
        What every image counts, on the same images and seeds. Where only one image counts anything, images
        say nothing of the spread.
    """
    sides = [a] if b is None else [a, b]
    if len({side.shape for side in sides}) > 1:
        raise ValueError(f"counts of both sides: expected one shape, found {a.shape} and {b.shape}")

    def compared(times: np.ndarray) -> np.ndarray:
        first, *second = (score(np.tensordot(times, side, axes=(-1, 1))) for side in sides)
        return first - sum(second)

    counting = sum((side != 0).any(axis=(0, *range(2, side.ndim))) for side in sides) > 0
    if counting.sum() < 2:  # all that is counted is in one image: what others change is not known
        return interval(compared(np.ones(a.shape[1])))
    return over_images(compared, a.shape[1])


def over_images(compared: Callable[[np.ndarray], np.ndarray], n_images: int) -> Interval:
    """The interval of a difference that is known for every choice of images.

    Parameters
    ----------
    compared : function
        How many times every image counts, float [..., n_images], to the difference of every seed
        [..., n_seeds].
    """
    variance = image_variance(compared, n_images)
    return interval(compared(np.ones(n_images)), variance, n_images=n_images)


def image_variance(compared: Callable[[np.ndarray], np.ndarray], n_images: int) -> float:
    """Bootstrap variance over images of the mean difference of the seeds; parameters as in `over_images`."""

    def difference(index: np.ndarray) -> np.ndarray:
        """Mean difference over seeds for images [n_resamples, n_images]."""
        first = n_images * np.arange(len(index))[:, None]  # every resample counts in bins of its own
        times = np.bincount((index + first).ravel(), minlength=index.size).reshape(index.shape)
        return class_mean(compared(times.astype(np.float64)))  # of the seeds that have a value

    return _variance(difference, n_images)


def paired_over_iterations(statistic: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray) -> Interval:
    """statistic(a) - statistic(b), paired over seeds and iterations: both trainings saw the same crops.

    Successive iterations of a training resemble each other, so that they count as `effective_number` of
    independent ones.

    Parameters
    ----------
    statistic : function (values, axis)
    a, b : float array [n_seeds, n_iterations]
    """

    def difference(index: np.ndarray) -> np.ndarray:
        return (statistic(a[:, index], -1) - statistic(b[:, index], -1)).mean(0)

    n, of_seeds = a.shape[1], statistic(a, -1) - statistic(b, -1)
    one_by_one = (statistic(a[..., None], -1) - statistic(b[..., None], -1)).mean(0)
    worth = effective_number(one_by_one)
    variance = _variance(difference, n) * (n - 1) / max(worth - 1, 1)
    found = interval(of_seeds, variance, n_images=worth)
    return replace(found, n_images=n, samples=f"iterations (worth {worth})") if found.n_images else found


def effective_number(series: np.ndarray) -> int:
    """How many independent values a series [n] is worth: n (1 - r) / (1 + r), at least 2 of several values.

    r is the correlation of neighbours, corrected for its bias in short series and not below 0. Exact for an
    autoregressive process of first order.

    References: Bayley & Hammersley 1946, The effective number of independent observations; Marriott & Pope
    1954, Bias in the estimation of autocorrelations.
    """
    n, deviation = len(series), series - series.mean()
    total = (deviation**2).sum()
    if n < 3 or total == 0:
        return n
    found = (deviation[1:] * deviation[:-1]).sum() / total
    r = np.clip((n * found + 1) / max(n - 3, 1), 0, 1)
    return max(2, int(n * (1 - r) / (1 + r)))


def _variance(difference: Callable[..., np.ndarray], n: int) -> float:
    """Bootstrap variance of a difference that takes the indices of n samples [..., n]; 0 for one sample.

    Resamples without a difference (of a class that few images show, none was drawn) do not count. NaN where
    fewer than two are left.
    """
    if n < 2:
        return 0.0
    rng = np.random.default_rng(0)
    sizes = (min(BATCH, N_RESAMPLES - first) for first in range(0, N_RESAMPLES, BATCH))
    drawn = np.concatenate([difference(rng.integers(0, n, (size, n))) for size in sizes])
    known = drawn[np.isfinite(drawn)]  # a rare class may be on none of the images drawn
    if len(known) < 2:
        return float("nan")
    return float(known.std(ddof=1)) ** 2 * n / (n - 1)  # resampling divides by n, a sample by n - 1


def class_mean_threat_score(counts: np.ndarray) -> np.ndarray:
    """Mean over classes of TP / (TP + FP + FN) of counts [..., n_classes, 3], over those that count any."""
    return class_mean(overlap_ratio(counts))


def verdict(found: Interval, expected: str, smallest: float) -> str:
    """What an interval says of a claim.

    Parameters
    ----------
    found : Interval
        Of a - b.
    expected : {"higher", "lower", "same", "not higher"}
        What the claim says of a beside b.
    smallest : float
        Smallest effect of interest, in the unit of the interval: what lies within is no difference.

    Returns
    -------
    str
        "holds" (beyond zero in the expected direction), "contradicted" (beyond zero in the other one), "no
        difference" (within the smallest effect), or "undecided". For "same": "holds" within the smallest
        effect, "contradicted" where the interval is beyond it. For "not higher": "holds" below the smallest
        effect, "contradicted" beyond zero. What another seed changes is not in the interval of one seed: it
        has to lie beyond the smallest effect, not only beyond zero, and never shows that there is no
        difference.
    """
    low, high = (found.low, found.high) if expected != "lower" else (-found.high, -found.low)
    if np.isnan(low):
        return UNDECIDED
    inside = found.n_seeds > 1 and -smallest <= low and high <= smallest
    if expected == "same":
        return HOLDS if inside else CONTRADICTED if low > smallest or high < -smallest else UNDECIDED
    beyond = smallest if found.n_seeds == 1 else 0.0
    if expected == "not higher":
        is_below = high <= smallest if found.n_seeds > 1 else high < -smallest
        return HOLDS if is_below else CONTRADICTED if low > beyond else UNDECIDED
    if low > beyond:
        return HOLDS
    if high < -beyond:
        return CONTRADICTED
    return NO_DIFFERENCE if inside else UNDECIDED
