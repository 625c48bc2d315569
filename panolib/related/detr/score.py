"""Score a DETR network on labelled data sets, image by image at the images' own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from panolib.config import Natural, Share, spec
from panolib.data.photometry import network_input
from panolib.data.samples import Sample, resize_sample
from panolib.inference.panoptic import panoptic_truth
from panolib.inference.predict import evaluating, one_by_one
from panolib.labels import VOID, LabelSet, merged_ids
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix
from panolib.models.geometry import upsample_to
from panolib.related.detr.targets import panoptic_from_queries
from panolib.scoring.evaluate import (
    SaveCounts,
    SaveSample,
    in_part,
    not_kept,
    panoptic_scores,
    save_pictures,
    save_semantic_counts,
    semantic_scores,
)


@spec
class QueryRule:
    """How queries become a panoptic map (`targets.panoptic_from_queries`)."""

    thresholds: Annotated[tuple[Share, ...], Field(min_length=1)]  # of scores; the first is the headline
    min_area: Natural  # pixels; smaller segments are dropped


def predict_queries(model: nn.Module, sample: Sample, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Class logits [Q, C + 1] and mask logits [Q, H, W] of one image, at its own size.

    `size`: (height, width) of the training images, or None. The image is brought to that height for the
    network, in its own aspect ratio.
    """
    image = Sample(sample.image, None, None, None, sample.id)
    if size is not None:
        height, width = sample.image.shape[:2]
        image = resize_sample(image, (size[0], round(width * size[0] / height)))
    image = network_input(image).to(next(model.parameters()).device)
    outputs = model(pixel_values=image)
    return outputs.logits[0].float(), upsample_to(outputs.pred_masks.float(), sample.image.shape[:2])[0]


def score_detr(
    model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    rule: QueryRule,
    *,
    size: tuple[int, int] | None,
    n_samples: int = 0,
    save_sample: SaveSample | None = None,
    save_counts: SaveCounts = not_kept,
    label: str = "",
) -> dict[str, dict]:
    """Scores of one data set for every threshold, in its own classes, into which predictions are merged.

    Parameters
    ----------
    n_samples : int
        Pictures of the first images that `save_sample` gets: image, truth and prediction by threshold.
    save_counts : function (name, counts)
        Takes "<threshold>.semantic_<subset>" and "<threshold>.panoptic", see `scoring.evaluate`.

    Returns
    -------
    dict
        {threshold as text: {"segments": mean number an image, "void": share of the pixels without a segment,
        and the scores of `evaluate.semantic_scores`, whose predicted map is the panoptic one; where the data
        set tells objects apart also those of `evaluate.panoptic_scores`}}
    """
    scored_as = dataset.label_set
    merged = np.append(merged_ids(label_set, scored_as), VOID)
    panoptic = {threshold: PanopticStats(label_set) for threshold in rule.thresholds}
    confusions = {threshold: [] for threshold in rule.thresholds}
    n_segments, void = dict.fromkeys(rule.thresholds, 0), dict.fromkeys(rule.thresholds, 0.0)
    with evaluating(model), torch.inference_mode():
        for index, sample in enumerate(one_by_one(dataset, label)):
            queries = predict_queries(model, sample, size)
            truth = panoptic_truth(sample, label_set) if dataset.has_instances else None
            maps = {"truth": truth}
            for threshold in rule.thresholds:
                found = panoptic_from_queries(
                    *queries, label_set, threshold=threshold, min_area=rule.min_area
                )
                semantic = merged[semantic_of(*found, label_set)]
                matrix = confusion_matrix(sample.semantic, semantic, scored_as.n_classes)
                confusions[threshold].append(matrix)
                n_segments[threshold] += len(found[1])
                void[threshold] += float((found[0] == 0).mean())
                if truth is not None:
                    panoptic[threshold].update(*truth, *found)
                maps[f"prediction-{threshold:g}"] = found
            if index < n_samples:
                save_pictures(save_sample, index, sample, label_set, maps)
    for threshold in rule.thresholds:
        part = in_part(save_counts, f"{threshold:g}.")
        save_semantic_counts(confusions[threshold], scored_as, part)
        if dataset.has_instances:
            part("panoptic", panoptic[threshold].counts())
    return {
        f"{threshold:g}": {
            "segments": n_segments[threshold] / len(dataset),
            "void": void[threshold] / len(dataset),
            **(panoptic_scores(panoptic[threshold]) if dataset.has_instances else {}),
            **semantic_scores(sum(confusions[threshold]), scored_as),
        }
        for threshold in rule.thresholds
    }


def semantic_of(
    panoptic_map: np.ndarray, segments_info: Sequence[Mapping], label_set: LabelSet
) -> np.ndarray:
    """int64 [H, W]: train ids of a panoptic map with ids 1 .. S in the order of its segments.

    Void is n_classes, a row after those of `merged_ids`.
    """
    return np.array([label_set.n_classes, *(s["category_id"] for s in segments_info)])[panoptic_map]
