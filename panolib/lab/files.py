"""Files that a kill cannot halve: atomic writing, checkpoints, metrics as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from panolib.errors import UserError


class CorruptCheckpoint(UserError, RuntimeError):
    """A checkpoint file is not readable."""


def write(path: Path, content: bytes) -> None:
    """Write a file, in a folder that need not be there; a kill leaves the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, content: Any) -> None:
    """`write` for JSON."""
    write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def check_writable(folder: Path) -> None:
    """Raise an OSError that names a folder which can neither be made nor written in. Makes nothing."""
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        raise NotADirectoryError(f"{folder}: {above} is a file, expected a folder or nothing")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: {above} may not be written, expected a folder that may")


def sync_folder(folder: Path) -> None:
    """Let the renames in a folder outlive a power cut, where the system can open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save tensors and plain values, atomically. TypeError for what `load_checkpoint` would refuse."""
    _check_loadable(content, "content")
    _write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, advice: str, *, mmap: bool = False, **entries: type) -> dict[str, Any]:
    """Load a checkpoint that has these entries, of these types, to the CPU; executes nothing in it.

    With `mmap` tensors are read from the file when they are looked at. Raises CorruptCheckpoint naming the
    file, followed by `advice`: how to go on.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CorruptCheckpoint(
            f"{path}: expected a checkpoint, found an unreadable file "
            f"({type(error).__name__}: {reason}); {advice}"
        ) from error
    for name, kind in entries.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            found = type(content.get(name) if isinstance(content, dict) else content).__name__
            raise CorruptCheckpoint(
                f"{path}: expected a checkpoint whose {name!r} is a {kind.__name__}, found {found}; {advice}"
            )
    return content


def nan_to_null(value: Any, path: str = "metrics") -> Any:
    """Metrics as JSON knows them: nan becomes None, arrays become lists.

    Raises TypeError naming the entry, for infinities, None and what else would not come back the same.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: nan_to_null(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if type(value) is float and not math.isinf(value):
        return None if math.isnan(value) else value
    if type(value) in (bool, int, str):
        return value
    raise TypeError(
        f"{path}: expected finite numbers, nan, strings, or lists and dicts (with str keys) of "
        f"these, found {value!r}"
    )


def null_to_nan(value: Any) -> Any:
    """The inverse of `nan_to_null`, for values read from JSON."""
    if isinstance(value, dict):
        return {key: null_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [null_to_nan(item) for item in value]
    return math.nan if value is None else value


def _write_atomically(path: Path, write_to: Callable[[BinaryIO], Any]) -> None:
    """Write beside, flush to the disk, rename. OSError names the file; nothing of it stays on a full disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write_to(file)
            file.flush()
            os.fsync(file.fileno())
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = error if isinstance(error, OSError) else error.__context__  # torch raises its own after it
        if not isinstance(reason, OSError):
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error
    os.replace(temporary, path)
    sync_folder(path.parent)


def _check_loadable(value: Any, path: str) -> None:
    """Raise TypeError for what torch.load(weights_only=True) refuses."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_loadable(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple | set):
        for i, item in enumerate(value):
            _check_loadable(item, f"{path}[{i}]")
    elif not (value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str)):
        raise TypeError(
            f"checkpoint: {path}: expected tensors, numbers, strings or containers of these, "
            f"found {type(value).__name__}"
        )
