"""Figures of E5 to E9: pure functions from the tables of the threat score to matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panolib.lab.records import Record
from panolib.labels import LabelSet
from panolib.report import tables
from panolib.report.figures import OKABE_ITO, picture_grid, recorded_picture, with_class_legend
from panolib.report.threat_tables import (
    CLASS_MEAN,
    IMAGE_MEAN,
    LABELS,
    NO_MASKS,
    PREDICTED,
    TRUE,
    sensitivity_rows,
)

MARKERS = "osD^vPX*"
AVERAGE_COLOURS = dict(zip(LABELS.values(), ("#0072B2", "#E69F00", "#009E73")))
MASK_COLOURS = {PREDICTED: "#D55E00", TRUE: "#0072B2", NO_MASKS: "#999999"}
LINE_COLOURS = ("#000000", *OKABE_ITO[1:4], "#999999", *OKABE_ITO[5:])  # yellow is too light for a line
THESIS = "thesis (other data and size)"


def sensitivity(record: Record) -> Figure:
    """Threat score against the share of wrong pixels in the masks: averages left, every class right."""
    averages, classes = sensitivity_rows(record), sensitivity_rows(record, by_class=True)
    fig, axes = plt.subplots(1, 2, figsize=(14, 6), sharex=True, sharey=True)
    x = averages["wrong pixels"]
    for (column, label), marker in zip(LABELS.items(), MARKERS):
        axes[0].plot(
            x,
            averages[column],
            color=AVERAGE_COLOURS[label],
            marker=marker,
            markersize=9,
            linewidth=2.5,
            label=label,
        )
    for i, (name, part) in enumerate(classes.groupby("class", sort=False)):
        axes[1].plot(
            part["wrong pixels"],
            part["pooled"],
            color=LINE_COLOURS[i % 8],
            marker=MARKERS[i % 8],
            markersize=8,
            linewidth=1.8,
            label=name,
        )
    for ax in axes:
        ax.set_xlabel("wrong pixels in the masks, %")
        ax.set_ylim(bottom=0)
        ax.legend(loc="best", ncols=2 if ax is axes[1] else 1)
    axes[0].invert_xaxis()  # shared: better masks to the right
    axes[0].set_ylabel(f"threat score, % ({record.metrics['n_images']} images, one network)")
    axes[0].set_title("averages")
    axes[1].set_title("classes, pooled")
    return fig


def mask_bars(summary: pd.DataFrame, metric: str = CLASS_MEAN) -> Figure:
    """One metric by where instances were learned (groups) and inside which masks they are scored (bars)."""
    part = tables.select(summary, class_or_metric=metric)
    methods, masks = (list(dict.fromkeys(part[column])) for column in ("method", "setting"))
    values = part.set_index(["method", "setting"])
    width = 0.8 / len(masks)
    colours = dict(zip(masks, ("#E69F00", "#56B4E9", *OKABE_ITO[3:4]))) | MASK_COLOURS
    fig, ax = plt.subplots(figsize=(12, 5.5))
    for i, mask in enumerate(masks):
        found = values.reindex([(method, mask) for method in methods])
        places = np.arange(len(methods)) + (i - (len(masks) - 1) / 2) * width
        bars = ax.bar(
            places,
            found["mean"],
            width * 0.92,
            yerr=found["spread"].fillna(0),
            capsize=4,
            color=colours[mask],
            label=mask,
        )
        ax.bar_label(bars, [tables.number(value) for value in found["mean"]], fontsize=12, padding=2)
    ax.set_xticks(range(len(methods)), methods)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel(f"learned inside; n = {int(part['n'].max())} seed(s)")
    ax.set_ylabel(f"threat score, {metric}, %")
    fig.legend(title="scored inside", loc="outside upper center", ncols=len(masks))
    return fig


def class_change(rows: pd.DataFrame, classes: Sequence[str], reference: str) -> Figure:
    """Change of every class against one method, in points, as horizontal bars."""
    summary = tables.summarise(tables.select(rows, class_or_metric=list(classes)))
    wide = summary.pivot_table(index="class_or_metric", columns="method", values="mean", sort=False)
    wide = wide.reindex(list(classes))
    methods = [method for method in dict.fromkeys(summary["method"]) if method != reference]
    height = 0.8 / len(methods)
    fig, ax = plt.subplots(figsize=(10, 1.8 + 0.32 * len(classes)))
    for i, (method, colour) in enumerate(zip(methods, ("#0072B2", "#E69F00", "#009E73"))):
        places = np.arange(len(classes)) + (i - (len(methods) - 1) / 2) * height
        ax.barh(places, wide[method] - wide[reference], height * 0.9, color=colour, label=method)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(classes)), classes)
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"IoU against '{reference}', points; n = {rows['seed'].nunique()} seed(s)")
    fig.legend(loc="outside upper center", ncols=len(methods))
    return fig


def vote_gallery(record: Record, label_set: LabelSet) -> Figure:
    """Predicted classes before and after the vote, and the truth, where the vote changes most pixels."""
    names = ("before", "after", "truth")
    rows = {
        f"image {index}": [recorded_picture(record, f"vote-{place}-{name}") for name in names]
        for place, index in enumerate(record.metrics["vote"]["images"])
    }
    fig = picture_grid(rows, headings=["predicted", "after the vote", "truth"])
    return with_class_legend(fig, label_set)


def weights_plot(rows: pd.DataFrame, published: pd.DataFrame, *, metric: str = CLASS_MEAN) -> Figure:
    """One metric against the consistency weight: every seed, mean and spread; the thesis as diamonds.

    `published`: what `threat_tables.beside_weights` returns, for true masks.
    """
    thesis = tables.select(published, class_or_metric=metric).set_index("method")["published"].dropna()
    masks = list(dict.fromkeys(rows["setting"]))
    fig, axes = plt.subplots(1, len(masks), figsize=(1 + 6 * len(masks), 5.5), squeeze=False)
    for ax, mask in zip(axes[0], masks):
        values = tables.per_seed(tables.select(rows, setting=mask), metric)
        colour = MASK_COLOURS[mask]
        for place, weight in enumerate(values.index):
            seeds = values.loc[weight].dropna()
            places = place - 0.15 + 0.06 * np.arange(len(seeds))
            ax.plot(places, seeds, "o", color=colour, markersize=9, alpha=0.7)
            spread = np.nan_to_num(seeds.std(ddof=1))
            ax.errorbar(
                place + 0.15,
                seeds.mean(),
                spread,
                fmt="_",
                color=colour,
                markersize=22,
                markeredgewidth=3,
                capsize=6,
                elinewidth=2,
            )
        beside = [(i, thesis[w]) for i, w in enumerate(values.index) if mask == TRUE and w in thesis]
        if beside:
            ax.plot(
                *zip(*beside),
                "D",
                markersize=9,
                markerfacecolor="white",
                markeredgecolor="black",
                label=THESIS,
            )
            ax.legend()
        ax.set_xticks(range(len(values)), [name.split()[-1] for name in values.index])
        ax.set_xlabel(f"consistency weight; n = {values.shape[1]} seed(s)")
        ax.set_ylabel(f"threat score, {metric}, %")
        ax.set_title(f"inside {mask}")
        ax.margins(x=0.08, y=0.15)
    return fig


def framework_bars(summary: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Ours by name with both averages over objects; the rows of the thesis by position, unlabelled.

    Parameters
    ----------
    summary : DataFrame
        What `tables.summarise` returns, one setting.
    published : DataFrame
        Columns position and mAP.
    """
    methods = list(dict.fromkeys(summary["method"]))
    values = summary.set_index(["class_or_metric", "method"])
    fig, (ours, theirs) = plt.subplots(1, 2, figsize=(14, 1.6 + 0.5 * len(methods)), width_ratios=(3, 1.2))
    shown = (CLASS_MEAN, "pooled", IMAGE_MEAN)
    for i, label in enumerate(shown):
        part = values.loc[label].reindex(methods)
        places = np.arange(len(methods)) + (i - 1) * 0.27
        ours.barh(
            places,
            part["mean"],
            0.25,
            xerr=part["spread"].fillna(0),
            color=AVERAGE_COLOURS[label],
            label=label,
        )
    ours.set_yticks(range(len(methods)), methods)
    ours.set_ylim(len(methods) - 0.4, -0.6)
    ours.set_xlabel(f"threat score in predicted masks, %; n = {int(summary['n'].max())} seed(s)")
    theirs.barh(published["position"], published["mAP"], 0.6, color="white", edgecolor="black")
    theirs.set_yticks(published["position"], [f"row {row}" for row in published["position"]])
    theirs.invert_yaxis()
    theirs.set_xlabel("mAP, %")
    theirs.set_title("thesis ch. 11 table 2")
    for ax in (ours, theirs):
        ax.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=len(shown))
    return fig


def kernel_plot(rows: pd.DataFrame, *, metric: str = CLASS_MEAN) -> Figure:
    """One metric against the morphology (the setting of the rows), a line per method."""
    part = tables.summarise(tables.select(rows, class_or_metric=metric))
    kernels = list(dict.fromkeys(part["setting"]))
    fig, ax = plt.subplots(figsize=(9, 5.5))
    for i, (method, found) in enumerate(part.groupby("method", sort=False)):
        found = found.set_index("setting").reindex(kernels)
        ax.errorbar(
            range(len(kernels)),
            found["mean"],
            found["spread"].fillna(0),
            capsize=4,
            linewidth=2,
            color=LINE_COLOURS[1 + i % 7],
            marker=MARKERS[i % 8],
            markersize=9,
            label=method,
        )
    ax.set_xticks(range(len(kernels)), kernels)
    ax.set_xlabel(f"kernel of opening and closing; n = {int(part['n'].max())} seed(s)")
    ax.set_ylabel(f"threat score, {metric}, %")
    ax.legend()
    return fig
