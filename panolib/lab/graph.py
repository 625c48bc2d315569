"""Runs as tasks of Dask, each with its parents as dependencies."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import torch
from dask._task_spec import Task, TaskRef
from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed, get_worker
from distributed.core import Status
from filelock import FileLock
from tqdm import tqdm

from panolib.lab.attempts import AttemptFailed, attempt
from panolib.lab.cluster import ClusterError
from panolib.lab.job import BAR_OPTIONS
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.log_lines import write_lines_to_files


class TrainsRuns(WorkerPlugin):
    """What every worker is handed once: the store, whose caches then serve all runs; and manners.

    `bars` is the lock file of the terminal that the workers share with this process; None: they draw none.
    """

    def __init__(self, store: Store, bars: Path | None) -> None:
        self.store, self.bars, self.name = store, bars, f"panolib-{uuid.uuid4().hex}"

    def setup(self, worker: Worker) -> None:
        """One run at a time, a line of its own for its bars; Ctrl-C is for the main process to act upon."""
        self.worker = worker
        if self.bars is None:
            BAR_OPTIONS.update(disable=True)
            return
        torch.set_num_threads(1)
        BAR_OPTIONS.update(position=1 + int(worker.name), leave=False)
        write_lines_to_files()
        tqdm.set_lock(FileLock(self.bars))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def teardown(self, worker: Worker) -> None:
        """A worker of ours that is closed ends at once: taking torch down in order takes seconds."""
        if self.bars is not None and worker.status is Status.closing:
            os._exit(0)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """A run that nobody waits for any more (its command was stopped) ends with its process.

        A thread cannot be stopped otherwise, the checkpoints are safe, and a nanny starts the next process.
        Workers of this machine end with their cluster, where a next process would only be waited for.
        """
        left = isinstance(key, tuple) and key[:2] == ("run", self.name)
        left &= (start, finish) == ("executing", "released")
        if left and self.bars is None and self.worker.nanny is not None:
            os._exit(1)


def as_tasks(
    client: Client, store: Store, runs: Iterable[Run], bars: Path | None = None
) -> Iterator[AttemptFailed | None]:
    """Train runs on the workers of a client; yields None for each that is recorded, or why it failed.

    The store lies on a file system that the workers share, under the same path. `runs` come parents first;
    parents that are not among them are recorded. `bars` as of `TrainsRuns`.

    A run whose worker dies is tried again once. One that another process trains goes to the end of the list.
    Descendants of a failed run are left out: Dask does not start what depends on an error.

    Raises ClusterError if the workers cannot import what trains, or the scheduler goes away.
    """
    plugin = TrainsRuns(store, bars)
    try:
        client.register_plugin(plugin)
    except Exception as error:
        raise ClusterError(
            f"workers of {client.scheduler.address}: expected the packages and the code of this process, "
            f"found {type(error).__name__}: {error}"
        ) from error
    submitted: dict[str, Future] = {}

    def submit(these: Iterable[Run], visit: int) -> list[Future]:
        """A graph of tasks. Later visits come after everything else that is ready."""
        keys = {run.name: ("run", plugin.name, run.name, visit) for run in these}
        keys = {name: future.key for name, future in submitted.items()} | keys
        graph = {}
        for run in these:
            parents = [TaskRef(keys[parent.name]) for _, parent in run.parents if parent.name in keys]
            # a producer of data: the scheduler keeps it until a worker is free, so that no worker that dies
            # takes others along that only waited for it
            graph[keys[run.name]] = Task(
                keys[run.name], _attempt, plugin.name, run, *parents, _data_producer=True
            )
        futures = client.get(graph, list(graph), sync=False, priority=-visit)
        submitted.update({future.key[2]: future for future in futures})
        return futures

    by_name = {run.name: run for run in runs}
    done = as_completed(submit(by_name.values(), 0), loop=client.loop)
    try:
        for future in done:
            name, visit = future.key[2:]
            error = _error(future)
            if error is None and not future.result():
                for again in submit([by_name[name]], visit + 1):
                    done.add(again)
            elif error is None or error.run == name:  # else an ancestor failed, which is told of
                yield error
    except CancelledError as error:
        raise ClusterError(f"scheduler {client.scheduler.address}: it went away") from error
    finally:
        with contextlib.suppress(OSError):  # the scheduler may be gone
            client.cancel(list(submitted.values()), force=True)
            client.unregister_worker_plugin(plugin.name)


def _attempt(plugin: str, run: Run, *parents_recorded: bool) -> bool:
    """`attempt` with the store that this worker was handed; False also where a parent is passed over."""
    return all(parents_recorded) and attempt(get_worker().plugins[plugin].store, run)


def _error(future: Future) -> AttemptFailed | None:
    """Why a task or an ancestor of it failed."""
    error = future.exception()
    if isinstance(error, KilledWorker):
        return AttemptFailed(
            error.task[2], "its worker process died, and died again when it was tried once more; see whether "
            "there was enough memory",
        )  # fmt: skip
    if error is None or isinstance(error, AttemptFailed):
        return error
    if isinstance(error, CancelledError):
        raise error
    return AttemptFailed(future.key[2], f"{type(error).__name__}: {error}")
