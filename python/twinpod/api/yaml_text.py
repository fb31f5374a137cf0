"""YAML as Kubernetes reads it: one document, no key twice, `5e-4` is a number, dates and 1:30 are text.

PyYAML by itself takes the last of two equal keys, and reads `5e-4` as text and `1:30` as 90; a manifest would then pass
here and be refused by `kubectl`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from twinpod.errors import InputError

_RULE = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o[0-7]+|0[0-7]+)$")
_DROPPED = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float", "tag:yaml.org,2002:int"}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the differences named above."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without equal keys; keys are text."""
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise InputError(f"line {line}: the field name {key!r} is not text; write it in quotes")
            if key in seen:
                raise InputError(f"line {line}: {key} stands twice in one object; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, shape) for tag, shape in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Order matters: the first that fits wins, and a whole number is a float's shape too.
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` would read as a number; no anchors, people read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always: equal parts are written out again."""
        return True


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _shape in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _shape, [_first])


def write_document(data: Any) -> str:
    """YAML that `read_document` and `kubectl` read back as the same data; PyYAML alone would leave "5e-4" unquoted."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def documents_of(text: str) -> list[tuple[int, str]]:
    """(first line, text) of each document that is not empty; blank lines before it keep the numbers of its lines."""
    starts = [0, *(found.start() for found in _RULE.finditer(text))]
    parts = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        part, above = text[start:end], text.count("\n", 0, start)
        said = [line for line in part.splitlines() if line.strip() and not line.lstrip().startswith(("#", "---"))]
        if said:
            parts.append((above + 1, "\n" * above + (part if part.endswith("\n") else part + "\n")))
    return parts


def read_document(text: str) -> Any:
    """The one document of `text` as plain data. InputError, with the line, for bad syntax, for none and for several."""
    try:
        nodes = list(yaml.compose_all(text, Loader=_Loader))
        if len(nodes) > 1:
            raise InputError(
                f"line {nodes[1].start_mark.line + 1}: a second document begins; one file holds one resource,"
                " put the others into files of their own"
            )
        if not nodes:
            raise InputError("is empty; write a resource that begins with apiVersion and kind")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.reader.ReaderError as error:
        raise InputError(f"position {error.position}: a character that YAML does not allow; remove it") from error
    except yaml.MarkedYAMLError as error:
        raise InputError(_syntax(error)) from error
    except RecursionError as error:
        raise InputError("is nested too deeply to be a manifest") from error


def _syntax(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    said = error.problem or "cannot be read"
    hint = ""
    if "\\t" in said:
        hint = "; indent with spaces, not tabs"
    elif "mapping values are not allowed" in said:
        hint = "; check the indentation and put text that contains ': ' into quotes"
    return f"{where}not YAML: {said}{hint}"
