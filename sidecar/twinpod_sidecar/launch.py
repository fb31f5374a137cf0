"""Starts a child that cannot outlive its parent: `python -I -S launch.py PARENT_PID COMMAND...` asks the kernel, then
becomes the command.

A file of its own, run before anything is imported, because the usual place for this (a function between fork and
exec) is not safe in a process with threads, and gRPC has threads. It costs some 15 ms a child.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # the parent died before the kernel knew of the wish
    os.execvp(command[0], command)  # becoming the command is the purpose
