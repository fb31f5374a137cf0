"""The conductor: one run from its start to its end, one iteration after the other. Read `run`, then `_iterate`: they
are the circle.

    resume ─► serve ─► generate ─► rest ─► train ─► publish ∥ prepare ─► snapshot ─► make way ─► commit ─► ... finish

Promises. The order of a commit is snapshot (if due), books, etcd (design 8.4): a master killed anywhere resumes from
the books with nothing lost and nothing done twice. Nothing here is remembered that the books do not know, except the
shards of the newest version, which a resume publishes again. An error of a half ends the run with that error; who
starts the master again resumes it. A master that is told to leave takes a snapshot of what is committed first, so that
a planned stop costs no iteration.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from twinpod.errors import NumericsError, WeightsGapError
from twinpod.master import books_read as read
from twinpod.master import books_settings, replay_buffer
from twinpod.master.archiving import Archive
from twinpod.master.batch_server import BatchServer
from twinpod.master.books import Books, Resume
from twinpod.master.dispatcher import Dispatcher
from twinpod.master.halves import Order
from twinpod.master.progress import PhaseTimer, Reporter
from twinpod.master.prompts import PromptSource
from twinpod.master.registry import Registry
from twinpod.master.rewards import Judge
from twinpod.master.settings import MasterSettings
from twinpod.master.sinks import AsyncBooks, EvaluationSink, TrainingSink
from twinpod.master.snapshots import prune, snapshot_folder
from twinpod.master.takeover import EPOCH_TRIES
from twinpod.master.weight_sync import WeightSync
from twinpod.master.work_buffer import Rules, WorkBuffer
from twinpod.master.worker_group import WorkerGroup
from twinpod.records import codec
from twinpod.records.life import LONGEST_ORDER_S, Verb
from twinpod.records.run import IterationRecord
from twinpod.records.training import BatchPlan, TrainStats
from twinpod.replay.policy import plan_batch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that the conductor conducts, wired in `__main__` and in tests."""

    settings: MasterSettings
    async_books: AsyncBooks
    registry: Registry
    workers: WorkerGroup
    dispatcher: Dispatcher
    batches: BatchServer
    archive: Archive
    source: PromptSource
    judge: Judge
    reporter: Reporter
    snapshots: Path
    committed: Callable[[IterationRecord], None]  # told of every commit: curves for people
    clock: Callable[[], float]  # monotonic seconds
    wall: Callable[[], float]  # unix seconds


