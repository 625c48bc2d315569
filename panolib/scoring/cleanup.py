"""What is done with clusters before they are objects: small ones, thin ones, pixels that are in none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.inference.instances import found_instances, opened
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.predict import predict_image
from panolib.labels import LabelSet
from panolib.metrics.panoptic import PanopticStats
from panolib.scoring.classical import best_by_pq
from panolib.scoring.evaluate import one_by_one


@torch.inference_mode()
def choose_cleanup(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    min_sizes: Sequence[int],
    openings: Sequence[int],
    merge_rules: Sequence[str],
    label: str = "",
    **clustering,
) -> dict:
    """The clean-up with the best PQ of things: smallest instance, opening, who gets leftover pixels.

    `dataset` must come from the training domain, as for `evaluate.choose_clustering`; of equal settings the
    first is taken. `min_sizes` are in pixels of the embedding grid, `openings` kernels in pixels (0: none),
    `merge_rules` and `clustering` as in `evaluate.score_panoptic`.

    Returns
    -------
    dict
        {"min_size", "opening", "merge_rule", "grid": [{the same, "pq": PQ}]}
    """
    choices = itertools.product(min_sizes, openings, merge_rules)
    settings = [dict(zip(("min_size", "opening", "merge_rule"), choice)) for choice in choices]
    stats = [PanopticStats(label_set) for _ in settings]
    for sample in one_by_one(dataset, label):
        outputs = predict_image(semantic_model, instance_model, sample)
        truth, found = panoptic_truth(sample, label_set), {}
        for setting, score in zip(settings, stats):
            size, kernel = setting["min_size"], setting["opening"]
            if size not in found:
                found[size] = found_instances(
                    outputs, outputs.semantic, label_set, opening=0, min_size=size, **clustering
                )
            if (size, kernel) not in found:
                found[size, kernel] = opened(*found[size], kernel)
            instances = found[size, kernel][0]
            merged = merge_panoptic(outputs.semantic, instances, label_set, rule=setting["merge_rule"])
            score.update(*truth, *merged)
    best, grid = best_by_pq(settings, stats)
    return {**settings[best], "grid": grid}
