"""How pixels of a mask become objects: clustering, and what is done with small, thin and leftover parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.inference.instances import found_instances, opened
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.predict import one_by_one, predict_image
from panolib.labels import LabelSet
from panolib.metrics import from_counts
from panolib.metrics.panoptic import PanopticStats
from panolib.scoring.classical import best_by_pq
from panolib.scoring.evaluate import widest_within


@torch.inference_mode()
def choose_cleanup(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    bandwidths: Sequence[float],
    merge_distances: Sequence[float],
    min_sizes: Sequence[int],
    openings: Sequence[int],
    merge_rules: Sequence[str],
    label: str = "",
) -> dict:
    """Clustering and clean-up by the PQ of things: within a standard error of the best, the widest bandwidth.

    `dataset` must come from the training domain, as for `evaluate.choose_clustering`;
    `evaluate.widest_within` says why a wide bandwidth is taken. `bandwidths` and `merge_distances` are in
    units of the embeddings, `min_sizes` in pixels of their grid, `openings` kernels in pixels (0: none),
    `merge_rules` as in `merge_panoptic`. Of equal settings the first is taken.

    Returns
    -------
    dict
        {"bandwidth", "delta_dist", "min_size", "opening", "merge_rule", "standard_error": of the best PQ,
        over images; "grid": [{the settings, "pq": PQ}]}
    """
    names = ("bandwidth", "delta_dist", "min_size", "opening", "merge_rule")
    choices = [bandwidths, merge_distances, min_sizes, openings, merge_rules]
    settings = [dict(zip(names, values)) for values in itertools.product(*choices)]
    stats = [PanopticStats(label_set) for _ in settings]
    for sample in one_by_one(dataset, label):
        outputs = predict_image(semantic_model, instance_model, sample)
        truth, found = panoptic_truth(sample, label_set), {}
        for setting, score in zip(settings, stats):
            *clustering, opening, rule = setting.values()
            clustered, cleaned = tuple(clustering), (*clustering, opening)
            if clustered not in found:
                options = dict(zip(names, clustered))
                found[clustered] = found_instances(
                    outputs, outputs.semantic, label_set, opening=0, **options
                )
            if cleaned not in found:
                found[cleaned] = opened(*found[clustered], opening)
            merged = merge_panoptic(outputs.semantic, found[cleaned][0], label_set, rule=rule)
            score.update(*truth, *merged)
    best, grid = best_by_pq(settings, stats)
    error, others = standard_error(stats[best]), list(itertools.product(*choices[1:]))
    chosen = settings[widest_within(bandwidths, others, [row["pq"] for row in grid], error)]
    return {**chosen, "standard_error": error, "grid": grid}


def standard_error(stats: PanopticStats) -> float:
    """That of the mean PQ of things, by leaving out one image at a time (the jackknife); 0 where it has none.

    As in the rule of Breiman et al. it is that of one score: that others are of the same images is not used.

    References
    ----------
    Breiman et al. 1984, Classification and Regression Trees: the simplest model within one standard error.
    """
    images = np.array(stats.images)[:, list(stats.label_set.thing_ids)]
    without = from_counts.class_mean(from_counts.pq(images.sum(0) - images, 1.0))
    return float(np.nan_to_num(np.sqrt((len(images) - 1) * without.var())))
