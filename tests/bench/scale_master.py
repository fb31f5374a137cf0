"""The master's side of `make bench-scale`: `python -m tests.bench.scale_master`, a process of its own, so that its
memory is only the master's. One iteration with the real books, dispatcher, judge, plan and batch server behind the real
gRPC service; the conductor's orders to halves are left out.

Speaks lines of JSON on stdout: {"port"} once it serves, {"generated"} when every answer is stored and judged and the
batch is laid, and its numbers at the end, which comes when stdin does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from twinpod.master import books_read as read
from twinpod.master import replay_buffer
from twinpod.master.batch_server import BatchServer
from twinpod.master.books import FILE, Books, Identity
from twinpod.master.dispatcher import Dispatcher, OpenRoster
from twinpod.master.judges import InProcess
from twinpod.master.prompts import PromptSource
from twinpod.master.rewards import Judge
from twinpod.master.service import MasterService
from twinpod.master.sinks import AsyncBooks, TrainingSink
from twinpod.master.work_buffer import Rules, WorkBuffer
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Prompt, SamplingSettings
from twinpod.replay.baseline import Baseline
from twinpod.replay.policy import plan_batch
from twinpod.reward.port import Verdict
from twinpod.rpc.channel import serve
from twinpod.sampling.uniform import Uniform
from twinpod.testing.small_run import record

PROMPT_TOKENS = 200
STREAMS = 4  # as the master's own main
LOOK_S = 0.005
MIB = 2**20


@dataclass(slots=True)
class Watch:
    """How long the event loop did not come to a task that wants to run every LOOK_S."""

    worst: float = 0.0
    worst_here: float = 0.0  # without the time that the kernel gave the processor to somebody else

    async def look(self) -> None:
        """Goes on for ever; runs in the loop's own thread."""
        with Path("/proc/thread-self/schedstat").open(encoding="ascii") as schedule:
            asked, waited = time.perf_counter(), _queued(schedule)
            while True:
                await asyncio.sleep(LOOK_S)
                now, queued = time.perf_counter(), _queued(schedule)
                pause = now - asked - LOOK_S
                self.worst, self.worst_here = max(self.worst, pause), max(self.worst_here, pause - (queued - waited))
                asked, waited = now, queued


def _queued(schedule: TextIO) -> float:
    """Seconds that this thread wanted to run and did not."""
    schedule.seek(0)
    return int(schedule.read().split()[1]) / 1e9


class PlayedReward:
    """Says something of every answer at once."""

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        """See RewardPort."""
        right = (prompt.prompt_id + len(answer_text)) % 3 == 0
        return Verdict(reward=float(right), correct=right)


def prompts(count: int) -> tuple[Prompt, ...]:
    """Prompts of one length."""
    return tuple(
        Prompt(
            prompt_id=number, text="", answer="", difficulty=0.0,
            tokens=TokenIds(range(number % 100, number % 100 + PROMPT_TOKENS)),
        )
        for number in range(count)
    )  # fmt: skip


def rules(count: int, tokens: int) -> Rules:
    """Every answer in one go, as long as it may be."""
    sampling = SamplingSettings(
        temperature=1.0, top_p=1.0, segment_tokens=tokens, max_tokens=tokens, stop_token_ids=(), repeat_ngram=0,
        repeat_count=0,
    )  # fmt: skip
    return Rules(wanted=count, in_flight=count, sampling=sampling, seed=0)


@asynccontextmanager
async def opened(folder: Path, tls: Path, dispatcher: Dispatcher) -> AsyncIterator[tuple[AsyncBooks, BatchServer]]:
    """The books and the service of a master that has taken epoch 1 and published version 1."""
    async with AsyncExitStack() as stack:
        books = Books.open(folder, Identity(job="scale", fields={}))
        stack.callback(books.close)
        books.begin_epoch(1)
        books.record_version(1, 0, "d")
        async_books = AsyncBooks(books, stack.enter_context(ThreadPoolExecutor(1, "books")))
        batches = BatchServer(folder / FILE, stack.enter_context(ThreadPoolExecutor(STREAMS, "batches")))
        dispatcher.epoch = batches.epoch = 1
        server = await serve([MasterService(dispatcher, batches)], "127.0.0.1:0", tls)
        stack.push_async_callback(server.stop, 1.0)
        say(port=server.port)
        yield async_books, batches


async def main(asked: argparse.Namespace) -> None:
    """One iteration."""
    dispatcher, watch = Dispatcher(time.monotonic), Watch()
    source = PromptSource(prompts(asked.prompts), (), Uniform(size=asked.prompts, seed=0))
    async with opened(asked.folder, asked.tls, dispatcher) as (async_books, batches):
        looking = asyncio.create_task(watch.look())
        with ThreadPoolExecutor(1, "judge") as thread:
            judge = Judge(InProcess(PlayedReward(), thread), lambda tokens: str(tokens[0]), 0.0, thread)
            buffer = WorkBuffer(rules=rules(asked.prompts, asked.tokens), epoch=1, iteration=1, version=1)
            began, used = time.perf_counter(), time.thread_time()
            async with TrainingSink(async_books, judge, source, size=asked.answers, iteration=1) as sink:
                await dispatcher.run(buffer, sink, OpenRoster(engines=asked.workers), lambda finished, wanted: None)
            seconds, loop_cpu = time.perf_counter() - began, time.thread_time() - used
        groups = await async_books.do(lambda books: replay_buffer.pick(books, asked.prompts))
        scored = await async_books.do(lambda books: read.scored(books.connection, groups))
        plan = plan_batch(scored, iteration=1, version=1, baseline=Baseline.MEAN, tau=0.1, size=asked.answers)
        assert len(plan.samples) == asked.prompts * asked.answers, len(plan.samples)
        batches.lay(plan)
        say(generated=buffer.tokens, seconds=seconds, loop_cpu=loop_cpu)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        batches.lay(None)
        await async_books.do(lambda books: books.commit(record(1, version=2), groups, "d"))
        looking.cancel()
        file = sum(path.stat().st_size for path in asked.folder.glob("books.sqlite*")) / MIB
        say(stall_s=watch.worst, stall_here_s=watch.worst_here, peak_mib=peak_mib(), file_mib=file)


def peak_mib() -> float:
    """Most memory that this process ever had resident."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def say(**values: Any) -> None:
    """A line for the bench."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("folder", "tls"):
        parser.add_argument(name, type=Path)
    for name in ("prompts", "answers", "tokens", "workers"):
        parser.add_argument(name, type=int)
    asyncio.run(main(parser.parse_args()))
