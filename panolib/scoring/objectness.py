"""How well objectness, and simpler filters, tell real clusters from false ones, and rank detections.

Filters are functions of the features of clusters; higher values are better:

==========  ======================================================================
boosting    calibrated probability of the trees
head        probability of the perceptron
size        pixels of the cluster
stability   median IoU with what second embeddings cut out
confidence  mean confidence of the class mask
==========  ======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from panolib.data.images import resize_labels
from panolib.data.samples import Sample
from panolib.inference.instances import present_rows
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.predict import one_by_one
from panolib.labels import LabelSet
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.averages import ratio
from panolib.metrics.from_counts import false_share, pooled_ratio
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.threat_score import ThreatScore
from panolib.objectness.candidates import Candidates, clusters, only, view
from panolib.objectness.classifier import Objectness
from panolib.objectness.features import NAMES
from panolib.scoring.evaluate import SaveCounts, panoptic_scores

FILTERS = ("boosting", "head", "size", "stability", "confidence")
RECALLS = (0.95, 0.9, 0.8)  # shares of the real clusters that are kept
COMPARED = 0.9  # of which counts are kept
N_CURVE = 51  # points of a ROC curve


def filter_values(objectness: Objectness, values: np.ndarray, pooled: np.ndarray) -> dict[str, np.ndarray]:
    """{filter: float64 [N]} of features [N, F] and the encoder's [N, C]."""
    columns = {"size": "log_area", "stability": "stability", "confidence": "confidence"}
    found = {name: objectness.probability(values, pooled, name) for name in ("boosting", "head")}
    return found | {name: values[:, NAMES.index(column)] for name, column in columns.items()}


def threshold_at(value: np.ndarray, real: np.ndarray, recall: float) -> float:
    """Largest threshold that keeps a share of the real clusters; -inf without one."""
    good = np.sort(value[real])[::-1]
    return float(good[int(np.ceil(recall * len(good))) - 1]) if len(good) else -np.inf


