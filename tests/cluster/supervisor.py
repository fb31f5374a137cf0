"""The process that owns a cluster's processes.

Theory of operation. One supervisor a cluster, in the background, single-threaded, woken by signals only. It starts the
programs level by level, starts again what ends, and on SIGTERM stops everything in the opposite order. A file in
`held/` named like a program keeps that program stopped (SIGUSR1 makes it look); a file in `pids/` tells who runs. Its
children die with it (parent-death signal), and so do the namespaces that it holds open: after a kill -9 nothing is left
but containers and their shims, and `leftovers.sweep` finds those by their environment and control groups.
"""

from __future__ import annotations

import fcntl
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence

from tests.cluster import control_plane, node, services, spaces
from tests.cluster.layout import TOP, ClusterFault, Layout, cache
from tests.cluster.programs import Program, wrapped

WAKE_S = 2.0
LOCK_S = 2.0
GATE_WAKE_S = 0.1
BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0  # a program that ran so long starts its back-off anew
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


class Child:
    """A program and its process, if it runs. Life: started, ended, started again; none while its file is in `held/`."""

    def __init__(self, program: Program, layout: Layout) -> None:
        self.program, self._layout = program, layout
        self._process: subprocess.Popen[bytes] | None = None
        self._began, self._failures, self._next = 0.0, 0, 0.0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def held(self) -> bool:
        return (self._layout.held / self.program.name).exists()

    def tend(self, now: float, spaces: dict[str, Sequence[str]]) -> None:
        """Start it if it should run and its back-off is over; kill it if it is held."""
        if self._process is not None and self._process.poll() is not None:
            self._ended(now, self._process.returncode)
        if self.held:
            self._failures, self._next = 0, 0.0
            if self.running:
                self.signal(signal.SIGKILL)
        elif self._process is None and now >= self._next:
            self._start(now, spaces)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _start(self, now: float, spaces: dict[str, Sequence[str]]) -> None:
        key, _, value = self._layout.marker.partition("=")
        environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "HOME": str(self._layout.root)}
        environment |= {"LANG": "C.UTF-8", "TWINPOD_CACHE": str(cache()), **self.program.environment, key: value}
        with open(self._layout.logs / f"{self.program.name}.log", "ab") as log:
            self._process = subprocess.Popen(
                wrapped(self.program, spaces),
                cwd=TOP,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_unblock_signals,  # noqa: PLW1509  # this process has one thread
            )
        self._began = now
        (self._layout.pids / self.program.name).write_text(str(self._process.pid))

    def _ended(self, now: float, code: int) -> None:
        (self._layout.pids / self.program.name).unlink(missing_ok=True)
        if now - self._began > STEADY_S:
            self._failures = 0
        self._next = now + BACK_OFF_S[min(self._failures, len(BACK_OFF_S) - 1)]
        self._failures += 1
        self._process = None
        print(f"{time.strftime('%H:%M:%S')} {self.program.name} ended with {code}", flush=True)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Supervisor:
    """Life: `run`, until SIGTERM."""

    def __init__(
        self,
        layout: Layout,
        programs: Sequence[Program],
        gates: dict[int, Callable[[], bool]],
        spaces: dict[str, Sequence[str]],
    ) -> None:
        self._layout, self._gates, self._spaces = layout, gates, spaces
        self._children = [Child(program, layout) for program in programs]

    def run(self) -> None:
        """Signals must be blocked by the caller already, so that none is lost before the first wait."""
        level, last = 0, max(child.program.level for child in self._children)
        while True:
            now = time.monotonic()
            while level < last and self._gates.get(level, lambda: True)():
                level += 1
            for child in self._children:
                if child.program.level <= level:
                    child.tend(now, self._spaces)
            received = signal.sigtimedwait(SIGNALS, WAKE_S if level == last else GATE_WAKE_S)
            if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._stop()
                return

    def _stop(self) -> None:
        for level in sorted({child.program.level for child in self._children}, reverse=True):
            here = [child for child in self._children if child.program.level == level]
            for child in here:
                child.signal(signal.SIGTERM)
            deadline = time.monotonic() + max(child.program.stop_s for child in here)
            while any(child.running for child in here) and time.monotonic() < deadline:
                signal.sigtimedwait(SIGNALS, 0.1)
            for child in here:
                child.signal(signal.SIGKILL)
                (self._layout.pids / child.program.name).unlink(missing_ok=True)


def hold_lock(layout: Layout) -> int:
    """The file that tells of a supervisor, locked until this process ends. ClusterFault when another one has it."""
    lock = os.open(layout.root / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_S  # one who only asks whether a supervisor runs holds it for a moment
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ClusterFault(f"cluster {layout.name} has a supervisor already") from None
            time.sleep(0.01)
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def running(layout: Layout) -> int:
    """Process number of the supervisor, 0 when there is none."""
    try:
        lock = os.open(layout.root / "supervisor.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(lock, 20) or b"0")
    finally:
        os.close(lock)
    return 0


def api_ready(layout: Layout, timeout_s: float = 2.0) -> bool:
    """Whether the API server answers that it is ready, over the way that the administrator takes."""
    try:
        context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
        direct = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*direct).open(f"{layout.server}/readyz", timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def start(layout: Layout) -> subprocess.Popen[bytes]:
    """A supervisor in the background, with a log of its own."""
    with open(layout.logs / "supervisor.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.cluster", "supervise", "--name", layout.name],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def supervise(layout: Layout) -> None:
    """The whole life of a supervisor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    _lock = hold_lock(layout)  # first: these files are another supervisor's, if there is one
    for folder in (layout.pids, layout.held):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
    opened = spaces.make_spaces(layout) if layout.full else {}
    enter = {name: space.enter for name, space in opened.items()}
    control_namespace = opened["control"].files["net"] if opened else ""
    Supervisor(layout, programs_of(layout, control_namespace), {0: lambda: api_ready(layout)}, enter).run()


def programs_of(layout: Layout, control_namespace: str) -> list[Program]:
    """All programs of a cluster. `control_namespace`: a path that opens its network namespace, if it has one."""
    found = control_plane.programs(layout)
    if layout.full:
        found += services.programs(layout, control_namespace)
        found += [one for name in layout.nodes for one in node.programs(layout, name)]
    return found
