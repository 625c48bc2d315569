"""From the peer's predictions to instances, by torch-em's watershed, and their scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from panolib.clustering.labels import relabel_consecutive
from panolib.config import Different, Natural, Share, spec
from panolib.data.samples import Sample
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.predict import evaluating, one_by_one
from panolib.labels import LabelSet
from panolib.metrics.panoptic import PanopticStats
from panolib.related.mean_teacher.library import grey, torch_em
from panolib.scoring.classical import best_by_pq, score_instances, two_classes

PACKAGE = {"seeds": 0.5, "mask": 0.5, "min_size": 50}  # defaults of torch-em's function
Setting = Mapping[str, float]


@spec
class WatershedGrid:
    """Settings of the watershed that are tried on the source.

    Seeds are the connected parts where foreground - boundary is above `seeds`; they grow over the boundary
    map as far as the foreground is above `mask`; parts of fewer pixels than `min_size` go.
    """

    seeds: Annotated[tuple[Share, ...], Field(min_length=1), Different]
    mask: Annotated[tuple[Share, ...], Field(min_length=1), Different]
    min_size: Annotated[tuple[Natural, ...], Field(min_length=1), Different]

    def settings(self) -> list[dict[str, float]]:
        """Every combination."""
        combinations = itertools.product(self.seeds, self.mask, self.min_size)
        return [dict(zip(PACKAGE, values)) for values in combinations]


@torch.inference_mode()
def predict_peer(model: nn.Module, sample: Sample) -> np.ndarray:
    """float32 [2, H, W]: probabilities of `library.CHANNELS` for a whole image."""
    te, multiple = torch_em(), 2**model.depth
    image = te.transform.raw.standardize(grey(sample))
    with evaluating(model):
        return te.util.prediction.predict_with_padding(model, image, min_divisible=(multiple, multiple))[0]


def watershed(prediction: np.ndarray, setting: Setting) -> Tensor:
    """int64 [H, W]: instances 1 .. K of a prediction [2, H, W], 0 for none."""
    foreground, boundary = prediction
    found = torch_em().util.segmentation.watershed_from_components(
        boundary, foreground, setting["min_size"], threshold1=setting["seeds"], threshold2=setting["mask"]
    )
    found = torch.from_numpy(found.astype(np.int64))
    return relabel_consecutive(found)  # seeds outside of the mask leave gaps


def choose_watershed(
    model: nn.Module, dataset: Sequence[Sample], label_set: LabelSet, grid: WatershedGrid, *, label: str = ""
) -> dict:
    """The setting with the best PQ of things on labelled images of the source.

    Returns
    -------
    dict
        {"chosen": {"seeds", "mask", "min_size"}, "grid": [{the same and "pq"}]}
    """
    settings = grid.settings()
    stats = [PanopticStats(label_set) for _ in settings]
    for sample in one_by_one(dataset, label):
        truth, prediction = panoptic_truth(sample, label_set), predict_peer(model, sample)
        for setting, found in zip(settings, stats):
            instances = watershed(prediction, setting)
            semantic = two_classes((instances > 0).numpy(), label_set)
            found.update(*truth, *merge_panoptic(semantic, instances, label_set))
    best, rows = best_by_pq(settings, stats)
    return {"chosen": settings[best], "grid": rows}


def score_peer(
    model: nn.Module, dataset: Sequence[Sample], label_set: LabelSet, setting: Setting, **options
) -> dict:
    """Scores and options of `scoring.classical.score_instances`."""

    def find(sample: Sample) -> tuple[np.ndarray, Tensor]:
        instances = watershed(predict_peer(model, sample), setting)
        return two_classes((instances > 0).numpy(), label_set), instances

    names = {"algorithm": "watershed", "masks": "predicted", "merge_rules": ("void",)}
    return score_instances(find, dataset, label_set, **names, **options)
