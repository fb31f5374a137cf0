"""`python -m twinpod.trainer` under torchrun, as the training half starts it: real gRPC with mutual TLS on both
lines, a played half and a played master. Two launches: two ranks (tensor parallel) through a whole run, then one rank
that resumes their snapshot.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinpod.api import names
from twinpod.arena import Arena
from twinpod.checkpoint.layouts import Layouts
from twinpod.checkpoint.plan import host_of
from twinpod.errors import EXIT_FAULT, Unreachable
from twinpod.records.codec import loads
from twinpod.records.life import Command, Reply, Verb
from twinpod.records.training import RankBatch, TrainStats
from twinpod.records.weights import ShardRecord, ShardRef
from twinpod.rpc.batches import batch_parts
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import RpcServer, serve
from twinpod.rpc.convert import command_to_pb, reply_from_pb
from twinpod.rpc.v1 import half_pb2, half_pb2_grpc, master_pb2_grpc
from twinpod.testing.batches import rank_batches, sample

pytestmark = pytest.mark.timeout(600)
DEADLINE_S = 120.0  # for one command; the first includes the start of the ranks


class PlayedHalf(half_pb2_grpc.TrainerLinkServicer):
    """Hands out commands from a queue and collects the replies by key."""

    def __init__(self) -> None:
        self.commands: asyncio.Queue[Command] = asyncio.Queue()
        self.replies: dict[str, asyncio.Future[Reply]] = {}
        self.ready: list[bool] = []

    async def NextCommand(self, request: Any, context: Any) -> Any:
        self.ready.append(request.ready)
        try:
            return command_to_pb(await asyncio.wait_for(self.commands.get(), min(request.wait_s, 1.0)))
        except TimeoutError:
            return half_pb2.Command()

    async def Report(self, request: Any, context: Any) -> Any:
        self.replies[request.key].set_result(reply_from_pb(request))
        return half_pb2.Ack()

    async def order(self, verb: Verb, *, iteration: int = 0, version: int = 0, argument: str = "") -> Reply:
        """One command; its reply."""
        key = f"1/{iteration}/{verb.value}/{len(self.replies)}"
        self.replies[key] = asyncio.get_running_loop().create_future()
        await self.commands.put(
            Command(
                key=key, verb=verb, epoch=1, iteration=iteration, version=version, argument=argument, deadline_s=60.0
            )
        )
        return await asyncio.wait_for(self.replies[key], DEADLINE_S)


class PlayedMaster(master_pb2_grpc.MasterServicer):
    """Has the batches of iterations 1 to 3; knows nothing of others."""

    async def FetchBatch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.iteration > 3:
            raise Unreachable("no batch", where="played master")
        batch = make_batches(request.iteration, request.ranks, request.micro_batch_tokens)[request.rank]
        for part in batch_parts(batch, batch.samples, len(batch.samples), 300):
            yield part


def make_batches(iteration: int, ranks: int, budget: int) -> tuple[RankBatch, ...]:
    """32 samples; iteration 3 holds a broken one."""
    rng = random.Random(iteration)
    samples = [
        sample(
            i,
            i // 4,
            (2, 3, 4),
            [rng.randrange(2, 8) for _ in range(4)],
            (-2.0,) * 4,
            (iteration,) * 4,
            advantage=rng.uniform(-1, 1),
            reward=0.5,
        )
        for i in range(32)
    ]
    if iteration == 3:
        samples[5] = sample(5, 1, (2, 3, 4), (), (), ())
    return rank_batches(samples, iteration=iteration, version=iteration, group_size=4, ranks=ranks, budget=budget)


def job(tensor: int, **spec: Any) -> dict[str, Any]:
    """A tiny RLJob, with other parts of the spec."""
    return {
        "apiVersion": "twinpod.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "tiny", "namespace": "default"},
        "spec": {
            "iterations": 2,
            "seed": 4,
            "model": {
                "config": {
                    "architecture": "qwen2",
                    "hiddenSize": 32,
                    "layers": 2,
                    "heads": 4,
                    "kvHeads": 2,
                    "ffnSize": 64,
                    "maxPositions": 32,
                    "tieEmbeddings": True,
                },
                "tokenizer": {"characters": "abcdef="},
            },
            "dataset": {"entryPoint": {"target": "example:make"}},
            "algorithm": {"groupSize": 4, "groupsPerIteration": 8, "learningRate": "1e-3"},
            "rollout": {"maxTokens": 4},
            "reward": {"kind": "prefix"},
            "hybrid": {"trainer": {"tensorParallel": tensor, "offload": True}},
            **spec,
        },
    }


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a pod: certificates for localhost, shared memory, snapshots."""
    folder = tmp_path_factory.mktemp("pod")
    issue(make_authority("tests"), ["localhost"], ["127.0.0.1"]).write(folder / "tls")
    return folder


