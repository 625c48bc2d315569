"""One attempt at a run, wherever it is made; and many of them in this process, one after the other."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator

from panolib.errors import UserError
from panolib.lab.run import Run
from panolib.lab.store import Store


class AttemptFailed(Exception):
    """A run, by its name, could not be trained. All of it is text, so that it comes whole from any process.

    `message` says what went wrong in one line; `trace` is empty where it says all there is to say.
    """

    def __init__(self, run: str, message: str, trace: str = "") -> None:
        super().__init__(run, message, trace)
        self.run, self.message, self.trace = run, message, trace


def attempt(store: Store, run: Run) -> bool:
    """Train one run; False, after a moment, if another process is at it. Raises AttemptFailed."""
    try:
        finished = store.attempt(run)
    except Exception as error:
        says_all = isinstance(error, UserError | OSError | FloatingPointError)  # of a loss: told in one line
        trace = "" if says_all else "".join(traceback.format_exception(error))
        raise AttemptFailed(run.name, f"{type(error).__name__}: {error}", trace) from error
    if not finished:
        time.sleep(1.0)
    return finished


def one_by_one(store: Store, runs: Iterable[Run]) -> Iterator[AttemptFailed | None]:
    """Train runs in this process, parents first; yields None for each that is recorded, or why it failed.

    One that another process trains goes to the end of the list, and its descendants after it. Descendants of
    a failed run are left out.
    """
    waiting, lost = deque(runs), set()
    while waiting:
        run = waiting.popleft()
        parents = {parent.name for _, parent in run.parents}
        if parents & lost:
            lost.add(run.name)
        elif any(other.name in parents for other in waiting):
            waiting.append(run)
        else:
            try:
                if attempt(store, run):
                    yield None
                else:
                    waiting.append(run)
            except AttemptFailed as error:
                lost.add(run.name)
                yield error
