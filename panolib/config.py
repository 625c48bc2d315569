"""Specs: frozen dataclasses made of plain values, and back to these for run.json and the keys of runs.

The spec is the schema: a key that no field has, a field without a value and a value of another type are each
an error that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from panolib.errors import UserError

T = TypeVar("T")


def _in_rising_order(values: Sequence[float]) -> Sequence[float]:
    """Values of which none is below the one before it; equal ones are allowed."""
    if all(low <= high for low, high in itertools.pairwise(values)):
        return values
    raise PydanticCustomError("order", "Input should be values in rising order")


def _different(values: Sequence) -> Sequence:
    """Values of which none is given twice."""
    if len(set(values)) == len(values):
        return values
    raise PydanticCustomError("different", "Input should be different items")


# Types and ranges that fields share.
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Size = tuple[Count, Count]  # height and width, pixels
PositivePair = Annotated[tuple[Positive, Positive], AfterValidator(_in_rising_order)]
NonNegativePair = Annotated[tuple[NonNegative, NonNegative], AfterValidator(_in_rising_order)]
Different = AfterValidator(_different)  # Annotated[tuple[X, ...], Different]: no item twice


class ProfileError(UserError, ValueError):
    """A profile says something that the code does not understand. The message names file, key and value."""


@dataclass_transform(frozen_default=True)
def spec(cls: type[T] | None = None, **options) -> type[T]:
    """Decorator: a frozen dataclass whose values are checked, with the `options` of `dataclasses.dataclass`.

    Nothing is converted but a whole number for a float, and numbers are finite. `from_mapping` builds one
    from plain values. Built by hand, a wrong value is a `pydantic.ValidationError`, which is a ValueError.
    """
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    decorate = pydantic.dataclasses.dataclass(frozen=True, config=config, **options)
    return decorate if cls is None else decorate(cls)


def from_mapping(cls: type[T], mapping: Mapping[str, Any], *, where: str | Path) -> T:
    """Build a (nested) spec from a mapping of plain values, without any guess.

    Lists become tuples and a whole number is accepted for a float; nothing else is converted. A field with a
    default may be left out. A field of type Mapping is kept as it is, for whoever reads it. Raises
    ProfileError naming the file `where`, key path, value found and what was expected.
    """
    try:
        text = json.dumps(_plain(mapping, "", everything=True))
        return _adapter(cls).validate_json(text)  # JSON: only there is a list a tuple to a strict pydantic
    except TypeError as error:
        raise ProfileError(f"{where}: {error}") from error
    except RecursionError:
        raise ProfileError(f"{where}: {ENDLESS}") from None
    except ValidationError as error:
        raise ProfileError(f"{where}: {_in_one_line(cls, mapping, error)}") from error


def later(default: Any) -> Any:
    """A field that a spec got after runs with it were recorded; its default is what was done before.

    At its default it is no part of a key (`canonical_json`), so the records stay valid.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def respelt(default: Any, old: Mapping[Any, Any]) -> Any:
    """A field whose values got new spellings, {new: old}, after runs with the old ones were recorded.

    Keys are made of the old ones, so the records stay valid, and a value has one key however it is spelt.
    """
    return dataclasses.field(default=default, metadata={"respelt": old})


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts and tuples to lists, recursively: the inverse of `from_mapping`, ready for JSON.

    Raises TypeError naming the key path, for anything but numbers, strings, booleans, None and containers.
    """
    return _plain(value, "spec", everything=True)


def canonical_json(value: Any) -> str:
    """The one JSON text of a plain value: sorted keys, no spaces. What the keys of runs are hashed from.

    Fields that came `later` are left out at their default; values that were `respelt` are as they were.
    """
    plain = _plain(value, "spec", everything=False)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


_adapter = functools.cache(TypeAdapter)
ENDLESS = "expected mappings and lists that end, found one that holds itself or is hundreds of levels deep"

# What was expected, by pydantic's types of errors; of the others its message says it.
_EXPECTED = {
    "bool_type": "bool",
    "int_type": "int",
    "float_type": "float",
    "string_type": "str",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "the keys of {class_name}",
    "too_short": "a list with {min_length} or more items",
    "too_long": "a list with {max_length} or fewer items",
    "greater_than": "> {gt:g}",
    "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt:g}",
    "less_than_equal": "<= {le:g}",
}


def _in_one_line(cls: type, mapping: Any, failure: ValidationError) -> str:
    """The first wrong key, unknown ones before others: its path, value found and what was expected."""
    errors = failure.errors(include_url=False)
    error = next((error for error in errors if error["type"] == "unexpected_keyword_argument"), errors[0])
    keys, found = _keys(error, mapping), show(error["input"])
    path = functools.reduce(join, keys, "")
    if error["type"] == "unexpected_keyword_argument":
        names = [field.name for field in dataclasses.fields(_spec_at(cls, keys[:-1]))]
        close = difflib.get_close_matches(keys[-1], names, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{path}: unknown key, found with value {found}; {hint}expected one of: {', '.join(names)}"
    if error["type"] == "missing":  # a key of a spec, or the last items of a pair
        field = _spec_at(cls, keys[:-1]).__dataclass_fields__.get(keys[-1])
        return f"{path}: missing key, expected {field.type if field else 'a value'}"
    if error["type"] == "value_error":  # the spec itself checks its values in __post_init__
        return f"{path or cls.__name__}: {error['ctx']['error']}"
    same = [other for other in errors if _keys(other, mapping) == keys]  # the members of a union
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    return f"{path or 'top level'}: expected {expected}, found {found}"


def _expected(error: Mapping[str, Any]) -> str:
    """What a value should have been."""
    words = _EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be "))
    return words.format_map(error.get("ctx", {}))


def _keys(error: Mapping[str, Any], mapping: Any) -> list[str | int]:
    """Where an error lies, without the members of unions that pydantic names between the keys."""
    keys: list[str | int] = []
    for part in error["loc"]:
        try:
            mapping = mapping[part]
        except (KeyError, IndexError, TypeError):
            if error["type"] != "missing" or part != error["loc"][-1]:
                continue
        keys.append(part)
    return keys


def _spec_at(cls: type, keys: Sequence[str | int]) -> type:
    """The spec to which the keys at a path belong."""
    for key in keys:
        if key in cls.__pydantic_fields__:  # others are keys and positions of mappings and tuples
            cls = next(_specs_in(cls.__pydantic_fields__[key].annotation))
    return cls


def _specs_in(annotation: Any) -> Iterator[type]:
    """Specs that a type is made of."""
    if dataclasses.is_dataclass(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _specs_in(part)


def _plain(value: Any, path: str, *, everything: bool) -> Any:
    """One value of a spec as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        if not everything:
            found = {
                field: field.metadata["respelt"].get(own, own) if "respelt" in field.metadata else own
                for field, own in found.items()
                if "later" not in field.metadata or own != field.default
            }
        return {
            field.name: _plain(own, join(path, field.name), everything=everything)
            for field, own in found.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, join(path, i), everything=everything) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, join(path, key), everything=everything) for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{path}: expected numbers, strings, booleans, None, tuples, mappings with texts as keys or "
        f"dataclasses of these, found {show(value)}"
    )


def show(value: Any) -> str:
    """A value and its type, short enough for one line."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def join(path: str, key: str | int) -> str:
    """Key path of a nested key, or of an item."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else str(key)
