"""Records of runs as they lie on disk, and what is wrong with one that is damaged."""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from panolib.config import ProfileError, from_mapping
from panolib.errors import UserError, one_line
from panolib.lab.counts import unpacked
from panolib.lab.files import null_to_nan
from panolib.lab.run import Run

NEEDED = ("run.json", "metrics.json", "curves.csv")

_part = pydantic_dataclass(config=ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))


@_part
class _Info:
    """What readers of a run.json rely on. Earlier ones lack those with a default."""

    key: str
    recorded_at: datetime.datetime
    wall_s: float
    iterations: int
    commit: str | None
    dirty: bool | None
    device: str
    versions: Mapping[str, Any]
    training_s: float | None = None
    step_s: float | None = None
    counts: Mapping[str, Any] | None = None


@_part
class _Job:
    """job.json."""

    key: str
    begun_at: float
    pid: int
    host: str


class DamagedRecord(UserError, RuntimeError):
    """A file of a record is not what was written. The message names it, and what is wrong."""


@dataclass(frozen=True)
class Record:
    """What is known of a trained run."""

    run: Run
    info: dict[str, Any] = field(repr=False)  # run.json: key, spec, commit, device, versions, wall_s ...
    metrics: dict[str, Any] = field(repr=False)  # of the training function; null in the file is nan here
    curves: pd.DataFrame = field(repr=False)  # one row per `Job.log`, with a column "iteration"
    samples: dict[str, Path] = field(repr=False)  # PNG files by name
    # int64 [n_images, n_classes, n_counts] by score: what every validation image counted; {} for runs that
    # score nothing, and for records from before counts were kept
    counts: dict[str, np.ndarray] = field(repr=False, default_factory=dict)

    @property
    def recorded_at(self) -> float:
        """POSIX time in seconds."""
        return datetime.datetime.fromisoformat(self.info["recorded_at"]).timestamp()


def read_record(folder: Path, run: Run) -> Record | None:
    """The record in a folder, under whatever key, or None where there is none.

    Weights alone are no record: git leaves them behind where it takes a record away. Raises DamagedRecord,
    which names the file, what is wrong with it and the way on.
    """
    if folder.exists() and not folder.is_dir():
        raise DamagedRecord(f"{folder}: expected the folder of a record, found a file; {_way_on(folder)}")
    damage = None
    for _ in range(3):  # it may be replaced while we read
        try:
            if not any(os.path.lexists(folder / name) for name in NEEDED):
                continue
            state = _state(folder)
            info, metrics, curves, samples, counts = _content(folder, state)
            if _state(folder) == state:
                return Record(run, dict(info), dict(metrics), curves.copy(), dict(samples), dict(counts))
        except DamagedRecord as error:
            damage = error
    if damage is not None:
        raise DamagedRecord(f"{damage}; {_way_on(folder)}")
    return None


def _state(folder: Path) -> tuple:
    """What changes whenever one of the files of a record does."""
    found = []
    for name in (*NEEDED, "counts.npz", "samples"):
        with contextlib.suppress(OSError):
            stat = os.stat(folder / name)
            found.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)


@functools.lru_cache(maxsize=4096)  # a notebook asks a dozen times for each record of its study
def _content(folder: Path, state: tuple) -> tuple[dict, dict, pd.DataFrame, dict, dict]:
    """All of a record but its run, read once while its files stay as they are. The arrays are read-only."""
    info = _json(folder / "run.json", _Info)
    counts = _counts(folder, info)
    for values in counts.values():
        values.flags.writeable = False
    return info, _metrics(folder), _curves(folder), _samples(folder), counts


def read_job(folder: Path) -> dict[str, Any] | None:
    """Who trains or trained the run in a work folder (job.json), or None. DamagedRecord as `read_record`."""
    try:
        return _json(folder / "job.json", _Job) if os.path.lexists(folder / "job.json") else None
    except DamagedRecord as error:
        raise DamagedRecord(f"{error}; delete {folder}: the run then begins anew") from None


def _way_on(folder: Path) -> str:
    """What to do about a damaged record."""
    return f"restore {folder} (`git checkout -- {folder}` if it is committed) or delete it to train it again"


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever is wrong with a file that is read within the block is one DamagedRecord that names it."""
    try:
        yield
    except FileNotFoundError:
        found = sorted(path.name for path in file.parent.iterdir()) if file.parent.is_dir() else "no folder"
        expected = ", ".join(NEEDED) if file.name in NEEDED else file.name
        raise DamagedRecord(f"{file}: no such file: expected {expected}, found {found}") from None
    except IsADirectoryError:
        raise DamagedRecord(f"{file}: expected a file, found a folder") from None
    except OSError as error:
        raise DamagedRecord(f"{file}: expected a readable file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x} at {error.start}"
        raise DamagedRecord(f"{file}: expected text, found the byte {byte}") from None
    except json.JSONDecodeError as error:
        found = error.doc.split("\n")[error.lineno - 1][:40] or "nothing more"
        raise DamagedRecord(
            f"{file}: expected JSON, found {found!r} in line {error.lineno} ({error.msg})"
        ) from None
    except ProfileError as error:  # names the file itself
        raise DamagedRecord(str(error)) from None
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, 10,000 brackets
        raise DamagedRecord(f"{file}: {one_line(error, most=200)}") from None


def _json(file: Path, kind: type) -> dict[str, Any]:
    """The mapping that a JSON file holds, which has at least the entries of `kind`."""
    with _reading(file):
        content = json.loads(file.read_text(encoding="utf-8"))
        from_mapping(kind, content, where=file)
        return content


def _counts(folder: Path, info: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The content of counts.npz, where run.json says that there are counts."""
    if not info.get("counts"):
        return {}
    with _reading(folder / "counts.npz"):
        return unpacked((folder / "counts.npz").read_bytes(), info["counts"])


def _metrics(folder: Path) -> dict[str, Any]:
    """The content of metrics.json."""
    with _reading(folder / "metrics.json"):
        content = null_to_nan(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, found a {type(content).__name__}")
        return content


def _curves(folder: Path) -> pd.DataFrame:
    """The content of curves.csv."""
    with _reading(folder / "curves.csv"):
        text = (folder / "curves.csv").read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError(f"expected whole lines of a table, found the end {text[-40:]!r}")
        curves = pd.read_csv(io.StringIO(text))
        if "iteration" not in curves.columns:
            raise ValueError(f"expected a column 'iteration', found {list(curves.columns)[:5]}")
        for name, column in curves.items() if len(curves) else ():
            if not pd.api.types.is_numeric_dtype(column):
                words = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
                raise ValueError(f"{name}: expected numbers, found {str(words.iloc[0])[:40]!r}")
        if len(curves) and not pd.api.types.is_integer_dtype(curves["iteration"]):
            raise ValueError("iteration: expected a whole number in every line")
        return curves


def _samples(folder: Path) -> dict[str, Path]:
    """Pictures by name."""
    samples = folder / "samples"
    if samples.exists() and not samples.is_dir():
        raise DamagedRecord(f"{samples}: expected a folder of pictures, found a file")
    pictures = (file for file in sorted(samples.glob("*")) if file.suffix in (".png", ".jpg"))
    files = {file.stem: file for file in pictures}
    for file in files.values():
        if not file.is_file():
            raise DamagedRecord(f"{file}: expected a picture, found no file")
    return files
