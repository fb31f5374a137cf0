"""Engine processes of the standby: start one, kill all of one, see that it is gone. Linux, standard library only.

Theory of operation
-------------------
An engine is a *process group*: the forked process (the group's leader, SGLang's HTTP server) and the scheduler and
detokenizer processes that SGLang makes itself. The standby is their *subreaper*: when a leader dies, its children
become the standby's, so the standby can reap every one and knows, rather than hopes, that a group is gone. Killing is
SIGKILL to the group: only that frees an accelerator fully, and SGLang's orderly shutdown takes seconds.

A leader is forked, which costs nothing, or executed anew (`spawn_leader`) where a fork would not live: after a library
made a CUDA context or a thread in the standby, and for a library that must be preloaded.

Nobody outlives the standby: a leader asks the kernel for SIGKILL when its parent dies, and SGLang's children do the
same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Exit", "become_subreaper", "die_with", "fork_leader", "group_exists", "kill_group", "reap", "spawn_leader"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """A child that was reaped. `status`: exit code, or minus the signal's number."""

    pid: int
    status: int


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}) failed: {os.strerror(code)}")


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def fork_leader(run: Callable[[], None], *, log: str, close: Iterable[int]) -> int:
    """Fork a group leader that runs `run` with stdout and stderr appended to `log`; returns its pid.

    `close`: descriptors of the parent that the child must not hold. Call it from a process with one thread only.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        try:
            os.setpgid(pid, pid)  # both sides do it, so that neither can be too late
        except (PermissionError, ProcessLookupError):
            pass  # the child has done it, or is already dead: reap() tells
        return pid
    code = 1
    try:
        _become_leader(parent, log, close)
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  # a forked child must not return into its parent's loop
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def spawn_leader(arguments: Sequence[str], *, log: str, env: Mapping[str, str]) -> int:
    """Execute our Python with `arguments` as a group leader with stdout and stderr appended to `log`; returns its pid.

    No Python runs between the fork and the exec, so the caller may have threads. The program calls `die_with` first.
    Descriptors of the caller are closed by the exec: Python opens none that a child inherits.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    command = [sys.executable, *arguments]
    defaults = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    return os.posix_spawn(command[0], command, env, file_actions=actions, setpgroup=0, setsigdef=defaults)


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the process `parent`, which started this one, dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the kernel knew of our wish


def _become_leader(parent: int, log: str, close: Iterable[int]) -> None:
    """First acts of the child, in the order in which they matter."""
    die_with(parent)
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(name, signal.SIG_DFL)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    for descriptor in (target, *close):
        os.close(descriptor)


def kill_group(leader: int) -> None:
    """SIGKILL to the whole group; a group that is gone is no error."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def group_exists(leader: int) -> bool:
    """Whether any process of the group is left, dead but unreaped ones included."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def reap() -> list[Exit]:
    """Collect every child that has ended, without waiting."""
    ended: list[Exit] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append(Exit(pid=pid, status=os.waitstatus_to_exitcode(status)))
