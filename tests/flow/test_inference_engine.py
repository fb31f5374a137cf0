"""A real SGLang, forked by a real standby, takes weights from shared memory and generates with exactly them."""

import asyncio
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedConfig, Qwen2Config

from twinpod.errors import EngineFault, IntegrityError, ProtocolError, WrongVersion
from twinpod.inference.sglang_engine import EngineSpec, server_args
from twinpod.master.limits import RESERVED
from twinpod.records.arrays import TokenIds
from twinpod.rollout.ports import EngineOutput, EngineRequest, Finish
from twinpod.rollout.sglang_stream import SGLangStream
from twinpod.rpc.ports import free_port
from twinpod.testing.engine_client import GeneratingEngine, Generation
from twinpod.testing.standby_driver import StandbyDriver, publish

CONFIG = Qwen2Config(
    vocab_size=70,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    tie_word_embeddings=False,
    eos_token_id=None,
    bos_token_id=None,
    architectures=["Qwen2ForCausalLM"],
    dtype="float32",
)
OPT = {
    tied: OPTConfig(
        vocab_size=70,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,  # as long as the context: the last position is used
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
        architectures=["OPTForCausalLM"],
        dtype="float32",
    )
    for tied in (False, True)
}
PROMPT = tuple(range(2, 40))


def weights(seed: int, config: PreTrainedConfig = CONFIG) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shapes = AutoModelForCausalLM.from_config(config).state_dict()
    made = {name: torch.randn_like(x) * 0.2 + ("norm" in name) for name, x in shapes.items()}
    return {name: x for name, x in made.items() if not (config.tie_word_embeddings and name == "lm_head.weight")}


