"""One run on several devices: which of its processes this one is, its part of a batch, means over all.

Every process draws the whole batch and keeps its part, so that images and augmentation are those of one
process. The losses are means over all pixels of a crop and over images, of which every process has as many:
the mean of the gradients of the parts, which Fabric takes, is the gradient of the batch.

Two things differ from one process. Batch norm in training mode normalises a part with the statistics of that
part, and running statistics are those of the first process: so do baselines always; with `batch_norm:
frozen`, as in SAC, neither plays a role. What is drawn on the device (views, noise, anchors of the
consistency) every process draws for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from panolib.errors import UserError

T = TypeVar("T")


class UnevenParts(UserError, ValueError):
    """A batch that cannot be parted evenly."""


class Followed(Exception):
    """A process that trains along is done: the first process goes on with the run and records it."""


def n_processes() -> int:
    """Processes that train one run together, as soon as they have met."""
    return dist.get_world_size() if _have_met() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if _have_met() else 0


def follows() -> bool:
    """Whether another process records what this one trains; known before they meet, from who started it."""
    if _have_met():
        return dist.get_rank() > 0
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("RANK", "NODE_RANK", "LOCAL_RANK"))


def own_part(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of this process of tensors [B, ...]. UnevenParts if B is no multiple of the processes."""
    n = n_processes()
    for name, values in batch.items() if n > 1 else ():
        if len(values) % n:
            raise UnevenParts(
                f"compute.devices, num_nodes: {n} processes share a batch ({name}) of {len(values)}, "
                f"expected a multiple of {n}"
            )
    return {name: values.chunk(n)[rank()] for name, values in batch.items()} if n > 1 else dict(batch)


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradient; the tensor itself where there is one."""
    if n_processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / n_processes()


def from_first(ask: Callable[[], T]) -> T:
    """What the first process is answered, in all of them; the others do not ask."""
    if n_processes() == 1:
        return ask()
    answer = [ask() if rank() == 0 else None]
    dist.broadcast_object_list(answer)
    return answer[0]


def _have_met() -> bool:
    return dist.is_available() and dist.is_initialized()
