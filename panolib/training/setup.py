"""What a training needs before its first step: Fabric, networks and their layout, optimiser, schedule."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from panolib.errors import UserError, one_line
from panolib.models.bisenet import BiSeNet
from panolib.models.deeplab import DeepLab
from panolib.models.encoder import Encoder
from panolib.models.shared import SharedNetwork
from panolib.models.unet import EmbeddingUNet
from panolib.training.specs import (
    Compute,
    InstanceNetwork,
    Optimiser,
    SemanticNetwork,
    SharedNetworks,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class NoDevice(UserError, RuntimeError):
    """A profile asks for a device that is not there."""


def launch(compute: Compute, *, together: bool = False) -> Fabric:
    """A Fabric for this process, or, `together`, for all that share a run, which it starts and waits for.

    Raises NoDevice when the asked accelerator is not there.
    """
    from lightning_fabric import Fabric  # a second to import: only for those who train

    options = {"accelerator": compute.accelerator, "precision": compute.precision}
    shared = together and compute.n_processes > 1
    if shared:
        options |= {"num_nodes": compute.num_nodes, "strategy": compute.strategy}
    local = int(os.environ.get("LOCAL_RANK", "0"))  # of processes that share a run each has its GPU
    alone = [local] if local and torch.cuda.is_available() else 1
    try:
        fabric = Fabric(devices=compute.devices if shared else alone, **options)
    except RuntimeError as error:
        found = f"found none ({one_line(error)})"
        raise NoDevice(
            f"compute.accelerator: expected a device of the kind {compute.accelerator!r}, {found}"
        ) from error
    if shared:
        fabric.launch()
    return fabric


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
    encoder = _build_encoder(network, network.output_stride, pretrained, geometry=network.geometry)
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
    in_channels = 5 if network.sees_coordinates else 3
    encoder = _build_encoder(network, network.encoder_stride, pretrained, in_channels=in_channels)
    return _embedding_unet(encoder, network)


def build_shared(networks: SharedNetworks, n_classes: int, *, pretrained: bool = True) -> SharedNetwork:
    """Both networks on the encoder of the semantic one; `pretrained` as above."""
    semantic = build_semantic(networks.semantic, n_classes, pretrained=pretrained)
    return SharedNetwork(semantic, _embedding_unet(semantic.encoder, networks.instance))


def _embedding_unet(encoder: Encoder, network: InstanceNetwork) -> EmbeddingUNet:
    return EmbeddingUNet(
        encoder,
        network.n_channels,
        decoder_channels=network.decoder_channels,
        output_stride=network.output_stride,
        coordinates=network.sees_coordinates,
        coordinate_length=network.coordinate_length,
        alignment=network.alignment,
        input_width=network.input_width,
    )


def _build_encoder(
    network: SemanticNetwork | InstanceNetwork, output_stride: int, pretrained: bool, **options
) -> Encoder:
    """The encoder of a network. `options`: those that its kind of network adds."""
    chosen = network.encoder
    return Encoder(
        chosen.name, output_stride=output_stride, frozen=chosen.frozen, weights=chosen.weights,
        load=pretrained, **options,
    )  # fmt: skip


def build_optimizer(
    optimiser: Optimiser, model: nn.Module, *, encoder: str = "encoder."
) -> torch.optim.Optimizer:
    """Optimizer with separate groups for encoder and new layers, and for biases; without frozen parameters.

    `encoder` is how the names of the encoder's parameters begin. One without weights is new.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    pretrained = getattr(getattr(model, "encoder", None), "pretrained", True)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0 if name.startswith(encoder) and pretrained else optimiser.head_lr_scale
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
    return torch.optim.AdamW(parameters, lr=optimiser.lr)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, optimiser: Optimiser, iteration: int, stop: int
) -> None:
    """Set the rate of one iteration: linear warm-up times the schedule. A function of `iteration` only."""
    progress = iteration / max(1, stop)
    factor = 1.0  # constant
    if optimiser.schedule == "poly":
        factor = (1 - progress) ** 0.9
    elif optimiser.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    factor *= min(1.0, (iteration + 1) / max(1, optimiser.warmup))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
