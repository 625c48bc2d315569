"""Figures: pure functions from tables, records and samples to matplotlib figures, in one style.

Methods keep one colour-blind safe colour each (Okabe and Ito), classes have those of their label set.
Sizes are chosen so that a figure stays readable at half its width.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from panolib.data.samples import Sample
from panolib.lab.files import write
from panolib.lab.records import Record
from panolib.labels import LabelSet
from panolib.report.tables import METHODS, select, summarise
from panolib.study.study import Study

DPI, INLINE_DPI = 100, 60  # of the files; in notebooks, which stay below 1 MB
OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# in the order of the rungs: source only, ABN, AdaBN, control, self-trained, oracle
METHOD_COLOURS = dict(zip(METHODS, ("#7F7F7F", "#E69F00", "#D55E00", "#CC79A7", "#0072B2", "#009E73")))
DATA_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2")


def use_style() -> None:
    """Set the style of all figures of the study."""
    plt.rcParams.update({
        "figure.dpi": INLINE_DPI, "savefig.dpi": DPI, "figure.constrained_layout.use": True,
        "font.size": 15, "axes.titlesize": 16, "axes.labelsize": 15, "legend.fontsize": 13,
        "xtick.labelsize": 14, "ytick.labelsize": 14, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": "#DDDDDD", "grid.linewidth": 0.8, "image.interpolation": "nearest",
        "axes.prop_cycle": plt.cycler(color=OKABE_ITO[1:4] + OKABE_ITO[5:]),
    })  # fmt: skip


def save_figure(fig: Figure, study: Study, name: str) -> Path:
    """Write figures/<profile>/<name>.png, byte for byte the same for the same figure; returns its path."""
    path = study.figures / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    fig.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    write(path, content.getvalue())
    return path


# --- scores -----------------------------------------------------------------------------------------------

def ladder_plot(
    rows: pd.DataFrame, metrics: Sequence[str], *, title: str = "", published: pd.DataFrame | None = None
) -> Figure:
    """One panel per metric: every seed as a point, mean and spread as a bar beside them, per method.

    Parameters
    ----------
    rows : DataFrame
        Tidy rows of one setting.
    metrics : sequence of str
    title : str
    published : DataFrame, optional
        What `tables.with_published` returns; its values are drawn as open diamonds.
    """
    fig, axes = plt.subplots(1, len(metrics), figsize=(1 + 5.2 * len(metrics), 5.2), squeeze=False)
    for ax, metric in zip(axes[0], metrics):
        part = select(rows, class_or_metric=metric)
        summary = summarise(part).set_index("method")
        for place, (method, found) in enumerate(part.groupby("method", sort=False)):
            colour, mean = METHOD_COLOURS[method], summary.loc[method, "mean"]
            values = found.sort_values("seed")["value"].to_numpy()
            offsets = place - 0.2 + 0.08 * (np.arange(len(values)) - (len(values) - 1) / 2)
            ax.plot(offsets, values, "o", color=colour, markersize=8, alpha=0.75)
            spread = np.nan_to_num(summary.loc[method, "spread"])
            ax.errorbar(place + 0.12, mean, spread, fmt="_", color=colour, markersize=20, markeredgewidth=3,
                        capsize=5, elinewidth=2)
            ax.annotate(f"{mean:.1f}", (place + 0.12, mean + spread), xytext=(0, 7),
                        textcoords="offset points", ha="center", color=colour, fontweight="bold")
        names = list(dict.fromkeys(part["method"]))
        if published is not None:
            beside = select(published, class_or_metric=metric).dropna(subset="published")
            places = [names.index(method) for method in beside["method"]]
            ax.plot(places, beside["published"], "D", markersize=9, markerfacecolor="white",
                    markeredgecolor="black", label="thesis (other data and size)")
            if len(beside):
                ax.legend(loc="upper left")
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_ylabel(f"{_readable(metric)}, {part['unit'].iloc[0]}")
        ax.margins(x=0.06, y=0.12)
    axes[0, 0].set_xlabel(_seeds(rows), loc="left")
    fig.suptitle(title)
    return fig


def class_bars(rows: pd.DataFrame, classes: Sequence[str], methods: Sequence[str], *, label: str) -> Figure:
    """Mean score per class and method as horizontal bars, with the spread over seeds."""
    summary = summarise(select(rows, class_or_metric=classes, method=list(methods)))
    summary = summary.set_index(["method", "class_or_metric"])
    height = 0.8 / len(methods)
    fig, ax = plt.subplots(figsize=(10, 1.8 + 0.14 * len(classes) * len(methods)))
    places = np.arange(len(classes))
    for i, method in enumerate(methods):
        part = summary.loc[method].reindex(classes)
        ax.barh(places + (i - (len(methods) - 1) / 2) * height, part["mean"], height * 0.9,
                xerr=part["spread"].fillna(0), color=METHOD_COLOURS[method], label=method,
                error_kw={"elinewidth": 1.2, "ecolor": "#444444"})
    ax.set_yticks(places, classes)
    ax.invert_yaxis()
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{label}, %; {_seeds(rows)}")
    fig.legend(loc="outside upper center", ncols=len(methods))
    return fig


def gap_bars(rows: pd.DataFrame) -> Figure:
    """Loss in points against unchanged source scenes, per group of style parameters and method."""
    methods = list(dict.fromkeys(rows["method"]))
    groups = [group for group in dict.fromkeys(rows["class_or_metric"]) if group != "none"]
    wide = rows.set_index(["method", "class_or_metric", "seed"])["value"].sort_index()
    fig, ax = plt.subplots(figsize=(10, 5))
    width = 0.8 / max(len(methods), 1)
    for i, method in enumerate(methods):
        loss = pd.DataFrame({group: wide[method, group] - wide[method, "none"] for group in groups})
        places = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * width
        spread = loss.std(ddof=1).fillna(0)
        ax.bar(places, loss.mean(), width * 0.9, yerr=spread, capsize=4, color=METHOD_COLOURS[method],
               label=method)
        for place, values in zip(places, loss.to_numpy().T):
            ax.plot(np.full(len(values), place), values, "o", color="black", markersize=4)
    ax.axhline(0, color="black", linewidth=1)
    ax.set_xticks(range(len(groups)), groups)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel(f"style group taken from the target; {_seeds(rows)}")
    ax.set_ylabel("mIoU against source style,\npoints")
    ax.legend()
    return fig


def curves(
    records: Mapping[str, Sequence[Record]], columns: Mapping[str, str], *, window: int = 20, title: str = ""
) -> Figure:
    """One panel per column of the curves: running mean of every seed, one colour per method.

    Parameters
    ----------
    records : mapping of method to records of its seeds
    columns : mapping of column to axis label
        A record without the column is left out of its panel.
    window : int
        Iterations of the running mean.
    """
    fig, axes = plt.subplots(1, len(columns), figsize=(1 + 4.8 * len(columns), 4.6), squeeze=False)
    for ax, (column, label) in zip(axes[0], columns.items()):
        for method, found in records.items():
            with_column = [record.curves for record in found if column in record.curves]
            for i, table in enumerate(with_column):
                smooth = table[column].rolling(window, min_periods=1).mean()
                ax.plot(table["iteration"], smooth, color=METHOD_COLOURS[method], linewidth=1.6,
                        label=method if i == 0 else None)
        ax.set_xlabel("iteration")
        ax.set_ylabel(label)
        if ax.lines:
            ax.legend()
    fig.suptitle(title)
    return fig


# --- data sets --------------------------------------------------------------------------------------------

def presence_bars(descriptions: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Share of the images that show each class, per data set (thesis ch. 5 fig. 2)."""
    classes = list(next(iter(descriptions.values()))["presence"]["class"])
    height = 0.8 / len(descriptions)
    fig, ax = plt.subplots(figsize=(10, 2 + 0.14 * len(classes) * len(descriptions)))
    for i, (name, found) in enumerate(descriptions.items()):
        places = np.arange(len(classes)) + (i - (len(descriptions) - 1) / 2) * height
        n_images = len(found["images"])
        ax.barh(places, 100 * found["presence"]["image_share"], height * 0.9, color=DATA_COLOURS[i],
                label=f"{name} ({n_images} images)")
    ax.set_yticks(range(len(classes)), classes)
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("images that show the class, %")
    fig.legend(loc="outside upper center", ncols=2)
    return fig


