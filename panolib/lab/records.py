"""Records of runs as they lie on disk, and what is wrong with one that is damaged."""

from __future__ import annotations

import datetime
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd

from panolib.errors import UserError
from panolib.lab.counts import unpacked
from panolib.lab.files import null_to_nan, read_text
from panolib.lab.run import Run

INFO = {  # what readers of a run.json rely on
    "key": (str,),
    "recorded_at": (str,),
    "wall_s": (int, float),
    "iterations": (int,),
    "commit": (str, NoneType),
    "dirty": (bool, NoneType),
    "device": (str,),
    "versions": (dict,),
}
JOB = {"key": (str,), "begun_at": (int, float), "pid": (int,), "host": (str,)}  # job.json


class DamagedRecord(UserError, RuntimeError):
    """A file of a record is not what was written. The message names it, and what is wrong."""


@dataclass(frozen=True)
class Record:
    """What is known of a trained run.

    Attributes
    ----------
    run : Run
    info : dict
        run.json: key, spec, seed, commit, device, versions, wall_s, ...
    metrics : dict
        What the training function returned; null in the file is nan here.
    curves : DataFrame
        One row per `Job.log`, with a column "iteration".
    samples : dict of str to Path
        PNG files by name.
    counts : dict of str to int64 array [n_images, n_classes, n_counts]
        What every validation image counted, by score; {} for runs that score nothing, and for records from
        before counts were kept.
    """

    run: Run
    info: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    curves: pd.DataFrame = field(repr=False)
    samples: dict[str, Path] = field(repr=False)
    counts: dict[str, np.ndarray] = field(repr=False, default_factory=dict)

    @property
    def recorded_at(self) -> float:
        """POSIX time in seconds."""
        return datetime.datetime.fromisoformat(self.info["recorded_at"]).timestamp()


def read_record(folder: Path, run: Run) -> Record | None:
    """The record in a folder, under whatever key, or None where there is none.

    Weights alone are no record: git leaves them behind where it takes a record away.

    Raises
    ------
    DamagedRecord
        Naming the file, what is wrong with it and the way on.
    """
    if folder.exists() and not folder.is_dir():
        raise DamagedRecord(f"{folder}: expected the folder of a record, found a file; {_way_on(folder)}")
    damage = None
    for _ in range(3):  # it may be replaced while we read
        try:
            text = _text(folder / "run.json")
            if text is None and not any((folder / name).exists() for name in ("metrics.json", "curves.csv")):
                continue
            info = _info(folder / "run.json", text)
            record = Record(
                run, info, _metrics(folder), _curves(folder), _samples(folder), _counts(folder, info)
            )
            if read_text(folder / "run.json") == text:
                return record
        except DamagedRecord as error:
            damage = error
    if damage is not None:
        raise DamagedRecord(f"{damage}; {_way_on(folder)}")
    return None


def read_job(folder: Path) -> dict[str, Any] | None:
    """Who trains or trained the run in a work folder (job.json), or None. DamagedRecord as `read_record`."""
    file = folder / "job.json"
    try:
        text = _text(file)
        return None if text is None else _fields(file, text, JOB)
    except DamagedRecord as error:
        raise DamagedRecord(f"{error}; delete {folder}: the run then begins anew") from None


def _way_on(folder: Path) -> str:
    """What to do about a damaged record."""
    return f"restore {folder} (`git checkout -- {folder}` if it is committed) or delete it to train it again"


