"""Profiles: strict YAML -> frozen dataclasses, and back to plain values for run.json and the keys of runs.

A profile holds plain values only. The dataclass is the schema: a key that no field has, a field without a
value and a value of another type are each an error that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen, Predicate

T = TypeVar("T")


def in_rising_order(values: Sequence[float]) -> bool:  # the names of conditions stand in messages
    """Whether no value is below the one before it; equal ones are allowed."""
    return all(low <= high for low, high in itertools.pairwise(values))


def with_different_items(values: Sequence) -> bool:
    """Whether no value is given twice."""
    return len(set(values)) == len(values)


# Ranges that fields share. `from_mapping` checks them, and says them where a value lies outside.
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
Share = Annotated[float, Interval(ge=0, le=1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Counts = Annotated[tuple[Count, ...], MinLen(1)]
Size = tuple[Count, Count]  # height and width, pixels
PositivePair = Annotated[tuple[Positive, Positive], Predicate(in_rising_order)]
NonNegativePair = Annotated[tuple[NonNegative, NonNegative], Predicate(in_rising_order)]


class ProfileError(ValueError):
    """A profile says something that the code does not understand. The message names file, key and value."""


def project_root(start: str | Path | None = None) -> Path:
    """The folder of this project, searched from `start` (default: the working folder) upwards.

    Raises
    ------
    FileNotFoundError
        If no folder on the way up holds a pyproject.toml that names panolib.
    """
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        project = folder / "pyproject.toml"
        if project.is_file() and re.search(r'^name\s*=\s*"panolib"', project.read_text(), re.MULTILINE):
            return folder
    raise FileNotFoundError(
        f"{start}: neither this folder nor one above it holds the pyproject.toml of "
        "panolib; run from inside the cloned repository"
    )


def expand_path(text: str) -> Path:
    """A path of a profile: "~" and variables of the environment ($NAME) are replaced.

    Raises
    ------
    ProfileError
        Naming a variable that is not set.
    """
    expanded = os.path.expandvars(text)
    unset = re.search(r"\$(\w+|\{\w*\})", expanded)
    if unset:
        raise ProfileError(f"path {text!r}: variable {unset[0]} is not set; expected one of the environment")
    return Path(expanded).expanduser()


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Two traps of plain YAML are closed: a key given twice is an error, and ``1e-3`` is a number.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message lists the profiles beside it.
    ProfileError
        If the text is no YAML, a key is given twice, or the top level is no mapping.
    """
    path = Path(path)
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise FileNotFoundError(f"{path}: no such file; found here: {', '.join(found) or 'no profile'}")
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: {error}") from error
    if not isinstance(mapping, dict):
        raise ProfileError(f"{path}: expected `key: value` lines, found {_show(mapping)}")
    return mapping


def from_mapping(cls: type[T], mapping: Mapping[str, Any], *, where: str | Path) -> T:
    """Build a (nested) dataclass from a mapping of plain values, without any guess.

    Field types may be bool, int, float, str, None, ``Literal``, ``tuple[X, ...]``, ``tuple[X, Y]``,
    ``dict[str, X]``, ``Mapping`` (kept as it is), another dataclass, unions of these, and any of them in
    ``Annotated`` with ranges of annotated_types. Lists become tuples and a whole number is accepted for a
    float; nothing else is converted. Numbers are finite. A field with a default may be left out.

    Parameters
    ----------
    cls : dataclass
    mapping : mapping of str to plain values
        As `load_yaml` or `to_plain` gives it.
    where : str or Path
        The file, for messages.

    Raises
    ------
    ProfileError
        Naming file, key path, value found and what was expected.
    """
    return _build(cls, mapping, str(where), "")


def later(default: Any) -> Any:
    """A field that a spec got after runs with it were recorded; its default is what was done before.

    At its default it is no part of a key (`canonical_json`), so the records stay valid.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts and tuples to lists, recursively: the inverse of `from_mapping`, ready for JSON.

    Raises
    ------
    TypeError
        Naming the key path, for anything but numbers, strings, booleans, None and containers of these.
    """
    return _plain(value, "spec", everything=True)


