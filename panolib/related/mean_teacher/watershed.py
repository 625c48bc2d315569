"""From the peer's predictions to instances, by torch-em's watershed, and their scores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from panolib.config import Natural, Share, spec
from panolib.data.samples import Sample
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.pictures import panoptic_picture
from panolib.inference.predict import evaluating, one_by_one
from panolib.labels import LabelSet
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix
from panolib.related.mean_teacher.library import grey, torch_em
from panolib.scoring.evaluate import panoptic_scores, semantic_scores


@spec
class WatershedGrid:
    """Settings of the watershed that are tried on the source.

    Seeds are the connected parts where foreground - boundary is above `seeds`; they grow over the boundary
    map as far as the foreground is above `mask`; parts of fewer pixels than `min_size` go.
    """

    seeds: tuple[Share, ...]
    mask: tuple[Share, ...]
    min_size: tuple[Natural, ...]

    def settings(self) -> list[dict[str, float]]:
        """Every combination, in this order."""
        names = ("seeds", "mask", "min_size")
        return [dict(zip(names, values)) for values in itertools.product(*(getattr(self, n) for n in names))]


@torch.inference_mode()
def predict_peer(model: nn.Module, sample: Sample) -> np.ndarray:
    """float32 [2, H, W]: probabilities of `library.CHANNELS` for a whole image."""
    te, multiple = torch_em(), 2**model.depth
    image = te.transform.raw.standardize(grey(sample))
    with evaluating(model):
        return te.util.prediction.predict_with_padding(model, image, min_divisible=(multiple, multiple))[0]


def watershed(prediction: np.ndarray, *, seeds: float, mask: float, min_size: int) -> np.ndarray:
    """int32 [H, W]: instances 1 .. K of a prediction [2, H, W], 0 for none."""
    foreground, boundary = prediction
    found = torch_em().util.segmentation.watershed_from_components(
        boundary, foreground, min_size=min_size, threshold1=seeds, threshold2=mask
    )
    return found.astype(np.int32)


def panoptic_of(instances: np.ndarray, label_set: LabelSet) -> tuple[np.ndarray, list[dict]]:
    """Panoptic map and segments of instances of the one thing class, on the one stuff class."""
    (thing,), (stuff,) = label_set.thing_ids, label_set.stuff_ids
    return merge_panoptic(np.where(instances > 0, thing, stuff), instances, label_set)


def choose_watershed(
    model: nn.Module, dataset: Sequence[Sample], label_set: LabelSet, grid: WatershedGrid, *, label: str = ""
) -> dict:
    """The settings with the best PQ of things on labelled images of the source.

    Returns
    -------
    dict
        {"seeds", "mask", "min_size", "grid": [{... and "pq"}]}
    """
    stats = [(settings, PanopticStats(label_set)) for settings in grid.settings()]
    for sample in one_by_one(dataset, label):
        truth, prediction = panoptic_truth(sample, label_set), predict_peer(model, sample)
        for settings, found in stats:
            found.update(*truth, *panoptic_of(watershed(prediction, **settings), label_set))
    rows = [{**settings, "pq": found.result(label_set.thing_ids).mean_pq} for settings, found in stats]
    best = max(rows, key=lambda row: row["pq"])
    return {**{name: best[name] for name in ("seeds", "mask", "min_size")}, "grid": rows}


def score_peer(
    model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    settings: Mapping[str, float],
    *,
    n_samples: int = 0,
    save_sample: Callable[[str, np.ndarray], None] | None = None,
    label: str = "",
) -> dict:
    """Scores as of `evaluate.score_panoptic`, and pictures of the first `n_samples` images."""
    stats, confusion = PanopticStats(label_set), np.zeros((label_set.n_classes + 1,) * 2, np.int64)
    for index, sample in enumerate(one_by_one(dataset, label)):
        truth = panoptic_truth(sample, label_set)
        instances = watershed(predict_peer(model, sample), **settings)
        found = panoptic_of(instances, label_set)
        stats.update(*truth, *found)
        (thing,), (stuff,) = label_set.thing_ids, label_set.stuff_ids
        confusion += confusion_matrix(
            sample.semantic, np.where(instances > 0, thing, stuff), label_set.n_classes
        )
        if index < n_samples:
            save_sample(f"{index:02d}-image", sample.image)
            save_sample(f"{index:02d}-truth", panoptic_picture(*truth, label_set))
            save_sample(f"{index:02d}-prediction", panoptic_picture(*found, label_set))
    return {**panoptic_scores(stats), **semantic_scores(confusion, label_set), "n_images": len(dataset)}
