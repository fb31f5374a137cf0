"""`make bench-scale`: an iteration of a real job's size through one master, as a table and `results/scale.json`.

Theory of operation. The master is a process of its own (`scale_master`) with its real books, dispatcher, judge, plan,
batch server and gRPC service. Engines and ranks are played in this one: 64 real rollout workers whose engine answers at
once with arrays of the asked length, then 8 data-parallel ranks that fetch their samples as the trainer's do. Sizes:
1,000 prompts x 16 answers of 8k and of 32k tokens, and 32 prompts x 16 answers of 32k (17M tokens) to see whether a
token costs more when there are many.

`dispatch_cpu_share` is measured apart, at the pace of a large job: 64 pods of 8 accelerators at 2,500 tokens a second
each end 160 answers of 8k tokens a second; the share of one core that the master's event loop takes for pulls, results
and what it tells its workers.

The books take 4.2 GB in a temporary folder (`--folder` names another place than the system's). `--small` does all of it
with 20 prompts and writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench import logps, report
from tests.bench.report import TOP, Measure, Progress
from tests.bench.scale_master import PROMPT_TOKENS

from twinpod.errors import EnvironmentFault
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.training import DataLayout, RankBatch
from twinpod.rollout.__main__ import GrpcMaster
from twinpod.rollout.ports import EngineEndpoint, EngineOutput, EngineRequest, Finish
from twinpod.rollout.worker import Worker, WorkerSettings
from twinpod.rpc.batches import BatchReader
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import client_channel
from twinpod.trainer.half_client import MasterClient

ANSWERS, WORKERS, RANKS, CAPACITY = 16, 64, 8, 64
SIZES = {"17m": (32, 32_768), "131m": (1000, 8_192), "524m": (1000, 32_768)}  # prompts, tokens an answer
PACED = (100, 8_192)
PACE = 160.0  # answers a second, of all workers together
ALONE = 4  # ranks that fetch one after the other; the others fetch at once
FREE_BYTES = 10 << 30
SECONDS = {"17m": 15.0, "131m": 60.0, "524m": 200.0, "dispatch": 25.0, "log-probs": 60.0}
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one iteration has shown."""

    tokens: int
    store_s: float  # from the first pull to the last verdict in the books
    share_s: tuple[float, ...]  # of each rank that fetched alone
    share_tokens: tuple[int, ...]
    over_needed: float  # bytes of all messages over bytes of all arrays
    unevenness: float  # largest over smallest rank, tokens
    loop_cpu: float  # seconds of the master's event loop in store_s
    stall_s: float
    stall_here_s: float
    peak_mib: float
    file_mib: float

    @property
    def seconds_a_token(self) -> float:
        """Worker to books and books to ranks."""
        return self.store_s / self.tokens + sum(self.share_s) / sum(self.share_tokens)


class PlayedEngine:
    """Answers at once, or `pace` seconds apart over all engines; as many tokens as may be."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncIterator[EngineOutput]:
        """See EnginePort."""
        for request in requests:
            await self._turn.wait()
            count = request.max_new_tokens
            yield EngineOutput(
                name=request.name,
                tokens=TokenIds(np.arange(count, dtype="<i4") + len(request.name)),
                logps=LogProbs(np.full(count, -0.5, dtype="<f4")),
                finish=Finish.LENGTH,
                version=1,
            )

    async def abort(self, name: str) -> None:
        """See EnginePort."""

    async def abort_all(self) -> None:
        """See EnginePort."""

    async def close(self) -> None:
        """See EnginePort."""


class Turn:
    """When the next answer of any engine ends."""

    def __init__(self, pace: float) -> None:
        self._gap, self._next = (1.0 / pace if pace else 0.0), time.monotonic()

    async def wait(self) -> None:
        """Until it is this answer's turn."""
        self._next = max(self._next + self._gap, time.monotonic() if not self._gap else 0.0)
        await asyncio.sleep(max(0.0, self._next - time.monotonic()))


