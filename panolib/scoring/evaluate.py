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

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.inference.instances import found_instances, predict_instances
from panolib.inference.panoptic import merge_panoptic, panoptic_truth, predict_panoptic
from panolib.inference.pictures import panoptic_picture
from panolib.inference.predict import one_by_one, predict
from panolib.labels import LabelSet, merged_ids
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix, iou_per_class, pixel_counts
from panolib.metrics.threat_score import ThreatScore
from panolib.objectness.candidates import quantised

SaveCounts = Callable[[str, np.ndarray], None]


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
    everything = tuple(range(label_set.n_classes))
    scores: dict = {"iou": dict(zip(label_set.classes, iou_per_class(confusion, everything).tolist()))}
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
    label: str = "",
) -> dict:
    """Bandwidth and merge distance with the best pooled threat score inside predicted class masks.

    Masks are predicted because that is where the settings will be used: ragged masks want larger
    clusters than true ones. `dataset` must come from the training domain: choosing on the images that
    are reported would be tuning on the test set. `thing_ids`: only these classes count (default: all things).

    Returns
    -------
    dict
        {"bandwidth", "delta_dist", "grid": [{"bandwidth", "delta_dist", "threat_score"}]}
    """
    settings = [(h, d) for h in bandwidths for d in merge_distances]
    scores = {setting: ThreatScore(label_set) for setting in settings}
    for prediction in predict(semantic_model, instance_model, dataset, label=label):
        truth = panoptic_truth(prediction.sample, label_set)
        for bandwidth, delta_dist in settings:
            options = {"bandwidth": bandwidth, "delta_dist": delta_dist, "min_size": min_size}
            options["thing_ids"] = thing_ids
            scores[bandwidth, delta_dist].update(
                *truth, *predict_instances(prediction.embeddings, prediction.semantic, label_set, **options)
            )
    grid = [
        {"bandwidth": h, "delta_dist": d, "threat_score": threat_scores(scores[h, d], thing_ids)["pooled"]}
        for h, d in settings
    ]
    best = max(grid, key=lambda row: row["threat_score"])
    return {"bandwidth": best["bandwidth"], "delta_dist": best["delta_dist"], "grid": grid}


def threat_scores(score: ThreatScore, class_ids: Sequence[int] | None = None) -> dict:
    """Threat score over thing classes (default: all), as class mean, and per class with its counts."""
    result = score.result(class_ids)
    names = [score.label_set.classes[class_id] for class_id in result.class_ids]
    counted = int(result.tp.sum() + result.fp.sum() + result.fn.sum())
    return {
        "pooled": float(result.tp.sum() / counted) if counted else float("nan"),
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
        scores |= {
            f"pq_{subset}": result.mean_pq,
            f"sq_{subset}": result.mean_sq,
            f"sq_matched_{subset}": result.mean_sq_matched,
            f"rq_{subset}": result.mean_rq,
            f"pq_plus_{subset}": result.mean_pq_plus,
        }
    everything = stats.result()
    for name in ("pq", "sq", "rq", "pq_plus", "tp", "fp", "fn"):
        scores[name] = dict(zip(stats.label_set.classes, getattr(everything, name).tolist(), strict=True))
    return scores


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
    save_sample: Callable[[str, np.ndarray], None],
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
    panoptic = {rule: PanopticStats(label_set) for rule in merge_rules}
    component_panoptic = PanopticStats(label_set)
    methods = ("embedding", "connected_components")
    threat = {(method, mask): ThreatScore(label_set) for method in methods for mask in ("predicted", "true")}
    average_precision = CityscapesAP(label_set, min_region=min_region)
    confusions = []
    n_instances = np.zeros(label_set.n_classes, np.int64)

    first = merge_rules[0]
    common = {"min_size": min_size, "opening": opening}
    options = {
        "embedding": {**common, **clustering},
        "connected_components": {**common, "algorithm": "connected_components"},
    }

    for index, sample in enumerate(one_by_one(dataset, label)):
        found = predict_panoptic(
            semantic_model, instance_model, sample, label_set, rule=first, **options["embedding"]
        )
        truth, semantic = panoptic_truth(sample, label_set), found.outputs.semantic
        confusions.append(confusion_matrix(sample.semantic, semantic.cpu().numpy(), label_set.n_classes))
        for segment in truth[1]:
            n_instances[segment["category_id"]] += segment["isthing"] and not segment["iscrowd"]
        average_precision.update(*truth, *found.instances, void=sample.ignored)
        for rule in merge_rules:
            merged = found.panoptic
            if rule != first:
                merged = merge_panoptic(semantic, found.instances[0], label_set, rule=rule)
            panoptic[rule].update(*truth, *merged)

        components = found_instances(found.outputs, semantic, label_set, **options["connected_components"])
        component_panoptic.update(*truth, *merge_panoptic(semantic, components[0], label_set, rule=first))
        threat["embedding", "predicted"].update(*truth, *found.instances)
        threat["connected_components", "predicted"].update(*truth, *components)
        for method in methods:
            inside = found_instances(
                found.outputs, torch.from_numpy(sample.semantic), label_set, **options[method]
            )
            threat[method, "true"].update(*truth, *inside)
        if index < n_samples:
            save_sample(f"{index:02d}-image", sample.image)
            save_sample(f"{index:02d}-truth", panoptic_picture(*truth, label_set))
            save_sample(f"{index:02d}-prediction", panoptic_picture(*found.panoptic, label_set))

    save_semantic_counts(confusions, label_set, save_counts)
    for rule, stats in panoptic.items():
        save_counts(f"panoptic.embedding.{rule}", stats.counts())
    save_counts(f"panoptic.connected_components.{first}", component_panoptic.counts())
    for (method, mask), score in threat.items():
        save_counts(f"threat.{method}.{mask}", score.counts())

    ap = average_precision.result()
    return {
        **panoptic_scores(panoptic[first]),
        "merge": {rule: panoptic_scores(stats) for rule, stats in panoptic.items()},
        "connected_components": panoptic_scores(component_panoptic),
        "threat": {
            f"{method} in {mask} masks": threat_scores(score) for (method, mask), score in threat.items()
        },
        "ap": ap.mean_ap,
        "ap50": ap.mean_ap50,
        "ap50_per_class": dict(zip(label_set.things, ap.ap50.tolist(), strict=True)),
        "n_images": len(dataset),
        "n_instances": dict(
            zip(label_set.things, n_instances[list(label_set.thing_ids)].tolist(), strict=True)
        ),
        **semantic_scores(sum(confusions), label_set),
    }
