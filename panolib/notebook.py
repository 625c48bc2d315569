"""Numbered notebooks, executed headless."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError


class NotebookFailed(RuntimeError):
    """A cell of a notebook raised an exception."""


def numbered_notebooks(folder: Path, only: str | None = None) -> list[Path]:
    """Notebooks ``NN_name.ipynb`` of a folder in order, or those whose name begins with `only`.

    Raises
    ------
    FileNotFoundError
        If there is none, naming those there are.
    """
    found = sorted(file for file in folder.glob("*.ipynb") if re.match(r"\d\d_", file.name))
    chosen = [file for file in found if file.stem.startswith(only or "")]
    if not chosen:
        wanted = f"one that begins with {only!r}" if only else "NN_name.ipynb"
        names = ", ".join(file.stem for file in found) or "none"
        raise FileNotFoundError(f"{folder}: expected a notebook, {wanted}; found {names}")
    return chosen


def execute(notebook: Path, out_dir: Path, parameters: Mapping[str, Any]) -> Path:
    """Run a notebook from top to bottom in its own folder, under a progress bar.

    Parameters
    ----------
    notebook : Path
    out_dir : Path
        Takes the executed copy; also of a failing notebook, as far as it got.
    parameters : mapping of str to plain values
        Replace values of the cell tagged "parameters".

    Returns
    -------
    Path
        The executed copy.

    Raises
    ------
    KeyError
        For a parameter that the notebook does not declare (papermill itself only warns).
    NotebookFailed
        Naming the notebook, the cell and its error.
    """
    unknown = set(parameters) - set(papermill.inspect_notebook(str(notebook)))
    if unknown:
        raise KeyError(f"{notebook.name} declares no parameter {sorted(unknown)}")
    out_dir.mkdir(parents=True, exist_ok=True)
    executed = out_dir / notebook.name
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            dict(parameters),
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar={"desc": notebook.stem},
        )
    except PapermillExecutionError as error:
        raise NotebookFailed(
            f"{notebook.name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}; see {executed}"
        ) from error
    return executed
