"""The life of one pod on this machine, as the kubelet leads it.

Theory of operation. Sidecars (init containers with restartPolicy Always) start first, in order, each waited for by its
startup probe; a sidecar that ends is started again after a pause that doubles. Then the other init containers run to
their ends, one by one. Then all containers start; with restartPolicy Never each runs once. When the last has ended the
sidecars get SIGTERM, the last started first. The pod has succeeded if every container ended with 0. `stop()` may come
at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twinpod.errors import EXIT_INPUT
from twinpod.local.etcd_server import last_line
from twinpod.local.mounts import Volumes
from twinpod.local.plan import Container, Pod
from twinpod.local.probes import until_failed, until_passed
from twinpod.local.processes import Process, start_isolated
from twinpod.records.verdict import Outcome

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
AFTER_A_GOOD_END_S = 10.0  # the kubelet's own first pause
MOST_STARTS_WITHOUT_SUCCESS = 5  # of a sidecar; Kubernetes would go on for ever, a person at a terminal wants to know


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a pod runs: what every pod of a run has in common, and its own address."""

    address: str
    volumes: Volumes
    logs: Path
    folder: Path  # working directory of containers without one
    note: Callable[[str], None]  # tells a person what happened
    environment: Mapping[str, str] = field(default_factory=dict)  # besides what the manifest says


class PodRun:
    """One start of one pod. Life: `run()` once; `stop()` ends it early."""

    def __init__(self, pod: Pod, place: Place, attempt: int) -> None:
        self.pod, self._place, self._attempt = pod, place, attempt
        self._processes: dict[str, Process] = {}  # the newest process of each container, in order of their first starts
        self._tasks: list[asyncio.Task[None]] = []
        self._sidecar_trouble: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.sidecar_restarts = 0

    async def run(self) -> Outcome:
        """Runs the pod to its end."""
        self._place.volumes.renew(self.pod)
        work = asyncio.create_task(self._work())
        try:
            done, _ = await asyncio.wait({work, self._sidecar_trouble}, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            await self.stop()

    async def stop(self) -> None:
        """Ends everything of the pod: containers within the grace, then sidecars, the last started first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        sidecars = [container.name for container in self.pod.sidecars]
        ordinary = [process for name, process in self._processes.items() if name not in sidecars]
        await asyncio.gather(*(process.stop(grace_s=self.pod.grace_s) for process in ordinary))
        for name in reversed(sidecars):
            if name in self._processes:
                await self._processes[name].stop(grace_s=self.pod.grace_s)
        self._processes.clear()

    async def _work(self) -> Outcome:
        for sidecar in self.pod.sidecars:
            started = asyncio.Event()
            self._tasks.append(asyncio.create_task(self._keep(sidecar, started)))
            await started.wait()
        for step in self.pod.steps:
            if code := await self._once(step):
                return self._outcome(step, code)
        codes = await asyncio.gather(*(self._once(container) for container in self.pod.containers))
        failed = [(container, code) for container, code in zip(self.pod.containers, codes, strict=True) if code]
        return self._outcome(*failed[0]) if failed else Outcome(pod=self.pod.name, code=0, reason="")

    async def _once(self, container: Container) -> int:
        """Starts a container and returns its exit code; one that fails a probe is ended first."""
        process = await self._start(container)
        guard = asyncio.create_task(self._guard(container, process))
        try:
            return await process.wait()
        finally:
            guard.cancel()

    async def _guard(self, container: Container, process: Process) -> None:
        if container.startup and not await until_passed(container.startup, self._place.address):
            self._place.note(f"{self.pod.name}/{container.name}: startup probe failed, ending it")
            await process.stop(grace_s=self.pod.grace_s)
        elif container.liveness:
            await until_failed(container.liveness, self._place.address)
            self._place.note(f"{self.pod.name}/{container.name}: liveness probe failed, ending it")
            await process.stop(grace_s=self.pod.grace_s)

    async def _keep(self, sidecar: Container, started: asyncio.Event) -> None:
        """Keeps a sidecar running; sets `started` when its startup probe has passed, and reports trouble when it never
        does.
        """
        in_vain = 0
        while True:
            process = await self._start(sidecar)
            waiting = asyncio.create_task(process.wait())
            passed = asyncio.create_task(self._started(sidecar))
            try:
                await asyncio.wait({waiting, passed}, return_when=asyncio.FIRST_COMPLETED)
                if passed.done() and passed.result() and not waiting.done():
                    in_vain = 0
                    started.set()
                    guard = asyncio.create_task(self._guard_live(sidecar, process))
                    try:
                        await asyncio.wait({waiting})
                    finally:
                        guard.cancel()
                elif not waiting.done():
                    await process.stop(grace_s=self.pod.grace_s)
                code = await waiting
            finally:
                passed.cancel()
                waiting.cancel()
            in_vain += 1
            self.sidecar_restarts += 1
            outcome = self._outcome(sidecar, code)
            if in_vain > MOST_STARTS_WITHOUT_SUCCESS or code == EXIT_INPUT:
                if not self._sidecar_trouble.done():
                    self._sidecar_trouble.set_result(outcome)
                return
            if code == 0:  # it was told to end, and so, most likely, was the rest of the pod
                await asyncio.sleep(AFTER_A_GOOD_END_S)
                continue
            self._place.note(f"{outcome.reason}; starting it again")
            await asyncio.sleep(BACKOFF_S[min(in_vain - 1, len(BACKOFF_S) - 1)])

    async def _started(self, container: Container) -> bool:
        return container.startup is None or await until_passed(container.startup, self._place.address)

    async def _guard_live(self, container: Container, process: Process) -> None:
        if container.liveness:
            await until_failed(container.liveness, self._place.address)
            self._place.note(f"{self.pod.name}/{container.name}: liveness probe failed, ending it")
            await process.stop(grace_s=self.pod.grace_s)

    async def _start(self, container: Container) -> Process:
        log = self._log(container)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with log.open("a") as file:
            file.write(f"--- {now} {self.pod.name}/{container.name} starts, attempt {self._attempt}\n")
        process = await start_isolated(
            container.command,
            environment={**base_environment(), **self._place.environment, **dict(container.environment)},
            sight=self._place.volumes.sight(self.pod, container),
            folder=container.folder or str(self._place.folder),
            log=log,
        )
        self._processes[container.name] = process
        return process

    def _log(self, container: Container) -> Path:
        return self._place.logs / f"{self.pod.name}.{container.name}.log"

    def _outcome(self, container: Container, code: int) -> Outcome:
        log = self._log(container)
        reason = f"{self.pod.name}/{container.name} {how_it_ended(code, last_line(log))} (log: {log})"
        return Outcome(pod=self.pod.name, code=code, reason=reason)


def how_it_ended(code: int, last: str) -> str:
    """In words. `unshare` cannot end by SIGKILL as its child did: it complains and exits with 1. Pure."""
    if code == -signal.SIGKILL or (code == 1 and last.startswith("unshare: sigprocmask")):
        return "was killed (SIGKILL: kill -9, or the machine ran out of memory)"
    how = f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
    return f"{how}: {last}"


def base_environment() -> dict[str, str]:
    """What an image would bring: this checkout's Python first, one OpenMP thread a process (small machines thrash
    otherwise), and the modules that the caller's PYTHONPATH names.
    """
    here, path = Path(sys.executable).parent, os.environ.get("PYTHONPATH")
    return {
        "PATH": f"{here}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        **({"PYTHONPATH": path} if path else {}),
    }
