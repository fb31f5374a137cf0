"""SGLang from outside: the arguments to start it with and a client of its HTTP interface on loopback. No torch, no
SGLang import.

What SGLang 0.5.23 does, found out by trying, and what follows from it here:

- Log-probs are `log(softmax(logits / temperature))` over the whole vocabulary, before top-p: at temperature 1 and top-p
  1 exactly the trainer's.
- `n` samples of one prompt: SGLang first prefills the prompt alone, then sends the samples. An abort that falls between
  the two misses them, so `abort_all` repeats itself until nothing runs.
- An aborted request that was running answers with what it generated so far; one that was waiting answers with no
  tokens. Both end as "abort".
- Weights may only change while nothing runs: otherwise the cache of the old weights cannot be flushed. `load` flushes
  always and treats a refusal as a fault, so keys and values of two versions never mix.
- `/health` takes a second by design (it sleeps, then looks); `/model_info` answers at once and names the weight
  version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from twinpod.errors import EngineFault, IntegrityError, ProtocolError, TwinpodError, Unreachable, WrongVersion
from twinpod.inference.names import ATTENTION_BACKEND, BROKEN_VERSION, LOADER

__all__ = ["EngineSpec", "Generation", "SGLangEngine", "Sample", "server_args"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine is started with."""

    model_path: str  # folder with config.json; no weights are read from it
    port: int  # on 127.0.0.1
    api_key: str
    kv_tokens: int | None  # size of the key-value cache; None: as much as memory_fraction has room for
    context_length: int  # longest prompt + answer
    dtype: str = "float32"  # float32 | bfloat16 | float16
    tensor_parallel: int = 1
    accelerators: bool = False  # False: the CPU platform
    first_accelerator: int = 0  # of its tensorParallel ones, as the container numbers them
    attention_backend: str = ""  # empty: ours on a CPU, SGLang's choice on an accelerator
    max_running: int = 256  # sequences decoded at the same time
    seed: int = 0  # of the sampler; give each start another one, or every iteration draws the same numbers
    sleep: bool = False  # life cycle Sleep: memory that can be given back (accelerators only)
    memory_fraction: float = 0.8  # of an accelerator's free memory, weights and cache together


def server_args(spec: EngineSpec) -> dict[str, Any]:
    """SGLang's ServerArgs as a dict, for the standby's `start`."""
    arguments: dict[str, Any] = {
        "model_path": spec.model_path,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "skip_server_warmup": True,
        "incremental_streaming_output": True,  # a streamed event has the tokens since the last one
        "host": "127.0.0.1",
        "port": spec.port,
        "api_key": spec.api_key,
        "dtype": spec.dtype,
        "tp_size": spec.tensor_parallel,
        "context_length": spec.context_length,
        **({"max_total_tokens": spec.kv_tokens} if spec.kv_tokens is not None else {}),
        "max_running_requests": spec.max_running,
        "custom_weight_loader": [LOADER],
        "random_seed": spec.seed,
        "sleep_on_idle": True,
        "grammar_backend": "none",
        "log_level": "info",
        "log_level_http": "warning",
        "enable_memory_saver": spec.sleep and spec.accelerators,
    }
    if spec.accelerators:
        arguments["mem_fraction_static"] = spec.memory_fraction
        arguments["base_gpu_id"] = spec.first_accelerator
        if spec.attention_backend:
            arguments["attention_backend"] = spec.attention_backend
    else:
        arguments |= {
            "device": "cpu",
            "attention_backend": spec.attention_backend or ATTENTION_BACKEND,
            "sampling_backend": "pytorch",
            "disable_cuda_graph": True,
            "disable_overlap_schedule": True,
            "mem_fraction_static": 0.5,
        }
    return arguments


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


