"""SGLang's HTTP as the worker reads it: events as 0.5.23 sends them, recorded and cut down."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable

import httpx
import pytest

from twinpod.errors import EngineFault, ProtocolError, TwinpodError, Unreachable
from twinpod.records.arrays import TokenIds
from twinpod.rollout.engine_file import EngineFile
from twinpod.rollout.ports import EngineEndpoint, EngineRequest, Finish
from twinpod.rollout.sglang_stream import SGLangStream


def event(tokens: list[int], finish: dict[str, object] | None, **meta: object) -> dict[str, object]:
    return {
        "output_ids": tokens,
        "index": 0,
        "meta_info": {
            "id": "i#0;",
            "finish_reason": finish,
            "weight_version": "7",
            "output_token_logprobs": [[-0.25, token, None] for token in tokens],
            **meta,
        },
    }


def stream(*events: object, status: int = 200) -> tuple[SGLangStream, list[httpx.Request]]:
    seen: list[httpx.Request] = []
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, text=text if status == 200 else "no such model")

    return SGLangStream("http://engine", "key", transport=httpx.MockTransport(answer)), seen


REQUEST = EngineRequest(
    name="i#0;",
    tokens=TokenIds((4, 5)),
    max_new_tokens=3,
    temperature=0.5,
    top_p=0.9,
    stop_token_ids=(1,),
    seed=77,
    report_every=32,
)


async def read(engine: SGLangStream) -> list[tuple[Finish, tuple[int, ...], int]]:
    return [(o.finish, tuple(o.tokens[: len(o.logps)]), o.version) async for o in engine.generate([REQUEST])]


async def test_a_request_says_everything_that_the_engine_must_know():
    engine, seen = stream()
    await read(engine)
    body = json.loads(seen[0].content)
    assert body["rid"] == ["i#0;"]
    assert body["input_ids"] == [[4, 5]]
    assert body["sampling_params"] == [
        {
            "max_new_tokens": 3,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop_token_ids": [1],
            "sampling_seed": 77,
            "stream_interval": 32,
        }
    ]
    assert (body["stream"], body["return_logprob"], seen[0].headers["authorization"]) == (True, True, "Bearer key")


FINISHES = [
    ({"type": "stop", "matched": 1}, Finish.STOP),
    ({"type": "length", "length": 3}, Finish.LENGTH),
    ({"type": "stop", "matched": "NaN happened"}, Finish.FAILED),  # and an end of text in the place of no token
    ({"type": "abort", "message": "Aborted"}, Finish.ABORT),
    ({"type": "abort", "message": "out of memory", "status_code": 500}, Finish.FAILED),
    (None, Finish.RUNNING),
]


@pytest.mark.parametrize(("reason", "finish"), FINISHES)
async def test_how_a_generation_stands(reason, finish):
    engine, _ = stream(event([6, 1], reason))
    assert await read(engine) == [(finish, (6, 1), 7)]


async def test_events_have_the_tokens_since_the_last_one():
    first = event([6, 7], None, completion_tokens=2)
    last = event([8, 1], {"type": "stop"}, completion_tokens=4)
    engine, _ = stream(first, last)
    assert await read(engine) == [(Finish.RUNNING, (6, 7), 7), (Finish.STOP, (6, 7, 8, 1), 7)]


async def test_an_abort_while_it_waits_again_repeats_no_token():
    first = event([6, 7], None, completion_tokens=2)
    last = event([7], {"type": "abort", "message": "Aborted"}, completion_tokens=2)
    last["meta_info"]["output_token_logprobs"] = [[-0.25, 6, None], [-0.25, 7, None]]  # type: ignore[index]
    engine, _ = stream(first, last)
    assert await read(engine) == [(Finish.RUNNING, (6, 7), 7), (Finish.ABORT, (6, 7), 7)]


async def test_an_answer_made_by_several_versions_has_none():
    spans = [{"version": "6", "start": 0, "end": 1}, {"version": "7", "start": 1, "end": 2}]
    engine, _ = stream(event([6, 1], {"type": "stop"}, weight_versions=spans))
    assert await read(engine) == [(Finish.STOP, (6, 1), -1)]


async def test_the_ranges_of_versions_count_more_than_the_newest():
    spans = [{"version": "6", "start": 0, "end": 2}]
    engine, _ = stream(event([6, 1], {"type": "stop"}, weight_versions=spans))
    assert (await read(engine))[0][2] == 6


async def test_a_log_prob_that_is_null_is_nan_and_the_stream_goes_on():
    engine, _ = stream(
        event([6, 1], {"type": "stop"}, output_token_logprobs=[[None, 6, None], [-0.5, 1, None]]),
        event([7], None, id="i#1;"),
    )
    first, second = [output async for output in engine.generate([REQUEST])]
    assert math.isnan(first.logps[0])
    assert (first.logps[1], tuple(second.tokens)) == (-0.5, (7,))


def refusing(kind: type[Exception]) -> SGLangStream:
    def answer(request: httpx.Request) -> httpx.Response:
        raise kind("gone")

    return SGLangStream("http://engine", "k", transport=httpx.MockTransport(answer))


BROKEN: list[tuple[Callable[[], SGLangStream], type[TwinpodError], str]] = [
    (lambda: stream(status=503)[0], EngineFault, "refused with status 503: no such model"),
    (lambda: stream(status=401)[0], ProtocolError, "refused with status 401"),
    (lambda: stream({"error": {"message": "too long", "code": 400}})[0], ProtocolError, "too long"),
    (lambda: stream({"error": {"message": "oom"}})[0], EngineFault, "oom"),
    (lambda: stream(event([1], {"type": "stop"}, weight_version="default"))[0], ProtocolError, "'default'"),
    (lambda: stream(event([1], {"type": "vanished"}))[0], ProtocolError, "unknown finish reason"),
    (lambda: stream(event([1], None, output_token_logprobs=[[math.nan, 1, None]]))[0], EngineFault, "JSONDecodeError"),
    (lambda: refusing(httpx.ConnectError), EngineFault, "ConnectError: gone"),
]


@pytest.mark.parametrize(("engine", "kind", "line"), BROKEN)
async def test_what_breaks_off_is_an_error_of_the_right_kind(engine, kind, line):
    with pytest.raises(kind, match=line):
        await read(engine())


async def test_an_abort_names_one_or_all():
    engine, seen = stream()
    await engine.abort("i#0;")
    await engine.abort_all()
    assert [json.loads(request.content) for request in seen] == [
        {"rid": "i#0;", "abort_all": False},
        {"rid": "", "abort_all": True},
    ]
    with pytest.raises(Unreachable):
        await refusing(httpx.ReadTimeout).abort_all()


async def test_word_of_the_engine_is_what_the_file_says(tmp_path):
    path = tmp_path / "engine.json"
    source = EngineFile(path, lambda serving: pytest.fail("not asked for"), every_s=0.001)
    assert source.current() is None
    first = EngineEndpoint(urls=("http://127.0.0.1:5",), api_key="k", version=1)

    def write(text: str) -> None:
        (tmp_path / "part").write_text(text)
        os.replace(tmp_path / "part", path)

    waiting = asyncio.create_task(source.changed(None))
    write('{"urls": ["http://127.0.0.1:5"], "api_key": "k", "version": 1}')
    assert await asyncio.wait_for(waiting, 5) == first
    waiting = asyncio.create_task(source.changed(first))
    write('{"urls": ["http://127.0.0.1:6"], "api_key": "k", "version": 2}')
    assert (await asyncio.wait_for(waiting, 5)) == EngineEndpoint(urls=("http://127.0.0.1:6",), api_key="k", version=2)
    write("not json")
    assert source.current() is None
    path.unlink()
    assert source.current() is None
