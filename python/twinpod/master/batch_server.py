"""The training batch on its way from the books to the ranks.

Theory of operation. The conductor lays a plan: which trajectories, with which advantages, a few numbers each. A rank
asks with its place among the ranks; all ranks say the same layout, so the plan is divided once. Its samples are then
read from the books one after the other, in a thread and over a connection of their own, and leave as bounded messages:
the master never holds more than one sample a stream, however large the batch is.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import Executor
from pathlib import Path

from twinpod.errors import InputError, StaleEpoch, Unreachable
from twinpod.master import books_read as read
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.training import (
    GIVEN,
    BatchPlan,
    DataLayout,
    PlannedSample,
    RankBatch,
    Sample,
    TokenRun,
)
from twinpod.replay.partition import RankPlan, rank_plans
from twinpod.rpc.batches import batch_parts
from twinpod.rpc.v1 import master_pb2


class BatchServer:
    """Life: as long as the master; `epoch` is set once it is known. One plan at a time."""

    def __init__(self, file: Path, executor: Executor) -> None:
        """`file`: the books' database. `executor`: as many streams are read at once as it has threads."""
        self.epoch = 0
        self._file, self._executor = file, executor
        self._plan: BatchPlan | None = None
        self._divided: tuple[BatchPlan, DataLayout, tuple[RankPlan, ...]] | None = None

    def lay(self, plan: BatchPlan | None) -> None:
        """The batch that the trainer may fetch from now on."""
        self._plan, self._divided = plan, None

    async def parts(
        self, epoch: int, iteration: int, rank: int, layout: DataLayout
    ) -> AsyncGenerator[master_pb2.BatchPart, None]:
        """One rank's samples. StaleEpoch when the trainer belongs to another master, Unreachable when there is none."""
        if epoch != self.epoch:
            raise StaleEpoch(f"batch asked for in epoch {epoch}, this is epoch {self.epoch}", where="master")
        plan = self._plan
        if plan is None or plan.iteration != iteration:
            raise Unreachable(f"there is no batch of iteration {iteration} now", where="master")
        if not 0 <= rank < layout.ranks:
            raise InputError(f"there is no data-parallel rank {rank} of {layout.ranks}", where="training batch")
        loop = asyncio.get_running_loop()
        plans = await loop.run_in_executor(self._executor, self._divide, plan, layout)
        stream = _stream(self._file, plan, plans[rank])
        ahead = loop.run_in_executor(self._executor, next, stream, None)
        try:
            while (part := await ahead) is not None:
                ahead = loop.run_in_executor(self._executor, next, stream, None)
                yield part
        finally:
            await asyncio.wait([ahead])  # a thread may still read; then the connection is closed
            await loop.run_in_executor(self._executor, stream.close)

    def _divide(self, plan: BatchPlan, layout: DataLayout) -> tuple[RankPlan, ...]:
        divided = self._divided
        if divided is None or divided[:2] != (plan, layout):
            self._divided = divided = (plan, layout, rank_plans(plan, layout))
        return divided[2]


def _stream(file: Path, plan: BatchPlan, mine: RankPlan) -> Generator[master_pb2.BatchPart, None, None]:
    head = RankBatch(
        iteration=plan.iteration,
        version=plan.version,
        group_size=plan.group_size,
        micro_batches=mine.micro_batches,
        samples=(),
    )
    with contextlib.closing(read.open_read_only(file)) as db:
        yield from batch_parts(head, (load_sample(db, one, micro) for one, micro in mine.samples), len(mine.samples))


def load_sample(db: sqlite3.Connection, planned: PlannedSample, micro_batch: int) -> Sample:
    """A planned sample with its tokens."""
    prompt, segments = read.chain(db, planned.trajectory_id)
    runs = [TokenRun(version=GIVEN, count=len(prompt))]
    for version, tokens, _ in segments:
        if runs[-1].version == version:
            runs[-1] = TokenRun(version=version, count=runs[-1].count + len(tokens))
        else:
            runs.append(TokenRun(version=version, count=len(tokens)))
    return Sample(
        trajectory_id=planned.trajectory_id,
        group=planned.group,
        mini_batch=planned.mini_batch,
        micro_batch=micro_batch,
        tokens=TokenIds.joined([prompt, *(tokens for _, tokens, _ in segments)]),
        logps=LogProbs.joined(logps for _, _, logps in segments),
        runs=tuple(runs),
        advantage=planned.advantage,
        weight=planned.weight,
        reward=planned.reward,
    )
