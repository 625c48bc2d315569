"""Many runs: what is missing is trained, parents before children, here or on workers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from tqdm import tqdm

from panolib.data.processes import leave_unguarded_import
from panolib.lab.attempts import AttemptFailed, one_by_one
from panolib.lab.cluster import Workers, connect
from panolib.lab.records import DamagedRecord, Record
from panolib.lab.run import Run, RunsFailed
from panolib.lab.store import Store, announce_replaced


def get_all(store: Store, runs: Iterable[Run], workers: int | Workers = 1) -> dict[str, Record]:
    """The records of many runs, by name. What is missing of them and of their parents is trained.

    `workers` says where, and how many at a time; a number is that of processes of this machine, and 1 this
    process. A run starts when its parents are recorded. One that another process trains is passed over and
    visited again. A run that fails takes its descendants along; the others go on.

    Raises
    ------
    DamagedRecord
        Before anything is trained, naming each damaged file.
    RunsFailed
        At the end, naming each run that failed and its error.
    ClusterError
        If workers cannot be had.
    """
    leave_unguarded_import()
    workers = Workers(workers) if isinstance(workers, int) else workers
    first: dict[str, Run] = {}
    asked = {run.name: first.setdefault(run.key, run) for run in runs}
    if missing := missing_runs(store, first.values()):
        announce_replaced(store, missing)
        _train(store, missing, workers)
    return {name: store.get(run) for name, run in asked.items()}


def _train(store: Store, runs: list[Run], workers: Workers) -> None:
    """Train runs under one bar. Raises RunsFailed at the end."""
    failed: list[AttemptFailed] = []
    title = f"{store.title}runs"
    bar = tqdm(total=len(runs), desc=title, unit="run", dynamic_ncols=True, disable=len(runs) == 1)
    with bar, _training(store, runs, workers) as ended:
        for error in ended:
            if error is None:
                bar.update()
                continue
            failed.append(error)
            if error.trace:
                tqdm.write(error.trace, sys.stderr)
    if failed:
        raise RunsFailed("; ".join(f"run '{each.run}' failed with {each.message}" for each in failed))


@contextlib.contextmanager
def _training(store: Store, runs: list[Run], workers: Workers) -> Iterator[Iterator[AttemptFailed | None]]:
    """The errors of runs as they end, in this process or on workers that do not outlive the block."""
    if workers.in_process:
        yield one_by_one(store, runs)
        return
    with connect(workers, len(runs), store.root / "work" / ".slurm") as (client, terminal):
        from panolib.lab.graph import as_tasks  # a second to import, and one process does without

        if client.dashboard_link and find_spec("bokeh"):  # else its page only says that bokeh is missing
            tqdm.write(f"dashboard: {client.dashboard_link}", sys.stderr)
        with contextlib.closing(as_tasks(client, store, runs, terminal)) as ended:
            yield ended


def missing_runs(store: Store, runs: Iterable[Run]) -> list[Run]:
    """The runs to train for `runs`: those not recorded and their unrecorded ancestors, parents first.

    Raises ValueError if two different runs have one name, and DamagedRecord naming each damaged file.
    """
    ordered: dict[str, Run] = {}
    damaged: list[str] = []

    def visit(run: Run) -> None:
        if run.name in ordered:
            if ordered[run.name].key != run.key:
                raise ValueError(f"run name '{run.name}': expected one run, found two different ones")
            return
        try:
            if store.load(run) is not None:
                return
        except DamagedRecord as error:
            damaged.append(str(error))
            return
        for _, parent in run.parents:
            visit(parent)
        ordered[run.name] = run

    for run in runs:
        visit(run)
    if damaged:
        raise DamagedRecord("\n".join(dict.fromkeys(damaged)))
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
