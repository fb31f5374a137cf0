"""Channels and servers: grpc.aio with mutual TLS, keep-alive, limits, health, deadlines and our errors.

    channel = client_channel("pod:7402", tls)                   one a peer, kept; connects by itself, again and again
    answer = await ask(HalfStub(channel).Execute, request, timeout=30, where="hybrid-0")
    server = await serve([HalfService()], "0.0.0.0:7402", tls)  server.port, await server.stop(grace_s)

A folder `tls` holds `ca.crt`, `tls.crt` and `tls.key` (PEM). Who holds no certificate of that CA is not heard. A
server reads the folder again for new connections once a file in it changed, and a client's channel for new calls
(`renewal.py`), so that certificates may be replaced while everything runs.
A servicer simply raises a TwinpodError: the caller of `ask` gets the same class with the same line. A call without a
deadline is refused, so that nobody forgets one.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from twinpod.errors import EnvironmentFault, InputError, TwinpodError
from twinpod.rpc import errors
from twinpod.rpc.limits import MESSAGE_LIMIT
from twinpod.rpc.renewal import RenewingBlockingChannel, RenewingChannel
from twinpod.rpc.v1 import half_pb2_grpc, master_pb2_grpc

log = logging.getLogger(__name__)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_SHARED_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
CLIENT_OPTIONS: tuple[tuple[str, Any], ...] = (
    *_SHARED_OPTIONS,
    ("grpc.enable_http_proxy", 0),  # pods talk to pods; a proxy of the environment is for the outside
    ("grpc.use_local_subchannel_pool", 1),  # a new channel makes new connections, with certificates read now
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
SERVER_OPTIONS: tuple[tuple[str, Any], ...] = (
    *_SHARED_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # else a taken port is shared in silence
)
_SERVICES: tuple[tuple[type, Callable[[Any, Any], None], str], ...] = (
    (half_pb2_grpc.HalfServicer, half_pb2_grpc.add_HalfServicer_to_server, "twinpod.rpc.v1.Half"),
    (half_pb2_grpc.TrainerLinkServicer, half_pb2_grpc.add_TrainerLinkServicer_to_server, "twinpod.rpc.v1.TrainerLink"),
    (master_pb2_grpc.MasterServicer, master_pb2_grpc.add_MasterServicer_to_server, "twinpod.rpc.v1.Master"),
)
_NO_DEADLINE_NEEDED = ("/grpc.health.v1.Health/", "/grpc.reflection.")


class Method(Protocol[R_co]):
    """A unary method of a generated async stub."""

    def __call__(self, request: Any, *, timeout: float | None, wait_for_ready: bool | None) -> Awaitable[R_co]:
        """Begin the call."""
        ...


def channel_credentials(tls: Path) -> grpc.ChannelCredentials:
    """A client's credentials, read now. InputError names a file that is missing."""
    chain, key, authority = _read_pem(tls)
    return grpc.ssl_channel_credentials(root_certificates=authority, private_key=key, certificate_chain=chain)


def client_channel(address: str, tls: Path) -> grpc.aio.Channel:
    """A channel to `host:port`, connected lazily; `host` must be a name or IP of the peer's certificate."""
    return RenewingChannel(
        lambda: grpc.aio.secure_channel(address, channel_credentials(tls), options=CLIENT_OPTIONS),
        lambda: _stamp_or_none(tls),
    )


def blocking_channel(address: str, tls: Path) -> grpc.Channel:
    """The same for code without an event loop (a trainer rank). Use it with `ask_blocking`."""
    return RenewingBlockingChannel(
        lambda: grpc.secure_channel(address, channel_credentials(tls), options=CLIENT_OPTIONS),
        lambda: _stamp_or_none(tls),
    )


async def ask(method: Method[R], request: Any, *, timeout: float, where: str, wait: bool = False) -> R:
    """One unary call. `timeout`: seconds; `wait`: stay until the peer can be reached instead of failing at once.

    Raises the class that the servicer raised, or `Unreachable` (retryable) when the peer did not answer.
    """
    try:
        return await method(request, timeout=timeout, wait_for_ready=wait)
    except grpc.RpcError as error:
        raise errors.from_rpc(error, where) from error


async def ask_stream(
    method: Any, request: Any, *, timeout: float, where: str, wait: bool = False
) -> AsyncIterator[Any]:
    """One call that answers with a stream; errors as in `ask`."""
    try:
        async for message in method(request, timeout=timeout, wait_for_ready=wait):
            yield message
    except grpc.RpcError as error:
        raise errors.from_rpc(error, where) from error


def ask_blocking(method: Any, request: Any, *, timeout: float, where: str, wait: bool = False) -> Any:
    """`ask` over a `blocking_channel`."""
    try:
        return method(request, timeout=timeout, wait_for_ready=wait)
    except grpc.RpcError as error:
        raise errors.from_rpc(error, where) from error


def ask_stream_blocking(method: Any, request: Any, *, timeout: float, where: str, wait: bool = False) -> Iterator[Any]:
    """`ask_stream` over a `blocking_channel`. A stream that is not gone through to its end is cancelled."""
    call = method(request, timeout=timeout, wait_for_ready=wait)
    try:
        yield from call
    except grpc.RpcError as error:
        raise errors.from_rpc(error, where) from error
    finally:
        call.cancel()


