"""HTTP to an SGLang server on loopback: one client for the half, which moves weights, and the worker, which generates.

Nothing of SGLang is imported. What a server refuses, each side names in its own way (`Refusal`); that it does not
answer or breaks off means the same to both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from twinpod.errors import EngineFault, TwinpodError, Unreachable

__all__ = ["Refusal", "SGLangHttp"]

CONNECT_S = 5.0
Refusal = Callable[[str, int, str], TwinpodError]
"""(where, status, reason) -> the error that a refusal is."""


class SGLangHttp:
    """Connections to one server. Use it in one event loop; `close` when done."""

    def __init__(
        self,
        url: str,
        api_key: str,
        refusal: Refusal,
        *,
        timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._refusal, self._timeout = refusal, timeout_s
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            transport=transport,
            trust_env=False,
        )

    async def call(self, method: str, path: str, body: Any = None, *, timeout_s: float | None = 0.0) -> Any:
        """The answer's JSON, None when it has none. `timeout_s` 0: the client's own; None: as long as it takes.

        Unreachable without an answer, EngineFault when it breaks off, what `refusal` says when it refuses.
        """
        limit = httpx.USE_CLIENT_DEFAULT if timeout_s == 0.0 else httpx.Timeout(timeout_s, connect=CONNECT_S)
        where = f"{self.url}{path}"
        try:
            answer = await self._http.request(method, path, json=body, timeout=limit)
        except httpx.TimeoutException as error:
            raise Unreachable(f"no answer within {timeout_s or self._timeout:g} s", where=where) from error
        except httpx.HTTPError as error:
            raise _broken(error, where) from error
        content = _json(answer)
        if answer.status_code != 200 or (isinstance(content, dict) and content.get("success") is False):
            raise self._refusal(where, answer.status_code, _reason(content, answer.text))
        return content

    @asynccontextmanager
    async def events(self, path: str, body: bytes) -> AsyncIterator[AsyncIterator[str]]:
        """Post JSON and read the answer's server-sent events, a JSON text each. The server may be silent for as long as
        it is busy: a dead one closes the stream.
        """
        where, limit = f"{self.url}{path}", httpx.Timeout(self._timeout, connect=CONNECT_S, read=None, pool=None)
        headers = {"content-type": "application/json"}
        try:
            async with self._http.stream("POST", path, content=body, headers=headers, timeout=limit) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise self._refusal(where, answer.status_code, _reason(_json(answer), answer.text))
                yield _texts(answer)
        except httpx.HTTPError as error:
            raise _broken(error, where) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


async def _texts(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield line[6:]


def _broken(error: httpx.HTTPError, where: str) -> EngineFault:
    return EngineFault(f"{type(error).__name__}: {error}", where=where, mend="read the engine's log")


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _reason(content: Any, text: str) -> str:
    if isinstance(content, dict):
        reason = content.get("message") or content.get("error") or content.get("detail")
        if isinstance(reason, dict):
            reason = reason.get("message", reason)
        if reason:
            return str(reason)[:300]
    return text[:300]
