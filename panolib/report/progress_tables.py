"""Tables of instance self-training (E2 to E4): what the monitor saw, final scores and times, from records.

Scores are threat scores TP / (TP + FP + FN) at IoU 0.5, in percent; the thesis calls them AP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from panolib.lab.records import Record
from panolib.labels import CITYSCAPES
from panolib.report import tables
from panolib.report.tables import COLUMNS, number, published, select
from panolib.report.threat_tables import counts, threat_score
from panolib.study import progress_runs
from panolib.study.study import Study, run_name
from panolib.study.threat_runs import by_weight

ALGORITHM_LABELS = {
    "mean_shift": "mean-shift",
    "mean_shift_plus": "mean-shift+",
    "agglomerative": "agglomerative",
    "hdbscan": "HDBSCAN",
    "connected_components": "connected components",
}
RING_LABELS = {"zero": "epsilon zero", "decay": "epsilon decaying"}
WORKFLOW_LABELS = {"all": "all classes", "icm": "ICM", "base": "BASE", "ccm": "CCM"}
COUNTS = ("tp", "fp", "fn")
TIMED = {"clustering_s": "clustering", "step_s": "whole step"}  # column of the curves -> what it times
RUNTIMES = "thesis_text_counts_and_runtimes.csv"

Named = Mapping[tuple[str, str, int], Record]  # (method, setting, seed) -> record


# --- which record is what ---------------------------------------------------------------------------------


def clusterings(study: Study, kind: str) -> dict[tuple[str, str, int], Record]:
    """Records of E2 by (algorithm, ring, seed) in words; `kind` is "instance" or "threat"."""
    name = progress_runs.network if kind == "instance" else progress_runs.threat
    experiments = study.section("experiments")
    return {
        (ALGORITHM_LABELS.get(algorithm, algorithm), RING_LABELS[ring], seed): study.get(name(variant, seed))
        for seed in experiments.seeds
        for (algorithm, ring), variant in progress_runs.clustering_variants(experiments).items()
    }


def workflows(study: Study) -> dict[tuple[str, str, int], Record]:
    """Threat records of E3 and E4 by (workflow, share of source in words, seed)."""
    experiments = study.section("experiments")
    return {
        (WORKFLOW_LABELS[workflow], share_label(share), seed): study.get(
            progress_runs.threat(progress_runs.threat_variant(workflow, share), seed)
        )
        for seed in experiments.seeds
        for workflow in progress_runs.WORKFLOWS
        for share in progress_runs.shares(workflow, experiments)
    }


def baselines(study: Study) -> dict[tuple[str, str, int], Record]:
    """Threat records of the networks before self-training, in the form of `workflows`."""
    variants = {"baseline (ABN), all": "baseline", "baselines (AdaBN) of CCM": "ccm.baseline"}
    return {
        (label, "no self-training", seed): study.get(progress_runs.threat(variant, seed))
        for seed in study.section("experiments").seeds
        for label, variant in variants.items()
    }


def branches(study: Study, threat: Record) -> dict[str, Record]:
    """{classes it answers for: record} of the networks that a threat run scores."""
    return {
        role.partition(".")[2]: study.get(run.name)
        for role, run in threat.run.parents
        if role.startswith("instance.")
    }


def monitored_data(study: Study) -> tuple[str, str, str]:
    """Data sets that the monitors look at: target train, target validation, source validation."""
    variant = progress_runs.threat_variant("all", 0.0)
    run = study.runs[progress_runs.network(variant, study.section("experiments").seeds[0])]
    return run.spec.monitor.data


def share_label(share: float) -> str:
    """A share of the source in a batch, in words."""
    return f"{round(100 * share)} % source"


# --- while training ---------------------------------------------------------------------------------------


def progress(records: Iterable[Record]) -> pd.DataFrame:
    """What the monitors of networks that share the thing classes saw, added up over the networks.

    Returns
    -------
    DataFrame
        data, iteration; tp, fp, fn summed; loss, the mean of the networks; threat_score in percent (NaN where
        there is nothing to count). A row for every data set and monitored iteration.

    Raises
    ------
    ValueError
        If a record has no monitor, or they were monitored at different iterations.
    """
    parts = []
    for record in records:
        found = record.curves
        names = [column.removeprefix("tp ") for column in found if column.startswith("tp ")]
        if not names:
            raise ValueError(f"run {record.run.name} was not monitored: its curves have no column 'tp ...'")
        for name in names:
            columns = {f"{column} {name}": column for column in (*COUNTS, "loss")}
            part = found[["iteration", *columns]].dropna().rename(columns=columns)
            parts.append(part.assign(data=name, networks=1))
    groups = pd.concat(parts).groupby(["data", "iteration"], sort=False)
    table = groups[[*COUNTS, "networks"]].sum().assign(loss=groups["loss"].mean()).reset_index()
    if (table["networks"] != table["networks"].iloc[0]).any():
        raise ValueError("the networks were monitored at different iterations")
    total = table[list(COUNTS)].sum(axis=1)
    score = 100 * table["tp"] / total.where(total > 0)
    return table.drop(columns="networks").astype(dict.fromkeys(COUNTS, int)).assign(threat_score=score)


def labelled_progress(study: Study, named: Named) -> pd.DataFrame:
    """`progress` of every workflow or network, with the columns method, setting and seed before it."""
    parts = []
    for (method, setting, seed), record in named.items():
        found = branches(study, record) if record.run.kind == "threat" else {"": record}
        part = progress(found.values())
        parts.append(part.assign(method=method, setting=setting, seed=seed))
    table = pd.concat(parts, ignore_index=True)
    first = ["method", "setting", "seed"]
    return table[[*first, *(column for column in table if column not in first)]]


def change(table: pd.DataFrame, data: str, column: str) -> pd.DataFrame:
    """First and last value of one column on one data set, and their difference.

    Parameters
    ----------
    table : DataFrame
        What `labelled_progress` returns.

    Returns
    -------
    DataFrame
        Index (method, setting, seed); columns start, end, change.
    """
    part = table[table["data"] == data].sort_values("iteration", kind="stable")
    groups = part.groupby(["method", "setting", "seed"], sort=False)[column]
    found = pd.DataFrame({"start": groups.first(), "end": groups.last()})
    found = found.reindex(dict.fromkeys(zip(table["method"], table["setting"], table["seed"])))
    found.index.names = ["method", "setting", "seed"]
    return found.assign(change=found["end"] - found["start"])


def change_rows(table: pd.DataFrame, data: str, column: str, label: str, unit: str) -> pd.DataFrame:
    """`change` as tidy rows "{label}: start", "... end", "... change"; percent change by points."""
    found, points = change(table, data, column), "points" if unit == "%" else unit
    return pd.DataFrame(
        [
            (
                method,
                setting,
                f"{label}: {name}",
                value,
                points if name == "change" else unit,
                f"monitor on {data}",
                seed,
            )
            for (method, setting, seed), row in found.iterrows()
            for name, value in row.items()
        ],
        columns=list(COLUMNS),
    )


# --- at the end -------------------------------------------------------------------------------------------


def score_rows(named: Named, *, truth_share: float = 0.0) -> pd.DataFrame:
    """Final threat scores on the target's validation images, without morphology, as tidy rows.

    "pooled" puts all objects together, "class mean" is the thesis's mean, "image mean" SPOCO's; then a pooled
    score per class and per group of classes (thesis 8.3), and the counts.
    """
    rows = []
    for (method, setting, seed), record in named.items():
        found = counts(record)
        found = found[(found["truth_share"] == truth_share) & (found["kernel"] == 0)]
        whole = threat_score(found, by=["kernel"]).iloc[0]
        classes = threat_score(found, by=["class"]).set_index("class")["pooled"]
        group_of = {thing: group for group, things in CITYSCAPES.groups.items() for thing in things}
        by_group = threat_score(found.assign(group=found["class"].map(group_of)), by=["group"])
        scores = {
            "pooled": whole["pooled"],
            "class mean": whole["class_mean"],
            "image mean": whole["image_mean"],
        }
        scores |= {thing: classes[thing] for thing in record.metrics["things"]}
        scores |= {f"group {group}": value for group, value in zip(by_group["group"], by_group["pooled"])}
        source = f"run {record.run.name}"
        rows += [(method, setting, name, 100 * value, "%", source, seed) for name, value in scores.items()]
        rows += [(method, setting, name.upper(), whole[name], "count", source, seed) for name in COUNTS]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})


def seed_spread(study: Study) -> pd.Series:
    """`tables.seed_spread` of every score, from networks for all classes with source in the batch (E7)."""
    names = by_weight(study.profile.experiments)
    return tables.seed_spread(
        score_rows({
            (weight, "", number): study.get(name)
            for weight, runs in names.items()
            for number, name in enumerate(runs)
        })
    )  # fmt: skip


def costs(study: Study) -> list[dict]:
    """Time and memory of single calls (`clustering_cost.cost_rows`), of the first seed."""
    seed = study.section("experiments").seeds[0]
    return study.get(run_name("city", progress_runs.CLUSTERING_COST, "", seed)).metrics["rows"]


def clustering_time_rows(named: Named) -> pd.DataFrame:
    """Median seconds of clustering, and of the whole step, per iteration of self-training, as tidy rows."""
    return pd.DataFrame(
        [
            (
                method,
                setting,
                f"{label} per iteration",
                record.curves[column].median(),
                "s",
                f"run {record.run.name}",
                seed,
            )
            for (method, setting, seed), record in named.items()
            for column, label in TIMED.items()
        ],
        columns=list(COLUMNS),
    )


def workflow_time_rows(study: Study, named: Named) -> pd.DataFrame:
    """Seconds of self-training of all networks of a workflow, and of its slowest one, as tidy rows.

    The networks of a workflow train independently, so the slowest says how long a machine for each takes.
    """
    rows = []
    for (method, setting, seed), record in named.items():
        seconds = [found.curves["step_s"].sum() for found in branches(study, record).values()]
        for name, value in (("all networks", sum(seconds)), ("longest network", max(seconds))):
            rows.append((method, setting, name, value, "s", f"parents of run {record.run.name}", seed))
        rows.append((method, setting, "networks", len(seconds), "count", "", seed))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})


def time_ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Times as multiples of those of mean-shift+ (epsilon zero, mean of seeds), beside the thesis.

    The thesis's hours are those of its whole training: they stand beside whole steps, not beside clustering.

    Parameters
    ----------
    times : DataFrame
        What `clustering_time_rows` returns.

    Returns
    -------
    DataFrame
        Index: algorithm. Our s per iteration and ratio, of clustering and of whole steps; the thesis's h for
        10,000 iterations and ratio.
    """
    zero, default = select(times, setting=RING_LABELS["zero"]), ALGORITHM_LABELS["mean_shift_plus"]
    table = pd.DataFrame()
    for part in TIMED.values():
        seconds = select(zero, class_or_metric=f"{part} per iteration")
        seconds = seconds.groupby("method", sort=False)["value"].mean()
        table[f"{part}, s per iteration"], table[f"{part}, ratio"] = seconds, seconds / seconds[default]
    hours = published(RUNTIMES)
    hours = hours[hours["setting"].str.contains("10000 self-training")].set_index("method")["value"]
    hours = hours.rename(str.lower).reindex(table.index)
    return table.assign(**{
        "thesis, h per 10,000 iterations": hours,
        "thesis, ratio": hours / hours[default],
    })  # fmt: skip


