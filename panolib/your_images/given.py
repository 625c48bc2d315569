"""The paths that a user gives to `predict` and `adapt`, checked without torch, whose import takes seconds."""

from __future__ import annotations

import glob
from argparse import Namespace
from pathlib import Path

from panolib.data.any_image import IMAGES
from panolib.errors import UserError


class AdaptError(UserError, ValueError):
    """Folders with which an adaptation cannot begin."""


class PredictError(UserError, ValueError):
    """Images or a folder of results with which `predict` cannot begin."""


def check_given(options: Namespace) -> None:
    """Raise PredictError or AdaptError for paths of a command line that lead nowhere."""
    if options.command == "predict":
        for argument in options.images:
            files_of(argument)
    if options.command == "adapt":
        check_folders_apart(options.out, options.source, options.target, options.labels)


def check_folders_apart(out: Path, source: str | Path, target: str | Path, labels: Path | None) -> None:
    """Raise AdaptError for no folder, where source and target are one, or `out` lies in one that is read."""
    given = {"--source": source, "--target": target, "--labels": labels}
    given = {option: Path(folder) for option, folder in given.items() if folder is not None}
    for option, folder in given.items():
        if not folder.is_dir():
            raise AdaptError(f"{option} {folder}: no such folder, expected one of images")
    if Path(source).resolve() == Path(target).resolve():
        raise AdaptError(f"--target {target}: is the folder of --source, expected one of other images")
    for option, folder in given.items():
        if out.resolve().is_relative_to(folder.resolve()):
            raise AdaptError(f"--out {out}: lies in {folder}, the folder of {option}; expected another one")


def files_of(argument: str) -> list[Path]:
    """Image files of one argument of `predict`: a file, a folder or a pattern. PredictError for none."""
    path, expected = Path(argument), f"expected images whose names end in {', '.join(IMAGES)}"
    if path.is_dir():
        found = [item for item in path.iterdir() if not item.name.startswith(".")]
    elif path.is_file() or not glob.has_magic(argument):
        if not path.is_file():
            raise PredictError(f"{path}: no such file or folder, {expected}")
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(argument, recursive=True)]
    files = [item for item in found if item.suffix.lower() in IMAGES and not item.is_dir()]
    if not files:
        n = {"folder": sum(item.is_dir() for item in found)}
        n["other file"] = len(found) - n["folder"]
        held = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in n.items())
        raise PredictError(f"{argument}: holds no image ({held}), {expected}")
    return files
