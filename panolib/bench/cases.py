"""What `bench` measures: each core operation on a seeded input, its reference, and how the two must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix
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
from panolib.lab.measuring import Measurement
from panolib.labels import CITYSCAPES
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix
from panolib.training.pseudo_labels import fuse_views

TARGETS = {  # (operation, embedding dimensions or instances): the ratio to reach on one thread
    ("mean-shift+", 8): 60, ("mean-shift+", 16): 60,
    ("mean shift by peeling", 8): 250, ("mean shift by peeling", 16): 211,
    ("mean shift on the image grid", 8): 1000, ("mean shift on the image grid", 16): 1000,
    ("stability filter", 20): 24, ("stability filter", 60): 39,
    ("pull, push, object Dice", 20): 50, ("pull, push, object Dice", 60): 50,
    ("pull, push, object Dice, unlabelled push", 20): 50,
    ("pull, push, object Dice, unlabelled push", 60): 50,
    ("PQ of one image", None): 12, ("PQ from PNG files", None): 1, ("instance AP of one image", None): 60,
    ("confusion matrix", None): 1.6, ("semantic self-training step", None): 3.3,
}  # fmt: skip
NO_SLOWER = 1.0  # the target of an operation that has none of its own


class Ours(NamedTuple):
    """A function of ours; how well its result agrees with the reference's, and whether that is enough.

    `bound`: what its time goes into, for readers who wonder why it is not faster.
    """

    function: Callable[[], Any]
    check: Callable[[Any, Any], tuple[str, bool]]
    bound: str = ""


class Operation(NamedTuple):
    """One reference and what of ours is measured beside it, on an input of `input_bytes`.

    `varied`: embedding dimensions or instances, which tell the targets of an operation apart. Any method has
    to move `moved` times the input (read once, written once) and, if it is dense, to compute `flop` products.
    """

    size: str
    reference_name: str
    reference: Callable[[], Any]
    ours: Mapping[str, Ours]
    input_bytes: int
    varied: int | None = None
    moved: float = 2.0
    flop: float = 0.0


def clustering(height: int, width: int, n: int, dim: int, seed: int) -> Operation:
    """Mean shift of a mask of `n` objects whose borders are mixed, three ways, against scikit-learn's."""
    labels = instance_map(height, width, n, seed)
    field, mask = embedding_field(labels, dim, seed, mixed_borders=True), labels > 0
    points, truth = field.movedim(0, -1)[mask].contiguous(), labels[mask]
    options = {"bandwidth": bandwidth_of(dim), "delta_dist": None}
    return Operation(
        f"{len(points)} px, {n} instances, E {dim}", "scikit-learn MeanShift(bin_seeding=True)",
        lambda: mean_shift(points, **options),
        {
            "mean-shift+": Ours(lambda: mean_shift_plus(points, **options), _same_partition),
            "mean shift by peeling": Ours(
                lambda: mean_shift_peel(points, **options),
                lambda ours, theirs: _as_good(ours, theirs, truth),
                "every step of a climb from the densest cells is a product of all points with the centres",
            ),
            "mean shift on the image grid": Ours(
                lambda: mean_shift_grid(field, mask, **options),
                lambda ours, theirs: _as_good(ours[mask], theirs, truth),
                "mostly the climbs among cells inside objects, many small calls; then one product",
            ),
        },
        field.nbytes, varied=dim, moved=points.nbytes / field.nbytes,  # of the map that the mask cuts from
        flop=2 * len(points) * n * dim,  # every point to its nearest mode
    )  # fmt: skip


def stability(height: int, width: int, n: int, seed: int) -> Operation:
    """The consistency clustering step: 100 anchors per cluster."""
    labels = instance_map(height, width, n, seed)
    field, options = embedding_field(labels, 16, seed), {"bandwidth": DELTA_VAR, "min_median_iou": 0.0}
    seeded = torch.Generator().manual_seed
    return Operation(
        f"{height} x {width}, {n} clusters, E 16", "loop over anchors",
        lambda: loop_stability(labels, field, DELTA_VAR, seeded(0)),
        {"stability filter": Ours(
            lambda: stability_filter(labels, field, labels > 0, generator=seeded(0), **options)[1],
            lambda a, b: close(a, b, 2e-3),
        )},
        field.nbytes, varied=n, moved=1.0,
        flop=2 * 100 * n * int((labels > 0).sum()) * 16,  # every anchor with every pixel
    )  # fmt: skip


