"""Operations of a network on one input, under the conventions that people count them by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

UPSAMPLED_PIXEL = 11  # operations of the profiler that the sources used, for a bilinear pixel and channel

# convention -> (factor, of a convolution's bias and of LeakyReLU, of an upsampled pixel)
CONVENTIONS = {
    "multiply-adds": (1, 0, 0),
    "operations": (2, 0, 0),
    "report": (2, 0, UPSAMPLED_PIXEL),
    "paper": (2, 1, UPSAMPLED_PIXEL),
}


def n_parameters(model: nn.Module) -> int:
    """Number of weights, those of frozen stages too."""
    return sum(parameter.numel() for parameter in model.parameters())


def n_operations(model: nn.Module, shape: tuple[int, ...], *, convention: str = "operations") -> int:
    """Operations of one forward pass of an input of `shape` [B, C, H, W].

    A copy of the model runs on torch's device "meta", which computes shapes only. A `convention` of
    `CONVENTIONS` says what is counted: the multiplications of all convolutions, each with its addition as one
    operation or as two. "report" and "paper" double a sum that also has 11 for each upsampled value, and in
    "paper" one for each value that gets a bias or passes LeakyReLU: the conventions of the two published
    tables. Raises ValueError for another one.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}, expected one of {sorted(CONVENTIONS)}")
    factor, pointwise, upsampled = CONVENTIONS[convention]
    total = 0

    def count(layer: nn.Module, inputs, output: Tensor) -> None:
        nonlocal total
        each_value = upsampled if isinstance(layer, nn.Upsample) else pointwise
        if isinstance(layer, nn.Conv2d):
            each_value = layer.weight[0].numel() + pointwise * (layer.bias is not None)
        total += each_value * output.numel()

    twin = _meta_copy(model)
    for layer in twin.modules():
        if isinstance(layer, nn.Conv2d | nn.LeakyReLU | nn.Upsample):
            layer.register_forward_hook(count)
    with torch.no_grad():
        twin(torch.empty(shape, device="meta"))
    return factor * total


def clean_operations(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The same by torch's own counter: multiplications and additions of convolutions and matrix products."""
    twin = _meta_copy(model)
    with torch.no_grad():
        return count_operations(lambda: twin(torch.empty(shape, device="meta")))


def count_operations(function: Callable[[], Any]) -> int:
    """Multiplications and additions of the convolutions and matrix products of one call.

    Attention counts as its two matrix products. The counter does not see into every fused kernel, and the
    processor decides which of them torch takes, so none is used while it counts.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy without numbers, in evaluation mode."""
    return copy.deepcopy(model).eval().to("meta")
