"""What a training is handed: the job that records it, and a watch that scores it while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from torch import nn


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
