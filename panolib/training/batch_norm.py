"""Batch norm between domains: statistics re-estimated on the target, held still, or following one domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from panolib.data.loading import batches
from panolib.data.photometry import normalise
from panolib.data.samples import Sample
from panolib.models.encoder import Encoder
from panolib.training.crops import UnlabelledBatches, clean_view
from panolib.training.run_specs import BatchNormSpec
from panolib.training.setup import launch


def adapt_batch_norm(
    spec: BatchNormSpec, model: nn.Module, source: Sequence[Sample] | None, target: Sequence[Sample]
) -> nn.Module:
    """Refresh running statistics in place: ABN (with a source) or strict AdaBN (without).

    Only batch-norm layers are in train mode: dropout would add its noise to the statistics. Those of an
    encoder's frozen stages keep the statistics that they came with.
    """
    fabric = launch(spec.compute)
    model = fabric.setup(model.eval())
    layers = batch_norm_layers(model)
    n_target = spec.target_batch_size or spec.batch_size
    streams = [UnlabelledBatches(target, n_target, clean_view(spec.augmentation))]
    if source is None:
        for layer in layers:
            layer.reset_running_stats()
    else:
        own = UnlabelledBatches(source, spec.batch_size, spec.augmentation, renormalise=spec.renormalise)
        streams = [own, *streams]
    loaders = [batches(stream, seed=spec.seed, start=0, stop=spec.n_batches) for stream in streams]
    for layer in layers:
        layer.train()
    with torch.no_grad():
        for number, step in enumerate(zip(*map(fabric.setup_dataloaders, loaders))):
            # strict AdaBN: the plain average over all batches; ABN: the moving average of the reference
            with batch_norm_momentum(model, 1.0 / (number + 1) if source is None else spec.momentum):
                for batch in step:
                    model(normalise(batch["image"]))
    return model


def batch_norm_layers(model: nn.Module) -> list[nn.Module]:
    """All batch-norm layers of a network but those of frozen stages."""
    encoders = [part for part in model.modules() if isinstance(part, Encoder)]
    frozen = {layer for part in encoders for stage in part.frozen_stages for layer in stage.modules()}
    norms = (layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    return [layer for layer in norms if layer not in frozen]


@contextlib.contextmanager
def batch_norm_momentum(model: nn.Module, momentum: float) -> Iterator[None]:
    """Within the block, running statistics move with `momentum`; 0 leaves them alone."""
    layers = batch_norm_layers(model)
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = momentum
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.momentum = value


def source_statistics(model: nn.Module, batch_norm: str) -> contextlib.AbstractContextManager:
    """For a batch of the source: with `batch_norm` "target", running statistics do not follow it."""
    return batch_norm_momentum(model, 0.0) if batch_norm == "target" else contextlib.nullcontext()


def train_mode(model: nn.Module, batch_norm: str) -> None:
    """Train mode; with `batch_norm` "frozen" statistics stay, while affine parameters are trained (SAC)."""
    model.train()
    if batch_norm == "frozen":
        for layer in batch_norm_layers(model):
            layer.eval()
