"""From the books over gRPC to a rank's arrays: a rank gets its own samples, bit for bit, in bounded messages."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from twinpod.errors import InputError, StaleEpoch, TwinpodError, Unreachable
from twinpod.master import books_read as read
from twinpod.master.batch_server import BatchServer
from twinpod.master.books import FILE, Books, Identity, Scored
from twinpod.master.dispatcher import Dispatcher
from twinpod.master.service import MasterService
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import Segment, Stop
from twinpod.records.training import GIVEN, BatchPlan, DataLayout, RankBatch
from twinpod.replay.baseline import Baseline
from twinpod.replay.policy import plan_batch
from twinpod.rpc.batches import BatchReader, request_to_pb
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import ask_stream, client_channel, serve
from twinpod.rpc.limits import MESSAGE_BYTES
from twinpod.rpc.v1 import master_pb2_grpc
from twinpod.testing.small_run import prompts

SIZE, LONG = 4, 90_000  # answers a group; tokens of the longest
TWO = DataLayout(ranks=2, micro_batch_tokens=200_000, attention_tokens=1000)


@dataclass(frozen=True)
class Scene:
    """A served batch of two groups, some of whose answers two versions made."""

    batches: BatchServer
    address: str
    tls: Path
    plan: BatchPlan
    sent: dict[int, tuple[Segment, ...]]
    received: list[int]  # bytes of every message


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    issue(make_authority("job"), ["localhost"], ["127.0.0.1"]).write(tmp_path)
    books = Books.open(tmp_path, Identity(job="j", fields={}))
    books.begin_epoch(4)
    for version in (1, 2):
        books.record_version(version, version - 1, "d")
    rng = random.Random(1)
    groups = books.begin_groups([(prompt, 0) for prompt in prompts(3)], SIZE, 1)
    sent: dict[int, tuple[Segment, ...]] = {}
    for one in (one for group in groups[:2] for one in group.trajectories):
        counts = (rng.randrange(1, LONG), rng.randrange(1, 50))
        sent[one.trajectory_id] = tuple(
            Segment(
                trajectory_id=one.trajectory_id, index=index, version=index + 1, pod="w",
                tokens=TokenIds(rng.randrange(100) for _ in range(count)),
                logps=LogProbs(-rng.random() for _ in range(count)), stop=(Stop.CUT, Stop.EOS)[index],
            )
            for index, count in enumerate(counts)
        )  # fmt: skip
    books.store([segment for chain in sent.values() for segment in chain], 1)
    masked = min(sent)
    books.score(
        [
            Scored(trajectory_id=one, reward=None if one == masked else one / 10, correct=False,
                   masked="no judge" if one == masked else "")
            for one in sent
        ]
    )  # fmt: skip
    del sent[masked]
    scored = read.scored(books.connection, [group.group_id for group in groups[:2]])
    plan = plan_batch(scored, iteration=1, version=2, baseline=Baseline.MEAN, tau=0.1, size=SIZE)
    with ThreadPoolExecutor(2) as threads:
        dispatcher, batches = Dispatcher(time.monotonic), BatchServer(tmp_path / FILE, threads)
        dispatcher.epoch = batches.epoch = 4
        batches.lay(plan)
        server = await serve([MasterService(dispatcher, batches)], "127.0.0.1:0", tmp_path)
        yield Scene(batches, f"127.0.0.1:{server.port}", tmp_path, plan, sent, [])
        await server.stop()
    books.close()


async def fetch(scene: Scene, rank: int, layout: DataLayout = TWO, *, epoch: int = 4, iteration: int = 1) -> RankBatch:
    reader = BatchReader()
    async with client_channel(scene.address, scene.tls) as channel:
        stub = master_pb2_grpc.MasterStub(channel)  # type: ignore[no-untyped-call]
        request = request_to_pb(epoch, iteration, rank, layout)
        async for part in ask_stream(stub.FetchBatch, request, timeout=30, where="master"):
            message = part.SerializeToString()
            scene.received.append(len(message))
            reader.take(message)
    return reader.batch()


async def test_a_rank_gets_its_own_samples_and_all_ranks_together_get_every_one_once(scene: Scene) -> None:
    ranks = [await fetch(scene, rank) for rank in range(2)]
    assert sorted(one.trajectory_id for rank in ranks for one in rank.samples) == sorted(scene.sent)
    assert ranks[0].micro_batches == ranks[1].micro_batches
    for one in (one for rank in ranks for one in rank.samples):
        chain = scene.sent[one.trajectory_id]
        prompt = one.runs[0].count
        assert one.tokens[prompt:] == TokenIds.joined(segment.tokens for segment in chain)
        assert one.logps == LogProbs.joined(segment.logps for segment in chain)
        assert [(run.version, run.count) for run in one.runs] == [
            (GIVEN, prompt), *((segment.version, len(segment.tokens)) for segment in chain)
        ]  # fmt: skip
    needed = sum(one.tokens.nbytes + one.logps.nbytes for rank in ranks for one in rank.samples)
    assert sum(scene.received) <= 1.05 * needed, "a rank is sent what it needs and nothing else"
    assert max(scene.received) <= MESSAGE_BYTES + 64


async def test_mean_advantages_are_of_the_scored_ones_alone(scene: Scene) -> None:
    samples = (await fetch(scene, 0, DataLayout(ranks=1, micro_batch_tokens=8, attention_tokens=1))).samples
    assert len(samples) == 2 * SIZE - 1
    for group in (0, 1):
        assert sum(one.advantage for one in samples if one.group == group) == pytest.approx(0.0)
    assert sum(one.weight for one in samples) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rank", "layout", "epoch", "iteration", "error"),
    [
        (0, TWO, 3, 1, StaleEpoch),
        (0, TWO, 4, 2, Unreachable),
        (2, TWO, 4, 1, InputError),
        (0, DataLayout(ranks=1, micro_batch_tokens=0, attention_tokens=1), 4, 1, InputError),
    ],
)
async def test_what_there_is_not_is_refused(
    scene: Scene, rank: int, layout: DataLayout, epoch: int, iteration: int, error: type[TwinpodError]
) -> None:
    with pytest.raises(error):
        await fetch(scene, rank, layout, epoch=epoch, iteration=iteration)
    scene.batches.lay(None)
    with pytest.raises(TwinpodError):
        await fetch(scene, 0)
