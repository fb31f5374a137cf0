"""The store over etcd's v3 API: the only file that knows aetcd.

Theory of operation
-------------------
aetcd 1.0 opens one insecure channel to one member and passes its options
wrongly for TLS; so its client is subclassed here to make the channel itself: mutual TLS, keep-alive, quick
reconnects. One client a member, made when first needed; calls go to the member that answered last, and to the next
one when it does not. Reads and plain writes go round all members within the call's deadline. A compare-and-swap is
sent once: if its answer is lost, nobody can know whether it happened, and the caller must read before it swaps again.
So that a dead member does not cost every swap a try, the key is first read, which moves to a member that lives.

aetcd's own watcher shares one lock and one stream among all watches and forgets them when the stream breaks. Here
each watch is its own stream, begun at the revision of a full read, and begun anew, with a full read, whenever it
breaks. A watch's stream is the one call without a deadline: keep-alive ends it when the member is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aetcd
import grpc
from aetcd import rpc

from twinpod.coordination.memory import differences
from twinpod.coordination.store import Change, Entry, checked
from twinpod.errors import Conflict, EnvironmentFault, Unreachable
from twinpod.rpc.channel import CLIENT_OPTIONS, channel_credentials

log = logging.getLogger(__name__)
R = TypeVar("R")

CALL_TIMEOUT_S = 5.0
_AWAY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
_FULL = "database space exceeded"
_OLD_USERS = "revision of auth store is old"
_SENT_AGAIN_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
_MOST_OPERATIONS = 100  # of one transaction; etcd's default limit is 128


class _SecureClient(aetcd.Client):  # type: ignore[misc]  # aetcd has no types
    """aetcd's client over a channel with TLS. Invariant: the stubs exist from the start; gRPC connects when it must."""

    def __init__(self, endpoint: str, tls: Path, timeout_s: float) -> None:
        host, _, port = endpoint.rpartition(":")
        super().__init__(host=host, port=int(port), timeout=timeout_s)
        self.channel = grpc.aio.secure_channel(endpoint, channel_credentials(tls), options=CLIENT_OPTIONS)
        self.kvstub = rpc.KVStub(self.channel)
        self.leasestub = rpc.LeaseStub(self.channel)
        self.watchstub = rpc.WatchStub(self.channel)
        self.authstub = rpc.AuthStub(self.channel)
        self._connected.set()

    async def close(self) -> None:
        await self.channel.close(None)


class _Closed(Exception):
    """Another call found the member gone and closed the connections that this call used."""


