"""Notebooks are executed by this interpreter; errors name the notebook, the cell or the parameter."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from panolib.lab.notebook import NotebookFailed, execute, execute_all

V4 = nbformat.v4
KERNEL = {"name": "python3", "display_name": "x", "language": "python"}


def a_notebook(folder: Path, *cells: str, kernel: dict | None = KERNEL, name: str = "00_data") -> Path:
    """A notebook with two parameters and some cells."""
    parameters = V4.new_code_cell('profile = "cpu"\nretrain = False', metadata={"tags": ["parameters"]})
    metadata = {} if kernel is None else {"kernelspec": kernel}
    notebook = V4.new_notebook(cells=[parameters, *map(V4.new_code_cell, cells)], metadata=metadata)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def foreign_kernel(tmp_path, monkeypatch) -> Path:
    """A kernel of another environment that is named "python3" and that Jupyter finds first; it fails."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    interpreter = tmp_path / "another_python"
    interpreter.write_text(f"#!/bin/sh\ntouch {tmp_path}/foreign_kernel_was_used\nexit 1\n")
    interpreter.chmod(0o755)
    command = [str(interpreter), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, **KERNEL}))
    for variable in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
    return tmp_path / "foreign_kernel_was_used"


def test_notebooks_are_executed_by_the_interpreter_that_runs(tmp_path, foreign_kernel):
    notebook = a_notebook(tmp_path, "import sys\nprint(sys.executable, profile, retrain)")
    executed = execute(notebook, tmp_path / "out", {"profile": "smoke"})
    assert nbformat.read(executed, 4).cells[-1].outputs[0].text == f"{sys.executable} smoke False\n"
    assert not foreign_kernel.exists()


def test_nbval_uses_the_interpreter_that_runs(tmp_path, foreign_kernel):
    """With the options of `make test`."""
    notebook = a_notebook(tmp_path, f"import sys\nassert sys.executable == {sys.executable!r}")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", str(notebook)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
    assert not foreign_kernel.exists()
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "--nbval --nbval-current-env" in makefile


def test_a_dying_kernel_names_notebook_and_cell(tmp_path):
    notebook = a_notebook(tmp_path, "", "1 + 1", "import os\nos._exit(1)", "2 + 2")
    with pytest.raises(NotebookFailed, match=r"^00_data.ipynb, cell \[4\] \(import os\): its kernel died"):
        execute(notebook, tmp_path / "out", {"profile": "smoke"})


def test_a_kernel_that_does_not_start_names_notebook_and_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no interpreter finds its library there
    with pytest.raises(NotebookFailed) as error:
        execute(a_notebook(tmp_path, "1"), tmp_path / "out", {})
    assert str(error.value).startswith(f"00_data.ipynb: no kernel of {sys.executable} started: ")


def test_a_missing_kernelspec_is_one_error(tmp_path):
    with pytest.raises(NotebookFailed, match=r"^00_data.ipynb: expected a kernelspec in its metadata"):
        execute(a_notebook(tmp_path, "1", kernel=None), tmp_path / "out", {})


def test_a_missing_ipykernel_is_one_error(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    without = {"ipykernel": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: without.get(name, 1) and found(name))
    with pytest.raises(NotebookFailed, match=r"^00_data.ipynb: .* has no package ipykernel, expected it"):
        execute(a_notebook(tmp_path, "1"), tmp_path / "out", {})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"retrain": "false"}, "parameter retrain is 'false', expected a value of type bool, such as False"),
        ({"retrain": 0}, "parameter retrain is 0, expected a value of type bool"),
        ({"profile": None}, "parameter profile is None, expected a value of type str, such as 'cpu'"),
    ],
)
def test_a_parameter_of_another_type_is_refused(tmp_path, parameters, message):
    with pytest.raises(TypeError, match=message):
        execute(a_notebook(tmp_path, "1"), tmp_path / "out", parameters)
    assert not (tmp_path / "out").exists()


def test_a_parameter_that_is_computed_is_named(tmp_path):
    notebook = a_notebook(tmp_path, "1")
    content = nbformat.read(notebook, 4)
    content.cells[0].source = "n_images = 3 * 2"
    nbformat.write(content, notebook)
    with pytest.raises(NotebookFailed, match=r"^00_data.ipynb: parameter n_images is declared as 3 \* 2"):
        execute(notebook, tmp_path / "out", {"n_images": 3})


def meeting(folder: Path, mine: str, other: str) -> str:
    """Code that ends when the notebook of the other name has begun, too."""
    return (
        f"import pathlib, time\nfolder = pathlib.Path({str(folder)!r})\n(folder / {mine!r}).touch()\n"
        f"until = time.monotonic() + 60\nwhile not (folder / {other!r}).exists():\n"
        "    assert time.monotonic() < until\n    time.sleep(0.05)"
    )


def test_two_notebooks_are_executed_at_once(tmp_path):
    first = a_notebook(tmp_path, meeting(tmp_path, "first", "second"), name="00_first")
    second = a_notebook(tmp_path, meeting(tmp_path, "second", "first"), name="01_second")
    execute_all([first, second], tmp_path / "out", {"profile": "smoke"}, at_once=2)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [first.name, second.name]


def test_the_one_that_runs_ends_when_another_fails_and_no_other_starts(tmp_path):
    failing = a_notebook(tmp_path, meeting(tmp_path, "first", "second"), "1 / 0", name="00_first")
    running = a_notebook(tmp_path, meeting(tmp_path, "second", "first"), "print('ended')", name="01_second")
    waiting = [a_notebook(tmp_path, "import time; time.sleep(3)", name=f"0{i}_waits") for i in (2, 3)]
    with pytest.raises(NotebookFailed, match=r"00_first.ipynb, cell \[4\]: ZeroDivisionError"):
        execute_all([failing, running, *waiting], tmp_path / "out", {"profile": "smoke"}, at_once=2)
    assert nbformat.read(tmp_path / "out" / running.name, 4).cells[-1].outputs[0].text == "ended\n"
    assert not (tmp_path / "out" / waiting[-1].name).exists()


def test_an_interrupt_ends_all_kernels(tmp_path):
    for name in ("00_first", "01_second"):
        text = f"pathlib.Path({str(tmp_path / name)!r}).write_text(str(os.getpid()))"
        a_notebook(tmp_path, f"import os, pathlib, time\n{text}\ntime.sleep(600)", name=name)
    code = (
        "import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from panolib.lab.notebook import execute_all, numbered_notebooks\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "execute_all(numbered_notebooks(folder), folder / 'out', {'profile': 'smoke'}, at_once=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    pids = [tmp_path / "00_first", tmp_path / "01_second"]
    until = time.monotonic() + 120
    while not all(file.exists() and file.read_text() for file in pids):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    until = time.monotonic() + 30
    while any(Path("/proc", file.read_text()).exists() for file in pids):
        assert time.monotonic() < until
        time.sleep(0.1)
