"""What `bench` measures: each core operation on a seeded input, its reference, and how the two must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from panolib.bench.references import (
    DELTA_DIST,
    DELTA_VAR,
    fusion_of_all_crops,
    loop_average_precision,
    loop_embedding_loss,
    loop_panoptic,
    loop_stability,
)
from panolib.clustering.algorithms import mean_shift
from panolib.clustering.labels import stability_filter
from panolib.clustering.mean_shift import mean_shift_plus
from panolib.clustering.peeling import mean_shift_grid, mean_shift_peel
from panolib.data import views
from panolib.labels import CITYSCAPES
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix
from panolib.training.pseudo_labels import fuse_views


@dataclass(frozen=True)
class Ours:
    """One function of ours: what to call, the ratio to reach, and a check of its result.

    `check` gets our result and the reference's and says how well they agree, and whether that is enough.
    `bound`: what its time goes into, for readers who wonder why it is not faster.
    """

    function: Callable[[], Any]
    target: float
    check: Callable[[Any, Any], tuple[str, bool]]
    bound: str = ""


@dataclass(frozen=True)
class Operation:
    """One reference and what of ours is measured beside it.

    `sketch_ms`: what the reference took in the sketch that set the ratios to reach; NaN where there was none.
    """

    size: str
    reference_name: str
    reference: Callable[[], Any]
    ours: Mapping[str, Ours]
    input_mib: float  # size of the main input, for memory claims
    least_mb: float = 0.0  # megabytes (1e6) that any method has to move: inputs once, results once
    least_mflop: float = 0.0  # operations of the products that a dense method has to make
    sketch_ms: float = float("nan")


def clustering(
    height: int, width: int, n: int, dim: int, seed: int, target=(1.0, 1.0, 1.0), sketch_ms=float("nan")
) -> Operation:
    """Mean shift of a mask of `n` objects whose borders are mixed, three ways, against scikit-learn's."""
    labels = instance_map(height, width, n, seed)
    field, mask = embedding_field(labels, dim, seed, mixed_borders=True), labels > 0
    points, truth = field.movedim(0, -1)[mask].contiguous(), labels[mask]
    options = {"bandwidth": DELTA_VAR * (dim / 8) ** 0.5, "delta_dist": None}  # noise grows like this root
    return Operation(
        size=f"{len(points)} px, {n} instances, E {dim}",
        reference_name="scikit-learn MeanShift(bin_seeding=True)",
        reference=lambda: mean_shift(points, **options),
        ours={
            "mean-shift+": Ours(lambda: mean_shift_plus(points, **options), target[0], _same_partition),
            "mean shift by peeling": Ours(
                lambda: mean_shift_peel(points, **options), target[1],
                lambda ours, theirs: _as_good(ours, theirs, truth),
                "every step of a climb from the densest cells is a product of all points with the centres",
            ),
            "mean shift on the image grid": Ours(
                lambda: mean_shift_grid(field, mask, **options), target[2],
                lambda ours, theirs: _as_good(ours[mask], theirs, truth),
                "mostly the climbs among cells inside objects, many small calls; then one product",
            ),
        },
        input_mib=_mib(field),  # the map that the mask cuts from
        least_mb=_mb(points),
        least_mflop=2e-6 * len(points) * n * dim,  # every point to its nearest mode
        sketch_ms=sketch_ms,
    )  # fmt: skip


def stability(
    height: int, width: int, n: int, seed: int, target: float = 1.0, sketch_ms: float = float("nan")
) -> Operation:
    """The consistency clustering step: 100 anchors per cluster."""
    labels = instance_map(height, width, n, seed)
    field = embedding_field(labels, 16, seed)

    def ours() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"bandwidth": DELTA_VAR, "min_median_iou": 0.0, "generator": generator}
        return stability_filter(labels, field, labels > 0, **options)[1]

    return Operation(
        size=f"{height} x {width}, {n} clusters, E 16",
        reference_name="loop over anchors",
        reference=lambda: loop_stability(labels, field, DELTA_VAR, torch.Generator().manual_seed(0)),
        ours={"stability filter": Ours(ours, target, lambda a, b: close(a, b, 2e-3))},
        input_mib=_mib(field),
        least_mb=_mb(field),
        least_mflop=2e-6 * 100 * n * int((labels > 0).sum()) * 16,  # every anchor with every pixel
        sketch_ms=sketch_ms,
    )