def logps(
    tensors: dict[str, torch.Tensor],
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
    config: PreTrainedConfig = CONFIG,
) -> torch.Tensor:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    found = model.load_state_dict(tensors, strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    with torch.no_grad():
        rows = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.fixture(scope="module")
def shm() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="twinpod-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    CONFIG.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def standby(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandbyDriver]:
    with StandbyDriver(tmp_path_factory.mktemp("standby") / "log") as driver:
        yield driver


class Started:
    """An engine that the standby forked."""

    def __init__(self, standby: StandbyDriver, model: Path, log: Path, tensor_parallel: int) -> None:
        port = free_port()
        spec = EngineSpec(
            model_path=str(model),
            port=port,
            api_key="key",
            kv_tokens=16384,
            context_length=512,
            max_running=16,
            tensor_parallel=tensor_parallel,
        )
        self.ranks = tensor_parallel
        self.standby, self.log, self.url = standby, log, f"http://127.0.0.1:{port}"
        self.pid = standby.ask("start", args=server_args(spec), log=str(log))["pid"]

    def client(self) -> GeneratingEngine:
        return GeneratingEngine(self.url, "key", tensor_parallel=self.ranks)

    def members(self) -> set[int]:
        return {int(entry.name) for entry in Path("/proc").iterdir() if _group(entry) == self.pid}

    async def load(self, engine: GeneratingEngine, published, version: int) -> None:
        await engine.wait_healthy(60)
        await engine.load(self.standby.ask("payload", manifest=published[1], digest=published[2])["payload"], version)

    def stop(self) -> None:
        self.standby.ask("stop", pid=self.pid)


def _group(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[2]) if entry.name.isdigit() else None
    except (FileNotFoundError, ProcessLookupError):
        return None


@pytest.fixture(scope="module")
def started(standby: StandbyDriver, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    engine = Started(standby, model, tmp_path_factory.mktemp("engine") / "log", 1)
    yield engine
    engine.stop()


def test_the_standby_may_fork(standby: StandbyDriver) -> None:
    assert standby.ready["threads"] == 1
    assert standby.ready["accelerator"] is False


async def test_log_probs_are_those_of_the_loaded_weights(started: Started, shm: Path) -> None:
    async with started.client() as engine:
        for version, parallel in (
            (1, (2, 2)),
            (2, (1, 1)),
        ):  # the same prompt twice: nothing of version 1 may be reused
            tensors = weights(version)
            published = publish(shm, tensors, version, tensor_parallel=parallel[0], pipeline_parallel=parallel[1])
            await started.load(engine, published, version)
            requests = [Generation(tokens=PROMPT[:length], n=2, max_new_tokens=9) for length in (1, 5, 38)]
            groups = await engine.generate_many(requests)
            for request, samples in zip(requests, groups, strict=True):
                for sample in samples:
                    assert (sample.version, sample.finish, len(sample.tokens)) == (str(version), "length", 9)
                    expected = logps(tensors, request.tokens, sample.tokens)
                    torch.testing.assert_close(torch.tensor(sample.logps), expected, atol=1e-4, rtol=0)
            assert groups[2][0].tokens != groups[2][1].tokens

            longer = PROMPT + groups[2][0].tokens  # a resumed trajectory: its beginning is in the cache
            (resumed,) = await engine.generate(Generation(tokens=longer, n=1, max_new_tokens=3, temperature=0.5))
            scaled = dict(tensors, **{"lm_head.weight": tensors["lm_head.weight"] / 0.5})
            expected = logps(scaled, longer, resumed.tokens)  # log-probs are at the sampling temperature
            torch.testing.assert_close(torch.tensor(resumed.logps), expected, atol=1e-4, rtol=0)


async def test_the_worker_hears_tokens_as_they_come_and_a_seed_names_the_draws(started: Started, shm: Path) -> None:
    tensors = weights(4)
    async with started.client() as engine:
        await started.load(engine, publish(shm, tensors, 4), 4)
    stream = SGLangStream(started.url, "key")

    def ask(name: str, seed: int, tokens: tuple[int, ...] = PROMPT, most: int = 150) -> EngineRequest:
        return EngineRequest(
            name=name, tokens=TokenIds(tokens), max_new_tokens=most, temperature=1.0, top_p=1.0, stop_token_ids=(),
            seed=seed, report_every=32,
        )  # fmt: skip

    async def answers(*requests: EngineRequest) -> dict[str, list[EngineOutput]]:
        found: dict[str, list[EngineOutput]] = {request.name: [] for request in requests}
        async for output in stream.generate(requests):
            found[output.name].append(output)
        return found

    found = await answers(ask("a;", 5), ask("b;", 6))
    for outputs in found.values():
        last = outputs[-1]
        assert (last.finish, last.version, len(last.tokens), len(last.logps)) == (Finish.LENGTH, 4, 150, 150)
        assert len(outputs) >= 4
        assert all(one.tokens == last.tokens[: len(one.tokens)] for one in outputs)
        torch.testing.assert_close(
            torch.tensor(last.logps.array), logps(tensors, PROMPT, tuple(last.tokens)), atol=1e-4, rtol=0
        )
    whole = found["a;"][-1].tokens
    assert whole != found["b;"][-1].tokens
    again = await answers(ask("c;", 5), *(ask(f"d{n};", 100 + n, PROMPT[: n + 1]) for n in range(5)))
    assert again["c;"][-1].tokens == whole, "whatever runs beside it"
    resumed = await answers(ask("e;", 5, (*PROMPT, *whole[:60]), 90))
    assert resumed["e;"][-1].tokens == whole[60:], "a trajectory that was cut goes on as if it had not been"
    top_p = [replace(ask(f"f{n};", 9, most=20), top_p=0.5) for n in range(2)]
    first, second = (await answers(*top_p)).values()
    assert first[-1].tokens == second[-1].tokens
    await stream.close()


async def test_a_stop_token_ends_the_answer_and_is_part_of_it(started: Started, shm: Path) -> None:
    async with started.client() as engine:
        await started.load(engine, publish(shm, weights(3), 3), 3)
        (free,) = await engine.generate(Generation(tokens=PROMPT, n=1, max_new_tokens=8, temperature=0.0))
        stop = free.tokens[-1]
        (cut,) = await engine.generate(
            Generation(tokens=PROMPT, n=1, max_new_tokens=8, temperature=0.0, stop_token_ids=(stop,))
        )
    assert cut.finish == "stop"
    assert cut.tokens == free.tokens[: free.tokens.index(stop) + 1]


async def test_a_trajectory_that_fits_by_our_limits_is_generated_whole_and_when_it_was_cut(
    started: Started, shm: Path
) -> None:
    most = 512 - RESERVED  # of prompt and answer in the context of this engine
    ids = tuple(2 + number % 60 for number in range(most))
    async with started.client() as engine:
        await started.load(engine, publish(shm, weights(4), 4), 4)
        (whole,) = await engine.generate(Generation(tokens=PROMPT, n=1, max_new_tokens=most - len(PROMPT)))
        (last,) = await engine.generate(Generation(tokens=ids[:-1], n=1, max_new_tokens=1))
        assert (len(whole.tokens), len(last.tokens)) == (most - len(PROMPT), 1)
        with pytest.raises(EngineFault, match="exceeds the maximum allowed length"):
            await engine.generate(Generation(tokens=ids, n=1, max_new_tokens=1))


async def test_an_abort_keeps_what_was_generated(started: Started, shm: Path) -> None:
    tensors = weights(4)
    async with started.client() as engine:
        await started.load(engine, publish(shm, tensors, 4), 4)
        running = asyncio.create_task(engine.generate(Generation(tokens=PROMPT, n=20, max_new_tokens=450)))
        async with asyncio.timeout(20):
            while (await engine.load_figures())["running"] < 16:
                await asyncio.sleep(0)
        await engine.abort_all()
        samples = await asyncio.wait_for(running, 5)
    assert {sample.finish for sample in samples} <= {"abort", "length"}
    lengths = [len(sample.tokens) for sample in samples]
    assert sum(length > 0 for length in lengths) == 16  # those that were running; four were waiting and have nothing
    cut = max(samples, key=lambda sample: len(sample.tokens))
    torch.testing.assert_close(torch.tensor(cut.logps), logps(tensors, PROMPT, cut.tokens), atol=1e-4, rtol=0)


async def test_a_load_that_fails_never_serves(started: Started, shm: Path) -> None:
    tensors = weights(5)
    async with started.client() as engine:
        await started.load(engine, publish(shm, tensors, 5), 5)
        _, manifest, _ = publish(shm, weights(6), 6)
        with pytest.raises(IntegrityError, match="expected digest xxh3:0, found xxh3:"):
            await started.load(engine, (None, manifest, "xxh3:0"), 6)
        lacking = {name: x for name, x in tensors.items() if name != "model.layers.1.mlp.down_proj.weight"}
        with pytest.raises(ProtocolError, match=r"version 7: 1 parameters .*layers\.1\.mlp\.down_proj\.weight"):
            await started.load(engine, publish(shm, lacking, 7), 7)
        assert await engine.weight_version() == "broken"
        with pytest.raises(WrongVersion, match="broken"):
            await engine.generate(Generation(tokens=PROMPT, n=1, max_new_tokens=2))
        await started.load(engine, publish(shm, tensors, 8), 8)  # a good load mends it
        assert (await engine.generate(Generation(tokens=PROMPT, n=1, max_new_tokens=2)))[0].version == "8"


async def test_two_engine_ranks_take_their_parts(
    standby: StandbyDriver, model: Path, shm: Path, tmp_path: Path
) -> None:
    tensors = weights(9)
    engine = Started(standby, model, tmp_path / "log", 2)
    async with engine.client() as client:
        await engine.load(client, publish(shm, tensors, 9, tensor_parallel=2, pipeline_parallel=2), 9)
        first, second = await client.generate(Generation(tokens=PROMPT, n=2, max_new_tokens=6))
        for sample in (first, second):
            expected = logps(tensors, PROMPT, sample.tokens)
            torch.testing.assert_close(torch.tensor(sample.logps), expected, atol=1e-4, rtol=0)
        assert len(set(await client.checksum())) == 2
        with pytest.raises(ProtocolError, match=r"rank [01]: |does not exist"):
            await engine.load(client, (None, str(shm / "version-10.json"), "xxh3:0"), 10)
    before = engine.members()
    assert len(before) >= 4
    answer = standby.ask("stop", pid=engine.pid)
    assert answer["gone"]
    assert engine.members() == set()
    leavings = [*Path("/dev/shm").glob("sgl_shm_*"), *Path("/dev/shm").glob("sglang_loads_*")]
    assert not [path for path in leavings if any(str(pid) in path.name for pid in before)]


@pytest.mark.parametrize(("tied", "tensor_parallel"), [(False, 1), (True, 1), (False, 2), (True, 2)])
async def test_learned_positions_and_biases_are_served(
    standby: StandbyDriver, shm: Path, tmp_path: Path, tied: bool, tensor_parallel: int
) -> None:
    config, tensors = OPT[tied], weights(11, OPT[tied])
    config.save_pretrained(tmp_path)
    engine = Started(standby, tmp_path, tmp_path / "log", tensor_parallel)
    async with engine.client() as client:
        await engine.load(client, publish(shm, tensors, 11, tensor_parallel=2, pipeline_parallel=2), 11)
        full = (PROMPT * 14)[:500]
        requests = [Generation(tokens=prompt, n=2, max_new_tokens=6) for prompt in (PROMPT[:1], PROMPT, full)]
        groups = await client.generate_many(requests)
        for request, samples in zip(requests, groups, strict=True):
            for sample in samples:
                expected = logps(tensors, request.tokens, sample.tokens, config)
                torch.testing.assert_close(torch.tensor(sample.logps), expected, atol=1e-4, rtol=0)
    engine.stop()


async def test_an_engine_that_dies_is_reported(standby: StandbyDriver, model: Path, tmp_path: Path) -> None:
    engine = Started(standby, model, tmp_path / "log", 1)
    async with engine.client() as client:
        await client.wait_healthy(60)
        os.kill(engine.pid, signal.SIGKILL)
        exit_event = standby.event("exit")
        assert (exit_event["pid"], exit_event["status"]) == (engine.pid, -9)
        assert engine.members() == set()
        with pytest.raises(EngineFault):
            await client.weight_version()
    assert standby.ask("stop", pid=engine.pid)["gone"]  # stopping it again is no error


def test_a_bad_argument_ends_the_engine_not_the_standby(standby: StandbyDriver, tmp_path: Path) -> None:
    pid = standby.ask("start", args={"no_such_argument": 1}, log=str(tmp_path / "log"))["pid"]
    event = standby.event("exit")
    assert (event["pid"], event["status"]) == (pid, 1)
    assert "no_such_argument" in (tmp_path / "log").read_text()
    with pytest.raises(EngineFault, match=r"unknown op 'dance'; known: start, stop, payload"):
        standby.ask("dance")


def test_nobody_outlives_the_standby(model: Path, tmp_path: Path, standby: StandbyDriver) -> None:
    other = StandbyDriver(tmp_path / "standby.log")
    engine = Started(other, model, tmp_path / "log", 1)

    async def up() -> None:
        async with engine.client() as client:
            await client.wait_healthy(60)

    asyncio.run(up())
    members = [os.pidfd_open(pid) for pid in engine.members()]
    assert len(members) >= 2
    other.process.kill()
    other.process.wait()
    for member in members:
        assert select.select([member], [], [], 10)[0], "an engine process survived its standby"
        os.close(member)
