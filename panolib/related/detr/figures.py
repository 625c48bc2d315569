"""Figures of DETR-panoptic, in the style of `panolib.report.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panolib.lab.runs import Record
from panolib.labels import LabelSet
from panolib.related.detr.kinds import OURS
from panolib.related.detr.runs import COLOUR, HALF, PLAIN
from panolib.related.detr.tables import LABELS, Runs, label_of
from panolib.report.figures import picture_grid, recorded_picture, with_class_legend
from panolib.report.tables import select, summarise

COLOURS = {LABELS[PLAIN]: "#7F7F7F", LABELS[COLOUR]: "#0072B2", LABELS[HALF]: "#56B4E9", OURS: "#009E73"}
TERMS = {"loss": "loss", "ce": "class", "bbox": "box, L1", "giou": "box, GIoU", "mask": "mask, focal",
         "dice": "mask, Dice"}  # fmt: skip
WINDOW = 40  # iterations of the running mean


def loss_curves(found: Sequence[Runs]) -> Figure:
    """The weighted terms of the loss (the last decoder layer) of the runs on all images, running means."""
    found = [runs for runs in found if label_of(runs.variant) in COLOURS]
    fig, axes = plt.subplots(2, 3, figsize=(14, 8), sharex=True)
    for ax, (term, title) in zip(axes.flat, TERMS.items()):
        for runs in found:
            name, curves = label_of(runs.variant), runs.training.curves
            values = curves[term].rolling(WINDOW, min_periods=1).mean()
            first = runs.seed == found[0].seed
            ax.plot(curves["iteration"], values, color=COLOURS[name], label=name if first else None)
        ax.set_title(title)
    for ax in axes[1]:
        ax.set_xlabel("iteration")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def size_curves(rows: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Scores against the number of training images, every seed a point: a panel a metric.

    `rows`: what `tables.size_rows` returns, with a column `threshold`.
    """
    fig, axes = plt.subplots(1, len(metrics), figsize=(1 + 4.8 * len(metrics), 4.8), squeeze=False)
    for ax, metric in zip(axes[0], metrics):
        for threshold, part in select(rows, class_or_metric=metric).groupby("threshold", sort=False):
            mean = part.groupby("images")["value"].mean()
            (line,) = ax.plot(mean.index, mean, label=f"score > {threshold}")
            ax.plot(part["images"], part["value"], "o", color=line.get_color())
        ax.set_xscale("log")
        ax.set_xticks(sorted(rows["images"].unique()), [str(n) for n in sorted(rows["images"].unique())])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_xlabel("training images, as many iterations")
        ax.set_ylabel(f"{metric.replace('_19', '')}, %")
    axes[0, 0].legend()
    return fig


def class_bars(rows: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """PQ of every class: DETR without and with the colour policy, and our pipeline."""
    summary = summarise(select(rows, setting="PQ")).set_index(["method", "class_or_metric"])["mean"]
    methods = [name for name in COLOURS if name in summary.index.get_level_values(0)]
    height, places = 0.8 / len(methods), np.arange(len(classes))
    fig, ax = plt.subplots(figsize=(10, 1.8 + 0.14 * len(classes) * len(methods)))
    for i, name in enumerate(methods):
        ax.barh(
            places + (i - (len(methods) - 1) / 2) * height,
            summary[name].reindex(classes),
            0.9 * height,
            color=COLOURS[name],
            label=name,
        )
    ax.set_yticks(places, classes)
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    n_seeds = len(set(rows["seed"]))
    ax.set_xlabel(f"PQ, %; n = {n_seeds} seed{'s' * (n_seeds > 1)}")
    fig.legend(loc="outside upper center", ncols=2)
    return fig


def gallery(
    found: Sequence[Runs],
    ours: Mapping[int, Record],
    threshold: float,
    label_set: LabelSet,
    *,
    n_images: int = 3,
) -> Figure:
    """Image, truth, DETR without and with the colour policy, and our pipeline, of the first seed."""
    seed = found[0].seed
    columns = {label_of(runs.variant): runs.city for runs in found
               if runs.seed == seed and runs.variant in (PLAIN, COLOUR)}  # fmt: skip
    first = next(iter(columns.values()))
    n_images = min(n_images, sum(name.endswith("-image") for name in first.samples))
    rows = {
        f"image {i}": [
            recorded_picture(first, f"{i:02d}-image"),
            recorded_picture(first, f"{i:02d}-truth"),
            *(recorded_picture(record, f"{i:02d}-prediction-{threshold:g}") for record in columns.values()),
            recorded_picture(ours[seed], f"{i:02d}-prediction"),
        ]
        for i in range(n_images)
    }
    headings = ["image", "truth", *(f"DETR,\n{name}" for name in columns), OURS]
    fig = picture_grid(rows, headings=headings)
    return with_class_legend(fig, label_set)
