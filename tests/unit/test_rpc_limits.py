"""No message above the limit, whatever the job: what the master hands out, what a worker gives back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpod.master.copies import copies_of
from twinpod.master.elastic import serve_order
from twinpod.master.work_buffer import Rules, WorkBuffer
from twinpod.records import codec
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.life import Command, HalfKind, HalfStatus, Reply
from twinpod.records.rollout import (
    Group,
    GroupState,
    Prompt,
    Resumption,
    SamplingSettings,
    Segment,
    Stop,
    Trajectory,
    WorkBatch,
    WorkItem,
    WorkResult,
)
from twinpod.records.weights import ShardRef
from twinpod.rollout.ports import EngineOutput, EngineRequest, Finish
from twinpod.rollout.worker import Worker, WorkerSettings
from twinpod.rpc import convert
from twinpod.rpc.limits import MESSAGE_BYTES, MESSAGE_LIMIT
from twinpod.rpc.v1 import master_pb2
from twinpod.testing.rollout import FakeEngine, FakeMaster, FakeSource

LONGEST = 1_048_576  # tokens of the longest context that a job may ask for
LENGTHS = st.sampled_from([0, 1, 700, 8_192, 131_072]) | st.integers(0, LONGEST)
SOME = st.lists(LENGTHS, min_size=1, max_size=24)
SAMPLING = SamplingSettings(
    temperature=1.0, top_p=1.0, segment_tokens=2 * LONGEST, max_tokens=2 * LONGEST,
    stop_token_ids=tuple(range(64)), repeat_ngram=0, repeat_count=0,
)  # fmt: skip

HALF = HalfStatus(
    pod="pool-0", kind=HalfKind.INFERENCE, address="", state="idle", version=0, epoch=1, pod_attempt=1, attempt=0,
    message="",
)  # fmt: skip


def ids(count: int) -> TokenIds:
    return TokenIds(np.full(count, 7, dtype=TokenIds.dtype))


def saved(number: int, prompt: int, lengths: Sequence[int]) -> Group:
    """A group with these many saved tokens a trajectory."""
    trajectories = []
    for place, length in enumerate(lengths):
        one = number * 100 + place
        segment = Segment(
            trajectory_id=one, index=0, version=1, tokens=ids(length), logps=LogProbs(), stop=Stop.CUT, pod="p"
        )
        chain = (segment,) if length else ()
        trajectories.append(Trajectory(trajectory_id=one, group_id=number, segments=chain, reward=None))
    text = Prompt(prompt_id=number, text="", answer="", difficulty=0.0, tokens=ids(1 + prompt // 8))
    return Group(group_id=number, epoch=0, prompt=text, born=1, state=GroupState.OPEN, trajectories=tuple(trajectories))


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.tuples(LENGTHS, SOME), min_size=1, max_size=4), capacity=st.integers(1, 4096))
def test_an_answer_to_a_pull_is_bounded_and_everything_is_handed_out_in_the_end(
    groups: list[tuple[int, list[int]]], capacity: int
) -> None:
    rules = Rules(wanted=99, in_flight=len(groups), sampling=SAMPLING, seed=1)
    work = WorkBuffer(rules=rules, epoch=10**6, iteration=10**6, version=10**9)
    for number, (prompt, lengths) in enumerate(groups):
        work.admit(saved(number, prompt, lengths), {})
    handed: list[int] = []
    while items := work.take("w", capacity, 1, 0.0):
        size = convert.work_batch_to_pb(
            WorkBatch(epoch=10**6, iteration=10**6, version=10**9, cut=False, items=items)
        ).ByteSize()
        count = sum(len(item.trajectories) for item in items)
        assert size <= (MESSAGE_BYTES + 64 if count > 1 else MESSAGE_LIMIT)
        assert count <= capacity
        handed += [one.trajectory_id for item in items for one in item.trajectories]
    assert sorted(handed) == sorted(n * 100 + k for n, (_, lengths) in enumerate(groups) for k in range(len(lengths)))


class Bulk(FakeEngine):
    """Answers at once with as many tokens as the prompt's first id says, or refuses with a long line."""

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncIterator[EngineOutput]:
        for request in requests:
            count = int(request.tokens[0])
            yield EngineOutput(
                name=request.name,
                tokens=ids(count),
                logps=LogProbs(np.zeros(count, dtype=LogProbs.dtype)),
                finish=Finish.LENGTH if count else Finish.FAILED,
                version=1,
                message="ü" * 100_000,
            )