def canonical_json(value: Any) -> str:
    """The one JSON text of a plain value: sorted keys, no spaces. What the keys of runs are hashed from.

    Fields that came `later` are left out at their default.
    """
    plain = _plain(value, "spec", everything=False)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _build(cls: type[T], mapping: Any, where: str, path: str) -> T:
    """One dataclass from one mapping."""
    if not isinstance(mapping, Mapping):
        raise ProfileError(
            f"{where}: {path or 'top level'}: expected the keys of {cls.__name__}, found {_show(mapping)}"
        )
    types_of = _field_types(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in mapping:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(fields)}"
            found = _show(mapping[key])
            raise ProfileError(f"{where}: {_join(path, key)}: unknown key, found with value {found}; {hint}")
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(types_of[name], mapping[name], where, _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ProfileError(
                f"{where}: {_join(path, name)}: missing key, expected {_type_name(types_of[name])}"
            )
    try:
        return cls(**values)
    except ProfileError:
        raise
    except ValueError as error:  # the dataclass itself checks its values in __post_init__
        raise ProfileError(f"{where}: {path or cls.__name__}: {error}") from error


def _convert(expected: Any, value: Any, where: str, path: str) -> Any:
    """One value to the type of its field."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _build(expected, value, where, path)
    if origin is Annotated:
        found = _convert(args[0], value, where, path)
        if all(_fits(found, mark) for mark in _marks(expected)):
            return found
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where, path)
    if origin is typing.Literal and any(value == arg and type(value) is type(arg) for arg in args):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        item_types = [args[0]] * len(value) if args[1:] == (Ellipsis,) else args
        if len(item_types) == len(value):
            return tuple(
                _convert(item_type, item, where, f"{path}[{i}]")
                for i, (item_type, item) in enumerate(zip(item_types, value))
            )
    is_mapping = isinstance(value, Mapping) and all(type(key) is str for key in value)
    if (origin or expected) in (dict, Mapping) and is_mapping:
        if not args:
            return dict(value)  # checked later, by whoever reads it
        return {key: _convert(args[1], item, where, _join(path, key)) for key, item in value.items()}
    if expected is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if expected in (bool, int, str, type(None)) and type(value) is expected:  # True is not an int here
        return value
    raise ProfileError(f"{where}: {path}: expected {_type_name(expected)}, found {_show(value)}")


def _convert_union(members: tuple, value: Any, where: str, path: str) -> Any:
    """The first member of a union that takes the value; with one candidate besides None, its error."""
    if value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    for member in sorted(members, key=lambda member: type(value) is not _plain_type(member)):  # 3 stays int
        try:
            return _convert(member, value, where, path)
        except ProfileError:
            if len(members) == 1:
                raise
    expected = " or ".join(_type_name(member) for member in members)
    raise ProfileError(f"{where}: {path}: expected {expected}, found {_show(value)}")


def _plain(value: Any, path: str, *, everything: bool) -> Any:
    """One value of a spec as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), f"{path}.{field.name}", everything=everything)
            for field in dataclasses.fields(value)
            if everything or "later" not in field.metadata or getattr(value, field.name) != field.default
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]", everything=everything) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{path}.{key}", everything=everything) for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{path}: expected numbers, strings, booleans, None, tuples or dataclasses of these, "
        f"found {_show(value)}"
    )


@functools.cache
def _field_types(cls: type) -> dict[str, Any]:
    """Annotations of a dataclass as types, not as strings."""
    return typing.get_type_hints(cls, include_extras=True)


def _plain_type(expected: Any) -> Any:
    """A type without its ranges."""
    return typing.get_args(expected)[0] if typing.get_origin(expected) is Annotated else expected


def _marks(expected: Any) -> list:
    """The ranges of an annotated type, one by one."""
    marks = expected.__metadata__
    return [part for mark in marks for part in (mark if isinstance(mark, Interval) else (mark,))]


def _fits(value: Any, mark: Any) -> bool:
    """Whether a value is in a range."""
    match mark:
        case Ge(bound):
            return value >= bound
        case Gt(bound):
            return value > bound
        case Le(bound):
            return value <= bound
        case Lt(bound):
            return value < bound
        case MinLen(length):
            return len(value) >= length
        case Predicate(condition):
            return condition(value)
    raise TypeError(f"range {mark!r}: expected Ge, Gt, Le, Lt, Interval, MinLen or Predicate")


def _range_name(mark: Any) -> str:
    """A range as the reader of a profile writes it."""
    match mark:
        case Ge(bound):
            return f">= {bound}"
        case Gt(bound):
            return f"> {bound}"
        case Le(bound):
            return f"<= {bound}"
        case Lt(bound):
            return f"< {bound}"
        case MinLen(length):
            return f"with {length} or more items"
    return mark.func.__name__.replace("_", " ")


def _type_name(expected: Any) -> str:
    """A type as the reader of a profile writes it."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return f"the keys of {expected.__name__}"
    if origin is Annotated:
        return f"{_type_name(args[0])} {' and '.join(map(_range_name, _marks(expected)))}"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join("None" if arg is type(None) else _type_name(arg) for arg in args)
    if origin is None:
        return "null" if expected is type(None) else expected.__name__
    inner = ", ".join("..." if arg is Ellipsis else _type_name(arg) for arg in args)
    return f"{'list' if origin is tuple else origin.__name__}[{inner}]"


def _show(value: Any) -> str:
    """A value and its type, short enough for one line."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _join(path: str, key: Any) -> str:
    """Key path of a nested key."""
    return f"{path}.{key}" if path else str(key)


class _StrictLoader(yaml.SafeLoader):
    """YAML without silent surprises: no duplicate keys, and 1e-3 is a float (YAML 1.1 reads a string)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value if isinstance(key_node.value, str) else id(key_node))
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