class SGLangEngine:
    """Client of one engine. Use it in one event loop; `close` (or `async with`) when done.

    Every method raises EngineFault (retryable: restart the engine) when SGLang refuses or breaks off, and Unreachable
    when it does not answer.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        tensor_parallel: int = 1,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._ranks = tensor_parallel
        self._timeout = timeout_s
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            transport=transport,
            trust_env=False,
        )

    async def wait_healthy(self, deadline_s: float) -> dict[str, Any]:
        """Wait until the server answers; returns SGLang's model info. Unreachable after `deadline_s` seconds."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                answer = await self._http.get("/model_info", timeout=max(0.05, end - time.monotonic()))
                if answer.status_code == 200:
                    info: dict[str, Any] = answer.json()
                    return info
            except httpx.HTTPError:
                pass  # not up yet
            if time.monotonic() > end:
                raise Unreachable(
                    f"the engine did not answer within {deadline_s:g} s", where=self.url, mend="read the engine's log"
                )
            await asyncio.sleep(0.01)  # polling a process that is starting: there is nothing to wait on

    async def weight_version(self) -> str:
        """The version that the server says it serves; "default" before any load."""
        return str((await self._call("GET", "/model_info"))["weight_version"])

    async def load(self, payload: str, version: int) -> float:
        """Load the weights that `payload` names (standby op `payload`) as `version`; returns the seconds. Nothing may
        be running.

        After an error the engine may hold a mixture of weights: it says so itself, by the version `broken`, until a
        load succeeds or it is restarted. IntegrityError and ProtocolError of the loader come through as themselves.
        """
        if self._running:
            raise ProtocolError(
                f"{self._running} generations are running", where=self.url, mend="call abort_all before load"
            )
        began = time.monotonic()
        await self._call("POST", "/begin_weight_update", {})
        failure: TwinpodError | None = None
        try:
            await self._call(
                "POST",
                "/update_weights_from_tensor",
                {
                    "serialized_named_tensors": [payload] * self._ranks,
                    "load_format": LOADER,
                    "flush_cache": True,
                    "weight_version": str(version),
                },
            )
        except TwinpodError as error:
            failure = error
        await self._call("POST", "/end_weight_update", {})
        if failure is not None:
            await self._call(
                "POST", "/update_weight_version", {"new_version": BROKEN_VERSION, "abort_all_requests": True}
            )
            raise failure
        if (observed := await self.weight_version()) != str(version):
            raise WrongVersion(
                f"asked for weights {version}, the engine serves {observed}", where=self.url, mend="restart the engine"
            )
        return time.monotonic() - began

    async def checksum(self) -> tuple[str, ...]:
        """SGLang's own checksum of its weights, one a rank: equal on engines of one layout that serve one version."""
        answer = await self._call("POST", "/weights_checker", {"action": "checksum"})
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
            answers = await self._call(
                "POST",
                "/generate",
                {"input_ids": prompts, "sampling_params": settings, "return_logprob": True, "logprob_start_len": -1},
                timeout=None,
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
            await self._call("POST", "/abort_request", {"rid": "", "abort_all": True}, empty=True)
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
        figures = (await self._call("GET", "/v1/loads?include=core"))["loads"][0]
        return {"running": int(figures["num_running_reqs"]), "waiting": int(figures["num_waiting_reqs"])}

    async def release(self) -> None:
        """Life cycle Sleep: give the accelerator's memory back. Nothing may run; a second release kills SGLang."""
        await self._call("POST", "/release_memory_occupation", {}, empty=True)

    async def resume(self) -> None:
        """Undo `release`; weights are undefined until the next `load`. SGLang dies of a resume without a release."""
        await self._call("POST", "/resume_memory_occupation", {}, empty=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> SGLangEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = 0.0,
        empty: bool = False,
    ) -> Any:
        """One request. `timeout` 0: the client's own. `empty`: the answer has no JSON."""
        limit = httpx.USE_CLIENT_DEFAULT if timeout == 0.0 else httpx.Timeout(timeout, connect=5.0)
        try:
            answer = await self._http.request(method, path, json=body, timeout=limit)
        except httpx.TimeoutException as error:
            raise Unreachable(f"{path} had no answer within {self._timeout:g} s", where=self.url) from error
        except httpx.HTTPError as error:
            raise EngineFault(
                f"{path}: {type(error).__name__}: {error}", where=self.url, mend="read the engine's log"
            ) from error
        content = None if empty and answer.status_code == 200 else _json(answer)
        if answer.status_code != 200 or (isinstance(content, dict) and content.get("success") is False):
            raise _fault(path, _reason(content, answer), self.url)
        return content


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _reason(content: Any, answer: httpx.Response) -> str:
    if isinstance(content, dict):
        reason = content.get("message") or content.get("error") or content.get("detail")
        if isinstance(reason, dict):
            reason = reason.get("message", reason)
        if reason:
            return str(reason)
    return f"status {answer.status_code}: {answer.text[:300]}"


def _fault(path: str, reason: str, url: str) -> TwinpodError:
    """The loader's own error when the reason names one, else EngineFault."""
    for kind in (IntegrityError, ProtocolError):
        _, found, line = reason.partition(f"{kind.__name__}: ")
        if found:
            return kind(line, where=url)
    return EngineFault(f"{path}: {reason}", where=url)


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
