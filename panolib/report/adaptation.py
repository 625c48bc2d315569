"""The report of an adaptation to a user's own images: what networks say before and after, and what is odd.

There are no labels, so that nothing here is a score unless the user gives some; what can be seen without is
whether self-training went astray: student and teacher part, a class disappears, objects vanish or merge.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from panolib.inference.panoptic import panoptic_truth
from panolib.inference.tiles import same_objects
from panolib.labels import VOID, LabelSet
from panolib.metrics.panoptic import PanopticStats
from panolib.report.plots import as_png
from panolib.study.apply import PanopticResult
from panolib.study.packaged import PanopticNetworks

PRESENT = 0.005  # share of the pixels from which on a class is missed when it is gone
GONE = 0.1  # of its share: a class with less has disappeared
FEWER, LARGER = 0.5, 2.0  # of their number and of their size: objects that have vanished, or merged
FAITHFUL = 0.8  # share of pixels on which student and teacher agree after a training that settled
SMOOTH = 20  # points of a curve that are drawn as one mean


@dataclass(frozen=True)
class Findings:
    """What networks say about some images: number and sizes of objects, shares of classes."""

    n_images: int
    n_objects: int
    median_area: float  # pixels; nan without an object
    shares: Mapping[str, float]  # of the pixels, by class

    def row(self) -> dict[str, str]:
        """As cells of a table."""
        shares = {f"share of {name}, %": f"{100 * share:.1f}" for name, share in self.shares.items()}
        per_image = f"{self.n_objects / max(self.n_images, 1):.1f}"
        return {"objects an image": per_image, "median area, pixels": f"{self.median_area:.0f}", **shares}


def findings(results: Sequence[PanopticResult], label_set: LabelSet) -> Findings:
    """Counts over the results of one pair of networks."""
    pixels = np.sum([np.bincount(r.semantic.ravel(), minlength=VOID + 1) for r in results], axis=0)
    areas = [segment["area"] for result in results for segment in result.segments if segment["isthing"]]
    shares = pixels[: label_set.n_classes] / max(pixels.sum(), 1)
    median = float(np.median(areas)) if areas else float("nan")
    return Findings(len(results), len(areas), median, dict(zip(label_set.classes, shares.tolist())))


def agreement(first: Sequence[PanopticResult], second: Sequence[PanopticResult]) -> dict[str, float]:
    """How far two pairs of networks say the same about the same images.

    Returns
    -------
    dict
        "pixels": share of the pixels with one class; "objects": share of all objects that overlap one of the
        other with an IoU above 0.5 (F1), 1 where neither finds any.
    """
    pairs = list(zip(first, second, strict=True))
    pixels = np.concatenate([(one.semantic == other.semantic).ravel() for one, other in pairs])
    matched = sum(len(same_objects(one.instances, other.instances)) for one, other in pairs)
    total = sum(int(result.instances.max(initial=0)) for pair in pairs for result in pair)
    return {"pixels": float(pixels.mean()), "objects": 2 * matched / total if total else 1.0}


def scores(networks: PanopticNetworks, dataset: Sequence) -> dict[str, float]:
    """PQ, SQ and RQ, means over the classes, on samples with labels."""
    stats = PanopticStats(networks.label_set)
    for sample in dataset:
        truth = panoptic_truth(sample, networks.label_set)
        stats.update(*truth, *networks.predict(sample).panoptic)
    result = stats.result()
    return {"PQ": result.mean_pq, "SQ": result.mean_sq, "RQ": result.mean_rq}


def collapse_warnings(
    before: Findings, after: Findings, agreed: Mapping[str, float], curves: Mapping[str, Sequence[float]]
) -> list[str]:
    """What speaks for a self-training that went astray, a line each.

    `before` and `after` are of the networks that saw the source only, and of the self-trained ones, on the
    same target images; `agreed` is the `agreement` of student and teacher; `curves` has, by what they count,
    pseudo-labels over the iterations, which should not dwindle.
    """
    lines = []
    for name, share in before.shares.items():
        if share >= PRESENT and after.shares[name] < GONE * share:
            found = f"{100 * share:.1f} % of the pixels before and {100 * after.shares[name]:.1f} % after"
            lines.append(f"class {name!r} disappears: {found} self-training")
    if after.n_objects < FEWER * before.n_objects:
        lines.append(f"objects vanish: {before.n_objects} before, {after.n_objects} after self-training")
    if before.n_objects == after.n_objects == 0:
        lines.append("no object is found, before self-training and after: train longer, or look at the scale")
    ratio = after.median_area / before.median_area
    if ratio > LARGER or ratio < 1 / LARGER:
        what = "merge" if ratio > 1 else "break up"
        sizes = f"{before.median_area:.0f} pixels before, {after.median_area:.0f} after self-training"
        lines.append(f"objects {what}: median area {sizes}")
    if agreed["pixels"] < FAITHFUL:
        lines.append(
            f"student and teacher agree on {100 * agreed['pixels']:.0f} % of the pixels only, expected "
            f"{100 * FAITHFUL:.0f} % or more"
        )
    for what, values in curves.items():
        quarter = max(1, len(values) // 4)
        early, late = float(np.mean(values[:quarter])), float(np.mean(values[-quarter:]))
        if late < FEWER * early:
            means = f"{early:.2g} in the first quarter of the training, {late:.2g} in the last"
            lines.append(f"{what} dwindle: {means}")
    return lines


def curves_figure(curves: Mapping[str, pd.DataFrame]) -> bytes:
    """PNG with a panel for each curve: every value as a thin line, the mean of its neighbours as a thick one.

    `curves`: by the title of its panel a table with "iteration" and the columns to draw.
    """
    n_lines = -(-len(curves) // 2)
    fig, axes = plt.subplots(n_lines, 2, figsize=(11, 3 * n_lines), squeeze=False, layout="constrained")
    for ax in axes.flat[len(curves) :]:
        ax.axis("off")
    for ax, (title, table) in zip(axes.flat, curves.items()):
        for name in table.columns.drop("iteration"):
            smooth = table[name].rolling(SMOOTH, min_periods=1).mean()
            (line,) = ax.plot(table["iteration"], smooth, label=name)
            ax.plot(table["iteration"], table[name], color=line.get_color(), alpha=0.25, linewidth=0.8)
        ax.set(title=title, xlabel="iteration")
        ax.legend(frameon=False)
    content = as_png(fig, dpi=90)
    plt.close(fig)
    return content


STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}"
    "img{max-width:100%}pre{background:#f5f5f5;padding:1em;overflow:auto}.warning{color:#a30000}"
)


def page(title: str, parts: Mapping[str, str | bytes | pd.DataFrame | Sequence[str]]) -> str:
    """A page of HTML that needs no other file.

    `parts`, by heading: text as it is, a table, a PNG, or lines, which are warnings.
    """
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{_part(part)}" for heading, part in parts.items())
    name = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def _part(part: str | bytes | pd.DataFrame | Sequence[str]) -> str:
    if isinstance(part, bytes):
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(part).decode()}">'
    if isinstance(part, pd.DataFrame):
        return part.to_html(border=0, na_rep="")
    if isinstance(part, str):
        return f"<pre>{html.escape(part)}</pre>"
    return "<ul>" + "".join(f'<li class="warning">{html.escape(line)}</li>' for line in part) + "</ul>"
