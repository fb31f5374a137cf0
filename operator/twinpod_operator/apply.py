"""Doing what a plan says, in its order: neighbours of one sort at once, the next sort when they are done.

A refusal that somebody must mend (quota, Pod Security, a policy) comes back as a Finding and stops nothing else, with
one exception: no pod is made while something that it needs could not be (`let_through`). It would run with the
ConfigMap or ServiceAccount of somebody else, or without its NetworkPolicy. A conflict means that what was observed is
not true any more: it is observed again. Everything is safe to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from twinpod.api import names
from twinpod.errors import EnvironmentFault
from twinpod_operator.actions import ActionMark, batches, let_through, mark
from twinpod_operator.adoption import absent, belongs, make, put_right, taken
from twinpod_operator.certificates import Issuer
from twinpod_operator.etcd_admin import EtcdAdmin
from twinpod_operator.kinds import CLAIM, EVENT, OURS, POD, kind_of
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import (
    AlreadyExists,
    ApiConflict,
    ApiError,
    ApiUnreachable,
    LeaseLost,
    NotFound,
    Refused,
)
from twinpod_operator.labelling import wrong_labels
from twinpod_operator.nouns import (
    Action,
    Apply,
    Create,
    Delete,
    Emit,
    Finding,
    IssueCertificates,
    Label,
    Manifest,
    Mark,
    Observed,
    Prove,
    SetFinalizers,
    Sweep,
    Ungate,
)
from twinpod_operator.world import World

log = logging.getLogger(__name__)
_NO_DRY_RUN = "does not support dry run"


@dataclass(slots=True)
class Done:
    """What came of a plan's actions."""

    refusals: list[Finding] = field(default_factory=list)
    refused: set[ActionMark] = field(default_factory=set)  # what met them
    undone: set[ActionMark] = field(default_factory=set)  # these, and what met a conflict
    stale: ApiError | None = None  # something was not as observed

    def refuse(self, action: Action, finding: Finding) -> None:
        """The action met this."""
        self.refusals.append(finding)
        self.refused.add(mark(action))
        self.undone.add(mark(action))


