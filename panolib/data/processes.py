"""Work that is split over processes: images are written by several at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

import cv2

T = TypeVar("T")

GUARD = "a script that starts worker processes must do so below `if __name__ == '__main__':`"


def leave_unguarded_import() -> None:
    """End a worker process that imports its parent's script and, for want of a main guard, runs it once more.

    It would wait for locks that its parent holds. The parent then finds its pool broken and says why. Call
    this before taking any lock.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        sys.exit(1)


def map_in_processes(job: Callable[[int], T], n: int, n_workers: int) -> Iterator[T]:
    """job(0) .. job(n - 1) in order, from this process or from `n_workers` of one thread each.

    Raises RuntimeError if a worker process ends before its work is done.
    """
    if n_workers <= 1 or n == 1:
        yield from map(job, range(n))
        return
    context = multiprocessing.get_context("spawn")  # forking a process with running threads may hang
    try:
        with ProcessPoolExecutor(min(n_workers, n), mp_context=context, initializer=_start_worker) as pool:
            yield from pool.map(job, range(n), chunksize=max(1, min(16, n // (4 * n_workers))))
    except BrokenProcessPool:
        raise RuntimeError(
            f"{n_workers} worker processes: one ended before its work was done; {GUARD}, "
            "or there was not enough memory"
        ) from None


def _start_worker() -> None:
    """One thread per process; end with the parent, even if that is killed."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def leave() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
