"""A real SGLang that is executed anew instead of forked, and two real engines in one pod, handled as one."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from twinpod.inference.sglang_engine import EngineSpec, server_args
from twinpod.records.arrays import TokenIds
from twinpod.rollout.engines import several
from twinpod.rollout.ports import EngineOutput, EnginePort, EngineRequest, Finish
from twinpod.rollout.sglang_stream import SGLangStream
from twinpod.rpc.ports import free_port
from twinpod.testing.engine_client import GeneratingEngine
from twinpod.testing.standby_driver import Published, StandbyDriver, publish
from twinpod_sidecar.children import children_of
from twinpod_sidecar.engine_group import EngineGroup, engine_specs

CONFIG = Qwen2Config(
    vocab_size=70,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    eos_token_id=None,
    bos_token_id=None,
    architectures=["Qwen2ForCausalLM"],
    dtype="float32",
)
BASE = EngineSpec(model_path="", port=0, api_key="", kv_tokens=4096, context_length=512, max_running=8)


@pytest.fixture
def published() -> Iterator[Published]:
    folder = Path(tempfile.mkdtemp(prefix="twinpod-test-", dir="/dev/shm"))
    torch.manual_seed(1)
    shapes = AutoModelForCausalLM.from_config(CONFIG).state_dict()
    tensors = {name: torch.randn_like(x) * 0.2 + ("norm" in name) for name, x in shapes.items()}
    yield publish(folder, tensors, 3)
    shutil.rmtree(folder)


@pytest.fixture
def base(tmp_path: Path) -> EngineSpec:
    CONFIG.save_pretrained(tmp_path / "model")
    return EngineSpec(
        **{**{name: getattr(BASE, name) for name in BASE.__slots__}, "model_path": str(tmp_path / "model")}
    )


def start(standby: StandbyDriver, base: EngineSpec, count: int, log: Path, *, spawn: bool = False) -> EngineGroup:
    ports = tuple(free_port() for _ in range(count))
    urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
    group = EngineGroup(1, tuple(GeneratingEngine(url, "key") for url in urls), urls, "key", 0)
    for spec in engine_specs(base, ports, "key", seed=0, run=1):
        group.pids.append(standby.ask("start", args=server_args(spec), log=str(log), spawn=spawn)["pid"])
    return group


async def serve(standby: StandbyDriver, group: EngineGroup, published: Published) -> EnginePort:
    await group.wait_healthy(240)
    payload = standby.ask("payload", manifest=published[1], digest=published[2])["payload"]
    await group.load(payload, 3)
    return several([SGLangStream(url, "key") for url in group.urls])


async def answers(port: EnginePort, count: int) -> list[EngineOutput]:
    requests = [
        EngineRequest(
            name=f"r{number:02}",
            tokens=TokenIds((2, 3, 4)),
            max_new_tokens=5,
            temperature=1.0,
            top_p=1.0,
            stop_token_ids=(),
            seed=number,
            report_every=32,
        )
        for number in range(count)
    ]
    return [output async for output in port.generate(requests) if output.finish is not Finish.RUNNING]


def tree(pid: int) -> set[int]:
    found = {pid}
    for child in children_of(pid):
        found |= tree(child)
    return found


async def test_an_engine_that_is_executed_anew_serves_and_dies_like_a_forked_one(
    base: EngineSpec, published: Published, tmp_path: Path
) -> None:
    with StandbyDriver(tmp_path / "standby.log", arguments=("--spawn",)) as standby:
        assert standby.ready["imported"] is False
        group = start(standby, base, 1, tmp_path / "engine.log", spawn=True)
        port = await serve(standby, group, published)
        outputs = await answers(port, 2)
        assert {(output.finish, output.version, len(output.tokens)) for output in outputs} == {(Finish.LENGTH, 3, 5)}
        await port.close()
        await group.close()
        members = tree(group.pids[0])
        assert len(members) >= 3
        assert standby.ask("stop", pid=group.pids[0])["gone"]
        assert not [pid for pid in members if Path("/proc", str(pid)).exists()]
        assert not list(Path(tempfile.gettempdir()).glob("twinpod-engine-*/start.json"))


async def test_two_engines_of_a_pod_serve_the_same_weights_and_share_the_sequences(
    base: EngineSpec, published: Published, tmp_path: Path
) -> None:
    with StandbyDriver(tmp_path / "standby.log") as standby:
        group = start(standby, base, 2, tmp_path / "engine.log")
        port = await serve(standby, group, published)
        one, two = group.engines
        assert isinstance(one, GeneratingEngine)
        assert isinstance(two, GeneratingEngine)
        assert await one.checksum() == await two.checksum()
        outputs = await answers(port, 8)
        assert {output.name for output in outputs} == {f"r{number:02}" for number in range(8)}
        assert {output.version for output in outputs} == {3}
        assert len({tuple(output.tokens) for output in outputs}) > 1
        logs = (tmp_path / "engine.log").read_text()
        assert logs.count("max_running_requests=4") >= 2
        await asyncio.gather(port.close(), group.close())
        for pid in group.pids:
            assert standby.ask("stop", pid=pid)["gone"]
