"""A person's patch merged into a rendered pod: the strategic merge of Kubernetes, by a table of merge keys. Pure.

`twinpod.api.patch.PodPatch` has only what may be patched, so nothing here can replace a field of ours: lists grow, or
an entry with the same key is merged. Tolerations and sidecars differ from `kubectl patch` in one way: ours stay.
"""

from __future__ import annotations

import copy
from typing import Any

from twinpod.api.patch import PodPatch

Manifest = dict[str, Any]
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
}
APPENDED = ("tolerations", "envFrom")  # lists without a merge key, which a strategic merge would replace


def patched(pod: Manifest, patch: PodPatch) -> Manifest:
    """A new pod with the patch merged in; the given one stays as it is."""
    whole = patch.as_manifest()
    spec = whole["spec"]
    first = {entry["name"] for entry in pod["spec"].get("initContainers", ())}  # our native sidecar is one of these
    named = spec.pop("containers", ())
    spec["containers"] = [entry for entry in named if entry["name"] not in first]
    spec["initContainers"] = [_secured(entry, pod) for entry in spec.get("initContainers", ())]
    added = {entry["name"] for entry in spec["initContainers"]}
    spec["initContainers"] += [entry for entry in named if entry["name"] in first]
    merged: Manifest = _merged(pod, {"metadata": whole["metadata"], "spec": spec}, "")
    # The person's sidecars come first: a proxy must be up before a half starts, and goes after it.
    if added:
        merged["spec"]["initContainers"].sort(key=lambda entry: entry["name"] not in added)  # stable
    return merged


def _secured(entry: Manifest, pod: Manifest) -> Manifest:
    """A container of the person's, under the security context of ours."""
    return {**entry, "securityContext": copy.deepcopy(pod["spec"]["containers"][0]["securityContext"])}


def _merged(ours: Any, theirs: Any, field: str) -> Any:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        result = dict(ours)
        for key, value in theirs.items():
            if value in ({}, []):
                continue
            result[key] = _merged(ours.get(key), value, key)
        return result
    if isinstance(theirs, list):
        return _merged_list(ours if isinstance(ours, list) else [], theirs, field)
    return copy.deepcopy(theirs)


def _merged_list(ours: list[Any], theirs: list[Any], field: str) -> list[Any]:
    if field in APPENDED:
        return [*ours, *(entry for entry in theirs if entry not in ours)]
    key = MERGE_KEYS.get(field)
    if key is None:
        return list(theirs)
    result = {entry[key]: entry for entry in ours}
    for entry in theirs:
        name = entry.get(key)
        result[name] = _merged(result.get(name), entry, "") if name in result else entry
    return list(result.values())
