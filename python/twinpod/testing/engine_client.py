"""For tests and benches: an engine's client that generates too, in one call that answers when the last sample is done.

`n` samples of one prompt: SGLang first prefills the prompt alone, then sends the samples. An abort that falls between
the two misses them, so `abort_all` repeats itself until nothing runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from twinpod.errors import EngineFault, ProtocolError, WrongVersion
from twinpod.inference.names import BROKEN_VERSION
from twinpod.inference.sglang_engine import SGLangEngine

__all__ = ["GeneratingEngine", "Generation", "Sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One prompt to go on from, `n` times."""

    tokens: tuple[int, ...]  # prompt and everything generated before
    n: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What came back for one of the n. `finish`: "stop" (a stop token, which is the last of `tokens`), "length" or
    "abort".
    """

    tokens: tuple[int, ...]
    logps: tuple[float, ...]  # one a token, at the sampling temperature
    finish: str
    version: str  # of the weights that made all of the tokens


class GeneratingEngine(SGLangEngine):
    """See SGLangEngine. `async with`, or `close` when done."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        tensor_parallel: int = 1,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, tensor_parallel=tensor_parallel, timeout_s=timeout_s, transport=transport)
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def load(self, payload: str, version: int) -> float:
        """See SGLangEngine."""
        if self._running:
            raise ProtocolError(
                f"{self._running} generations are running", where=self.url, mend="call abort_all before load"
            )
        return await super().load(payload, version)

    async def checksum(self) -> tuple[str, ...]:
        """SGLang's own checksum of its weights, one a rank: equal on engines of one layout that serve one version."""
        answer = await self._http.call("POST", "/weights_checker", {"action": "checksum"})
        return tuple(str(rank["per_gpu_checksum"]) for rank in answer["ranks"])

    async def generate(self, request: Generation) -> tuple[Sample, ...]:
        """`request.n` samples. Cut short by `abort_all`, in which case `finish` is "abort"."""
        (samples,) = await self.generate_many([request])
        return samples

    async def generate_many(self, requests: Sequence[Generation]) -> list[tuple[Sample, ...]]:
        """One HTTP call for several prompts; answers when the last is done, in the order of `requests`."""
        prompts = [list(request.tokens) for request in requests for _ in range(request.n)]
        settings = [_sampling(request) for request in requests for _ in range(request.n)]
        if not prompts:
            return []
        self._running += 1
        self._idle.clear()
        try:
            answers = await self._http.call(
                "POST",
                "/generate",
                {"input_ids": prompts, "sampling_params": settings, "return_logprob": True, "logprob_start_len": -1},
                timeout_s=None,
            )
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
        samples = [_sample(answer, self.url) for answer in answers]
        if len(samples) != len(prompts):
            raise ProtocolError(f"asked for {len(prompts)} samples, got {len(samples)}", where=self.url)
        done: list[tuple[Sample, ...]] = []
        for request in requests:
            done.append(tuple(samples[: request.n]))
            del samples[: request.n]
        return done

    async def abort_all(self, deadline_s: float = 10.0) -> None:
        """Cut all generations; when this returns, every `generate` of this client has its answer."""
        end = time.monotonic() + deadline_s
        while True:
            await super().abort_all()
            try:
                async with asyncio.timeout(0.05):  # wait_for of Python 3.11 forgets a cancel that meets the event
                    await self._idle.wait()
                return
            except TimeoutError:
                if time.monotonic() > end:
                    raise EngineFault(
                        f"{self._running} generations still run {deadline_s:g} s after the abort",
                        where=self.url,
                        mend="restart the engine",
                    ) from None

    async def load_figures(self) -> dict[str, int]:
        """How many requests run and how many wait, by SGLang's own count."""
        figures = (await self._http.call("GET", "/v1/loads?include=core"))["loads"][0]
        return {"running": int(figures["num_running_reqs"]), "waiting": int(figures["num_waiting_reqs"])}

    async def __aenter__(self) -> GeneratingEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _sampling(request: Generation) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    if request.stop_token_ids:
        settings["stop_token_ids"] = list(request.stop_token_ids)
    return settings


def _sample(answer: dict[str, Any], url: str) -> Sample:
    """A sample from SGLang's answer; WrongVersion when its tokens come from a mixture of versions or of weights."""
    meta = answer["meta_info"]
    tokens = tuple(int(token) for token in answer.get("output_ids") or ())
    version = str(meta["weight_version"])
    if tokens:  # the scheduler's own record of the versions; the server's label is only what it was told last
        versions = sorted({str(span["version"]) for span in meta.get("weight_versions") or ()}) or [version]
        if len(versions) > 1 or versions[0] == BROKEN_VERSION:
            raise WrongVersion(
                f"an answer was made with the weights {', '.join(versions)}", where=url, mend="restart the engine"
            )
        version = versions[0]
    entries = [entry[0] for entry in meta.get("output_token_logprobs") or ()]
    if len(tokens) != len(entries):
        raise ProtocolError(f"{len(tokens)} tokens but {len(entries)} log-probs", where=url)
    if any(entry is None for entry in entries):
        raise EngineFault(
            f"log-probs that are not numbers, from weights {version}", where=url, mend="look for NaN in the weights"
        )
    logps = tuple(float(entry) for entry in entries)
    return Sample(tokens=tokens, logps=logps, finish=str(meta["finish_reason"]["type"]), version=version)
