"""What is wrong with a manifest, one clear line a problem: where, what, and what is allowed instead."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Model = type[BaseModel]
_EXPLAINED = {
    "string_pattern_mismatch": {
        "name": "must be lower-case letters, digits and '-', and begin with a letter",
        "folder": "must be a folder of the volume, without a / at its beginning",
        "interface": "must be an interface such as eth0, several with commas between them",
        "managedBy": "must be a path below a domain, such as example.com/controller",
        "target": 'must look like "package.module:function"',
    }
}
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "model_type": "an object with fields",
    "model_attributes_type": "an object with fields",
    "dict_type": "an object with fields",
    "tuple_type": "a list",
}


def lines_of(error: ValidationError, root: Model) -> list[str]:
    """A line for each problem that pydantic found, rules included, without repetitions."""
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        lines += _explain(detail, root)
    return list(dict.fromkeys(lines))


def parents_of(error: ValidationError) -> set[str]:
    """Paths of the objects that have a missing or unknown field: rules about these are not worth telling yet."""
    return {dotted(detail["loc"][:-1]) for detail in error.errors() if detail["type"] in ("missing", "extra_forbidden")}


def dotted(location: tuple[int | str, ...]) -> str:
    """`spec.runtimes[0].name` for a pydantic location."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _explain(detail: ErrorDetails, root: Model) -> list[str]:
    kind, location = detail["type"], detail["loc"]
    if kind == "rules":
        return list(detail["ctx"]["problems"])
    where = dotted(location)
    if kind == "extra_forbidden" and (why := _refused(location, root)):
        return [f"{where}: cannot be patched: it {why}"]
    if kind == "extra_forbidden":
        return [f"{where}: unknown field; {_suggest(location, root)}"]
    if kind == "missing":
        return [f"{where}: is missing; {_describe(location, root)}"]
    return [f"{where}: {_what(kind, detail)}"]


def _what(kind: str, detail: ErrorDetails) -> str:
    found, context = shown(detail["input"]), detail.get("ctx", {})
    if kind in _WANTED:
        return f"is {found}; must be {_WANTED[kind]}{_quote_hint(kind, detail['input'])}"
    if kind in ("literal_error", "enum"):
        return _choice(detail["input"], found, str(context["expected"]))
    if kind == "string_pattern_mismatch":
        last = str(detail["loc"][-1])
        return f"is {found}; {_EXPLAINED[kind].get(last, 'must match ' + str(context['pattern']))}"
    limits: Mapping[str, Callable[[], str]] = {
        "greater_than_equal": lambda: f"is {found}; must be at least {context['ge']}",
        "less_than_equal": lambda: f"is {found}; must be at most {context['le']}",
        "string_too_short": lambda: "is empty; write something",
        "string_too_long": lambda: f"is too long; at most {context['max_length']} characters",
        "too_short": lambda: f"has {context['actual_length']} entries; at least {context['min_length']} are needed",
        "too_long": lambda: f"has {context['actual_length']} entries; at most {context['max_length']} are allowed",
    }
    return limits[kind]() if kind in limits else detail["msg"]


def _quote_hint(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, (int, float)):
        return f'; write it in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    if isinstance(value, str) and (
        (kind == "int_type" and value.isdigit()) or (kind == "bool_type" and value in ("true", "false"))
    ):
        return ", without quotes"
    return ""


def _choice(value: object, found: str, expected: str) -> str:
    allowed = [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(",")]
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.6) or [
        word for word in allowed if word.lower() == str(value).lower()
    ]
    hint = f"; did you mean {near[0]}?" if near else ""
    if len(allowed) == 1:
        return f"is {found}; must be {allowed[0]}"
    return f"is {found}; must be one of {', '.join(allowed)}{hint}"


def _refused(location: tuple[int | str, ...], root: Model) -> str:
    """Why a field that exists in Kubernetes has no place here; empty when there is nothing to say."""
    here = _model_at(root, location[:-1])
    return str(getattr(here, "refused", {}).get(location[-1], ""))


def _suggest(location: tuple[int | str, ...], root: Model) -> str:
    """The nearest known name, or the place where such a field belongs, or the names that are known here."""
    name, here = str(location[-1]), _model_at(root, location[:-1])
    known = _aliases(here) if here else []
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        return f"did you mean {near[0]}?"
    places = [path for path, alias in _everywhere(root, "") if alias == name and not path.startswith("status")]
    if places:
        return f"did you mean {' or '.join(places[:3])}?"
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(known)}"


def _describe(location: tuple[int | str, ...], root: Model) -> str:
    """What a missing field must hold."""
    here, name = _model_at(root, location[:-1]), str(location[-1])
    for field in here.model_fields.values() if here else ():
        if field.alias == name:
            inner = _model_in(field.annotation)
            if inner is not None:
                required = [str(part.alias) for part in inner.model_fields.values() if part.is_required()]
                return f"give an object{' with ' + ', '.join(required) if required else ''}"
            kinds = {int: "a whole number", bool: "true or false", str: "text"}
            if get_origin(field.annotation) is not None:
                values = [value for value in get_args(field.annotation) if isinstance(value, str)]
                return f"give one of {', '.join(values)}" if len(values) > 1 else f"give {''.join(values) or 'it'}"
            if any("decimal" in repr(part).lower() for part in field.metadata):
                return 'give a decimal number in quotes, such as "5e-4"'
            return f"give {kinds.get(field.annotation, 'it') if isinstance(field.annotation, type) else 'it'}"
    return "give it"


def _model_at(root: Model, location: tuple[int | str, ...]) -> Model | None:
    current: Model | None = root
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        found = [field.annotation for field in current.model_fields.values() if field.alias == part]
        current = _model_in(found[0]) if found else None
    return current


def with_defaults(model: Model, document: dict[str, Any]) -> dict[str, Any]:
    """A copy of a manifest with the defaults of absent fields, however wrong the other fields are."""
    result = dict(document)
    for field in model.model_fields.values():
        name, inner = str(field.alias), _model_in(field.annotation)
        derived = isinstance(field.json_schema_extra, dict) and "derived" in field.json_schema_extra
        if name not in result and field.default is not None and not field.is_required() and not derived:
            result[name] = {} if isinstance(field.default, BaseModel) else field.default
        if inner is not None and isinstance(result.get(name), dict):
            result[name] = with_defaults(inner, result[name])
    return result


def _model_in(annotation: Any) -> Model | None:
    """The model class inside Optional, Annotated and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple):
        for arm in get_args(annotation):
            if (found := _model_in(arm)) is not None:
                return found
    return None


def _aliases(model: Model) -> list[str]:
    return [str(field.alias) for field in model.model_fields.values()]


def _everywhere(model: Model, path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, name) of every field of a resource."""
    for field in model.model_fields.values():
        here = f"{path}.{field.alias}".lstrip(".")
        yield here, str(field.alias)
        if (inner := _model_in(field.annotation)) is not None:
            yield from _everywhere(inner, here)


def shown(value: object) -> str:
    """A value as it stood in the manifest, at most 60 characters."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = "empty" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
