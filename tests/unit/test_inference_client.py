"""The client of SGLang against a fake server: what it asks, what it makes of answers, how it fails."""

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from twinpod.errors import EngineFault, IntegrityError, ProtocolError, Unreachable, WrongVersion
from twinpod.inference.sglang_engine import EngineSpec, server_args
from twinpod.testing.engine_client import GeneratingEngine, Generation

SPEC = EngineSpec(model_path="/m", port=1234, api_key="secret", kv_tokens=1000, context_length=64)


class Server:
    """SGLang's routes, as far as the client uses them. `answers` overrides a route's answer."""

    def __init__(self, **answers) -> None:
        self.version, self.calls, self.answers = "default", [], answers
        self.aborted = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.calls.append((request.url.path, body))
        assert request.headers["authorization"] == "Bearer secret"
        route = request.url.path.strip("/")
        if route in self.answers:
            status, content = self.answers[route]
            return httpx.Response(status, json=content)
        return await getattr(self, route)(body)

    async def model_info(self, body):
        return httpx.Response(200, json={"weight_version": self.version})

    async def begin_weight_update(self, body):
        return httpx.Response(200, json={"success": True, "message": ""})

    end_weight_update = begin_weight_update

    async def update_weight_version(self, body):
        self.version = body["new_version"]
        return httpx.Response(200, json={"success": True})

    async def update_weights_from_tensor(self, body):
        self.version = body["weight_version"]
        return httpx.Response(200, json={"success": True, "message": ""})

    async def abort_request(self, body):
        self.aborted.set()
        return httpx.Response(200)

    async def generate(self, body):
        if body["sampling_params"][0]["max_new_tokens"] == 1000:
            await self.aborted.wait()
        return httpx.Response(200, json=[sample(ids, version=self.version) for ids in body["input_ids"]])

    def engine(self) -> GeneratingEngine:
        return GeneratingEngine("http://127.0.0.1:1", "secret", tensor_parallel=2, transport=httpx.MockTransport(self))


def sample(ids, *, version="7", logps=(-0.5, -0.25), spans=None, finish="length"):
    meta = {
        "finish_reason": {"type": finish},
        "weight_version": version,
        "output_token_logprobs": [[logp, 9, None] for logp in logps],
        "weight_versions": spans if spans is not None else [{"version": version, "start": 0, "end": len(logps)}],
    }
    return {"output_ids": [ids[0], 9][: len(logps)], "meta_info": meta}


def test_arguments_by_machine() -> None:
    cpu = server_args(SPEC)
    assert (cpu["device"], cpu["attention_backend"], cpu["load_format"]) == ("cpu", "twinpod_cpu", "dummy")
    assert (cpu["max_total_tokens"], cpu["custom_weight_loader"]) == (1000, ["twinpod.inference.weight_loader.load"])
    gpu = server_args(
        EngineSpec(**{**{f: getattr(SPEC, f) for f in SPEC.__slots__}, "accelerators": True, "sleep": True})
    )
    assert "device" not in gpu
    assert "attention_backend" not in gpu
    assert gpu["enable_memory_saver"]


async def test_load_gives_every_rank_the_payload_and_checks_the_version() -> None:
    server = Server()
    async with server.engine() as engine:
        assert await engine.load("cGF5", 7) >= 0
    paths = [path for path, _ in server.calls]
    assert paths == [
        "/begin_weight_update",
        "/update_weights_from_tensor",
        "/end_weight_update",
        "/model_info",
    ]
    body = server.calls[1][1]
    assert body["serialized_named_tensors"] == ["cGF5", "cGF5"]
    assert (body["weight_version"], body["flush_cache"]) == ("7", True)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("IntegrityError: version 7, shard a: expected digest x, found y", IntegrityError),
        ("rank 1: ProtocolError: no such manifest", ProtocolError),
        ("the cache was not flushed", EngineFault),
    ],
)
async def test_a_failed_load_is_labelled_and_told(message, error) -> None:
    server = Server(update_weights_from_tensor=(400, {"success": False, "message": message}))
    async with server.engine() as engine:
        with pytest.raises(error, match=message.rpartition(": ")[2]):
            await engine.load("cGF5", 7)
        assert await engine.weight_version() == "broken"
    assert "/end_weight_update" in [path for path, _ in server.calls]


async def test_a_version_that_is_not_there_afterwards_is_an_error() -> None:
    server = Server(model_info=(200, {"weight_version": "6"}))
    async with server.engine() as engine:
        with pytest.raises(WrongVersion, match="asked for weights 7, the engine serves 6"):
            await engine.load("cGF5", 7)


async def test_samples_come_back_by_request() -> None:
    server = Server()
    server.version = "7"
    async with server.engine() as engine:
        first, second = await engine.generate_many(
            [Generation(tokens=(1, 2), n=2, max_new_tokens=2), Generation(tokens=(3,), n=1, max_new_tokens=2)]
        )
    assert [s.tokens for s in first] == [(1, 9), (1, 9)]
    assert (second[0].tokens, second[0].logps, second[0].version, second[0].finish) == (
        (3, 9),
        (-0.5, -0.25),
        "7",
        "length",
    )


async def test_abort_all_waits_for_the_answers() -> None:
    server = Server()
    async with server.engine() as engine:
        running = asyncio.create_task(engine.generate(Generation(tokens=(1,), n=3, max_new_tokens=1000)))
        while "/generate" not in [path for path, _ in server.calls]:
            await asyncio.sleep(0)
        with pytest.raises(ProtocolError, match="1 generations are running; call abort_all"):
            await engine.load("cGF5", 7)
        await engine.abort_all()
        assert running.done() or len(await asyncio.wait_for(running, 1)) == 3


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            sample([1], spans=[{"version": "6", "start": 0, "end": 1}, {"version": "7", "start": 1, "end": 2}]),
            WrongVersion,
            "6, 7",
        ),
        (sample([1], spans=[{"version": "broken", "start": 0, "end": 2}]), WrongVersion, "broken"),
        (sample([1], logps=(None, -1.0)), EngineFault, "not numbers"),
        ({**sample([1]), "output_ids": [1]}, ProtocolError, "1 tokens but 2 log-probs"),
    ],
)
async def test_answers_that_must_not_be_used(answer, error, words) -> None:
    async with Server(generate=(200, [answer])).engine() as engine:
        with pytest.raises(error, match=words):
            await engine.generate(Generation(tokens=(1,), n=1, max_new_tokens=2))


async def test_an_aborted_request_that_never_ran_has_no_tokens() -> None:
    answer = sample([1], logps=(), spans=[], finish="abort")
    async with Server(generate=(200, [answer])).engine() as engine:
        (found,) = await engine.generate(Generation(tokens=(1,), n=1, max_new_tokens=2))
    assert (found.tokens, found.finish, found.version) == ((), "abort", "7")


async def test_an_engine_that_never_answers() -> None:
    async with GeneratingEngine("http://127.0.0.1:1", "secret") as engine:
        with pytest.raises(Unreachable, match=r"did not answer within 0\.05 s; read the engine's log"):
            await engine.wait_healthy(0.05)
        with pytest.raises(EngineFault, match="/model_info: ConnectError"):
            await engine.weight_version()


def test_the_client_reaches_neither_torch_nor_sglang() -> None:
    code = "import sys, twinpod.inference.sglang_engine; print({'torch', 'sglang', 'numpy'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
