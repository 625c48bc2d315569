"""Figures of notebook 09."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panolib.lab.runs import Record
from panolib.related.realtime.runs import METHODS, PICTURED
from panolib.related.realtime.tables import METRICS, RULES
from panolib.report import figures
from panolib.report.tables import per_seed, select

FAMILIES = {  # beginning of a method's label -> colour
    "source": "#7F7F7F", "AdaBN": "#7F7F7F", "control": "#7F7F7F", "adversarial": "#E69F00",
    "SSL": "#56B4E9", "MPL": "#CC79A7", "SAC": "#0072B2", "oracle": "#009E73",
}  # fmt: skip
LAYER_COLOURS = {1: "#E69F00", 2: "#56B4E9", 3: "#0072B2"}
RULE_MARKERS = {"set": "o", "image": "s", "reference": "X"}


def method_bars(rows: pd.DataFrame) -> Figure:
    """mIoU of every method, one panel per target; a line at source only and one at the control."""
    targets = list(dict.fromkeys(rows["setting"]))
    methods = list(dict.fromkeys(rows["method"]))
    size = (2 + 5.5 * len(targets), 1.4 + 0.38 * len(methods))
    fig, axes = plt.subplots(1, len(targets), figsize=size, sharey=True, squeeze=False)
    for ax, target in zip(axes[0], targets):
        values = per_seed(select(rows, setting=target), METRICS[target]).reindex(methods)
        mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1).fillna(0)
        ax.barh(methods, mean, xerr=spread, color=[_colour(method) for method in methods])
        for method, style in (("source_only", ":"), ("control", "--")):
            ax.axvline(mean[METHODS[method]], color="#444444", linestyle=style, linewidth=1.2,
                       label=METHODS[method])  # fmt: skip
        for place, value in enumerate(mean):
            if np.isfinite(value):
                ax.annotate(f"{value:.1f}", (value, place), (4, 0), textcoords="offset points", va="center",
                            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                            fontsize=12)  # fmt: skip
        ax.set(title=target, xlabel=f"{METRICS[target].replace('_', ', ')} classes, %")
        ax.set_xlim(0, 1.12 * mean.max())
        ax.grid(axis="y", visible=False)
    axes[0][0].invert_yaxis()
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def label_plot(labels: pd.DataFrame) -> Figure:
    """Accuracy against coverage: constant thresholds as a line per number of layers, medians as markers."""
    targets = list(dict.fromkeys(labels["target"]))
    fig, axes = plt.subplots(1, len(targets), figsize=(1 + 6 * len(targets), 5.4), squeeze=False)
    for ax, target in zip(axes[0], targets):
        part = labels[labels["target"] == target]
        for layers, colour in LAYER_COLOURS.items():
            own = part[part["layers"] == layers]
            line = own[own["rule"] == RULES["constant"]]
            ax.plot(line["coverage"], line["accuracy"], ".-", color=colour,
                    label=f"{layers} layer{'s' * (layers > 1)}, one threshold")  # fmt: skip
            for rule, marker in RULE_MARKERS.items():
                points = own[own["rule"] == RULES[rule]]
                ax.plot(points["coverage"], points["accuracy"], marker, color=colour, markersize=10,
                        markeredgecolor="black", label=RULES[rule] if layers == 1 else None)  # fmt: skip
        ax.set(title=target, xlabel="coverage, %", ylabel="accuracy of the covered pixels, %")
        ax.set_xlim(left=0)
    handles = axes[0][0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside upper center", ncols=3)
    return fig


def speed_plot(speeds: pd.DataFrame) -> Figure:
    """mIoU against images a second, one point per network, its area by multiply-adds."""
    fig, ax = plt.subplots(figsize=(8, 5))
    work = speeds["G multiply-adds"]
    colours = ["#D55E00" if name.startswith("BiSeNet") else "#0072B2" for name in speeds["network"]]
    ax.scatter(speeds["images/s"], speeds["mIoU_19, %"], s=400 * work / work.max() + 30, c=colours)
    for row in speeds.itertuples():
        ax.annotate(row.network, (speeds.loc[row.Index, "images/s"], speeds.loc[row.Index, "mIoU_19, %"]),
                    (10, 8), textcoords="offset points")  # fmt: skip
    ax.margins(0.25)
    ax.set(xlabel=f"images/s at {speeds['size, px'].iloc[0]}, one at a time",
           ylabel="mIoU, 19 classes, of the oracle, %")  # fmt: skip
    return fig


def latency_plot(large: pd.DataFrame) -> Figure:
    """Median latency of every network and way as a point, with a line to the 95th percentile."""
    names, ways = (list(dict.fromkeys(large[column])) for column in ("network", "way"))
    ways = [way for way in ways if large.loc[large["way"] == way, "n"].sum() > 0]
    fig, ax = plt.subplots(figsize=(9, 1.6 + 0.32 * len(names) * len(ways)))
    for i, way in enumerate(ways):
        part = large[large["way"] == way].set_index("network").reindex(names)
        places = np.arange(len(names)) + (i - (len(ways) - 1) / 2) * 0.8 / len(ways)
        late = (part["p95_ms"] - part["median_ms"]).clip(lower=0)
        ax.errorbar(part["median_ms"], places, xerr=[0 * late, late], fmt="o", markersize=9, label=way)
    ax.set_yticks(np.arange(len(names)), names)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel=f"ms an image at {large['size, px'].iloc[0]}, median to 95th percentile")
    ax.set_xlim(0.5 * large["median_ms"].min(), 2 * large["p95_ms"].max())
    fig.legend(loc="outside upper center", ncols=len(ways))
    return fig


def game_curves(found: Mapping[str, Sequence[Record]]) -> Figure:
    """Loss of the discriminators, with that of guessing, and the feedback of Meta Pseudo Labels."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.8))
    titles = {"judging": "loss of the discriminator", "feedback": "feedback to the teacher"}
    for ax, (column, title) in zip(axes, titles.items()):
        for method, records in found.items():
            for i, record in enumerate(records if method.startswith(("adversarial", "MPL")) else ()):
                if column in record.curves:
                    smooth = record.curves[column].rolling(10, min_periods=1).mean()
                    label = method.partition(", ")[2] if i == 0 else None
                    ax.plot(record.curves["iteration"], smooth, linewidth=1.6, label=label)
        ax.set(xlabel="iteration", title=title)
    axes[0].axhline(np.log(2), color="#444444", linestyle=":", label="guessing")
    axes[1].set_yscale("symlog", linthresh=1e-3)
    for ax in axes:
        ax.legend()
    return fig


def gallery(record: Record) -> Figure:
    """Recorded pictures: image, truth, and what each method predicts."""
    n_images = record.metrics["n_images"]
    whats = ["image", "truth", *PICTURED]
    rows = {
        what: [figures.recorded_picture(record, f"{i:02d}-{what}") for i in range(n_images)] for what in whats
    }
    return figures.picture_grid({METHODS.get(what, what): pictures for what, pictures in rows.items()})


def _colour(method: str) -> str:
    return next(colour for start, colour in FAMILIES.items() if method.startswith(start))
