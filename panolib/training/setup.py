"""What every training loop needs before its first step: networks, optimiser, schedule, Fabric.

The settings are frozen dataclasses of plain values, read from a profile and recorded with the run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from panolib.config import Count, Natural, NonNegative, Positive, Share, later, spec
from panolib.data.loading import batches, iteration_seed
from panolib.models.bisenet import BiSeNet
from panolib.models.deeplab import DeepLab
from panolib.models.encoder import LAYOUTS, OUTPUT_STRIDES, Geometry, ResNetEncoder
from panolib.models.geometry import Alignment
from panolib.models.unet import EmbeddingUNet
from panolib.models.weights import check_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric


Depth = Literal[tuple(LAYOUTS)]  # of a ResNet


@spec
class Compute:
    """Where and how a run computes.

    `accelerator` and `precision` are Lightning Fabric's words ("cpu", "cuda", "auto"; "32-true",
    "bf16-mixed"). `loader_workers` = 0 loads in the training process.
    """

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps", "tpu"]
    precision: Literal[
        "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true",
        "transformer-engine", "transformer-engine-float16",
    ]  # fmt: skip
    loader_workers: Natural
    channels_last: bool


@spec
class SemanticNetwork:
    """A network on a ResNet encoder; `weights`: torchvision's name, a file, or None for from scratch.

    `alignment` says where the cells of maps sit when they are upsampled, in training and evaluation
    (`models.geometry`). SAC's checkpoints want geometry "sac" and alignment "corners".
    """

    version: Literal["v2", "v3", "v3+", "bisenet"]  # of DeepLab, or "bisenet", which has no rates
    depth: Depth
    width: Count
    output_stride: Literal[OUTPUT_STRIDES]
    stem_pool: bool
    rates: tuple[Count, ...]
    weights: str | None
    head_channels: Count = later(256)  # of V3 and V3+
    alignment: Alignment = later("cell_centre")
    geometry: Geometry = later("torchvision")  # of the encoder

    def __post_init__(self):
        if self.version != "bisenet" and not self.rates:
            raise ValueError(f"rates: expected one or more for DeepLab {self.version}, found none")
        check_weights(self.weights, self.depth)


@spec
class InstanceNetwork:
    """The embedding U-Net; `coordinates` appends x and y as input channels, `weights` as above."""

    depth: Depth
    width: Count
    stem_pool: bool
    embedding_dim: Count
    decoder_channels: tuple[Count, ...]
    output_stride: Literal[1, 2]
    coordinates: bool
    weights: str | None
    alignment: Alignment = later("cell_centre")  # of the maps inside the decoder
    input_width: Count | None = later(None)  # pixels to which whole images are resized; None: as they are

    def __post_init__(self):
        n_wanted = 4 if self.output_stride == 2 else 5
        if len(self.decoder_channels) < n_wanted:
            raise ValueError(
                f"decoder_channels: expected {n_wanted} widths or more for output stride "
                f"{self.output_stride}, found {self.decoder_channels}"
            )
        check_weights(self.weights, self.depth)


@spec
class Monitor:
    """Labelled images on which a run is scored while it trains; training never sees their labels."""

    interval: Count  # iterations; the start and the end are scored too
    n_images: Count  # the first ones of every data set
    data: tuple[str, ...]


@spec
class Optimiser:
    """`head_lr_scale` multiplies the rate of layers that do not come with pre-trained weights."""

    name: Literal["adamw", "adam", "sgd"]
    lr: Positive
    weight_decay: NonNegative
    momentum: Share
    head_lr_scale: NonNegative
    schedule: Literal["constant", "poly", "cosine"]  # poly: power 0.9
    warmup: Natural  # iterations of linear warm-up
    decay_biases: bool = later(False)  # SAC does not decay them, torch's optimisers (SPOCO) do


def launch(compute: Compute) -> Fabric:
    """A Fabric for one process. Raises RuntimeError when the asked accelerator is not there."""
    from lightning_fabric import Fabric  # a second to import: only for those who train

    if compute.accelerator == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("the profile asks for accelerator 'cuda', but no CUDA device is available")
    return Fabric(accelerator=compute.accelerator, devices=1, precision=compute.precision)


def stream_loaders(
    fabric: Fabric,
    streams: Sequence[Callable[[int], dict]],
    *,
    seed: int,
    start: int,
    stop: int,
    compute: Compute,
) -> list:
    """One loader a stream (source, target), each with draws of its own."""
    return [
        fabric.setup_dataloaders(
            batches(
                stream,
                seed=iteration_seed(seed, number, "stream"),
                start=start,
                stop=stop,
                workers=compute.loader_workers,
            )
        )
        for number, stream in enumerate(streams)
    ]


def lay_out(model: nn.Module, compute: Compute) -> nn.Module:
    """Bring the weights of a network into the `memory_format` that it is trained in. Returns the network."""
    for layer in filter(overruns_channels_last, model.modules()):
        layer.register_forward_pre_hook(_contiguous_input)  # a channels-last image would bring it back
    return model.to(memory_format=memory_format(compute, model))


def memory_format(compute: Compute, model: nn.Module) -> torch.memory_format:
    """Layout of convolution weights; channels-last is the fast one on GPUs.

    Contiguous, whatever is asked, for a network with a layer that is not safe otherwise.
    """
    if compute.channels_last and not any(map(overruns_channels_last, model.modules())):
        return torch.channels_last
    return torch.contiguous_format


def overruns_channels_last(layer: nn.Module) -> bool:
    """Whether the channels-last backward pass of a layer may write beyond its arrays.

    That of a 1x1 convolution with a stride and fewer than 16 input channels (one register of float32) does
    under AVX-512, seen with torch 2.14.1 (oneDNN 3.12); the process dies of it, or goes on with damage.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 16
    )


