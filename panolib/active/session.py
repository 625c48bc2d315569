"""A session: pairs in the order in which they are asked, and the answers, kept in a file of JSON lines.

A line is an answer, `{"image": .., "shown": [left, right], "choice": left, right or null, "seconds": ..}`,
or takes one back, `{"undo": image}`. Lines are only ever added, so that a kill loses no answer; who opens the
file again goes on where it stopped. Both front ends (`widget`, `napari_plugin`) work on this object alone: it
knows what their keys do, and what of a pair is shown.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from panolib.active.pictures import ALL, outline_colours, where_they_differ
from panolib.errors import UserError
from panolib.inference.tiles import Window

KEYS = {"1": 0, "2": 1, "0": None}  # of both front ends: the first, the second, neither
UNDO, ZOOM, HIDE = "u", "z", "h"  # the others
ANSWERS = "answers.jsonl"  # in a folder of pairs


class DamagedAnswers(UserError, ValueError):
    """A file of answers holds a line that is none."""


@dataclass(frozen=True)
class Pair:
    """Two segmentations of one image as they are shown, the first one left."""

    name: str  # of the image
    image: np.ndarray  # uint8 [H, W, 3]
    labels: tuple[np.ndarray, np.ndarray]  # int [H, W], 0 or ids >= 1
    shown: tuple[str, str]  # what made them; it stays hidden, and who builds pairs draws the order

    @cached_property
    def colours(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the outlines of both, uint8 [K + 1, 3]: `pictures.outline_colours`."""
        first, second = self.labels
        return outline_colours(first, second), outline_colours(second, first)

    @cached_property
    def part(self) -> Window:
        """Where both differ most; all of a small image."""
        return where_they_differ(self.labels, self.colours)


@dataclass(frozen=True)
class Answer:
    """What was chosen for an image: what made the chosen one, or None for neither; and how long it took."""

    image: str
    choice: str | None
    seconds: float


