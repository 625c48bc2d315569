"""Tables: pure functions from recorded runs to tidy rows, and from rows to what a reader sees.

A tidy row has the columns of the published files (`method, setting, class_or_metric, value, unit, source`)
plus `seed`. Scores are fractions everywhere else; here, and only here, they become percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from panolib.lab import packages
from panolib.lab.files import write
from panolib.lab.records import Record
from panolib.report.published import published
from panolib.study.study import RUNG_LABELS, RUNGS, Study

COLUMNS = ("method", "setting", "class_or_metric", "value", "unit", "source", "seed")
KEYS = ["method", "setting", "class_or_metric", "unit"]
METHODS = tuple(RUNG_LABELS[rung] for rung in RUNGS)
SOURCE_ONLY, SELF_TRAINED, ORACLE = (RUNG_LABELS[rung] for rung in ("source_only", "self_trained", "oracle"))
PERCENT = "%"
COUNTS = {"tp": "TP", "fp": "FP", "fn": "FN"}
PANOPTIC_SCORES = {"sq": "SQ", "sq_matched": "SQ matched", "rq": "RQ", "pq": "PQ", "pq_plus": "PQ+"}

# the thesis's printed SQ averages over matched classes only
THESIS_SQ = {"SQ matched_16": "SQ_16", "SQ matched_19": "SQ_19", "SQ_16": None, "SQ_19": None}

Ladder = Mapping[tuple[str, int], Record]  # (rung, seed) -> record, as Study.ladder gives it


# --- records to rows ------------------------------------------------------------------------------------

def semantic_rows(ladder: Ladder, *, setting: str = "") -> pd.DataFrame:
    """IoU per class and its mean over every class list, of each rung and seed."""

    def values(metrics: dict) -> dict:
        return _named(metrics, "miou_", "mIoU_") | metrics["iou"]

    return _ladder_rows(ladder, {setting: values})


def panoptic_rows(ladder: Ladder, *, setting: str = "") -> pd.DataFrame:
    """SQ (both conventions), RQ, PQ, PQ+ over every class list, of each rung, seed and merge rule.

    "SQ" counts a class without any match as 0, "SQ matched" leaves it out. Panoptic maps
    whose instances are connected components are the setting "connected components".
    """
    rules = next(iter(ladder.values())).metrics["merge"]
    settings = {
        _join(setting, f"leftover pixels: {rule}"): lambda metrics, rule=rule: _means(metrics["merge"][rule])
        for rule in rules
    }
    settings[_join(setting, "connected components")] = lambda metrics: _means(metrics["connected_components"])
    return _ladder_rows(ladder, settings)


def class_panoptic_rows(ladder: Ladder, *, score: str = "pq", setting: str = "") -> pd.DataFrame:
    """One panoptic score ("pq", "sq", "rq" or "pq_plus") of every class."""
    return _ladder_rows(ladder, {_join(setting, PANOPTIC_SCORES[score]): lambda metrics: metrics[score]})


def threat_rows(ladder: Ladder, *, setting: str = "") -> pd.DataFrame:
    """Threat score TP / (TP + FP + FN) of embeddings and of connected components, with its counts.

    The settings say which instances inside which masks: "embedding in predicted masks", ...
    """

    def values(metrics: dict, name: str) -> dict:
        score = metrics["threat"][name]
        means = {"pooled": score["pooled"], "class mean": score["class_mean"],
                 "mean of image means": score["class_mean_of_image_means"]}
        return means | score["per_class"]

    def counts(metrics: dict, name: str) -> dict:
        return {label: metrics["threat"][name][key] for key, label in COUNTS.items()}

    names = list(next(iter(ladder.values())).metrics["threat"])
    labels = {_join(setting, name.replace("_", " ")): name for name in names}
    scores = {label: lambda metrics, name=name: values(metrics, name) for label, name in labels.items()}
    numbers = {label: lambda metrics, name=name: counts(metrics, name) for label, name in labels.items()}
    return pd.concat([_ladder_rows(ladder, scores), _ladder_rows(ladder, numbers, unit="count")],
                     ignore_index=True)


def average_precision_rows(ladder: Ladder, *, setting: str = "") -> pd.DataFrame:
    """Official Cityscapes AP and AP50, and AP50 per class. Never in one table with the threat score."""

    def values(metrics: dict) -> dict:
        return {"AP": metrics["ap"], "AP50": metrics["ap50"]} | metrics["ap50_per_class"]

    return _ladder_rows(ladder, {setting: values})


def gap_rows(gaps: Mapping[tuple[str, int], Record], *, metric: str = "miou_19") -> pd.DataFrame:
    """mIoU on source scenes with one group of style parameters taken from the target, per group."""
    setting = f"{metric.replace('miou', 'mIoU')} on source scenes with one style group of the target"
    return _ladder_rows(
        gaps, {setting: lambda metrics: {group: scores[metric] for group, scores in metrics.items()}}
    )


def data_table(descriptions: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """One row per data set: images, size, instances and the share of void pixels.

    Parameters
    ----------
    descriptions : mapping of name to what `panolib.data.describe.describe` returns
    """
    rows = []
    for name, found in descriptions.items():
        images = found["images"]
        sizes = images[["height", "width"]].drop_duplicates()
        size = f"{sizes.height.iloc[0]} x {sizes.width.iloc[0]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
        rows.append({
            "data set": name, "images": len(images), "height x width, px": size,
            "classes seen": int((found["counts"]["pixels"] > 0).sum()),
            "instances": int(images["n_instances"].sum()),
            "instances per image": round(images["n_instances"].mean(), 1),
            "void, %": round(100 * images["void_px"].sum() / (images["height"] * images["width"]).sum(), 1),
        })
    return pd.DataFrame(rows)


def presence_table(descriptions: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Share of the images that show each class, in percent: a row per class, a column per data set."""
    first = next(iter(descriptions.values()))["presence"]
    shares = {f"{name}, %": 100 * found["presence"]["image_share"] for name, found in descriptions.items()}
    return pd.DataFrame({"class": first["class"]} | shares)


