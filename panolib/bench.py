"""Core operations against what people use today: time, memory and agreement on the same seeded input.

Ours and the reference take turns in one process, so that a busy machine slows both; the claim is the ratio
of the medians. Before it is timed, every pair must agree.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from panolib import provenance
from panolib.cluster_labels import stability_filter
from panolib.clustering import mean_shift
from panolib.labels import CITYSCAPES
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.mean_shift import mean_shift_plus
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix

DELTA_VAR, DELTA_DIST, KERNEL_THRESHOLD = 0.5, 2.0, 0.5


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are, and how often each pair is timed."""

    height: int  # of the embedding maps and label maps, pixels
    width: int
    panoptic_height: int  # of the maps that the panoptic and semantic scores compare, pixels
    panoptic_width: int
    embedding_dims: tuple[int, ...]
    n_instances: tuple[int, ...]
    batch_size: int
    repeats: int
    seed: int


@dataclass(frozen=True)
class Operation:
    """One comparison: two functions of no argument, and a check of their results."""

    name: str
    size: str
    reference_name: str
    ours: Callable[[], Any]
    reference: Callable[[], Any]
    check: Callable[[Any, Any], str]  # says how well they agree; AssertionError if they do not


def performance(sizes: Sizes, *, threads: tuple[int, ...] = (1, 2), progress: bool = True) -> pd.DataFrame:
    """Measure every operation.

    Returns
    -------
    DataFrame
        One row per operation, size and number of threads: medians and interquartile ranges in ms, their
        `ratio` (reference / ours), extra peak memory in MiB, how the results agree, machine and versions.

    Raises
    ------
    AssertionError
        If ours and the reference disagree.
    """
    rows = []
    before = torch.get_num_threads()
    try:
        for n_threads in threads:
            torch.set_num_threads(n_threads)
            for operation in tqdm(
                list(operations(sizes)), desc=f"{n_threads} thread(s)", disable=not progress
            ):
                rows.append(measure(operation, sizes.repeats) | {"threads": n_threads})
    finally:
        torch.set_num_threads(before)
    return pd.DataFrame(rows).assign(
        machine=provenance.processor(),
        versions=", ".join(f"{name} {version}" for name, version in provenance.versions().items()),
    )


def measure(operation: Operation, repeats: int) -> dict:
    """One row of `performance`: agreement first, then memory, then alternating times."""
    memory, results = {}, {}
    for name in ("ours", "reference"):
        results[name], memory[name] = _with_peak_memory(getattr(operation, name))
    agreement = operation.check(results["ours"], results["reference"])
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(repeats):
        for name, spent in times.items():
            began = time.perf_counter()
            getattr(operation, name)()
            spent.append(1e3 * (time.perf_counter() - began))
    row = {"operation": operation.name, "size": operation.size, "reference": operation.reference_name}
    for name, spent in times.items():
        low, high = np.percentile(spent, (25, 75))
        row |= {
            f"{name}_ms": statistics.median(spent),
            f"{name}_iqr_ms": high - low,
            f"{name}_memory_mib": memory[name],
        }
    row |= {"ratio": row["reference_ms"] / row["ours_ms"], "repeats": repeats, "agreement": agreement}
    return row


def operations(sizes: Sizes) -> Iterator[Operation]:
    """Every comparison of the study, on seeded inputs."""
    pixels = f"{sizes.height} x {sizes.width}"
    for n in sizes.n_instances:
        for dim in sizes.embedding_dims:
            labels = instance_map(sizes.height, sizes.width, n, sizes.seed)
            field = embedding_field(labels, dim, sizes.seed)
            points = field.movedim(0, -1)[labels > 0]
            bandwidth = DELTA_VAR * (dim / 8) ** 0.5  # distances of equal noise grow like the root of E
            yield Operation(
                "mean-shift+", f"{len(points)} px, {n} instances, E {dim}", "scikit-learn MeanShift",
                lambda p=points, h=bandwidth: mean_shift_plus(p, bandwidth=h, delta_dist=None),
                lambda p=points, h=bandwidth: mean_shift(p, bandwidth=h, delta_dist=None),
                _same_partition,
            )  # fmt: skip
        labels = instance_map(sizes.height, sizes.width, n, sizes.seed)
        field = embedding_field(labels, 16, sizes.seed)
        yield Operation(
            "stability filter", f"{pixels}, {n} instances, 100 anchors each", "loop over anchors",
            lambda y=labels, e=field: stability_filter(
                y, e, y > 0, bandwidth=DELTA_VAR, min_median_iou=0.0,
                generator=torch.Generator().manual_seed(0),
            )[1],
            lambda y=labels, e=field: loop_stability(y, e, DELTA_VAR, torch.Generator().manual_seed(0)),
            lambda ours, theirs: _close(ours, theirs, 1e-4),
        )  # fmt: skip
        batch = torch.stack(
            [instance_map(sizes.height, sizes.width, n, sizes.seed + b) for b in range(sizes.batch_size)]
        )
        fields = torch.stack([embedding_field(y, 16, sizes.seed, noise=0.6) for y in batch])
        for name, unlabelled in (("pull, push, object Dice", 0.0), ("the same with unlabelled push", 1.0)):
            weights = EmbeddingLossWeights(unlabelled_push=unlabelled, consistency=0.0)
            yield Operation(
                f"{name}: value and gradient",
                f"{sizes.batch_size} x {pixels}, {n} instances, E 16", "loop over instances",
                lambda e=fields, y=batch, w=weights: _gradient(
                    lambda x: sum(embedding_loss(x, y, weights=w).values()), e),
                lambda e=fields, y=batch, w=weights: _gradient(lambda x: loop_embedding_loss(x, y, w), e),
                lambda ours, theirs: _close(ours, theirs, 1e-4),
            )  # fmt: skip
    truth, prediction = panoptic_pair(sizes)
    size = f"{sizes.panoptic_height} x {sizes.panoptic_width}"
    yield Operation(
        "PQ of one image", f"{size}, {len(truth[1])} segments", "COCO panopticapi's loop, in memory",
        lambda: _our_panoptic(truth, prediction), lambda: loop_panoptic(truth, prediction),
        lambda ours, theirs: _close(ours, theirs, 1e-12),
    )  # fmt: skip
    classes = [
        np.random.default_rng(s).integers(
            0, 19, (sizes.panoptic_height, sizes.panoptic_width), dtype=np.uint8
        )
        for s in (0, 1)
    ]
    yield Operation(
        "confusion matrix", f"{size}, 19 classes", "numpy.bincount",
        lambda: confusion_matrix(*classes, 19)[:19, :19],
        lambda: np.bincount(19 * classes[0].ravel().astype(np.int64) + classes[1].ravel(),
                            minlength=361).reshape(19, 19),
        lambda ours, theirs: _close(ours, theirs, 0),
    )  # fmt: skip