class PlayedSource:
    """An engine serves from the start."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def current(self) -> EngineEndpoint:
        """See EngineSource."""
        return EngineEndpoint(urls=("played",), api_key="", version=1)

    async def changed(self, old: EngineEndpoint | None) -> EngineEndpoint | None:
        """See EngineSource."""
        await asyncio.Event().wait()
        return None

    def connect(self, serving: EngineEndpoint) -> PlayedEngine:
        """See EngineSource."""
        return PlayedEngine(self._turn)


class MasterProcess:
    """The other side. Life: `async with`."""

    def __init__(self, folder: Path, tls: Path, prompts: int, tokens: int) -> None:
        self._arguments = [str(folder), str(tls), *map(str, (prompts, ANSWERS, tokens, WORKERS))]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> MasterProcess:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.scale_master", *self._arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=TOP,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def hears(self) -> dict[str, Any]:
        """Its next line."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)
        if not line:
            raise EnvironmentFault(f"ended with code {await self._process.wait()}", where="bench master")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """The ranks have what they need."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()


async def iteration(folder: Path, prompts: int, tokens: int, *, pace: float = 0.0, ranks: int = RANKS) -> Found:
    """One iteration of that size; `folder` is emptied again."""
    tls = folder / "tls"
    issue(make_authority("scale"), ["localhost"], ["127.0.0.1"]).write(tls)
    async with MasterProcess(folder / "state", tls, prompts, tokens) as master:
        address = f"127.0.0.1:{(await master.hears())['port']}"
        generated = await _generate(master, address, tls, pace)
        layout = DataLayout(ranks=RANKS, micro_batch_tokens=tokens + PROMPT_TOKENS, attention_tokens=50_000)
        got = await asyncio.to_thread(_fetch_all, address, tls, layout, ranks)
        master.end()
        last = await master.hears()
    shutil.rmtree(folder / "state")
    alone = got[:ALONE]
    return Found(
        tokens=generated["generated"],
        store_s=generated["seconds"],
        share_s=tuple(one.seconds for one in alone),
        share_tokens=tuple(one.tokens for one in alone),
        over_needed=sum(one.received for one in got) / sum(one.needed for one in got) if got else 0.0,
        unevenness=max(one.tokens for one in got) / min(one.tokens for one in got) if got else 0.0,
        loop_cpu=generated["loop_cpu"],
        stall_s=last["stall_s"],
        stall_here_s=last["stall_here_s"],
        peak_mib=last["peak_mib"],
        file_mib=last["file_mib"],
    )


async def _generate(master: MasterProcess, address: str, tls: Path, pace: float) -> dict[str, Any]:
    """64 workers, until the master has every answer."""
    stop, turn = asyncio.Event(), Turn(pace)
    async with client_channel(address, tls) as channel:
        workers = [
            Worker(f"worker-{n}", GrpcMaster(channel, address), PlayedSource(turn), WorkerSettings(capacity=CAPACITY))
            for n in range(WORKERS)
        ]
        working = [asyncio.create_task(worker.run(stop)) for worker in workers]
        found = await master.hears()
        stop.set()
        await asyncio.gather(*working)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one rank got."""

    seconds: float
    tokens: int
    received: int  # bytes of its messages
    needed: int  # bytes of its arrays


def _fetch_all(address: str, tls: Path, layout: DataLayout, ranks: int) -> list[Share]:
    got = [_fetch(address, tls, layout, rank) for rank in range(min(ALONE, ranks))]
    with ThreadPoolExecutor(max(1, ranks - ALONE)) as threads:
        return got + list(threads.map(lambda rank: _fetch(address, tls, layout, rank), range(ALONE, ranks)))


def _fetch(address: str, tls: Path, layout: DataLayout, rank: int) -> Share:
    """As `loop` does it on the first rank of a copy of the model."""
    began, received, reader = time.perf_counter(), 0, BatchReader()
    for message in MasterClient(address, tls, rank=rank, layout=layout).fetch(1, 1):
        received += len(message)
        reader.take(message)
    batch: RankBatch = reader.batch()
    return Share(
        seconds=time.perf_counter() - began,
        tokens=sum(len(one.tokens) for one in batch.samples),
        received=received,
        needed=sum(one.tokens.nbytes + one.logps.nbytes for one in batch.samples),
    )


