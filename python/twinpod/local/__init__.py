"""Local mode: the circle on one machine. The file to read first.

Theory of operation. `twinpod run FILE --local` starts the very pods that the operator would create, as processes:

    front ── launcher ─┬─ etcd                                TLS, data in the run folder
    (terminal)         ├─ J-master    / master: master        conducts, keeps the books
                       ├─ J-hybrid-0  / inference: sidecar    owns SGLang (standby, engine) and the rollout worker
                       │  (-1, ..)    / trainer: sidecar      owns torchrun and its Megatron ranks
                       └─ P-rollout-0 / inference: sidecar    of a RolloutPool in the same file, 0 or more

1. The manifest is read and checked, the run folder locked, the namespaces made (`isolation`).
2. `twinpod_operator.render` makes the manifests; `manifest` reads them into a plan and refuses what it cannot honour.
3. Every pod gets an address in 127/8 (`addresses`), every container its mounts and a hosts file (`mounts`), every
   process certificates of this start's authorities (`identities`).
4. `pods` leads each pod as the kubelet does; `records.verdict` decides, as in the operator, what a failed pod means.
   Pods of pools stand aside (`pools`): they come and go by `twinpod scale` (`control`) and never touch the job's own.
5. Whatever ends this, nothing stays: signals end pods within their grace, `kill -9` of front or launcher ends all.

State is in the run folder only (`folder`), so the same command goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from twinpod.api.types import RLJob, RolloutPool
from twinpod.errors import EnvironmentFault
from twinpod.local.addresses import ETCD_HOST, claimed_block, hosts_file, pod_address
from twinpod.local.control import Control
from twinpod.local.etcd_server import CLIENT_PORT, PEER_PORT, EtcdServer
from twinpod.local.folder import RunFolder, write_whole
from twinpod.local.identities import write_identities
from twinpod.local.mounts import Volumes, check_memory, needed_paths
from twinpod.local.plan import Pod
from twinpod.local.pods import Place, PodRun
from twinpod.local.pools import Pool
from twinpod.local.rendering import ETCD_NAME, Rendered, RenderedPool, render_locally, render_pool_locally
from twinpod.local.sources import source_claims
from twinpod.records.verdict import Decision, Outcome, Verdict, decide

LEAVE_S = 30.0  # for the other pods to end by themselves after the master has


class Spectator(Protocol):
    """Who watches a run: the live table, plain lines, or nobody."""

    def note(self, line: str) -> None:
        """Something happened that a person wants to know."""
        ...

    async def follow(self) -> None:
        """Shows progress until it is cancelled."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended. `signal` is the number of the signal that stopped it, else 0."""

    decision: Decision
    restarts: int
    signal: int


