"""Grids of images, label maps and recorded pictures, with the colours of the classes below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage
from skimage import measure
from skimage.segmentation import find_boundaries

from panolib.lab.records import Record
from panolib.labels import LabelSet


def label_picture(
    semantic_labels: np.ndarray, label_set: LabelSet, instance_labels: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [H, W, 3]: class colours, void black, white outlines of the instances (int [H, W], 0 none)."""
    picture = label_set.colourise(semantic_labels)
    if instance_labels is not None:
        picture[find_boundaries(instance_labels, mode="inner")] = 255
    return picture


def instance_picture(instance_labels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: a colour for every instance, 0 black, white outlines."""
    palette = (255 * plt.get_cmap("tab20")(np.arange(20))[:, :3]).astype(np.uint8)
    picture = palette[instance_labels % 20]
    picture[instance_labels == 0] = 0
    picture[find_boundaries(instance_labels, mode="inner")] = 255
    return picture


def map_picture(values: np.ndarray, *, colours: str = "viridis") -> np.ndarray:
    """uint8 [H, W, 3]: a map of numbers in [0, 1] in a colour map; NaN white."""
    picture = (255 * plt.get_cmap(colours)(np.nan_to_num(values.clip(0, 1)))[..., :3]).astype(np.uint8)
    picture[np.isnan(values)] = 255
    return picture


def picture_grid(
    rows: Mapping[str, Sequence[np.ndarray]], *, headings: Sequence[str] = (), width: int = 512,
    inches: float = 12.0, label_set: LabelSet | None = None,
) -> Figure:  # fmt: skip
    """Pictures uint8 [H, W, 3] in rows with their names at the left, headings above, and the class legend.

    Pictures narrower than `width` are enlarged (nearest), so that outlines stay visible. `inches` is the
    breadth of a row; `label_set` is the one whose colours stand below.
    """
    n_columns = max(map(len, rows.values()))
    height, breadth = next(iter(rows.values()))[0].shape[:2]
    cell = min(inches / n_columns, 4.5)
    figsize = (n_columns * cell, len(rows) * cell * height / breadth + 0.4 + 0.4 * bool(headings))
    fig, axes = plt.subplots(len(rows), n_columns, figsize=figsize, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items()):
        for ax in line:
            ax.axis("off")
        for ax, picture in zip(line, pictures):
            factor = max(1, -(-width // picture.shape[1]))
            ax.imshow(picture.repeat(factor, axis=0).repeat(factor, axis=1))
        line[0].axis("on")
        line[0].set_ylabel(name)
        line[0].set(xticks=[], yticks=[])
        line[0].grid(visible=False)
        for spine in line[0].spines.values():
            spine.set_visible(False)
    for ax, heading in zip(axes[0], headings):
        ax.set_title(heading)
    return fig if label_set is None else with_class_legend(fig, label_set)


def panoptic_gallery(
    records: Mapping[str, Record], label_set: LabelSet, *, indices: Iterable[int] | None = None,
    by_instance: bool = False,
) -> Figure:  # fmt: skip
    """Recorded pictures of panoptic runs on the same images: image, truth, the prediction of each method.

    `by_instance`: things have the colours of their instances instead of shades of that of their class, and
    there is no legend of classes.
    """
    first = next(iter(records.values()))
    if indices is None:
        indices = range(sum(name.endswith("-image") for name in first.samples))
    rows = {}
    for i in indices:
        maps = [recorded_picture(first, f"{i:02d}-truth")]
        maps += [recorded_picture(record, f"{i:02d}-prediction") for record in records.values()]
        if by_instance:
            maps = [_instances_of(picture, label_set) for picture in maps]
        rows[f"image {i}"] = [recorded_picture(first, f"{i:02d}-image"), *maps]
    headings = ["image", "truth", *records]
    return picture_grid(rows, headings=headings, label_set=None if by_instance else label_set)


def recorded_segments(picture: np.ndarray, label_set: LabelSet) -> tuple[np.ndarray, list[dict]]:
    """Panoptic map and segments of a recorded picture (`inference.pictures.panoptic_picture`), to score it.

    A segment of a thing is a shade of its class; white lines go to the segment that is nearest.

    Returns
    -------
    panoptic_map : int array [H, W]
        0 = void.
    segments : list of dict
        `id` and `category_id` (train id) of every segment.
    """
    lines = (picture == 255).all(-1)
    nearest = ndimage.distance_transform_edt(lines, return_distances=False, return_indices=True)
    filled = picture[tuple(nearest)].reshape(-1, 3)
    colours, ids = np.unique(np.vstack([np.zeros((1, 3), np.uint8), filled]), axis=0, return_inverse=True)
    base = np.array(label_set.colours, float)
    to_white = 255 - base
    shade = ((colours[:, None] - base) * to_white).sum(-1) / (to_white**2).sum(-1)  # [colours, classes]
    shade *= np.isin(np.arange(len(base)), label_set.thing_ids)
    category = np.abs(colours[:, None] - base - shade[..., None] * to_white).max(-1).argmin(1)
    panoptic_map = ids[1:].reshape(lines.shape)  # black, the smallest, is 0
    present = np.unique(panoptic_map[panoptic_map > 0]).tolist()
    return panoptic_map, [{"id": k, "category_id": int(category[k])} for k in present]


def _instances_of(picture: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """A recorded panoptic picture with a colour for every instance: each has a shade of its class there."""
    kept = np.array([*(label_set.colours[i] for i in label_set.stuff_ids), (0, 0, 0), (255, 255, 255)])
    shades, index = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    is_thing = ~(shades[:, None] == kept).all(-1).any(1)
    shade = np.where(is_thing, np.arange(1, len(shades) + 1), 0)[index]
    parts = measure.label(shade.reshape(picture.shape[:2]))
    return np.where(parts[..., None] > 0, instance_picture(parts), picture)


def with_class_legend(fig: Figure, label_set: LabelSet) -> Figure:
    """The figure with the colours of the classes below it."""
    colours = [*(np.array(colour) / 255 for colour in label_set.colours), np.zeros(3)]
    handles = [
        Patch(facecolor=colour, edgecolor="#888888", label=name)
        for name, colour in zip([*label_set.classes, "void"], colours)
    ]
    width, height = fig.get_size_inches()
    n_columns = max(1, min(7, int(width / 1.65)))
    fig.legend(handles=handles, loc="outside lower center", ncols=n_columns, columnspacing=1.2)
    fig.set_size_inches(width, height + 0.2 + 0.3 * -(-len(handles) // n_columns))
    return fig


def name_classes(fig: Figure, label_set: LabelSet, names: Sequence[str], *, least: float = 0.01) -> Figure:
    """The figure with names of classes, whose colours look alike, on their largest part in every picture.

    A part of less than the share `least` of the picture has no name.
    """
    for ax in fig.axes:
        picture = np.asarray(ax.images[0].get_array())
        for name, class_id in zip(names, label_set.ids_of(names)):
            parts = measure.label((picture == label_set.colours[class_id]).all(-1))
            part = max(measure.regionprops(parts), key=lambda part: part.area, default=None)
            if part is not None and part.area >= least * parts.size:
                top, left, bottom, right = part.bbox
                upright = 90 if bottom - top > 1.5 * (right - left) else 0
                (y, x), style = part.centroid, {"ha": "center", "va": "center", "rotation": upright}
                ax.text(x, y, name, color="white", fontsize=14, **style)
    return fig


def recorded_picture(record: Record, name: str, *, outlined: bool = False) -> np.ndarray:
    """A recorded picture, uint8 [H, W, 3]. KeyError, with the names that there are, for none.

    `outlined`: twice the size, with white lines between colours, as those of vehicles are nearly the same.
    """
    if name not in record.samples:
        raise KeyError(f"run {record.run.name} has no picture {name!r}; it has {sorted(record.samples)}")
    picture = cv2.imread(str(record.samples[name]))[..., ::-1].copy()
    if outlined:
        picture = picture.repeat(2, axis=0).repeat(2, axis=1)  # for thin lines
        colour = picture.astype(np.int64) @ (1 << 16, 1 << 8, 1)
        picture[find_boundaries(colour, mode="inner", background=-1)] = 255
    return picture