@asynccontextmanager
async def trainer(
    pod: Path, tensor: int, data: int = 1, **spec: Any
) -> AsyncIterator[tuple[PlayedHalf, asyncio.subprocess.Process, Path]]:
    """Servers and ranks; the ranks are killed at the end if they still run."""
    half = PlayedHalf()
    link = await serve([half], "127.0.0.1:0", pod / "tls")
    master = await serve([PlayedMaster()], "127.0.0.1:0", pod / "tls")
    log = pod / f"ranks-{tensor}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(tensor * data),
                "-m",
                "twinpod.trainer",
            ),
            env=environment(pod, job(tensor, **spec), link, master),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield half, process, log
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await link.stop()
        await master.stop()


def environment(pod: Path, job: dict[str, Any], link: RpcServer, master: RpcServer) -> dict[str, str]:
    """What the training half gives its ranks."""
    (pod / "job.json").write_text(json.dumps(job))
    ours = {
        "TWINPOD_JOB_NAME": "tiny",
        "TWINPOD_NAMESPACE": "default",
        "TWINPOD_JOB_UID": "uid",
        "TWINPOD_POD": "tiny-hybrid-0",
        "TWINPOD_ADDRESS": "localhost",
        "TWINPOD_MASTER": f"localhost:{master.port}",
        "TWINPOD_LINK": f"localhost:{link.port}",
        "TWINPOD_ETCD": "localhost:1",
        "TWINPOD_JOB_FILE": str(pod / "job.json"),
        "TWINPOD_TLS": str(pod / "tls"),
        "TWINPOD_SHM": str(pod / "shm"),
        "TWINPOD_RUN": str(pod / "run"),
        "TWINPOD_SNAPSHOTS": str(pod / "snapshots"),
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **ours}


def weights(shards: list[ShardRecord]) -> dict[str, Any]:
    """Full tensors, put together from the arenas; digests checked."""
    pieces: dict[str, list[tuple[int, int | None, Any]]] = {}
    for shard in shards:
        with Arena.open(Path(shard.path), shard.layout) as arena:
            assert arena.digest(shard.slot) == shard.digest
            for part in shard.layout.parts:
                pieces.setdefault(part.name, []).append((part.start, part.axis, np.array(arena.part(shard.slot, part))))
    return {
        name: found[0][2]
        if found[0][1] is None
        else np.concatenate([array for _, _, array in sorted(found, key=lambda p: p[0])], axis=found[0][1])
        for name, found in pieces.items()
    }


def published(reply: Reply) -> dict[str, Any]:
    """The weights of a PUBLISH."""
    assert reply.error == ""
    published = [loads(ShardRef, json.dumps(shard)) for shard in json.loads(reply.detail)]
    shards = Layouts(host_of(published[0].address)).at_hand(published)
    assert shards is not None
    return weights(list(shards))