def loss(
    batch: int, height: int, width: int, n: int, seed: int, *, unlabelled: bool, told_apart: bool = True
) -> Operation:
    """Pull, push, object Dice (and unlabelled push), value and gradient.

    Before embeddings tell objects apart, every pixel is near every mean.
    """
    labels = torch.stack([instance_map(height, width, n, seed + b) for b in range(batch)])
    if told_apart:
        fields = torch.stack([embedding_field(y, 16, seed, noise=0.6) for y in labels])
    else:
        fields = torch.stack([embedding_field(0 * y, 16, seed + b, noise=0.3) for b, y in enumerate(labels)])
    fields.requires_grad_()
    name = "pull, push, object Dice" + ", unlabelled push" * unlabelled
    name += "" if told_apart else ", before training"
    weights = EmbeddingLossWeights(unlabelled_push=float(unlabelled), consistency=0.0)

    return Operation(
        f"{batch} x {height} x {width}, {n} instances, E 16", "loop over instances",
        lambda: with_gradient(loop_embedding_loss(fields, labels, weights), fields),
        {name: Ours(
            lambda: with_gradient(sum(embedding_loss(fields, labels, weights=weights).values()), fields),
            same_loss,
            "two distances for every pair of a pixel and an instance; where they are near, two exponentials "
            "and the products of the gradients; soft masks are made twice so that they need no memory. The "
            "embeddings are read three times, the gradient is written twice",
        )},
        fields.nbytes, varied=n,  # the gradient is as large
        flop=3 * 2 * labels.numel() * n * 16,  # distances, and the gradients of both their sides
    )  # fmt: skip


def fusion(n_images: int, n_views: int, height: int, width: int, seed: int) -> Operation:
    """The fusion of the views of some images in a self-training step, 19 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = views.multi_view_crops(torch.rand(n_images, 3, height, width), n_views=n_views)
        maps = torch.randn(n_images * n_views, 19, height, width).mul_(3).softmax(1)
    inputs = (maps, found.affine, found.inverse, found.padding, n_views)
    return Operation(
        f"{n_images} x {n_views} views, {height} x {width}, 19 classes", "all crops on the canvas at once",
        lambda: fusion_of_all_crops(*inputs),
        {"fusion of views": Ours(
            lambda: fuse_views(*inputs)[0], lambda a, b: close(a, b, 1e-5),
            "two bilinear samplings of every class and pixel",
        )},
        maps.nbytes,
    )  # fmt: skip


def scores(height: int, width: int, n_things: int, seed: int) -> tuple[Operation, Operation]:
    """Panoptic quality of one image, and its matches for the official instance AP."""
    truth, prediction = panoptic_pair(height, width, n_things, seed)

    def quality() -> np.ndarray:
        stats = PanopticStats(CITYSCAPES)
        stats.update(*truth, *prediction)
        return stats.images[0][:, [3, 0, 1, 2]]

    def average_precision() -> np.ndarray:
        score = CityscapesAP(CITYSCAPES, min_region=0)
        score.update(*truth, *prediction)
        return score.records[0][:, [0, 1, 2, 4]]

    def check(ours, theirs) -> tuple[str, bool]:
        return close(ours, theirs, 1e-12)

    why = "the comparison of neighbours in both maps and the search for where they differ"
    return Operation(
        f"{height} x {width}, {len(truth[1])} segments", "COCO panopticapi's loop, in memory",
        lambda: loop_panoptic(truth, prediction),
        {"PQ of one image": Ours(quality, check, why)}, truth[0].nbytes,
    ), Operation(
        f"{height} x {width}, {sum(s['isthing'] for s in prediction[1])} predictions",
        "cityscapesScripts' loop, in memory", lambda: loop_average_precision(truth, prediction),
        {"instance AP of one image": Ours(average_precision, check, f"as PQ: {why}")}, truth[0].nbytes,
    )  # fmt: skip


def confusion(height: int, width: int, seed: int) -> Operation:
    """Confusion matrix of one image, 19 classes."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 19, (height // 16, width // 16)), np.ones((16, 16))).astype(np.uint8)
    other = np.roll(truth, (3, 5), (0, 1))

    def codes() -> np.ndarray:
        return 19 * truth.ravel().astype(np.int64) + other.ravel()

    return Operation(
        f"{height} x {width}, 19 classes", "numpy.bincount",
        lambda: np.bincount(codes(), minlength=361).reshape(19, 19),
        {"confusion matrix": Ours(
            lambda: confusion_matrix(truth, other, 19)[:19, :19], lambda a, b: close(a, b, 0),
            "one look-up a pixel (OpenCV's histogram)",
        )},
        truth.nbytes,
    )  # fmt: skip


