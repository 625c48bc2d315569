"""The general plots: each takes a tidy table (`report.rows`) and shows n and spread.

Every seed is a small dot and the mean a large mark; where there is an interval it is drawn. Sizes are chosen
so that a figure stays readable at half its width. `pictures` has the grids of images.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panolib.lab.files import write
from panolib.report.words import COLOURS, MARKERS, OKABE_ITO, colours, word
from panolib.study.study import Study

DPI, INLINE_DPI = 100, 60  # of the files; in notebooks, which stay below 1 MB


def use_style() -> None:
    """Set the style of all figures of the study, and show the texts of tables whole."""
    pd.set_option("display.max_colwidth", None)
    plt.close(plt.figure())  # were the first one inside an rc_context, a notebook would show none after it
    plt.rcParams.update({
        "figure.dpi": INLINE_DPI, "savefig.dpi": DPI, "figure.constrained_layout.use": True,
        "font.size": 15, "axes.titlesize": 16, "axes.labelsize": 15, "legend.fontsize": 13,
        "xtick.labelsize": 14, "ytick.labelsize": 14, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": "#DDDDDD", "grid.linewidth": 0.8, "image.interpolation": "nearest",
        "axes.prop_cycle": plt.cycler(color=OKABE_ITO[1:4] + OKABE_ITO[5:]),
    })  # fmt: skip


def as_png(fig: Figure, dpi: int = DPI) -> bytes:
    """The PNG of a figure, byte for byte the same for the same figure."""
    content = io.BytesIO()
    fig.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def save_figure(fig: Figure, study: Study, name: str) -> Path:
    """Write figures/<profile>/<name>.png; returns its path."""
    path = study.figures / f"{name}.png"
    write(path, as_png(fig))
    return path


def ladder(rows: pd.DataFrame, *, y: str = "rung", label: str = "%") -> Figure:
    """Scores of methods, a panel for every metric: seeds as dots, their mean as a bar, in percent.

    Methods (column `y`) and metrics stand in the order of the rows. Rungs have their colours, other methods
    share one. `label` goes after the metric.
    """
    methods, names = (list(dict.fromkeys(rows[column])) for column in (y, "metric"))
    size = (4.6 * len(names) + 2.4, 0.55 * len(methods) + 1.6)
    fig, axes = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names):
        for place, method in enumerate(methods):
            found = 100 * rows[(rows["metric"] == name) & (rows[y] == method)].groupby("seed")["value"].mean()
            ax.barh(place, found.mean(), 0.62, color=COLOURS.get(method, OKABE_ITO[2]), alpha=0.85)
            if len(found) > 1:
                ax.plot(found, np.full(len(found), place), "o", color="black", markersize=5, alpha=0.7)
            if len(found):
                ax.annotate(f"{found.mean():.1f}", (found.max(), place), (6, 0), textcoords="offset points",
                            va="center", fontsize=13)  # fmt: skip
        ax.set_yticks(range(len(methods)), [word(method) for method in methods])
        ax.set_ylim(len(methods) - 0.4, -0.6)
        ax.set_xlabel(f"{word(name)}, {label}")
        ax.margins(x=0.16)
        ax.grid(axis="y", visible=False)
    n = rows.groupby(y)["seed"].nunique()
    fewer = [f"{word(method)} {n[method]}" for method in methods if n[method] < n.max()]
    title = seeds_text(rows) + (f" ({', '.join(fewer)})" if fewer else "")
    fig.suptitle(title, fontsize=13, x=0.99, ha="right")
    return fig


def points(
    table: pd.DataFrame, x: str, y: str, *, hue: str | None = None, interval: tuple[str, str] | None = None,
    xlabel: str = "", ylabel: str = "", line: bool = True, ax: plt.Axes | None = None,
) -> Figure:  # fmt: skip
    """A value over a setting: seeds as dots, or an interval where the table has one; means joined by a line.

    Parameters
    ----------
    table : DataFrame
        One row for a seed and setting, or for a setting with its interval.
    x, y, hue : str
        Columns; x may hold numbers, or names that become places in their order.
    interval : pair of str, optional
        Columns of the ends of the interval.
    line : bool
        Whether means are joined: x is a quantity.
    """
    fig, ax = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(8.5, 5))
    names = [None] if hue is None else list(dict.fromkeys(table[hue]))
    colour, order = colours(names), list(dict.fromkeys(table[x]))
    numeric = pd.api.types.is_numeric_dtype(table[x])
    for i, name in enumerate(names):
        part = table if name is None else table[table[hue] == name]
        part = part.assign(place=part[x] if numeric else part[x].map(order.index))
        shift = 0.0 if numeric else 0.14 * (i - (len(names) - 1) / 2)
        mean = part.groupby("place")[y].mean()
        style = {"color": colour[name], "marker": MARKERS[i % len(MARKERS)], "markersize": 9}
        label = word(name) if hue else None
        ax.plot(mean.index + shift, mean, linestyle="-" if line else "", label=label, **style)
        if interval is not None:
            ends = np.abs(part[list(interval)].to_numpy().T - part[y].to_numpy())
            ax.errorbar(part["place"] + shift, part[y], ends, fmt="none", color=colour[name], capsize=5)
        elif part.groupby("place").size().max() > 1:
            ax.plot(part["place"] + shift, part[y], ".", color=colour[name], alpha=0.5, markersize=8)
    if not numeric:
        places = [word(value) for value in order]
        ax.set_xticks(range(len(order)), places)
        if len("".join(places)) > 60:
            plt.setp(ax.get_xticklabels(), rotation=25, ha="right", rotation_mode="anchor")
    ax.set(xlabel=xlabel or word(x), ylabel=ylabel or word(y))
    if hue is not None:
        ax.legend()
    return fig


def class_bars(
    rows: pd.DataFrame, classes: Sequence[str], *, hue: str = "rung", label: str = "IoU, %"
) -> Figure:
    """One score of every class as horizontal bars of each method, in percent; seeds as dots."""
    methods = list(dict.fromkeys(rows[hue]))
    colour, thick = colours(methods), 0.8 / len(methods)
    height = max(3.5, len(classes) * (0.13 * len(methods) + 0.16) + 1.2)
    fig, ax = plt.subplots(figsize=(9, height))
    for i, method in enumerate(methods):
        part = rows[(rows[hue] == method) & rows["subset"].isin(classes)]
        places = np.arange(len(classes)) + (i - (len(methods) - 1) / 2) * thick
        mean = 100 * part.groupby("subset")["value"].mean().reindex(classes)
        ax.barh(places, mean, thick * 0.9, color=colour[method], label=word(method))
        if len(set(part["seed"])) > 1:
            at = part["subset"].map(dict(zip(classes, places)))
            ax.plot(100 * part["value"], at, ".", color="black", markersize=5, alpha=0.6)
    ax.set_yticks(range(len(classes)), classes)
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{label} ({seeds_text(rows)})")
    fig.legend(loc="outside upper center", ncols=min(4, len(methods)))
    return fig


def curves(
    table: pd.DataFrame, columns: Sequence[str], *, hue: str, window: int = 1, labels: Sequence[str] = (),
    share_y: bool = False,
) -> Figure:  # fmt: skip
    """Training curves (`report.rows.curves`), a panel for every column: running mean over `window` values."""
    names = list(dict.fromkeys(table[hue]))
    colour = colours(names)
    size = (4.6 * len(columns) + 1, 4.6)
    fig, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, sharey=share_y)
    for ax, column, label in zip(axes[0], columns, labels or columns):
        for i, name in enumerate(names):
            for _, part in table[table[hue] == name].groupby("run", sort=False):
                part = part[["iteration", column]].dropna()
                smooth = part[column].rolling(window, min_periods=1).mean()
                marker = MARKERS[i % len(MARKERS)] if len(part) < 30 else None
                ax.plot(part["iteration"], smooth, color=colour[name], marker=marker, label=word(name))
        ax.set(xlabel="iteration", ylabel=label)
    handles = dict(zip(*reversed(axes[0][0].get_legend_handles_labels())))
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=min(4, len(names)))
    return fig


def cost_quality(
    table: pd.DataFrame, x: str, y: str, *, name: str, xlabel: str, ylabel: str, log: bool = True
) -> Figure:
    """Quality over cost, every method named beside its mark."""
    fig, ax = plt.subplots(figsize=(8.5, 5.2))
    colour = colours(table[name])
    for i, row in enumerate(table.to_dict("records")):
        ax.plot(row[x], row[y], MARKERS[i % len(MARKERS)], color=colour[row[name]], markersize=12)
        ax.annotate(word(row[name]), (row[x], row[y]), (10, 5), textcoords="offset points", fontsize=13)
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
    if log:
        plain = plt.FuncFormatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_major_formatter(plain)
        ax.xaxis.set_minor_formatter(plt.NullFormatter())
    ax.margins(0.18)
    return fig


def forest(verdicts: pd.DataFrame) -> Figure:
    """The differences behind the claims of a notebook with their 95 % intervals, coloured by verdict.

    `verdicts` is what `report.verdicts.verdicts` returns; claims of another unit than points, or without
    numbers, are left out.
    """
    table = verdicts[(verdicts["unit"] == "points") & verdicts["difference"].notna()]
    found = {"holds": "#009E73", "contradicted": "#D55E00", "no difference": "#0072B2",
             "undecided": "#7F7F7F", "not testable here": "#BBBBBB"}  # fmt: skip
    claims = [textwrap.fill(claim, 56) for claim in table["claim"]]
    lines = max([2, *(claim.count("\n") + 1 for claim in claims)])
    fig, ax = plt.subplots(figsize=(13, 0.3 * lines * len(table) + 1.8))
    for place, row in enumerate(table.itertuples()):
        ax.hlines(place, row.low, row.high, color=found[row.verdict], linewidth=3)  # ends where they end
        ax.plot(row.difference, place, "o", color=found[row.verdict], markersize=9)
    for verdict in dict.fromkeys(table["verdict"]):
        ax.plot([], [], "o-", color=found[verdict], label=verdict)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(table)), claims)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel("difference, points, and its 95 % interval")
    fig.legend(loc="outside upper center", ncols=5)
    return fig


def seeds_text(rows: pd.DataFrame) -> str:
    """Number of seeds in words."""
    n = rows["seed"].nunique()
    return f"n = {n} seed{'s' if n > 1 else ''}"
