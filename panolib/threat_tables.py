"""Tables of the threat score: pure functions from the counts of threat runs to what a reader sees.

The thesis calls the threat score TP / (TP + FP + FN) at IoU 0.5 "AP"; the official AP is another quantity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from panolib.runs import Record

COUNTS = ["tp", "fp", "fn"]
SCORES = ["pooled", "class_mean", "image_mean"]


def counts(record: Record) -> pd.DataFrame:
    """Objects found, false and missed by a threat run.

    Returns
    -------
    DataFrame
        truth_share, kernel, image (position in the data set), class, tp, fp, fn: a row for every image and
        thing class of every variant, also where there is nothing.
    """
    parts = []
    for variant in record.metrics["variants"]:
        for thing in record.metrics["things"]:
            values = {name: np.array(variant[name][thing].split(), np.int64) for name in COUNTS}
            part = pd.DataFrame({"image": range(record.metrics["n_images"]), "class": thing, **values})
            part.insert(0, "truth_share", variant["truth_share"])
            part.insert(1, "kernel", variant["kernel"])
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def threat_score(counts: pd.DataFrame, by: Sequence[str] = ("truth_share", "kernel")) -> pd.DataFrame:
    """Threat scores of every group of rows, as fractions; NaN where there is nothing to count.

    Parameters
    ----------
    counts : DataFrame
        What `counts` returns, also of several runs with further columns.
    by : sequence of str
        Columns that tell groups apart, in the order of the rows. With "class" among them, `class_mean` is
        `pooled`.

    Returns
    -------
    DataFrame
        The columns of `by`; tp, fp, fn summed; and three ways to average:
        pooled : all objects together.
        class_mean : mean over classes of the pooled score of each, the thesis's mAP.
        image_mean : mean over classes of the mean over those images that show the class, as in SPOCO.

    References
    ----------
    Thesis ch. 11 eq. 1; Wolny et al. 2022; methods 8.3.
    """
    by = list(by)
    of_class = [*by, *({"class"} - set(by))]
    per_image = counts.assign(score=_ratio(counts), shown=counts["tp"] + counts["fn"] > 0)
    shown = per_image[per_image["shown"]].groupby(of_class, sort=False)["score"].mean()
    classes = counts.groupby(of_class, sort=False)[COUNTS].sum()
    classes = classes.assign(class_mean=_ratio(classes), image_mean=shown.reindex(classes.index))
    groups = classes.reset_index().groupby(by, sort=False)
    table = groups[COUNTS].sum()
    table = table.assign(pooled=_ratio(table), **groups[["class_mean", "image_mean"]].mean())
    return table.reset_index()


def _ratio(counts: pd.DataFrame) -> pd.Series:
    """TP / (TP + FP + FN) of every row, NaN without any."""
    total = counts["tp"] + counts["fp"] + counts["fn"]
    return counts["tp"] / total.where(total > 0)
