"""Claims of the thesis and of related papers as data (`notebooks/claims.yaml`), decided by one rule.

A claim compares two selections of the tidy table, a and b: `sides` says how a selection becomes one value a
seed, `intervals` how two of them become an interval and a verdict.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import pandas as pd

from panolib.config import ProfileError, from_mapping, spec
from panolib.metrics.from_counts import class_mean
from panolib.profiles import load_yaml, project_root
from panolib.report.counted import Counted, counted
from panolib.report.intervals import (
    CONTRADICTED,
    HOLDS,
    NO_DIFFERENCE,
    NOT_TESTABLE,
    UNDECIDED,
    Interval,
    class_mean_threat_score,
    image_variance,
    interval,
    over_images,
    paired_over_iterations,
    verdict,
)
from panolib.report.rows import NotInProfile, curves, image_counts, measured, monitored, rows, stacked
from panolib.study.study import Study

THREAT = "threat_score"  # class mean over all images, from the counts of every image


@spec
class Claim:
    """One claim: a selection a of the tidy table beside a selection b.

    Of several mappings the side is the one with the highest mean over the seeds that all of both sides have;
    of none it is 0 (b only).
    """

    claim: str  # the sentence
    source: str  # where it stands
    published: str = ""  # numbers as they are printed
    # Of `report.rows`; "threat_score" for counts of every image; "curve: <column>" of a training, "monitored:
    # <column>" of what its monitor counted, "measured: <column>" of what a measuring run recorded.
    metric: str = ""
    of: Mapping | None = None  # what both sides select: experiment, tag values, coordinates, columns
    # What each side selects beside it. In a curve `at` is the part of the training: 0 the first value, 1 the
    # last; or "mean" or "median".
    a: Mapping | tuple[Mapping, ...] = ()
    b: Mapping | tuple[Mapping, ...] = ()
    expected: Literal["higher", "lower", "same", "not higher"] = "higher"  # of a beside b
    smallest: float = 1.0  # effect of interest, in the unit
    at_least: float = 0.0  # by which a exceeds b, in the unit; such a claim is never "no difference"
    # "points": 100 times a fraction; "ratio": 100 times the natural logarithm of a / b, shown as a ratio; any
    # other word: the value as it is
    unit: str = "points"
    alike: tuple[str, ...] = ()  # dotted settings that the runs of both sides must share; of scores only
    not_testable: str = ""  # why nothing here can decide
    given: bool = False  # by the notebook: the interval, or a truth value for arithmetic on published numbers
    # The same claim for several things: their name, which goes before the claim and after the id, and what
    # they change: `of` is added to, any other key replaces that of the claim.
    each: Mapping[str, Mapping] | None = None


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a value for every seed, and what every image counts where that is known."""

    by_seed: pd.Series  # index: seed
    terms: Mapping[int, Sequence[Counted]] | None = None  # by seed: the value is the mean of theirs
    images: tuple = ()  # domain, data set, number; those of two sides are paired where these are the same
    curve: pd.DataFrame | None = None  # index: seed, columns: iteration; the value is their `statistic`
    statistic: str = ""  # mean or median
    fixed: bool = False  # a given value, which neither other seeds nor other images would change
    runs: tuple[str, ...] = ()  # whose scores these are

    def values(self, seeds: Sequence[int], times: np.ndarray) -> np.ndarray:
        """Values [..., n_seeds] where every image counts so many times, float [..., n_images]."""
        of_seeds = [np.stack([term.value(times) for term in self.terms[seed]], -1) for seed in seeds]
        return np.stack([class_mean(of_terms) for of_terms in of_seeds], -1)


