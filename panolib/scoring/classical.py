"""Instances without embeddings, as controls: a mask is cut into components or by the watershed of its shape.

The mask is Otsu's threshold of the grey values, which needs no training at all, or what a semantic network
predicts. Settings are chosen on labelled images of the training domain, like those of clustering.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor, nn

from panolib.clustering.algorithms import connected_components
from panolib.clustering.labels import drop_small_clusters
from panolib.clustering.watershed import watershed
from panolib.data.samples import Sample
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.predict import one_by_one, predict_image
from panolib.labels import LabelSet
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix
from panolib.metrics.threat_score import ThreatScore
from panolib.scoring.evaluate import (
    SaveCounts,
    SaveSample,
    not_kept,
    panoptic_scores,
    save_pictures,
    save_semantic_counts,
    semantic_scores,
    threat_scores,
)

ClassicalAlgorithm = Literal["connected_components", "watershed"]
MaskOf = Callable[[Sample, float], np.ndarray]  # image, smoothing -> bool [H, W]


class Setting(NamedTuple):
    """How a mask is made and cut, in pixels."""

    smoothing: float  # of the image before its threshold
    sigma: float  # of the distances, and the rest as in `watershed`
    min_distance: int
    min_size: int  # smaller instances are dropped

    def of_any_size(self) -> Setting:
        """The same without dropping any."""
        return self._replace(min_size=0)


def settings_grid(
    algorithm: ClassicalAlgorithm,
    smoothings: Iterable[float],
    sigmas: Iterable[float],
    min_distances: Iterable[int],
    min_sizes: Iterable[int],
) -> list[Setting]:
    """Every combination that makes a difference: components have no peaks."""
    if algorithm == "connected_components":
        sigmas, min_distances = (0.0,), (1,)
    return [Setting(*values) for values in itertools.product(smoothings, sigmas, min_distances, min_sizes)]


def otsu_mask(sample: Sample, smoothing: float = 0.0) -> np.ndarray:
    """bool [H, W]: pixels that are brighter than Otsu's threshold of the image; none where all are equal.

    References
    ----------
    Otsu 1979, A threshold selection method from gray-level histograms; scikit-image.
    """
    from skimage.filters import threshold_otsu  # half a second to import: only for those who use it

    grey = sample.image.mean(-1)
    if smoothing > 0:
        grey = scipy.ndimage.gaussian_filter(grey, smoothing)
    return grey > threshold_otsu(grey)


def predicted_mask(model: nn.Module, label_set: LabelSet) -> MaskOf:
    """What a semantic network calls a thing; the image is not smoothed."""
    things = list(label_set.thing_ids)

    def mask_of(sample: Sample, smoothing: float) -> np.ndarray:
        return np.isin(predict_image(model, None, sample).semantic.cpu().numpy(), things)

    return mask_of


def cut(mask: np.ndarray, algorithm: ClassicalAlgorithm, setting: Setting) -> Tensor:
    """int64 [H, W]: instances of a mask, 0 where none."""
    inside = torch.from_numpy(mask)
    if algorithm == "watershed":
        labels = watershed(inside, min_distance=setting.min_distance, sigma=setting.sigma)
    else:
        labels = connected_components(inside)
    return drop_small_clusters(labels, setting.min_size)


def choose_setting(
    mask_of: MaskOf,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    algorithm: ClassicalAlgorithm,
    settings: Sequence[Setting],
    *,
    label: str = "",
) -> tuple[Setting, list[dict]]:
    """The setting with the best PQ of things, and what each gave: [{field of `Setting`: value, "pq": PQ}].

    `dataset` must come from the training domain, as for `evaluate.choose_clustering`.
    """
    stats = {setting: PanopticStats(label_set) for setting in settings}
    for sample in one_by_one(dataset, label):
        truth = panoptic_truth(sample, label_set)
        masks = {smoothing: mask_of(sample, smoothing) for smoothing in {s.smoothing for s in settings}}
        whole = {s: cut(masks[s.smoothing], algorithm, s) for s in {s.of_any_size() for s in settings}}
        for setting in settings:
            semantic = two_classes(masks[setting.smoothing], label_set)
            instances = drop_small_clusters(whole[setting.of_any_size()], setting.min_size)
            stats[setting].update(*truth, *merge_panoptic(semantic, instances, label_set))
    best, grid = best_by_pq([setting._asdict() for setting in settings], stats.values())
    return settings[best], grid


def best_by_pq(settings: Sequence[Mapping], stats: Iterable[PanopticStats]) -> tuple[int, list[dict]]:
    """Which setting has the best PQ of things, and all settings with their "pq"."""
    pq = [found.result(found.label_set.thing_ids).mean_pq for found in stats]
    return int(np.argmax(np.nan_to_num(pq))), [{**s, "pq": value} for s, value in zip(settings, pq)]


def two_classes(mask: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """uint8 [H, W]: the thing class inside a mask, the other one outside. ValueError for other label sets."""
    if len(label_set.thing_ids) != 1 or len(label_set.stuff_ids) != 1:
        raise ValueError(
            f"{label_set.name}: expected one thing and one stuff class, found {label_set.classes}"
        )
    return np.where(mask, label_set.thing_ids[0], label_set.stuff_ids[0]).astype(np.uint8)


def score_classical(
    mask_of: MaskOf,
    selection: Sequence[Sample],
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    algorithm: ClassicalAlgorithm,
    settings: Sequence[Setting],
    label: str = "",
    **options,
) -> dict:
    """Scores of the setting that is best on `selection`; options as of `score_instances`.

    Returns
    -------
    dict
        "chosen": the setting; "grid": see `choose_setting`; and what `score_instances` returns.
    """
    chosen, grid = choose_setting(mask_of, selection, label_set, algorithm, settings, label=label)

    def find(sample: Sample) -> tuple[np.ndarray, Tensor]:
        mask = mask_of(sample, chosen.smoothing)
        return two_classes(mask, label_set), cut(mask, algorithm, chosen)

    scores = score_instances(find, dataset, label_set, algorithm=algorithm, label=label, **options)
    return {"chosen": chosen._asdict(), "grid": grid, **scores}


def score_instances(
    find: Callable[[Sample], tuple[np.ndarray, Tensor]],
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    algorithm: str,
    masks: str,
    merge_rules: Sequence[str],
    n_samples: int,
    save_sample: SaveSample,
    save_counts: SaveCounts = not_kept,
    label: str = "",
) -> dict:
    """Scores as those of `evaluate.score_panoptic` of what `find` says of a sample, of one thing class.

    `find` gives train ids uint8 [H, W] and instances int64 [H, W], 0 or 1 .. K; `algorithm` and `masks` are
    what these are called in "threat" and in the names of counts.

    Returns
    -------
    dict
        The panoptic scores with the first merge rule, those of all under "merge"; "threat"; semantic scores;
        "n_images".
    """
    panoptic = {rule: PanopticStats(label_set) for rule in merge_rules}
    threat, confusions = ThreatScore(label_set), []
    for index, sample in enumerate(one_by_one(dataset, label)):
        truth, (semantic, instances) = panoptic_truth(sample, label_set), find(sample)
        confusions.append(confusion_matrix(sample.semantic, semantic, label_set.n_classes))
        merged = {rule: merge_panoptic(semantic, instances, label_set, rule=rule) for rule in merge_rules}
        for rule, found in merged.items():
            panoptic[rule].update(*truth, *found)
        table = [{"id": i, "category_id": label_set.thing_ids[0]} for i in range(1, int(instances.max()) + 1)]
        threat.update(*truth, instances, table)
        if index < n_samples:
            maps = {"truth": truth, "prediction": merged[merge_rules[0]]}
            save_pictures(save_sample, index, sample, label_set, maps)

    save_semantic_counts(confusions, label_set, save_counts)
    for rule, stats in panoptic.items():
        save_counts(f"panoptic.{algorithm}.{rule}", stats.counts())
    save_counts(f"threat.{algorithm}.{masks}", threat.counts())
    merge = {rule: panoptic_scores(stats) for rule, stats in panoptic.items()}
    return {
        **merge[merge_rules[0]],
        "merge": merge,
        "threat": {f"{algorithm} in {masks} masks": threat_scores(threat)},
        "n_images": len(dataset),
        **semantic_scores(sum(confusions), label_set),
    }