def measures(found: dict[str, Found], paced: Found | None, peak: Measure) -> list[Measure]:
    """The table."""
    first, last, middle = found["17m"], found["524m"], found["131m"]
    store = {name: one.tokens / one.store_s / 1e6 for name, one in found.items()}
    share = {name: statistics.median(t / s for t, s in zip(one.share_tokens, one.share_s, strict=True)) / 1e6
             for name, one in found.items()}  # fmt: skip
    growth = last.seconds_a_token / first.seconds_a_token
    cpu = paced.loop_cpu / paced.store_s if paced else float("nan")

    def each(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in values.items())

    return [
        Measure(key="master_peak_mib_524m", value=last.peak_mib, unit="MiB", at_most=1024,
                note="peak of the process: " + each({name: one.peak_mib for name, one in found.items()})),
        Measure(key="loop_stall_max_s", value=max(one.stall_s for one in found.values()), unit="s", at_most=0.25,
                note="longest pause of the master's event loop: "
                + each({name: one.stall_s for name, one in found.items()})),
        Measure(key="loop_stall_here_max_s", value=max(one.stall_here_s for one in found.values()), unit="s",
                note="the same without the time that other processes had its processor"),
        Measure(key="store_mtokens_per_s", value=min(store["131m"], store["524m"]), unit="Mtokens/s", at_least=5,
                note="worker to books, the slower of 8k and 32k tokens: " + each(store)),
        Measure(key="share_mtokens_per_s", value=min(share["131m"], share["524m"]), unit="Mtokens/s", at_least=20,
                note="books to one rank's arrays, the slower of both: " + each(share)),
        Measure(key="growth_17m_to_524m", value=growth, unit="x", at_most=1.2, note="seconds a token"),
        Measure(key="dispatch_cpu_share", value=cpu, unit="core", at_most=0.2,
                note=f"event loop of the master, {WORKERS} workers, {PACE:.0f} answers of {PACED[1]} tokens a second"),
        Measure(key="rank_share_bytes_over_needed", value=max(one.over_needed for one in found.values()), unit="x",
                at_most=1.05, note=f"{RANKS} ranks"),
        Measure(key="rank_tokens_max_over_min", value=max(one.unevenness for one in found.values()), unit="x",
                note="answers of one length: samples only"),
        Measure(key="books_mib_524m", value=last.file_mib, unit="MiB"),
        Measure(key="loop_cpu_131m", value=middle.loop_cpu / middle.store_s, unit="core", note="at full speed"),
        peak,
    ]  # fmt: skip


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench-scale")
    parser.add_argument("--folder", type=Path, default=None, help="where the books go for a while (4.2 GB)")
    parser.add_argument("--small", action="store_true", help="20 prompts instead of 1,000; writes no results")
    asked = parser.parse_args()
    report.end_in_order()
    sizes = {name: (min(prompts, 20), tokens) for name, (prompts, tokens) in SIZES.items()} if asked.small else SIZES
    progress = Progress("bench-scale", SECONDS)
    with tempfile.TemporaryDirectory(prefix="twinpod-scale-", dir=asked.folder) as name:
        if shutil.disk_usage(name).free < FREE_BYTES:
            print(f"bench-scale: {name} has less than 10 GB left; name another place with --folder", file=sys.stderr)
            return 1
        found: dict[str, Found] = {}
        for size, (prompts, tokens) in sizes.items():
            progress.part(size)
            found[size] = asyncio.run(iteration(Path(name), prompts, tokens))
            progress.say(str(found[size]), 1.0)
        progress.part("dispatch")
        prompts, tokens = PACED
        paced = asyncio.run(iteration(Path(name), min(prompts, 20) if asked.small else prompts, tokens, pace=PACE))
    progress.part("log-probs")
    return report.finish("scale", measures(found, paced, logps.measure()), save=not asked.small)


if __name__ == "__main__":
    sys.exit(main())
