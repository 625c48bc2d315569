"""What the thesis found with clusterings, workflows and source shares (E2 to E4), beside our tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from panolib.labels import CITYSCAPES
from panolib.report.findings import Finding, another_seed, compared, decided, not_testable, seeds_note
from panolib.report.progress_tables import (
    ALGORITHM_LABELS,
    RING_LABELS,
    WORKFLOW_LABELS,
    change,
    share_label,
)
from panolib.report.tables import number, select

MEAN_SHIFT, DEFAULT, AGGLOMERATIVE = (
    ALGORITHM_LABELS[name] for name in ("mean_shift", "mean_shift_plus", "agglomerative")
)
THESIS_ALGORITHMS = (MEAN_SHIFT, DEFAULT, AGGLOMERATIVE)
ZERO, DECAY = RING_LABELS["zero"], RING_LABELS["decay"]
ALL, ICM, BASE, CCM = (WORKFLOW_LABELS[name] for name in ("all", "icm", "base", "ccm"))
NONE, QUARTER = share_label(0.0), share_label(0.25)
EARLY = 0.4  # 10,000 of 25,000 iterations
SIMILAR = 2.0  # times within this factor count as about equal


# --- E2 ---------------------------------------------------------------------------------------------------


def clustering_findings(
    scores: pd.DataFrame, ratios: pd.DataFrame, progress: pd.DataFrame, losses: pd.DataFrame,
    n_clusters: pd.Series, spread: pd.Series, *, train: str,
) -> list[Finding]:  # fmt: skip
    """The statements of thesis 8.2.

    Parameters
    ----------
    scores, ratios, progress : DataFrame
        What `progress_tables.score_rows`, `time_ratios` and `labelled_progress` return for E2.
    losses : DataFrame
        What `progress_figures.training_losses` returns.
    n_clusters : Series
        Mean number of pseudo-instances of a crop, by algorithm (epsilon zero).
    spread : Series
        What `progress_tables.seed_spread` returns.
    train : str
        Data set of the pseudo-labels.
    """
    thesis = progress[progress["method"].isin(THESIS_ALGORITHMS)]
    seeds = f"; {seeds_note(progress['seed'].nunique())}"
    steps, clustering = (ratios[f"{part}, ratio"] for part in ("whole step", "clustering"))
    longer = {
        name: f"a whole step takes {steps[name]:.{digits}f} times as long, its clustering alone "
        f"{clustering[name]:.{digits}f} times"
        for name, digits in ((MEAN_SHIFT, 1), (AGGLOMERATIVE, 2))
    }
    false = change(thesis, train, "fp")
    early, late = _early_and_late(thesis, train, "tp")
    rise = {name: _early_rise(losses, name) for name in (AGGLOMERATIVE, DEFAULT)}
    pooled = _values(scores, "class mean").groupby(level=["method", "setting"]).mean()
    pooled = pooled[pooled.index.isin(THESIS_ALGORITHMS, level="method")]
    wanted = pooled.get((DEFAULT, DECAY), np.nan)
    others = pooled.drop((DEFAULT, DECAY), errors="ignore")
    best = others.idxmax()
    return [
        decided(
            "mean-shift takes about 96 h for 10,000 iterations, mean-shift+ about 20 h (4.8 times)",
            f"{longer[MEAN_SHIFT]}{seeds}", bool(steps[MEAN_SHIFT] > 1),
        ),
        decided(
            "agglomerative takes as long as mean-shift+ (about 20 h)",
            f"{longer[AGGLOMERATIVE]}{seeds}", bool(1 / SIMILAR <= steps[AGGLOMERATIVE] <= SIMILAR),
        ),
        decided(
            "false positives among the pseudo-labels grow steadily for all algorithms",
            f"from start to end: {_changes(false)}{seeds}", bool((false["change"] > 0).all()),
        ),
        decided(
            "true positives level off after 10,000 iterations (of 25,000)",
            f"gain in the first {EARLY:.0%} of the iterations {early:+.1f}, in the rest {late:+.1f} "
            f"(mean of the algorithms){seeds}", bool(early > 0 and late < early),
        ),
        decided(
            "agglomerative over-splits instances",
            f"{n_clusters[AGGLOMERATIVE]:.1f} pseudo-instances a crop against {n_clusters[DEFAULT]:.1f} of "
            f"mean-shift+{seeds}", bool(n_clusters[AGGLOMERATIVE] > n_clusters[DEFAULT]),
        ),
        decided(
            "the training loss of agglomerative shoots up early",
            f"largest loss in the first {EARLY:.0%} against its start: {rise[AGGLOMERATIVE]:.2f} times, "
            f"mean-shift+ {rise[DEFAULT]:.2f} times{seeds}",
            bool(rise[AGGLOMERATIVE] > max(1.0, rise[DEFAULT])),
        ),
        compared(
            "mean-shift+ with decaying epsilon is the best choice",
            f"class mean {wanted:.1f} %; the best other, {best[0]}, {best[1]}: {others[best]:.1f} %{seeds}"
            f"; {another_seed(spread['class mean'])}", [wanted - others[best]], [spread["class mean"]],
        ),
    ]  # fmt: skip


def ring_line(scores: pd.DataFrame) -> str:
    """What decaying rings change in the final class mean, by algorithm, in words."""
    values = _values(scores, "class mean").groupby(level=["method", "setting"]).mean().unstack("setting")  # noqa: PD010
    gain = (values[DECAY] - values[ZERO]).dropna() if DECAY in values else pd.Series(dtype=float)
    parts = ", ".join(f"{name} {value:+.1f}" for name, value in gain.items())
    seeds = seeds_note(scores["seed"].nunique())
    return f"decaying rings against none, class mean of the threat score, points: {parts}; {seeds}"


# --- E3 ---------------------------------------------------------------------------------------------------


def workflow_findings(
    scores: pd.DataFrame, times: pd.DataFrame, progress: pd.DataFrame, spread: pd.Series, *, train: str,
    val: str,
) -> list[Finding]:  # fmt: skip
    """The statements of thesis 8.3, at share 0 of the source.

    Parameters
    ----------
    scores, times, progress : DataFrame
        What `progress_tables.score_rows`, `workflow_time_rows` and `labelled_progress` return for the
        workflows.
    spread : Series
        What `progress_tables.seed_spread` returns.
    train, val : str
        Data sets of the pseudo-labels and of the validation.
    """
    scores, times, progress = (table[table["setting"] == NONE] for table in (scores, times, progress))
    seeds = f"; {seeds_note(scores['seed'].nunique())}"
    groups = [f"group {name}" for name in CITYSCAPES.groups]
    found = [_fastest(times, seeds)]
    found.append(_above("BASE above CCM for all three groups", scores, spread, {BASE: CCM}, groups))
    found.append(_above("BASE and CCM above all classes", scores, spread, {BASE: ALL, CCM: ALL}, groups))
    statement = "single-class AP of ICM above that of all classes"
    if ICM in set(scores["method"]):
        found.append(_above(statement, scores, spread, {ICM: ALL}, CITYSCAPES.things))
    else:
        found.append(not_testable(statement, f"this profile trains no ICM with {NONE}"))
    for column, data, name in (("fp", train, "false positives"), ("loss", val, "the validation loss")):
        rise = change(progress, data, column)
        found.append(
            decided(
                f"{name} keep{'s' * (column == 'loss')} rising for every workflow",
                f"from start to end: {_changes(rise, 2 if column == 'loss' else 0)}{seeds}",
                bool((rise["change"] > 0).all()),
            )
        )
    return found


def _fastest(times: pd.DataFrame, seeds: str) -> Finding:
    longest = _values(times, "longest network").groupby(level="method").mean()
    order = [name for name in (ALL, BASE, CCM, ICM) if name in longest.index]
    text = ", ".join(f"{name} {longest[name]:.0f} s" for name in order)
    statement = "all classes 48 h, BASE and CCM 24 h, ICM 12 to 14 h (networks in parallel)"
    if ICM not in order:
        return not_testable(statement, f"this profile trains no ICM with {NONE}; {text}{seeds}")
    middle = longest[[BASE, CCM]]
    holds = longest[ALL] > middle.max() and middle.min() > longest[ICM]
    return decided(statement, f"longest network: {text}{seeds}", bool(holds))


def _above(
    statement: str, scores: pd.DataFrame, spread: pd.Series, pairs: Mapping[str, str], metrics: Sequence[str]
) -> Finding:
    """Whether workflows are above others in every metric that has something to count, beyond the spread."""
    differences, spreads, parts = [], [], []
    for upper, lower in pairs.items():
        for metric in metrics:
            values = _values(scores, metric).groupby(level="method").mean()
            if not np.isfinite([values[upper], values[lower]]).all():
                continue
            differences.append(values[upper] - values[lower])
            spreads.append(spread[metric])
            both = f"{upper} {values[upper]:.1f}, {lower} {values[lower]:.1f} ± {spread[metric]:.1f}"
            parts.append(f"{metric.removeprefix('group ')} {both}")
    n_above, n_clear = (np.greater(differences, limit).sum() for limit in (0, spreads))
    ours = (
        f"above in {n_above} of {len(differences)}, by more than another seed changes in {n_clear}, %: "
        f"{'; '.join(parts)}; {seeds_note(scores['seed'].nunique())}; ± over the seeds of other runs"
    )
    return compared(statement, ours, differences, spreads)


# --- E4 ---------------------------------------------------------------------------------------------------


def forgetting_findings(
    scores: pd.DataFrame, progress: pd.DataFrame, crops: pd.DataFrame, spread: pd.Series, *, train: str,
    source: str,
) -> list[Finding]:  # fmt: skip
    """The statements of thesis 8.4, and the forgetting that it assumes.

    Parameters
    ----------
    scores, progress : DataFrame
        What `progress_tables.score_rows` and `labelled_progress` return for the workflows.
    crops : DataFrame
        `score_rows` of the side test: methods "smaller source crops" and "as elsewhere".
    spread : Series
        What `progress_tables.seed_spread` returns.
    train, source : str
        Data sets of the pseudo-labels, and of the source's validation.
    """
    seeds = f"; {seeds_note(scores['seed'].nunique())}"
    of_source = change(progress, source, "threat_score").groupby(level=["method", "setting"]).mean()
    lost, known = of_source["change"], bool((of_source["start"] > 0).all())
    none = lost.xs(NONE, level="setting")
    most = lost.groupby(level="method").agg(lambda values: values.iloc[-1])
    true = change(progress, train, "tp")["end"].groupby(level=["method", "setting"]).mean().unstack("setting")  # noqa: PD010
    both = true[[NONE, QUARTER]].dropna()
    mean = _values(scores, "class mean").groupby(level=["method", "setting"]).mean()
    gain = {name: mean[name, QUARTER] - mean[name, NONE] for name in (BASE, CCM)}
    side = _values(crops, "class mean").groupby(level="method").mean()
    small, usual = side["smaller source crops"], side["as elsewhere"]
    forgotten = [
        compared(
            "without source images a network forgets the source (assumed, no numbers)",
            "source threat score from start to end, points: "
            + ", ".join(f"{name} {value:+.1f}" for name, value in none.items()) + seeds
            + f"; {another_seed(spread['pooled'])}",
            list(-none), [spread["pooled"]] * len(none),
        ),
        compared(
            "source images in the batch hold it back (assumed, no numbers)",
            "the same with the largest share: "
            + ", ".join(f"{name} {value:+.1f}" for name, value in most.items()) + seeds
            + f"; {another_seed(spread['pooled'])}",
            list(most.reindex(none.index) - none), [spread["pooled"]] * len(none),
        ),
    ] if known else [
        not_testable(
            "without source images a network forgets the source, and source images hold it back (assumed)",
            "some workflow finds no source object at the start, so there is nothing to forget",
        )
    ]  # fmt: skip
    return [
        *forgotten,
        decided(
            "25 % of source already raises the number of true positives",
            "true pseudo-labels at the end: " + ", ".join(
                f"{name} {row[NONE]:.0f} to {row[QUARTER]:.0f}" for name, row in both.iterrows()) + seeds,
            bool(len(both) and (both[QUARTER] > both[NONE]).all()),
        ),
        compared(
            "with 25 % of source the AP of BASE gets slightly better",
            f"class mean {gain[BASE]:+.1f} points{seeds}; {another_seed(spread['class mean'])}",
            [gain[BASE]], [spread["class mean"]],
        ),
        compared(
            "CCM struggles with 25 % of source",
            f"class mean {gain[CCM]:+.1f} points, BASE {gain[BASE]:+.1f}{seeds}"
            f"; {another_seed(spread['class mean'])}", [-gain[CCM]], [spread["class mean"]],
        ),
        decided(
            "cropping the source to smaller regions does not help",
            f"class mean {small:.1f} % against {usual:.1f} %{seeds}; {another_seed(spread['class mean'])}",
            bool(small - usual <= spread["class mean"]), clear=bool(np.isfinite(spread["class mean"])),
        ),
    ]  # fmt: skip


# --- helpers ----------------------------------------------------------------------------------------------


def _values(rows: pd.DataFrame, metric: str) -> pd.Series:
    """One metric, by (method, setting, seed)."""
    return select(rows, class_or_metric=metric).set_index(["method", "setting", "seed"])["value"]


def _changes(table: pd.DataFrame, decimals: int = 0) -> str:
    """ "mean-shift, epsilon zero 12 to 30; ..." of a table of `change`, means of the seeds."""
    means = table.groupby(level=["method", "setting"], sort=False).mean()
    several = len(set(means.index.get_level_values("setting"))) > 1
    return "; ".join(
        f"{method}{f', {setting}' * several} {number(row['start'], decimals=decimals)} to "
        f"{number(row['end'], decimals=decimals)}"
        for (method, setting), row in means.iterrows()
    )


def _early_and_late(table: pd.DataFrame, data: str, column: str) -> tuple[float, float]:
    """Mean change of a column in the first `EARLY` of the iterations, and in the rest."""
    part = table[table["data"] == data]
    wide = part.pivot_table(index="iteration", columns=["method", "setting", "seed"], values=column)
    at = np.interp(EARLY * wide.index.max(), wide.index, wide.mean(axis=1))
    return float(at - wide.iloc[0].mean()), float(wide.iloc[-1].mean() - at)


def _early_rise(losses: pd.DataFrame, method: str) -> float:
    """Largest loss in the first `EARLY` of the iterations as a multiple of the first one (epsilon zero)."""
    part = losses[(losses["method"] == method) & (losses["setting"] == ZERO)]
    curve = part.groupby("iteration")["target_loss"].mean()
    early = curve[curve.index <= EARLY * curve.index.max()]
    return float(early.max() / early.iloc[0])
