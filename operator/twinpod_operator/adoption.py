"""Making a child that is not known to be there, without taking over an object of somebody else.

An apply without force adds our fields to any object of that name as long as no value differs: an empty ServiceAccount
of another team would get the job as its controller, would be what the job's pods run as, and would go with the job. So:

* a job that is looked at for the first time has no children: apply, and give back what turns out to have been there,
* otherwise, which is rare, look first: ours (a label was taken off) is put right by force, others' is left alone,
* where it does not matter who owns which field (`_PLAIN`: compared by their content), create, which is cheaper for the
  API server than an apply and takes nothing over.

A volume claim that is there is never applied: leaving a field of its spec out, or writing another value, is refused for
good. Its labels and the job's owner reference are patched, and other owners keep theirs.
"""

from __future__ import annotations

import contextlib

from twinpod.api import names
from twinpod_operator.kinds import CLAIM, DEVICE_TEMPLATE, SECRET, kind_of
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import AlreadyExists, ApiConflict, ApiError, NotFound, Refused
from twinpod_operator.nouns import Finding, Manifest

_PLAIN = (SECRET.kind, CLAIM.kind)

__all__ = ["absent", "belongs", "make", "put_right", "taken"]


async def make(api: Api, manifest: Manifest, owner: str, *, first: bool) -> Manifest:
    """The child as the server keeps it. `Refused` with NameTaken when the name is somebody else's."""
    if first and manifest["kind"] in _PLAIN:
        with contextlib.suppress(AlreadyExists):
            return await api.create(manifest)
        first = False
    if not first and (found := await _look(api, manifest)) is not None:
        if not belongs(found, owner):
            raise taken(manifest, found)
        if "deletionTimestamp" in found["metadata"]:
            raise ApiConflict("is being deleted", where=_title(manifest))
        return await put_right(api, manifest, found["metadata"]["uid"])
    answer, created = await api.apply_new(manifest)
    if not created:
        await _give_back(api, manifest, answer["metadata"]["uid"])
        raise taken(manifest)
    return answer


async def put_right(api: Api, manifest: Manifest, uid: str) -> Manifest:
    """A child that is there, as wanted. `ApiConflict` when it is another by now, or gone."""
    if manifest["kind"] != CLAIM.kind:
        return await api.apply(manifest, uid)
    metadata = manifest["metadata"]
    body: Manifest = {
        "uid": uid,
        "labels": metadata["labels"],
        "annotations": metadata.get("annotations", {}),
        "ownerReferences": metadata.get("ownerReferences")
        or [{"$patch": "delete", "uid": metadata["labels"][names.LABEL_JOB_UID]}],
    }
    try:
        return await api.merge(CLAIM, metadata["namespace"], metadata["name"], {"metadata": body}, strategic=True)
    except NotFound as error:
        raise ApiConflict("is gone", where=_title(manifest)) from error


def belongs(found: Manifest, owner: str) -> bool:
    """Whether an object is a child of the resource with that uid. Pure."""
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    if owner in (labels.get(names.LABEL_POOL_UID), labels.get(names.LABEL_JOB_UID)):
        return True
    return any(reference.get("uid") == owner for reference in metadata.get("ownerReferences") or ())


async def _look(api: Api, manifest: Manifest) -> Manifest | None:
    metadata = manifest["metadata"]
    try:
        return await api.get(kind_of(manifest["kind"]), metadata["namespace"], metadata["name"])
    except NotFound:
        return None


async def _give_back(api: Api, manifest: Manifest, uid: str) -> None:
    """An apply of nothing takes away the fields that are ours alone."""
    metadata = {key: manifest["metadata"][key] for key in ("name", "namespace")}
    nothing = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata}
    try:
        await api.apply(nothing, uid)
    except (ApiConflict, NotFound):
        return  # it is gone, or another one by now


def taken(manifest: Manifest, found: Manifest | None = None) -> Refused:
    """The refusal that stands on the owner. Pure."""
    owner = "pool" if names.LABEL_POOL in (manifest["metadata"].get("labels") or {}) else "job"
    labels = (found or {"metadata": {}})["metadata"].get("labels") or {}
    if labels.get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER:
        message = f"{_title(manifest)} is left of another {owner}; waits until it is gone"
    else:
        message = f"{_title(manifest)} exists and is not of this {owner}; delete it, or give the {owner} another name"
    finding = Finding(reason=names.Reason.NAME_TAKEN.value, message=message)
    return Refused(message, where=_title(manifest), code=409, reason="AlreadyExists", finding=finding)


def absent(manifest: Manifest, error: ApiError) -> Finding:
    """Why the place for an object is not there: the API server does not serve its kind, or the namespace is gone."""
    if error.what.startswith("namespaces "):
        return Finding(reason=names.Reason.NAMESPACE_TERMINATING.value, message=error.what)
    message = f"the API server serves no {manifest['apiVersion']} {manifest['kind']}: {error.what}"
    if manifest["kind"] == DEVICE_TEMPLATE.kind:
        message += "; devices by claim need Kubernetes 1.34 or later, otherwise set hybrid.sharing: WholeNode"
    return Finding(reason=names.Reason.API_MISSING.value, message=message)


def _title(manifest: Manifest) -> str:
    return f'{manifest["kind"]} "{manifest["metadata"]["name"]}"'
