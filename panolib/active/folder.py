"""A folder of pairs, to be answered on another machine or in napari: a file each, the answers beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from panolib.active.session import Pair, Session
from panolib.errors import UserError

ANSWERS = "answers.jsonl"


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
