"""Which fields of an object are ours, and whether they still have our values. Pure.

Server-side apply keeps in `metadata.managedFields` which fields each writer set. Whoever changes the value of a field
of ours takes it away from us, so a digest over *the fields that are ours, with their values* changes at every hand
edit, and does not change when somebody adds fields of their own. Three digests are compared:

* `revision` of a manifest: annotated on what we apply; tells when we ourselves want something else,
* `owned_digest` of the object as it stands,
* `wanted_digest` of the manifest: what `owned_digest` is when nothing on the way changed what we sent.

An admission policy may change what we send: then `owned_digest` right after our own apply is what to expect.

A volume claim is a case of its own. Its spec cannot be changed, but for its size, which is its administrator's: once it
is there, only its labels and the job's owner reference are ours, whoever wrote them, and all digests are over those.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import orjson

from twinpod.api import names
from twinpod_operator.nouns import Manifest

_SERVER_SIDE = ("name", "namespace")  # identity; never in managedFields
_CLAIM = "PersistentVolumeClaim"
_CLAIM_LABELS = (
    names.LABEL_NAME,
    names.LABEL_INSTANCE,
    names.LABEL_MANAGED_BY,
    names.LABEL_JOB,
    names.LABEL_JOB_UID,
)


def changeable(manifest: Manifest) -> Manifest:
    """What of a manifest may be applied to an object that is there."""
    if manifest["kind"] != _CLAIM:
        return manifest
    return {key: value for key, value in manifest.items() if key != "spec"}


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with its revision in an annotation; ready to be applied."""
    result = copy.copy(manifest)
    metadata = dict(manifest["metadata"])
    metadata["annotations"] = {**metadata.get("annotations", {}), names.ANNOTATION_REVISION: revision(manifest)}
    result["metadata"] = metadata
    return result


def revision(manifest: Manifest) -> str:
    """Digest of what we want."""
    return _digest(changeable(manifest))


def wanted_digest(manifest: Manifest) -> str:
    """`owned_digest` of the object that a stamped manifest makes, when nothing on the way changes it."""
    if manifest["kind"] == _CLAIM:
        return _claim_digest(manifest)
    own = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata")}
    own["metadata"] = {key: value for key, value in manifest["metadata"].items() if key not in _SERVER_SIDE}
    return _digest(_sorted(own))


def owned_digest(raw: Manifest) -> str:
    """Digest of the fields that our applies own, with the values that they have now."""
    if raw.get("kind") == _CLAIM:
        return _claim_digest(raw)
    own: Any = {}
    for entry in raw.get("metadata", {}).get("managedFields") or ():
        if entry.get("manager") == names.FIELD_MANAGER and entry.get("operation") == "Apply":
            own = _project(raw, entry.get("fieldsV1") or {})
    return _digest(_sorted(own))


def _claim_digest(claim: Manifest) -> str:
    metadata = claim["metadata"]
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key in _CLAIM_LABELS}
    owners = [one for one in metadata.get("ownerReferences") or () if one["uid"] == labels.get(names.LABEL_JOB_UID)]
    return _digest({"labels": labels, "owners": owners})


def data_digest(data: Mapping[str, str]) -> str:
    """Digest of a Secret's data, as base64."""
    return _digest(dict(data))


def _project(value: Any, fields: Mapping[str, Any]) -> Any:
    """The part of `value` that `fields` (FieldsV1) names."""
    inner = {key: below for key, below in fields.items() if key != "."}
    if not inner:
        return {} if "." in fields and isinstance(value, dict) else value
    if isinstance(value, list):
        return [item for key, below in inner.items() for item in _items(value, key, below)]
    if not isinstance(value, dict):
        return value
    found = ((key.removeprefix("f:"), below) for key, below in inner.items())
    return {name: _project(value[name], below) for name, below in found if name in value}


def _items(values: list[Any], key: str, below: Mapping[str, Any]) -> list[Any]:
    """Items of a list that one key of FieldsV1 means: `k:{...}` by their keys, `v:...` by value, `i:n` by place."""
    form, _, rest = key.partition(":")
    if form == "i":
        return [_project(values[int(rest)], below)] if int(rest) < len(values) else []
    sought = json.loads(rest)
    if form == "v":
        return [value for value in values if value == sought]
    return [
        _project(value, below)
        for value in values
        if isinstance(value, dict) and all(value.get(name) == wanted for name, wanted in sought.items())
    ]


def _sorted(value: Any) -> Any:
    """Lists in an order of their own: the server keeps ours, but managedFields name items in another."""
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(item) for item in value), key=_text)
    return value


def _text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()[:16]