def show_time_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """`time_ratios` as a reader sees them."""
    return table.map(lambda value: number(value, decimals=2 if abs(value) < 10 else 1))


def thesis_hours(name: str) -> float:
    """Published hours for 25,000 iterations of a workflow; the mean where the thesis gives two bounds."""
    found = published(RUNTIMES)
    label = "all_classes" if name == WORKFLOW_LABELS["all"] else name
    part = found[(found["method"] == label) & found["setting"].str.contains("25000")]
    return float(part["value"].mean())


def with_thesis_hours(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary of `workflow_time_rows` with the thesis's hours for 25,000 iterations as further rows."""
    longest = select(summary, class_or_metric="longest network")
    hours = longest.assign(
        class_or_metric="thesis, 25,000 iterations",
        unit="h",
        mean=[thesis_hours(method) for method in longest["method"]],
        spread=np.nan,
    )
    return pd.concat([summary, hours], ignore_index=True)


def in_order(rows: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Rows of some settings with method and setting joined: "BASE, 25 % source"."""
    part = rows[rows["setting"].isin(settings)]
    return part.assign(method=part["method"] + ", " + part["setting"], setting="")


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tidy rows of several tables, under one another."""
    return pd.concat(tables, ignore_index=True)


def by_share(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of the workflows: columns method, share (of the source, a fraction), seed, value."""
    part = select(rows, class_or_metric=metric)
    share = part["setting"].str.removesuffix(" % source").astype(float) / 100
    return part.assign(share=share)[["method", "share", "seed", "value"]]


def pseudo_instances(named: Named) -> pd.Series:
    """Mean number of pseudo-instances of a crop while training, by algorithm (epsilon zero)."""
    found: dict[str, list[float]] = {}
    for (method, setting, _), record in named.items():
        if setting == RING_LABELS["zero"]:
            found.setdefault(method, []).append(record.curves["pseudo_instances"].mean())
    return pd.Series({method: np.mean(values) for method, values in found.items()})


def crop_test(study: Study) -> dict[tuple[str, str, int], Record]:
    """Threat records of the side test of E4: smaller source crops, and the same without."""
    names = {"smaller source crops": "crops", "as elsewhere": progress_runs.threat_variant("all", 0.25)}
    return {
        (label, "", seed): study.get(progress_runs.threat(variant, seed))
        for seed in study.section("experiments").seeds
        for label, variant in names.items()
    }