class Scales(FakeMaster):
    """Weighs what it is given."""

    def __init__(self, items: Sequence[WorkItem]) -> None:
        super().__init__(items)
        self.weights: list[tuple[int, int]] = []  # trajectories, bytes

    async def give(self, epoch: int, results: Sequence[WorkResult]) -> None:
        message = master_pb2.ReturnRequest(epoch=epoch, results=[convert.work_result_to_pb(one) for one in results])
        self.weights.append((sum(len(one.trajectories) for one in results), message.ByteSize()))
        await super().give(epoch, results)


def answered(number: int, count: int, k: int) -> WorkItem:
    return WorkItem(
        item_id=f"1/1/{number}",
        group_id=number,
        version=1,
        prompt_tokens=TokenIds((count,)),
        trajectories=tuple(Resumption(trajectory_id=number * 100 + n, index=0, tokens=TokenIds()) for n in range(k)),
        sampling=replace(SAMPLING, segment_tokens=max(1, count), max_tokens=max(1, count)),
        seed=0,
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(LENGTHS, st.integers(1, 16)), min_size=1, max_size=4))
def test_what_a_worker_gives_back_is_bounded_and_complete(items: list[tuple[int, int]]) -> None:
    master = Scales([answered(number, count, k) for number, (count, k) in enumerate(items)])

    async def work() -> list[WorkResult]:
        stop = asyncio.Event()
        worker = Worker("w", master, FakeSource(Bulk(lambda request: ())), WorkerSettings(capacity=64))
        task = asyncio.create_task(worker.run(stop))
        results = await asyncio.wait_for(master.returned(len(items)), 30)
        stop.set()
        await task
        return results

    results = asyncio.run(work())
    assert all(size <= (MESSAGE_BYTES + 64 if count > 1 else MESSAGE_LIMIT) for count, size in master.weights)
    lengths = {s.trajectory_id: len(s.tokens) for result in results for s in result.segments}
    assert lengths == {n * 100 + j: count for n, (count, k) in enumerate(items) for j in range(k) if count}


@settings(max_examples=30, deadline=None)
@given(pods=st.integers(1, 256), ranks=st.integers(1, 64), helpers=st.integers(0, 512))
def test_what_is_said_of_published_weights_does_not_grow_with_the_model(pods: int, ranks: int, helpers: int) -> None:
    name = "a" * 63  # Kubernetes' longest
    shards = [
        ShardRef(
            owner=f"{name}-hybrid-{pod}/rank-{rank}",
            layout="xxh3:" + "f" * 32,
            path="/dev/shm/" + "p" * 100,
            slot=1,
            digest="xxh3:" + "f" * 16,
            address=f"{name}-hybrid-{pod}.{name}.{name}.svc:7401",
        )
        for pod in range(pods)
        for rank in range(ranks)
    ]
    detail = json.dumps([codec.plain(shard) for shard in shards])
    reply = Reply(key=name, error="", retryable=False, seconds=1.0, detail=detail)
    assert convert.reply_to_pb(reply).ByteSize() <= MESSAGE_LIMIT
    copies = copies_of(10**9, 10**6, 10**6, shards)
    peers = [f"{name}-pool-{number}.{name}.{name}.svc:7402" for number in range(helpers)]
    order = serve_order(HALF, copies, 10**6, "join-1", peers)
    command = Command(
        key=name, verb=order.verb, epoch=1, iteration=1, version=1, argument=order.argument, deadline_s=1.0
    )
    assert convert.command_to_pb(command).ByteSize() <= MESSAGE_BYTES