def instance_sizes(descriptions: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Areas of the objects of each class, per data set: median, quartiles, 5 and 95 % (log axis)."""
    first = next(iter(descriptions.values()))
    things = list(first["counts"].query("kind == 'thing'")["class"])
    height = 0.8 / len(descriptions)
    fig, ax = plt.subplots(figsize=(10, 2.2 + 0.32 * len(things) * len(descriptions)))
    handles = []
    for i, (name, found) in enumerate(descriptions.items()):
        areas = found["instances"].groupby("class")["area_px"]
        boxes, places = [], []
        for place, thing in enumerate(things):
            if thing not in areas.groups:
                continue
            low, first_quartile, median, third_quartile, high = np.percentile(
                areas.get_group(thing), (5, 25, 50, 75, 95)
            )
            boxes.append({"whislo": low, "q1": first_quartile, "med": median, "q3": third_quartile,
                          "whishi": high, "fliers": []})
            places.append(place + (i - (len(descriptions) - 1) / 2) * height)
        ax.bxp(boxes, positions=places, widths=height * 0.75, orientation="horizontal", showfliers=False,
               patch_artist=True, manage_ticks=False, boxprops={"facecolor": DATA_COLOURS[i]},
               medianprops={"color": "black", "linewidth": 2})
        label = f"{name} ({len(found['instances'])} objects)"
        handles.append(Patch(facecolor=DATA_COLOURS[i], edgecolor="black", label=label))
    ax.set_xscale("log")
    ax.set_yticks(range(len(things)), things)
    ax.set_ylim(len(things) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("area of an object, px (5, 25, 50, 75, 95 %)")
    fig.legend(handles=handles, loc="outside upper center", ncols=2)
    return fig


# --- pictures ---------------------------------------------------------------------------------------------

def label_picture(sample: Sample, label_set: LabelSet) -> np.ndarray:
    """uint8 [H, W, 3]: class colours, white outlines of the instances, void black."""
    picture = label_set.colourise(sample.semantic)
    picture[outlines(sample.instance)] = 255
    return picture


def outlines(instance_labels: np.ndarray) -> np.ndarray:
    """Bool [H, W]: pixels of an instance whose right or lower neighbour is not of it, and those of it."""
    border = np.zeros(instance_labels.shape, bool)
    down, right = np.diff(instance_labels, axis=0) != 0, np.diff(instance_labels, axis=1) != 0
    border[:-1] |= down
    border[:, :-1] |= right
    return border


def sample_grid(
    rows: Mapping[str, Sequence[Sample]], label_set: LabelSet, *, width: int = 512, legend: bool = True
) -> Figure:
    """A row per data set, with an image and its labels for each of its samples.

    Parameters
    ----------
    rows : mapping of name to samples
        As many samples for every name. A sample without labels shows its image only.
    width : int
        Pictures narrower than this are enlarged (nearest), so that outlines stay visible.
    """
    pictures = {
        name: [
            picture for sample in samples
            for picture in ([sample.image] if sample.semantic is None
                            else [sample.image, label_picture(sample, label_set)])
        ]
        for name, samples in rows.items()
    }  # fmt: skip
    fig = picture_grid(pictures, width=width)
    if legend:
        with_class_legend(fig, label_set)
    return fig


def picture_grid(
    rows: Mapping[str, Sequence[np.ndarray]], *, headings: Sequence[str] = (), width: int = 512
) -> Figure:
    """Pictures uint8 [H, W, 3] in rows with their names at the left and headings above."""
    n_columns = max(map(len, rows.values()))
    height, breadth = next(iter(rows.values()))[0].shape[:2]
    cell = min(12 / n_columns, 4.5)
    figsize = (n_columns * cell, len(rows) * cell * height / breadth + 0.4 + 0.4 * bool(headings))
    fig, axes = plt.subplots(len(rows), n_columns, figsize=figsize, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items()):
        for ax in line:
            ax.axis("off")
        for ax, picture in zip(line, pictures):
            ax.imshow(_enlarged(picture, width))
        line[0].axis("on")
        line[0].set_ylabel(name)
        line[0].set(xticks=[], yticks=[])
        line[0].grid(visible=False)
        for spine in line[0].spines.values():
            spine.set_visible(False)
    for ax, heading in zip(axes[0], headings):
        ax.set_title(heading)
    return fig


def panoptic_gallery(
    records: Mapping[str, Record], label_set: LabelSet, *, indices: Iterable[int] | None = None
) -> Figure:
    """Recorded pictures of panoptic runs: image, truth, and the prediction of each method.

    Parameters
    ----------
    records : mapping of method to record
        Panoptic runs on the same images.
    indices : iterable of int, optional
        Which of the recorded images; all by default.
    """
    first = next(iter(records.values()))
    if indices is None:
        indices = range(sum(name.endswith("-image") for name in first.samples))
    rows = {
        f"image {i}": [
            recorded_picture(first, f"{i:02d}-image"), recorded_picture(first, f"{i:02d}-truth"),
            *(recorded_picture(record, f"{i:02d}-prediction") for record in records.values()),
        ]
        for i in indices
    }  # fmt: skip
    fig = picture_grid(rows, headings=["image", "truth", *records])
    with_class_legend(fig, label_set)
    return fig


def views_figure(crops: Tensor, canvases: Tensor, seen: Tensor) -> Figure:
    """Crops of one image, and below each the canvas that its inverse gives back (grey: not seen).

    Parameters
    ----------
    crops, canvases : float Tensor [L, 3, H, W] in [0, 1]
    seen : bool Tensor [L, 1 or 3, H, W]
        Pixels of the canvases that the crop shows.
    """
    canvases = canvases.where(seen, 0.75)
    rows = {
        name: [(255 * picture).round().byte().movedim(0, -1).numpy() for picture in pictures]
        for name, pictures in (("crops", crops), ("taken back", canvases))
    }
    return picture_grid(rows, headings=[f"view {i}" for i in range(len(crops))])


# --- helpers ----------------------------------------------------------------------------------------------

def with_class_legend(fig: Figure, label_set: LabelSet) -> Figure:
    """The figure with the colours of the classes below it."""
    handles = [
        Patch(facecolor=np.array(colour) / 255, label=name)
        for name, colour in zip(label_set.classes, label_set.colours)
    ]
    handles.append(Patch(facecolor="black", label="void"))
    n_columns = min(7, len(handles))
    fig.legend(handles=handles, loc="outside lower center", ncols=n_columns, columnspacing=1.2,
               handlelength=1.2)
    width, height = fig.get_size_inches()
    fig.set_size_inches(width, height + 0.2 + 0.3 * -(-len(handles) // n_columns))
    return fig


def recorded_picture(record: Record, name: str) -> np.ndarray:
    """A recorded picture, RGB."""
    if name not in record.samples:
        raise KeyError(f"run {record.run.name} has no picture {name!r}; it has {sorted(record.samples)}")
    return cv2.imread(str(record.samples[name]))[..., ::-1]


def _enlarged(picture: np.ndarray, width: int) -> np.ndarray:
    """A picture repeated by a whole factor until it is at least `width` wide."""
    factor = max(1, -(-width // picture.shape[1]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _readable(metric: str) -> str:
    """A metric as an axis says it: "mIoU, 19 classes"."""
    name, _, subset = metric.rpartition("_")
    return f"{name}, {subset} classes" if name and subset.isdigit() else metric


def _seeds(rows: pd.DataFrame) -> str:
    """Number of seeds in words."""
    n_seeds = rows["seed"].nunique()
    return f"n = {n_seeds} seed{'s' if n_seeds > 1 else ''}"