def loss(
    batch: int, height: int, width: int, n: int, seed: int, *, unlabelled: bool, target: float = 1.0,
    sketch_ms: float = float("nan"),
) -> Operation:  # fmt: skip
    """Pull, push, object Dice (and unlabelled push), value and gradient."""
    labels = torch.stack([instance_map(height, width, n, seed + b) for b in range(batch)])
    fields = torch.stack([embedding_field(y, 16, seed, noise=0.6) for y in labels]).requires_grad_()
    weights = EmbeddingLossWeights(unlabelled_push=float(unlabelled), consistency=0.0)

    def with_gradient(value: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        loss = value()
        return loss.detach(), torch.autograd.grad(loss, fields)[0]

    def check(ours, theirs) -> tuple[str, bool]:
        found = [close(a, b, 1e-4, scale=float(b.abs().max())) for a, b in zip(ours, theirs)]
        return f"value {found[0][0]}; gradient {found[1][0]}", found[0][1] and found[1][1]

    name = "pull, push, object Dice" + (", unlabelled push" if unlabelled else "")
    return Operation(
        size=f"{batch} x {height} x {width}, {n} instances, E 16",
        reference_name="loop over instances",
        reference=lambda: with_gradient(lambda: loop_embedding_loss(fields, labels, weights)),
        ours={name: Ours(
            lambda: with_gradient(lambda: sum(embedding_loss(fields, labels, weights=weights).values())),
            target, check,
            "two distances for every pair of a pixel and an instance; where they are near, two exponentials "
            "and the products of the gradients; soft masks are made twice so that they need no memory",
        )},
        input_mib=_mib(fields),
        least_mb=2 * _mb(fields),  # the gradient is as large
        least_mflop=3 * 2e-6 * labels.numel() * n * 16,  # distances, and the gradients of both their sides
        sketch_ms=sketch_ms,
    )  # fmt: skip


def fusion(n_images: int, n_views: int, height: int, width: int, seed: int) -> Operation:
    """The fusion of the views of some images in a self-training step, 19 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = views.multi_view_crops(torch.rand(n_images, 3, height, width), n_views=n_views)
        scores = torch.randn(n_images * n_views, 19, height, width).mul_(3).softmax(1)
    inputs = (scores, found.affine, found.inverse, found.padding, n_views)
    return Operation(
        size=f"{n_images} x {n_views} views, {height} x {width}, 19 classes",
        reference_name="all crops on the canvas at once",
        reference=lambda: fusion_of_all_crops(*inputs),
        ours={"fusion of views": Ours(
            lambda: fuse_views(*inputs)[0], 1.0, lambda a, b: close(a, b, 1e-5),
            "two bilinear samplings of every class and pixel",
        )},
        input_mib=_mib(scores),
        least_mb=2 * _mb(scores),
    )  # fmt: skip


def panoptic(height: int, width: int, n_things: int, seed: int, target: float = 1.0) -> Operation:
    """Panoptic quality of one image."""
    truth, prediction = panoptic_pair(height, width, n_things, seed)

    def ours() -> np.ndarray:
        stats = PanopticStats(CITYSCAPES)
        stats.update(*truth, *prediction)
        return np.stack([stats.iou_sum, stats.tp, stats.fp, stats.fn], 1)

    return Operation(
        size=f"{height} x {width}, {len(truth[1])} segments",
        reference_name="COCO panopticapi's loop, in memory",
        reference=lambda: loop_panoptic(truth, prediction),
        ours={"PQ of one image": Ours(
            ours, target, lambda a, b: close(a, b, 1e-12),
            "the comparison of neighbours in both maps and the search for where they differ",
        )},
        input_mib=truth[0].nbytes / 2**20,
        least_mb=2e-6 * truth[0].nbytes,
        sketch_ms=26,
    )  # fmt: skip


def average_precision(height: int, width: int, n_things: int, seed: int, target: float = 1.0) -> Operation:
    """Matches for the official instance AP of one image."""
    truth, prediction = panoptic_pair(height, width, n_things, seed)

    def ours() -> np.ndarray:
        score = CityscapesAP(CITYSCAPES, min_region=0)
        score.update(*truth, *prediction)
        return score.records[0][:, [0, 1, 2, 4]]

    return Operation(
        size=f"{height} x {width}, {sum(s['isthing'] for s in prediction[1])} predictions",
        reference_name="cityscapesScripts' loop, in memory",
        reference=lambda: loop_average_precision(truth, prediction),
        ours={"instance AP of one image": Ours(
            ours, target, lambda a, b: close(a, b, 1e-12), "as PQ: the same comparison of the two maps",
        )},
        input_mib=truth[0].nbytes / 2**20,
        least_mb=2e-6 * truth[0].nbytes,
        sketch_ms=265,
    )  # fmt: skip


def confusion(height: int, width: int, seed: int, target: float = 1.0) -> Operation:
    """Confusion matrix of one image, 19 classes."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 19, (height // 16, width // 16)), np.ones((16, 16))).astype(np.uint8)
    other = np.roll(truth, (3, 5), (0, 1))
    return Operation(
        size=f"{height} x {width}, 19 classes",
        reference_name="numpy.bincount",
        reference=lambda: np.bincount(
            19 * truth.ravel().astype(np.int64) + other.ravel(), minlength=361
        ).reshape(19, 19),
        ours={"confusion matrix": Ours(
            lambda: confusion_matrix(truth, other, 19)[:19, :19], target, lambda a, b: close(a, b, 0),
            "one look-up a pixel (OpenCV's histogram); the ratio to reach was against a compiled loop, which "
            "the reference's wheel does not bring",
        )},
        input_mib=truth.nbytes / 2**20,
        least_mb=2e-6 * truth.nbytes,
        sketch_ms=3.2,
    )  # fmt: skip


def table_operations(spec) -> Iterator[Operation]:
    """The comparisons of the main table (sizes: `bench.PerformanceSpec`), with the ratios to reach."""
    clusters = {8: ((22, 250, 1249), 12_700), 16: ((42, 211, 1018), 11_500)}
    size = height, width = spec.height, spec.width
    for dim in spec.embedding_dims:
        yield clustering(*size, spec.n_instances[0], dim, spec.seed, *clusters.get(dim, ()))
    anchors = ((24, 2_000), (39, 9_900))  # ratio to reach, and time of the sketch's reference in ms
    plain, unlabelled = ((26, 3_400), (43, 10_300)), ((29, 5_900), (53, 17_900))
    for n, *targets in zip(spec.n_instances, anchors, plain, unlabelled, strict=False):
        yield stability(*size, n, spec.seed, *targets[0])
        for with_push, (target, sketch_ms) in enumerate(targets[1:]):
            options = {"unlabelled": bool(with_push), "target": target, "sketch_ms": sketch_ms}
            yield loss(spec.batch_size, *size, n, spec.seed, **options)
    yield fusion(spec.step.n_target, spec.step.n_views, height // 2, width // 2, spec.seed)
    size = (spec.panoptic_height, spec.panoptic_width)
    yield panoptic(*size, 40, spec.seed, 7)
    yield average_precision(*size, 40, spec.seed, 46)
    yield confusion(*size, spec.seed, 1.6)


def scaling_operations(spec) -> Iterator[tuple[str, float, Operation]]:
    """(axis, position on it, operation) of the curves of cost against size."""
    height, width, seed = spec.height, spec.width, spec.seed
    dim, n = spec.embedding_dims[0], spec.n_instances[0]
    for factor in (0.25, 0.5, 1, 2):
        some = (int(height * factor), int(width * factor))
        yield "pixels", some[0] * some[1], clustering(*some, n, dim, seed)
        yield "pixels", some[0] * some[1], loss(1, *some, n, seed, unlabelled=True)
    for k in (n // 2, n, 2 * n, 4 * n):
        yield "instances", k, clustering(height, width, k, dim, seed)
        yield "instances", k, loss(1, height, width, k, seed, unlabelled=True)
    for e in (dim // 2, dim, 2 * dim, 4 * dim):
        yield "embedding dimensions", e, clustering(height, width, n, e, seed)
    height, width = spec.panoptic_height, spec.panoptic_width
    for factor in (0.25, 0.5, 1):
        some = (int(height * factor), int(width * factor))
        yield "pixels", some[0] * some[1], panoptic(*some, 40, seed)
        yield "pixels", some[0] * some[1], confusion(*some, seed)
    for k in (10, 40, 160):
        yield "instances", k, panoptic(height, width, k, seed)


# ---- inputs ----------------------------------------------------------------------------------------------


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


def embedding_field(
    labels: Tensor, dim: int, seed: int, *, noise: float = 0.1, mixed_borders: bool = False
) -> Tensor:
    """float32 [E, H, W]: a mean per label, at least 2 `DELTA_DIST` apart, and noise around it.

    With mixed borders the means are averaged over 3 x 3 pixels, as those of networks are: what lies between
    two objects costs a clustering its quality, and mean shift most of its time.
    """
    rng = np.random.default_rng(seed)
    corners = rng.permutation(3 ** min(dim, 8))[: int(labels.max()) + 1]
    means = np.zeros((len(corners), dim))
    means[:, : min(dim, 8)] = np.stack(np.unravel_index(corners, (3,) * min(dim, 8)), 1)
    field = np.moveaxis(2 * DELTA_DIST * means[labels.numpy()], -1, 0)
    if mixed_borders:
        field = ndimage.uniform_filter(field, (0, 3, 3))
    return torch.from_numpy((field + rng.normal(0, noise, field.shape)).astype(np.float32))


def panoptic_pair(height: int, width: int, n_things: int, seed: int) -> tuple[tuple, tuple]:
    """(map, segments) of a truth with 20 stuff segments and some things, and of a copy with ragged borders.

    Every row of the copy is shifted by its own small step, as predicted borders are never straight.
    """
    rng = np.random.default_rng(seed)
    stuff = np.kron(rng.permutation(20).reshape(4, 5) + 1, np.ones((height // 4, width // 5), np.int64))
    canvas = np.ones((height, width), np.int64)
    canvas[: stuff.shape[0], : stuff.shape[1]] = stuff
    things = instance_map(height, width, n_things, seed).numpy()
    canvas[things > 0] = 20 + things[things > 0]
    category = {k: k % 11 if k <= 20 else 11 + k % 8 for k in range(1, 21 + n_things)}

    def segments(labels: np.ndarray) -> list[dict]:
        return [
            {
                "id": k, "category_id": category[k], "isthing": k > 20, "area": int(area), "iscrowd": 0,
                "confidence": 1.0 / k,
            }
            for k, area in enumerate(np.bincount(labels.ravel()))
            if k and area
        ]

    columns = (np.arange(width) + 5 + rng.integers(-2, 3, height)[:, None]) % width
    ragged = np.take_along_axis(np.roll(canvas, 3, 0), columns, 1)
    canvas, ragged = canvas.astype(np.int32), ragged.astype(np.int32)
    return (canvas, segments(canvas)), (ragged, segments(ragged))


# ---- agreement -------------------------------------------------------------------------------------------


def close(ours, theirs, tolerance: float, *, scale: float = 1.0) -> tuple[str, bool]:
    """How far two arrays are apart, as a share of `scale`, and whether that is within the tolerance."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return f"shapes {ours.shape} and {theirs.shape}", False
    difference = float(np.abs(ours - theirs).max()) / max(scale, 1e-12)
    return "identical" if difference == 0 else f"within {difference:.0e}", difference <= tolerance


def _same_partition(ours: Tensor, theirs: Tensor) -> tuple[str, bool]:
    score = adjusted_rand_score(theirs.numpy(), ours.numpy())
    return f"ARI to the reference {score:.5f}, {ours.max()} and {theirs.max()} clusters", score >= 0.9995


def _as_good(ours: Tensor, theirs: Tensor, truth: Tensor) -> tuple[str, bool]:
    """Adjusted Rand index, recall and recognition quality of both against the truth."""
    found, others = (partition_quality(labels, truth) for labels in (ours, theirs))
    text = ", ".join(f"{name} {value:.3f} ({others[name]:.3f})" for name, value in found.items())
    return text, all(value >= others[name] - 1e-9 for name, value in found.items())


def partition_quality(labels: Tensor, truth: Tensor) -> dict[str, float]:
    """ARI, and recall and recognition quality at IoU 0.5, of labels [N] >= 1 against a truth [N] >= 1."""
    shared = np.zeros((int(truth.max()) + 1, int(labels.max()) + 1))
    np.add.at(shared, (truth.numpy(), labels.numpy()), 1)
    shared = shared[shared.any(1)][:, shared.any(0)]
    iou = shared / (shared.sum(1, keepdims=True) + shared.sum(0) - shared)
    n_found = int((iou > 0.5).sum())
    return {
        "ARI": adjusted_rand_score(truth.numpy(), labels.numpy()),
        "recall": n_found / len(shared),
        "RQ": 2 * n_found / sum(shared.shape),
    }


def _mib(values: Tensor) -> float:
    return values.numel() * values.element_size() / 2**20


def _mb(values: Tensor) -> float:
    return 1e-6 * values.numel() * values.element_size()