# ---- inputs -----------------------------------------------------------------------------------------------


def instance_map(height: int, width: int, n: int, seed: int) -> Tensor:
    """int64 [H, W]: `n` discs of random size on background 0, the later ones in front."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int64)
    radius = 0.45 * np.sqrt(height * width / n)
    for k in range(1, n + 1):
        centre, r = rng.uniform((0, 0), (height, width)), radius * rng.uniform(0.5, 1.0)
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < r**2] = k
    return torch.from_numpy(labels)


def embedding_field(labels: Tensor, dim: int, seed: int, *, noise: float = 0.1) -> Tensor:
    """float32 [E, H, W]: a random mean per label, at least `DELTA_DIST` apart, and noise around it."""
    rng = np.random.default_rng(seed)
    corners = rng.permutation(3 ** min(dim, 8))[: int(labels.max()) + 1]
    means = np.zeros((len(corners), dim))
    means[:, : min(dim, 8)] = np.stack(np.unravel_index(corners, (3,) * min(dim, 8)), 1)
    field = 2 * DELTA_DIST * means[labels.numpy()] + rng.normal(0, noise, (*labels.shape, dim))
    return torch.from_numpy(np.moveaxis(field, -1, 0).astype(np.float32).copy())


def panoptic_pair(sizes: Sizes) -> tuple[tuple, tuple]:
    """(map, segments) of a truth with 20 stuff and 40 thing segments, and of a shifted copy."""
    rng = np.random.default_rng(sizes.seed)
    height, width = sizes.panoptic_height, sizes.panoptic_width
    stuff = np.kron(rng.permutation(20).reshape(4, 5) + 1, np.ones((height // 4, width // 5), np.int64))
    canvas = np.ones((height, width), np.int64)
    canvas[: stuff.shape[0], : stuff.shape[1]] = stuff
    things = instance_map(height, width, 40, sizes.seed).numpy()
    canvas[things > 0] = 20 + things[things > 0]
    category = {k: k % 11 if k <= 20 else 11 + k % 8 for k in range(1, 61)}

    def segments(labels: np.ndarray) -> list[dict]:
        return [
            {"id": k, "category_id": category[k], "isthing": k > 20, "area": int(area), "iscrowd": 0}
            for k, area in enumerate(np.bincount(labels.ravel()))
            if k and area
        ]

    shifted = np.roll(canvas, (3, 5), (0, 1))
    return (canvas, segments(canvas)), (shifted, segments(shifted))


# ---- references: the loops that the published codes run ---------------------------------------------------


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
    """The embedding losses with a loop over images and instances, as in the published code of SPOCO."""
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
    """Summed IoU, TP, FP and FN per class [19, 4], the way of panopticapi's `pq_compute_single_core`."""
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


# ---- helpers ----------------------------------------------------------------------------------------------


def _our_panoptic(truth: tuple, prediction: tuple) -> np.ndarray:
    stats = PanopticStats(CITYSCAPES)
    stats.update(*truth, *prediction)
    return np.stack([stats.iou_sum, stats.tp, stats.fp, stats.fn], 1)


def _gradient(loss: Callable[[Tensor], Tensor], embeddings: Tensor) -> Tensor:
    """[1 + n]: the value of a loss and its gradient, as one vector."""
    leaf = embeddings.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    return torch.cat([value.detach().view(1), leaf.grad.flatten()])


def _same_partition(ours: Tensor, theirs: Tensor) -> str:
    from sklearn.metrics import adjusted_rand_score

    score = adjusted_rand_score(theirs.numpy(), ours.numpy())
    assert score >= 0.9995, f"adjusted Rand index {score}, expected at least 0.9995"
    return f"adjusted Rand index {score:.5f}, {int(ours.max())} and {int(theirs.max())} clusters"


def _close(ours, theirs, tolerance: float) -> str:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    scale = max(1.0, float(np.abs(theirs).max()))
    difference = float(np.abs(ours - theirs).max()) / scale
    assert difference <= tolerance, f"relative difference {difference}, expected at most {tolerance}"
    return "identical" if difference == 0 else f"largest relative difference {difference:.0e}"


def _with_peak_memory(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result, and how far the resident memory of the process rose above where it began, in MiB."""
    provenance.reset_peak_memory()
    before = _resident_mib()
    result = function()
    peak = provenance.peak_memory_mb()
    return result, float("nan") if before is None or peak is None else max(0.0, peak - before)


def _resident_mib() -> float | None:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return None
