"""Records to JSON and back, by their own type hints; unknown and missing fields are errors. No I/O.

Reading takes a quick way first, by readers that are made once a class; it only knows that something does not fit. The
slow way then finds out what, for the message. A test holds both to the same answers.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from twinpod.errors import ProtocolError

T = TypeVar("T")


def dumps(record: object) -> str:
    """Compact JSON of a record; tuples become lists, enums their values."""
    return json.dumps(plain(record), separators=(",", ":"))


def loads(kind: type[T], text: str) -> T:
    """The record of `kind` in `text`; ProtocolError says which field does not fit."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProtocolError(f"is not JSON: {error}", where=kind.__name__) from error
    built: T
    try:
        built = _reader(kind)(value)  # type: ignore[arg-type]  # a class is hashable
    except _DoesNotFitError:
        built = _build(kind, value, kind.__name__)
    return built


def plain(value: Any) -> Any:
    """Dicts, lists and scalars only."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


class _DoesNotFitError(Exception):
    """Said by a reader; `_build` says why."""


Reader = Callable[[Any], Any]


@cache
def _reader(kind: Any) -> Reader:
    """The quick way for one type."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (_reader(arm) for arm in get_args(kind) if arm is not type(None))
        if type(None) not in get_args(kind):
            return inner
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _tuple_reader(get_args(kind))
    if dataclasses.is_dataclass(kind):
        return _record_reader(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum_reader(kind)
    return _scalar_reader(kind)


def _scalar_reader(kind: Any) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        raise _DoesNotFitError

    return read


def _enum_reader(kind: type[Enum]) -> Reader:
    members = {member.value: member for member in kind}

    def read(value: Any) -> Any:
        try:
            return members[value]
        except (KeyError, TypeError) as error:
            raise _DoesNotFitError from error

    return read


def _tuple_reader(arms: tuple[Any, ...]) -> Reader:
    endless = len(arms) == 2 and arms[1] is Ellipsis
    readers = [_reader(arm) for arm in arms[: 1 if endless else None]]
    plain_kind = {arms[0]} if endless and arms[0] in (int, str, bool) else None

    def read(value: Any) -> Any:
        if type(value) is not list:
            raise _DoesNotFitError
        if plain_kind is not None and plain_kind.issuperset(map(type, value)):
            return tuple(value)
        if endless:
            return tuple(map(readers[0], value))
        if len(value) != len(readers):
            raise _DoesNotFitError
        return tuple(reader(item) for reader, item in zip(readers, value, strict=True))

    return read


def _record_reader(kind: Any) -> Reader:
    hints = _hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    names, items = readers.keys(), tuple(readers.items())

    def read(value: Any) -> Any:
        if type(value) is not dict or value.keys() != names:
            raise _DoesNotFitError
        return kind(**{name: reader(value[name]) for name, reader in items})

    return read


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (inner,) = (arm for arm in get_args(kind) if arm is not type(None))
        return _build(inner, value, where)
    if origin is tuple:
        return _build_tuple(get_args(kind), value, where)
    if dataclasses.is_dataclass(kind):
        return _build_record(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise ProtocolError(f"{value!r} is not one of {[member.value for member in kind]}", where=where) from error
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ProtocolError(f"expected {kind.__name__}, found {value!r}", where=where)
    return value


def _build_tuple(arms: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ProtocolError(f"expected a list, found {value!r}", where=where)
    if len(arms) == 2 and arms[1] is Ellipsis:
        return tuple(_build(arms[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(arms) != len(value):
        raise ProtocolError(f"expected {len(arms)} items, found {len(value)}", where=where)
    return tuple(
        _build(arm, item, f"{where}[{index}]") for index, (arm, item) in enumerate(zip(arms, value, strict=True))
    )


def _build_record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ProtocolError(f"expected an object, found {value!r}", where=where)
    hints = _hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := set(value) - set(names):
        raise ProtocolError(f"unknown fields {sorted(unknown)}", where=where)
    if missing := set(names) - set(value):
        raise ProtocolError(f"missing fields {sorted(missing)}", where=where)
    return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in names})
