"""The two lists of packages say the same: environment.yml (conda) and pyproject.toml (pip, CI)."""

import re
import tomllib
from pathlib import Path

import yaml

from panolib.profiles import project_root

ROOT = project_root(Path(__file__).parent)
CONDA_NAMES = {"torch": "pytorch"}


def split(requirement: str) -> tuple[str, str]:
    """("name", ">=1.2") of a requirement."""
    name, version = re.fullmatch(r"([A-Za-z0-9_.-]+?)\s*([<>=].*)?", requirement).groups()
    return name.lower(), version or ""


def test_conda_environment_holds_what_pip_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(map(split, project["dependencies"]))
    for extra in project["optional-dependencies"].values():
        wanted |= dict(split(r) for r in extra if not r.startswith("panolib["))
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    found = dict(map(split, conda)) | dict(split(r) for r in pip if not r.startswith("-e"))
    assert found.pop("python") == project["requires-python"]
    found.pop("pip")
    assert found == {CONDA_NAMES.get(name, name): version for name, version in wanted.items()}
    assert "-e ." in pip


def test_every_profile_states_what_it_is():
    for path in sorted((ROOT / "notebooks" / "profiles").glob("*.yaml")):
        assert path.read_text().startswith(f"# {path.stem}: ")
