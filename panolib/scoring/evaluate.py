"""Score networks on a labelled data set, image by image at the images' own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from panolib.data import photometry
from panolib.data.samples import Sample
from panolib.inference.panoptic import (
    clean_instances,
    embed_images,
    merge_panoptic,
    panoptic_truth,
    predict_instances,
)
from panolib.labels import LabelSet, merged_ids
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix, iou_per_class
from panolib.metrics.threat_score import ThreatScore
from panolib.models.geometry import placement_of, upsample_to
from panolib.training.semantic import to_image


@dataclass(frozen=True)
class Prediction:
    """Network outputs for one image: class probabilities [C, H, W] and embeddings [E, h, w].

    Raises FloatingPointError for probabilities that are not finite: of nan, too, one class is "the largest".
    """

    sample: Sample
    probabilities: Tensor | None
    embeddings: Tensor | None

    def __post_init__(self):
        if self.probabilities is not None and not torch.isfinite(self.probabilities.sum()):
            raise FloatingPointError(
                f"{self.sample.id}: the network's class probabilities hold nan, expected finite numbers"
            )

    @property
    def semantic(self) -> Tensor:
        return self.probabilities.argmax(0)


def predict(
    semantic_model: nn.Module | None,
    instance_model: nn.Module | None,
    dataset: Sequence[Sample],
    *,
    label: str = "",
) -> Iterator[Prediction]:
    """Outputs of the networks for every image, at its own size, without changing any weight or buffer."""
    models = [model.eval() for model in (semantic_model, instance_model) if model is not None]
    device = next(models[0].parameters()).device
    with torch.inference_mode():
        for index in tqdm(range(len(dataset)), desc=label or "predict", leave=False, disable=not label):
            sample = dataset[index]
            image = photometry.normalise(to_image(sample)[None]).to(device)
            probabilities = embeddings = None
            if semantic_model is not None:
                logits = semantic_model(image).float()
                logits = upsample_to(logits, image.shape[-2:], placement_of(semantic_model))
                probabilities = logits[0].softmax(0)
            if instance_model is not None:
                embeddings = embed_images(instance_model, image)[0]
            yield Prediction(sample, probabilities, embeddings)


def predicted_masks(
    semantic_model: nn.Module, dataset: Sequence[Sample], *, label: str = ""
) -> list[np.ndarray]:
    """uint8 [H, W] predicted train ids of every image."""
    return [
        prediction.semantic.to(torch.uint8).cpu().numpy()
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


def found_instances(
    prediction: Prediction, semantic: Tensor, label_set: LabelSet, *, opening: int, **options
) -> tuple[Tensor, list[dict]]:
    """`predict_instances` of one image with confidences, after the morphological clean-up.

    Parameters
    ----------
    prediction : Prediction
        With embeddings.
    semantic : integer Tensor [H, W]
        Class masks in which instances are looked for: the predicted ones, or the true ones.
    opening : int
        Kernel of `clean_instances`, pixels; 0 switches it off. Rows of instances that vanish are left out.
    **options
        As `predict_instances`.
    """
    instances, table = predict_instances(
        prediction.embeddings, semantic, label_set, probabilities=prediction.probabilities, **options
    )
    if opening:
        instances = clean_instances(instances, kernel=opening)
        present = set(instances.unique().tolist())
        table = [row for row in table if row["id"] in present]
    return instances, table


def score_semantic(
    model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    scored_as: LabelSet | None = None,
    label: str = "",
) -> dict:
    """{"iou": {class: IoU}, "miou_<subset>": mean} with the Cityscapes protocol.

    `scored_as`: classes of the data set where they are not the network's; predictions are merged into them.
    """
    scored_as = scored_as or label_set
    merged = merged_ids(label_set, scored_as)
    confusion = np.zeros((scored_as.n_classes + 1,) * 2, np.int64)
    for prediction in predict(model, None, dataset, label=label):
        semantic = merged[prediction.semantic.cpu().numpy()]
        confusion += confusion_matrix(prediction.sample.semantic, semantic, scored_as.n_classes)
    return semantic_scores(confusion, scored_as)


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


def score_panoptic(
    semantic_model: nn.Module,
    instance_model: nn.Module,
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    bandwidth: float,
    delta_dist: float,
    min_size: int,
    merge_rules: Sequence[str],
    opening: int,
    min_region: int,
    n_samples: int,
    save_sample: Callable[[str, np.ndarray], None],
    label: str = "",
) -> dict:
    """Every score of one pair of networks, and a few pictures.

    Instances come from clustering embeddings inside predicted masks, and as controls from connected
    components of the same masks, and both once more inside the true masks.

    Parameters
    ----------
    bandwidth, delta_dist, min_size
        Clustering settings, chosen on the training domain; `min_size` in pixels of the embedding grid.
    merge_rules : sequence of str
        Panoptic merge rules; the first one is the headline, the others are reported beside it.
    opening : int
        Kernel of the morphological clean-up of instances, pixels; 0 switches it off.
    min_region : int
        Smallest true instance of the official AP, pixels.
    n_samples : int
        Pictures of the first images: image, truth, prediction.
    """
    panoptic = {rule: PanopticStats(label_set) for rule in merge_rules}
    component_panoptic = PanopticStats(label_set)
    methods = ("embedding", "connected_components")
    threat = {(method, mask): ThreatScore(label_set) for method in methods for mask in ("predicted", "true")}
    average_precision = CityscapesAP(label_set, min_region=min_region)
    confusion = np.zeros((label_set.n_classes + 1,) * 2, np.int64)
    n_instances = np.zeros(label_set.n_classes, np.int64)

    for index, prediction in enumerate(predict(semantic_model, instance_model, dataset, label=label)):
        sample = prediction.sample
        truth = panoptic_truth(sample, label_set)
        masks = {"predicted": prediction.semantic, "true": torch.from_numpy(sample.semantic)}
        confusion += confusion_matrix(sample.semantic, masks["predicted"].cpu().numpy(), label_set.n_classes)
        for segment in truth[1]:
            n_instances[segment["category_id"]] += segment["isthing"] and not segment["iscrowd"]

        for mask, semantic in masks.items():
            for method in methods:
                algorithm = "mean_shift_plus" if method == "embedding" else method
                options = {"bandwidth": bandwidth, "delta_dist": delta_dist} if method == "embedding" else {}
                instances, table = found_instances(
                    prediction, semantic, label_set,
                    algorithm=algorithm, min_size=min_size, opening=opening, **options,
                )  # fmt: skip
                threat[method, mask].update(*truth, instances, table)
                if mask == "true":
                    continue
                if method == "connected_components":
                    component_panoptic.update(
                        *truth, *merge_panoptic(semantic, instances, label_set, rule=merge_rules[0])
                    )
                    continue
                average_precision.update(*truth, instances, table, void=sample.ignored)
                for rule in merge_rules:
                    merged = merge_panoptic(semantic, instances, label_set, rule=rule)
                    panoptic[rule].update(*truth, *merged)
                    if index < n_samples and rule == merge_rules[0]:
                        save_sample(f"{index:02d}-image", sample.image)
                        save_sample(f"{index:02d}-truth", panoptic_picture(*truth, label_set))
                        save_sample(f"{index:02d}-prediction", panoptic_picture(*merged, label_set))

    ap = average_precision.result()
    first = merge_rules[0]
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
        **semantic_scores(confusion, label_set),
    }


def panoptic_picture(panoptic_map, segments_info: Sequence[dict], label_set: LabelSet) -> np.ndarray:
    """uint8 [H, W, 3]: class colours, things in shades of theirs, segment borders white, void black."""
    panoptic_map = np.asarray(panoptic_map)
    palette = label_set.palette().astype(np.float32)
    ids, position = np.unique(panoptic_map, return_inverse=True)
    colours = np.zeros((len(ids), 3), np.float32)
    segments = {segment["id"]: segment for segment in segments_info}
    for row, segment_id in enumerate(ids.tolist()):
        segment = segments.get(segment_id)
        if segment is None:
            continue
        shade = 0.35 * ((segment_id * 0.618034) % 1.0) if segment["isthing"] else 0.0
        colours[row] = palette[segment["category_id"]] * (1 - shade) + 255 * shade
    picture = colours[position.reshape(panoptic_map.shape)]
    is_thing = np.isin(panoptic_map, [s["id"] for s in segments_info if s["isthing"]])
    border = np.zeros(panoptic_map.shape, bool)
    for axis in (0, 1):
        change = np.diff(panoptic_map, axis=axis) != 0
        border[tuple(slice(0, -1) if a == axis else slice(None) for a in (0, 1))] |= change
    picture[border & is_thing] = 255
    return picture.round().astype(np.uint8)
