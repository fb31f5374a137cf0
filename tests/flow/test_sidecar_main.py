"""The entry point: bad surroundings are one line and an exit code; SIGTERM is an orderly end; health; membership."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.coordination.memory import MemoryStore
from twinpod.errors import EnvironmentFault
from twinpod.master.service import GrpcHalf
from twinpod.records import codec
from twinpod.records.life import HalfKind, HalfStatus, Verb
from twinpod.rpc.certificates import issue, make_authority
from twinpod.testing.halves import order
from twinpod_sidecar.health import STUCK_S, Health
from twinpod_sidecar.members import Member

# Ports are fixed by contract, so each run of the test has an address of its own
HOST = f"127.117.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
JOB = {
    "apiVersion": "twinpod.dev/v1alpha1",
    "kind": "RLJob",
    "metadata": {"name": "j"},
    "spec": {
        "iterations": 1,
        "model": {
            "config": {
                "architecture": "qwen2",
                "hiddenSize": 32,
                "layers": 1,
                "heads": 2,
                "ffnSize": 32,
                "maxPositions": 32,
            },
            "tokenizer": {"characters": "ab="},
        },
        "dataset": {"reasoningGym": {"name": "spell_backward"}},
        "algorithm": {"groupsPerIteration": 1, "learningRate": "1e-3"},
        "rollout": {"maxTokens": 4},
        "reward": {"kind": "prefix"},
        "hybrid": {"sharedMemory": "8Mi"},
    },
}


def surroundings(folder: Path, shared_memory: str = "8Mi") -> dict[str, str]:
    issue(make_authority("job"), [], [HOST]).write(folder / "tls")
    spec = {**JOB["spec"], "hybrid": {"sharedMemory": shared_memory}}  # type: ignore[dict-item]
    (folder / "job.json").write_text(json.dumps({**JOB, "spec": spec}))
    return {
        **os.environ,
        "TWINPOD_JOB_NAME": "j",
        "TWINPOD_NAMESPACE": "n",
        "TWINPOD_JOB_UID": "u",
        "TWINPOD_POD": "j-hybrid-0",
        "TWINPOD_ADDRESS": HOST,
        "TWINPOD_MASTER": f"{HOST}:7400",
        "TWINPOD_ETCD": f"{HOST}:2379",
        "TWINPOD_JOB_FILE": str(folder / "job.json"),
        "TWINPOD_TLS": str(folder / "tls"),
        "TWINPOD_ETCD_TLS": str(folder / "tls"),
        "TWINPOD_RUN": str(folder / "run"),
        "TWINPOD_SHM": str(folder / "shm"),
    }


def start(kind: str, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "twinpod_sidecar", kind]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_shared_memory_that_is_too_small_is_one_line_before_anything_else(kind: str, tmp_path: Path) -> None:
    with start(kind, surroundings(tmp_path, "4Pi")) as half:
        said, _ = half.communicate(timeout=60)
    assert half.returncode == 1
    assert said.count("\n") == 1
    assert f"twinpod_sidecar {kind}: {tmp_path}: shared memory too small: needs 4294967296 MiB, has " in said
    assert not (tmp_path / "run").exists()


def test_a_missing_variable_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    env = surroundings(tmp_path)
    del env["TWINPOD_POD"]
    with start("inference", env) as half:
        said, _ = half.communicate(timeout=60)
    assert (half.returncode, said.count("\n")) == (2, 1)
    assert "not set: TWINPOD_POD" in said


async def until_healthy(port: int) -> None:
    def get() -> int:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/healthz", timeout=5) as answer:
                return int(answer.status)
        except (urllib.error.URLError, OSError):
            return 0

    async with asyncio.timeout(60):
        while await asyncio.to_thread(get) != 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("kind", "port"), [("inference", 7412), ("training", 7411)])
async def test_sigterm_ends_a_half_without_etcd_in_good_order(kind: str, port: int, tmp_path: Path) -> None:
    with start(kind, surroundings(tmp_path)) as half:
        await until_healthy(port)
        half.send_signal(signal.SIGTERM)
        said, _ = await asyncio.to_thread(half.communicate, timeout=20)
    assert half.returncode == 0, said
    assert f"etcd at {HOST}:2379: no member answered" in said
    assert "Traceback" not in said


async def test_a_dismissed_sidecar_stays_healthy_until_the_pod_ends(tmp_path: Path) -> None:
    """One that ends by itself is started again by the kubelet, and counted, while the trainer beside it still ends."""
    with start("inference", surroundings(tmp_path)) as half:
        await until_healthy(7412)
        address = f"{HOST}:7402"
        reply = await GrpcHalf(address, tmp_path / "tls").execute(order(Verb.EXIT))
        assert reply.error == ""
        assert half.stdout is not None
        await asyncio.to_thread(next, (line for line in half.stdout if "dismissed" in line))
        await until_healthy(7412)
        assert half.poll() is None
        half.send_signal(signal.SIGTERM)
        await asyncio.to_thread(half.communicate, timeout=20)
    assert half.returncode == 0


async def test_a_taken_health_port_is_one_line() -> None:
    first = Health(HOST, 0)
    with pytest.raises(EnvironmentFault, match="the health port cannot be bound: Address already in use"):
        Health(HOST, first.port)
    first.start()
    first.stop()


async def test_health_is_not_ready_then_ready_then_stuck() -> None:
    health = Health(HOST, 0)
    assert health.answer() == (503, "starting")
    health.ready = True
    assert health.answer() == (200, "ok")
    health.beat -= STUCK_S + 1
    assert health.answer()[0] == 503
    health.start()
    health.stop()


class Telling:
    """A member over a store in memory; `told` waits for the next write."""

    def __init__(self) -> None:
        self.store, self.news, self.state = MemoryStore(), asyncio.Event(), "none"
        self.ended = asyncio.Event()
        self.member = Member(self.store, "/m/p", self.status, self.news, self.ended.set)

    def status(self) -> HalfStatus:
        return HalfStatus(
            pod="p",
            kind=HalfKind.INFERENCE,
            address="a:1",
            state=self.state,
            version=0,
            epoch=0,
            pod_attempt=1,
            attempt=0,
            message="",
        )


async def test_a_half_whose_name_a_newer_pod_has_taken_ends_and_leaves_the_other_s_word_alone() -> None:
    telling = Telling()
    task = asyncio.create_task(telling.member.run())
    watch = telling.store.watch("/m/")
    async with asyncio.timeout(10):
        await anext(watch)
        newer = codec.dumps(replace(telling.status(), pod_attempt=2))
        await telling.store.put("/m/p", newer)
        telling.news.set()
        await telling.ended.wait()
        await task
        assert telling.member.outdated
        await telling.member.leave()
    entry = await telling.store.get("/m/p")
    assert entry is not None
    assert entry.value == newer


async def test_a_newer_pod_reports_over_an_older_one_s_word() -> None:
    telling = Telling()
    await telling.store.put("/m/p", codec.dumps(replace(telling.status(), pod_attempt=0, state="old")))
    task = asyncio.create_task(telling.member.run())
    async with asyncio.timeout(10):
        async for change in telling.store.watch("/m/"):
            if change.entry is not None and codec.loads(HalfStatus, change.entry.value).state == "none":
                break
    task.cancel()
    assert not telling.member.outdated


async def test_a_status_is_kept_in_the_store_and_away_stops_nothing() -> None:
    telling = Telling()
    task = asyncio.create_task(telling.member.run())
    watch = telling.store.watch("/m/")
    async with asyncio.timeout(10):
        first = await anext(watch)
        assert first.entry is not None
        assert codec.loads(HalfStatus, first.entry.value).state == "none"
        telling.store.away = True
        telling.state = "idle"
        telling.news.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        telling.store.away = False
        telling.news.set()
        second = await anext(watch)
        assert second.entry is not None
        assert codec.loads(HalfStatus, second.entry.value).state == "idle"
        task.cancel()
        await telling.member.leave()
        assert (await anext(watch)).entry is None
