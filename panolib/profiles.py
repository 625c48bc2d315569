"""Profiles as files: strict YAML, found by name or path, merged into what it extends. Plain values only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from panolib.config import ENDLESS, ProfileError, join, show
from panolib.errors import one_line

PACKAGE = Path(__file__).parent


def project_root(start: str | Path | None = None) -> Path:
    """The folder of this project, searched from `start` upwards.

    By default from the working folder, then from this package: `pip install -e` imports it from a clone.
    Raises FileNotFoundError if no folder on the way up holds a pyproject.toml that names panolib.
    """
    starts = [Path.cwd(), PACKAGE] if start is None else [Path(start)]
    starts = [place.resolve() for place in starts]
    for folder in (folder for place in starts for folder in (place, *place.parents)):
        project = folder / "pyproject.toml"
        if project.is_file() and re.search(r'^name\s*=\s*"panolib"', project.read_text(), re.MULTILINE):
            return folder
    raise FileNotFoundError(
        f"{starts[0]}: neither this folder nor one above it holds the pyproject.toml of panolib; run from "
        "inside the cloned repository, or install the clone with pip install -e"
    )


def expand_path(text: str) -> Path:
    """A path of a profile: "~" and variables of the environment ($NAME) are replaced.

    Raises ProfileError naming a variable that is not set, or a user ("~name") without a home folder here.
    """
    expanded = os.path.expandvars(text)
    unset = re.search(r"\$(\w+|\{\w*\})", expanded)
    if unset:
        raise ProfileError(f"path {text!r}: variable {unset[0]} is not set; expected one of the environment")
    try:
        return Path(expanded).expanduser()
    except RuntimeError:
        raise ProfileError(
            f"path {text!r}: expected ~ or a user of this machine, found no home folder"
        ) from None


def profile_names() -> list[str]:
    """Names of the profiles in `notebooks/profiles`; base, which others extend, is none."""
    return sorted({file.stem for file in _profiles().glob("*.yaml")} - {"base"})


def find_profile(profile: str | Path, *, near: Path | None = None) -> Path:
    """The file of a profile.

    `profile` is the name of a file in `notebooks/profiles` without ".yaml"; or the path of a YAML file,
    searched from the working folder and from the project's. `near` is the file that extends this one: "base"
    is then a name too, and paths are searched from its folder. Raises ProfileError for an unknown name,
    listing the known ones, and for a path without a file.
    """
    text = str(profile)
    if not (isinstance(profile, Path) or text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text):
        known = profile_names() + (["base"] if near else [])
        if text not in known:
            raise ProfileError(
                f"profile {text!r}: expected one of {', '.join(known)}, or the path of a YAML file"
            )
        return _profiles() / f"{text}.yaml"
    path = expand_path(text)
    for folder in (near.parent if near else Path(), project_root()):
        try:
            if (folder / path).is_file():
                return (folder / path).resolve()
        except OSError as error:  # a name that no file can have, a folder that may not be entered
            raise ProfileError(f"profile {text}: expected a YAML file: {error.strerror}") from error
    raise ProfileError(f"profile {text}: expected a YAML file, found no such file")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping, merged into the file that it extends.

    Two traps of plain YAML are closed: a key given twice is an error, and ``1e-3`` is a number. The head of
    `notebooks/profiles/base.yaml` says how a file changes the one that it `extends`.

    Raises FileNotFoundError if there is no such file, listing the profiles beside it. Raises ProfileError if
    the text is no YAML, a key is given twice, the top level is no mapping, the extended file is not there or
    extends this one, a mapping holds itself, or a key is to be removed that is not there.
    """
    try:
        return _load_merged(Path(path), ())
    except RecursionError:
        raise ProfileError(f"{path}: {ENDLESS}") from None


def _profiles() -> Path:
    return project_root() / "notebooks" / "profiles"


def _load_merged(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """A file merged into what it extends. `below`: the files that lead here, each extending the next."""
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.yaml"))
        known = ", ".join(found) or "no profile"
        raise FileNotFoundError(f"{path}: no such file; found here: {known}; expected a YAML file")
    below = (*below, path.resolve())
    if below[-1] in below[:-1]:
        files = " -> ".join(file.name for file in below)
        raise ProfileError(f"{path}: extends itself, by {files}; expected a last one that extends none")
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        expected = "expected YAML in utf-8 with every key once"
        raise ProfileError(f"{path}: {one_line(error)}; {expected}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # 2023-13-01, !!int x: PyYAML's own
        raise ProfileError(f"{path}: expected YAML, found a value that is none ({error})") from error
    if not isinstance(mapping, dict):
        raise ProfileError(f"{path}: expected `key: value` lines, found {show(mapping)}")
    if "extends" not in mapping:
        return merged({}, mapping, str(path), "")
    try:
        extended = find_profile(mapping.pop("extends"), near=path)
    except ProfileError as error:
        raise ProfileError(f"{path}: extends: {error}") from error
    return merged(_load_merged(extended, below), mapping, str(path), "")


def merged(below: Mapping, above: Mapping, where: str, path: str) -> dict:
    """A mapping changed by what another says in its place, at any depth.

    `where`: the file; `path`: the keys that lead to these mappings; both for messages.
    """
    found = dict(below)
    for key, value in above.items():
        if value is _REMOVE:
            if key not in found:
                raise ProfileError(f"{where}: {join(path, key)}: expected a key to remove, found none")
            del found[key]
        elif isinstance(value, dict):
            kept = found.get(key)
            whole = isinstance(value, _Replacing) or not isinstance(kept, dict)
            found[key] = merged({} if whole else kept, value, where, join(path, key))
        else:
            found[key] = value
    return found


_REMOVE = object()  # !remove


class _Replacing(dict):
    """!replace: a mapping that takes the place of the whole one below."""


class _StrictLoader(yaml.SafeLoader):
    """YAML without silent surprises: no duplicate keys, and 1e-3 is a float (YAML 1.1 reads a string)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node.value, str):
                continue  # a list or mapping: no key, which PyYAML says
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
_StrictLoader.add_constructor("!remove", lambda loader, node: _REMOVE)
_StrictLoader.add_constructor(
    "!replace", lambda loader, node: _Replacing(loader.construct_mapping(node, deep=True))
)
