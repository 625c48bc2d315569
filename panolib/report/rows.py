"""The tidy table: every recorded number is one row, found by coordinates and tags, never by a label.

A selection is an experiment and wanted values of columns: ``rows(study, "E3", branch="threat", share=0.25)``.
Columns of every table: the values of the tag (`study.experiments` lists them), then domain, branch, rung,
variant, seed, run. Scores are fractions; percent is made where a table is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from panolib.lab.files import write
from panolib.lab.records import Record
from panolib.lab.run import Run
from panolib.study.study import Study, is_available

COUNTS = ("tp", "fp", "fn")
NAMES = {  # of records -> of the table, where they differ
    "embedding": "embeddings", "connected_components": "connected components", "otsu": "Otsu",
}  # fmt: skip


class NotInProfile(LookupError):
    """Nothing of a study fits what is wanted: its profile leaves it out."""


def tagged(study: Study, experiment: str, **wanted) -> list[tuple[Run, dict[str, Any]]]:
    """Runs of an experiment with their tag values and coordinates, in the order of the grid.

    `wanted`: value, or list of allowed values, of tag values and coordinates. A run that lacks one is left
    out, and one that is neither recorded nor has its images here (`unavailable` names these).

    Raises
    ------
    NotInProfile
        If no run fits: naming the experiment, what was wanted, and the values that there are.
    """
    found, known = [], []
    for tag in study.tags:
        if tag.experiment == experiment:
            run = study.runs[tag.run]
            seed = getattr(run.spec, "seed", None)
            at = {**dict(tag.values), "domain": run.domain, "branch": run.branch, "rung": run.rung}
            at |= {"variant": run.variant, "seed": seed, "run": run.name}
            known.append(at)
            fits = all(name in at and at[name] in _several(value) for name, value in wanted.items())
            if fits and is_available(study, run.name):
                found.append((run, at))
    if not found:
        there: Any = {name: list(dict.fromkeys(at.get(name) for at in known)) for name in wanted}
        if not known:
            left_out = ", ".join(study.profile.left_out()) or "none"
            there = f"no run at all; sections that the profile leaves out: {left_out}"
        raise NotInProfile(f"experiment {experiment!r}: no run with {wanted}; found {there}")
    return found


def unavailable(study: Study, experiment: str) -> list[str]:
    """Runs of an experiment that are not recorded and whose images are not on this machine."""
    names = (tag.run for tag in study.tags if tag.experiment == experiment)
    return [name for name in dict.fromkeys(names) if not is_available(study, name)]


def rows(study: Study, experiment: str, **wanted) -> pd.DataFrame:
    """Every score of the runs of an experiment; `wanted` as for `tagged`, and values of further columns.

    Returns
    -------
    DataFrame
        The columns of every table, what tells scores of one run apart (data_set; instances, masks, leftover;
        truth_share, kernel; style), metric, subset (a class, "" for means), value.
    """
    of_runs, of_rows = _split(study, experiment, wanted)
    parts = []
    for run, at in tagged(study, experiment, **of_runs):
        for inside, scores in PARTS.get(run.kind, _one_part)(study.get(run.name)):
            for metric, subset, value in _expanded(scores):
                parts.append({**at, **inside, "metric": metric, "subset": subset, "value": value})
    return _where(pd.DataFrame(parts), of_rows, experiment)


def image_counts(study: Study, experiment: str, **wanted) -> pd.DataFrame:
    """What every validation image counts in the "threat" runs of an experiment.

    Returns
    -------
    DataFrame
        The columns of every table, truth_share (of wrong mask pixels that were corrected), kernel (of the
        morphology, pixels; 0: none), image, class, tp, fp, fn.
    """
    of_runs, of_rows = _split(study, experiment, wanted)
    parts = []
    for run, at in tagged(study, experiment, **{**of_runs, "branch": "threat"}):
        metrics = study.get(run.name).metrics
        for variant in metrics["variants"]:
            for thing in metrics["things"]:
                counts = {name: np.array(variant[name][thing].split(), np.int64) for name in COUNTS}
                part = pd.DataFrame({"image": range(metrics["n_images"]), "class": thing, **counts})
                inside = {name: variant[name] for name in ("truth_share", "kernel")}
                parts.append(part.assign(**{**at, **inside}))
    return _where(pd.concat(parts, ignore_index=True), of_rows, experiment)


def curves(study: Study, experiment: str, **wanted) -> pd.DataFrame:
    """The training curves of an experiment: the columns of every table, then those of `Record.curves`."""
    found = tagged(study, experiment, **wanted)
    return pd.concat([study.get(run.name).curves.assign(**at) for run, at in found], ignore_index=True)


def monitored(study: Study, experiment: str, **wanted) -> pd.DataFrame:
    """What instance networks found while they trained, added up over the networks of one setting.

    Networks of several classes stay apart where some are wanted: ``classes=["auto", "bike"]``.

    Returns
    -------
    DataFrame
        The tag values, seed, data_set, iteration, n_networks; tp, fp, fn; loss, the mean of the
        networks; threat_score (NaN where there is nothing to count).

    Raises
    ------
    NotInProfile
        As `rows`; and if no run was monitored.
    """
    of_runs, of_rows = _split(study, experiment, wanted)
    table = curves(study, experiment, **{**of_runs, "branch": "instance"})
    data_sets = [column.removeprefix("tp ") for column in table if column.startswith("tp ")]
    setting = [name for name in table if name in _tag_names(study, experiment) - ({"classes"} - set(wanted))]
    if not data_sets:
        raise NotInProfile(f"experiment {experiment!r}: no run with {of_runs} was monitored")
    parts = []
    for name in data_sets:
        columns = {f"{column} {name}": column for column in (*COUNTS, "loss")}
        part = table[[*setting, "seed", "iteration", *columns]].rename(columns=columns)
        parts.append(part.dropna(subset=COUNTS).assign(data_set=name, n_networks=1))
    by = [*setting, "seed", "data_set", "iteration"]
    groups = pd.concat(parts).groupby(by, sort=False, dropna=False)
    found = groups[["n_networks", *COUNTS]].sum().astype(int).assign(loss=groups["loss"].mean()).reset_index()
    total = found[list(COUNTS)].sum(axis=1)
    return _where(found.assign(threat_score=found["tp"] / total.where(total > 0)), of_rows, experiment)


def measured(study: Study, experiment: str, **wanted) -> pd.DataFrame:
    """What measuring runs recorded as rows (times, memory, label quality), with the usual columns."""
    of_runs, of_rows = _split(study, experiment, wanted)
    found = tagged(study, experiment, **of_runs)
    tables = [pd.DataFrame(study.get(run.name).metrics["rows"]).assign(**at) for run, at in found]
    return _where(pd.concat(tables, ignore_index=True), of_rows, experiment)


def threat_score(counts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Threat score TP / (TP + FP + FN) of every group, averaged in three ways.

    `counts` is what `image_counts` returns, or a part of it; the columns `by` tell groups apart.

    Returns
    -------
    DataFrame
        `by`, tp, fp, fn; pooled over all objects; class_mean over the pooled scores of classes, the mAP of
        the thesis (ch. 11 eq. 1); image_mean over classes of the mean over images that show the class (Wolny
        et al. 2022). NaN where nothing is counted.
    """
    by, of_class = list(by), [*by, *({"class"} - set(by))]
    shown = counts[counts["tp"] + counts["fn"] > 0]
    of_images = shown.assign(score=_ratio(shown)).groupby(of_class, sort=False, dropna=False)["score"].mean()
    classes = counts.groupby(of_class, sort=False, dropna=False)[list(COUNTS)].sum()
    classes = classes.assign(class_mean=_ratio(classes), image_mean=of_images.reindex(classes.index))
    groups = classes.groupby(by, sort=False, dropna=False)
    table = groups[list(COUNTS)].sum()
    means = groups[["class_mean", "image_mean"]].mean()
    return table.assign(pooled=_ratio(table), **means).reset_index()