def _contiguous_input(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return tuple(value.contiguous() for value in inputs)


def build_semantic(
    network: SemanticNetwork, n_classes: int, *, pretrained: bool = True
) -> DeepLab | BiSeNet:
    """The network; with `pretrained` False without its weights, for one whose state is loaded next."""
    encoder = ResNetEncoder(
        network.depth,
        width=network.width,
        output_stride=network.output_stride,
        stem_pool=network.stem_pool,
        weights=network.weights if pretrained else None,
        geometry=network.geometry,
    )
    if network.version == "bisenet":
        return BiSeNet(encoder, n_classes, alignment=network.alignment)
    return DeepLab(
        encoder,
        n_classes,
        version=network.version,
        rates=network.rates,
        head_channels=network.head_channels,
        alignment=network.alignment,
    )


def build_instance(network: InstanceNetwork, *, pretrained: bool = True) -> EmbeddingUNet:
    """The network; `pretrained` as above."""
    encoder = ResNetEncoder(
        network.depth,
        width=network.width,
        output_stride=32 if network.stem_pool else 16,
        stem_pool=network.stem_pool,
        in_channels=5 if network.coordinates else 3,
        weights=network.weights if pretrained else None,
    )
    return EmbeddingUNet(
        encoder,
        network.embedding_dim,
        decoder_channels=network.decoder_channels,
        output_stride=network.output_stride,
        coordinates=network.coordinates,
        alignment=network.alignment,
        input_width=network.input_width,
    )


def build_optimizer(
    optimiser: Optimiser, model: nn.Module, *, encoder: str = "encoder."
) -> torch.optim.Optimizer:
    """Optimizer with separate groups for encoder and new layers, and for biases.

    `encoder` is how the names of the encoder's parameters begin.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = 1.0 if name.startswith(encoder) else optimiser.head_lr_scale
        bias = name.endswith("bias")
        if bias and optimiser.name == "sgd":
            scale *= 2.0  # SAC doubles the rate of biases
        decay = 0.0 if bias and not optimiser.decay_biases else optimiser.weight_decay
        groups.setdefault((optimiser.lr * scale, decay), []).append(parameter)
    parameters = [
        {"params": group, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), group in groups.items()
    ]
    if optimiser.name == "sgd":
        return torch.optim.SGD(parameters, lr=optimiser.lr, momentum=optimiser.momentum)
    if optimiser.name == "adam":
        return torch.optim.Adam(parameters, lr=optimiser.lr)
    if optimiser.name == "adamw":
        return torch.optim.AdamW(parameters, lr=optimiser.lr)
    raise ValueError(f"unknown optimiser {optimiser.name!r}; expected 'adamw', 'adam' or 'sgd'")


def set_learning_rate(
    optimizer: torch.optim.Optimizer, optimiser: Optimiser, iteration: int, stop: int
) -> None:
    """Set the rate of one iteration: linear warm-up times the schedule. A function of `iteration` only."""
    progress = iteration / max(1, stop)
    if optimiser.schedule == "constant":
        factor = 1.0
    elif optimiser.schedule == "poly":
        factor = (1 - progress) ** 0.9
    elif optimiser.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"unknown schedule {optimiser.schedule!r}; expected 'constant', 'poly' or 'cosine'")
    factor *= min(1.0, (iteration + 1) / max(1, optimiser.warmup))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


@contextlib.contextmanager
def batch_norm_momentum(model: nn.Module, momentum: float) -> Iterator[None]:
    """Within the block, running statistics move with `momentum`; 0 leaves them alone."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = momentum
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.momentum = value


def freeze_batch_norm(model: nn.Module) -> None:
    """Put batch-norm layers in eval mode; their affine parameters are still trained (SAC)."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