def _told_to_stop() -> bool:
    """Whether a cancellation is meant for this task; gRPC raises the same when a channel is closed under a call."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _kept(call: Callable[[], Awaitable[R]]) -> R:
    """The call's answer; `_Closed` when its channel was closed, which must not end the task that waits for it.

    What arrived before some user was changed and would be done after it is refused by etcd, undone: it is sent again.
    """
    pauses = iter(_SENT_AGAIN_S)
    while True:
        try:
            return await call()
        except asyncio.CancelledError as error:
            if _told_to_stop():
                raise
            raise _Closed("the connection was closed") from error
        except (grpc.RpcError, aetcd.exceptions.ClientError) as error:
            pause = next(pauses, None)
            if pause is None or _OLD_USERS not in _details(error):
                raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))


def _details(error: BaseException) -> str:
    cause = error if isinstance(error, grpc.RpcError) else error.__cause__
    return (cause.details() or "") if isinstance(cause, grpc.RpcError) else ""


class EtcdStore:
    """Life: made without I/O inside a running event loop; `close` when done.

    endpoints: `host:port` of each member; tls: folder with ca.crt, tls.crt, tls.key of the platform's CA.
    """

    def __init__(self, endpoints: Sequence[str], tls: Path, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        assert endpoints, "etcd needs an endpoint"
        self.endpoints, self._tls, self._timeout_s = tuple(endpoints), tls, timeout_s
        self._clients: dict[str, _SecureClient] = {}
        self._current = random.randrange(len(self.endpoints))  # members share the load

    async def close(self) -> None:
        """End all connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    async def get(self, key: str) -> Entry | None:
        """See Store."""
        return _entry(found) if (found := await self._any(lambda client: client.get(key.encode()))) else None

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        """See Store."""
        found = await self._range(prefix)
        return tuple(_entry(pair) for pair in found.kvs)

    async def put(self, key: str, value: str, *, expect: int | None = None, lease_s: float | None = None) -> int:
        """See Store. Each put with a lease makes a fresh one: the older ones hold no key any more and run out by
        themselves.
        """
        data = checked(key, value)
        lease = None if lease_s is None else (await self._any(lambda client: client.lease(max(1, round(lease_s))))).id
        if expect is None:
            written = await self._any(lambda client: client.put(key.encode(), data, lease=lease))
            return int(written.header.revision)
        found = await self.get(key)  # also moves to a member that lives
        if (found.revision if found else 0) != expect:
            raise _conflict(key, found.revision if found else 0, expect)
        return await self._swap(key, data, expect, lease)

    async def delete(self, key: str) -> bool:
        """See Store."""
        return await self._any(lambda client: client.delete(key.encode())) is not None

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the keys that exist, in as few calls as etcd allows."""
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), _MOST_OPERATIONS):
            part = keys[start : start + _MOST_OPERATIONS]
            reads = [rpc.RequestOp(request_range=rpc.RangeRequest(key=key.encode())) for key in part]
            answer = await self._transact(rpc.TxnRequest(success=reads))
            pairs = (pair for response in answer.responses for pair in response.response_range.kvs)
            found |= {entry.key: entry for entry in map(_entry, pairs)}
        return found

    async def _transact(self, request: Any) -> Any:
        return await self.call(lambda client: client.kvstub.Txn(request, timeout=self._timeout_s))

    async def keys(self, prefix: str) -> tuple[str, ...]:
        """The names of all keys that begin with `prefix`, without their values."""
        end = aetcd.utils.prefix_range_end(prefix.encode())
        request = rpc.RangeRequest(key=prefix.encode(), range_end=end, keys_only=True)
        answer = await self.call(lambda client: client.kvstub.Range(request, timeout=self._timeout_s))
        return tuple(pair.key.decode() for pair in answer.kvs)

    async def delete_prefix(self, prefix: str) -> int:
        """Remove every key that begins with `prefix`; says how many there were. Safe to repeat."""
        assert prefix.strip("/"), "not everything"
        end = aetcd.utils.prefix_range_end(prefix.encode())
        request = rpc.DeleteRangeRequest(key=prefix.encode(), range_end=end)
        answer = await self.call(lambda client: client.kvstub.DeleteRange(request, timeout=self._timeout_s))
        return int(answer.deleted)

    async def call(self, act: Callable[[Any], Awaitable[R]]) -> R:
        """`act` with the raw stubs of the current member (`kvstub`, `authstub`), else of the next ones.

        Only for what may be done twice. `Unreachable` as everywhere; `EnvironmentFault` when etcd refuses.
        """
        last: Exception | None = None
        for _ in self.endpoints:
            try:
                return await _kept(lambda: act(self._client(self.endpoints[self._current])))
            except _Closed as error:
                last = error
            except grpc.RpcError as error:
                if _FULL in _details(error):
                    raise self._full() from error
                if error.code() not in _AWAY:
                    details = error.details()
                    raise EnvironmentFault(f"etcd refused: {details}", where=self._where()) from error
                last = error
                self._current = (self._current + 1) % len(self.endpoints)
        assert last is not None
        await self.close()
        raise self._unreachable(last) from last

    async def watch(self, prefix: str) -> AsyncIterator[Change]:
        """See Store."""
        seen: dict[str, Entry] = {}
        failures = 0
        while True:
            try:
                found = await self._range(prefix)
                present = {entry.key: entry for entry in map(_entry, found.kvs)}
                for change in differences(seen, present):
                    yield change
                seen, failures = present, 0
                async for change in self._stream(prefix, found.header.revision + 1):
                    if change.entry is None:
                        seen.pop(change.key, None)
                    else:
                        seen[change.key] = change.entry
                    yield change
            except (Unreachable, grpc.RpcError) as error:
                if not failures:
                    log.warning("watch of %s interrupted, going on by itself: %s", prefix, error)
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))

    async def _swap(self, key: str, data: bytes, expect: int, lease: int | None) -> int:
        """One transaction, to the current member only."""
        client = self._client(self.endpoints[self._current])
        same = client.transactions.mod(key.encode()) == expect
        write = client.transactions.put(key.encode(), data, lease=lease)
        request = rpc.TxnRequest(
            compare=[same.build_message()],
            success=client._ops_to_requests([write]),
            failure=client._ops_to_requests([client.transactions.get(key.encode())]),
        )
        try:
            answer = await _kept(lambda: client.kvstub.Txn(request, timeout=self._timeout_s))
        except (_Closed, grpc.RpcError) as error:
            if _FULL in _details(error):
                raise self._full() from error
            self._current = (self._current + 1) % len(self.endpoints)
            raise self._unreachable(error) from error
        if not answer.succeeded:
            pairs = answer.responses[0].response_range.kvs
            raise _conflict(key, pairs[0].mod_revision if pairs else 0, expect)
        return int(answer.header.revision)

    async def _range(self, prefix: str) -> Any:
        """All pairs under the prefix with the revision at which they were read (aetcd's own type)."""
        return await self._any(lambda client: client.get_prefix(prefix.encode(), sort_order="ascend"))

    async def _stream(self, prefix: str, revision: int) -> AsyncIterator[Change]:
        """Changes from `revision` on, until the stream breaks or was compacted away."""
        create = rpc.WatchCreateRequest(
            key=prefix.encode(), range_end=aetcd.utils.prefix_range_end(prefix.encode()), start_revision=revision
        )
        call = self._client(self.endpoints[self._current]).watchstub.Watch()
        try:
            await call.write(rpc.WatchRequest(create_request=create))
            async for answer in call:
                if answer.canceled:
                    return
                for event in answer.events:
                    gone = event.type == rpc.Event.DELETE
                    yield Change(key=event.kv.key.decode(), entry=None if gone else _entry(event.kv))
        except asyncio.CancelledError as error:
            if _told_to_stop():
                raise
            raise self._unreachable(_Closed()) from error
        finally:
            call.cancel()

    async def _any(self, act: Callable[[_SecureClient], Awaitable[R]]) -> R:
        """`act` with the current member, else with the next ones."""
        last: Exception | None = None
        for _ in self.endpoints:
            try:
                return await _kept(lambda: act(self._client(self.endpoints[self._current])))
            except _Closed as error:
                last = error
            except aetcd.exceptions.ClientError as error:
                if _FULL in _details(error):
                    raise self._full() from error
                cause = error.__cause__ if isinstance(error.__cause__, grpc.RpcError) else None
                if cause is None or cause.code() not in _AWAY:
                    raise EnvironmentFault(f"etcd refused: {error}", where=self._where()) from error
                last = cause
                self._current = (self._current + 1) % len(self.endpoints)
        assert last is not None
        await self.close()  # new connections, with certificates read anew, for the next call
        raise self._unreachable(last) from last

    def _client(self, endpoint: str) -> _SecureClient:
        if endpoint not in self._clients:
            self._clients[endpoint] = _SecureClient(endpoint, self._tls, self._timeout_s)
        return self._clients[endpoint]

    def _where(self) -> str:
        return "etcd at " + ", ".join(self.endpoints)

    def _full(self) -> Unreachable:
        """Every member refuses writes, and reads go on: nothing is to be gained by another connection."""
        return Unreachable(
            "its database is full (alarm NOSPACE), so it takes no writes",
            where=self._where(),
            mend="compact and defragment it, or raise its quota, then disarm the alarm; what runs goes on meanwhile",
        )

    def _unreachable(self, error: Exception) -> Unreachable:
        details = getattr(error, "details", lambda: str(error))() or type(error).__name__
        return Unreachable(
            f"no member answered within {self._timeout_s:g} s ({details})",
            where=self._where(),
            mend="start it again, or check its address and certificates; what runs goes on meanwhile",
        )


def _entry(pair: Any) -> Entry:
    return Entry(key=pair.key.decode(), value=pair.value.decode(), revision=int(pair.mod_revision))


def _conflict(key: str, found: int, expected: int) -> Conflict:
    return Conflict(f"has revision {found}, not {expected}", where=key, mend="read it again")
