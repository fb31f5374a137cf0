"""A worker process that answers questions and can be killed: for code that may hang, crash or never come back.

Theory of operation. `Child` starts `child_owner.py`, which starts `python -m twinpod.child`: the worker. They talk over
a socket: requests are pickled (the worker is ours), answers are JSON (what a user's code returned is data, never
code). The first request names a function of ours and its argument; that function opens what the worker works with and
returns its handler, and every later request is one call of it. A deadline that passes, or a worker that ends, ends the
owner, and with it everything that the worker has started.

The worker's hash seed is always the same: what a set or a dict of the user's gives up first must not change with the
start of a process. Its standard output goes where its standard error goes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twinpod import errors
from twinpod.errors import EnvironmentFault, TwinpodError, Unreachable

__all__ = ["Child", "Opened"]

Opened = tuple[Callable[[Any], Any], Any]  # what a target returns: the handler, and the first answer
_LENGTH = struct.Struct(">Q")
_MOST_BYTES = 1 << 30
_OWNER = str(Path(__file__).with_name("child_owner.py"))
_LAST_WORDS_S = 5.0  # from the end of a worker's socket to its own end
_END_S = 10.0  # for the kernel to end what was killed
_KILLED = 128 + signal.SIGKILL

log = logging.getLogger(__name__)


class Child:
    """One worker. Life: made (its first answer is `first`), `ask` any number of times, `close`. One call at a time,
    from any thread; `close` from any thread at any moment. After an error of `ask` it is closed.
    """

    def __init__(self, target: str, argument: object, *, name: str, start_s: float) -> None:
        """`target`: `package.module:function`, see Opened. Raises what the target raises of TwinpodError, Unreachable
        when it takes longer than `start_s`, EnvironmentFault when the worker ends. `name`: for those errors.
        """
        self.name = name
        ours, theirs = socket.socketpair()
        with theirs:
            self._socket, self._owner = ours, _start_owner(theirs)
        self.first = self._call((target, argument, sys.path), start_s)

    def ask(self, request: object, within_s: float) -> Any:
        """The handler's answer. Unreachable after `within_s` seconds, EnvironmentFault when the worker ended."""
        return self._call(request, within_s)

    def close(self) -> int:
        """End it and everything that it has started; returns the worker's exit code."""
        assert self._owner.stdin is not None
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for an answer
        except OSError:
            pass  # the other end was gone before
        self._owner.stdin.close()
        self._socket.close()
        try:
            return self._owner.wait(_END_S)
        except subprocess.TimeoutExpired:  # it waits for the kernel; `subprocess` itself reaps it later
            log.warning("a killed process does not end", extra={"pid": self._owner.pid})
            return _KILLED

    def _call(self, request: object, within_s: float) -> Any:
        until = time.monotonic() + within_s
        try:
            self._write(pickle.dumps(request), until)
            answer = self._read(until)
        except TimeoutError as error:
            self.close()
            raise Unreachable(f"no answer within {within_s:g} s", where=self.name) from error
        except OSError as error:
            raise self._ended() from error
        if not answer:
            raise self._ended()
        value = json.loads(answer)
        if "error" in value:
            self.close()
            kind, what, where, mend = value["error"]
            raise getattr(errors, kind)(what, where=where, mend=mend)
        return value["answer"]

    def _ended(self) -> EnvironmentFault:
        """What is said of a worker that is gone."""
        try:
            self._owner.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            pass  # it lives, and only closed its socket: it is ended now
        code = self.close()
        number = -code if code < 0 else code - 128  # its owner was killed; it was killed itself
        how = f"was killed by {signal.Signals(number).name}" if number > 0 else f"ended with exit code {code}"
        return EnvironmentFault(f"its process {how}", where=self.name, mend="see the log above")

    def _write(self, data: bytes, until: float) -> None:
        self._socket.settimeout(_left(until))
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def _read(self, until: float) -> bytes:
        """One answer; empty when the worker closed the socket."""
        head = self._exactly(_LENGTH.size, until)
        if len(head) < _LENGTH.size or (length := _LENGTH.unpack(head)[0]) > _MOST_BYTES:
            return b""
        body = self._exactly(length, until)
        return body if len(body) == length else b""

    def _exactly(self, length: int, until: float) -> bytes:
        parts, missing = [], length
        while missing:
            self._socket.settimeout(_left(until))
            part = self._socket.recv(min(missing, 1 << 20))
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _start_owner(socket_of_worker: socket.socket) -> subprocess.Popen[bytes]:
    worker = [sys.executable, "-m", "twinpod.child"]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    number = socket_of_worker.fileno()
    command = [sys.executable, "-I", "-S", _OWNER, str(number), *worker, str(number)]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=(number,),
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise EnvironmentFault(f"cannot start a process: {error.strerror}", where="twinpod.child") from error


def main() -> None:
    """The worker."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    os.dup2(2, 1)
    target, argument, folders = _next(connection)
    sys.path.extend(folder for folder in folders if folder not in sys.path)  # modules that our parent finds, we find
    act: Callable[[], Any] = partial(_open, target, argument)
    handler = None
    while True:
        try:
            answer = act()
        except TwinpodError as error:
            _answer(connection, {"error": [type(error).__name__, error.what, error.where, error.mend]})
            return
        if handler is None:
            handler, answer = answer
        _answer(connection, {"answer": answer})
        try:
            act = partial(handler, _next(connection))
        except EOFError:
            return


def _open(target: str, argument: object) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(argument)


def _next(connection: socket.socket) -> Any:
    """The next request; EOFError when there is none any more."""
    head = connection.recv(_LENGTH.size, socket.MSG_WAITALL)
    if len(head) < _LENGTH.size:
        raise EOFError
    body = bytearray()
    (length,) = _LENGTH.unpack(head)
    while len(body) < length:
        part = connection.recv(min(length - len(body), 1 << 20))
        if not part:
            raise EOFError
        body += part
    return pickle.loads(body)  # noqa: S301  # from our own parent, over a socket that nobody else has


def _answer(connection: socket.socket, value: object) -> None:
    data = json.dumps(value).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


if __name__ == "__main__":
    main()
