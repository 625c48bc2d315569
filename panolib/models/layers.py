"""Layers that several networks are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_relu(
    in_channels: int, channels: int, kernel_size: int = 3, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size but for its stride, batch norm, ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def normalise_pooled(norm: nn.BatchNorm2d, pooled: Tensor) -> Tensor:
    """Batch norm of globally pooled features [B, channels, 1, 1].

    One value per channel has no variance, and torch refuses it in training: a single image is normalised with
    the running statistics, and does not move them.
    """
    if not (norm.training and len(pooled) == 1):
        return norm(pooled)
    return F.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def init_decoder(network: nn.Module) -> None:
    """He initialisation of every convolution but those of the encoder; no bias."""
    for name, module in network.named_children():
        for layer in module.modules():
            if name != "encoder" and isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
