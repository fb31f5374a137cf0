"""SGLang as the worker's engine: one streamed `/generate` for everything that a pull brought. No SGLang import;
loopback only.

Every sequence is a request of its own with a name of ours (`rid`), so that one can be aborted alone; the answers come
as server-sent events, each with the tokens since the last (`incremental_streaming_output`). `stream_interval` keeps
SGLang from sending every token. (0.5.23; an event's fields are those of `tokenizer_manager.py`: `output_ids`,
`meta_info`, `index`. An abort of a request that waits again, after its memory was taken back, repeats tokens: what
counts is `completion_tokens`.)
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import orjson

from twinpod.errors import EngineFault, ProtocolError
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.rollout.ports import EngineOutput, EngineRequest, Finish
from twinpod.rpc.sglang_http import SGLangHttp

__all__ = ["SGLangStream"]

_NAN = "NaN happened"  # SGLang of a drawn id that is no token; it has put an end of text there (`schedule_batch.py`)
_SEVERAL = -1  # version of an answer that several versions made


class SGLangStream:
    """An EnginePort over HTTP. Use it in one event loop."""

    def __init__(self, url: str, api_key: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._url = url
        self._http = SGLangHttp(url, api_key, _refused, timeout_s=10.0, transport=transport)

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncIterator[EngineOutput]:
        """See EnginePort. The stream may be silent for as long as the engine is busy: a dead engine closes it."""
        heard: dict[str, _Heard] = {}
        try:
            async with self._http.events("/generate", _body(requests)) as events:
                async for text in events:
                    yield _output(orjson.loads(text), heard, self._url)
        except orjson.JSONDecodeError as error:
            raise EngineFault(f"{type(error).__name__}: {error}", where=f"{self._url}/generate") from error

    async def abort(self, name: str) -> None:
        """See EnginePort."""
        await self._http.call("POST", "/abort_request", {"rid": name, "abort_all": False})

    async def abort_all(self) -> None:
        """See EnginePort."""
        await self._http.call("POST", "/abort_request", {"rid": "", "abort_all": True})

    async def close(self) -> None:
        """See EnginePort."""
        await self._http.close()


def _body(requests: Sequence[EngineRequest]) -> bytes:
    """JSON straight from the arrays: no Python number a token."""
    body = {
        "rid": [request.name for request in requests],
        "input_ids": [request.tokens.array for request in requests],
        "sampling_params": [
            {
                "max_new_tokens": request.max_new_tokens,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "stop_token_ids": request.stop_token_ids,
                "sampling_seed": request.seed,
                "stream_interval": request.report_every,
            }
            for request in requests
        ],
        "return_logprob": True,
        "logprob_start_len": -1,
        "stream": True,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(slots=True)
class _Heard:
    """What came of one sequence so far."""

    tokens: list[TokenIds] = field(default_factory=list)
    logps: list[LogProbs] = field(default_factory=list)
    count: int = 0


def _output(event: dict[str, Any], heard: dict[str, _Heard], url: str) -> EngineOutput:
    """One event; an event that is an error of the whole stream is raised."""
    if "meta_info" not in event:
        trouble = event.get("error")
        trouble = trouble if isinstance(trouble, dict) else {"message": str(event)}
        raise _refused(f"{url}/generate", int(trouble.get("code") or 500), str(trouble.get("message")))
    meta = event["meta_info"]
    finish, message = _finish(meta.get("finish_reason"), url)
    mine = heard.setdefault(meta["id"], _Heard())
    ids, entries = event.get("output_ids") or [], meta.get("output_token_logprobs") or []
    fresh = min(len(ids), int(meta.get("completion_tokens", mine.count + len(ids))) - mine.count)
    ids, entries = ids[len(ids) - fresh :], entries[max(0, len(entries) - fresh) :]
    mine.count += fresh
    mine.tokens.append(TokenIds(np.array(ids, dtype=TokenIds.dtype)))
    known = (math.nan if entry[0] is None else entry[0] for entry in entries)  # null: JSON has no NaN
    mine.logps.append(LogProbs(np.fromiter(known, dtype=LogProbs.dtype, count=len(entries))))
    return EngineOutput(
        name=meta["id"],
        tokens=TokenIds.joined(mine.tokens),
        logps=LogProbs.joined(mine.logps),
        finish=finish,
        version=_version(meta, url),
        message=message,
    )


def _finish(reason: dict[str, Any] | None, url: str) -> tuple[Finish, str]:
    if reason is None:
        return Finish.RUNNING, ""
    if reason["type"] == "abort" and reason.get("status_code"):
        return Finish.FAILED, str(reason.get("message"))
    if reason.get("matched") == _NAN:
        return Finish.FAILED, "the engine drew a token that does not exist: its logits are not finite"
    try:
        return Finish(reason["type"]), ""
    except ValueError as error:
        raise ProtocolError(f"unknown finish reason {reason!r}", where=url) from error


def _version(meta: dict[str, Any], url: str) -> int:
    """The version of all tokens. SGLang lists them by ranges once it has seen more than one, and names the newest
    always.
    """
    named = {str(span["version"]) for span in meta.get("weight_versions") or ()} or {str(meta["weight_version"])}
    if len(named) > 1:
        return _SEVERAL
    (version,) = named
    try:
        return int(version)
    except ValueError as error:
        raise ProtocolError(f"the engine serves weights {version!r}, which are none of ours", where=url) from error


def _refused(where: str, status: int, reason: str) -> EngineFault | ProtocolError:
    """A status in the 400s: the request is wrong and will be so again; else the engine is."""
    kind = ProtocolError if 400 <= status < 500 else EngineFault
    return kind(f"refused with status {status}: {reason}", where=where)
