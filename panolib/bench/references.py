"""Loops as published codes and formulas have them, as references for `bench`: obvious, and slow."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panolib.data.warping import warp
from panolib.losses.embedding import EmbeddingLossWeights

DELTA_VAR, DELTA_DIST, KERNEL_THRESHOLD = 0.5, 2.0, 0.5


def loop_stability(labels: Tensor, embeddings: Tensor, bandwidth: float, generator) -> Tensor:
    """Median IoU of each instance with the balls around 100 of its pixels, one anchor at a time."""
    inside = labels[labels > 0]
    points = embeddings.movedim(0, -1)[labels > 0]
    instances = inside.unique()
    draw = torch.rand(len(instances), 100, generator=generator)
    medians = []
    for row, k in zip(draw, instances):
        own = inside == k
        members = points[own]
        ious = []
        for share in row:
            anchor = members[min(int(share * len(members)), len(members) - 1)]
            near = (points - anchor).square().sum(1).sqrt() <= bandwidth
            ious.append((near & own).sum() / (near | own).sum())
        medians.append(torch.stack(ious).quantile(0.5))
    return torch.stack(medians)


def loop_embedding_loss(embeddings: Tensor, labels: Tensor, weights: EmbeddingLossWeights) -> Tensor:
    """The embedding losses as their formulas read: a loop over images, instances and pairs of them.

    SPOCO's release vectorises pull and push, loops over soft masks and the unlabelled push as here, computes
    their distances separately, and holds an [E, K, N] tensor for the means.
    """
    sigma = DELTA_VAR**2 / -np.log(KERNEL_THRESHOLD)
    total = embeddings.new_zeros(())
    for field, ids in zip(embeddings, labels):
        instances = [k for k in ids.unique().tolist() if k != 0]
        means, pull, dice, away = [], 0.0, 0.0, 0.0
        for k in instances:
            mask = ids == k
            mean = field[:, mask].mean(1)
            means.append(mean)
            distance = (field - mean[:, None, None]).norm(dim=0)
            pull = pull + (distance[mask] - DELTA_VAR).clamp(min=0).square().mean()
            soft, hard = torch.exp(-distance.square() / sigma), mask.to(field.dtype)
            dice = dice + 1 - 2 * (soft * hard).sum() / (soft.square().sum() + hard.sum()).clamp(min=1e-6)
            if weights.unlabelled_push > 0 and (ids == 0).any():
                away = away + (DELTA_DIST - distance[ids == 0]).clamp(min=0).square().mean()
        n = len(instances)
        push = 0.0
        for i in range(n):
            for j in range(i):
                push = push + (2 * DELTA_DIST - (means[i] - means[j]).norm()).clamp(min=0).square()
        length = torch.stack(means).norm(dim=1).mean()
        total = total + (
            weights.pull * pull / n + weights.push * push / max(n * (n - 1) / 2, 1)
            + weights.regulariser * length + weights.object_dice * dice / n
            + weights.unlabelled_push * away / n
        ) / len(embeddings)  # fmt: skip
    return total


def loop_panoptic(truth: tuple, prediction: tuple) -> np.ndarray:
    """Summed IoU, TP, FP and FN per class [19, 4], the way of panopticapi's `pq_compute_single_core`.

    Without its checks of the files and its rule for crowds, which only cost time.
    """
    counts = np.zeros((19, 4))
    of_truth = {s["id"]: s for s in truth[1]}
    of_prediction = {s["id"]: s for s in prediction[1]}
    pairs, areas = np.unique(truth[0].astype(np.uint64) * 2**32 + prediction[0].astype(np.uint64),
                             return_counts=True)  # fmt: skip
    overlap = {(int(p) >> 32, int(p) & (2**32 - 1)): int(a) for p, a in zip(pairs, areas)}
    matched = set(), set()
    for (t, p), shared in overlap.items():
        if t not in of_truth or p not in of_prediction:
            continue
        if of_truth[t]["category_id"] != of_prediction[p]["category_id"]:
            continue
        union = of_truth[t]["area"] + of_prediction[p]["area"] - shared - overlap.get((0, p), 0)
        if shared / union > 0.5:
            counts[of_truth[t]["category_id"], :2] += (shared / union, 1)
            matched[0].add(t)
            matched[1].add(p)
    for p, segment in of_prediction.items():
        counts[segment["category_id"], 2] += p not in matched[1]
    for t, segment in of_truth.items():
        counts[segment["category_id"], 3] += t not in matched[0]
    return counts


def loop_average_precision(truth: tuple, prediction: tuple) -> np.ndarray:
    """[K, 4] class, confidence, best IoU with a true instance of the class, share on void; per prediction.

    The masks are compared one pair at a time, as in cityscapesScripts' `assignGt2Preds`.
    """
    rows = []
    void = truth[0] == 0
    for p in prediction[1]:
        if not p["isthing"]:
            continue
        mask = prediction[0] == p["id"]
        size, best = np.count_nonzero(mask), 0.0
        for t in truth[1]:
            if t["category_id"] != p["category_id"]:
                continue
            shared = np.count_nonzero(np.logical_and(truth[0] == t["id"], mask))
            best = max(best, shared / (t["area"] + size - shared))
        on_void = np.count_nonzero(np.logical_and(void, mask)) / size
        rows.append((p["category_id"], p["confidence"], best, on_void))
    return np.array(rows)


def fusion_of_all_crops(
    probabilities: Tensor, affine: Tensor, inverse: Tensor, padding: Tensor, n_views: int
) -> Tensor:
    """Fused views with every crop on the canvas at once, as the formulas of SAC read."""

    def divided_by_mass(total: Tensor, kept: Tensor | bool = True) -> Tensor:
        mass = total.sum(1, keepdim=True)
        return torch.where((mass > 0.1) & kept, total / mass.clamp(min=0.1), 0.0)

    kept = ~padding[:, None]
    canvas = divided_by_mass(warp(probabilities * kept, affine).unflatten(0, (-1, n_views)).sum(1))
    return divided_by_mass(warp(canvas.repeat_interleave(n_views, 0), inverse), kept)
