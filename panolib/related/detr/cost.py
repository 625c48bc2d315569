"""What DETR and our pipeline cost and give, measured in one process that alternates them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from panolib.data.samples import Sample
from panolib.inference.panoptic import panoptic_truth, predict_panoptic
from panolib.inference.predict import one_by_one
from panolib.lab.measuring import measure_seconds, with_peak_memory
from panolib.labels import LabelSet
from panolib.losses.embedding import embedding_loss
from panolib.metrics.panoptic import PanopticStats
from panolib.models.complexity import count_operations, n_parameters
from panolib.models.geometry import placement_of
from panolib.related.detr.network import ENCODER
from panolib.related.detr.score import QueryRule, predict_queries
from panolib.related.detr.targets import panoptic_from_queries
from panolib.related.detr.training import DetrBatches, DetrSpec
from panolib.scoring.evaluate import panoptic_scores
from panolib.training.crops import LabelledBatches
from panolib.training.instance_targets import ring_margins, source_targets
from panolib.training.run_specs import BaselineSpec, InstanceBaselineSpec
from panolib.training.semantic import supervised_loss
from panolib.training.setup import build_optimizer

Panoptic = Callable[[Sample], tuple]  # sample -> (panoptic map, segments)


@dataclass(frozen=True)
class System:
    """One system: its networks, one training step on images of a batch, and inference on one image.

    `forward` runs the networks alone on one image, for counting operations.
    """

    networks: Sequence[nn.Module]
    step: Callable[[], None]
    infer: Panoptic
    forward: Callable[[], Any]


def _measured(function: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What a call returns, and its seconds and MiB."""
    results = []
    cost = with_peak_memory(lambda: measure_seconds(lambda: results.append(function())), timed=True)
    return results[0], cost


def detr_system(
    model: nn.Module, spec: DetrSpec, rule: QueryRule, train: Sequence[Sample], label_set: LabelSet, n: int
) -> System:
    """DETR as it is trained by `training.train_detr`, on the first `n` images; its network is changed."""
    optimizer = build_optimizer(spec.optimiser, model, encoder=ENCODER)
    batch = DetrBatches(train, label_set, range(len(train)), n, spec.size, spec.mask_stride, spec.seed)(0)
    device = next(model.parameters()).device
    image = batch["image"].to(device)
    labels = [{name: values.to(device) for name, values in target.items()} for target in batch["labels"]]

    def step() -> None:
        model.train()
        loss = model(pixel_values=image, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimizer.step()

    def infer(sample: Sample) -> tuple:
        model.eval()
        with torch.inference_mode():
            queries = predict_queries(model, sample, spec.size)
            options = {"threshold": rule.thresholds[0], "min_area": rule.min_area}
            return panoptic_from_queries(*queries, label_set, **options)

    return System([model], step, infer, functools.partial(model, pixel_values=image[:1]))


def our_system(
    semantic: nn.Module,
    instance: nn.Module,
    specs: tuple[BaselineSpec, InstanceBaselineSpec],
    train: Sequence[Sample],
    label_set: LabelSet,
    n: int,
    **options,
) -> System:
    """Our two supervised networks, each with its own step on `n` crops; the networks are changed.

    `options`: of `inference.panoptic.predict_panoptic`.
    """
    device, maps = next(semantic.parameters()).device, ("semantic", "instance", "crowd")
    batches = [LabelledBatches(train, n, spec.augmentation, maps)(0) for spec in specs]
    batches = [{name: values.to(device) for name, values in batch.items()} for batch in batches]
    optimizers = [build_optimizer(spec.optimiser, model) for spec, model in zip(specs, (semantic, instance))]

    def losses():
        logits = semantic(batches[0]["image"])
        yield supervised_loss((logits,), batches[0]["semantic"], placement_of(semantic))
        embeddings = instance(batches[1]["image"])
        labels, ignore = source_targets(batches[1], embeddings, specs[1].min_area, None)
        margins = ring_margins(specs[1].margins, 0)
        terms = embedding_loss(embeddings, labels, weights=specs[1].weights, ignore=ignore, **margins)
        yield sum(terms.values())

    def step() -> None:
        semantic.train(), instance.train()
        for loss, optimizer in zip(losses(), optimizers):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def infer(sample: Sample) -> tuple:
        return predict_panoptic(semantic, instance, sample, label_set, **options).panoptic

    def forward() -> None:
        semantic(batches[0]["image"][:1])
        instance(batches[1]["image"][:1])

    return System([semantic, instance], step, infer, forward)


def compare(
    systems: Mapping[str, System], validation: Sequence[Sample], label_set: LabelSet, *,
    batch_size: int, repeats: int, label: str = "",
) -> dict[str, dict]:  # fmt: skip
    """PQ, parameters, operations, seconds and memory of every system.

    Inference comes first, with the trained weights, image by image in turn; then training steps in turn,
    which move the weights. The first call of each is not counted.

    Returns
    -------
    dict
        {system: {"scores": of `evaluate.panoptic_scores`, "parameters", "forward_gflop" and "step_gflop" an
        image (2 a multiply-add; matrix products and convolutions), and as {"median", "low", "high"}
        (quartiles) "train_s", "train_mib", "infer_s", "infer_mib": a step of a batch, and one image from
        pixels to map}}
    """
    stats = {name: PanopticStats(label_set) for name in systems}
    infer, train = ({name: [] for name in systems} for _ in range(2))
    for sample in one_by_one(validation, label):
        truth = panoptic_truth(sample, label_set)
        for name, system in systems.items():
            found, cost = _measured(functools.partial(system.infer, sample))
            infer[name].append(cost)
            stats[name].update(*truth, *found)
    flops = {name: _flops(system, batch_size) for name, system in systems.items()}
    for _ in range(repeats + 1):
        for name, system in systems.items():
            train[name].append(_measured(system.step)[1])
    return {
        name: {
            "scores": panoptic_scores(stats[name]),
            "parameters": sum(map(n_parameters, system.networks)),
            **flops[name],
            **_quartiles("train", train[name][1:]),
            **_quartiles("infer", infer[name][1:]),
        }
        for name, system in systems.items()
    }


def _flops(system: System, batch_size: int) -> dict[str, float]:
    """10^9 operations of one image: a forward pass, and its share of a training step."""
    for network in system.networks:
        network.eval()
    with torch.no_grad():
        forward = count_operations(system.forward)
    return {"forward_gflop": forward / 1e9, "step_gflop": count_operations(system.step) / 1e9 / batch_size}


def _quartiles(stage: str, calls: Sequence[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Those of the seconds and MiB of some calls."""
    found = np.quantile(calls, (0.25, 0.5, 0.75), axis=0)  # [3, 2]
    return {
        f"{stage}_{unit}": dict(zip(("low", "median", "high"), found[:, i].tolist()))
        for i, unit in enumerate(("s", "mib"))
    }