def area_under_roc(value: np.ndarray, real: np.ndarray) -> float:
    """Chance that a real cluster has a higher value than a false one, ties half; NaN without either."""
    good, bad = np.sort(value[real]), value[~real]
    if not len(good) or not len(bad):
        return float("nan")
    above = len(good) - (np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")) / 2
    return float(above.mean() / len(good))


def roc(value: np.ndarray, real: np.ndarray) -> list[float]:
    """Share of the real clusters kept at `N_CURVE` even shares of the false ones; [] without either."""
    good, bad = np.sort(value[real]), np.sort(value[~real])
    if not len(good) or not len(bad):
        return []
    least = np.concatenate([[np.inf], np.unique(value)[::-1]])  # of equal values all are kept, or none
    x, y = (1 - np.searchsorted(part, least, "left") / len(part) for part in (bad, good))
    grid = np.linspace(0, 1, N_CURVE)
    before = np.searchsorted(x, grid, "right") - 1
    after = np.minimum(before + 1, len(x) - 1)
    along = (grid - x[before]) / np.maximum(x[after] - x[before], 1e-12)
    return (y[before] + along * (y[after] - y[before])).tolist()


def score_filters(
    objectness: Objectness, found: Candidates, *, save_counts: SaveCounts, name: str
) -> dict:
    """Every filter on the clusters of one data set; the spoilt masks among them do not count.

    Counts of every image go to "objectness.<name>.<filter>", int64 [n_images, 1, 3]: real and false clusters
    that are kept where `COMPARED` of the real ones are, and real ones that are not.

    Returns
    -------
    dict
        "n_clusters", "n_real"; "filters": {filter: {"auc", "precision_95", "false_kept_95", ...}}, precision
        and kept share of the false ones at every recall of `RECALLS`; "roc": {filter: values of `roc`}.
    """
    rows = ~found.spoilt
    real, image = found.real[rows], found.image[rows]
    scores, curves = {}, {}
    for filter_name, value in filter_values(objectness, found.values[rows], found.pooled[rows]).items():
        scores[filter_name] = {"auc": area_under_roc(value, real)}
        curves[filter_name] = roc(value, real)
        for recall in RECALLS:
            kept = value >= threshold_at(value, real, recall)
            at = f"{100 * recall:.0f}"
            scores[filter_name][f"precision_{at}"] = float(ratio((kept & real).sum(), kept.sum()))
            scores[filter_name][f"false_kept_{at}"] = float(ratio((kept & ~real).sum(), (~real).sum()))
            if recall == COMPARED:
                parts = (kept & real, kept & ~real, ~kept & real)
                counts = [np.bincount(image[part], minlength=found.n_images) for part in parts]
                save_counts(f"objectness.{name}.{filter_name}", np.stack(counts, 1)[:, None])
    return {"n_clusters": len(real), "n_real": int(real.sum()), "filters": scores, "roc": curves}


@torch.inference_mode()
def score_ranking(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    objectness: Objectness,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    bandwidth: float,
    delta_dist: float,
    min_size: int,
    min_region: int,
    least: Mapping[str, float],
    blur: Sequence[float] | None,
    seed: int,
    save_counts: SaveCounts,
    label: str = "",
) -> dict:
    """Official AP with detections ranked by every filter, and PQ and threat score without doubtful ones.

    Parameters
    ----------
    min_region : int
        Smallest true instance of the official AP, pixels.
    least : mapping of filter to float
        Detections below are dropped; "none" drops none and is always there.

    Returns
    -------
    dict
        "ap": {filter: {"ap", "ap50"}}; "kept": {filter: {"pq": {class: PQ}, "pq_<subset>", "threat": ..}}.
    """
    rankings = {name: CityscapesAP(label_set, min_region=min_region) for name in FILTERS}
    kept = {name: (PanopticStats(label_set), ThreatScore(label_set)) for name in ("none", *least)}
    for sample in one_by_one(dataset, label):
        found = view(semantic_model, instance_model, sample, blur=blur, seed=seed)
        labels, table = clusters(
            found, label_set, min_size=min_size, bandwidth=bandwidth, delta_dist=delta_dist
        )
        described = found.describe(labels, bandwidth=bandwidth)
        values = filter_values(objectness, described.values, described.pooled)
        semantic = found.prediction.semantic
        truth = panoptic_truth(sample, label_set)
        whole = _at_full_size(labels, table, semantic)
        for name, ranking in rankings.items():
            rows = [row | {"confidence": float(values[name][row["id"] - 1])} for row in whole[1]]
            ranking.update(*truth, whole[0], rows, void=sample.ignored)
        for name, (panoptic, threat) in kept.items():
            good = np.ones(len(table), bool) if name == "none" else values[name] >= least[name]
            rows = [row for row, is_good in zip(table, good, strict=True) if is_good]
            rows = [row | {"id": k} for k, row in enumerate(rows, start=1)]
            instances, rows = _at_full_size(only(labels, good), rows, semantic)
            panoptic.update(*truth, *merge_panoptic(semantic, instances, label_set))
            threat.update(*truth, instances, rows)
    scores = {}
    for name, (panoptic, threat) in kept.items():
        save_counts(f"panoptic.{name}.void", panoptic.counts())
        save_counts(f"threat.{name}.predicted", threat.counts())
        scores[name] = _kept_scores(panoptic, threat)
    results = {name: ranking.result() for name, ranking in rankings.items()}
    ap = {name: {"ap": result.mean_ap, "ap50": result.mean_ap50} for name, result in results.items()}
    return {"ap": ap, "kept": scores, "n_images": len(dataset)}


def _at_full_size(labels, table: Sequence[dict], semantic):
    """Clusters at the size of the class map, cut to their class; ids stay, rows of what vanishes go."""
    category = torch.tensor([-1] + [row["category_id"] for row in table], device=labels.device)
    large = resize_labels(labels, semantic.shape)
    large = torch.where(category[large] == semantic, large, 0)
    return large, present_rows(large, table)


def _kept_scores(panoptic: PanopticStats, threat: ThreatScore) -> dict:
    """PQ of every subset and class; pooled threat score, false share and counts."""
    scores, counts = panoptic_scores(panoptic), threat.counts().sum(0)
    names = [f"pq_{subset}" for subset in panoptic.label_set.subsets]
    return {
        **{name: scores[name] for name in (*names, "pq")},
        "threat_pooled": float(pooled_ratio(counts)),
        "threat_false": float(false_share(counts)),
        **dict(zip(("threat_tp", "threat_fp", "threat_fn"), counts.sum(0).tolist())),
    }
