"""Batches as a pure function of (seed, iteration).

Every random draw of iteration *i* comes from a generator seeded with (seed, i). So a run that was
killed resumes bit for bit without saving any sampler state, and the number of loader workers does
not change what is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset


def iteration_seed(seed: int, iteration: int, stream: str = "batch") -> int:
    """63-bit seed of one iteration; `stream` keeps draws for different purposes apart."""
    digest = hashlib.sha256(f"{seed}/{iteration}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _Iterations(Dataset):
    """Map-style data set whose item i is the whole batch of iteration i."""

    def __init__(self, make_batch: Callable[[int], dict], seed: int):
        self.make_batch, self.seed = make_batch, seed

    def __getitem__(self, iteration: int) -> dict:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(iteration_seed(self.seed, iteration))
            return self.make_batch(iteration)


def batches(
    make_batch: Callable[[int], dict], *, seed: int, start: int, stop: int, workers: int = 0
) -> DataLoader:
    """Loader of the batches of iterations start .. stop - 1, in order.

    `make_batch` makes a dict of tensors of an iteration. It draws from torch's global generator, which is
    seeded before each call, and must be picklable for `workers` > 0: loader processes, on which the batches
    do not depend; 0 loads in this one.
    """
    return DataLoader(
        _Iterations(make_batch, seed),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
