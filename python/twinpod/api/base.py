"""Scalars and the base class of every resource model.

Each scalar states its limits once; they feed both Python validation and the schema of the CRD. There are no floats in a
spec: a decimal is a string ("5e-4"), so that every client reads and writes the same number; code says `float(...)`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, Strict, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from twinpod.api.quantity import PATTERN as QUANTITY_PATTERN
from twinpod.api.quantity import QuantityError, parse

DECIMAL_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?$"
INT32 = 2_147_483_647


class Part(BaseModel):
    """A closed, frozen piece of a resource: snake_case here, camelCase in manifests, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )

    def as_manifest(self) -> dict[str, Any]:
        """Plain camelCase data as it would stand in a manifest, defaults filled in, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _decimal(value: object) -> object:
    """Refuse numbers (floats differ between clients) and text that is not a decimal of 0 or more."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise PydanticCustomError("decimal", f'is the bare number {value}; write it in quotes: "{value}"')
    if isinstance(value, str) and (len(value) > 32 or not re.match(DECIMAL_PATTERN, value)):
        raise PydanticCustomError("decimal", f'"{value}" is not a decimal of 0 or more; write one such as "5e-4"')
    return value


def _quantity(value: object) -> object:
    """Whole numbers become strings; text that is no Kubernetes quantity is refused."""
    if isinstance(value, float):
        raise PydanticCustomError("quantity", f'is the bare number {value}; write it in quotes: "{value}"')
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        try:
            parse(value)
        except QuantityError as error:
            raise PydanticCustomError("quantity", "{why}", {"why": str(error)}) from error
    return value


Decimal = Annotated[
    str,
    Strict(),
    BeforeValidator(_decimal),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 32}),
]
"""A number of 0 or more, as a string."""

Quantity = Annotated[
    str,
    Strict(),
    BeforeValidator(_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32}),
]
"""A Kubernetes quantity such as 512Mi, 2 or 500m; `quantity.parse` gives the number."""

Flag = Annotated[bool, Strict()]
Natural = Annotated[int, Field(strict=True, ge=0, le=INT32)]
Positive = Annotated[int, Field(strict=True, ge=1, le=INT32)]
Ranks = Annotated[int, Field(strict=True, ge=1, le=1024)]
Seed = Annotated[int, Field(strict=True, ge=0, le=INT32)]

Text = Annotated[str, Field(strict=True, max_length=1024)]
FilledText = Annotated[str, Field(strict=True, min_length=1, max_length=1024)]
FolderPath = Annotated[str, Field(strict=True, min_length=1, max_length=1024)]
ImageName = Annotated[str, Field(strict=True, min_length=1, max_length=512)]
ObjectName = Annotated[
    str, Field(strict=True, min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
EntryPointName = Annotated[
    str, Field(strict=True, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$")
]
Settings = Annotated[
    dict[str, JsonValue], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""Free-form settings handed to a data set or reward function as keyword arguments."""

ManagerName = Annotated[
    str, Field(strict=True, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*)$")
]
"""A controller's name, a path below its domain."""


def derived(text: str, default: Any = 0) -> Any:
    """A field that a validator fills from others when it is left out; the CRD gives it no default."""
    return Field(default=default, json_schema_extra={"derived": text})
