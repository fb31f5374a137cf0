"""A version from another pod's arena into this one's over gRPC with mutual TLS on loopback, against a memcpy.

The source is a process of its own, as in another pod; both share the machine's cores, so this is the cost of the
carrier and no statement about a network. The digest of what came is in the time, making the arena is not: a run makes
it once.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinpod.arena import Arena
from twinpod.checkpoint.carriers.grpc import GrpcCarrier, shard_service
from twinpod.checkpoint.fetch import Stager
from twinpod.checkpoint.shard_offers import ShardOffers
from twinpod.records import codec
from twinpod.records.weights import ServeRequest, WeightVersion
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import serve
from twinpod.testing.weights import small_version

ROWS = 3 << 21  # of 64 bytes each: 0.4 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSeconds:
    """One entry a repeat."""

    fetch: list[float]
    memcpy: list[float]
    nbytes: int


def measure(repeats: int) -> FetchSeconds:
    """Fetches `repeats` versions, in turn into two slots; the first two fault everything in and do not count."""
    with tempfile.TemporaryDirectory(prefix="twinpod-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        (folder / "peer").mkdir()
        (folder / "own").mkdir()
        issue(make_authority("bench"), ["localhost"], ["127.0.0.1"]).write(folder / "tls")
        command = [sys.executable, "-m", "tests.bench.fetch", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as source:
            assert source.stdin is not None
            assert source.stdout is not None
            try:
                port = int(source.stdout.readline())
                return asyncio.run(_rounds(folder, port, repeats, source))
            finally:
                source.stdin.close()


async def _rounds(folder: Path, port: int, repeats: int, source: subprocess.Popen[str]) -> FetchSeconds:
    stager = Stager(folder / "own", "127.0.0.1:0", GrpcCarrier(folder / "tls"), ShardOffers())
    seconds, copies, nbytes = [], [], 0
    for turn in range(1, repeats + 3):
        version = small_version(folder / "peer", turn, ranks=1, address=f"localhost:{port}", rows=ROWS)
        _tell(source, version)
        staging = await stager.stage(ServeRequest(weights=version))
        if turn > 2:
            seconds.append(staging.seconds)
            copies.append(_memcpy(version, staging.version))
            nbytes = staging.nbytes
    await stager.close()
    return FetchSeconds(fetch=seconds, memcpy=copies, nbytes=nbytes)


def _tell(source: subprocess.Popen[str], version: WeightVersion) -> None:
    """The source offers the version when this returns."""
    assert source.stdin is not None
    assert source.stdout is not None
    source.stdin.write(codec.dumps(version) + "\n")
    source.stdin.flush()
    source.stdout.readline()


def _memcpy(there: WeightVersion, here: WeightVersion) -> float:
    """Seconds of the same bytes by one thread, from the source's arena into ours, all pages mapped."""
    (one,), (other,) = there.shards, here.shards
    with (
        Arena.open(Path(one.path), one.layout) as arena,
        Arena.open(Path(other.path), other.layout, writable=True) as own,
    ):
        source, target = arena.slot(one.slot), own.slot(other.slot)
        best = float("inf")
        for _ in range(2):  # the first maps the pages
            began = time.perf_counter()
            np.copyto(target, source)
            best = min(best, time.perf_counter() - began)
        del source, target
    return best


async def _serve(folder: Path) -> None:
    """The source: its port on stdout, then a line for each version that is given on stdin, until that ends."""
    offers = ShardOffers()
    server = await serve([shard_service(offers)], "localhost:0", folder / "tls")
    print(server.port, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        version = codec.loads(WeightVersion, line)
        offers.offer(version.version, version.shards)
        print(version.version, flush=True)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