def listening_host(address: str) -> str:
    """Where the servers of a pod listen that others reach by `address`: everywhere, but in local mode, where pods
    share a machine and each has a loopback address of its own, on that address alone."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)}
    except OSError:
        return "0.0.0.0"  # a cluster's DNS may not know the pod yet
    loopback = sorted(host for host in found if host.startswith("127."))
    return loopback[0] if loopback else "0.0.0.0"


class RpcServer:
    """A running server. `port` is the bound one, also when 0 was asked for. Life: made by `serve`, ended by `stop`."""

    def __init__(self, server: grpc.aio.Server, port: int, healthy: health_aio.HealthServicer) -> None:
        self._server, self.port, self._health = server, port, healthy

    async def stop(self, grace_s: float = 0.0) -> None:
        """Say NOT_SERVING, take no new call, give running ones `grace_s` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait_for_termination(self) -> None:
        """Return when somebody stopped the server."""
        await self._server.wait_for_termination()


async def serve(
    servicers: Sequence[object], address: str, tls: Path, *, reflection: bool = False, concurrent: int | None = None
) -> RpcServer:
    """Serve on `host:port` (port 0: any free one) until stopped.

    `servicers`: subclasses of the generated `HalfServicer`, `TrainerLinkServicer`, `MasterServicer`, or ready-made
    `grpc.GenericRpcHandler`s. EnvironmentFault when the port is taken, InputError when a certificate is missing.
    """
    server = grpc.aio.server(interceptors=[_Guard()], options=SERVER_OPTIONS, maximum_concurrent_rpcs=concurrent)
    healthy = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    names = [*_add_all(servicers, server), health.SERVICE_NAME]
    if reflection:
        _reflect(server, names)
    try:
        port = server.add_secure_port(address, _server_credentials(tls))
    except RuntimeError as error:
        raise EnvironmentFault(
            "the port cannot be bound: taken by another process, or no address of this machine",
            where=address,
            mend="stop the process that listens there (`ss -ltnp` shows it)",
        ) from error
    await server.start()
    for name in ("", *names):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    return RpcServer(server, port, healthy)


def _add_all(servicers: Iterable[object], server: grpc.aio.Server) -> list[str]:
    names = []
    for servicer in servicers:
        if isinstance(servicer, grpc.GenericRpcHandler):
            server.add_generic_rpc_handlers((servicer,))
            continue
        known = [(add, name) for kind, add, name in _SERVICES if isinstance(servicer, kind)]
        assert known, f"{type(servicer).__name__} is no servicer of protos/"
        for add, name in known:
            add(servicer, server)
            names.append(name)
    return names


def _reflect(server: grpc.aio.Server, names: Sequence[str]) -> None:
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError as error:
        raise EnvironmentFault("gRPC reflection is not installed", mend="pip install grpcio-reflection") from error
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)


def _read_pem(tls: Path) -> tuple[bytes, bytes, bytes]:
    """Certificate, key, CA."""
    try:
        return tuple((tls / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt"))  # type: ignore[return-value]
    except OSError as error:
        raise InputError(
            f"{error.strerror}", where=str(error.filename), mend="mount the job's TLS secret there, or set TWINPOD_TLS"
        ) from error


def _stamp(tls: Path) -> tuple[tuple[int, int], ...]:
    """Changes when a file of the folder does; a Secret's update swaps a link, which `stat` follows."""
    found = [(tls / name).stat() for name in ("tls.crt", "tls.key", "ca.crt")]
    return tuple((file.st_mtime_ns, file.st_ino) for file in found)


def _server_credentials(tls: Path) -> grpc.ServerCredentials:
    """Credentials that follow the files: gRPC asks before every new connection."""
    seen = _stamp_or_none(tls)

    def configuration() -> grpc.ServerCertificateConfiguration:
        chain, key, authority = _read_pem(tls)
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authority)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        now = _stamp_or_none(tls)
        if now is None or now == seen:
            return None  # unchanged, or between two states: the certificates at hand stay
        try:
            fresh = configuration()
        except TwinpodError as error:
            log.warning("certificates not reloaded: %s", error)
            return None
        seen = now
        log.info("certificates reloaded from %s", tls)
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        fetch,  # type: ignore[arg-type]  # None means: as before
        require_client_authentication=True,
    )


def _stamp_or_none(tls: Path) -> tuple[tuple[int, int], ...] | None:
    try:
        return _stamp(tls)
    except OSError:
        return None


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Around every method: a deadline is demanded, a TwinpodError becomes a status, anything else is logged with its
    trace.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_NO_DEADLINE_NEEDED):
            return handler
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guard_unary(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method), handler.request_deserializer, handler.response_serializer
            )
        return handler


def _guard_unary(inner: Callable[..., Any], method: str) -> Callable[..., Any]:
    @functools.wraps(inner)
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            await _demand_deadline(context)
            return await inner(request, context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001  # the edge: everything becomes a status
            await _abort(context, error, method)

    return call


def _guard_stream(inner: Callable[..., Any], method: str) -> Callable[..., Any]:
    assert inspect.isasyncgenfunction(inner), f"{method}: write streaming servicers as async generators"

    @functools.wraps(inner)
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            await _demand_deadline(context)
            async for message in inner(request, context):
                yield message
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001  # the edge: everything becomes a status
            await _abort(context, error, method)

    return call


async def _demand_deadline(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if context.time_remaining() is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "every call needs a deadline; pass timeout=")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if isinstance(error, TwinpodError):
        await context.abort(errors.code_of(error), error.line(), ((errors.METADATA_KEY, errors.pack(error)),))
    log.error("%s failed", method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
