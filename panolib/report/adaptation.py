"""The report of an adaptation to a user's own images: what networks say before and after, and what is odd.

There are no labels, so that nothing here is a score unless the user gives some; what can be seen without is
whether self-training went astray: student and teacher part, a class disappears, objects vanish or merge.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
SAME_OBJECTS = 0.7  # the same of objects
FULL = 0.9  # share of its pixels in objects from which on an image is mostly object
FULL_IMAGES = 0.1  # share of such images that may be
DENSER = 3.0  # times the share that objects have in the source
APART = 2.0  # ratio of two numbers of objects that cannot both be right
SMOOTH = 20  # points of a curve that are drawn as one mean


@dataclass(frozen=True)
class Findings:
    """What networks say about some images: number and sizes of objects, shares of classes."""

    n_images: int
    n_objects: int
    median_area: float  # pixels; nan without an object
    shares: Mapping[str, float]  # of the pixels, by class
    object_shares: tuple[float, ...]  # of the pixels of each image, in thing classes

    @property
    def per_image(self) -> float:
        """Objects an image."""
        return self.n_objects / max(self.n_images, 1)

    @property
    def n_full(self) -> int:
        """Images that are mostly object."""
        return sum(share > FULL for share in self.object_shares)

    def row(self) -> dict[str, str]:
        """As cells of a table."""
        return {
            "objects an image": f"{self.per_image:.1f}",
            "median area, pixels": f"{self.median_area:.0f}" if self.n_objects else "no objects",
            f"images more than {100 * FULL:.0f} % object": f"{self.n_full} of {self.n_images}",
            **{f"share of {name}, %": f"{100 * share:.1f}" for name, share in self.shares.items()},
        }


def findings(results: Sequence[PanopticResult], label_set: LabelSet) -> Findings:
    """Counts over the results of one pair of networks."""
    pixels = np.sum([np.bincount(r.semantic.ravel(), minlength=VOID + 1) for r in results], axis=0)
    areas = [segment["area"] for result in results for segment in result.segments if segment["isthing"]]
    shares = pixels[: label_set.n_classes] / max(pixels.sum(), 1)
    median = float(np.median(areas)) if areas else float("nan")
    of_objects = tuple(float(np.isin(r.semantic, label_set.thing_ids).mean()) for r in results)
    by_class = dict(zip(label_set.classes, shares.tolist()))
    return Findings(len(results), len(areas), median, by_class, of_objects)


def agreement(first: Sequence[PanopticResult], second: Sequence[PanopticResult]) -> dict[str, float]:
    """How far two pairs of networks say the same about the same images.

    Returns
    -------
    dict
        "pixels": share of the pixels with one class; "objects": share of all objects that overlap one of the
        other with an IoU above 0.5 (F1), nan where neither finds any.
    """
    pairs = list(zip(first, second, strict=True))
    pixels = np.concatenate([(one.semantic == other.semantic).ravel() for one, other in pairs])
    matched = sum(len(same_objects(one.instances, other.instances)) for one, other in pairs)
    total = sum(int(result.instances.max(initial=0)) for pair in pairs for result in pair)
    return {"pixels": float(pixels.mean()), "objects": 2 * matched / total if total else float("nan")}


def agreement_text(agreed: Mapping[str, float]) -> str:
    """An `agreement` in words."""
    no_objects = np.isnan(agreed["objects"])
    objects = "neither finds an object" if no_objects else f"{100 * agreed['objects']:.1f} % of the objects"
    return f"{100 * agreed['pixels']:.1f} % of the pixels, {objects}"


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
    for what, least in (("pixels", FAITHFUL), ("objects", SAME_OBJECTS)):
        if agreed[what] < least:
            lines.append(
                f"student and teacher agree on {100 * agreed[what]:.0f} % of the {what} only, expected "
                f"{100 * least:.0f} % or more"
            )
    for what, values in curves.items():
        quarter = max(1, len(values) // 4)
        early, late = float(np.mean(values[:quarter])), float(np.mean(values[-quarter:]))
        if late < FEWER * early:
            means = f"{early:.2g} in the first quarter of the training, {late:.2g} in the last"
            lines.append(f"{what} dwindle: {means}")
    return lines


def object_warnings(found: Findings, *, source_share: float, otsu_count: float | None) -> list[str]:
    """What networks find on the target that the two folders do not lead one to expect, a line each.

    `source_share` is the share of the pixels of the source that its objects have, `otsu_count` the number of
    objects an image of the target by Otsu's threshold, None where that count says nothing.
    """
    lines = []
    source = f"objects have {100 * source_share:.0f} % of the pixels of the source"
    mean_share = float(np.mean(found.object_shares))
    if found.n_full > FULL_IMAGES * found.n_images and source_share < FULL:
        full = f"{found.n_full} of {found.n_images} images are more than {100 * FULL:.0f} % object"
        lines.append(f"{full}; {source}")
    elif source_share > 0 and mean_share > DENSER * source_share:
        lines.append(f"objects have {100 * mean_share:.0f} % of the pixels of the target; {source}")
    if otsu_count and not 1 / APART <= found.per_image / otsu_count <= APART:
        counts = f"{found.per_image:.1f} objects an image, where Otsu's threshold parts {otsu_count:.1f}"
        lines.append(f"{'too many' if found.per_image > otsu_count else 'too few'} objects? {counts}")
    return lines


def dissent_warning(
    found: Mapping[str, Findings], used: str, weights: Mapping[str, Path], otsu_count: float | None
) -> list[str]:
    """A line where networks count objects a factor of two apart: who, and how to predict with another one.

    `used` made the predictions; `weights` are the files of all. The other one is that whose count is nearest
    to that of Otsu's threshold, or without it farthest from `used`.
    """
    counts = {name: each.per_image for name, each in found.items()}
    if max(counts.values()) <= APART * min(counts.values()):
        return []
    others = [name for name in counts if name != used]
    if otsu_count:
        other = min(others, key=lambda name: abs(np.log((counts[name] or 1e-9) / otsu_count)))
    else:
        other = max(others, key=lambda name: abs(counts[name] - counts[used]))
    said = ", ".join(f"{name} {count:.1f}" for name, count in counts.items())
    return [
        f"networks count objects a factor of {APART:g} apart (an image: {said}); predictions/ is by {used}. "
        f"Compare it with another one: python -m panolib predict IMAGES --weights {weights[other]} --out DIR"
    ]


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
