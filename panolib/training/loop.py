"""What training loops share, and what they are handed: a job that records them, a watch that scores them.

Batches and draws of iteration i depend on the seed and i alone. So a run that goes on from a checkpoint is
bit for bit the run that was never interrupted. The job refuses a logged value that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from panolib.data.loading import batches, iteration_seed
from panolib.training import ranks
from panolib.training.setup import launch, set_learning_rate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Parts = Mapping[str, nn.Module | torch.optim.Optimizer | Tensor]  # what a checkpoint holds, by name


class Job(Protocol):
    """What a training loop asks of the job that it runs in (`lab.job.Job`)."""

    start: int

    def resume(self) -> dict | None: ...

    def progress(self, start: int, stop: int) -> Iterable[int]: ...

    def log(self, iteration: int, **values) -> None: ...

    def checkpoint(self, state_fn: Callable[[], dict], iteration: int) -> None: ...

    def save_sample(self, name: str, image: np.ndarray) -> None: ...


Watch = Callable[..., dict[str, float]]  # iteration, network, ... -> scores for the curves; {} if none is due


def unwatched(iteration: int, network: nn.Module, *_) -> dict[str, float]:
    """The watch of a training that nobody scores."""
    return {}


def begin(spec, job: Job, *, together: bool = False) -> tuple[Fabric, dict | None]:
    """The Fabric of a run, and the checkpoint that it goes on from, None at its start. Seeds torch.

    `together`: on all devices that the spec asks for; else on one, and processes that follow leave it alone.
    """
    if not together and ranks.follows():
        raise ranks.Followed
    fabric = launch(spec.compute, together=together)
    torch.manual_seed(spec.seed)
    state, job.start = ranks.from_first(lambda: (job.resume(), job.start))
    return fabric, state


def restore(parts: Parts, state: Mapping | None) -> None:
    """Bring every part to its state in a checkpoint; without one nothing changes."""
    for name, part in parts.items() if state is not None else ():
        if isinstance(part, Tensor):
            part.copy_(state[name])
        else:
            part.load_state_dict(state[name])


def iterate(spec, job: Job, fabric: Fabric, parts: Parts, *streams: Callable[[int], dict]) -> Iterator[tuple]:
    """Yield (iteration, a batch of every stream) under a progress bar; checkpoints the parts after each.

    When it yields, the draws of the step are seeded, gradients are zero, and the learning rate of every
    optimiser among the parts is that of the iteration. Every stream has draws of its own. Of several
    processes each gets its part of the batch.
    """
    seeds = [iteration_seed(spec.seed, number, "stream") for number in range(len(streams))]
    span = {"start": job.start, "stop": spec.iterations, "workers": spec.compute.loader_workers}
    loaders = [
        fabric.setup_dataloaders(batches(stream, seed=seed, **span), use_distributed_sampler=False)
        for stream, seed in zip(streams, seeds if len(streams) > 1 else [spec.seed])
    ]
    optimizers = [part for part in parts.values() if isinstance(part, torch.optim.Optimizer)]
    step = f"step {ranks.rank()}" if ranks.rank() else "step"
    for iteration, *whole in zip(job.progress(job.start, spec.iterations), *loaders):
        batch = [ranks.own_part(each) for each in whole]
        torch.manual_seed(iteration_seed(spec.seed, iteration, step))
        for optimizer in optimizers:
            set_learning_rate(optimizer, spec.optimiser, iteration, spec.iterations)
            optimizer.zero_grad(set_to_none=True)
        yield iteration, *batch
        job.checkpoint(lambda: {name: _state(part) for name, part in parts.items()}, iteration + 1)


def _state(part: nn.Module | torch.optim.Optimizer | Tensor) -> dict | Tensor:
    return part if isinstance(part, Tensor) else part.state_dict()
