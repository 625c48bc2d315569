"""What a data set holds: pixels and presence per class, sizes of its objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def describe(dataset: Sequence) -> dict[str, pd.DataFrame]:
    """Count one data set that was opened with labels, in one pass over its samples.

    Returns tables by name. "images": id, height, width, n_instances, void_px; one row per image. "counts":
    class_id, class, kind, pixels, pixel_share (of the pixels that are not void), n_instances; one row per
    class. "presence": class_id, class, n_images, image_share; one row per class (thesis ch. 5 fig. 2).
    "instances": image_id, class_id, class, area_px; one row per object (thesis ch. 5 fig. 1). Raises
    ValueError for a data set without labels.
    """
    label_set = dataset.label_set
    n_classes = label_set.n_classes
    images, pixels, objects = [], [], []
    for sample in dataset:
        if sample.semantic is None:
            raise ValueError(f"{dataset.name}: {sample.id} has no labels, expected them")
        areas = np.bincount(sample.instance.ravel())
        areas[0] = 0  # no instance
        ids = np.flatnonzero(areas)
        class_of = np.zeros(len(areas), np.uint8)
        class_of[sample.instance.ravel()] = sample.semantic.ravel()  # objects are of one class each
        found = {"image_id": sample.id, "class_id": class_of[ids], "area_px": areas[ids]}
        objects.append(pd.DataFrame(found))
        counts = np.bincount(sample.semantic.ravel(), minlength=256)
        pixels.append(counts[:n_classes])
        images.append((sample.id, *sample.semantic.shape, len(ids), int(counts[n_classes:].sum())))

    pixels = np.array(pixels, np.int64).reshape(-1, n_classes)  # [images, classes]
    names = np.array(label_set.classes)
    instances = pd.concat(objects, ignore_index=True).astype({"class_id": np.int64})
    instances.insert(2, "class", names[instances["class_id"]])
    classes = pd.DataFrame({"class_id": np.arange(n_classes), "class": names})
    n_images = (pixels > 0).sum(axis=0)
    return {
        "images": pd.DataFrame(images, columns=["id", "height", "width", "n_instances", "void_px"]),
        "counts": classes.assign(
            kind=np.where(np.isin(np.arange(n_classes), label_set.thing_ids), "thing", "stuff"),
            pixels=pixels.sum(axis=0),
            pixel_share=pixels.sum(axis=0) / max(int(pixels.sum()), 1),
            n_instances=np.bincount(instances["class_id"], minlength=n_classes),
        ),
        "presence": classes.assign(n_images=n_images, image_share=n_images / len(pixels)),
        "instances": instances,
    }


def diameters(instance: np.ndarray) -> np.ndarray:
    """Diameter in pixels of the disc as large as each object of an instance map [H, W], in order of ids."""
    areas = np.bincount(instance.ravel())[1:]
    return np.sqrt(areas[areas > 0] * (4 / np.pi))
