"""Shards over gRPC: `/twinpod.rpc.v1.Shards/Fetch`, a server stream of raw bytes; `/Layout` gives a layout the same
way.

The request is a `ShardRequest` as JSON; every answer is the next bytes of the slot as they are (identity
serialisers), so protobuf never copies a tensor. One channel a source, made anew after a failure, for it reads the
certificates when it is made. gRPC's own flow control bounds what is under way: the sender reads the next message from
its arena when the last one has been taken.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from twinpod.checkpoint.shard_offers import MESSAGE_BYTES, ShardOffers
from twinpod.records import codec
from twinpod.records.weights import ShardRequest
from twinpod.rpc import errors
from twinpod.rpc.channel import CLIENT_OPTIONS, channel_credentials

SERVICE, METHOD, LAYOUT = "twinpod.rpc.v1.Shards", "Fetch", "Layout"
_OPTIONS: tuple[tuple[str, Any], ...] = (
    *CLIENT_OPTIONS,
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.http2.lookahead_bytes", 8 << 20),
)


class GrpcCarrier:
    """See Carrier. `tls`: the folder of this process's certificate. Use it in one event loop."""

    def __init__(self, tls: Path) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stream(self, request: ShardRequest, source: str, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """See Carrier."""
        return self._stream(METHOD, codec.dumps(request).encode(), source, timeout_s)

    async def layout(self, digest: str, source: str, timeout_s: float) -> bytes:
        """See Carrier."""
        return b"".join([message async for message in self._stream(LAYOUT, digest.encode(), source, timeout_s)])

    async def _stream(self, name: str, request: bytes, source: str, timeout_s: float) -> AsyncGenerator[bytes, None]:
        channel = self._channels.get(source)
        if channel is None:
            channel = grpc.aio.secure_channel(source, channel_credentials(self._tls), options=_OPTIONS)
            self._channels[source] = channel
        method = channel.unary_stream(f"/{SERVICE}/{name}", request_serializer=None, response_deserializer=None)
        call = method(request, timeout=timeout_s)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            if self._channels.get(source) is channel:
                del self._channels[source]
                await channel.close(None)
            raise errors.from_rpc(error, source) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """See Carrier."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close(None)


class _Shards:
    """The service over what the half offers."""

    def __init__(self, offers: ShardOffers) -> None:
        self._offers = offers

    async def fetch(self, request: bytes, _context: Any) -> AsyncGenerator[bytes, None]:
        """A TwinpodError goes to the caller as itself (see `rpc.channel`)."""
        async for message in self._offers.read(codec.loads(ShardRequest, request.decode())):
            yield message

    async def layout(self, request: bytes, _context: Any) -> AsyncGenerator[bytes, None]:
        """The layout whose digest is asked for."""
        data = self._offers.layout(request.decode())
        for begin in range(0, len(data), MESSAGE_BYTES):
            yield data[begin : begin + MESSAGE_BYTES]


def shard_service(offers: ShardOffers) -> grpc.GenericRpcHandler[Any, Any]:
    """What `rpc.channel.serve` is given to serve what a half offers."""
    shards = _Shards(offers)
    methods = {METHOD: shards.fetch, LAYOUT: shards.layout}
    return grpc.method_handlers_generic_handler(
        SERVICE, {name: grpc.unary_stream_rpc_method_handler(act) for name, act in methods.items()}
    )
