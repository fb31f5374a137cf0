"""Records to JSON and back, by their own type hints; unknown and missing fields are errors. No I/O."""

from __future__ import annotations

import dataclasses
import json
import types
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
    built: T = _build(kind, value, kind.__name__)
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