@pytest.mark.asyncio
async def test_a_run_of_two_ranks_and_a_resume_by_one(pod: Path) -> None:
    async with trainer(pod, 2) as (half, process, log):
        early = await half.order(Verb.TRAIN, iteration=1)
        assert early.error.startswith("ProtocolError: "), log.read_text()
        assert "order onload with an argument first" in early.error
        assert (
            json.loads((await half.order(Verb.ONLOAD, argument='{"snapshot": "", "version": 0}')).detail)["iteration"]
            == 0
        )
        first = published(await half.order(Verb.PUBLISH, version=1))

        reply = await half.order(Verb.TRAIN, iteration=1)
        assert reply.error == ""
        stats = loads(TrainStats, reply.detail)
        assert stats.tokens == stats.on_policy_tokens == 128
        assert math.isfinite(stats.loss)
        assert stats.grad_norm > 0
        assert stats.weights_gap < 1.0

        second = published(await half.order(Verb.PUBLISH, iteration=1, version=2))
        assert any(not np.array_equal(first[name], second[name]) for name in first)

        assert json.loads((await half.order(Verb.OFFLOAD)).detail) == {"held_bytes": [0, 0]}
        assert "weights are offloaded; order onload first" in (await half.order(Verb.TRAIN, iteration=2)).error
        assert (await half.order(Verb.ONLOAD)).error == ""
        assert all(
            np.array_equal(array, second[name])
            for name, array in published(await half.order(Verb.PUBLISH, version=3)).items()
        )

        missing = await half.order(Verb.TRAIN, iteration=4)
        assert missing.error.startswith("Unreachable: ")
        assert missing.retryable
        assert (
            "InputError: training batch: trajectory 5 has 3 tokens" in (await half.order(Verb.TRAIN, iteration=3)).error
        )
        assert "does not know the verb 'serve'" in (await half.order(Verb.SERVE)).error
        (pod / "taken").write_text("a file, no folder")
        assert (await half.order(Verb.SNAPSHOT, argument=str(pod / "taken" / "s"))).error.startswith(
            "EnvironmentFault: "
        )

        saved = await half.order(Verb.SNAPSHOT, iteration=1, version=2, argument=str(pod / "snapshots" / "iteration-1"))
        assert saved.error == ""
        assert saved.seconds > 0.0
        assert (await half.order(Verb.EXPORT, argument=str(pod / "snapshots" / "export"))).error == ""
        assert half.ready[0] is False
        assert half.ready[-1] is True

        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)
        assert "twinpod/trainer/loop.py" not in log.read_text(), "a rank ended with a traceback"

    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (source,) = (path for path in pod.rglob(name) if "export" not in path.parts)
        assert (pod / "snapshots" / "export" / name).read_bytes() == source.read_bytes(), name
    exported = AutoModelForCausalLM.from_pretrained(pod / "snapshots" / "export").state_dict()
    assert all(np.array_equal(exported[name].numpy(), array) for name, array in second.items())
    assert AutoTokenizer.from_pretrained(pod / "snapshots" / "export").encode("abc", add_special_tokens=False) == [
        2,
        3,
        4,
    ]

    async with trainer(pod, 1) as (half, process, log):
        wrong = await half.order(Verb.ONLOAD, argument=json.dumps({"snapshot": str(pod / "nothing"), "version": 2}))
        assert "is not a snapshot" in wrong.error
        resumed = await half.order(
            Verb.ONLOAD, argument=json.dumps({"snapshot": str(pod / "snapshots" / "iteration-1"), "version": 2})
        )
        assert json.loads(resumed.detail) == {"iteration": 1, "version": 2}, resumed.error
        again = published(await half.order(Verb.PUBLISH, version=2))
        assert again.keys() == second.keys()
        assert all(np.array_equal(again[name], second[name]) for name in second)
        assert (await half.order(Verb.EXIT)).error == ""
        assert await asyncio.wait_for(process.wait(), 20) == 0, log.read_text()[-3000:]


@pytest.mark.asyncio
async def test_ranks_that_get_samples_of_their_own_train_together_or_not_at_all(pod: Path) -> None:
    """Two copies of the model: what one of them cannot load, or cannot fetch, neither trains on."""
    spec = {"hybrid": {"trainer": {"dataParallel": 2}}}
    async with trainer(pod, 1, 2, **spec) as (half, _, log):
        assert (await half.order(Verb.ONLOAD, argument='{"snapshot": "", "version": 0}')).error == "", log.read_text()
        broken = await half.order(Verb.TRAIN, iteration=3)
        assert "InputError: training batch: trajectory 5 has 3 tokens" in broken.error
        assert (await half.order(Verb.TRAIN, iteration=4)).error.startswith("Unreachable: ")
        reply = await half.order(Verb.TRAIN, iteration=1)
        assert reply.error == ""
        assert loads(TrainStats, reply.detail).tokens == 128, "all samples, each rank its own"
        assert (await half.order(Verb.EXIT)).error == ""


@pytest.mark.asyncio
async def test_a_rank_that_finds_the_input_wrong_leaves_its_line_for_the_half(pod: Path, tmp_path: Path) -> None:
    """Torchrun makes a 1 of the rank's exit code 2, so the line tells the half that no restart can help."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    (tmp_path / "tokenizer.json").write_text("{}")
    async with trainer(pod, 1, model={"from": str(tmp_path)}) as (_, process, log):
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == EXIT_FAULT
    line = (pod / "run" / names.INPUT_ERROR_FILE).read_text()
    assert line.startswith("config.json: architectures: the trainer knows LlamaForCausalLM, ")
    assert f"twinpod.trainer: {line}" in log.read_text()
