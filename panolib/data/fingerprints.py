"""What a folder of images holds, as one short hash that enters the keys of runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from panolib.data.cache import remember

_VERSION = 1  # of what is hashed, for what is remembered on disk
_WHOLE = 1 << 16  # bytes; larger images are told apart by both ends
_END = 1 << 12  # bytes
_PNG_END = b"IEND\xaeB`\x82"
_NOTHING = hashlib.sha256().digest()  # of a folder without files that count
_SETTLED_S = 3.0  # a file may change twice within one tick of the clock of its file system


def folder_fingerprint(folder: Path, suffixes: tuple[str, ...] = (".png",)) -> str:
    """Short hash of all files below a folder that a reader may open; "missing" without the folder.

    A run can then be declared, listed and asked for; opening the data is what fails.

    Files with these `suffixes` (in lower case; by default PNGs), lists (splits/*.txt) and tables (index.csv)
    count, with their names below the folder. Links are followed and count as what they lead to, so that a
    copy has the hash of its original. Other files, and names that begin with a dot, are read by nobody.
    Larger PNGs count with size, first and last 4 KiB, as a PNG ends in the checksum of all its pixels; other
    files with all their bytes.
    A link that leads nowhere is a FileNotFoundError.
    """
    folder = Path(folder)
    return _hash_tree(folder, _content, suffixes).hex()[:16] if folder.is_dir() else "missing"


def remembered(folder: Path, cache: Path, suffixes: tuple[str, ...] = (".png",)) -> str:
    """`folder_fingerprint`, or what it was when names, sizes and times of all files were the same.

    Kept as one small file below `cache`. A folder that changed within the last seconds is not remembered.
    """
    if not folder.is_dir():
        return folder_fingerprint(folder, suffixes)
    times = [0.0]

    def stamp(path: str, info: os.stat_result) -> bytes:
        times[0] = max(times[0], info.st_mtime, info.st_ctime)
        return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}".encode()

    stamped = _hash_tree(folder, stamp, suffixes).hex()
    found = {"folder": str(folder.absolute()), "version": _VERSION, "stamp": stamped}
    path = cache / f"{hashlib.sha256(found['folder'].encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        if isinstance(known, dict) and known == found | {"fingerprint": known.get("fingerprint")}:
            return known["fingerprint"]
    value = folder_fingerprint(folder, suffixes)
    if time.time() - times[0] > _SETTLED_S:
        remember(path, json.dumps(found | {"fingerprint": value}).encode())
    return value


def _holds_lists(folder: str) -> bool:
    """Whether readers look for lists of ids in a folder of this name."""
    return os.path.basename(folder) == "splits"


def _counts(folder: str, name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a reader may open a file of this name."""
    if name.endswith(".txt"):
        return _holds_lists(folder)
    return name == "index.csv" or name.lower().endswith(suffixes)


def _hash_tree(
    folder: Path, leaf: Callable[[str, os.stat_result], bytes], suffixes: tuple[str, ...]
) -> bytes:
    """Hash of the names below a folder and of `leaf(path, stat)` of each file that counts."""
    hashes: dict[tuple[str, bool], bytes] = {}  # of each real folder once, however many links lead there

    def visit(path: str) -> bytes:
        key = os.path.realpath(path), _holds_lists(path)
        if key not in hashes:
            hashes[key] = b"loop to " + os.fsencode(os.path.relpath(path, folder))  # for links back to here
            digest = hashlib.sha256()
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    content = content_of(entry, _counts(path, entry.name, suffixes))
                    if content is not None:
                        digest.update(os.fsencode(entry.name) + b"\0" + content)
            hashes[key] = digest.digest()
        return hashes[key]

    def content_of(entry: os.DirEntry, counts: bool) -> bytes | None:
        if entry.name.startswith(".") or (entry.is_file(follow_symlinks=False) and not counts):
            return None
        try:
            info = entry.stat()
            is_folder = entry.is_dir()
        except OSError as error:
            if not entry.is_symlink():
                raise
            raise FileNotFoundError(
                f"{entry.path}: a link to {os.readlink(entry.path)}, which leads nowhere; "
                "expected a file or a folder"
            ) from error
        if is_folder:
            inner = visit(entry.path)
            return None if inner == _NOTHING else b"folder\0" + inner
        if not counts or not entry.is_file():
            return None
        return b"file\0" + hashlib.sha256(leaf(entry.path, info)).digest()

    return visit(str(folder))


def _content(path: str, info: os.stat_result) -> bytes:
    """What tells one file from another of its name."""
    with open(path, "rb") as file:
        if info.st_size <= _WHOLE or not path.lower().endswith(".png"):
            return file.read()
        first = file.read(_END)
        file.seek(-_END, os.SEEK_END)
        last = file.read()
        if last.endswith(_PNG_END):
            return b"%d %b %b" % (info.st_size, first, last)
        file.seek(0)  # not as a PNG ends
        return hashlib.file_digest(file, "sha256").digest()
