"""A training that is killed, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal

import torch

from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.lab.store import Store


def train_and_die(store: Store, run: Run, iteration: int) -> None:
    """Train a run with a checkpoint of each iteration, in a fork that is killed when it logs this one."""
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(store, run, iteration))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _in_child(store: Store, run: Run, last: int) -> None:
    torch.set_num_threads(1)  # a fork that opens the parent's pool of threads waits for ever
    store.checkpoint_s, log = 0.0, Job.log

    def killing_log(job, iteration, **values):
        log(job, iteration, **values)
        if iteration == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Job.log = killing_log
    store.get(run)
