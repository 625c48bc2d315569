"""Runs: trained once, recorded, loaded ever after.

A `Run` says what to train, as plain values. A `Store` is a results folder that gives the `Record` of a run:
loaded in milliseconds when it is recorded, resumed when a checkpoint is there, trained otherwise. A `Job` is
what the training function gets: its parents' weights, checkpoints, curves, samples, a progress bar.

On disk, below the root of a store::

    runs/<name>/      run.json  metrics.json  counts.npz (of runs that score)  curves.csv  samples/
                      checkpoint.pt (final, not in git)
    work/<name>/      a run in training: checkpoint.pt (resumable)  curves.csv  job.json (who trains it)
    work/<name>.lock  held while somebody trains it; the system frees it when the holder dies

A recording is completed in ``work/<name>/``, where run.json is written last: that is the commit point. The
folder is then renamed to ``runs/<name>/``. Whoever finds a committed folder in ``work/`` completes the
renaming, so a process killed at any instant leaves the old record or the new one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from panolib.lab import provenance
from panolib.lab.files import (
    load_checkpoint,
    remove_folder,
    sync_folder,
    write,
    write_json,
)
from panolib.lab.job import Follower, Job
from panolib.lab.records import DamagedRecord, Record, read_job, read_record
from panolib.lab.run import MissingRun, Run
from panolib.lab.seeding import seeded
from panolib.training import ranks

FIRST_S = 600.0  # that a process waits for the one that records


@dataclass(eq=False)
class Store:
    """Records of runs below one folder."""

    root: Path  # results/<profile>
    # training functions: each returns its metrics and has called `Job.finish`
    kinds: Mapping[str, Callable[[Run, Job], dict]]
    _: KW_ONLY
    retrain_since: float = 0.0  # POSIX time; what was recorded (or begun) before it counts as missing
    train: bool = True  # False: never train, raise `MissingRun` instead
    profile: str = ""  # what --profile takes for this store, for advice; "": the name of the folder
    checkpoint_s: float = 20.0  # least number of seconds between two checkpoints
    title: str = ""  # what progress bars say before the name of a run

    def __post_init__(self) -> None:
        self.profile = self.profile or self.root.name

    def folder(self, run: Run) -> Path:
        """Where the record of a run lies."""
        return self.root / "runs" / run.name

    def load(self, run: Run) -> Record | None:
        """The record of exactly this run, or None. Never trains and never waits. Raises DamagedRecord."""
        record = self._read(run)
        if record is None or record.info["key"] != run.key or record.recorded_at < self.retrain_since:
            return None
        return record

    def get(self, run: Run, *, anew: bool = False) -> Record:
        """The record of a run: loaded, or trained to the end first. `anew` trains a recorded run again.

        Raises
        ------
        MissingRun
            If it is not recorded and this store may not train.
        DamagedRecord
            If a file of its record is damaged: nothing is trained over it.
        CorruptCheckpoint
            If the checkpoint to resume from is not readable.
        FloatingPointError
            From the training function, for a non-finite loss. The last checkpoint stays, nothing is recorded.
        """
        return self._obtain(run, self.load, anew=anew)

    def attempt(self, run: Run) -> bool:
        """Like `get`, but False if another process is training the run."""
        try:
            self._obtain(run, self.load, blocking=False)
        except filelock.Timeout:
            return False
        return True

    def has_weights(self, run: Run) -> bool:
        """Whether `final_state` has something to load: otherwise it trains the run. Never trains."""
        return self.load(run) is not None and self._final_state(run, mmap=True) is not None

    def final_state(self, run: Run) -> dict:
        """The state a run gave to `Job.finish`, on the CPU.

        A run whose record is here without its weights is trained again. Errors as of `get`.
        """
        self.get(run)
        return self._obtain(run, self._final_state, "has no weights here")

    def _obtain(
        self, run: Run, found: Callable[[Run], Any], lacks: str = "is not recorded", *,
        anew: bool = False, blocking: bool = True,
    ) -> Any:  # fmt: skip
        """What is `found` of a run, trained where that is None. Timeout if another process is at it."""
        answer = found(run)
        if answer is not None and not anew:
            return answer
        if not self.train:
            raise MissingRun(
                f"run '{run.name}' {lacks} in {self.root} (state: {self.state(run)}); train it with "
                f"`python -m panolib train --profile {shlex.quote(self.profile)} --only {run.name}`"
            )
        if ranks.follows():
            return self._follow(run, found)
        if blocking:  # else whoever attempts many runs has said it of all
            announce_replaced(self, [run])
        with self._lock(run, blocking=blocking):
            if anew or found(run) is None:  # another process may have trained it meanwhile
                self._train(run)
            return found(run)

    def state(self, run: Run) -> str:
        """ "training", "damaged", "recorded", "partial", "outdated" or "missing", in this order.

        "damaged": see `damage`. "partial": a checkpoint to resume from is here. "outdated": recorded under
        another key.
        """
        if self.holder(run) is not None:
            return "training"
        if self.damage(run) is not None:
            return "damaged"
        if self.load(run) is not None:
            return "recorded"
        if self._resumable(run) and (self.work_folder(run) / "checkpoint.pt").exists():
            return "partial"
        record = self._read(run)
        return "outdated" if record is not None and record.info["key"] != run.key else "missing"

    def damage(self, run: Run) -> str | None:
        """Which file of a run is damaged, what is wrong with it and the way on, in words; or None."""
        try:
            if self.load(run) is None:
                read_job(self.work_folder(run))
        except DamagedRecord as error:
            return str(error)
        return None

    def holder(self, run: Run) -> str | None:
        """Who trains the run at this moment, in words, or None; nobody does on a disk that is read-only."""
        if not self.work_folder(run).exists():
            return None
        try:
            with self._lock(run, blocking=False):
                return None
        except filelock.Timeout:
            with contextlib.suppress(DamagedRecord):
                if job := read_job(self.work_folder(run)):
                    return f"process {job['pid']} on {job['host']}"
            return "another process"
        except OSError:
            return None

    def work_folder(self, run: Run) -> Path:
        """Where a run is while it is trained."""
        return self.root / "work" / run.name

    def _old(self, run: Run) -> Path:
        """Where a replaced record is between the two renames and its removal."""
        return self.root / "work" / f"{run.name}.old"

    @contextlib.contextmanager
    def _lock(self, run: Run, *, blocking: bool = True) -> Iterator[None]:
        """Hold a run, and complete or remove what a dead process left of it. Says for whom it waits."""
        work = self.root / "work"
        work.mkdir(parents=True, exist_ok=True)
        if not (work / ".gitignore").exists():
            (work / ".gitignore").write_text("*\n")  # nothing in here is ever committed
        lock = filelock.FileLock(work / f"{run.name}.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if not blocking:
                raise
            holder = self.holder(run) or "another process"
            tqdm.write(f"{run.name}: waiting for {holder}, which is training it", sys.stderr)
            lock.acquire(poll_interval=0.2)
        try:
            self._settle(run)
            yield
        finally:
            lock.release()

    def _settle(self, run: Run) -> None:
        """Publish a committed recording; remove temporary files. Safe to repeat after a kill at any line."""
        work, old, folder = self.work_folder(run), self._old(run), self.folder(run)
        for file in work.rglob("*.tmp"):
            file.unlink()
        if (work / "run.json").exists():
            if (work / "final.pt").exists():  # takes the place of the resumable checkpoint
                os.replace(work / "final.pt", work / "checkpoint.pt")
            (work / "job.json").unlink(missing_ok=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                remove_folder(old)
                os.replace(folder, old)
            os.replace(work, folder)
            sync_folder(folder.parent)
        remove_folder(old)

    def _read(self, run: Run) -> Record | None:
        """The record in the folder of a run, under whatever key."""
        if self._old(run).exists() or (self.work_folder(run) / "run.json").exists():
            with contextlib.suppress(filelock.Timeout, OSError), self._lock(run, blocking=False):
                pass  # left by a killed process: completes it
        return read_record(self.folder(run), run)

    def _final_state(self, run: Run, *, mmap: bool = False) -> dict | None:
        """Weights beside the record, or None if they are not here or belong to another key."""
        path = self.folder(run) / "checkpoint.pt"
        if not path.exists():
            return None
        advice = "delete it: the run is trained again when its weights are needed"
        content = load_checkpoint(path, advice, mmap=mmap, key=str, state=dict)
        return content["state"] if content["key"] == run.key else None

    def _resumable(self, run: Run) -> bool:
        """Whether the work folder was begun for this very run, since `retrain_since`."""
        job = read_job(self.work_folder(run))
        return job is not None and job["key"] == run.key and job["begun_at"] >= self.retrain_since

    def _follow(self, run: Run, found: Callable[[Run], Any]) -> Any:
        """Train along with the first process, if it shares the run; then what is `found` of its record.

        Raises RuntimeError when nobody trains the run any more and nothing is found.
        """
        if hasattr(run.spec, "iterations") and getattr(run.spec.compute, "n_processes", 1) > 1:
            with contextlib.suppress(ranks.Followed):
                self.kinds[run.kind](run, Follower(self, run))
        seen = time.monotonic()
        while (answer := found(run)) is None:
            time.sleep(1.0)
            if self.holder(run) is not None:
                seen = time.monotonic()
            elif time.monotonic() - seen > FIRST_S:
                raise RuntimeError(f"run '{run.name}': nobody has trained it for {FIRST_S:g} s, expected the "
                                   "first process of several to record it")  # fmt: skip
        return answer

    def _train(self, run: Run) -> None:
        """Train and record a run whose lock is held."""
        work = self.work_folder(run)
        if not self._resumable(run):
            remove_folder(work)
        begun_at = (read_job(work) or {"begun_at": time.time()})["begun_at"]
        mine = {"key": run.key, "begun_at": begun_at, "pid": os.getpid(), "host": socket.gethostname()}
        write_json(work / "job.json", mine)
        job = Job(self, run)
        try:
            with seeded(getattr(run.spec, "seed", 0)):
                metrics = self.kinds[run.kind](run, job)
        except Exception as error:
            if ranks.n_processes() == 1:
                raise
            raise SystemExit(  # the others wait for this process in the middle of a step: all of it ends
                f"run '{run.name}' failed on several devices: {type(error).__name__}: {error}"
            ) from error
        if not (work / "final.pt").exists():
            raise RuntimeError(
                f"run '{run.name}': expected its training function ({run.kind!r}) to call "
                "job.finish, found no final state"
            )
        job.record(metrics)
        self._settle(run)


def announce_replaced(store: Store, runs: Iterable[Run]) -> None:
    """Say which records that git tracks a training is going to replace; nothing if there is none."""
    committed = {file.split("/")[0] for file in provenance.tracked(store.root / "runs")}
    names = [run.name for run in runs if run.name in committed]
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        tqdm.write(
            f"training replaces committed records below {store.root}, each when its run ends: {shown}; "
            f"`git restore {store.root}` brings them back",
            sys.stderr,
        )


def retrain_started(root: str | Path) -> float:
    """When the retraining in progress below `root` began (POSIX time): now, if none is in progress."""
    file = Path(root) / "retrain_since"
    if not file.exists():
        return time.time()
    text = file.read_text(encoding="utf-8")
    try:
        return float(text)
    except ValueError:
        raise DamagedRecord(
            f"{file}: expected when a retraining began (POSIX time), found {text[:40]!r}; "
            "delete it: recorded runs are then all trained again"
        ) from None


@contextlib.contextmanager
def retraining(root: str | Path) -> Iterator[float]:
    """Remember when a retraining began until it is finished, so that a killed one goes on."""
    since, file = retrain_started(root), Path(root) / "retrain_since"
    write(file, repr(since).encode())
    yield since
    file.unlink()