def _ratio(counts: pd.DataFrame) -> pd.Series:
    return counts["tp"] / counts[list(COUNTS)].sum(axis=1).where(lambda n: n > 0)


def stacked(counts: pd.DataFrame) -> tuple[pd.Index, np.ndarray]:
    """Seeds, and what every image counts: int array [n_seeds, n_images, n_classes, 3] of TP, FP, FN.

    `counts` is what `image_counts` returns; rows of one seed, image and class are added up.
    """
    sums = counts.groupby(["seed", "image", "class"], sort=True)[list(COUNTS)].sum()
    shape = [len(level) for level in sums.index.levels]
    return sums.index.levels[0], sums.to_numpy().reshape(*shape, len(COUNTS))


def summary(
    rows: pd.DataFrame, index: str | list[str], columns: str = "metric", *, decimals: int = 1
) -> pd.DataFrame:
    """Mean ± sample standard deviation over seeds in percent, as text; the column "n" counts the seeds.

    Raises
    ------
    ValueError
        If two values of one seed fall into one cell.
    """
    index = [index] if isinstance(index, str) else list(index)
    cell = [*index, columns]
    twice = rows[rows.duplicated([*cell, "seed"])]
    if len(twice):
        raise ValueError(f"two values for {twice.iloc[0][[*cell, 'seed']].to_dict()}, expected one")
    groups = rows.groupby(cell, sort=False, dropna=False)["value"].agg(["mean", "std", "count"])
    texts = groups.apply(lambda v: percent(v["mean"], v["std"], decimals=decimals), axis=1)
    table = texts.unstack(columns)  # noqa: PD010
    order = rows.drop_duplicates(index).set_index(index).index
    table = table.reindex(order)[list(dict.fromkeys(rows[columns]))].fillna("")
    n = rows.groupby(index, sort=False, dropna=False)["seed"].nunique().reindex(order)
    return table.assign(n=n).rename_axis(columns=None)


