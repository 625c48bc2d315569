"""What compiled and published packages of others make of the same input, where they are installed."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from panolib.bench.cases import (
    Operation,
    Ours,
    close,
    embedding_field,
    instance_map,
    panoptic_pair,
    same_loss,
    with_gradient,
)
from panolib.bench.references import DELTA_DIST, DELTA_VAR
from panolib.bench.specs import PerformanceSpec
from panolib.data.images import read_ids
from panolib.inference.exports import write_coco_panoptic, write_coco_panoptic_json
from panolib.labels import CITYSCAPES
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.metrics.panoptic import PanopticStats

PEERS = ("hotcoco", "torch_em")  # of the extras `test` and `peers`
MISSING = "not installed"


def peer_versions() -> dict[str, str]:
    """{package: version, or that it is not installed}: why a record has its rows or not."""
    found = dict.fromkeys(PEERS, MISSING)
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peer_operations(spec: PerformanceSpec, folder: Path) -> Iterator[Operation]:
    """The comparisons with those packages that are installed; files are written into `folder`."""
    versions = peer_versions()
    if versions["hotcoco"] != MISSING:
        size = (spec.panoptic_height, spec.panoptic_width)
        yield panoptic_files(folder, spec.n_files, *size, spec.seed)
    if versions["torch_em"] != MISSING:
        yield contrastive(spec.batch_size, spec.height, spec.width, spec.n_instances[0], spec.seed)


def panoptic_files(folder: Path, n_images: int, height: int, width: int, seed: int) -> Operation:
    """Panoptic quality of every class from files in COCO panoptic format, ours beside hotcoco (Rust)."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # hotcoco's threads; read when it first starts them
    hotcoco = importlib.import_module("hotcoco.panoptic")
    paths = [folder / name for name in ("truth.json", "prediction.json")]
    pairs = [panoptic_pair(height, width, 40, seed + i) for i in range(n_images)]
    for path, images in zip(paths, zip(*pairs)):
        entries = [
            write_coco_panoptic(path.with_suffix(""), str(i), *image, CITYSCAPES) | {"image_id": i}
            for i, image in enumerate(images)
        ]  # hotcoco takes numbers only as the ids of images
        write_coco_panoptic_json(path, entries, CITYSCAPES)

    def theirs() -> list[float]:
        evaluation = hotcoco.PanopticEval(*paths)  # the PNGs lie in the folder of the file's name
        evaluation.evaluate()
        found = evaluation.results()["per_class"]
        return [found[i]["pq"] if i in found else 0.0 for i in CITYSCAPES.file_ids]

    return Operation(
        f"{n_images} x {height} x {width}, {len(pairs[0][0][1])} segments", "hotcoco, from the same files",
        theirs,
        {"PQ from PNG files": Ours(
            lambda: np.nan_to_num(panoptic_quality_of_files(*paths)),
            lambda a, b: close(a, b, 1e-12),
            "most of it inflates the PNGs, in OpenCV, which takes as long as Pillow and torchvision; hotcoco "
            "has a decoder of its own",
        )},
        input_bytes=2 * n_images * height * width * 3,
    )  # fmt: skip


def panoptic_quality_of_files(truth: Path, prediction: Path) -> np.ndarray:
    """PQ of the classes of Cityscapes, NaN where there is none, of two JSON files with their PNGs."""
    stats = PanopticStats(CITYSCAPES)
    listed = [json.loads(path.read_text())["annotations"] for path in (truth, prediction)]
    of_prediction = {entry["image_id"]: entry for entry in listed[1]}
    for entry in listed[0]:
        both = zip((truth, prediction), (entry, of_prediction[entry["image_id"]]))
        maps = [
            (read_ids(path.with_suffix("") / own["file_name"]), _with_train_ids(own["segments_info"]))
            for path, own in both
        ]
        stats.update(*maps[0], *maps[1])
    return stats.result().pq


def _with_train_ids(segments: Sequence[dict]) -> list[dict]:
    return [s | {"category_id": CITYSCAPES.file_ids.index(s["category_id"])} for s in segments]


def contrastive(batch: int, height: int, width: int, n: int, seed: int) -> Operation:
    """Pull, push and regulariser with their gradient, ours beside torch-em's `ContrastiveLoss`.

    To torch-em label 0 is an instance like any other, so ours is given labels from 1 on.
    """
    reference = importlib.import_module("torch_em.loss").ContrastiveLoss(DELTA_VAR, DELTA_DIST, impl="expand")
    labels = torch.stack([instance_map(height, width, n, seed + b) for b in range(batch)])
    labels = torch.stack([each.unique(return_inverse=True)[1] for each in labels])  # those that are seen
    fields = torch.stack([embedding_field(each, 16, seed, noise=0.6) for each in labels]).requires_grad_()
    weights = EmbeddingLossWeights(object_dice=0.0, unlabelled_push=0.0, consistency=0.0)
    return Operation(
        f"{batch} x {height} x {width}, {n} instances, E 16", "torch-em's ContrastiveLoss",
        lambda: with_gradient(reference(fields, labels[:, None]).squeeze(), fields),
        {"pull, push": Ours(
            lambda: with_gradient(
                sum(embedding_loss(fields, labels + 1, weights=weights).values()), fields
            ),
            same_loss,
        )},
        fields.nbytes, varied=n,
    )  # fmt: skip
