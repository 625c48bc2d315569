"""Found, false and missed objects of instance networks, image by image, inside better and worse masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from panolib.clustering.algorithms import cluster
from panolib.clustering.corrected_masks import corrected
from panolib.clustering.votes import vote_semantic_class
from panolib.data.images import resize_labels
from panolib.data.samples import Sample
from panolib.inference.instances import opened, predict_instances, present_rows
from panolib.inference.panoptic import merge_panoptic, panoptic_truth
from panolib.inference.pictures import panoptic_picture
from panolib.inference.predict import predict, predict_image
from panolib.labels import VOID, LabelSet
from panolib.metrics.semantic import confusion_matrix, iou_per_class
from panolib.metrics.threat_score import ThreatScore
from panolib.scoring.evaluate import SaveSample

N_PICTURES = 2


@dataclass(frozen=True)
class Network:
    """An embedding network, the train ids that it answers for, and the clustering of its baseline."""

    model: nn.Module
    class_ids: tuple[int, ...]
    bandwidth: float
    delta_dist: float

    @property
    def clustering(self) -> dict[str, float]:
        return {"bandwidth": self.bandwidth, "delta_dist": self.delta_dist}


def score_threat(
    semantic_model: nn.Module,
    networks: Sequence[Network],
    dataset: Sequence[Sample],
    label_set: LabelSet,
    *,
    min_size: int,
    truth_shares: Sequence[float],
    kernels: Sequence[int],
    guided: bool,
    save_sample: SaveSample,
    label: str = "",
) -> dict:
    """Counts behind the threat score of networks that share the thing classes, and what the vote changes.

    Every network clusters inside the masks of its classes; the instances of all of them make one map.

    Parameters
    ----------
    semantic_model : Module
        Predicts the masks.
    min_size : int
        Smallest mask and smallest instance, pixels of the embedding grid.
    truth_shares : sequence of float
        Masks are brought towards the truth by these shares (`corrected_masks.corrected`).
    kernels : sequence of int
        Morphological clean-up of the instances, pixels; 0 for none.
    guided : bool
        False: one clustering of all pixels, whose clusters the masks only name (`in_masks.cluster_unguided`).
    save_sample : function (name, picture)
        Takes the first two images, "00-truth" and "00-result", and where the vote changes most,
        "vote-0-before", "vote-0-after" and "vote-0-truth".

    Returns
    -------
    dict
        "things": names; "n_images"; "masks": mIoU and share of wrong pixels of the masks, per truth share;
        "variants": per truth share and kernel, "tp", "fp" and "fn" as {thing: "count of image 0, 1, .."}
        (a string, so that a file has a line instead of hundreds); "vote": see `count_votes`, empty if no
        network answers for several classes of a group.
    """
    variants = {(share, kernel): [] for share in truth_shares for kernel in kernels}
    confusions = dict.fromkeys(truth_shares, 0)
    votes: list[dict] = []
    for index, prediction in enumerate(predict(semantic_model, None, dataset, label=label)):
        sample, predicted = prediction.sample, prediction.semantic.cpu().numpy()
        truth = panoptic_truth(sample, label_set)
        embeddings = [predict_image(None, network.model, sample).embeddings for network in networks]
        maps = (networks, embeddings)
        for share in truth_shares:
            semantic = corrected(predicted, sample.semantic, share, seed=index)
            confusions[share] += confusion_matrix(sample.semantic, semantic, label_set.n_classes)
            fused = fused_instances(*maps, semantic, label_set, min_size=min_size, guided=guided)
            for kernel in kernels:
                found = opened(*fused, kernel)
                variants[share, kernel].append(image_counts(truth, *found, label_set))
                if index < N_PICTURES and (share, kernel) == (truth_shares[0], kernels[0]):
                    save_sample(f"{index:02d}-truth", panoptic_picture(*truth, label_set))
                    merged = merge_panoptic(semantic, found[0], label_set)
                    save_sample(f"{index:02d}-result", panoptic_picture(*merged, label_set))
        if guided:
            votes.append(voted_pixels(*maps, predicted, sample.semantic, label_set, min_size=min_size))

    return {
        "things": list(label_set.things),
        "n_images": len(dataset),
        "masks": [{"truth_share": share, **mask_quality(confusions[share])} for share in truth_shares],
        "variants": [
            {"truth_share": share, "kernel": kernel, **_as_text(counts, label_set.things)}
            for (share, kernel), counts in variants.items()
        ],
        "vote": _finish_votes(votes, label_set, save_sample),
    }


def fused_instances(
    networks: Sequence[Network],
    embeddings: Sequence[Tensor],
    semantic: np.ndarray,
    label_set: LabelSet,
    *,
    min_size: int,
    guided: bool,
) -> tuple[Tensor, list[dict]]:
    """Instances of all networks in one map int64 [H, W], and their table (`id`, `category_id`).

    `embeddings` [E, h, w] are those of each network. Where two networks answer for one pixel, the first
    does.
    """
    fused, table = torch.zeros(semantic.shape, dtype=torch.int64), []
    for network, embedding in zip(networks, embeddings, strict=True):
        labels, rows = predict_instances(
            embedding, semantic, label_set, thing_ids=network.class_ids, min_size=min_size, guided=guided,
            **network.clustering,
        )  # fmt: skip
        labels = labels.to(fused.device)
        fused = torch.where((fused == 0) & (labels > 0), labels + len(table), fused)
        table += [{"id": row["id"] + len(table), "category_id": row["category_id"]} for row in rows]
    return fused, present_rows(fused, table)


def image_counts(truth: tuple, instances: Tensor, table: Sequence[dict], label_set: LabelSet) -> np.ndarray:
    """int64 [3, T]: TP, FP and FN of every thing class in one image, by the rules of `ThreatScore`."""
    score = ThreatScore(label_set)
    score.update(*truth, instances, table)
    return score.counts()[0].T


def mask_quality(confusion: np.ndarray) -> dict[str, float]:
    """mIoU of a confusion matrix [C + 1, C + 1] (void last), and the share of wrong pixels beside void."""
    n_classes = len(confusion) - 1
    known = confusion[:n_classes]
    return {
        "miou": float(np.nanmean(iou_per_class(confusion, range(n_classes)))),
        "wrong_share": float(1 - np.trace(known) / max(known.sum(), 1)),
    }


def count_votes(before: np.ndarray, after: np.ndarray, truth: np.ndarray, n_classes: int) -> dict:
    """Pixels of one image that the vote repairs and spoils, of train ids [H, W]; void truth does not count.

    Returns
    -------
    dict
        "changed": pixels with another class than before, an int; "repaired" (wrong, then right) and
        "spoiled" (right, then wrong): int64 [n_classes], by true class.
    """
    changed = (before != after) & (truth != VOID)
    chosen = {"repaired": changed & (after == truth), "spoiled": changed & (before == truth)}
    by_class = {name: np.bincount(truth[pixels], minlength=n_classes) for name, pixels in chosen.items()}
    return {"changed": int(changed.sum()), **by_class}


def voted_pixels(
    networks: Sequence[Network],
    embeddings: Sequence[Tensor],
    semantic: np.ndarray,
    truth: np.ndarray,
    label_set: LabelSet,
    *,
    min_size: int,
) -> dict | None:
    """`count_votes` of one image, with the maps "before", "after" and "truth"; None if nothing can change.

    A network clusters inside the masks of all its classes of one group (vehicles, people, bikes) at once, so
    that an instance may cross a border between them; then each instance takes its most frequent class. Across
    groups a rider would join what it rides.
    """
    groups = [set(label_set.ids_of(names)) for names in label_set.groups.values()]
    voted, n_votes = torch.from_numpy(semantic), 0
    for network, embedding in zip(networks, embeddings, strict=True):
        for class_ids in (group.intersection(network.class_ids) for group in groups):
            if len(class_ids) < 2:
                continue
            n_votes += 1
            inside = torch.from_numpy(np.isin(semantic, list(class_ids))).to(embedding.device)
            small = resize_labels(inside.long(), embedding.shape[1:]).bool()
            labels = cluster(embedding, small, min_size=min_size, **network.clustering)
            labels = (resize_labels(labels, semantic.shape) * inside).cpu()
            voted = vote_semantic_class(voted, labels, list(class_ids))
    if n_votes == 0:
        return None
    maps = {"before": semantic, "after": voted.numpy(), "truth": truth}
    return {**maps, **count_votes(**maps, n_classes=label_set.n_classes)}


def _finish_votes(votes: list[dict | None], label_set: LabelSet, save_sample: SaveSample) -> dict:
    """Sums of `count_votes` over images by thing; saves the images with the most changed pixels."""
    if not votes or votes[0] is None:
        return {}
    changed = np.array([vote["changed"] for vote in votes])
    most = np.argsort(-changed, kind="stable")[:N_PICTURES].tolist()
    for place, index in enumerate(most):
        for name in ("before", "after", "truth"):
            save_sample(f"vote-{place}-{name}", label_set.colourise(votes[index][name]))
    things = list(label_set.thing_ids)
    by_thing = {
        name: dict(zip(label_set.things, sum(vote[name] for vote in votes)[things].tolist()))
        for name in ("repaired", "spoiled")
    }
    return {
        "images": most,
        "changed": int(changed.sum()),
        "thing_pixels": int(sum(np.isin(vote["truth"], things).sum() for vote in votes)),
        **by_thing,
    }


def _as_text(counts: Sequence[np.ndarray], things: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """{"tp": {thing: "0 2 1 .."}, ..} of counts [3, T] of every image."""
    stacked = np.stack(counts)  # [N, 3, T]
    return {
        name: {thing: " ".join(map(str, stacked[:, i, t])) for t, thing in enumerate(things)}
        for i, name in enumerate(("tp", "fp", "fn"))
    }
