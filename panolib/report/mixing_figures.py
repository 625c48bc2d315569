"""Figures of E1 and E11: sources and networks beside each other, and what is learned when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panolib.lab.records import Record
from panolib.labels import LabelSet
from panolib.report.figures import (
    DATA_COLOURS,
    METHOD_COLOURS,
    OKABE_ITO,
    picture_grid,
    recorded_picture,
    with_class_legend,
)
from panolib.report.mixing_tables import LABEL_SCORES, readable_score, variant_of
from panolib.report.tables import ORACLE, select, summarise

MARKERS = "osD^v"


def variant_plot(rows: pd.DataFrame, metrics: Sequence[str], methods: Sequence[str]) -> Figure:
    """One panel per metric: every variant with its methods; seeds as points, mean and spread as bars.

    Parameters
    ----------
    rows : DataFrame
        Tidy rows with the variant as setting; the oracle, where there is one, is a line across its variant.
    metrics, methods : sequence of str
    """
    variants = list(dict.fromkeys(variant_of(rows["setting"])))
    fig, axes = plt.subplots(len(metrics), 1, figsize=(11, 0.6 + 3.9 * len(metrics)), squeeze=False)
    width = 0.8 / len(methods)
    for ax, metric in zip(axes[:, 0], metrics):
        part = select(rows, class_or_metric=metric)
        part = part.assign(variant=variant_of(part["setting"]))
        for i, method in enumerate(methods):
            for place, variant in enumerate(variants):
                values = part.loc[(part["method"] == method) & (part["variant"] == variant), "value"]
                at = place + (i - (len(methods) - 1) / 2) * width
                spread = values.std(ddof=1) if len(values) > 1 else 0.0
                ax.bar(
                    at,
                    values.mean(),
                    width * 0.9,
                    yerr=spread or None,
                    capsize=4,
                    color=METHOD_COLOURS[method],
                    label=method if place == 0 else None,
                )
                if len(values) > 1:
                    ax.plot(np.full(len(values), at), values, "o", color="black", markersize=5)
                ax.annotate(
                    f"{values.mean():.1f}",
                    (at, values.mean() + spread),
                    xytext=(0, 4),
                    textcoords="offset points",
                    ha="center",
                    fontsize=13,
                    zorder=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
                )
        for place, variant in enumerate(variants):
            oracle = part.loc[(part["method"] == ORACLE) & (part["variant"] == variant), "value"]
            ax.hlines(
                oracle.mean(),
                place - 0.42,
                place + 0.42,
                color=METHOD_COLOURS[ORACLE],
                linewidth=2.5,
                linestyle="--",
                label=ORACLE if place == 0 else None,
            )
        n_seeds = part.groupby("variant")["seed"].nunique()
        ax.set_xticks(range(len(variants)), [f"{name}\nn = {n_seeds[name]}" for name in variants])
        ax.grid(axis="x", visible=False)
        ax.set_ylabel(f"{metric.replace('_', ', ')} classes, %")
        ax.margins(y=0.12)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return fig


def class_dots(rows: pd.DataFrame, classes: Sequence[str], method: str, *, label: str) -> Figure:
    """Score of every class and variant for one method: a mark per variant, its spread as a line."""
    summary = summarise(select(rows, class_or_metric=classes, method=method))
    summary = summary.assign(variant=variant_of(summary["setting"]))
    fig, ax = plt.subplots(figsize=(10, 1.6 + 0.5 * len(classes)))
    groups = list(summary.groupby("variant", sort=False))
    for i, (variant, part) in enumerate(groups):
        part = part.set_index("class_or_metric").reindex(classes)
        places = np.arange(len(classes)) + 0.14 * (i - (len(groups) - 1) / 2)
        ax.errorbar(
            part["mean"],
            places,
            xerr=part["spread"].fillna(0),
            fmt=MARKERS[i % len(MARKERS)],
            color=DATA_COLOURS[i % len(DATA_COLOURS)],
            markersize=9,
            elinewidth=2,
            markeredgecolor="black",
            markeredgewidth=0.6,
            label=f"{variant} (n = {part['n'].max():.0f})",
        )
    ax.set_yticks(range(len(classes)), classes)
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.set_xlabel(f"{label} of the {method} network, %")
    fig.legend(loc="outside upper center", ncols=3)
    return fig


def class_shares(table: pd.DataFrame) -> Figure:
    """Share of the pixels of each class before and after mixing (log axis); at the left those without one.

    `table`: from `mixing_tables.before_and_after`.
    """
    columns = [name for name in table if name.endswith("% of pixels")]
    smallest = table[columns].where(table[columns] > 0).min().min()
    absent = smallest / 4
    fig, ax = plt.subplots(figsize=(10, 1.8 + 0.42 * len(table)))
    for i, column in enumerate(columns):
        shares = table[column]
        ax.plot(
            shares.where(shares > 0, absent),
            range(len(table)),
            MARKERS[i % len(MARKERS)],
            color=DATA_COLOURS[i],
            markersize=10,
            markeredgecolor="black",
            markeredgewidth=0.6,
            label=column.removesuffix(", % of pixels"),
        )
    ax.axvspan(absent / 1.6, absent * 1.6, color="#EEEEEE", zorder=0)
    ax.annotate("none", (absent, -0.75), ha="center", va="bottom", annotation_clip=False)
    ax.set_xscale("log")
    ax.set_yticks(range(len(table)), table["class"])
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel("share of the labelled pixels, %")
    fig.legend(loc="outside upper center", ncols=len(columns))
    return fig


def progress_plot(records: Mapping[str, Record]) -> Figure:
    """Scores of monitored runs over iterations: mean IoU of the networks; accuracy and coverage of labels.

    Parameters
    ----------
    records : mapping of method to record
    """
    fig, axes = plt.subplots(1, 2, figsize=(12.5, 5.2))
    styles = ("-", "--", ":")
    for method, record in records.items():
        columns = [name for name in record.curves if name.startswith("miou ")]
        for column, style in zip(columns, styles):
            scored = record.curves.dropna(subset=column)
            axes[0].plot(
                scored["iteration"],
                100 * scored[column],
                style,
                color=METHOD_COLOURS[method],
                linewidth=2,
                label=f"{method}, {column.removeprefix('miou ')}",
            )
        for i, column in enumerate(name for name in LABEL_SCORES if name in record.curves):
            scored = record.curves.dropna(subset=column)
            axes[1].plot(
                scored["iteration"],
                100 * scored[column],
                styles[i],
                color=OKABE_ITO[5 + i],
                linewidth=2.5,
                label=readable_score(column),
            )
    axes[0].set_ylabel("mIoU over all classes, %")
    axes[1].set_ylabel("share of target pixels, %")
    axes[1].set_ylim(0, 100)
    for ax in axes:
        ax.set_xlabel("iteration (n = 1 seed)")
        if ax.lines:
            ax.legend(fontsize=12)
    return fig


def first_and_last(records: Mapping[str, Record], label_set: LabelSet, data: str) -> Figure:
    """Predictions of monitored runs at their first and last scoring (thesis ch. 10 figs. 1 and 2).

    Rows are image, truth, and the first and last prediction of each run; columns are the kept images.
    """
    first = next(iter(records.values()))
    stems = _stems(first, data)
    rows = _image_and_truth(first, stems)
    for method, record in records.items():
        for iteration in (_iterations(record, stems[0], "prediction")[i] for i in (0, -1)):
            name = f"{method},\niteration {iteration}"
            rows[name] = [recorded_picture(record, f"{stem}-prediction-{iteration:06d}") for stem in stems]
    return with_class_legend(picture_grid(rows), label_set)


def label_progress(record: Record, label_set: LabelSet, data: str, *, n_shown: int = 4) -> Figure:
    """Pseudo-labels of the kept images over training (thesis ch. 10 fig. 3); black pixels have none."""
    stems = _stems(record, data)
    iterations = _iterations(record, stems[0], "pseudo")
    places = np.linspace(0, len(iterations) - 1, min(n_shown, len(iterations))).round().astype(int)
    rows = _image_and_truth(record, stems)
    for iteration in (iterations[place] for place in places):
        maps = [recorded_picture(record, f"{stem}-pseudo-{iteration:06d}") for stem in stems]
        rows[f"iteration\n{iteration}"] = maps
    return with_class_legend(picture_grid(rows), label_set)


def _image_and_truth(record: Record, stems: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """The first two rows of a figure."""
    return {
        name: [recorded_picture(record, f"{stem}-{name}") for stem in stems] for name in ("image", "truth")
    }


def _stems(record: Record, data: str) -> list[str]:
    """Beginnings of the names of the pictures of a data set: "cityscapes.val-00"."""
    prefix = data.replace("/", ".")
    images = (name for name in record.samples if name.startswith(prefix) and name.endswith("-image"))
    return sorted(name.removesuffix("-image") for name in images)


def _iterations(record: Record, stem: str, what: str) -> list[int]:
    """At which iterations a picture was kept."""
    return sorted(int(n.rsplit("-", 1)[1]) for n in record.samples if n.startswith(f"{stem}-{what}-"))
