"""Predictions to look at: an image beside its panoptic map, and many of them on one sheet."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from panolib.data.images import resize_image, resize_labels
from panolib.inference.pictures import panoptic_picture
from panolib.labels import LabelSet
from panolib.report.pictures import instance_picture, with_class_legend
from panolib.report.plots import as_png
from panolib.study.apply import PanopticResult

LONGEST = 512  # pixels of a preview's image
COLUMNS, INCHES = 2, 6.0


def preview(image: np.ndarray, result: PanopticResult, label_set: LabelSet) -> np.ndarray:
    """uint8 [h, w, 3]: the image (uint8 [H, W, 3]) at the left, what is predicted at the right.

    Where there is one class of things, each object has a colour of its own; else classes have theirs and
    objects shades of it.
    """
    factor = min(1.0, LONGEST / max(image.shape[:2]))
    size = tuple(max(1, round(n * factor)) for n in image.shape[:2])
    if len(label_set.things) == 1:
        drawn = instance_picture(resize_labels(result.instances, size))
    else:
        drawn = panoptic_picture(resize_labels(result.panoptic, size), result.segments, label_set)
    gap = np.full((size[0], 4, 3), 255, np.uint8)
    return np.concatenate([resize_image(image, size), gap, drawn], axis=1)


def contact_sheet(previews: Mapping[str, np.ndarray], label_set: LabelSet, *, n_images: int) -> bytes:
    """PNG of previews (uint8 [h, w, 3]) by the name of their image, in two columns."""
    aspects = [picture.shape[0] / picture.shape[1] for picture in previews.values()]
    heights = [INCHES * max(aspects[i : i + COLUMNS]) + 0.35 for i in range(0, len(aspects), COLUMNS)]
    fig, axes = plt.subplots(
        len(heights), COLUMNS, figsize=(COLUMNS * INCHES, sum(heights) + 0.5), height_ratios=heights,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, picture) in zip(axes.flat, previews.items()):
        ax.imshow(picture)
        ax.set_title(name if len(name) <= 60 else f"…{name[-59:]}", fontsize=11)
    others = "" if len(previews) == n_images else ", as many as a sheet holds; all are in previews/"
    fig.suptitle(f"{len(previews)} of {n_images} images{others}")
    if len(label_set.things) > 1:
        with_class_legend(fig, label_set)
    content = as_png(fig)
    plt.close(fig)
    return content
