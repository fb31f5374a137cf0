"""The run's own process and mount namespaces: nothing that it starts or mounts outlives it.

Theory of operation. `isolate()` splits the command in two. The *front* stays in the terminal: it forwards SIGINT and
SIGTERM and leaves with the exit code of the other. The *launcher* is the first process of a new PID namespace with
private mounts; everything that it starts lives in that namespace. The kernel kills a whole PID namespace when its first
process ends, and the launcher has asked to be killed when the front ends. So `kill -9` of either takes every process of
the run with it, and with the last one its mounts.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

from twinpod.errors import EnvironmentFault

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); EnvironmentFault names both ends and the reason."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise EnvironmentFault(f"cannot mount {source} ({kind or 'bind'}): {reason}", where=target)


def isolate() -> None:
    """Returns in the launcher only; the front never returns but exits as the launcher does. Call before any thread
    exists.
    """
    if os.geteuid() != 0:
        raise EnvironmentFault(
            "local mode needs root for its private mounts", where="twinpod run", mend="run it as root, or with sudo"
        )
    if _libc.unshare(CLONE_NEWNS | CLONE_NEWPID) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise EnvironmentFault(f"cannot unshare namespaces: {reason}", where="twinpod run", mend="see: twinpod doctor")
    alive_reading, alive_writing = os.pipe()
    launcher = os.fork()
    if launcher:
        os.close(alive_reading)
        sys.exit(_front(launcher))
    os.close(alive_writing)
    _become_launcher(alive_reading)


def _front(launcher: int) -> int:
    """Forwards signals to the launcher and returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: _forward(launcher, received))
    _, status = os.waitpid(launcher, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _forward(launcher: int, received: int) -> None:
    try:
        os.kill(launcher, received)
    except ProcessLookupError:
        return  # it has just ended; waitpid says how


def _become_launcher(alive: int) -> None:
    os.setpgid(0, 0)  # Ctrl-C reaches the front only, which forwards it once
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if select.select([alive], [], [], 0)[0]:  # end of file: the front died before prctl
        sys.exit(1)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
