"""First process of a container of local mode: mounts what its plan says, then becomes the container's command.

Runs as `python -I -S entry.py` in fresh mount and PID namespaces, standard library only, with the plan as JSON on
standard input: {"binds": [[source, target, read_only], ...], "keep": [path, ...], "command": [...], "environment":
{...}, "folder": working directory}. A mount may hide what the container needs, for example a checkout below /tmp: the
paths in `keep` are shown again where they were, symbolic links as links to what they led to. Exit code 125 when the
container cannot be made, with the reason on standard error; 127 when its command does not exist.
"""

import contextlib
import ctypes
import json
import os
import sys

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384


def bind(libc: ctypes.CDLL, source: int, target: str, read_only: bool) -> None:
    """Shows what the handle `source` refers to at `target`, which must exist."""
    for flags in (MS_BIND | MS_REC, *((MS_BIND | MS_REMOUNT | MS_RDONLY,) if read_only else ())):
        if libc.mount(f"/proc/self/fd/{source}".encode(), target.encode(), None, flags, None) != 0:
            raise OSError(f"cannot bind to {target}: {os.strerror(ctypes.get_errno())}")


def show_again(libc: ctypes.CDLL, path: str, handle: int) -> None:
    """Shows `path` where it was, if a mount has hidden it."""
    try:
        if os.path.samestat(os.stat(path), os.fstat(handle)):
            return
    except FileNotFoundError:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "a").close()
    bind(libc, handle, path, False)


def link_again(path: str, real: str) -> None:
    """Makes the symbolic link `path` again, if a mount has hidden it."""
    if path != real and not os.path.lexists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another container of the pod was quicker, in a volume of both
            os.symlink(real, path)


def main() -> None:
    """Reads the plan, mounts, and executes; does not return."""
    plan = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        sources = [os.open(source, os.O_PATH) for source, _, _ in plan["binds"]]  # before a mount can hide them
        seen = [(path, os.path.realpath(path)) for path in plan["keep"] if os.path.exists(path)]
        kept = [(real, os.open(real, os.O_PATH)) for real in dict.fromkeys(real for _, real in seen)]
        for source, (_, target, read_only) in zip(sources, plan["binds"], strict=True):
            bind(libc, source, target, read_only)
        for path, handle in kept:
            show_again(libc, path, handle)
        for path, real in seen:
            link_again(path, real)
        os.chdir(plan["folder"])
    except OSError as error:
        print(f"twinpod local: {error}", file=sys.stderr)
        sys.exit(125)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvpe(plan["command"][0], plan["command"], plan["environment"])
    except OSError as error:
        print(f"twinpod local: cannot execute {plan['command'][0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
