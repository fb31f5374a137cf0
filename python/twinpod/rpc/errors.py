"""Errors across gRPC: the class and the line that a servicer raised are what the caller catches.

A TwinpodError travels as a status code (for anything that reads only codes) and, whole, in the trailing metadata
(`twinpod-error-bin`: JSON of class, what, where, mend). What gRPC itself reports (no connection, no answer in time)
becomes `Unreachable`. A command's failure is no failed call: it is the `error` of its `Reply`, `ClassName: line`;
`raise_for` turns it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc

from twinpod import errors
from twinpod.errors import ProtocolError, TwinpodError, Unreachable
from twinpod.records.life import Reply

METADATA_KEY = "twinpod-error-bin"
_LONGEST = 1500  # characters of each part: all metadata together must stay below 8 KiB

_CODES: tuple[tuple[type[TwinpodError], grpc.StatusCode], ...] = (  # first match wins
    (errors.InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Unreachable, grpc.StatusCode.UNAVAILABLE),
    (errors.StaleEpoch, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ProtocolError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Conflict, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.IntegrityError, grpc.StatusCode.DATA_LOSS),
    (errors.EngineFault, grpc.StatusCode.ABORTED),
    (errors.InUse, grpc.StatusCode.ABORTED),
    (errors.EnvironmentFault, grpc.StatusCode.RESOURCE_EXHAUSTED),
)
_RETRY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def code_of(error: TwinpodError) -> grpc.StatusCode:
    """The status code that stands for the error's class."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def pack(error: TwinpodError) -> bytes:
    """The error as the bytes of its trailing metadata."""
    parts = {"what": error.what, "where": error.where, "mend": error.mend}
    return json.dumps(
        {"class": type(error).__name__} | {name: part[:_LONGEST] for name, part in parts.items()}
    ).encode()


def unpack(data: bytes) -> TwinpodError:
    """The error that `pack` packed; a class that this release does not know becomes a plain TwinpodError."""
    fields = json.loads(data)
    return class_named(fields["class"])(fields["what"], where=fields["where"], mend=fields["mend"])


def class_named(name: str) -> type[TwinpodError]:
    """The class of the tree with that name, else TwinpodError."""
    return next((kind for kind in _tree(TwinpodError) if kind.__name__ == name), TwinpodError)


def _tree(kind: type[TwinpodError]) -> Iterator[type[TwinpodError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def from_rpc(error: grpc.RpcError, where: str) -> TwinpodError:
    """What a failed call means. `where`: the peer's address and the method, for the line."""
    call: grpc.Call = error  # type: ignore[assignment]  # every RpcError of a client is a Call
    for key, value in call.trailing_metadata() or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            return unpack(value)
    code, details = call.code(), call.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable("did not answer before the deadline", where=where)
    if code in _RETRY:
        return Unreachable(f"does not answer: {details}", where=where)
    return ProtocolError(f"refused the call ({code.name}): {details}", where=where)


def reply_error(error: TwinpodError) -> str:
    """An error as the `error` of a Reply: `ClassName: line`."""
    return f"{type(error).__name__}: {error.line()}"


def raise_for(reply: Reply) -> Reply:
    """The reply itself when it says done, else its error as an exception of the class that the half named."""
    if not reply.error:
        return reply
    name, _, line = reply.error.partition(": ")
    kind = class_named(name)
    if kind is TwinpodError and name != TwinpodError.__name__:
        line = reply.error
    error = kind(line)
    error.retryable = reply.retryable
    raise error