def read_claims() -> dict[str, dict[str, Claim]]:
    """{notebook: {id: claim}} of `notebooks/claims.yaml`. ProfileError for a damaged one."""
    path = project_root() / "notebooks" / "claims.yaml"
    found: dict[str, dict[str, Claim]] = {}
    for notebook, claims in load_yaml(path).items():
        found[notebook] = {}
        for name, claim in (claims or {}).items():
            where = f"{path.name}: {notebook}.{name}"
            for thing, changed in (claim.get("each") or {"": {}}).items():
                one = {key: value for key, value in {**claim, **changed}.items() if key != "each"}
                one["of"] = {**(claim.get("of") or {}), **(changed.get("of") or {})}
                if thing:
                    one["claim"] = f"{thing}: {one['claim']}"
                known = f"{name}_{re.sub(r'[^a-z0-9]+', '_', thing.lower()).strip('_')}" if thing else name
                if known in found[notebook]:
                    raise ProfileError(f"{where}: {thing!r}: id {known!r} is taken, expected another")
                found[notebook][known] = from_mapping(Claim, one, where=where)
    return found


def verdicts(
    study: Study, notebook: str, given: Mapping[str, Interval | bool] | None = None
) -> pd.DataFrame:
    """Every claim of a notebook with its published value, ours, interval, n and verdict.

    Parameters
    ----------
    given : mapping of id to Interval or bool
        For the claims that the file marks as given by the notebook.

    Returns
    -------
    DataFrame
        index: id. claim, source, published, ours (both sides), difference, low, high, unit, over (what
        varies), verdict, reason (why a claim is not testable here).
    """
    claims, given = read_claims()[notebook], dict(given or {})
    expected = {name for name, claim in claims.items() if claim.given}
    if expected != set(given):
        raise ValueError(f"{notebook}: expected given values for {sorted(expected)}, found {sorted(given)}")
    table = {name: decide(study, claim, given.get(name)) for name, claim in claims.items()}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("id")


