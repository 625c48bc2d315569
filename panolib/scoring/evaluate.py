"""Score networks on a labelled data set, image by image at the images' own size.

What every image counts goes to `save_counts` (name, int64 [n_images, n_classes, n_counts]); the scores are
those of its sums:

==================================  ===================================================================
semantic_<subset>                   pixels of the classes of the subset: TP, FP, FN
panoptic.<instances>.<merge rule>   segments of all classes, `PanopticStats.counts`: TP, FP, FN, IoU sums
threat.<instances>.<masks>          instances of thing classes: TP, FP, FN
==================================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.inference.instances import found_instances, predict_instances
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.pictures import panoptic_picture
from panolib.inference.predict import one_by_one, predict, predict_image
from panolib.labels import LabelSet, merged_ids
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.from_counts import pooled_ratio
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix, iou_per_class, pixel_counts
from panolib.metrics.threat_score import ThreatScore
from panolib.objectness.candidates import quantised

SaveCounts = Callable[[str, np.ndarray], None]
SaveSample = Callable[[str, np.ndarray], None]  # name, picture uint8 [H, W, 3]


def not_kept(name: str, counts: np.ndarray) -> None:
    """Where counts of images go that nobody keeps."""


def in_part(save_counts: SaveCounts, part: str) -> SaveCounts:
    """The same with "<part>" before every name."""
    return lambda name, counts: save_counts(f"{part}{name}", counts)


def predicted_masks(
    semantic_model: nn.Module, dataset: Sequence[Sample], *, label: str = ""
) -> list[np.ndarray]:
    """uint8 [H, W] predicted train ids of every image."""
    return [
        prediction.semantic.to(torch.uint8).cpu().numpy()
        for prediction in predict(semantic_model, None, dataset, label=label)
    ]


def predicted_confidence(
    semantic_model: nn.Module, dataset: Sequence[Sample], *, label: str = ""
) -> list[np.ndarray]:
    """uint8 [H, W] levels of the confidence of the class map of every image (`candidates.quantised`)."""
    return [
        quantised(prediction.probabilities).cpu().numpy()
        for prediction in predict(semantic_model, None, dataset, label=label)
    ]


def predicted_instances(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    label: str = "",
    **options,
) -> list[np.ndarray]:
    """int32 [H, W] predicted instances of every image, 0 where none; options as `predict_instances`."""
    return [
        predict_instances(prediction.embeddings, prediction.semantic, label_set, **options)[0]
        .to(torch.int32).cpu().numpy()
        for prediction in predict(semantic_model, instance_model, dataset, label=label)
    ]  # fmt: skip


def score_semantic(
    model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    scored_as: LabelSet | None = None,
    save_counts: SaveCounts = not_kept,
    label: str = "",
) -> dict:
    """{"iou": {class: IoU}, "miou_<subset>": mean} with the Cityscapes protocol.

    `scored_as`: classes of the data set where they are not the network's; predictions are merged into them.
    """
    scored_as = scored_as or label_set
    merged = merged_ids(label_set, scored_as)
    confusions = []
    for prediction in predict(model, None, dataset, label=label):
        semantic = merged[prediction.semantic.cpu().numpy()]
        confusions.append(confusion_matrix(prediction.sample.semantic, semantic, scored_as.n_classes))
    save_semantic_counts(confusions, scored_as, save_counts)
    return semantic_scores(sum(confusions), scored_as)


def save_semantic_counts(
    confusions: Sequence[np.ndarray], label_set: LabelSet, save_counts: SaveCounts
) -> None:
    """What the confusion matrix of every image counts, for every subset of the label set."""
    for subset in label_set.subsets:
        ids = label_set.subset_ids(subset)
        save_counts(f"semantic_{subset}", np.stack([pixel_counts(matrix, ids) for matrix in confusions]))


def semantic_scores(confusion: np.ndarray, label_set: LabelSet) -> dict:
    """Scores of a confusion matrix, for every subset of the label set."""
    everything = iou_per_class(confusion, range(label_set.n_classes))
    scores: dict = {"iou": dict(zip(label_set.classes, everything.tolist()))}
    for subset in label_set.subsets:
        scores[f"miou_{subset}"] = float(np.nanmean(iou_per_class(confusion, label_set.subset_ids(subset))))
    return scores


def choose_clustering(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    bandwidths: Sequence[float],
    merge_distances: Sequence[float],
    min_size: int,
    thing_ids: Sequence[int] | None = None,
    tolerance: float = 0.0,
    label: str = "",
) -> dict:
    """Bandwidth and merge distance that suit the embeddings, by pooled threat score inside predicted masks.

    Masks are predicted because that is where the settings will be used: ragged masks want larger
    clusters than true ones. `dataset` must come from the training domain: choosing on the images that
    are reported would be tuning on the test set. `thing_ids`: only these classes count (default: all things).
    `tolerance` is that of `widest_within`.

    Returns
    -------
    dict
        {"bandwidth", "delta_dist", "grid": [{"bandwidth", "delta_dist", "threat_score"}]}
    """
    settings = [{"bandwidth": h, "delta_dist": d} for h in bandwidths for d in merge_distances]
    scores = [ThreatScore(label_set) for _ in settings]
    options = {"min_size": min_size, "thing_ids": thing_ids}
    for prediction in predict(semantic_model, instance_model, dataset, label=label):
        truth = panoptic_truth(prediction.sample, label_set)
        maps = (prediction.embeddings, prediction.semantic, label_set)
        for setting, score in zip(settings, scores):
            score.update(*truth, *predict_instances(*maps, **setting, **options))
    found = [threat_scores(score, thing_ids)["pooled"] for score in scores]
    grid = [{**setting, "threat_score": score} for setting, score in zip(settings, found)]
    return {**settings[widest_within(bandwidths, merge_distances, found, tolerance)], "grid": grid}


def widest_within(
    bandwidths: Sequence[float], others: Sequence, scores: Sequence[float], tolerance: float
) -> int:
    """Which of the settings, bandwidths times other ones, is taken for their scores in that order.

    That with the best score, or where one of a wider bandwidth has at most `tolerance` less, the best one of
    the widest such bandwidth: scores of the training domain that are hardly apart decide little, and a
    bandwidth that is too narrow breaks the objects of another domain into pieces, which self-training then
    learns (the choice is as that of the simplest model within one standard error, Breiman et al. 1984).
    """
    table = np.nan_to_num(scores).reshape(len(bandwidths), len(others))  # nan: without any object
    if tolerance == 0:
        return int(table.argmax())
    good = np.flatnonzero(table.max(1) >= table.max() - tolerance)
    row = max(good, key=lambda i: bandwidths[i])
    return int(row * len(others) + table[row].argmax())


def threat_scores(score: ThreatScore, class_ids: Sequence[int] | None = None) -> dict:
    """Threat score over thing classes (default: all), as class mean, and per class with its counts."""
    result = score.result(class_ids)
    names = [score.label_set.classes[class_id] for class_id in result.class_ids]
    return {
        "pooled": float(pooled_ratio(np.stack([result.tp, result.fp, result.fn], 1))),
        "class_mean": result.mean_pooled,
        "class_mean_of_image_means": result.mean_image_mean,
        "per_class": dict(zip(names, result.pooled.tolist(), strict=True)),
        "per_class_image_mean": dict(zip(names, result.image_mean.tolist(), strict=True)),
        **{name: int(getattr(result, name).sum()) for name in ("tp", "fp", "fn")},
    }


def panoptic_scores(stats: PanopticStats) -> dict:
    """PQ, SQ (both conventions), RQ and PQ+ means over every subset, and per class."""
    scores: dict = {}
    for subset in stats.label_set.subsets:
        result = stats.result(stats.label_set.subset_ids(subset))
        for name in ("pq", "sq", "sq_matched", "rq", "pq_plus"):
            scores[f"{name}_{subset}"] = getattr(result, f"mean_{name}")
    everything = stats.result()
    for name in ("pq", "sq", "rq", "pq_plus", "tp", "fp", "fn"):
        scores[name] = dict(zip(stats.label_set.classes, getattr(everything, name).tolist(), strict=True))
    return scores


def save_pictures(
    save_sample: SaveSample, index: int, sample: Sample, label_set: LabelSet, maps: Mapping[str, tuple]
) -> None:
    """Save "<index>-image", and panoptic maps as "<index>-<name>"."""
    save_sample(f"{index:02d}-image", sample.image)
    for name, found in maps.items():
        save_sample(f"{index:02d}-{name}", panoptic_picture(*found, label_set))


@torch.inference_mode()
def score_panoptic(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    min_size: int,
    merge_rules: Sequence[str],
    opening: int,
    min_region: int,
    n_samples: int,
    save_sample: SaveSample,
    save_counts: SaveCounts = not_kept,
    label: str = "",
    **clustering,
) -> dict:
    """Every score of one pair of networks, and a few pictures.

    Instances come from clustering embeddings inside predicted masks, and as controls from connected
    components of the same masks, and both once more inside the true masks.

    Parameters
    ----------
    min_size : int
        Smallest instance, in pixels of the embedding grid.
    merge_rules : sequence of str
        Panoptic merge rules; the first one is the headline, the others are reported beside it.
    opening : int
        Kernel of the morphological clean-up of instances, pixels; 0 switches it off.
    min_region : int
        Smallest true instance of the official AP, pixels.
    n_samples : int
        Pictures of the first images: image, truth, prediction.
    **clustering
        Of `clustering.cluster`, chosen on the training domain: bandwidth and delta_dist, or the algorithm.
    """
    first, common = merge_rules[0], {"min_size": min_size, "opening": opening}
    options = {
        "embedding": {**common, **clustering},
        "connected_components": {**common, "algorithm": "connected_components"},
    }
    merges = [*(("embedding", rule) for rule in merge_rules), ("connected_components", first)]
    panoptic = {merge: PanopticStats(label_set) for merge in merges}
    threat = {(method, mask): ThreatScore(label_set) for method in options for mask in ("predicted", "true")}
    average_precision = CityscapesAP(label_set, min_region=min_region)
    confusions = []

    for index, sample in enumerate(one_by_one(dataset, label)):
        outputs = predict_image(semantic_model, instance_model, sample)
        truth, true_masks = panoptic_truth(sample, label_set), torch.from_numpy(sample.semantic)
        semantic = outputs.semantic
        confusions.append(confusion_matrix(sample.semantic, semantic.cpu().numpy(), label_set.n_classes))
        instances = {}
        for method, own in options.items():
            instances[method] = found_instances(outputs, semantic, label_set, **own)
            threat[method, "predicted"].update(*truth, *instances[method])
            inside = found_instances(outputs, true_masks, label_set, **own)
            threat[method, "true"].update(*truth, *inside)
        average_precision.update(*truth, *instances["embedding"], void=sample.ignored)
        merged = {
            (method, rule): merge_panoptic(semantic, instances[method][0], label_set, rule=rule)
            for method, rule in merges
        }
        for merge, found in merged.items():
            panoptic[merge].update(*truth, *found)
        if index < n_samples:
            maps = {"truth": truth, "prediction": merged["embedding", first]}
            save_pictures(save_sample, index, sample, label_set, maps)

    save_semantic_counts(confusions, label_set, save_counts)
    for (method, rule), stats in panoptic.items():
        save_counts(f"panoptic.{method}.{rule}", stats.counts())
    for (method, mask), score in threat.items():
        save_counts(f"threat.{method}.{mask}", score.counts())

    ap, counts = average_precision.result(), threat["embedding", "predicted"].counts().sum(0)  # [T, 3]
    return {
        **panoptic_scores(panoptic["embedding", first]),
        "merge": {rule: panoptic_scores(panoptic["embedding", rule]) for rule in merge_rules},
        "connected_components": panoptic_scores(panoptic["connected_components", first]),
        "threat": {
            f"{method} in {mask} masks": threat_scores(score) for (method, mask), score in threat.items()
        },
        "ap": ap.mean_ap,
        "ap50": ap.mean_ap50,
        "ap50_per_class": dict(zip(label_set.things, ap.ap50.tolist(), strict=True)),
        "n_images": len(dataset),
        "n_instances": dict(zip(label_set.things, (counts[:, 0] + counts[:, 2]).tolist(), strict=True)),
        **semantic_scores(sum(confusions), label_set),
    }
