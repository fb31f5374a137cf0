"""Everything that the operator has seen, and who is to be woken by what.

Our own resources come from Kopf's watch (`handlers.py`), their children from reflectors; both only put things here.
A change of a child wakes its owner, a change of a job wakes its pools, a change in a line for devices wakes whose turn
it is now. A resource is kept as the bytes of its JSON: at rest it is only there to be read again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import orjson

from twinpod.api import names
from twinpod_operator import cache, kinds
from twinpod_operator.cache import TOMBSTONES, KindCache
from twinpod_operator.kube import Api
from twinpod_operator.nouns import ChildView, Contender, Key, Manifest
from twinpod_operator.policies import gang
from twinpod_operator.reflector import Reflector

SELECTOR = f"{names.LABEL_MANAGED_BY}={names.FIELD_MANAGER}"
_EVENTS = "type=Warning"
LAST_WORD_S = 60.0  # for the progress of a master that has ended to be read


class Wake(Protocol):
    """The queue's way in."""

    def __call__(self, key: Key, *, urgent: bool = False) -> None:
        """The key is to be looked at now."""
        ...


@dataclass(slots=True)
class _Kept:
    uid: str
    version: int
    generation: int
    deleting: bool
    data: bytes


class World:
    """Life: of a leader. All methods are synchronous: what is read within one of them fits together."""

    def __init__(self, wake: Wake, clock: Callable[[], float] = time.time) -> None:
        self._wake, self._clock = wake, clock
        self._kept: dict[Key, _Kept] = {}
        self._keys: dict[str, Key] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()  # uids, so that no late news brings one back
        self._pools: dict[tuple[str, str], set[Key]] = {}  # (namespace, job) → pools that serve it
        self._served: dict[Key, str] = {}  # pool → job
        self._line: dict[str, Contender] = {}  # by uid: jobs that stand in a line for devices
        self._turns: dict[str, Key] = {}
        self.pods = cache.pods(self._pod_changed)
        self.children: dict[str, KindCache[ChildView]] = {
            kind.kind: cache.children(self._child_changed) for kind in kinds.APPLIED
        }
        self.claims = cache.device_claims(lambda uid: self._child_changed(self.pods.owner_of(uid)))
        self.events = cache.EventShelf(self._told)
        self.device_classes: set[str] = set()

    def reflectors(self, api: Api) -> list[Reflector]:
        """One for each kind of child."""
        return [
            Reflector(api, kinds.POD, self.pods, labels=SELECTOR),
            *(Reflector(api, kind, self.children[kind.kind], labels=SELECTOR) for kind in kinds.APPLIED),
            Reflector(api, kinds.DEVICE_CLAIM, self.claims, labels=SELECTOR),
            Reflector(api, kinds.EVENT, self.events, fields=_EVENTS),
            Reflector(api, kinds.DEVICE_CLASS, _Names(self)),
        ]

    def put(self, raw: Manifest, *, own: bool = False) -> None:
        """A resource of ours, from Kopf, or (`own`) the answer to a write of ours, which wakes nobody but its pools."""
        metadata = raw["metadata"]
        metadata.pop("managedFields", None)
        key = Key(kind=raw["kind"], namespace=metadata["namespace"], name=metadata["name"])
        if metadata["uid"] in self._gone:
            return  # the answer to a write of ours, overtaken by the news that it is gone
        version, held = int(metadata["resourceVersion"]), self._kept.get(key)
        if held is not None and held.version >= version:
            return
        deleting, generation = "deletionTimestamp" in metadata, int(metadata.get("generation", 0))
        if held is not None and held.uid != metadata["uid"]:
            self._keys.pop(held.uid, None)
            self._stand_in_line(held.uid)
        urgent = held is None or held.generation != generation or held.deleting != deleting
        self._kept[key] = _Kept(metadata["uid"], version, generation, deleting, orjson.dumps(raw))
        self._keys[metadata["uid"]] = key
        if key.kind == kinds.ROLLOUT_POOL.kind:
            self._serve(key, str((raw.get("spec") or {}).get("job", "")))
        if held is None or held.uid != metadata["uid"]:
            self._stand_in_line(metadata["uid"])  # its pods may have been seen before it
        if not own:
            self._wake(key, urgent=urgent)
        self._wake_pools(key)

    def remove(self, raw: Manifest) -> None:
        """A resource of ours is gone."""
        metadata = raw["metadata"]
        self._gone[metadata["uid"]] = None
        while len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)
        key = Key(kind=raw["kind"], namespace=metadata["namespace"], name=metadata["name"])
        held = self._kept.get(key)
        if held is None or held.uid != metadata["uid"]:
            return
        del self._kept[key]
        self._keys.pop(held.uid, None)
        self._stand_in_line(held.uid)
        self._serve(key, "")
        self._wake(key, urgent=True)
        self._wake_pools(key)

    def keep_only(self, kind: str, seen: set[Key], version: int) -> None:
        """A whole list of a kind as of `version` had these: what went while nobody watched is gone."""
        for key in [key for key in self._kept if key.kind == kind and key not in seen]:
            held = self._kept[key]
            if held.version <= version:
                metadata = {"name": key.name, "namespace": key.namespace, "uid": held.uid}
                self.remove({"kind": kind, "metadata": metadata})

    def telling(self) -> dict[str, Key]:
        """Jobs by uid whose master runs, or has just said its last word."""
        recent = self._clock() - LAST_WORD_S
        masters = (
            pod.owner_uid
            for _, pod in self.pods
            if pod.role == names.Role.MASTER and (pod.phase == "Running" or pod.ended_at > recent)
        )
        return {uid: self._keys[uid] for uid in masters if uid in self._keys}

    def get(self, key: Key) -> Manifest | None:
        """The resource as it was last seen; a fresh copy."""
        held = self._kept.get(key)
        found: Manifest | None = orjson.loads(held.data) if held is not None else None
        return found

    def uid_of(self, key: Key) -> str:
        """The uid of a resource; empty when there is none."""
        held = self._kept.get(key)
        return held.uid if held is not None else ""

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._kept))

    def key_of(self, uid: str) -> Key | None:
        """The resource with that uid."""
        return self._keys.get(uid)

    def child_views(self, owner: str) -> tuple[ChildView, ...]:
        """All children of an owner that are no pods."""
        return tuple(view for cached in self.children.values() for view in cached.of(owner))

    def turn(self, device_class: str) -> Key | None:
        """Who may have pods let through now."""
        return self._turns.get(device_class)

    def _serve(self, pool: Key, job: str) -> None:
        before = self._served.pop(pool, "")
        if before:
            self._pools.get((pool.namespace, before), set()).discard(pool)
        if job:
            self._served[pool] = job
            self._pools.setdefault((pool.namespace, job), set()).add(pool)

    def _wake_pools(self, key: Key) -> None:
        if key.kind == kinds.RL_JOB.kind:
            for pool in self._pools.get((key.namespace, key.name), ()):
                self._wake(pool)

    def _child_changed(self, owner: str) -> None:
        if key := self._keys.get(owner):
            self._wake(key)

    def _told(self, uid: str) -> None:
        owner = self.pods.owner_of(uid) or self.children[kinds.CLAIM.kind].owner_of(uid)
        self._child_changed(owner)

    def _pod_changed(self, owner: str) -> None:
        self._child_changed(owner)
        self._stand_in_line(owner)

    def _stand_in_line(self, uid: str) -> None:
        """The place of a job whose pods changed, and who has the turn now; for most news nothing of it changes."""
        key = self._keys.get(uid)
        found = gang.contender(key, self.pods.of(uid)) if key is not None else None
        if found == self._line.get(uid):
            return
        if found is None:
            del self._line[uid]
        else:
            self._line[uid] = found
        turns = dict(gang.turn(self._line.values()))
        for device_class, key in turns.items():
            if self._turns.get(device_class) != key:
                self._wake(key)
        self._turns = turns


class _Names:
    """Keeps the names of the device classes; a class that comes wakes nobody, who waits for one looks again."""

    def __init__(self, world: World) -> None:
        self._names = world.device_classes

    def put(self, raw: Manifest) -> None:
        """See Sink."""
        self._names.add(raw["metadata"]["name"])

    def remove(self, raw: Manifest) -> None:
        """See Sink."""
        self._names.discard(raw["metadata"]["name"])

    def keep_only(self, seen: set[tuple[str, str]], version: int) -> None:
        """See Sink."""
        del version
        self._names.intersection_update({name for _, name in seen})
