"""What the fields of a resource demand of each other: each rule once, as data.

A rule stands at one node of the resource (`path`) and is told twice: as a CEL expression for the CRD, so that
`kubectl apply` refuses a bad manifest, and as a Python predicate for `twinpod validate` and the SDK. A test runs both
on the same manifests. In a message, `{self.x.y}` is the value of a field below the node. Optional fields without a
default must be guarded by `has(...)` in both. Rules that compare with the old object (`transition`) have no Python
half.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_PLACE = re.compile(r"\{self\.([A-Za-z.]+)\}")


class Node:
    """A manifest's mapping, read as CEL reads `self`: `node.rollout.maxTokens`; `has` and `at` are beside it."""

    __slots__ = ("_data",)

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        """The field's value; a mapping comes wrapped. KeyError when it is absent."""
        value = self._data[name]
        return Node(value) if isinstance(value, dict) else value

    def plain(self, name: str) -> Any:
        """The field's value as it is: a mapping whose keys are data."""
        return self._data[name]


def has(node: Node, path: str) -> bool:
    """True when every part of a dotted path below the node is there."""
    try:
        return at(node, path) is not None
    except KeyError:
        return False


def at(node: Node, path: str) -> Any:
    """The value at a dotted path below the node; KeyError when it is absent."""
    value: Any = node
    for part in path.split("."):
        value = getattr(value, part)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One demand. `field` is the field below `path` that a person should look at; empty: the node itself."""

    path: str
    field: str
    cel: str  # empty when the schema says it by other means
    holds: Callable[[Any], bool]  # of a Node; Any, so that predicates read like CEL
    message: str
    transition: bool = False  # compares with `oldSelf`; only a server can check it

    @property
    def where(self) -> str:
        """Path of the field to look at."""
        return f"{self.path}.{self.field}" if self.field else self.path

    def explain(self, node: Node) -> str:
        """The message with the values of this manifest."""
        return _PLACE.sub(lambda match: str(at(node, match.group(1))), self.message)

    @property
    def static_message(self) -> str:
        """The message with field names in place of values: what a server says when it cannot fill them in."""
        return _PLACE.sub(lambda match: match.group(1), self.message)

    @property
    def message_cel(self) -> str:
        """CEL expression that yields the message with values; empty when it has none.

        By `format`: the server bounds its cost, while a sum with `string(number)` is refused as unbounded.
        """
        fields = [f"self.{match.group(1)}" for match in _PLACE.finditer(self.message)]
        text = _quoted(_PLACE.sub("%s", self.message.replace("%", "%%")))
        return f"{text}.format([{', '.join(fields)}])" if fields else ""


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def broken(rules: Sequence[Rule], manifest: dict[str, Any], *, partial: bool = False) -> list[str]:
    """One line a field that breaks a rule: `spec.rollout.segmentTokens: 8 is above maxTokens (6)`.

    `manifest` has its defaults filled in; with `partial` it is as the person wrote it, and rules that cannot be
    answered for lack of a field, or because one has the wrong type, are left out.
    """
    lines: dict[str, str] = {}
    for rule in rules:
        node = _node_at(manifest, rule.path)
        if node is None or rule.transition or rule.where in lines:
            continue
        try:
            if not rule.holds(node):
                lines[rule.where] = f"{rule.where}: {rule.explain(node)}"
        except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
            if not partial:
                raise
    return list(lines.values())


def _node_at(manifest: dict[str, Any], path: str) -> Node | None:
    value: Any = manifest
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return Node(value) if isinstance(value, dict) else None
