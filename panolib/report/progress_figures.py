"""Figures of instance self-training (E2 to E4): progress while training, cost, workflows, forgetting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

from panolib.lab.records import Record
from panolib.report.figures import picture_grid, recorded_picture
from panolib.report.progress_tables import branches
from panolib.report.tables import select, summarise
from panolib.study.study import Study

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#7F7F7F", "#56B4E9", "#D55E00")
MARKERS = "osD^vPX"
START_COLOUR, NETWORK_COLOUR = "#E69F00", "#56B4E9"
LINES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def progress_plot(
    table: pd.DataFrame, panels: Sequence[tuple[str, str, str]], *, colour_by: str = "method",
    line_by: str = "setting", columns: int = 3,
) -> Figure:  # fmt: skip
    """One panel for each (data set, column, axis label) against the iteration; mean of the seeds.

    Parameters
    ----------
    table : DataFrame
        What `progress_tables.labelled_progress` returns; a panel without data set (""): `training_losses`.
    colour_by, line_by : str
        Columns of the table that tell lines apart.
    """
    n_rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(n_rows, columns, figsize=(5.2 * columns, 4.3 * n_rows + 1.2), squeeze=False)
    colours = _styles(table[colour_by], list(zip(COLOURS, MARKERS)))
    lines = _styles(table[line_by], LINES)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax, (data, column, label) in zip(axes.flat, panels):
        part = table[table["data"] == data]
        means = part.groupby([colour_by, line_by, "iteration"], sort=False)[column].mean()
        for (colour_value, line_value), line in means.groupby([colour_by, line_by], sort=False):
            colour, marker = colours[colour_value]
            found = line.reset_index()
            few = len(found) <= 12
            ax.plot(
                found["iteration"],
                found[column],
                color=colour,
                linestyle=lines[line_value],
                marker=marker if few else None,
                markersize=6,
                linewidth=1.8,
            )
        ax.set_xlabel("iteration")
        ax.set_ylabel(label)
    handles = [
        Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in colours.items()
    ]
    if len(lines) > 1:
        handles += [
            Line2D([], [], color="black", linestyle=style, label=name) for name, style in lines.items()
        ]
    fig.legend(handles=handles, loc="outside upper center", ncols=4 if columns > 1 else 3)
    return fig


def share_curves(table: pd.DataFrame, rows: Mapping[str, str], *, column: str = "threat_score") -> Figure:
    """Progress with every share of source: a column of panels per workflow, a row per data set.

    Parameters
    ----------
    table : DataFrame
        What `progress_tables.labelled_progress` returns for workflows; the mean of the seeds is drawn.
    rows : mapping of data set to axis label
    """
    methods = list(dict.fromkeys(table["method"]))
    colours = _styles(sorted(set(table["setting"])), list(zip(COLOURS, MARKERS)))
    size = (3.9 * len(methods), 3.6 * len(rows) + 1)
    fig, axes = plt.subplots(len(rows), len(methods), figsize=size, sharex=True, sharey="row", squeeze=False)
    for line, (data, label) in zip(axes, rows.items()):
        line[0].set_ylabel(label)
        for ax, method in zip(line, methods):
            part = table[(table["data"] == data) & (table["method"] == method)]
            for setting, found in part.groupby("setting"):
                colour, marker = colours[setting]
                mean = found.groupby("iteration")[column].mean()
                ax.plot(mean.index, mean, color=colour, marker=marker, markersize=6, linewidth=1.8)
    for ax, method in zip(axes[0], methods):
        ax.set_title(method)
    for ax in axes[-1]:
        ax.set_xlabel("iteration")
    handles = [
        Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in colours.items()
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return fig


def training_losses(named: Mapping[tuple[str, str, int], Record], *, window: int = 5) -> pd.DataFrame:
    """Running mean of the loss on pseudo-labels of every network, in the form of `labelled_progress`."""
    parts = [
        pd.DataFrame(
            {
                "method": method,
                "setting": setting,
                "seed": seed,
                "data": "",
                "iteration": record.curves["iteration"],
                "target_loss": record.curves["target_loss"].rolling(window, min_periods=1).mean(),
            }
        ).dropna()
        for (method, setting, seed), record in named.items()
    ]
    return pd.concat(parts, ignore_index=True)


def embedding_gallery(named: Mapping[tuple[str, str, int], Record], *, setting: str, index: int) -> Figure:
    """Image, embeddings (three main directions as colours) and clusters of one image, a row per method."""
    names = [f"{index:02d}-{name}" for name in ("image", "embeddings", "clusters")]
    rows = {
        method.replace(" ", "\n"): [recorded_picture(record, name) for name in names]
        for (method, found, seed), record in named.items()
        if found == setting and seed == min(key[2] for key in named)
    }
    fig = picture_grid(rows, headings=["image", "embeddings (PCA)", "clusters in predicted masks"])
    fig.set_size_inches(0.8 * fig.get_size_inches())  # noise does not compress: keep the notebook below 1 MB
    return fig


def cost_plot(rows: Sequence[Mapping], labels: Mapping[str, str]) -> Figure:
    """Time and memory of a call against pixels and against objects, on logarithmic axes."""
    table = pd.DataFrame(rows)
    fig, axes = plt.subplots(2, 2, figsize=(12, 9.5), sharey="row")
    styles = dict(zip(labels, zip(COLOURS, MARKERS)))
    for row, (column, unit) in zip(axes, (("ms", "time of a call, ms"), ("mib", "memory of a call, MiB"))):
        row[0].set_ylabel(unit)
        for ax, axis in zip(row, ("pixels", "instances")):
            part = table[(table["axis"] == axis) & (table[column] > 0)]
            for name, found in part.groupby("algorithm", sort=False):
                colour, marker = styles[name]
                ax.loglog(found[axis], found[column], color=colour, marker=marker, label=labels[name])
            ax.set_xlabel(f"{axis} in the mask" if axis == "pixels" else "objects in the mask")
            sizes = sorted(set(part[axis]))
            ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
            ax.set_xticks([], minor=True)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=3)
    return fig


def workflow_diagram(study: Study, threats: Mapping[str, Record]) -> Figure:
    """Baselines, and the self-trained networks that start from each (thesis ch. 8 figure 3).

    Boxes and arrows are runs and their parents, read from the study.

    Parameters
    ----------
    threats : mapping of workflow to its threat record
    """
    fig, axes = plt.subplots(1, len(threats), figsize=(3.6 * len(threats), 6.4))
    for ax, (label, record) in zip(np.atleast_1d(axes), threats.items()):
        networks = {name: found.run for name, found in branches(study, record).items()}
        starts = {name: dict(run.parents)["start"] for name, run in networks.items()}
        baselines = list(dict.fromkeys(dict(start.parents)["start"].name for start in starts.values()))
        left = {name: (0.2, place) for name, place in zip(baselines, _places(len(baselines)))}
        for name, place in zip(networks, _places(len(networks))):
            from_x, from_y = left[dict(starts[name].parents)["start"].name]
            ax.annotate(
                "", (0.6, place), (from_x + 0.2, from_y), arrowprops={"arrowstyle": "->", "color": "#666666"}
            )
            _box(ax, 0.8, place, name.replace("_", " "), NETWORK_COLOUR)
        for name, (x, y) in left.items():
            variant = name.removeprefix("city-instance-source_only-").rpartition("s")[0].strip("-")
            _box(ax, x, y, variant.rpartition(".")[2] or "all classes", START_COLOUR)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05), title=label)
        ax.axis("off")
    handles = [
        Patch(facecolor=START_COLOUR, edgecolor="black", label="baseline on the source"),
        Patch(facecolor=NETWORK_COLOUR, edgecolor="black", label="self-trained network, by class"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


def score_bars(rows: pd.DataFrame, metrics: Sequence[str], *, label: str) -> Figure:
    """One value per metric (groups of bars) and method, with the spread over seeds where there is one."""
    summary = summarise(select(rows, class_or_metric=metrics)).set_index(["method", "class_or_metric"])
    methods = list(dict.fromkeys(rows["method"]))
    colours = _styles(rows["method"], COLOURS)
    width = 0.84 / len(methods)
    fig, ax = plt.subplots(figsize=(max(9, 1.4 * len(metrics) + 2), 5.6))
    places = np.arange(len(metrics))
    for i, method in enumerate(methods):
        part = summary.loc[method].reindex(metrics)
        ax.bar(
            places + (i - (len(methods) - 1) / 2) * width,
            part["mean"],
            width * 0.92,
            yerr=part["spread"].fillna(0),
            color=colours[method],
            label=method,
            error_kw={"elinewidth": 1.2, "ecolor": "#444444"},
        )
    rotation = 30 if len(metrics) > 5 else 0
    ax.set_xticks(
        places,
        [metric.removeprefix("group ") for metric in metrics],
        rotation=rotation,
        ha="right" if rotation else "center",
    )
    ax.grid(axis="x", visible=False)
    n_seeds = rows["seed"].nunique()
    ax.set_ylabel(f"{label}, %; n = {n_seeds} seed{'s' * (n_seeds > 1)}")
    fig.legend(loc="outside upper center", ncols=min(4, len(methods)))
    return fig


def share_plot(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """One panel per table: value against the share of source in a batch, a line per workflow.

    Parameters
    ----------
    panels : mapping of axis label to DataFrame
        Columns method, share (fraction), value; one row per seed.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 5.6), squeeze=False)
    names = pd.concat([table["method"] for table in panels.values()])
    styles = _styles(names, list(zip(COLOURS, MARKERS)))
    for ax, (label, table) in zip(axes[0], panels.items()):
        for method, part in table.groupby("method", sort=False):
            colour, marker = styles[method]
            mean = part.groupby("share")["value"].mean()
            ax.plot(100 * mean.index, mean, color=colour, marker=marker, markersize=9, linewidth=2)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xlabel("source in a batch, %")
        ax.set_ylabel(label)
        ax.set_xticks(sorted({round(100 * share) for share in table["share"]}))
    handles = [
        Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in styles.items()
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return fig


def _styles(values: Iterable, styles: Sequence) -> dict:
    """A style for every different value, in the order of the values; styles repeat if they run out."""
    names = list(dict.fromkeys(values))
    return {name: styles[i % len(styles)] for i, name in enumerate(names)}


def _places(n: int) -> np.ndarray:
    """Heights of n boxes, from above."""
    return np.array([0.5]) if n == 1 else np.linspace(0.96, 0.04, n) if n > 3 else np.linspace(0.85, 0.15, n)


def _box(ax, x: float, y: float, text: str, colour: str) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (x - 0.18, y - 0.045),
            0.36,
            0.09,
            boxstyle="round,pad=0.01",
            facecolor=colour,
            edgecolor="black",
            linewidth=1,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=12)
