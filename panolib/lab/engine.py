"""Many runs at a time: long-lived worker processes of one thread each, parents before children."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from tqdm import tqdm

from panolib.data.processes import GUARD, leave_unguarded_import
from panolib.errors import UserError
from panolib.lab.job import BAR_OPTIONS
from panolib.lab.records import DamagedRecord, Record
from panolib.lab.run import Run, RunsFailed
from panolib.lab.store import Store, announce_replaced

# Set before a worker starts: importing numpy, OpenCV or torch there reads them once.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_of_this_worker: dict[str, Store] = {}


def get_all(store: Store, runs: Iterable[Run], workers: int = 1) -> dict[str, Record]:
    """The records of many runs, by name. What is missing is trained, parents first.

    Parameters
    ----------
    store : Store
    runs : iterable of Run
    workers : int
        1 trains in this process. More start that many processes of one thread each, which live until the
        last run. A run that another process trains is passed over and visited again.

    Raises
    ------
    DamagedRecord
        Before anything is trained, naming each damaged file.
    RunsFailed
        At the end, naming each run that failed. The runs that do not depend on it are recorded.
    """
    first: dict[str, Run] = {}
    asked = {run.name: first.setdefault(run.key, run) for run in runs}
    train_all(store, first.values(), workers)
    return {name: store.get(run) for name, run in asked.items()}


def train_all(store: Store, runs: Iterable[Run], workers: int) -> None:
    """Train what is not recorded of `runs` and of their parents.

    A run starts when its parents are recorded. One that another process trains goes to the end of the list. A
    run that fails takes its descendants off the list; the others go on.

    Raises
    ------
    RunsFailed
        At the end, naming each failed run and its error.
    """
    leave_unguarded_import()
    waiting = missing_runs(store, runs)
    if not waiting:
        return
    announce_replaced(store, waiting)
    failed: dict[str, str] = {}
    running: dict[Future, Run] = {}
    bar = tqdm(total=len(waiting), desc="runs", unit="run", dynamic_ncols=True, disable=len(waiting) == 1)
    with bar, _workers(store, min(workers, len(waiting))) as submit:
        while waiting or running:
            unfinished = {run.name for run in (*waiting, *running.values())}
            ready = [
                run for run in waiting if not any(parent.name in unfinished for _, parent in run.parents)
            ]
            for run in ready[: workers - len(running)]:
                waiting.remove(run)
                running[submit(run)] = run
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run, error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise RunsFailed(
                        f"run '{run.name}': its worker process died; {GUARD}, or there was not enough memory"
                    ) from error
                if error is not None:
                    if not isinstance(error, UserError | OSError):  # their message says all
                        tqdm.write("".join(traceback.format_exception(error)), sys.stderr)
                    failed[run.name] = f"{type(error).__name__}: {error}"
                    waiting = [other for other in waiting if not _descends(other, run)]
                elif future.result():
                    bar.update()
                else:
                    waiting.append(run)
    if failed:
        raise RunsFailed("; ".join(f"run '{name}' failed with {error}" for name, error in failed.items()))


def missing_runs(store: Store, runs: Iterable[Run]) -> list[Run]:
    """The runs to train for `runs`: those not recorded and their unrecorded ancestors, parents first.

    Raises
    ------
    ValueError
        If two different runs have one name.
    DamagedRecord
        Naming each damaged file among the records of these runs.
    """
    ordered: dict[str, Run] = {}
    damaged: dict[str, str] = {}

    def recorded(run: Run) -> bool:
        try:
            return store.load(run) is not None
        except DamagedRecord as error:
            damaged[run.name] = str(error)
            return True

    def visit(run: Run) -> None:
        if run.name in ordered and ordered[run.name].key != run.key:
            raise ValueError(
                f"run name '{run.name}': expected one run of this name, found two different ones"
            )
        if run.name in ordered or recorded(run):
            return
        for _, parent in run.parents:
            visit(parent)
        ordered[run.name] = run

    for run in runs:
        visit(run)
    if damaged:
        raise DamagedRecord("\n".join(damaged.values()))
    return list(ordered.values())


def without_weights(store: Store, runs: Iterable[Run]) -> list[Run]:
    """The runs to train so that the weights of `runs` are here, parents first.

    A parent that only says which clustering settings were chosen does so in its record.
    """
    found: dict[str, Run] = {}

    def visit(run: Run) -> None:
        if run.name in found or store.has_weights(run):
            return
        for role, parent in run.parents:
            if role.partition(".")[0] != "clustering" or store.load(parent) is None:
                visit(parent)
        found[run.name] = run

    for run in runs:
        visit(run)
    return list(found.values())


@contextlib.contextmanager
def _workers(store: Store, n_workers: int) -> Iterator[Callable[[Run], Future]]:
    """What hands a run to a worker. No worker process outlives the block, however that ends."""
    if n_workers < 1:
        raise ValueError(f"workers: expected 1 or more, found {n_workers}")
    if n_workers == 1:
        yield functools.partial(_train_here, store)
        return
    try:
        pickle.dumps(store)
    except Exception as error:
        raise TypeError(
            f"more than one worker needs training functions that a new process can import, "
            f"found {store.kinds} ({error})"
        ) from error
    context = multiprocessing.get_context("spawn")
    shared = (store, context.RLock(), context.Value("i", 0))
    before, environment = set(multiprocessing.active_children()), dict(os.environ)
    os.environ |= ONE_THREAD
    try:
        with ProcessPoolExecutor(n_workers, context, _start_worker, shared) as pool:
            try:
                for _ in range(n_workers):  # start all of them now: importing takes seconds
                    pool.submit(_start_early)
                yield functools.partial(pool.submit, _train_in_worker)
            except BaseException:  # interrupted: the checkpoints are safe
                for process in set(multiprocessing.active_children()) - before:
                    process.terminate()
                raise
    finally:
        os.environ.clear()
        os.environ.update(environment)


def _train_here(store: Store, run: Run) -> Future:
    """The work of a worker in this process, done before it returns."""
    future: Future = Future()
    try:
        future.set_result(_attempt(store, run))
    except Exception as error:
        future.set_exception(error)
    return future


def _start_worker(store: Store, bar_lock: Any, n_started: Any) -> None:
    """First thing in a worker process: one thread, its own line for bars, no life after its parent."""
    torch.set_num_threads(1)
    with n_started.get_lock():
        n_started.value += 1
        BAR_OPTIONS.update(position=n_started.value, leave=False)
    tqdm.set_lock(bar_lock)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _of_this_worker["store"] = store  # once: what it caches serves all runs


def _start_early() -> None:
    """A task that starts a worker process and nothing else."""


def _train_in_worker(run: Run) -> bool:
    """`_attempt` with the store that this worker process was started with."""
    return _attempt(_of_this_worker["store"], run)


def _exit_with_parent() -> None:
    """A killed main process must not leave trainings behind that hold the locks of runs."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _attempt(store: Store, run: Run) -> bool:
    """Train one run; False, after a moment, if another process is at it."""
    finished = store.attempt(run)
    if not finished:
        time.sleep(1.0)
    return finished


def _descends(run: Run, ancestor: Run) -> bool:
    """Whether `ancestor` is among the ancestors of `run`."""
    return any(parent.name == ancestor.name or _descends(parent, ancestor) for _, parent in run.parents)
