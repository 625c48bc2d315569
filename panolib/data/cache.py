"""What is written once: a folder complete with its fingerprint, or not there; small files that save time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

FINGERPRINT = "fingerprint.json"


def written_once(folder: Path, fingerprint: Mapping, write: Callable[[Path], None]) -> Path:
    """Return `folder`, calling `write` first unless it already holds what `fingerprint` says.

    `write` fills an empty sibling folder, which then takes the place of `folder` in one rename. A killed
    process leaves the old state or the new one; what it left beside is removed by the next call. A second
    process that wants the same folder waits for the first.

    `fingerprint` is everything the content depends on, as JSON values; it is stored in fingerprint.json. A
    folder that an earlier call wrote with another one is replaced; one that holds files but no fingerprint is
    somebody's own: a FileExistsError.
    """
    folder = Path(folder).absolute()
    wanted = json.loads(json.dumps(dict(fingerprint)))
    if read_fingerprint(folder) == wanted:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with lock:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        if read_fingerprint(folder) != wanted:
            if folder.exists() and read_fingerprint(folder) is None and any(folder.iterdir()):
                raise FileExistsError(
                    f"{folder}: holds files but no {FINGERPRINT}, expected an empty or no folder, "
                    "or one written here before"
                )
            partial.mkdir()
            try:
                write(partial)
                with (partial / FINGERPRINT).open("w") as file:
                    file.write(json.dumps(wanted, indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())  # on disk before the folder is said to be complete
                if folder.exists():
                    folder.rename(old)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)  # those who wait on it find the folder complete
    return folder


def is_complete(folder: Path, fingerprint: Mapping) -> bool:
    """Whether a folder already holds what `fingerprint` says."""
    return read_fingerprint(folder) == json.loads(json.dumps(dict(fingerprint)))


def read_fingerprint(folder: Path) -> dict | None:
    """Stored fingerprint; {} if it cannot be parsed, None if there is none."""
    try:
        return json.loads((folder / FINGERPRINT).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # no JSON, or no text
        return {}


def remember(path: Path, content: bytes) -> None:
    """Write a small file that saves time later: whole, or not at all where that cannot be done."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(content)
        os.replace(part, path)
