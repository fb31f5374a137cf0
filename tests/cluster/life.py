"""Up, down, status: the life of a cluster from outside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from tests.cluster import building, control_plane, identities, leftovers, machine, node, services, supervisor
from tests.cluster.api import Api
from tests.cluster.images import image, push
from tests.cluster.layout import (
    DEFAULT_NAME,
    ClusterFault,
    Layout,
    Mode,
    cache,
    choose_layout,
    need_ports,
    read_layout,
    root_of,
    taken_ports,
)
from tests.cluster.node import PAUSE_IMAGE
from tests.cluster.steps import Steps

READY_S, STOP_S, LET_GO_S = 90.0, 60.0, 10.0
KEPT_BY_DOWN = {"registry", "layout.json"}


def check(name: str, mode: Mode, more_gib: int = 0) -> None:
    """ClusterFault for what is lacking and known before anything is built; nothing is lacking to one that runs.

    `more_gib`: disk space that will be gone before it starts, apart from that of its programs.
    """
    known = read_layout(name)
    if mode == "full" and (known is None or not supervisor.running(known)):
        machine.check(root_of(name), more_gib + (0 if building.built(full=True) else building.LEFT_GIB))


def build(name: str, mode: Mode) -> None:
    """Everything that a cluster of the mode is started from."""
    check(name, mode)
    _prepare(Steps(cache() / "logs"), mode)


def _prepare(steps: Steps, mode: Mode) -> None:
    cache().mkdir(parents=True, exist_ok=True)
    if mode == "full":
        machine.prepare(steps)
    building.build(steps, full=mode == "full")


def up(name: str, mode: Mode) -> Layout:
    """Build, start, and return when it is ready. Cleans first what a killed cluster of the name left."""
    check(name, mode)
    steps = Steps(cache() / "logs")
    _prepare(steps, mode)
    with _alone(name):
        known = read_layout(name)
        if known is not None and supervisor.running(known):
            if known.mode != mode:
                raise ClusterFault(
                    f"cluster {name} runs as {known.mode}; stop it first: python -m tests.cluster down --name {name}"
                )
        else:
            known = _start(steps, name, mode)
        if not _wait_ready(steps, known):  # it was ending when it was found
            known = _start(steps, name, mode)
            if not _wait_ready(steps, known):
                raise ClusterFault(
                    f"the supervisor of cluster {name} does not stay; see {known.logs / 'supervisor.log'}"
                )
        furnish(known)
        return known


def furnish(layout: Layout) -> None:
    """What a cluster has from its start; done again, it changes nothing."""
    if layout.full:
        pause = image({"/pause": building.program("pause").read_bytes()}, command=["/pause"], user="65535:65535")
        push(layout.registry, PAUSE_IMAGE, pause)
    api, deadline = Api(layout, "admin"), time.monotonic() + READY_S
    for path, made in services.objects(layout):
        while api.get(f"{path}/{made['metadata']['name']}") is None:
            try:
                api.create(path, made)
                break
            except httpx.HTTPStatusError as error:  # the namespace kube-system comes a moment after the API server
                if error.response.status_code != httpx.codes.NOT_FOUND or time.monotonic() > deadline:
                    raise ClusterFault(f"the API server refuses {path}: {error.response.text}") from None
                time.sleep(0.1)


def _start(steps: Steps, name: str, mode: Mode) -> Layout:
    known = read_layout(name)
    if known is not None:
        leftovers.sweep(known)
    with _locked(root_of(name).parent / "numbers.lock"):  # two new names must not choose the same number
        layout = choose_layout(name, mode)
        _let_go(layout)
        need_ports(layout)
        if layout.full:
            machine.check_space(layout.root)
        layout.write()
    layout.logs.mkdir(parents=True, exist_ok=True)
    identities.make_identities(layout)
    control_plane.write_files(layout)
    if layout.full:
        services.write_files(layout)
        node.write_files(layout)
    process = supervisor.start(layout)
    steps.wait("start the supervisor", lambda: _supervised(layout, process), tick_s=0.05)
    return layout


def _let_go(layout: Layout) -> None:
    """A process that was killed is seen no more before the kernel has closed its sockets: waits a moment for that."""
    deadline = time.monotonic() + LET_GO_S
    while taken_ports(layout, layout.outside) and time.monotonic() < deadline:
        time.sleep(0.05)


def _supervised(layout: Layout, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        log = layout.logs / "supervisor.log"
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ClusterFault(f"the supervisor ended: {' '.join(last)}; its log is {log}")
    return bool(supervisor.running(layout)) and layout.pids.is_dir() and any(layout.pids.iterdir())


def _wait_ready(steps: Steps, layout: Layout) -> bool:
    """False when it has no supervisor any more."""
    deadline = time.monotonic() + READY_S
    missing = ["supervisor"]

    def done() -> bool:
        missing[:] = unready(layout)
        if missing and time.monotonic() > deadline:
            raise ClusterFault(f"not ready after {READY_S:.0f} s: {', '.join(missing)}; logs are in {layout.logs}")
        return missing in ([], ["supervisor"])

    steps.wait("start the cluster", done, lambda: f"waiting for {', '.join(missing)}", tick_s=0.1)
    return not missing


def unready(layout: Layout) -> list[str]:
    """What does not run or answer yet."""
    if not supervisor.running(layout):
        return ["supervisor"]
    wanted = {program.name for program in supervisor.programs_of(layout, "")}
    if found := sorted(name for name in wanted if not (layout.pids / name).exists()):
        return found
    if not supervisor.api_ready(layout):
        return ["API server"]
    return [name for name in layout.nodes if not _node_ready(layout, name)]


def _node_ready(layout: Layout, name: str) -> bool:
    """Whether the node takes pods that ask for devices."""
    api = Api(layout, "admin")
    found = api.get(f"/api/v1/nodes/{name}") or {}
    states = {one["type"]: one["status"] for one in found.get("status", {}).get("conditions", [])}
    return states.get("Ready") == "True" and api.get(f"{services.SLICES}/{name}-{services.DEVICE_DRIVER}") is not None


def down(name: str, *, keep: bool = False) -> None:
    """Stop it. Nothing is left but pushed images and its number; with `keep`, all its data."""
    with _alone(name):
        layout = read_layout(name)
        if layout is None:
            return
        if pid := supervisor.running(layout):
            _end(layout, pid, signal.SIGTERM if keep else signal.SIGKILL)  # what is not kept need not end well
        leftovers.sweep(layout)
        if not keep:
            for path in layout.root.iterdir():
                if path.name not in KEPT_BY_DOWN:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _end(layout: Layout, pid: int, by: signal.Signals) -> None:
    deadline = time.monotonic() + STOP_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, by)
    while supervisor.running(layout):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def status(name: str) -> int:
    """Print what runs. 0 when everything does."""
    layout = read_layout(name)
    if layout is None or not supervisor.running(layout):
        print(f"cluster {name}: down")
        return 1
    missing = unready(layout)
    print(f"cluster {name}: {layout.mode}, {'missing: ' + ', '.join(missing) if missing else 'ready'}")
    print(f"  API server  {layout.server}\n  kubeconfig  {layout.kubeconfig}\n  logs        {layout.logs}")
    for path in sorted(layout.pids.iterdir()):
        print(f"  {path.name:<24} {path.read_text()}")
    return 1 if missing else 0


def fact(name: str, what: str) -> str:
    """`kubeconfig`, `kubectl` or `registry` of a cluster that runs."""
    if what == "kubectl":
        return str(building.program("kubectl"))
    layout = read_layout(name)
    if layout is None or not supervisor.running(layout):
        chosen = "" if name == DEFAULT_NAME else f"TWINPOD_CLUSTER={name} "
        raise ClusterFault(f"cluster {name} does not run; start it: {chosen}make cluster-up")
    return layout.registry if what == "registry" else str(layout.kubeconfig)


def supervise(name: str) -> None:
    """Become the supervisor."""
    layout = read_layout(name)
    assert layout is not None
    supervisor.supervise(layout)


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Only one up or down of a name at a time."""
    root = root_of(name)
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent / f"{name}.lock"):
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
