"""Notebooks are executed by this interpreter; errors name the notebook, the cell or the parameter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from panolib.lab.notebook import NotebookFailed, execute

V4 = nbformat.v4
KERNEL = {"name": "python3", "display_name": "x", "language": "python"}


def a_notebook(folder: Path, *cells: str, kernel: dict | None = KERNEL) -> Path:
    """A notebook with two parameters and some cells."""
    parameters = V4.new_code_cell('profile = "cpu"\nretrain = False', metadata={"tags": ["parameters"]})
    metadata = {} if kernel is None else {"kernelspec": kernel}
    notebook = V4.new_notebook(cells=[parameters, *map(V4.new_code_cell, cells)], metadata=metadata)
    nbformat.write(notebook, folder / "00_data.ipynb")
    return folder / "00_data.ipynb"


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
