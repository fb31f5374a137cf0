"""What the API server has of ours, as views, by owner. Nothing of it is decided upon here.

Three things are kept beside the views: the version of each, so that what is older than our own write does not undo it;
the uids of what is gone, for the same reason; and the digest of a child right after our own apply (`applied`).
Whoever reads gets the newest that anybody has told: the watches, and the answers to our own requests (`own`, `gone`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from twinpod_operator.nouns import ChildView, DeviceClaimView, Finding, Manifest, PodView
from twinpod_operator.reading import child_view, claim_view, event_finding, pod_view

V = TypeVar("V", PodView, ChildView, DeviceClaimView)
Place = tuple[str, str]  # namespace, name
Wake = Callable[[str], None]  # the uid of the owner whose child changed
TOMBSTONES = 20_000
NEVER = 2**63  # newer than any version
FINDINGS = 20_000


@dataclass(slots=True)
class _Held(Generic[V]):
    view: V
    uid: str
    version: int


class KindCache(Generic[V]):
    """Views of one kind. `owner` says whose it is: an uid, or empty for what is not ours."""

    def __init__(
        self,
        read: Callable[[Manifest], V],
        owner: Callable[[V], str],
        wake: Wake,
    ) -> None:
        self._read: Callable[[Manifest], V] = read
        self._owner: Callable[[V], str] = owner
        self._wake = wake
        self._held: dict[Place, _Held[V]] = {}
        self._of: dict[str, set[Place]] = {}
        self._deleted: OrderedDict[str, int] = OrderedDict()  # uid → what is not newer is no news
        self._by_uid: dict[str, Place] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[tuple[Place, V]]:
        return ((place, held.view) for place, held in self._held.items())

    def of(self, owner: str) -> list[V]:
        """Views that belong to an uid, by name."""
        return [self._held[place].view for place in sorted(self._of.get(owner, ()))]

    def has(self, namespace: str, name: str) -> bool:
        """Whether one of that name is here, whoever it belongs to."""
        return (namespace, name) in self._held

    def owner_of(self, uid: str) -> str:
        """Whose the object with that uid is; empty when it is not here."""
        place = self._by_uid.get(uid)
        return self._owner(self._held[place].view) if place is not None else ""

    def put(self, raw: Manifest) -> None:
        """From a list or watch. What is no news, as the echo of a write of ours, is not even read."""
        metadata = raw["metadata"]
        held = self._held.get((metadata.get("namespace", ""), metadata["name"]))
        if held is None or held.uid != metadata["uid"] or held.version < int(metadata["resourceVersion"]):
            self._store(raw, self._read(raw))

    def own(self, raw: Manifest) -> None:
        """The answer to a write of ours."""
        view = self._read(raw)
        if isinstance(view, ChildView):
            view = replace(view, applied=view.digest)
        self._store(raw, view)

    def remove(self, raw: Manifest) -> None:
        """From a watch: it is gone, or its labels are. An answer of ours may come later than this news."""
        metadata = raw["metadata"]
        place = (metadata.get("namespace", ""), metadata["name"])
        self._bury(metadata["uid"], int(metadata["resourceVersion"]))
        held = self._held.get(place)
        if held is not None and held.uid == metadata["uid"]:
            self._drop(place)

    def gone(self, namespace: str, name: str, uid: str) -> None:
        """The answer to a delete of ours: it is gone, whatever older news still comes."""
        self._bury(uid, NEVER)
        held = self._held.get((namespace, name))
        if held is not None and held.uid == uid:
            self._drop((namespace, name))

    def _bury(self, uid: str, version: int) -> None:
        self._deleted[uid] = max(version, self._deleted.get(uid, 0))
        while len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)

    def keep_only(self, seen: set[Place], version: int) -> None:
        """See Sink; what we wrote after that list stays."""
        for place in [place for place, held in self._held.items() if place not in seen and held.version <= version]:
            self._drop(place)

    def _store(self, raw: Manifest, view: V) -> None:
        metadata = raw["metadata"]
        place, version = (metadata.get("namespace", ""), metadata["name"]), int(metadata["resourceVersion"])
        if version <= self._deleted.get(metadata["uid"], -1):
            return
        held = self._held.get(place)
        if held is not None:
            if held.version > version:
                return
            view = _remembering(view, held.view)
            if held.view == view:
                held.version = version
                return
            if held.uid != metadata["uid"] or self._owner(held.view) != self._owner(view):
                self._drop(place)
        owner = self._owner(view)
        self._held[place] = _Held(view, metadata["uid"], version)
        self._by_uid[metadata["uid"]] = place
        if owner:
            self._of.setdefault(owner, set()).add(place)
            self._wake(owner)

    def _drop(self, place: Place) -> None:
        held = self._held.pop(place)
        owner = self._owner(held.view)
        self._by_uid.pop(held.uid, None)
        places = self._of.get(owner)
        if places is not None:
            places.discard(place)
            if not places:
                del self._of[owner]
        if owner:
            self._wake(owner)


class EventShelf:
    """The newest reason that only an event told, by the uid of the object that it is about."""

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._found: OrderedDict[str, Finding] = OrderedDict()

    def get(self, uid: str) -> Finding | None:
        """The finding about the object, if there is one."""
        return self._found.get(uid)

    def put(self, raw: Manifest) -> None:
        """See Sink."""
        finding = event_finding(raw)
        uid = (raw.get("involvedObject") or {}).get("uid", "")
        if finding is None or not uid or self._found.get(uid) == finding:
            return
        self._found[uid] = finding
        self._found.move_to_end(uid)
        while len(self._found) > FINDINGS:
            self._found.popitem(last=False)
        self._wake(uid)

    def remove(self, raw: Manifest) -> None:
        """See Sink: events run out; what they said may still be true until the object changes."""

    def keep_only(self, seen: set[Place], version: int) -> None:
        """See Sink."""


def pods(wake: Wake) -> KindCache[PodView]:
    """Pods by the uid of their job or pool."""
    return KindCache(pod_view, lambda view: view.owner_uid, wake)


def children(wake: Wake) -> KindCache[ChildView]:
    """Children that are no pods, by the uid of their job or pool."""
    return KindCache(child_view, lambda view: view.owner_uid, wake)


def device_claims(wake: Wake) -> KindCache[DeviceClaimView]:
    """Resource claims by the uid of their pod."""
    return KindCache(claim_view, lambda view: view.pod_uid, wake)


def _remembering(view: V, before: V) -> V:
    """The view with what only we know of it, as long as it is what we applied."""
    if isinstance(view, ChildView):
        assert isinstance(before, ChildView)
        same = view.uid == before.uid and view.revision == before.revision
        if same and not view.applied and before.applied:
            return replace(view, applied=before.applied)
    return view