def _text(file: Path) -> str | None:
    """A file's text, or None where there is none."""
    try:
        return read_text(file)
    except UnicodeDecodeError as error:
        raise DamagedRecord(
            f"{file}: expected text, found the byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from None
    except IsADirectoryError:
        raise DamagedRecord(f"{file}: expected a file, found a folder") from None
    except OSError as error:
        raise DamagedRecord(f"{file}: expected a readable file: {error.strerror}") from None


def _missing(file: Path) -> DamagedRecord:
    """The error for a file that is not there."""
    found = sorted(path.name for path in file.parent.iterdir()) if file.parent.is_dir() else "no folder"
    wanted = "run.json, metrics.json and curves.csv" if file.name != "counts.npz" else file.name
    return DamagedRecord(f"{file}: no such file: expected {wanted}, found {found}")


def _json(file: Path, text: str | None) -> dict[str, Any]:
    """The mapping that a JSON file holds."""
    if text is None:
        raise _missing(file)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        found = text.split("\n")[error.lineno - 1][:40] or "nothing more"
        raise DamagedRecord(
            f"{file}: expected JSON, found {found!r} in line {error.lineno} ({error.msg})"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise DamagedRecord(f"{file}: expected JSON of a record ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise DamagedRecord(f"{file}: expected a mapping, found a {type(content).__name__}")
    return content


def _fields(file: Path, text: str | None, expected: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """A mapping that has the expected entries."""
    content = _json(file, text)
    for name, types in expected.items():
        wanted = " or ".join("null" if kind is NoneType else kind.__name__ for kind in types)
        if name not in content:
            raise DamagedRecord(f"{file}: expected an entry {name!r} ({wanted}), found {sorted(content)}")
        value = content[name]
        if type(value) not in types or (type(value) is float and not math.isfinite(value)):
            raise DamagedRecord(f"{file}: {name}: expected {wanted}, found {str(value)[:40]!r}")
    return content


def _info(file: Path, text: str | None) -> dict[str, Any]:
    """The content of run.json."""
    info = _fields(file, text, INFO)
    try:
        datetime.datetime.fromisoformat(info["recorded_at"]).timestamp()
    except (ValueError, OverflowError):
        raise DamagedRecord(
            f"{file}: recorded_at: expected a date and time, found {info['recorded_at']!r}"
        ) from None
    if type(info.get("training_s", 0.0)) not in (int, float, NoneType):  # earlier records have none
        raise DamagedRecord(f"{file}: training_s: expected a number, found {info['training_s']!r}")
    if not isinstance(info.get("counts", {}), dict):
        raise DamagedRecord(f"{file}: counts: expected a mapping, found {str(info['counts'])[:40]!r}")
    return info


def _counts(folder: Path, info: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The content of counts.npz, where run.json says that there are counts."""
    expected, file = info.get("counts"), folder / "counts.npz"
    if not expected:
        return {}
    try:
        return unpacked(file.read_bytes(), expected)
    except FileNotFoundError:
        raise _missing(file) from None
    except IsADirectoryError:
        raise DamagedRecord(f"{file}: expected a file, found a folder") from None
    except OSError as error:
        raise DamagedRecord(f"{file}: expected a readable file: {error.strerror}") from None
    except ValueError as error:
        raise DamagedRecord(f"{file}: {error}") from None


def _metrics(folder: Path) -> dict[str, Any]:
    """The content of metrics.json."""
    file = folder / "metrics.json"
    try:
        return null_to_nan(_json(file, _text(file)))
    except RecursionError:
        raise DamagedRecord(f"{file}: expected JSON of a record, found too many brackets") from None


def _curves(folder: Path) -> pd.DataFrame:
    """The content of curves.csv."""
    file = folder / "curves.csv"
    text = _text(file)
    if text is None:
        raise _missing(file)
    if not text.endswith("\n"):
        end = f"the end {text[-40:]!r}" if text else "an empty file"
        raise DamagedRecord(f"{file}: expected whole lines of a table, found {end}")
    try:
        curves = pd.read_csv(io.StringIO(text))
    except ValueError as error:  # pandas raises its own kinds of it
        reason = str(error).strip().rpartition("error: ")[2]
        raise DamagedRecord(f"{file}: expected a table ({reason})") from None
    if "iteration" not in curves.columns:
        raise DamagedRecord(f"{file}: expected a column 'iteration', found {list(curves.columns)[:5]}")
    for name, column in curves.items() if len(curves) else ():
        if not pd.api.types.is_numeric_dtype(column):
            words = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
            raise DamagedRecord(f"{file}: {name}: expected numbers, found {str(words.iloc[0])[:40]!r}")
    if len(curves) and not pd.api.types.is_integer_dtype(curves["iteration"]):
        raise DamagedRecord(f"{file}: iteration: expected a whole number in every line")
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
