"""A toy study for the tests of runs and commands: one layer, with everything that a real run has."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from panolib.lab import provenance
from panolib.lab.engine import get_all
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.lab.store import Store

provenance.commit(), provenance.versions()  # asked once, before child processes are forked


@dataclass(frozen=True)
class ToySpec:
    seed: int = 0
    n_iterations: int = 30
    learning_rate: float = 0.1
    pause_s: float = 0.0
    fails_at: int | None = None


def train_toy(run: Run, job: Job) -> dict:
    """A linear layer and descent with momentum; iteration i draws from a generator of its own."""
    spec = run.spec
    torch.manual_seed(spec.seed)
    model = torch.nn.Linear(16, 4)
    if run.parents:
        model.load_state_dict(job.parent("start"))
    velocity = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    state = job.resume()
    if state is not None:
        model.load_state_dict(state["model"])
        velocity = state["velocity"]
    for i in job.progress(job.start, spec.n_iterations):
        image = torch.randn(32, 16, generator=torch.Generator().manual_seed(1000 * spec.seed + i))
        loss = model(image).square().mean() + (math.nan if i == spec.fails_at else 0.0)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"non-finite loss at iteration {i}")
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                velocity[name] = 0.9 * velocity[name] - spec.learning_rate * parameter.grad
                parameter += velocity[name]
        job.log(i, loss=loss)
        if i % 10 == 9:
            job.log(i, score=-loss.detach())
        job.checkpoint(lambda: {"model": model.state_dict(), "velocity": velocity}, i + 1)
        time.sleep(spec.pause_s)
    weight = model.weight.detach()
    grey = (weight.abs() * 255).clamp(0, 255).byte().numpy()
    job.save_sample("weight", np.stack([grey] * 3, axis=-1))
    job.save_counts("greys", grey[..., None].astype(np.int64))
    job.finish(model.state_dict())
    return {"norm": weight.norm().item(), "absent": math.nan, "list": [1, math.nan]}


def toy_run(name: str = "toy", parent: Run | None = None, **spec) -> Run:
    """A run of the toy study; what stands before the first "-" of its name is its domain."""
    parents = () if parent is None else (("start", parent),)
    return Run(name, "toy", ToySpec(**spec), parents=parents, domain=name.partition("-")[0])


def train_and_count(run: Run, job: Job) -> dict:
    """`train_toy`, with a line for every training in a file beside the results."""
    with (job._folder.parents[1] / "trained.txt").open("a") as file:
        file.write(f"{run.name}\n")
    return train_toy(run, job)


def train_last(run: Run, job: Job) -> dict:
    """`train_and_count`, but "shared" waits until a run called "other" is in training."""
    until = time.monotonic() + 180
    while run.name == "shared" and "other" not in trained(job._folder.parents[1]):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return train_and_count(run, job)


KINDS = {"toy": train_and_count}


def trained(root: Path) -> list[str]:
    """Names of the runs whose training function was called, in order."""
    file = root / "trained.txt"
    return file.read_text().split() if file.exists() else []


def get_in_child(root: Path, run: Run, dies_at: int | None = None, checkpoint_s: float = 0.0) -> None:
    """What a child process does: get a run; killed before the `dies_at`-th change on the disk."""
    torch.set_num_threads(1)
    if dies_at is not None:
        calls = itertools.count()

        def deadly(function):
            def call(*args, **kwargs):
                if next(calls) == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in ("replace", "fsync", "unlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name)))
    Store(root, KINDS, checkpoint_s=checkpoint_s).get(run)


def get_shared_in_child(root: Path, run: Run) -> None:
    """What another command does that trains a run which this one needs as well."""
    Store(root, {"toy": train_last}).get(run)


def get_all_in_child(root: Path, runs: list[Run], workers: int) -> None:
    """Train a list of runs with worker processes. Ctrl-C ends it, though pytest may be in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    get_all(Store(root, KINDS, checkpoint_s=0.0), runs, workers)


def train_in_much_memory(run: Run, job: Job) -> dict:
    """`train_toy` that holds 300 MiB more while it trains, if its name says so."""
    held = np.ones(300 * 2**17) if run.name == "large" else None
    metrics = train_toy(run, job)
    return metrics | {"held": 0 if held is None else held.nbytes}


def train_or_die(run: Run, job: Job) -> dict:
    """`train_and_count`, but whoever trains the run "deadly" is killed, as if by want of memory."""
    metrics = train_and_count(run, job)
    if run.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return metrics
