"""The inference half acts here: standby, engine, weights and rollout worker, as `machine` decides.

Every act is a task that ends by posting an event; events are taken one at a time, in order. Nothing waits for
anything else, so an engine starts while its weights are fetched and hashed, and a kill never waits for a start. An
engine's tasks are cancelled before it is killed, so no late answer of it is heard.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from twinpod.checkpoint.fetch import Stager
from twinpod.checkpoint.layouts import Layouts
from twinpod.checkpoint.manifest import manifest_path, write_manifest
from twinpod.checkpoint.plan import shards_away
from twinpod.checkpoint.verify import verify_version
from twinpod.errors import EXIT_INPUT, EngineFault, TwinpodError
from twinpod.inference.sglang_engine import EngineSpec
from twinpod.records import codec
from twinpod.records.life import Command, EngineState, HalfKind, HalfStatus, Reply, Verb
from twinpod.records.weights import ServeOrder, ServeRequest, WeightVersion
from twinpod.rpc.errors import reply_error
from twinpod.rpc.ports import free_port
from twinpod_sidecar import machine, nouns
from twinpod_sidecar.children import Child, Children, exit_reason, last_line, oom_kills
from twinpod_sidecar.devices import Devices, until_free
from twinpod_sidecar.engine_group import EngineGroup, engine_specs
from twinpod_sidecar.engine_port import EngineKind
from twinpod_sidecar.nouns import Act, Event, State, Weights
from twinpod_sidecar.service import CommandDispatcher
from twinpod_sidecar.settings import InferenceSettings
from twinpod_sidecar.standby import Standby, why_spawn

log = logging.getLogger(__name__)
FAREWELL_S = 8.0  # for the worker to cut what runs and give it back


class InferenceHalf:
    """Life: made inside the event loop, `run` until it is told to end; `execute` and `status` serve gRPC meanwhile."""

    def __init__(
        self,
        settings: InferenceSettings,
        kind: EngineKind,
        children: Children,
        stager: Stager,
        devices: Devices,
        changed: Callable[[], None],
    ) -> None:
        self._settings, self._kind, self._children, self._changed = settings, kind, children, changed
        self._stager, self._devices = stager, devices
        self._staging: asyncio.Task[None] | None = None
        self._state = State(life=settings.life)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._commands = CommandDispatcher(self._begin, lambda key: self._events.put_nowait(nouns.Expired(key)))
        self._tasks: set[asyncio.Task[None]] = set()
        self._standby: Standby | None = None
        self._running: EngineGroup | None = None
        self._worker: Child | None = None
        self._layouts = Layouts(stager.host)
        self._asked: dict[Weights, tuple[ServeOrder, ServeRequest | None]] = {}  # of the last SERVE commands
        self._staged: dict[Weights, WeightVersion] = {}  # those with fetched shards, as they lie here
        self._seconds = {"start_s": 0.0, "fetch_s": 0.0, "fetch_bytes": 0.0, "verify_s": 0.0, "load_s": 0.0}
        self._leaving = self._ending = False
        self._code = 0  # the half's exit code
        self.dismissed = False  # by EXIT: the run is over
        self._farewell: asyncio.Task[None] | None = None

    async def execute(self, command: Command) -> Reply:
        """See service.Half."""
        return await self._commands.execute(command)

    def status(self) -> HalfStatus:
        """See service.Half."""
        environment, state = self._settings.half.environment, self._state
        serving = state.loaded if state.engine is EngineState.SERVING else None
        return HalfStatus(
            pod=environment.pod,
            kind=HalfKind.INFERENCE,
            address=f"{environment.address}:{self._settings.half.port}",
            state=state.engine.value,
            version=serving.version if serving else 0,
            epoch=self._commands.ledger.epoch,
            pod_attempt=environment.attempt,
            attempt=state.attempt,
            message=state.message,
        )

    def terminate(self) -> None:
        """SIGTERM: the worker gives back what was generated, then everything ends in order, children first."""
        if not self._leaving:
            self._leaving = True
            self._farewell = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        if self._worker is not None:
            await self._worker.stop(FAREWELL_S)
        self._events.put_nowait(nouns.Terminate())

    async def run(self) -> int:
        """Until EXIT or `terminate`; returns the exit code."""
        self._withdraw()
        self._spawn(self._keep_standby(0.0))
        self._spawn(self._keep_worker())
        while not self._ending:
            event = await self._events.get()
            before = self._state
            self._state, acts = machine.step(self._state, event)
            log.info("%s: %s -> %s", type(event).__name__, before.engine.value, self._state.engine.value)
            for act in acts:
                self._perform(act)
            if self._state != before:
                self._changed()
        await self._wind_up()
        return self._code

    def _begin(self, command: Command) -> None:
        """A new command goes to the machine; one that cannot be read is answered at once."""
        weights, away = None, False
        if command.verb is Verb.SERVE:
            try:
                order = codec.loads(ServeOrder, command.argument)
                serving = self._layouts.served(order)
            except TwinpodError as error:
                self._commands.settle(command.key, reply_error(error), retryable=error.retryable)
                return
            weights = Weights(version=order.weights.version, digest=order.weights.digest)
            self._asked = {**dict(list(self._asked.items())[-3:]), weights: (order, serving)}
            away = serving is None or bool(shards_away(serving.weights, self._stager.host))
        self._events.put_nowait(nouns.Ordered(command, weights, away))

    def _perform(self, act: Act) -> None:  # noqa: C901  # one line an act
        match act:
            case nouns.StartStandby(pause_s):
                self._spawn(self._keep_standby(pause_s))
            case nouns.StartEngine(run, pause_s):
                self._start_engine(run, pause_s)
            case nouns.StopEngine(run):
                self._spawn(self._stop_engine(run))
            case nouns.WakeEngine(run):
                self._with_engine(run, self._wake, nouns.EngineUp(run))
            case nouns.ReleaseEngine(run):
                self._with_engine(run, _release, nouns.EngineAsleep(run))
            case nouns.AbortAll(run):
                self._with_engine(run, lambda engine: engine.abort_all(), None)
            case nouns.StageShards(weights):
                self._staging = self._spawn(self._stage(self._asked[weights][0], weights, self._staging))
            case nouns.StopStaging():
                if self._staging is not None:
                    self._staging.cancel()
            case nouns.Prove(weights):
                self._spawn(self._prove(weights))
            case nouns.Load(run, weights):
                self._with_engine(run, lambda engine: self._load(engine, weights), nouns.Loaded(run, weights))
            case nouns.Announce(weights):
                self._announce(weights)
            case nouns.Withdraw():
                self._withdraw()
            case nouns.Answer(command, error, retryable):
                detail = json.dumps(self._seconds) if command.verb is Verb.SERVE and not error else ""
                self.dismissed = self.dismissed or (command.verb is Verb.EXIT and not error)
                self._commands.settle(command.key, error, retryable=retryable, detail=detail)
            case nouns.End():
                self._ending = True

    # ---- standby and worker

    async def _keep_standby(self, pause_s: float) -> None:
        """One life of the standby, told to the machine."""
        await asyncio.sleep(pause_s)
        try:
            standby = Standby.start(self._children, self._settings.standby, self._engine_exited)
        except TwinpodError as error:
            self._events.put_nowait(nouns.StandbyDied(error.line()))
            return
        self._standby = standby
        ready = asyncio.create_task(standby.ready.wait())
        ready.add_done_callback(lambda task: None if task.cancelled() else self._standby_ready(standby))
        ended = await standby.gone()
        ready.cancel()
        await self._children.end_orphans()  # its engines die with it; here that is observed
        running, self._standby, self._running = self._running, None, None
        if running is not None:
            await running.close()
        self._events.put_nowait(nouns.StandbyDied(ended.reason))

    def _standby_ready(self, standby: Standby) -> None:
        log.info("standby ready, imports took %.1f s", standby.imports_s)
        settings, word = self._settings, standby.word
        if settings.engine.accelerators and not word.accelerators:
            log.warning("the job asks for accelerators, and the engine sees none that it knows: one runs on the CPU")
        if reason := why_spawn(word, sleep=settings.engine.sleep):
            cost = f"{standby.imports_s:.0f} s" if word.imported else "some ten seconds and more"
            log.warning("engines are executed anew, not forked: %s; each start pays the imports (%s)", reason, cost)
        self._events.put_nowait(nouns.StandbyReady())

    async def _keep_worker(self) -> None:
        """The rollout worker, started again with back-off whenever it ends: it holds nothing that the master does not
        know.
        """
        failures = 0
        while not self._leaving:
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                self._worker = self._children.start(self._settings.worker)
                ended = await self._worker.wait()
                reason, refused = ended.reason, ended.status == EXIT_INPUT
            except TwinpodError as error:
                reason, refused = error.line(), False
            if self._leaving:
                return
            if refused:
                log.error("%s; no restart mends a wrong input: the half ends", reason)
                self._code = EXIT_INPUT
                self.terminate()
                return
            failures = 1 if loop.time() - began > machine.LONGEST_PAUSE_S else failures + 1
            log.warning("%s; it is started again", reason)
            await asyncio.sleep(machine.pause(failures))

    # ---- engine

    def _start_engine(self, run: int, pause_s: float) -> None:
        settings = self._settings
        # What is there decides, not what was asked for: the trainer beside refuses to go on without a GPU it needs.
        on_device = settings.engine.accelerators and self._standby is not None and self._standby.word.accelerators
        count = settings.engines if on_device or not settings.engine.accelerators else 1
        ports, key = tuple(free_port() for _ in range(count)), secrets.token_urlsafe(24)
        base = replace(settings.engine, accelerators=on_device)
        specs = engine_specs(base, ports, key, seed=settings.seed, run=run)
        urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
        engines = tuple(self._kind.connect(url, key, base.tensor_parallel) for url in urls)
        running = EngineGroup(run, engines, urls, key, oom_kills())
        self._running = running
        running.task = self._spawn(self._bring_up(running, specs, pause_s))

    async def _bring_up(self, running: EngineGroup, specs: list[EngineSpec], pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        began = asyncio.get_running_loop().time()
        settings = self._settings
        try:
            if self._standby is None:
                raise EngineFault("the standby died", where="standby")
            if specs[0].accelerators:
                await until_free(self._devices, settings.hand_over)
            running.start(self._standby, [self._kind.arguments(spec) for spec in specs], settings)
            await running.wait_healthy(settings.start_timeout_s)
        except TwinpodError as error:
            self._events.put_nowait(nouns.EngineFaulty(running.run, reply_error(error)))
            return
        self._seconds["start_s"] = asyncio.get_running_loop().time() - began
        self._events.put_nowait(nouns.EngineUp(running.run))

    async def _wake(self, engine: EngineGroup) -> None:
        await until_free(self._devices, self._settings.hand_over)
        await engine.resume()

    def _engine_exited(self, pid: int, status: int) -> None:
        """One died. Alone, it is gone; others of its start serve no longer and are killed."""
        running = self._running
        if running is None or running.starting is None:
            return
        reason = f"the engine {exit_reason(status, oom=oom_kills() > running.oom_before)}"
        if line := last_line(self._settings.engine_log):
            reason += f"; its last words: {line}"
        if len(running.engines) > 1:
            self._events.put_nowait(nouns.EngineFaulty(running.run, f"EngineFault: {reason}"))
            return
        self._running = None
        self._spawn(running.close())
        self._events.put_nowait(nouns.EngineDied(running.run, reason))

    async def _stop_engine(self, run: int) -> None:
        """Kill them, again and again until they are observed gone; a standby that dies meanwhile has taken them along.

        By then the next standby may have started the next engines: what is done here concerns the old ones only.
        """
        running, standby = self._running, self._standby
        if running is not None and running.run == run:
            await running.close()
            if running.starting is not None:
                await asyncio.wait([running.starting])
            while running.pids and standby is not None and self._standby is standby:
                try:
                    await standby.kill(running.pids[-1])
                    running.pids.pop()
                except TwinpodError as error:
                    log.error("engine not gone: %s", error)  # noqa: TRY400  # its line says it all
                    await asyncio.sleep(machine.pause(2))
            if self._running is running:
                self._running = None
        self._events.put_nowait(nouns.EngineGone(run))

    def _with_engine(
        self, run: int, act: Callable[[EngineGroup], Coroutine[Any, Any, object]], done: Event | None
    ) -> None:
        running = self._running
        if running is None or running.run != run:
            return  # it died: the machine hears of that by itself

        async def task() -> None:
            try:
                await act(running)
            except TwinpodError as error:
                self._events.put_nowait(nouns.EngineFaulty(run, reply_error(error)))
                return
            if done is not None:
                self._events.put_nowait(done)

        running.task = self._spawn(task())

    async def _stage(self, order: ServeOrder, weights: Weights, before: asyncio.Task[None] | None) -> None:
        """Fetch, after the staging `before` it has wound up."""
        if before is not None:
            await asyncio.wait([before])
        try:
            serving = await self._layouts.ask(order, self._stager.carrier)
            staging = await self._stager.stage(serving)
        except TwinpodError as error:
            self._events.put_nowait(nouns.StagingFailed(weights, reply_error(error), error.retryable))
            return
        self._seconds |= {"fetch_s": staging.seconds, "fetch_bytes": float(staging.nbytes)}
        self._staged = {**dict(list(self._staged.items())[-1:]), weights: staging.version}
        self._events.put_nowait(nouns.Staged(weights))

    def _version(self, weights: Weights) -> WeightVersion:
        """The version as its shards lie in this pod."""
        serving = self._asked[weights][1]
        assert serving is not None or weights in self._staged, "only what is here is staged by nobody"
        return self._staged[weights] if serving is None or weights in self._staged else serving.weights

    async def _prove(self, weights: Weights) -> None:
        version = self._version(weights)
        try:
            proof = await asyncio.to_thread(verify_version, version)
        except TwinpodError as error:
            self._events.put_nowait(nouns.Disproved(weights, reply_error(error), error.retryable))
            return
        if weights not in self._staged:
            self._seconds |= {"fetch_s": 0.0, "fetch_bytes": 0.0}
        self._seconds["verify_s"] = proof.seconds
        self._stager.offers.offer(version.version, version.shards)
        self._events.put_nowait(nouns.Proved(weights))

    async def _load(self, engine: EngineGroup, weights: Weights) -> None:
        version, folder = self._version(weights), self._settings.half.environment.shm
        if self._standby is None:
            raise EngineFault("the standby died", where="standby")
        digest = write_manifest(folder, version)
        payload = await self._standby.payload(manifest_path(folder, version.version), digest)
        await engine.abort_all()
        self._seconds["load_s"] = await engine.load(payload, version.version)

    def _announce(self, weights: Weights) -> None:
        assert self._running is not None, "an engine that serves is running"
        note = {"urls": self._running.urls, "api_key": self._running.api_key, "version": weights.version}
        part = self._settings.engine_file.with_suffix(".part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(note, file)
        part.rename(self._settings.engine_file)

    def _withdraw(self) -> None:
        self._settings.engine_file.unlink(missing_ok=True)

    async def _wind_up(self) -> None:
        """Children first; the standby takes what it forked along."""
        self._withdraw()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stager.close()
        await self._children.stop_all(self._settings.half.grace_s / 2)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.critical("a task of the half failed; ending", exc_info=error)
            self.terminate()


async def _release(engine: EngineGroup) -> None:
    await engine.abort_all()
    await engine.release()