class Conductor:
    """Life: `run` once. Invariant: `_weights.current` is what the books' newest surviving version says."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._s = parts.settings
        self._epoch = 0
        self._line = 1
        self._weights = WeightSync(
            parts.workers, parts.registry, parts.reporter, moves_memory=parts.settings.moves_memory
        )
        self._served = ""  # what the engines said they served at the end of the rollout phase, for an error's line
        self._iterating = self._leaving = False
        self._sink: TrainingSink | None = None  # of the rollout phase under way

    @property
    def epoch(self) -> int:
        """The job epoch that this master has taken; 0 before."""
        return self._epoch

    def leave(self) -> bool:
        """End soon: rollouts are cut short, an iteration beyond them is committed. False when nothing is to be kept."""
        if self._leaving or not self._iterating:
            return False
        self._leaving = True
        self._p.dispatcher.close()
        if self._sink:
            self._sink.give_up()
        return True

    async def run(self) -> bool:
        """From where the books stand to `Succeeded`; False when it has left before."""
        try:
            start = await self._take_over()
            self._iterating = True
            for iteration in range(start.iteration + 1, self._s.iterations + 1):
                if self._leaving or not await self._iterate(iteration):
                    await self._keep(iteration)
                    return False
            self._iterating = False
            if not self._leaving:
                await self._finish()
            return not self._leaving
        finally:
            await self._p.archive.close()
            await self._weights.close()

    # -- start

    async def _take_over(self) -> Resume:
        """Next epoch, books rolled back to their newest snapshot, weights into the trainer and out again."""
        p = self._p
        self._epoch = await p.registry.take_epoch(p.async_books.books.epoch, EPOCH_TRIES)
        p.dispatcher.epoch = p.batches.epoch = p.workers.epoch = self._weights.epoch = self._epoch
        await p.async_books.do(lambda books: books.begin_epoch(self._epoch))
        resume = await p.async_books.do(lambda books: books.resume(lambda folder: Path(folder).is_dir()))
        self._line = resume.line
        taken = await self._take_settings()
        log.info(
            "resumes" if resume.newest_version else "begins",
            extra={"iteration": resume.iteration, "rolled_back": resume.rolled_back},
        )
        p.reporter.history(await p.async_books.do(lambda books: read.iterations(books.connection)))
        p.reporter.versions(self._epoch, resume.version)
        await p.reporter.phase("start", iteration=resume.iteration + 1, state="Starting", waiting_for="pods")
        await p.workers.gather(p.reporter.wait)
        same = resume.version == resume.newest_version and not taken.drawn_anew
        version = max(1, resume.version if same else resume.newest_version + 1)
        await p.reporter.phase("load", iteration=resume.iteration + 1, waiting_for="trainer")
        argument = json.dumps({"snapshot": resume.snapshot, "version": version})
        await p.workers.train(
            Order(verb=Verb.ONLOAD, iteration=resume.iteration, version=version, argument=argument, mark="load")
        )
        timer = PhaseTimer(p.clock)
        await self._weights.publish(timer, resume.iteration, version)
        await self._weights.make_way(timer, resume.iteration)
        now = self._weights.current
        await p.async_books.do(lambda books: books.record_version(version, resume.iteration, now.digest, now.layout))
        await p.async_books.do(lambda books: books_settings.keep(books, self._s.recorded))
        await self._weights.announce()
        return resume

    async def _take_settings(self) -> books_settings.Taken:
        """What was changed while the run was stopped, and what waits made fit for it."""
        s = self._s
        taken = await self._p.async_books.do(
            lambda books: books_settings.take(books, s.recorded, s.sampling.max_tokens)
        )
        for one in taken.changes:
            log.info("changed while stopped", extra={"field": one.path, "old": one.old, "new": one.new})
        if taken.ended:
            log.info("saved answers are as long as they may be", extra={"answers": taken.ended})
        return taken

    # -- one iteration

    async def _iterate(self, iteration: int) -> bool:
        """The circle, once; False when its rollout phase was cut short to leave."""
        timer = PhaseTimer(self._p.clock)
        async with self._p.workers.helped(self._weights.current, iteration):
            await self._serve(timer, iteration)
            groups = await self._generate(timer, iteration)
        if self._leaving:
            return False
        await self._rest(timer, iteration)
        batch = await self._plan(iteration, groups)
        stats = None
        if batch.samples:
            try:
                stats = await self._train(timer, iteration, batch)
            except NumericsError:  # the same samples would end the next try the same way
                await self._p.async_books.do(lambda books: books.drop(groups, "not_finite"))
                raise
            await self._weights.publish(timer, iteration, batch.version + 1)
        else:
            log.warning("no group finished: nothing to train on", extra={"iteration": iteration})
        snapshot = await self._snapshot(timer, iteration)
        if iteration < self._s.iterations or not self._s.moves_memory:  # else the export comes next, where they are
            await self._weights.make_way(timer, iteration)
        await self._commit(timer, iteration, batch, groups, stats, snapshot)
        return True

    async def _keep(self, iteration: int) -> None:
        """What was committed since the newest snapshot becomes one, in place of the iteration that is not to be."""
        reporter, timer = self._p.reporter, PhaseTimer(self._p.clock)
        if not reporter.done or reporter.done[-1].snapshot:
            return
        await self._rest(timer, iteration)
        last = replace(reporter.done[-1], snapshot=await self._snapshot(timer, iteration - 1))
        await self._p.async_books.do(lambda books: books.keep_snapshot(last.iteration, last.snapshot))
        reporter.history([*reporter.done[:-1], last])

    async def _serve(self, timer: PhaseTimer, iteration: int) -> None:
        """The engines of hybrid pods take the newest version; one that cannot ends the run."""
        await self._p.reporter.phase("serve", iteration=iteration, waiting_for="engines")
        with timer.spend("switch"):
            loading = await self._p.workers.serve(self._weights.current, iteration)
        timer.move("switch", "weights", loading)

    async def _generate(self, timer: PhaseTimer, iteration: int) -> tuple[int, ...]:
        """The rollout phase; returns the groups that make the batch."""
        p, s = self._p, self._s
        await p.reporter.phase("generate", iteration=iteration, waiting_for="rollout workers")
        with timer.spend("generate"):
            await p.async_books.do(lambda books: replay_buffer.retire(books, iteration, s.max_segment_age))
            version = self._weights.current.version
            rules = self._rules(s.groups_per_iteration, s.groups_in_flight)
            buffer = WorkBuffer(rules=rules, epoch=self._epoch, iteration=iteration, version=version)
            async with TrainingSink(p.async_books, p.judge, p.source, size=s.group_size, iteration=iteration) as sink:
                self._sink = sink
                if left := await p.async_books.do(replay_buffer.left_unscored):
                    sink.judge(left)
                    await sink.drain()
                await p.async_books.do(lambda books: replay_buffer.lay_out(books, buffer, iteration))
                await p.dispatcher.run(buffer, sink, p.workers, p.reporter.groups)
                self._served = await p.workers.versions()
            self._sink = None
            if self._leaving:
                return ()
            return await p.async_books.do(lambda books: replay_buffer.pick(books, s.groups_per_iteration))

    async def _rest(self, timer: PhaseTimer, iteration: int) -> None:
        """Engines free what the trainer needs, then it takes its memory back."""
        await self._p.reporter.phase("rest", waiting_for="engines")
        with timer.spend("switch"):
            await self._p.workers.rest(iteration)
            if self._s.moves_memory:
                await self._p.workers.train(Order(verb=Verb.ONLOAD, iteration=iteration))

    async def _plan(self, iteration: int, group_ids: tuple[int, ...]) -> BatchPlan:
        scored = await self._p.async_books.do(lambda books: read.scored(books.connection, group_ids))
        return plan_batch(
            scored,
            iteration=iteration,
            version=self._weights.current.version,
            baseline=self._s.baseline,
            tau=self._s.tau,
            size=self._s.group_size,
            mini_batches=self._s.mini_batches,
        )

    async def _train(self, timer: PhaseTimer, iteration: int, batch: BatchPlan) -> TrainStats:
        """The training phase; WeightsGapError when the engine's log-probs are not the trainer's (design 8.11)."""
        p = self._p
        await p.reporter.phase("train", waiting_for="trainer")
        p.batches.lay(batch)
        with timer.spend("train"):
            reply = await p.workers.train(
                Order(verb=Verb.TRAIN, iteration=iteration, version=batch.version, deadline_s=86_400)
            )
        p.batches.lay(None)
        stats = codec.loads(TrainStats, reply.detail)
        if stats.weights_gap > self._s.weights_gap_limit:  # false for nan: no on-policy token
            raise WeightsGapError(
                f"mean |logp trainer - logp engine| is {stats.weights_gap:.3g} over {stats.on_policy_tokens} tokens,"
                f" the limit is {self._s.weights_gap_limit:.3g}: the trainer holds version {batch.version},"
                f" the engines served {self._served}",
                where=f"iteration {iteration}",
            )
        return stats

    async def _snapshot(self, timer: PhaseTimer, iteration: int) -> str:
        """A durable snapshot when one is due; its folder, or "". The books name it before anyone relies on it."""
        due = iteration % self._s.snapshot_every == 0 or iteration == self._s.iterations
        if not due and not self._leaving:
            return ""
        await self._p.reporter.phase("snapshot", waiting_for="trainer")
        folder = snapshot_folder(self._p.snapshots, iteration, self._epoch)
        with timer.spend("snapshot"):
            order = Order(verb=Verb.SNAPSHOT, iteration=iteration, argument=folder, deadline_s=LONGEST_ORDER_S)
            await self._p.workers.train(order)
        return folder

    async def _commit(
        self,
        timer: PhaseTimer,
        iteration: int,
        batch: BatchPlan,
        groups: tuple[int, ...],
        stats: TrainStats | None,
        snapshot: str,
    ) -> None:
        """Books in one transaction, then etcd; snapshots that no resume will ask for are removed."""
        p = self._p
        await p.reporter.phase("commit")
        digest = self._weights.current.digest
        blank = self._record(timer, iteration, batch, len(groups), stats, snapshot)

        def act(books: Books) -> IterationRecord:
            db = books.connection
            record = replace(
                blank, right=read.right_share(db, groups), tokens_generated=read.generated_in(db, iteration)
            )
            books.commit(record, groups, digest)
            return record

        record = await p.async_books.do(act)
        p.reporter.history([*p.reporter.done, record])
        await asyncio.to_thread(p.committed, record)
        await self._weights.announce()
        told = {"reward": record.reward, "right": record.right, "seconds": record.seconds.total}
        log.info("iteration committed", extra={"iteration": iteration, "version": record.version, **told})
        if snapshot:
            earlier = (
                Path(one.snapshot).name for one in p.reporter.done[:-1][-self._s.snapshot_every :] if one.snapshot
            )
            prune(p.snapshots, {Path(snapshot).name, *earlier})
        p.archive.start(iteration, [one.iteration for one in p.reporter.done if one.snapshot])

    def _record(
        self, timer: PhaseTimer, iteration: int, batch: BatchPlan, groups: int, stats: TrainStats | None, snapshot: str
    ) -> IterationRecord:
        """What is known of an iteration before its transaction; `right` and `tokens_generated` are read within it."""
        return IterationRecord(
            iteration=iteration,
            line=self._line,
            epoch=self._epoch,
            version=self._weights.current.version,
            snapshot=snapshot,
            groups=groups,
            samples=len(batch.samples),
            reward=_mean([sample.reward for sample in batch.samples]),
            right=math.nan,
            length=_mean([float(sample.generated) for sample in batch.samples]),
            tokens_generated=0,
            tokens_trained=stats.tokens if stats else 0,
            loss=stats.loss if stats else math.nan,
            weights_gap=stats.weights_gap if stats else math.nan,
            stats=codec.dumps(stats) if stats else "",
            seconds=timer.seconds(),
            committed_at=self._p.wall(),
            rolled_back=False,
        )

    # -- the end

    async def _finish(self) -> None:
        """Export, evaluate on held-out prompts, let the halves go, close the books. The model is safe first."""
        p, last = self._p, self._s.iterations
        await p.reporter.phase("export", iteration=last + 1, state="Finishing", waiting_for="trainer")
        if self._s.moves_memory:
            await p.workers.rest(last + 1, mark="export")
            await p.workers.train(Order(verb=Verb.ONLOAD, iteration=last + 1))
        order = Order(
            verb=Verb.EXPORT, iteration=last + 1, argument=str(p.snapshots / "export"), deadline_s=LONGEST_ORDER_S
        )
        await p.workers.train(order)
        if p.source.held_out:
            if self._s.moves_memory:
                await self._weights.make_way(PhaseTimer(p.clock), last + 1)
            await self._evaluate(last + 1)
        await p.archive.settle()
        await p.reporter.phase("done", state="Succeeded")
        await p.reporter.tell()
        await p.workers.dismiss(last + 1)

    async def _evaluate(self, iteration: int) -> None:
        """Greedy answers to the held-out prompts, by the way that rollouts take."""
        p = self._p
        sink = EvaluationSink(p.judge, p.source.held_out)
        await p.reporter.phase("evaluate", waiting_for="engines")
        rules = self._rules(len(sink.groups), len(sink.groups))
        greedy = replace(rules.sampling, temperature=0.0, top_p=1.0, segment_tokens=rules.sampling.max_tokens)
        buffer = WorkBuffer(
            rules=replace(rules, sampling=greedy, begins=False),
            epoch=self._epoch,
            iteration=iteration,
            version=self._weights.current.version,
        )
        for group in sink.groups:
            buffer.admit(group, {})
        async with sink, p.workers.helped(self._weights.current, iteration):
            await p.workers.serve(self._weights.current, iteration)
            await p.dispatcher.run(buffer, sink, p.workers, p.reporter.groups)
        if unanswered := sink.give_up_unanswered():
            log.warning("held-out prompts that no engine answered count as wrong", extra={"prompts": unanswered})
            await p.async_books.do(lambda books: books.count("held_out_unanswered", unanswered))
        await p.async_books.do(lambda books: books.record_evaluation(iteration - 1, sink.answers))
        right = sum(answer.correct for answer in sink.answers) / len(sink.answers) if sink.answers else math.nan
        log.info("evaluated", extra={"prompts": len(sink.answers), "right": right})
        await p.workers.rest(iteration)

    def _rules(self, wanted: int, in_flight: int) -> Rules:
        return Rules(wanted=wanted, in_flight=in_flight, sampling=self._s.sampling, seed=self._s.seed)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