class Actor:
    """Life: of a leader."""

    def __init__(self, api: Api, world: World, issuer: Issuer, etcd: EtcdAdmin) -> None:
        self._api, self._world, self._issuer, self._etcd = api, world, issuer, etcd
        self._first: set[str] = set()  # uids of jobs that are acted upon for the first time
        self._acts: dict[type, Callable[[Observed, Any], Awaitable[None]]] = {
            Create: self._create,
            Prove: self._prove,
            Apply: self._apply,
            Delete: self._delete,
            Ungate: self._ungate,
            Mark: self._mark,
            Label: self._label,
            Sweep: self._sweep,
            SetFinalizers: self._finalize,
            Emit: self._emit,
            IssueCertificates: self._issue,
        }

    async def act(self, observed: Observed, actions: tuple[Action, ...]) -> Done:
        """Everything, as far as it goes. Raises when the API server does not answer or the lease is lost."""
        try:
            return await self._act(observed, actions)
        finally:
            self._first.discard(observed.uid)

    async def _act(self, observed: Observed, actions: tuple[Action, ...]) -> Done:
        done = Done()
        for batch in batches(actions):
            batch = let_through(batch, done.undone)
            outcomes = await asyncio.gather(
                *(self._one(observed, action, done) for action in batch), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
        return done

    async def _one(self, observed: Observed, action: Action, done: Done) -> None:
        try:
            await self._acts[type(action)](observed, action)
        except Refused as error:
            done.refuse(action, error.finding)
        except ApiUnreachable:
            raise
        except NotFound as error:
            if not isinstance(action, (Apply, Create, Prove)):
                raise
            done.refuse(action, absent(action.manifest, error))
        except (ApiConflict, AlreadyExists) as error:
            if isinstance(action, (Apply, IssueCertificates)) and not action.uid:
                done.refuse(action, Finding(reason=names.Reason.NAME_TAKEN, message=error.line()))
            done.undone.add(mark(action))
            done.stale = error
        except (ApiError, LeaseLost):
            raise
        except EnvironmentFault as error:  # etcd: the job's user could not be made
            done.refuse(action, Finding(reason=names.Reason.STORE_UNREACHABLE, message=error.line()))

    async def _create(self, observed: Observed, action: Create) -> None:
        try:
            self._world.pods.own(await self._api.create(action.manifest))
        except AlreadyExists as error:  # no error when it is ours: an answer that was lost, a label that was taken off
            if not await self.find(observed, action.manifest["metadata"]["name"]):
                raise taken(action.manifest) from error

    async def _prove(self, observed: Observed, action: Prove) -> None:
        del observed
        try:
            await self._api.create(action.manifest, dry_run=True)
        except AlreadyExists:
            return  # told only after everything else was found right
        except Refused as error:
            if _NO_DRY_RUN not in error.what:
                raise  # else a webhook of old times, which says nothing about the pod

    async def find(self, observed: Observed, name: str) -> bool:
        """Whether the resource has a pod of that name after all; if so, it is seen from now on."""
        namespace = observed.key.namespace
        try:
            found = await self._api.get(POD, namespace, name)
        except NotFound:
            return False
        if not belongs(found, observed.uid):
            return False
        if wrong := wrong_labels(found):
            action = Label(name=name, uid=found["metadata"]["uid"], labels=wrong)
            await self._label(observed, action)
        else:
            self._world.pods.own(found)
        return True

    async def find_claim(self, observed: Observed, manifest: Manifest) -> bool:
        """Whether the volume claim is there after all, without the labels by which it is seen; it is put right then."""
        metadata = manifest["metadata"]
        try:
            found = await self._api.get(CLAIM, metadata["namespace"], metadata["name"])
        except NotFound:
            return False
        if not belongs(found, observed.uid):
            return False
        self._world.children[CLAIM.kind].own(await put_right(self._api, manifest, found["metadata"]["uid"]))
        return True

    async def _apply(self, observed: Observed, action: Apply) -> None:
        await self._write(observed, action.uid, action.manifest)

    async def _write(self, observed: Observed, uid: str, manifest: Manifest) -> Manifest:
        """Applies a child; one that is not known to be there is made without taking over somebody else's."""
        cached, metadata = self._world.children[manifest["kind"]], manifest["metadata"]
        if uid:
            answer = await put_right(self._api, manifest, uid)
        else:
            first = observed.uid in self._first and not cached.has(metadata["namespace"], metadata["name"])
            answer = await make(self._api, manifest, observed.uid, first=first)
        cached.own(answer)
        return answer

    async def _delete(self, observed: Observed, action: Delete) -> None:
        kind, namespace = kind_of(action.kind), observed.key.namespace
        if kind in OURS:  # its time to live is over; the watch tells when it is gone
            with contextlib.suppress(NotFound):
                await self._api.delete(kind, namespace, action.name, action.uid)
            return
        cached = self._world.pods if kind is POD else self._world.children[action.kind]
        try:
            answer = await self._api.delete(kind, namespace, action.name, action.uid, grace_s=action.grace_s)
        except NotFound:
            cached.gone(namespace, action.name, action.uid)
            return
        metadata = answer.get("metadata") or {}
        ending = metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds") != 0
        if "deletionTimestamp" in metadata and answer.get("kind") == action.kind and ending:
            cached.own(answer)
        else:
            cached.gone(namespace, action.name, action.uid)

    async def _ungate(self, observed: Observed, action: Ungate) -> None:
        body: Manifest = {
            "metadata": {"uid": action.uid},
            "spec": {"schedulingGates": [{"$patch": "delete", "name": names.GANG_GATE}]},
        }
        answer = await self._api.merge(POD, observed.key.namespace, action.name, body, strategic=True)
        self._world.pods.own(answer)

    async def _mark(self, observed: Observed, action: Mark) -> None:
        body = {"metadata": {"uid": action.uid, "annotations": {action.annotation: action.value}}}
        with contextlib.suppress(NotFound):
            self._world.pods.own(await self._api.merge(POD, observed.key.namespace, action.name, body))

    async def _label(self, observed: Observed, action: Label) -> None:
        body = {"metadata": {"uid": action.uid, "labels": dict(action.labels)}}
        with contextlib.suppress(NotFound):
            self._world.pods.own(await self._api.merge(POD, observed.key.namespace, action.name, body))

    async def _sweep(self, observed: Observed, action: Sweep) -> None:
        del observed
        try:
            await self._etcd.sweep(action)
        except EnvironmentFault as error:
            log.warning("%s/%s: its keys in etcd are swept later: %s", action.namespace, action.name, error)
            raise  # a refusal: tried again when its time has come

    async def _finalize(self, observed: Observed, action: SetFinalizers) -> None:
        metadata = observed.raw["metadata"]
        body = {
            "metadata": {
                "finalizers": list(action.finalizers),
                "resourceVersion": metadata["resourceVersion"],
                "uid": observed.uid,
            }
        }
        key = observed.key
        try:
            answer = await self._api.merge(kind_of(key.kind), key.namespace, key.name, body)
        except NotFound:
            self._world.remove(observed.raw)
            return
        if "deletionTimestamp" in answer["metadata"] and not answer["metadata"].get("finalizers"):
            self._world.remove(answer)  # nothing held it any more
            return
        self._world.put(answer, own=True)
        if names.FINALIZER in action.finalizers:  # set before anything is made
            self._first.add(observed.uid)

    async def _emit(self, observed: Observed, action: Emit) -> None:
        try:
            await self._api.create(event(observed, action))
        except ApiError as error:
            ending = isinstance(error, Refused) and error.finding.reason == names.Reason.NAMESPACE_TERMINATING
            log.log(logging.DEBUG if ending else logging.WARNING, "an event was not written: %s", error)

    async def _issue(self, observed: Observed, action: IssueCertificates) -> None:
        if action.etcd:
            await self._etcd.admit(observed.key.namespace, observed.uid)
        await self._issuer.job(action, functools.partial(self._write, observed, action.uid))


def event(observed: Observed, action: Emit) -> Manifest:
    """An event on our resource. Pure but for its name and time."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    key = observed.key
    return {
        "apiVersion": "v1",
        "kind": EVENT.kind,
        "metadata": {"name": f"{key.name}.{uuid.uuid4().hex[:16]}", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "uid": observed.uid,
        },
        "type": action.type,
        "reason": action.reason,
        "message": action.message[:1024],
        "source": {"component": names.FIELD_MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