def table_operations(spec) -> Iterator[Operation]:
    """The comparisons of the main table; sizes are those of a `PerformanceSpec`."""
    size, seed = (spec.height, spec.width), spec.seed
    for dim in spec.embedding_dims:
        yield clustering(*size, spec.n_instances[0], dim, seed)
    for n in spec.n_instances:
        yield stability(*size, n, seed)
        for unlabelled in (False, True):
            yield loss(spec.batch_size, *size, n, seed, unlabelled=unlabelled)
        if spec.before_training:
            yield loss(spec.batch_size, *size, n, seed, unlabelled=True, told_apart=False)
    yield fusion(spec.step.n_target, spec.step.n_views, spec.height // 2, spec.width // 2, seed)
    size = (spec.panoptic_height, spec.panoptic_width)
    yield from scores(*size, 40, seed)
    yield confusion(*size, seed)


def scaling_operations(spec) -> Iterator[tuple[str, int, Operation]]:
    """(axis, position on it, operation) of the curves of cost against size."""
    seed, dim, n = spec.seed, spec.embedding_dims[0], spec.n_instances[0]
    size, panoptic_size = (spec.height, spec.width), (spec.panoptic_height, spec.panoptic_width)
    for factor in (0.25, 0.5, 1, 2):
        some = [int(side * factor) for side in size]
        yield "pixels", some[0] * some[1], clustering(*some, n, dim, seed)
        yield "pixels", some[0] * some[1], loss(1, *some, n, seed, unlabelled=True)
    for k in (n // 2, n, 2 * n, 4 * n):
        yield "instances", k, clustering(*size, k, dim, seed)
        yield "instances", k, loss(1, *size, k, seed, unlabelled=True)
    for e in (dim // 2, dim, 2 * dim, 4 * dim):
        yield "embedding dimensions", e, clustering(*size, n, e, seed)
    for factor in (0.25, 0.5, 1):
        some = [int(side * factor) for side in panoptic_size]
        yield "pixels", some[0] * some[1], scores(*some, 40, seed)[0]
        yield "pixels", some[0] * some[1], confusion(*some, seed)
    for k in (10, 40, 160):
        yield "instances", k, scores(*panoptic_size, k, seed)[0]


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


def bandwidth_of(dim: int) -> float:
    """The bandwidth that a field of so many dimensions needs: distances to a mean grow like their root."""
    return DELTA_VAR * (dim / 8) ** 0.5


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
            {"id": k, "category_id": category[k], "isthing": k > 20, "area": int(area), "iscrowd": 0,
             "confidence": 1 / k}
            for k, area in enumerate(np.bincount(labels.ravel()))
            if k and area
        ]  # fmt: skip

    columns = (np.arange(width) + 5 + rng.integers(-2, 3, height)[:, None]) % width
    ragged = np.take_along_axis(np.roll(canvas, 3, 0), columns, 1)
    canvas, ragged = canvas.astype(np.int32), ragged.astype(np.int32)
    return (canvas, segments(canvas)), (ragged, segments(ragged))


def pair(ours: Measurement, reference: Measurement, memory: Mapping[str, float]) -> dict:
    """Times and memory (MiB of "ours" and "reference") of a pair, as the rows of the table have them."""
    return {
        "ours_ms": 1e3 * ours.median, "ours_iqr_ms": 1e3 * ours.iqr, "repeats": len(ours.raw_times),
        "reference_ms": 1e3 * reference.median, "reference_iqr_ms": 1e3 * reference.iqr,
        "reference_repeats": len(reference.raw_times), "ratio": reference.median / ours.median,
        "ours_mib": memory["ours"], "reference_mib": memory["reference"],
    }  # fmt: skip


def with_gradient(loss: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """A loss, and its gradient to the embeddings that it was made of."""
    return loss.detach(), torch.autograd.grad(loss, fields)[0]


# ---- agreement -------------------------------------------------------------------------------------------


def close(ours, theirs, tolerance: float, *, scale: float = 1.0) -> tuple[str, bool]:
    """How far two arrays are apart, as a share of `scale`, and whether that is within the tolerance."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return f"shapes {ours.shape} and {theirs.shape}", False
    difference = float(np.abs(ours - theirs).max()) / max(scale, 1e-12)
    return "identical" if difference == 0 else f"within {difference:.0e}", difference <= tolerance


def same_loss(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> tuple[str, bool]:
    """Whether two results of `with_gradient` agree."""
    found = [close(a, b, 1e-4, scale=float(b.abs().max())) for a, b in zip(ours, theirs)]
    return f"value {found[0][0]}; gradient {found[1][0]}", found[0][1] and found[1][1]


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
    shared = contingency_matrix(truth.numpy(), labels.numpy())
    iou = shared / (shared.sum(1, keepdims=True) + shared.sum(0) - shared)
    n_found = int((iou > 0.5).sum())
    return {
        "ARI": adjusted_rand_score(truth.numpy(), labels.numpy()),
        "recall": n_found / len(shared),
        "RQ": 2 * n_found / sum(shared.shape),
    }
