"""Numbered notebooks, executed headless."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from panolib.errors import UserError


class NotebookFailed(UserError, RuntimeError):
    """A notebook could not be executed to its end."""


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter that runs, whatever kernels this machine has under whatever names."""

    started: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    async def start_kernel(self, **options) -> None:
        self.started.add(self)
        await super().start_kernel(**options)

    @property
    def kernel_spec(self) -> KernelSpec:
        from ipykernel.kernelspec import get_kernel_dict

        return KernelSpec(**get_kernel_dict())  # its command begins with sys.executable


def numbered_notebooks(folder: Path, only: str | None = None) -> list[Path]:
    """Notebooks ``NN_name.ipynb`` of a folder in order, or those whose name begins with `only`.

    Raises FileNotFoundError if there is none, naming those there are.
    """
    found = sorted(file for file in folder.glob("*.ipynb") if re.match(r"\d\d_", file.name))
    chosen = [file for file in found if file.stem.startswith(only or "")]
    if not chosen:
        wanted = f"one that begins with {only!r}" if only else "NN_name.ipynb"
        names = ", ".join(file.stem for file in found) or "none"
        raise FileNotFoundError(f"{folder}: expected a notebook, {wanted}; found {names}")
    return chosen


def execute_all(
    notebooks: Sequence[Path], out_dir: Path, parameters: Mapping[str, Any], *, at_once: int = 1
) -> None:
    """`execute` notebooks, so many at once; they start in order.

    The first failure is raised when those that run have ended, and no other starts. An interrupt ends all.
    """
    over = threading.Event()

    def execute_next(notebook: Path) -> None:
        if not over.is_set():
            try:
                execute(notebook, out_dir, parameters)
            except BaseException:
                over.set()
                raise

    with ThreadPoolExecutor(at_once) as pool:
        executions = [pool.submit(execute_next, notebook) for notebook in notebooks]
        try:
            wait(executions)
        except BaseException:  # the threads end with their kernels
            over.set()
            for kernel in list(OwnKernel.started):
                with contextlib.suppress(AttributeError, ProcessLookupError):  # it has none yet, or no longer
                    os.kill(kernel.provisioner.pid, signal.SIGKILL)
            raise
    for execution in executions:
        execution.result()


def execute(notebook: Path, out_dir: Path, parameters: Mapping[str, Any]) -> Path:
    """Run a notebook from top to bottom in its own folder, by this interpreter, under a progress bar.

    `out_dir` takes the executed copy, which is returned; also of a failing notebook, as far as it got.
    `parameters` replace values of the cell tagged "parameters".

    Raises
    ------
    KeyError
        For a parameter that the notebook does not declare (papermill itself only warns).
    TypeError
        For a parameter of another type than the value it replaces.
    NotebookFailed
        Naming the notebook, the cell and its error; or why there is no kernel.
    """
    import papermill  # a second to import: only for those who execute
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if importlib.util.find_spec("ipykernel") is None:
        raise NotebookFailed(
            f"{notebook.name}: {sys.executable} has no package ipykernel, expected it to execute notebooks; "
            "`make install` or `pip install ipykernel` brings it"
        )
    _check_parameters(notebook, parameters)
    out_dir.mkdir(parents=True, exist_ok=True)
    executed = out_dir / notebook.name
    executed.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            dict(parameters),
            kernel_name="python3",
            language="python",
            kernel_manager_class=OwnKernel,
            resources={"metadata": {"path": str(notebook.parent)}},  # papermill's cwd is that of all threads
            progress_bar={"desc": notebook.stem},
        )
    except PapermillExecutionError as error:
        raise NotebookFailed(
            f"{notebook.name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}; see {executed}"
        ) from error
    except DeadKernelError as error:  # which does not say where
        raise NotebookFailed(
            f"{notebook.name}, {_last_started_cell(executed)}: its kernel died (enough memory?); "
            f"see {executed}"
        ) from error
    except RuntimeError as error:
        raise NotebookFailed(f"{notebook.name}: no kernel of {sys.executable} started: {error}") from error
    return executed


def _check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Raise for a parameter that the notebook does not declare, or declares with a value of another type."""
    import papermill

    try:
        declared = papermill.inspect_notebook(str(notebook))
    except ValueError as error:
        raise NotebookFailed(
            f"{notebook.name}: expected a kernelspec in its metadata, as JupyterLab writes it; {error}"
        ) from error
    if unknown := set(parameters) - set(declared):
        raise KeyError(f"{notebook.name} declares no parameter {sorted(unknown)}")
    for name, value in parameters.items():
        literal = declared[name]["default"]
        try:
            default = ast.literal_eval(literal)
        except (ValueError, SyntaxError) as error:
            raise NotebookFailed(
                f"{notebook.name}: parameter {name} is declared as {literal}, expected a plain literal"
            ) from error
        if default is not None and type(value) is not type(default):
            raise TypeError(
                f"{notebook.name}: parameter {name} is {value!r}, "
                f"expected a value of type {type(default).__name__}, such as {default!r}"
            )


def _last_started_cell(executed: Path) -> str:
    """The cell that a dead kernel was at, by its number and its first line."""
    import nbformat  # another second

    cells = [cell for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code" and cell.source]
    started = [cell for cell in cells if cell.metadata.papermill.start_time]
    return f"cell [{len(started)}] ({started[-1].source.strip().splitlines()[0]})"