class Launcher:
    """One start of one job. Life: made in the launcher process of `isolation.isolate()`, then `run()` once."""

    def __init__(
        self,
        job: RLJob,
        folder: RunFolder,
        spectator: Spectator,
        render: Callable[[RLJob, str], Rendered] = render_locally,
        pools: Sequence[RolloutPool] = (),
        render_pool: Callable[[RolloutPool, RLJob, str], RenderedPool] = render_pool_locally,
        modules: Sequence[str] = (),
    ) -> None:
        """`modules`: folders in which the master finds data sets and rewards of the user's."""
        self._modules = tuple(modules)
        self._pool_specs, self._render_pool = tuple(pools), render_pool
        self._job, self._folder, self._spectator, self._render = job, folder, spectator, render
        self._signal = 0
        self._restarts = 0

    async def run(self) -> Ended:
        """Runs the job to its end, to the end of its restarts, or until a signal."""
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        assert this is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop, number, this.cancel)
        try:
            decision = await self._run()
        except asyncio.CancelledError:
            if not self._signal:
                raise
            reason = f"stopped by {signal.Signals(self._signal).name}"
            decision = Decision(verdict=Verdict.FAILED, reason=reason)
        self._note(f"the run {decision.verdict}" + (f": {decision.reason}" if decision.reason else ""), quiet=True)
        return Ended(decision=decision, restarts=self._restarts, signal=self._signal)

    async def _run(self) -> Decision:
        uid = self._folder.uid()
        rendered = self._render(self._job, uid)
        rendered_pools = [self._render_pool(pool, self._job, uid) for pool in self._pool_specs]
        check_memory([*rendered.pods, *(pod for one in rendered_pools for pod in one.pods[: one.replicas])])
        every_pod = (*rendered.pods, *(pod for one in rendered_pools for pod in one.pods))
        with claimed_block([pod.ports for pod in every_pod], (CLIENT_PORT, PEER_PORT)) as block:
            return await self._run_at(block, rendered, rendered_pools, every_pod)

    async def _run_at(
        self, block: str, rendered: Rendered, rendered_pools: Sequence[RenderedPool], every_pod: Sequence[Pod]
    ) -> Decision:
        """Everything of the run, at addresses of that block."""
        configs = {**rendered.configs, **{name: files for one in rendered_pools for name, files in one.configs.items()}}
        place = self._prepare(rendered, every_pod, configs, block)
        pools = self._pools(rendered_pools, place, len(rendered.pods))
        control = Control(self._folder.root, pools, lambda pool, wanted: check_memory(pool.added(wanted)))
        tls, log = self._folder.secrets / "etcd-server", self._folder.logs / "etcd.log"
        etcd = EtcdServer(f"{block}.{ETCD_HOST}", self._folder.etcd, tls, log, self._note)
        await etcd.start()
        following = asyncio.create_task(self._spectator.follow())
        keeping_etcd = asyncio.create_task(etcd.watch())
        helping = [asyncio.create_task(pool.run()) for pool in pools.values()]
        try:
            await control.start()
            return await self._attempts(rendered.pods, rendered.master, place, keeping_etcd)
        finally:
            await control.stop()
            for task in (*helping, following, keeping_etcd):
                task.cancel()
            await asyncio.gather(*helping, following, keeping_etcd, return_exceptions=True)
            await etcd.stop()

    def _pools(self, rendered: Sequence[RenderedPool], place: Callable[[int], Place], first: int) -> dict[str, Pool]:
        """The pools by name; their pods' places begin with the running number `first`."""
        pools: dict[str, Pool] = {}
        for one in rendered:
            places = [place(first + index) for index in range(len(one.pods))]
            pools[one.name] = Pool(one.name, one.pods, places, one.replicas, self._note)
            first += len(one.pods)
        return pools

    def _prepare(
        self, rendered: Rendered, pods: Sequence[Pod], configs: Mapping[str, Mapping[str, str]], block: str
    ) -> Callable[[int], Place]:
        """Writes what containers will see; returns the place of each pod by its running number among `pods`."""
        names: dict[str, tuple[str, ...]] = {f"{block}.{ETCD_HOST}": (ETCD_NAME,)}
        names |= {pod_address(block, index): pod.names for index, pod in enumerate(pods)}
        write_identities(self._folder.secrets, rendered, names, f"{block}.{ETCD_HOST}")
        for config, files in configs.items():
            (self._folder.config / config).mkdir(exist_ok=True)
            for name, text in files.items():
                write_whole(self._folder.config / config / name, text)
        write_whole(self._folder.config / "hosts", hosts_file(names))
        claims = rendered.claims(self._folder.state, self._folder.snapshots) | source_claims(self._job, self._folder)
        volumes = Volumes(self._folder, claims, needed_paths(self._job))
        volumes.lay_ground(pods)
        here = Path.cwd()

        found = os.pathsep.join(self._modules)
        only_master: dict[str, Mapping[str, str]] = {rendered.master: {"TWINPOD_MODULES": found}}

        def place(index: int) -> Place:
            return Place(
                address=pod_address(block, index),
                volumes=volumes,
                logs=self._folder.logs,
                folder=here,
                note=self._note,
                environment=only_master.get(pods[index].name, {}),
            )

        return place

    async def _attempts(
        self, pods: tuple[Pod, ...], master: str, place: Callable[[int], Place], etcd: asyncio.Task[None]
    ) -> Decision:
        while True:
            runs = [PodRun(pod, place(index), self._restarts) for index, pod in enumerate(pods)]
            decision = await self._attempt(runs, master, etcd)
            if decision.verdict is not Verdict.RESTARTS:
                return decision
            self._restarts += 1
            self._note(decision.reason)

    async def _attempt(self, runs: list[PodRun], master: str, etcd: asyncio.Task[None]) -> Decision:
        """Runs all pods until the job has a verdict, then ends those that still run."""
        tasks = {run.pod.name: asyncio.create_task(run.run()) for run in runs}
        outcomes: list[Outcome] = []
        most = self._job.spec.failure_policy.max_restarts
        pending = set(tasks.values())
        try:
            while pending:
                await asyncio.wait({*pending, etcd}, return_when=asyncio.FIRST_COMPLETED)
                if etcd.done():
                    etcd.result()  # raises what is wrong with etcd
                done = {task for task in pending if task.done()}
                outcomes += [task.result() for task in done]
                pending -= done
                decision = decide(outcomes, master, self._restarts, most)
                if decision.verdict is Verdict.SUCCEEDED and pending:
                    await asyncio.wait(pending, timeout=LEAVE_S)
                if decision.verdict is not Verdict.GOES_ON:
                    return decision
            raise EnvironmentFault("every pod ended, but the master was not among them", where=str(self._folder.root))
        finally:
            if self._signal:  # nothing is wrong with them: the master takes a snapshot before the others go
                tasks[master].cancel()
                await asyncio.gather(tasks[master], return_exceptions=True)
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _stop(self, number: int, cancel: Callable[[], bool]) -> None:
        """First signal: end everything within the grace. Second: at once, the kernel kills the namespace."""
        if self._signal:
            os._exit(128 + number)
        self._signal = number
        self._note("stopping: every process gets its grace; once more Ctrl-C kills them")
        cancel()

    def _note(self, line: str, *, quiet: bool = False) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with (self._folder.logs / "run.log").open("a") as log:
            log.write(f"{now} {line}\n")
        if not quiet:
            self._spectator.note(line)
