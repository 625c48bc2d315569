"""A real person: the pairs of a run in a folder to be answered (`active.session`), the answers read from it.

The folder says of which run its pairs are. Answers count in a study that has this very run only: "student"
and "teacher" of other networks are other segmentations.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from panolib.active.pairs import NETWORKS, unpacked
from panolib.active.queries import ranked
from panolib.active.session import ANSWERS, DamagedAnswers, Pair, read_answers, write_pairs
from panolib.config import NonNegative, Seed, from_mapping, spec
from panolib.data.cache import FINGERPRINT, read_fingerprint, written_once
from panolib.data.loading import iteration_seed
from panolib.errors import UserError
from panolib.lab.files import check_writable
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.profiles import expand_path, project_root
from panolib.study.kinds import Sources

CANDIDATES = "active_candidates"  # kind of the runs that have pairs


class NoPairsOfRun(UserError, ValueError):
    """A run has no pairs to be shown, or not on this machine."""


class OtherAnswers(UserError, ValueError):
    """A folder without answers about pairs of a run, or answers about other pairs than those of a study."""


@spec
class GivenAnswer:
    """What a person chose for an image, and how long it took."""

    image: str
    choice: Literal[NETWORKS] | None  # null: neither
    seconds: NonNegative


@spec
class Given:
    """The answers of a folder. As a part of a spec they are a part of the key."""

    domain: str
    seed: Seed
    candidates: str  # key of the run whose pairs were shown
    answers: tuple[GivenAnswer, ...]


def write_run_pairs(store: Store, sources: Sources, run: Run, folder: Path) -> int:
    """Write the pairs of a candidates run, the most different first: complete, or not at all. Their number.

    Images that both networks segment alike are left out: there is nothing to choose. Nothing is trained.

    Raises
    ------
    NoPairsOfRun
        For a run of another kind, without its segmentations on this machine, or without any difference.
    FileExistsError
        If there is something in the folder.
    """
    check_has_pairs(store, run, folder)
    state, target = store.final_state(run), sources[run.domain].open(run.spec.target)
    differs = state["scores"]["disagreement"].numpy()
    order = ranked("disagreement", {"disagreement": differs}, len(target), seed=0)
    order = order[: np.count_nonzero(differs)]
    if len(order) == 0:
        raise NoPairsOfRun(f"run {run.name!r}: both networks segment all images alike, expected a difference")
    made_by = {"pairs": run.name, "key": run.key, "domain": run.domain, "seed": run.spec.seed}

    def pairs() -> Iterator[Pair]:
        for index in order:
            sample = target[int(index)]
            shown = sides(sample.id, run.spec.seed)
            labels = tuple(unpacked(state[name][sample.id]) for name in shown)
            yield Pair(sample.id, sample.image, labels, shown)

    written_once(folder, made_by, lambda work: write_pairs(pairs(), work))
    return len(order)


def sides(image: str, seed: int) -> tuple[str, str]:
    """Both networks, the left one first, drawn for an image: a person must not know which is which."""
    drawn = np.random.default_rng(iteration_seed(seed, 0, f"left of {image}"))
    return NETWORKS if drawn.random() < 0.5 else NETWORKS[::-1]


def check_has_pairs(store: Store, run: Run, folder: Path) -> None:
    """Raise, before data is written, what `write_run_pairs` raises of the run and of the folder."""
    if run.kind != CANDIDATES:
        raise NoPairsOfRun(f"run {run.name!r} is of kind {run.kind!r}; expected one of kind {CANDIDATES!r}")
    check_writable(folder.parent)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is there already, expected an empty folder or none")
    if not store.has_weights(run):
        first = "" if store.load(run) is None else f"remove {store.folder(run)}, a record without them, and "
        raise NoPairsOfRun(
            f"run {run.name!r}: its segmentations are not on this machine; expected its checkpoint.pt: "
            f"{first}train it first, python -m panolib train --profile {shlex.quote(store.profile)} "
            f"--only {run.name}"
        )


def read_given(folder: str | None) -> Given | None:
    """The answers of a folder of a profile, relative to the project; None for none.

    Raises
    ------
    OtherAnswers
        For a folder that `write_run_pairs` did not write, and for one without an answer.
    DamagedAnswers
        Naming file and line, or the image of a choice that is no network.
    """
    if folder is None:
        return None
    path = project_root() / expand_path(folder)
    made_by = read_fingerprint(path)
    if not isinstance(made_by, dict) or not {"key", "domain", "seed"} <= made_by.keys():
        raise OtherAnswers(
            f"active.answers_folder: {path}: expected a folder written by python -m panolib pairs, found "
            f"{'none that says so in its ' + FINGERPRINT if path.is_dir() else 'no such folder'}"
        )
    answers = sorted(read_answers(path / ANSWERS).values(), key=lambda answer: answer.image)
    if not answers:
        raise OtherAnswers(f"active.answers_folder: {path / ANSWERS}: expected answers, found none")
    for answer in answers:
        if answer.choice not in (*NETWORKS, None):
            raise DamagedAnswers(
                f"{path / ANSWERS}: image {answer.image!r}: expected {' or '.join(NETWORKS)} or null, found "
                f"{answer.choice!r}"
            )
    values = {"domain": made_by["domain"], "seed": made_by["seed"], "candidates": made_by["key"]}
    return from_mapping(Given, {**values, "answers": list(map(vars, answers))}, where=path)


def check_given(given: Given, candidates: Run, images: Collection[str]) -> None:
    """Raise OtherAnswers for answers about pairs of another run, or about an image that is not there."""
    if given.candidates != candidates.key:
        raise OtherAnswers(
            f"active.answers_folder: its pairs are of a run with the key {given.candidates[:12]}; expected "
            f"those of {candidates.name}, {candidates.key[:12]}: settings or data have changed since"
        )
    known = set(images)
    unknown = [answer.image for answer in given.answers if answer.image not in known]
    if unknown:
        raise OtherAnswers(
            f"active.answers_folder: {len(unknown)} answers are about images that the target does not have, "
            f"the first {unknown[0]!r}; expected some of its {len(known)}"
        )