def size_table(descriptions: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Objects per thing class and data set: number, and 5, 50 and 95 % of their areas in pixels."""
    rows = []
    for name, found in descriptions.items():
        for (_, thing), areas in found["instances"].groupby(["class_id", "class"])["area_px"]:
            low, median, high = np.percentile(areas, (5, 50, 95))
            rows.append({"data set": name, "class": thing, "objects": len(areas), "5 %, px": low,
                         "median, px": median, "95 %, px": high})
    return pd.DataFrame(rows)


def by_method(ladder: Ladder, rungs: Sequence[str] = RUNGS) -> dict[str, list[Record]]:
    """Records of some rungs, seed by seed, under the names that tables and figures show."""
    seeds = sorted({seed for _, seed in ladder})
    return {RUNG_LABELS[rung]: [ladder[rung, seed] for seed in seeds] for rung in rungs}


# --- rows to rows -----------------------------------------------------------------------------------------

def select(rows: pd.DataFrame, **wanted: str | Sequence[str]) -> pd.DataFrame:
    """Rows whose columns have the wanted values (one, or any of several). Raises KeyError if none has.

    `setting` also fits as the last part of a longer one ("DeepLabV2; leftover pixels: void").
    """
    for column, values in wanted.items():
        values = [values] if isinstance(values, str) else list(values)
        fits = rows[column].isin(values)
        if column == "setting":
            fits |= rows[column].str.endswith(tuple(f"; {value}" for value in values))
        if not fits.any():
            raise KeyError(f"no row with {column} in {values}; found {list(dict.fromkeys(rows[column]))}")
        rows = rows[fits]
    return rows.reset_index(drop=True)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread and number of seeds of every value, in the order of the rows.

    Returns
    -------
    DataFrame
        method, setting, class_or_metric, unit, mean, spread (sample standard deviation over seeds, NaN for
        one seed), n (seeds with a value), seeds ("0 1 2").
    """
    counted = rows.assign(counted=rows["seed"].astype(str).where(rows["value"].notna(), ""))
    groups = counted.sort_values("seed", kind="stable").groupby(KEYS, sort=False)
    table = groups["value"].agg(mean="mean", spread="std", n="count")
    table = table.assign(seeds=groups["counted"].agg(lambda seeds: " ".join(filter(None, seeds))))
    in_order = pd.MultiIndex.from_frame(rows[KEYS].drop_duplicates())
    return table.reindex(in_order).reset_index()


def gap_closed(value, source_only, oracle):
    """Share of the way from source-only to the target-supervised oracle, as a fraction.

    0 at the source-only score, 1 at the oracle's, negative below the source-only one. NaN where the oracle
    is not above it.
    """
    value, source_only, oracle = (np.asarray(x, dtype=np.float64) for x in (value, source_only, oracle))
    gap = oracle - source_only
    undefined = np.full(np.broadcast(value, gap).shape, np.nan)
    return np.divide(value - source_only, gap, out=undefined, where=gap > 0)


def with_gap_closed(rows: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Add rows "{metric} gap closed" of every method, each seed against its own source-only and oracle."""
    parts = [rows]
    for metric in metrics:
        part = select(rows, class_or_metric=metric)
        ends = {
            method: part[part["method"] == method].set_index(["setting", "seed"])["value"]
            for method in (SOURCE_ONLY, ORACLE)
        }
        at = pd.MultiIndex.from_frame(part[["setting", "seed"]])
        low, high = (ends[method].reindex(at).to_numpy() for method in (SOURCE_ONLY, ORACLE))
        share = 100 * gap_closed(part["value"].to_numpy(), low, high)
        parts.append(part.assign(class_or_metric=f"{metric} gap closed", value=share))
    return pd.concat(parts, ignore_index=True)


def with_published(
    summary: pd.DataFrame,
    name: str,
    matches: Mapping[str, tuple[str, str]],
    *,
    metrics: Mapping[str, str | None] | None = None,
) -> pd.DataFrame:
    """Put published values beside ours.

    Parameters
    ----------
    summary : DataFrame
        What `summarise` returns.
    name : str
        Published file.
    matches : mapping of our method to (published method, beginning of the published setting)
    metrics : mapping of our metric to the published one, optional
        Those that are called otherwise; None for one that the file does not have under the same meaning.

    Returns
    -------
    DataFrame
        `summary` with columns `published` (NaN where there is none) and `published_method`.

    Raises
    ------
    KeyError
        If a match is nowhere in the file, or is not unique for a metric.
    """
    file, metrics = published(name), metrics or {}
    found: dict[tuple[str, str], float] = {}
    for ours, (method, setting) in matches.items():
        part = file[(file["method"] == method) & file["setting"].str.startswith(setting)]
        if part.empty or part["class_or_metric"].duplicated().any():
            raise KeyError(f"{name}: {(method, setting)} fits {len(part)} rows, expected one for each metric")
        found |= {(ours, metric): value for metric, value in zip(part["class_or_metric"], part["value"])}
    asked = [(method, metrics.get(metric, metric)) for method, metric in
             zip(summary["method"], summary["class_or_metric"])]
    return summary.assign(
        published=[found.get(key, np.nan) for key in asked],
        published_method=["; ".join(matches[key[0]]) if key in found else "" for key in asked],
    )


# --- rows to files and to what is shown ---------------------------------------------------------------------

def write_csv(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write rows atomically; returns what the file says, so that a shown table is the written one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, rows.round(6).to_csv(index=False, lineterminator="\n").encode())
    empty_is_nan = {column: [""] for column in rows.select_dtypes("number")}
    return pd.read_csv(path, keep_default_na=False, na_values=empty_is_nan)


def show(
    summary: pd.DataFrame,
    *,
    metrics: Iterable[str] | None = None,
    index: str = "method",
    columns: str = "class_or_metric",
    decimals: int = 1,
) -> pd.DataFrame:
    """A summary as a reader sees it: "mean ± spread" as text, one row per method, one column per metric.

    A column with published values is followed by a column of them. The column "n" is the number of seeds.
    A setting is shown by its last part.

    Parameters
    ----------
    summary : DataFrame
        What `summarise` or `with_published` returns.
    metrics : iterable of str, optional
        Classes or metrics to show; all by default.
    index, columns : str
        Columns of `summary` whose values become the rows and the columns.
    decimals : int
        Digits after the point; counts have none.

    Raises
    ------
    KeyError
        For a metric that the summary does not have.
    ValueError
        If two values fall into one cell.
    """
    if metrics is not None:
        parts = [select(summary, class_or_metric=metric) for metric in metrics]
        summary = pd.concat(parts, ignore_index=True)
    summary = summary.assign(setting=summary["setting"].str.split("; ").str[-1])
    twice = summary[summary.duplicated([index, columns])]
    if len(twice):
        found = twice[[index, columns]].iloc[0].tolist()
        raise ValueError(f"two values for {found}, expected one; select one setting first")
    names = list(dict.fromkeys(summary[index]))
    table = pd.DataFrame(index=pd.Index(names, name=index.replace("_", " ")))
    for column, part in summary.groupby(columns, sort=False):
        part = part.set_index(index).reindex(names)
        unit = part["unit"].dropna().iloc[0]
        digits = 0 if unit == "count" else decimals
        heading = column if unit == "count" else f"{column}, {unit}"
        table[heading] = [number(*values, digits) for values in zip(part["mean"], part["spread"])]
        if "published" in part and part["published"].notna().any():
            table[f"{column}, published"] = [number(x, decimals=decimals) for x in part["published"]]
    return table.assign(n=summary.groupby(index, sort=False)["n"].max())


def show_seeds(rows: pd.DataFrame, metric: str, *, decimals: int = 1) -> pd.DataFrame:
    """One metric of one setting: a row per method, a column per seed."""
    wide = per_seed(rows, metric)
    wide.columns = [f"seed {seed}" for seed in wide.columns]
    return wide.map(lambda value: number(value, decimals=decimals))


def per_seed(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Values of one metric of one setting [methods, seeds], in percent or counts as the rows say."""
    part = select(rows, class_or_metric=metric)
    wide = part.set_index(["method", "seed"])["value"].unstack("seed")  # noqa: PD010
    return wide.reindex(list(dict.fromkeys(part["method"])))


def seed_spread(rows: pd.DataFrame) -> pd.Series:
    """What another seed alone changes: sample standard deviation over seeds of every metric, by its name.

    In the unit of the rows, mean over methods; NaN for one seed.
    """
    by_method = rows.groupby(["class_or_metric", "method"])["value"].std(ddof=1)
    return by_method.groupby("class_or_metric").mean()


def number(mean: float, spread: float = np.nan, decimals: int = 1) -> str:
    """"24.6 ± 0.4"; without spread "24.6"; "–" for no value."""
    if not np.isfinite(mean):
        return "–"
    text = f"{mean:.{decimals}f}"
    return text if not np.isfinite(spread) else f"{text} ± {spread:.{decimals}f}"


def three_digits(value: float) -> str:
    """"0.951", "62", "14900"; "" for no value."""
    if not np.isfinite(value):
        return ""
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def instance_counts(record: Record) -> pd.DataFrame:
    """True objects of each thing class in the images that a panoptic run scored."""
    counts = pd.DataFrame({"objects": record.metrics["n_instances"]})
    return counts.rename_axis("class").T.assign(images=record.metrics["n_images"])


def provenance(records: Iterable[Record]) -> pd.DataFrame:
    """Where the numbers come from: key, commit, device and wall time of every run used."""
    rows = [
        {
            "run": record.run.name, "key": record.info["key"][:12],
            "commit": _commit(record.info),
            "device": record.info["device"], "wall, s": f"{record.info['wall_s']:.1f}",
        }
        for record in records
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["run", "key", "commit", "device", "wall, s"]).set_index("run")


def provenance_lines(records: Iterable[Record]) -> list[str]:
    """Number of runs, commits ("+": changed files), devices, versions and total time in words.

    The last line compares constraints.txt with the packages of the runs and of this process.
    """
    infos = [record.info for record in records]

    def seen(values: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    versions = seen(f"{package} {version}" for info in infos for package, version in info["versions"].items())
    return [
        f"runs: {len(infos)}, trained in {sum(info['wall_s'] for info in infos) / 60:.1f} min in all",
        f"commits: {seen(_commit(info) for info in infos)}",
        f"devices: {seen(info['device'] for info in infos)}",
        f"versions: {versions}",
        f"packages: {seen(info.get('packages', 'recorded before they were locked') for info in infos)}; "
        f"here {packages.state()}",
    ]


def setting_of(study: Study, domain: str) -> str:
    """Network and source of a domain in words: "DeepLabV2; source MIX"."""
    settings = getattr(study.profile, domain)
    version = settings.semantic_baseline["network"]["version"].upper()
    source = settings.semantic_source.split("/")[0]
    return f"DeepLab{version}; source {source.upper() if source == 'mix' else source}"


# --- helpers ------------------------------------------------------------------------------------------------

def _ladder_rows(
    ladder: Ladder, settings: Mapping[str, Callable[[dict], Mapping[str, float]]], *, unit: str = PERCENT
) -> pd.DataFrame:
    """Rows of every record: `settings` maps a setting to the function metrics -> {class or metric: value}."""
    scale = 100.0 if unit == PERCENT else 1.0
    order = {rung: place for place, rung in enumerate(RUNGS)}
    rows = [
        (RUNG_LABELS[rung], setting, name, scale * value, unit, f"run {record.run.name}", seed)
        for setting, values in settings.items()
        for (rung, seed), record in sorted(ladder.items(), key=lambda item: (order[item[0][0]], item[0][1]))
        for name, value in values(record.metrics).items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _named(metrics: Mapping, prefix: str, label: str) -> dict[str, float]:
    """The metrics whose name begins with `prefix`, under their table names."""
    names = sorted(name for name in metrics if name.startswith(prefix))
    return {label + name.removeprefix(prefix): metrics[name] for name in names}


def _means(scores: Mapping) -> dict[str, float]:
    """Panoptic means of every class list under their table names, list by list."""
    subsets = sorted(name.removeprefix("pq_plus_") for name in scores if name.startswith("pq_plus_"))
    return {
        f"{label}_{subset}": scores[f"{name}_{subset}"]
        for subset in subsets
        for name, label in PANOPTIC_SCORES.items()
    }


def _commit(info: Mapping) -> str:
    """First 12 digits of the commit, with "+" where files differed from it."""
    return (info["commit"] or "unknown")[:12] + ("+" if info["dirty"] else "")


def _join(*parts: str) -> str:
    """Parts of a setting, without empty ones."""
    return "; ".join(part for part in parts if part)
