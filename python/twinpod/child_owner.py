"""Owner of one worker process: starts it, and ends it with everything that it started. Standard library only.

    python -I -S child_owner.py DESCRIPTOR COMMAND...

Standard input is a pipe that nobody writes to; the descriptor is the worker's alone.

Theory of operation. A worker runs code that a user wrote: it may hang, start processes, let them outlive it. The owner
is the *subreaper* of all of them: whatever they leave behind becomes its own child. When the worker ends, or the pipe
does (it was closed, or whoever held it is dead), the owner kills every child that it has until there is none, reaps
them all, and ends with the worker's exit code (128 and the signal's number after a signal). So who started the owner
has one child to wait for, and nothing stays behind, whichever process is killed first.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """See the module; returns the worker's exit code."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = os.getpid()
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != owner:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(sys.argv[2], sys.argv[2:])
    os.close(int(sys.argv[1]))
    ended = os.pidfd_open(worker)
    select.select([0, ended], [], [])
    return _end_all(worker)


def _end_all(worker: int) -> int:
    """Kill and reap until nothing is left; the worker's own exit code, if it ended before we killed it."""
    code = 128 + signal.SIGKILL
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)  # ours until we reap it: the number is nobody else's
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return code
        if pid == worker:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


if __name__ == "__main__":
    sys.exit(main())