def percent(mean: float, spread: float = np.nan, *, decimals: int = 1) -> str:
    """A fraction as percent: "32.9 ± 0.4", without spread "32.9", "" for NaN."""
    if np.isnan(mean):
        return ""
    text = f"{100 * mean:.{decimals}f}"
    return text if np.isnan(spread) else f"{text} ± {100 * spread:.{decimals}f}"


def write_csv(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write a table atomically, numbers with six digits after the point; returns the table."""
    write(path, table.round(6).to_csv(index=False, lineterminator="\n").encode())
    return table


# --- what the record of a kind holds: parts of one run, each with the columns that tell it apart ------------

Part = tuple[dict[str, Any], Mapping[str, Any]]


def _one_part(record: Record) -> list[Part]:
    return [({"data_set": getattr(record.run.spec, "validation", "")}, record.metrics)]


def _panoptic(record: Record) -> Iterator[Part]:
    metrics, masks = record.metrics, {"masks": "predicted"}
    yield from _merged(record, {"instances": "embeddings", **masks})
    components = {"instances": "connected components", **masks, "leftover": next(iter(metrics["merge"]))}
    yield {"data_set": record.run.spec.validation, **components}, metrics["connected_components"]
    yield from _threat_scores(record)


def _classical(record: Record) -> Iterator[Part]:
    (name,) = record.metrics["threat"]
    yield from _merged(record, _instances(name))
    yield from _threat_scores(record)


def _merged(record: Record, inside: Mapping[str, str]) -> Iterator[Part]:
    """Scores of one kind of instances: all with the first merge rule, panoptic ones with the others."""
    at = {"data_set": record.run.spec.validation, **inside}
    left_out = ("merge", "connected_components", "threat", "n_images", "n_instances", "chosen")
    everything = {name: value for name, value in record.metrics.items() if name not in left_out}
    for i, (rule, scores) in enumerate(record.metrics["merge"].items()):
        yield {**at, "leftover": rule}, scores if i else everything


def _threat_scores(record: Record) -> Iterator[Part]:
    at = {"data_set": record.run.spec.validation}
    for name, scores in record.metrics["threat"].items():
        found = scores["tp"] + scores["fp"]
        yield {**at, **_instances(name), "leftover": ""}, {
            "threat_pooled": scores["pooled"],
            "threat_class_mean": scores["class_mean"],
            "threat_image_mean": scores["class_mean_of_image_means"],
            "threat_false": scores["fp"] / found if found else np.nan,  # share of the objects found
            **{f"threat_{name}": scores[name] for name in COUNTS},
            "threat_score": scores["per_class"],
        }


def _instances(name: str) -> dict[str, str]:
    """Which instances are scored, and in which masks they lie: of "embedding in predicted masks"."""
    words = name.removesuffix(" masks").split(" in ")
    return {column: NAMES.get(word, word) for column, word in zip(("instances", "masks"), words)}


def _threat(record: Record) -> Iterator[Part]:
    at = {"data_set": record.run.spec.validation}
    for mask in record.metrics["masks"]:
        values = {"mask_miou": mask["miou"], "mask_wrong_share": mask["wrong_share"]}
        yield {**at, "truth_share": mask["truth_share"], "kernel": 0}, values


def _gap(record: Record) -> Iterator[Part]:
    for style, scores in record.metrics.items():
        yield {"style": style}, scores


def _objectness(record: Record) -> Iterator[Part]:
    for data_set, scores in record.metrics["data_sets"].items():
        yield {"data_set": data_set}, {name: scores[name] for name in ("n_clusters", "n_real")}
        for name, values in scores["filters"].items():
            yield {"data_set": data_set, "ranked_by": name}, values


def _objectness_ranking(record: Record) -> Iterator[Part]:
    at = {"data_set": record.run.spec.validation}
    for name, values in record.metrics["ap"].items():
        yield {**at, "ranked_by": name}, values
    for name, values in record.metrics["kept"].items():  # by what drops detections; "none" drops none
        for leftover, start in (("void", "pq"), ("", "threat")):
            scores = {metric: value for metric, value in values.items() if metric.startswith(start)}
            yield {**at, "instances": name, "masks": "predicted", "leftover": leftover}, scores


def _detr_scores(record: Record) -> Iterator[Part]:
    for data_set, by_threshold in record.metrics.items():
        for threshold, scores in by_threshold.items():
            product = {"sq_rq_19": scores["sq_19"] * scores["rq_19"]} if "sq_19" in scores else {}
            yield {"data_set": data_set, "threshold": float(threshold)}, {**scores, **product}


PARTS: dict[str, Callable[[Record], Any]] = {
    "panoptic": _panoptic, "classical": _classical, "threat": _threat, "gap": _gap,
    "detr_scores": _detr_scores, "peer_scores": _classical, "objectness": _objectness,
    "objectness_ranking": _objectness_ranking,
}  # fmt: skip


def _expanded(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(metric, subset, value) of numbers and of numbers by class; anything else is no score."""
    for metric, value in scores.items():
        for subset, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield metric, subset, float(number)


def _tag_names(study: Study, experiment: str) -> set[str]:
    return {name for tag in study.tags if tag.experiment == experiment for name in dict(tag.values)}


def _split(study: Study, experiment: str, wanted: Mapping) -> tuple[dict, dict]:
    """What is wanted of runs, and what of the rows inside them."""
    names = {"domain", "branch", "rung", "variant", "seed", "run"}
    names |= _tag_names(study, experiment)
    of_runs = {name: value for name, value in wanted.items() if name in names}
    return of_runs, {name: value for name, value in wanted.items() if name not in of_runs}


def _where(table: pd.DataFrame, wanted: Mapping, experiment: str) -> pd.DataFrame:
    for column, value in wanted.items():
        if column not in table:
            raise NotInProfile(f"experiment {experiment!r}: no column {column!r}; found {list(table)}")
        kept = table[table[column].isin(_several(value))]
        if kept.empty:
            known = list(table[column].dropna().unique())[:30]
            raise NotInProfile(f"experiment {experiment!r}: no row with {column} {value!r}; found {known}")
        table = kept
    return table.reset_index(drop=True)


def _several(value) -> list:
    return list(value) if isinstance(value, list | tuple | set) else [value]
