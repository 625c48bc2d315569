"""Progress bars in a log file: each state on a line of its own, where a terminal goes back in its line."""

from __future__ import annotations

import sys
from typing import TextIO

_UP = "\x1b[A"  # tqdm goes to the bar above


class Lines:
    """A text stream in which what would be written over a line gets a line, and nothing an empty one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._ended = stream, True

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        line = text.replace(_UP, "")
        if line.startswith("\r"):  # a bar, or spaces over one
            line = line.strip() and f"{line.strip()}\n"
        elif self._ended:
            line = line.lstrip("\n")
        if line:
            self._ended = line.endswith("\n")
            self._stream.write(line)
        return len(text)


def write_lines_to_files() -> None:
    """From now on, bars of this process on standard error are such lines, unless that is a terminal."""
    if not sys.stderr.isatty() and not isinstance(sys.stderr, Lines):
        sys.stderr = Lines(sys.stderr)
