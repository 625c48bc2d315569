"""Kinds become functions and versions; declared runs get them, and names of one key get one run."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

from panolib.lab.job import Job
from panolib.lab.records import DamagedRecord
from panolib.lab.run import Run
from panolib.lab.store import Store


def make_kinds(
    modules: Iterable[ModuleType], sources: Mapping[str, object]
) -> dict[str, Callable[[Run, Job], dict]]:
    """{kind: function(run, job) -> metrics}: the functions that the `VERSIONS` of the modules name.

    `sources`: what all of them read, the data sets of every domain.
    """
    return {
        kind: functools.partial(getattr(module, kind), sources)
        for module in modules for kind in module.VERSIONS
    }  # fmt: skip


def with_versions(runs: Mapping[str, Run], versions: Mapping[str, int]) -> dict[str, Run]:
    """The same runs, and their parents, with the versions of their kinds."""
    return _rebuilt(runs, lambda run: dataclasses.replace(run, version=versions[run.kind]))


def one_run_for_each_key(runs: Mapping[str, Run], store: Store) -> dict[str, Run]:
    """The same names, where names of one key have one run: the first that is recorded, or is declared.

    A name that has a later record of its own keeps it until the run that they share is recorded anew.
    """
    names: dict[str, list[str]] = {}
    for name, run in runs.items():
        names.setdefault(run.key, []).append(name)
    recorded = {
        name: _recorded_at(store, runs[name]) for group in names.values() if len(group) > 1 for name in group
    }
    shared: dict[str, Run] = {}
    for key, group in names.items():
        shared[key] = runs[next((name for name in group if recorded.get(name)), group[0])]
    found = _rebuilt(runs, lambda run: dataclasses.replace(run, name=shared[run.key].name))
    for name, at in recorded.items():
        shared_at = recorded[found[name].name]
        if name != found[name].name and at and (at > shared_at or math.isinf(shared_at)):
            found[name] = dataclasses.replace(found[name], name=name)
    return found


def _rebuilt(runs: Mapping[str, Run], change: Callable[[Run], Run]) -> dict[str, Run]:
    """Every run changed after its parents; equal runs are one object."""
    done: dict[str, Run] = {}
    by_name: dict[str, Run] = {}

    def visit(run: Run) -> Run:
        if run.name not in done:
            parents = tuple((role, visit(parent)) for role, parent in run.parents)
            changed = change(dataclasses.replace(run, parents=parents))
            done[run.name] = by_name.setdefault(changed.name, changed)
        return done[run.name]

    return {name: visit(run) for name, run in runs.items()}


def _recorded_at(store: Store, run: Run) -> float:
    """POSIX time of a record; 0 where there is none, infinity for a damaged one, which nothing replaces."""
    try:
        record = store.load(run)
    except DamagedRecord:
        return math.inf
    return 0.0 if record is None else record.recorded_at