class Session:
    """Asks about each pair once, in their order.

    `pairs` are looked at one by one, so they may be made when they are wanted; `names` are those of their
    images. `file` is made with the first answer, and answers about other images in it stay as they are.
    DamagedAnswers names file and line; a last line without an end, which a kill can leave, is dropped.

    Attributes
    ----------
    in_part : bool
        Whether front ends show the part of a large image in which both segmentations differ most, or all.
    outlined : bool
        Whether they show outlines; those of a new pair are always shown.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        names: Sequence[str],
        file: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        if len(pairs) != len(names) or len(set(names)) != len(names):
            raise ValueError(f"{len(pairs)} pairs and {len(set(names))} different names, expected as many")
        self.in_part = self.outlined = True
        self._pairs, self._clock, self.file = pairs, clock, Path(file)
        self._read: Pair | None = None  # the one that was looked at last
        self._numbers = {name: number for number, name in enumerate(names)}
        _drop_cut_line(self.file)
        self._answers = read_answers(self.file)
        self._began = clock()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def answers(self) -> dict[str, Answer]:
        """{image: answer} of the pairs of this session, in the order in which they were given."""
        return {name: answer for name, answer in self._answers.items() if name in self._numbers}

    @property
    def current(self) -> Pair | None:
        """The first pair without an answer; None where all have one."""
        left = next((name for name in self._numbers if name not in self._answers), None)
        if left is None:
            return None
        if self._read is None or self._read.name != left:
            self._read = self._pairs[self._numbers[left]]
        return self._read

    @property
    def window(self) -> Window:
        """What of the current pair is shown."""
        pair = self.current
        return pair.part if self.in_part and pair is not None else ALL

    @property
    def seconds_per_answer(self) -> float:
        """Median, as a person also goes for coffee; nan before the first answer."""
        seconds = [answer.seconds for answer in self.answers.values()]
        return float(np.median(seconds)) if seconds else float("nan")

    @property
    def progress(self) -> str:
        """In words: what is done, and how long the rest takes at the speed so far."""
        n, seconds = len(self.answers), self.seconds_per_answer
        if n == 0:
            return f"0 of {len(self)}"
        minutes = (len(self) - n) * seconds / 60
        to_go = f", {minutes:.0f} min to go" if n < len(self) else ""
        return f"{n} of {len(self)}, {seconds:.1f} s each{to_go}"

    def press(self, key: str) -> None:
        """What a key of a front end does: z and h change what is shown, u takes back, others answer."""
        if key == ZOOM:
            self.in_part = not self.in_part
        elif key == HIDE:
            self.outlined = not self.outlined
        else:
            self.outlined = True
            self.undo() if key == UNDO else self.choose(key)

    def choose(self, key: str) -> None:
        """Answer the current pair with a key of `KEYS` (else ValueError); nothing after the last one."""
        if key not in KEYS:
            raise ValueError(f"key {key!r}: expected one of {', '.join(KEYS)}")
        pair = self.current
        if pair is None:
            return
        choice = None if KEYS[key] is None else pair.shown[KEYS[key]]
        seconds = round(self._clock() - self._began, 3)
        line = {"image": pair.name, "shown": list(pair.shown), "choice": choice, "seconds": seconds}
        self._write(line)
        self._answers[pair.name] = Answer(pair.name, choice, seconds)

    def undo(self) -> None:
        """Take the last answer of this session's pairs back; its pair is asked again. Nothing without one."""
        given = list(self.answers)
        if given:
            self._write({"undo": given[-1]})
            del self._answers[given[-1]]

    def _write(self, line: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._began = self._clock()


def read_answers(file: Path) -> dict[str, Answer]:
    """The answers of a file that were not taken back, by image; {} for no file.

    The file stays as it is; a last line without an end, which somebody may be writing, does not count.
    DamagedAnswers names file and line.
    """
    content = file.read_bytes() if file.exists() else b""
    answers: dict[str, Answer] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            said = json.loads(line)
            if "undo" in said:
                del answers[said["undo"]]
                continue
            answer = Answer(said["image"], said["choice"], float(said["seconds"]))
            if not isinstance(answer.image, str):
                raise ValueError(f"image {answer.image!r} is no text")
            if answer.choice is not None and answer.choice not in said["shown"]:
                raise ValueError(f"choice {answer.choice!r} was not shown")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedAnswers(
                f"{file}: line {number}: expected an answer with image, shown, choice and seconds, or an "
                f"undo, found {line[:80].decode(errors='replace')!r} ({error})"
            ) from error
        answers.pop(answer.image, None)  # an answer given again is the last one
        answers[answer.image] = answer
    return answers


def _drop_cut_line(file: Path) -> None:
    """Remove a last line without an end, so that the next one begins a line."""
    content = file.read_bytes() if file.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


# --- a folder of pairs: a file each, the answers beside them, for another machine or napari


class NoPairs(UserError, ValueError):
    """A folder does not hold what `write_pairs` writes."""


class PairFolder(Sequence[Pair]):
    """The pairs of a folder in their order, read one by one.

    NoPairs names the folder without a pair, or the file that is none.
    """

    def __init__(self, folder: Path):
        self._files = sorted(Path(folder).glob("pair-*.npz"))
        if not self._files:
            raise NoPairs(f"{folder}: expected files pair-0000.npz, .. as written by write_pairs, found none")
        self.names = [self[number].name for number in range(len(self))]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Pair:
        file = self._files[number]
        try:
            with np.load(file, allow_pickle=False) as kept:
                labels = (kept["first"], kept["second"])
                return Pair(str(kept["name"]), kept["image"], labels, tuple(kept["shown"].tolist()))
        except Exception as error:  # zipfile, zlib and numpy have a dozen of them
            raise NoPairs(f"{file}: expected a pair as written by write_pairs, found {error}") from error


def write_pairs(pairs: Iterable[Pair], folder: Path) -> None:
    """Write a file for each pair. FileExistsError for a folder that holds pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    if found := sorted(folder.glob("pair-*.npz")):
        raise FileExistsError(f"{found[0]}: is there already, expected a folder without pairs")
    for number, pair in enumerate(pairs):
        first, second = pair.labels
        np.savez_compressed(
            folder / f"pair-{number:04d}.npz", name=pair.name, image=pair.image, first=first, second=second,
            shown=pair.shown,
        )  # fmt: skip


def open_session(folder: Path) -> Session:
    """The session of a folder; it goes on where it stopped."""
    pairs = PairFolder(folder)
    return Session(pairs, pairs.names, Path(folder) / ANSWERS)
