"""From a manifest to a typed resource. Every problem of a file is told at once, one line each; nothing else is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from twinpod.api import names, problems
from twinpod.api.resource_rules import JOB_RULES, POOL_RULES, SANDBOX_RULES
from twinpod.api.rules import broken
from twinpod.api.types import KINDS, Resource, RLJob
from twinpod.api.yaml_text import documents_of, read_document
from twinpod.errors import InputError

T = TypeVar("T", bound=Resource)
RULES = {"RLJob": JOB_RULES, "RolloutPool": POOL_RULES, "SandboxPool": SANDBOX_RULES}
LARGEST = 1 << 20  # bytes; etcd behind the API server takes no more


class ManifestError(InputError):
    """A manifest with problems; `problems` has a line for each, `source` the file's name when there is one."""

    def __init__(self, problems: list[str], source: str = "") -> None:
        self.problems, self.source = tuple(problems), source
        super().__init__("\n".join(problems), where=source if len(problems) == 1 else "")
        if len(problems) > 1 and source:
            self.args = (f"{source}: {len(problems)} problems\n" + "\n".join(problems),)


def load_manifest(source: Path | str) -> RLJob:
    """The RLJob in a file (a path), or in text (a string of several lines or a JSON object)."""
    return load_as(RLJob, source)


def load_as(kind: type[T], source: Path | str) -> T:
    """The resource of one kind in a file or text; ManifestError names every problem."""
    resource = load_resource(source, wanted=kind.__name__)
    if not isinstance(resource, kind):
        raise ManifestError([_wrong_kind(resource.kind, kind.__name__)])
    return resource


def load_resource(source: Path | str, wanted: str = "") -> Resource:
    """The resource of any kind (or of `wanted`) in a file or text; ManifestError names every problem."""
    name, text = _text_of(source)
    try:
        document = read_document(text)
    except InputError as error:
        raise ManifestError([error.what], name) from error
    if found := _not_a_resource(document, wanted):
        raise ManifestError(found, name)
    try:
        return check(document)
    except ManifestError as error:
        raise ManifestError(list(error.problems), name) from error


def load_resources(path: Path) -> tuple[Resource, ...]:
    """The resource of each YAML document of a file; ManifestError names every problem of all of them."""
    name, text = _text_of(path)
    parts = documents_of(text)
    if not parts:
        return (load_resource(path),)  # which says that it is empty
    found: list[Resource] = []
    problems: list[str] = []
    for line, part in parts:
        try:
            found.append(load_resource(part))
        except ManifestError as error:
            place = f"document at line {line}: " if len(parts) > 1 else ""
            problems += [f"{place}{problem}" for problem in error.problems]
    if problems:
        raise ManifestError(problems, name)
    return tuple(found)


def check(document: dict[str, Any]) -> Resource:
    """The typed resource of plain data that has a known kind; ManifestError with every problem otherwise."""
    model = KINDS[document["kind"]]
    try:
        return model.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        lines = problems.lines_of(error, model)
        silent = problems.parents_of(error)
        rules = [rule for rule in RULES[document["kind"]] if rule.path not in silent]
        filled = problems.with_defaults(model, document)
        extra = [line for line in broken(rules, filled, partial=True) if line not in lines]
        raise ManifestError(lines + extra) from error


def _text_of(source: Path | str) -> tuple[str, str]:
    """(name for messages, text) of a path or of text."""
    if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        return "", source
    path = Path(source)
    if not path.exists():
        raise InputError("does not exist", where=str(path), mend="check the path; samples are in manifests/samples/")
    if path.is_dir():
        raise InputError("is a folder", where=str(path), mend="name one manifest file in it")
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"is larger than {LARGEST} bytes, which no manifest may be", where=str(path))
        return str(path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=str(path), mend="a manifest is YAML or JSON text") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _not_a_resource(document: object, wanted: str) -> list[str]:
    """Problems that make it pointless to look at the rest."""
    if document is None:
        return ["is empty; write a resource that begins with apiVersion and kind"]
    if isinstance(document, list):
        return ["is a list; a manifest is one object that begins with apiVersion and kind"]
    if not isinstance(document, dict):
        return [f"is only {problems.shown(document)}; a manifest is an object that begins with apiVersion and kind"]
    lines = []
    kind, version = document.get("kind"), document.get("apiVersion")
    if version != names.API_VERSION:
        said = "is missing; write" if version is None else f"is {problems.shown(version)}; must be"
        lines.append(f"apiVersion: {said} {names.API_VERSION}")
    if kind is None:
        lines.append(f"kind: is missing; write {wanted or 'one of ' + ', '.join(KINDS)}")
    elif kind not in KINDS or (wanted and kind != wanted):
        lines.append(_wrong_kind(kind, wanted))
    return lines


def _wrong_kind(kind: object, wanted: str) -> str:
    if isinstance(kind, str) and kind in KINDS:
        return f"kind: is {kind}; an {wanted} is needed here"
    near = [known for known in KINDS if known.lower() == str(kind).lower()]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"kind: is {problems.shown(kind)}; must be {wanted or 'one of ' + ', '.join(KINDS)}{hint}"
