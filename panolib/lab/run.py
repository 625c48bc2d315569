"""A run: what to train, as plain values, and the key that says all that decides its result."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from panolib.config import canonical_json
from panolib.errors import UserError


class MissingRun(UserError, LookupError):
    """A run is not recorded and may not be trained here."""


class RunsFailed(UserError, RuntimeError):
    """Some runs of a list could not be trained; the others are recorded."""


@dataclass(frozen=True)
class Run:
    """What to train, as plain values.

    Its name says the run to people; with domain and seed, `branch`, `rung` and `variant` are the coordinates
    that it is made of. None of these is part of the key.
    """

    name: str  # of its folder
    kind: str  # the training function, by its name in the store's `kinds`
    spec: Any  # a frozen dataclass of numbers, strings, booleans, None, tuples and dataclasses of these
    parents: tuple[tuple[str, Run], ...] = ()  # (role, run) whose weights or records it starts from
    data: tuple[str, ...] = ()  # fingerprints of the data sets used
    version: int = 1  # raised by hand when the training function changes what it computes
    domain: str = ""  # key of the data sets that are opened by name; `data` says what they hold
    branch: str = ""
    rung: str = ""
    variant: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", self.name):
            raise ValueError(f"run name {self.name!r}: expected only a-z 0-9 _ . - (it becomes a folder)")
        roles = [role for role, _ in self.parents]
        if len(set(roles)) != len(roles):
            raise ValueError(f"run {self.name}: expected every role once among its parents, found {roles}")

    @functools.cached_property
    def key(self) -> str:
        """sha256 (hex) of everything that decides the result: kind, version, spec, parents' keys, data."""
        content = {
            "kind": self.kind,
            "version": self.version,
            "spec": self.spec,
            "data": self.data,
            "parents": {role: parent.key for role, parent in self.parents},
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def with_parents(runs: Iterable[Run]) -> list[Run]:
    """Runs and all those that they start from, each once."""
    found: dict[str, Run] = {}
    waiting = list(runs)
    while waiting:
        run = waiting.pop()
        if run.name not in found:
            found[run.name] = run
            waiting += [parent for _, parent in run.parents]
    return list(found.values())
