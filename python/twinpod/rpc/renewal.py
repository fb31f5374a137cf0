"""Channels that take up new certificates: calls begun after the files changed go over a new connection.

A gRPC channel keeps the credentials that it was made with; a connection that breaks after their end never comes back.
So a channel here is a front of the real one, which it makes anew when the certificate files have changed. Calls that
are under way finish on the old connection, which TLS does not question again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

LOOK_S = 1.0  # seconds between two looks at the files
LEAVE_S = 900.0  # for calls that were begun over the old connection

Stamp = Callable[[], object]


class _Watched:
    """Says when the files have changed; what cannot be read now has not changed."""

    def __init__(self, stamp: Stamp) -> None:
        self._stamp, self._seen, self._looked = stamp, stamp(), time.monotonic()

    def changed(self) -> bool:
        """True once for each change."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return False
        self._looked = now
        found = self._stamp()
        if found is None or found == self._seen:
            return False
        self._seen = found
        return True


class _Method:
    """A method of the front: each call is made by the channel of that moment."""

    def __init__(self, current: Callable[[], Any], shape: str, arguments: tuple[Any, ...], options: Any) -> None:
        self._current, self._shape, self._arguments, self._options = current, shape, arguments, options
        self._channel: Any = None
        self._made: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._now()(*arguments, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        """Of blocking channels."""
        return self._now().future(*arguments, **options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:
        """Of blocking channels."""
        return self._now().with_call(*arguments, **options)

    def _now(self) -> Any:
        channel = self._current()
        if channel is not self._channel:
            self._made = getattr(channel, self._shape)(*self._arguments, **self._options)
            self._channel = channel
        return self._made


class _Front:
    """The four shapes of methods."""

    def _current(self) -> Any:
        raise NotImplementedError

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc."""
        return _Method(self._current, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc."""
        return _Method(self._current, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc."""
        return _Method(self._current, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc."""
        return _Method(self._current, "stream_stream", arguments, options)


class RenewingChannel(_Front, grpc.aio.Channel):
    """Life: as a channel's. `make` reads the certificates; `stamp` changes when they do."""

    def __init__(self, make: Callable[[], grpc.aio.Channel], stamp: Stamp) -> None:
        self._make, self._watched = make, _Watched(stamp)
        self._channel = make()
        self._leaving: set[asyncio.Task[None]] = set()

    def _current(self) -> grpc.aio.Channel:
        if self._watched.changed():
            old, self._channel = self._channel, self._make()
            task = asyncio.get_running_loop().create_task(old.close(LEAVE_S))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        return self._channel

    async def __aenter__(self) -> RenewingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """See grpc; calls over older connections end, too."""
        for task in self._leaving:
            task.cancel()
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc."""
        return self._current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc."""
        await self._current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc."""
        await self._current().channel_ready()


class RenewingBlockingChannel(_Front, grpc.Channel):
    """The same for code without an event loop; may be called from several threads."""

    def __init__(self, make: Callable[[], grpc.Channel], stamp: Stamp) -> None:
        self._make, self._watched, self._lock = make, _Watched(stamp), threading.Lock()
        self._channel = make()
        self._old: grpc.Channel | None = None  # closed at the next change, as closing ends its calls

    def _current(self) -> grpc.Channel:
        with self._lock:
            if self._watched.changed():
                if self._old is not None:
                    self._old.close()
                self._old, self._channel = self._channel, self._make()
            return self._channel

    def __enter__(self) -> RenewingBlockingChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """See grpc."""
        self._current().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        """See grpc."""
        self._current().unsubscribe(callback)

    def close(self) -> None:
        """See grpc."""
        if self._old is not None:
            self._old.close()
        self._channel.close()