def show(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` as a reader sees them: claim, published, ours, difference with interval, over, verdict."""
    text = [_interval_text(row) for row in table.itertuples()]
    verdict = [f"{row.verdict}: {row.reason}" if row.reason else row.verdict for row in table.itertuples()]
    shown = table[["claim", "published", "ours"]].assign(**{"difference [95 %]": text, "over": table["over"]})
    return shown.assign(verdict=verdict).set_index("claim")


def side(study: Study, metric: str, selection: Mapping[str, Any]) -> Side:
    """One value for every seed: the mean over what a selection leaves open (classes, shares, ...)."""
    wanted = dict(selection)
    experiment = wanted.pop("experiment")
    if metric == THREAT:
        return _counted(study, experiment, wanted)
    kind, _, column = metric.partition(": ")
    if kind == "curve":
        part = wanted.pop("at")
        found = curves(study, experiment, **wanted)[["run", "seed", "iteration", column]].dropna()
        if isinstance(part, str):
            values = found.pivot_table(column, "seed", "iteration")
            return Side(values.agg(part, axis=1), curve=values, statistic=part)
        position = round(part * (found.groupby("run").size().min() - 1))
        chosen = found.groupby("run").nth(position)
        return Side(chosen.groupby("seed")[column].mean())
    if kind == "monitored":
        part = wanted.pop("at")
        found = monitored(study, experiment, **wanted)
        iterations = sorted(found["iteration"].unique())
        chosen = found[found["iteration"] == iterations[round(part * (len(iterations) - 1))]]
        return Side(chosen.groupby("seed")[column].mean())
    if kind == "measured":
        return Side(measured(study, experiment, **wanted).groupby("seed")[column].mean())
    found = rows(study, experiment, metric=metric, **{"subset": "", **wanted})
    runs = tuple(found["run"].unique())
    return Side(found.groupby("seed")["value"].mean(), *_terms(study, found), runs=runs)


def _terms(study: Study, found: pd.DataFrame) -> tuple[dict[int, list[Counted]] | None, tuple]:
    """Counts of the rows that have a value, by seed, and of which images; (None, ()) where one has none."""
    terms: dict[int, list[Counted]] = {}
    images = set()
    for at in found.dropna(subset="value").to_dict("records"):
        term = counted(study.get(at["run"]), at, at["metric"], at["subset"])
        if term is None:
            return None, ()
        which = [at[column] for column in ("style", "data_set") if isinstance(at.get(column), str)]
        images.add((at["domain"], *which, len(term.counts)))
        terms.setdefault(at["seed"], []).append(term)
    return (terms, images.pop()) if len(images) == 1 else (None, ())


def compare(a: Side, b: Side, unit: str = "points", at_least: float = 0.0) -> Interval:
    """a - b over the seeds (of curves also the iterations) that both have, in the unit of a claim.

    NotInProfile if there is none.
    Images vary too where both sides know what every image counts: paired where they are the same images, else
    each side by itself.
    """
    seeds = a.by_seed.index.intersection(b.by_seed.index)
    if seeds.empty:
        raise NotInProfile("no seed that both sides have")
    known = seeds[(a.by_seed[seeds].notna() & b.by_seed[seeds].notna()).to_numpy()]
    seeds = known if len(known) else seeds  # where neither has a value, the difference has none
    scale = _log_percent if unit == "ratio" else np.asarray
    sides = [side for side in (a, b) if not side.fixed]
    if a.curve is not None and b.curve is not None:
        statistic = getattr(np, a.statistic)
        both = pd.concat([x.curve.loc[seeds] for x in (a, b)], keys=("a", "b")).dropna(axis=1)
        if both.empty:
            raise NotInProfile("no iteration that both sides have")
        values = [both.loc[name].to_numpy() for name in ("a", "b")]
        found = paired_over_iterations(lambda v, axis: scale(statistic(v, axis)), *values)
    elif unit in ("points", "ratio") and len(known) and all(side.terms is not None for side in sides):
        found = _over_images(sides, seeds, scale)
    else:
        first, second = (scale(x.by_seed.reindex(seeds).to_numpy(np.float64)) for x in (a, b))
        found = interval(first - second)
    factor = 100.0 if unit == "points" else 1.0
    ends = {name: factor * getattr(found, name) - at_least for name in ("estimate", "low", "high")}
    return replace(found, **ends)


def _log_percent(values: np.ndarray) -> np.ndarray:
    """100 times the natural logarithm; not finite for 0, of which there is no ratio."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 100 * np.log(values)


def _over_images(sides: Sequence[Side], seeds: pd.Index, scale: Callable) -> Interval:
    """The first side minus the second, if there is one (else 0 is), over seeds and images."""

    def difference(times: Sequence[np.ndarray]) -> np.ndarray:
        first, *second = (scale(side.values(seeds, some)) for side, some in zip(sides, times))
        return first - sum(second)

    numbers = [side.images[-1] for side in sides]
    if len({side.images for side in sides}) == 1:
        return over_images(lambda times: difference([times] * len(sides)), numbers[0])
    variance = sum(
        image_variance(lambda times, side=side: scale(side.values(seeds, times)), n)
        for side, n in zip(sides, numbers)
    )
    return interval(difference([np.ones(n) for n in numbers]), variance, n_images=min(numbers))


def decide(study: Study, claim: Claim, given: Interval | bool | None = None) -> dict[str, Any]:
    """One line of `verdicts`: what is claimed, our numbers, the verdict."""
    line = {"claim": claim.claim, "source": claim.source, "published": claim.published, "unit": claim.unit}
    line |= {"ours": "", "difference": np.nan, "low": np.nan, "high": np.nan, "over": ""}
    line |= {"reason": claim.not_testable, "verdict": NOT_TESTABLE}
    if claim.not_testable:
        return line
    try:
        return line | _found(study, claim, given)
    except NotInProfile as error:
        return line | {"reason": f"not in this profile ({error})"}


def _found(study: Study, claim: Claim, given: Interval | bool | None) -> dict[str, Any]:
    """Numbers and verdict of a claim. NotInProfile where a side has no value."""
    if isinstance(given, bool):
        return {"over": "no sample", "verdict": HOLDS if given else CONTRADICTED}
    ours, unlike, found = "", "", given
    if given is None:
        both = [_sides(study, claim, selections) for selections in (claim.a, claim.b) if selections]
        seeds = functools.reduce(pd.Index.intersection, (x.by_seed.index for some in both for x in some))
        a, *others = (_best(some, seeds) for some in both)
        b = others[0] if others else Side(0.0 * a.by_seed, fixed=True)
        found = compare(a, b, claim.unit, claim.at_least)
        seeds = a.by_seed.index.intersection(b.by_seed.index)
        unlike = _unlike(study, a, b, claim.alike)
        ours = " against ".join(_value_text(x.by_seed[seeds].mean(), claim.unit) for x in (a, b))
    if not np.isfinite(found.estimate):
        raise NotInProfile("nothing to count on one side")
    numbers = {"ours": ours, "difference": found.estimate, "low": found.low, "high": found.high,
               "over": found.over}  # fmt: skip
    if unlike:
        return {**numbers, "reason": f"the two differ in {unlike}"}
    decided = verdict(found, claim.expected, claim.smallest)
    if claim.at_least and decided == NO_DIFFERENCE:  # beside the bound, which says nothing of a beside b
        decided = UNDECIDED
    return {**numbers, "verdict": decided}


def _unlike(study: Study, a: Side, b: Side, settings: Sequence[str]) -> str:
    """In which of some settings the runs of two sides differ, with the values; "" for none."""
    parts = []
    for name in settings:
        values = [{attrgetter(name)(study.runs[run].spec) for run in side.runs} for side in (a, b)]
        if values[0] != values[1]:
            texts = (" and ".join(map(str, sorted(some))) for some in values)
            parts.append(f"{name} ({' against '.join(texts)})")
    return ", ".join(parts)


def _best(sides: Sequence[Side], seeds: pd.Index) -> Side:
    """The side with the highest mean over `seeds`; over those that each has, where there are none."""
    values = [(x.by_seed[seeds] if len(seeds) else x.by_seed).mean() for x in sides]
    return sides[int(pd.Series(values).fillna(-np.inf).argmax())]


def _sides(study: Study, claim: Claim, selections: Mapping | Sequence[Mapping]) -> list[Side]:
    """One side or several. NotInProfile if the study has none of them."""
    several = [selections] if isinstance(selections, Mapping) else selections
    sides, missing = [], None
    for part in several:
        try:
            sides.append(side(study, claim.metric, {**(claim.of or {}), **part}))
        except NotInProfile as error:
            missing = error
    if not sides:
        raise missing
    return sides


def _counted(study: Study, experiment: str, wanted: Mapping) -> Side:
    """Class mean of the threat score, from the counts that "threat" runs record with their metrics."""
    found = image_counts(study, experiment, **{"truth_share": 0.0, "kernel": 0, **wanted})
    seeds, counts = stacked(found)
    terms = {seed: [Counted(of_seed, class_mean_threat_score)] for seed, of_seed in zip(seeds, counts)}
    runs = found[["domain", "run"]].drop_duplicates().itertuples()
    data = {(at.domain, study.runs[at.run].spec.validation) for at in runs}
    images = (*data.pop(), counts.shape[1]) if len(data) == 1 else ()
    return Side(pd.Series(class_mean_threat_score(counts.sum(1)), seeds), terms if images else None, images)


def _value_text(value: float, unit: str) -> str:
    if unit == "points":
        return f"{100 * value:.1f} %"
    return f"{value:.3g}" if unit == "ratio" else f"{value:.3g} {unit}"


def _interval_text(row) -> str:
    if np.isnan(row.difference):
        return ""
    values = [row.difference, row.low, row.high]
    if row.unit == "ratio":
        texts = [f"{np.exp(value / 100):.2f}" for value in values]
    else:
        texts = [f"{value:+.1f}" for value in values]
    unit = {"points": "points", "ratio": "times"}.get(row.unit, row.unit)
    return f"{texts[0]} {unit}" if np.isnan(row.low) else f"{texts[0]} [{texts[1]}, {texts[2]}] {unit}"

